"""Vendors' own SDKs as programs of their own, fed with events and asked what became of each; and the agent restarted under them.

A driver reads one JSON object a line, hands it to its SDK, and writes a line for each event of which the SDK told the outcome:
`{"id": ..., "ok": true or false, "sent": what the SDK sent, as far as it tells}`. Only what an SDK called delivered is judged:
some of them give up on a refused connection, and say so.
"""

import dataclasses
import json
import os
import subprocess
import threading
import time

import servers
import waiting

# Below 2^53, so that JavaScript's numbers hold it; Python's drivers get longer ones besides.
LARGE = 2**53 - 1
LONGER = 2**63 + 1
EVENTS = 1000
USERS = 120
SECONDS = 120


class Driver:
    """One SDK at work. `outcomes` maps an event's id to its line."""

    def __init__(self, name, command, log_dir):
        self.name = name
        self.outcomes = {}
        env = {**os.environ, "NODE_PATH": servers.MODULES, "PYTHONWARNINGS": "ignore"}
        self.log = open(os.path.join(log_dir, f"{name}.log"), "wb")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=env)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            outcome = json.loads(line)
            self.outcomes[outcome["id"]] = outcome

    def send(self, event):
        """One event."""
        self.process.stdin.write(json.dumps(event).encode() + b"\n")
        self.process.stdin.flush()

    def finish(self):
        """No more events; waits until the SDK has told of all it will tell."""
        self.process.stdin.close()
        try:
            self.process.wait(SECONDS)
        finally:
            self.process.kill()
            self.reader.join(SECONDS)
            self.log.close()
        assert self.process.returncode == 0, f"{self.name} ended with {self.process.returncode}; see {self.log.name}"

    def delivered(self):
        """Ids that the SDK called delivered."""
        return [name for name, outcome in self.outcomes.items() if outcome["ok"]]


def run(name, command, events, log_dir, meanwhile=None, rate=None):
    """Sends all events; calls `meanwhile(share sent)` after each."""
    driver = Driver(name, command, log_dir)
    for at, event in enumerate(events):
        driver.send(event)
        if meanwhile:
            meanwhile((at + 1) / len(events))
        if rate:
            time.sleep(1 / rate)
    driver.finish()
    return driver


class Restarts:
    """Ends and starts the agent once in the middle: SIGTERM after a third, kill -9 after two thirds."""

    def __init__(self, agent):
        self.agent = agent
        self.left = [(1 / 3, "term"), (2 / 3, "kill")]
        self.codes = []

    def __call__(self, share):
        if self.left and share >= self.left[0][0]:
            _, how = self.left.pop(0)
            threads = [threading.Thread(target=self._restart, args=(how,))]
            threads[0].start()
            threads[0].join()

    def _restart(self, how):
        if how == "term":
            self.codes.append(self.agent.stop())
        else:
            self.agent.child.kill()
        start_again(self.agent)


def spoiled(stored, spoil):
    """The same records, but one: `spoil` changes it, or is None and it is left out. To show that a judge finds that."""
    at = len(stored) // 2
    if spoil is None:
        return stored[:at] + stored[at + 1 :]
    record = json.loads(stored[at].data)
    spoil(record)
    return stored[:at] + [dataclasses.replace(stored[at], data=json.dumps(record).encode())] + stored[at + 1 :]


def start_again(agent):
    """Starts an agent that has ended, in its directory and with its ports."""
    old = agent.child
    env = {
        "PATH": os.environ["PATH"],
        "HOME": agent.dir,
        "RUST_BACKTRACE": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        **servers.CREDENTIALS,
    }
    agent.child = waiting.Child(old.name, old.process.args, old.log_path, env=env)
    waiting.until("the agent is ready again", lambda: agent.child.check_alive() and agent._get("/readyz")[0] == 200, 30)


def wait_settled(agent, seconds=SECONDS):
    """Waits until the agent has delivered all that it holds; gives its account. After a restart it counts from there on."""
    last = {}

    def settled():
        last.update(agent.status()["account"])
        return last["pending"] == 0

    waiting.until("nothing is pending", settled, seconds)
    return last
