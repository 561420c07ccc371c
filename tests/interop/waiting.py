"""Waiting on conditions, and running programs that surely end with us.

Every wait has a deadline and a name, so that a run is bounded in time and a failure says what never happened.
Every child lives in a process group of its own; leaving by any way but SIGKILL ends them all.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse

_children = []


def until(what, condition, seconds=30, pause=0.02):
    """Polls `condition` until it is true and gives its value; fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s still not: {what}")
        time.sleep(pause)


def free_port():
    """A loopback port that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def accepts(endpoint):
    """Whether something listens at a URL."""
    url = urllib.parse.urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname, url.port), timeout=1).close()
        return True
    except OSError:
        return False


class Child:
    """A program whose output goes to a file."""

    def __init__(self, name, command, log_path, env=None, cwd=None):
        self.name, self.log_path = name, log_path
        with open(log_path, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=cwd, start_new_session=True
            )
        _children.append(self)

    def check_alive(self):
        """Fails with the end of the log when the program is gone. True otherwise, for use in conditions."""
        code = self.process.poll()
        if code is not None:
            raise AssertionError(f"{self.name} ended by itself with {code}; the end of its log:\n{self.log_tail()}")
        return True

    def terminate(self, seconds):
        """SIGTERM, then waits; gives the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {seconds} s of SIGTERM; log:\n{self.log_tail()}") from None

    def kill(self):
        """Ends the whole group now. Does nothing to one that has ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def log_tail(self, lines=40):
        """The last lines of the log."""
        with open(self.log_path, errors="replace") as log:
            return "".join(log.readlines()[-lines:])


def _kill_all():
    for child in _children:
        child.kill()


atexit.register(_kill_all)
for _signal in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_signal, lambda number, _frame: sys.exit(128 + number))
