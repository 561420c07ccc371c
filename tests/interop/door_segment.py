"""Segment's door: the real SDKs that speak its API, and Segment's own library as the judge of the classic record.

Each SDK sends 1,002 events of all calls with hard values to a running agent; what arrives is compared field by field with the
contract. Then it sends 1,000 more while the agent is ended by SIGTERM and started, killed with kill -9 and started: nothing that
the SDK said was delivered may be missing. Some SDKs give up on a refused connection; what they gave up is counted, not judged.
"""

import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime

import agent
import readback
import servers
import waiting

# Of PyPI. They do not agree on what they depend on, so each has a directory of its own.
PYTHON = {
    "segment-analytics-python": "segment-analytics-python==2.4.0",
    "analytics-python": "analytics-python==1.4.post1",
    "astronomer-analytics": "astronomer-analytics==1.2.7",
    "rudder-sdk-python": "rudder-sdk-python==2.1.9",
}
# Of npm, as package.json pins them.
NODE = [
    "@segment/analytics-node",
    "analytics-node",
    "astronomer",
    "@rudderstack/rudder-sdk-node",
    "@customerio/cdp-analytics-node",
]
# Of Go's module proxy, as go/go.mod pins it.
GO = "analytics-go"
WITHOUT_SENT_AT = ("@customerio/cdp-analytics-node",)
KEY = "key-of-a-test"
EVENTS = 1000
SEED = int(os.environ.get("FOREBAY_JUDGE_SEED", "4"))
JUDGED = 10_000

SOURCE = """
[[source]]
name = "segment"
kind = "segment"
stream = "{stream}"
keys = ["{key}"]
{more}
"""

LONG_ID = "long-" + "ä" * 300
BODY = {
    "text": 'ä𝄞🚀 "quoted" \\ \n\t\u2028 /',
    "nothing": None,
    "empty": {},
    "list": [1, -2.5, True, None, "x", [], {"deep": {"deeper": ["ä"]}}],
    "2012-12-02": "a name is no date",
    "day": "2012-12-02",
    "moment": "2012-12-02T02:30:08.1234567+02:00",
    "no day": "2012-12",
    "float": 1.5e300,
}
# What the classic record has for them.
RECORDED = {**BODY, "day": "2012-12-02T00:00:00.000Z", "moment": "2012-12-02T00:30:08.123Z"}
BIG = 123456789012345678901234567890


def calls(node, count):
    """Calls in turn of every kind."""
    made = []
    for n in range(count):
        one = {"n": n, "call": ("track", "identify", "page", "screen", "group", "alias")[n % 6], "body": {**BODY, "n": n}}
        if not node:
            one["body"]["big"] = BIG
        if n % 6 == 5:
            one.update(user=f"u{n % 40}", previous="before")
        elif n % 7 == 0:
            one.update(anonymous=f"a{n % 40}")
        else:
            one.update(user=LONG_ID if n % 97 == 1 else f"u{n % 40}")
        one.update(event=f"Event {n} ä", name=f"Name {n}", group="g1")
        made.append(one)
    return made


def install(name):
    """The directory of a Python SDK and what it needs."""
    where = os.path.join(servers.HERE, ".work", "sdk", PYTHON[name].replace("==", "-"))
    if not os.path.isdir(where):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-conflicts"]
        subprocess.run([*command, "--target", where + ".new", PYTHON[name]], check=True, capture_output=True)
        os.rename(where + ".new", where)
    return where


def build_go():
    """The program that runs the library for Go; None and what is missing, where it cannot be built."""
    if not shutil.which("go"):
        return None, "go not installed"
    work = os.path.join(servers.HERE, ".work")
    program = os.path.join(work, "sdk-go")
    env = {**os.environ, "GOMODCACHE": os.path.join(work, "gomod"), "GOFLAGS": "-modcacherw -buildvcs=false -mod=readonly"}
    source = os.path.join(servers.HERE, "go")
    try:
        fetched = subprocess.run(["go", "mod", "download"], cwd=source, env=env, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return None, "Go's modules did not come within 120 s"
    if fetched.returncode != 0:
        return None, f"Go's modules could not be fetched: {fetched.stderr.strip()[-300:]}"
    built = subprocess.run(["go", "build", "-o", program, "."], cwd=source, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, f"the driver for Go does not compile:\n{built.stderr[-2000:]}"
    return program, ""


class Sdk:
    """A process that runs one SDK."""

    def __init__(self, name, port, log_dir):
        self.name, self.node = name, name in NODE
        env = {"PATH": os.environ["PATH"], "HOME": log_dir, "PYTHONDONTWRITEBYTECODE": "1"}
        if self.node:
            command = ["node", os.path.join(servers.HERE, "sdk_segment.cjs")]
            env["NODE_PATH"] = servers.MODULES
        elif name == GO:
            command = [os.path.join(servers.HERE, ".work", "sdk-go")]
        else:
            command = [sys.executable, os.path.join(servers.HERE, "sdk_segment.py")]
            env["PYTHONPATH"] = install(name)
        self.log = os.path.join(log_dir, f"sdk-{name.replace('/', '-')}.log")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*command, name, f"http://127.0.0.1:{port}", KEY],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env, text=True,
            )

    def run(self, made, seconds):
        """Has it send all calls; what it says of them."""
        try:
            out, _ = self.process.communicate("".join(json.dumps(one) + "\n" for one in made), timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"{self.name} did not end within {seconds} s; see {self.log}") from None
        assert self.process.returncode == 0, f"{self.name} ended with {self.process.returncode}; see {self.log}"
        return json.loads(out.splitlines()[-1])


def started(server, stream, log_dir, more):
    """An agent with a source of kind segment, delivering to a new stream."""
    server.create_stream(stream, 4)
    return agent.Agent(stream, server.endpoint, "off", log_dir, more=SOURCE.format(stream=stream, key=KEY, more=more))


def restart(one, kill):
    """Ends the agent, by SIGTERM or kill -9, and starts it as it was."""
    old = one.child
    if kill:
        os.killpg(old.process.pid, signal.SIGKILL)
        old.process.wait()
    else:
        code = old.terminate(60)
        assert code == 0, f"the agent ended with {code} on SIGTERM"
    env = {"PATH": os.environ["PATH"], "HOME": one.dir, "RUST_BACKTRACE": "1", "AWS_EC2_METADATA_DISABLED": "true"}
    one.child = waiting.Child(old.name, old.process.args, old.log_path, env={**env, **servers.CREDENTIALS})
    waiting.until("the agent is ready again", lambda: one.child.check_alive() and one._get("/readyz")[0] == 200, 30)


def records_of(server, stream):
    """Partition key and raw record of each in the stream."""
    return [(one.key, one.data.decode()) for one in readback.read_stream(server.client, stream)]


def ms_of(text):
    """Milliseconds of a time in the form that records have, or with the offset that Python's SDKs write."""
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


def compare(made, found, begun_ms, sends_time):
    """Findings: one record for each call, each with the fields of the contract. `sends_time`: the SDK has a sentAt."""
    by_number = {}
    for key, text in found:
        record = json.loads(text)
        by_number.setdefault(record["context"]["n"], []).append((key, record))
    findings = [f"call {n}: unheard of" for n in by_number if n >= len(made)]
    ids = set()
    for one in made:
        have = by_number.get(one["n"], [])
        if len(have) != 1:
            findings.append(f"call {one['n']}: {len(have)} records")
            continue
        (key, record), where = have[0], f"call {one['n']} ({one['call']})"
        ids.add(record["messageId"])

        def equal(what, value, wanted, where=where):
            if value != wanted:
                findings.append(f"{where}: {what} is {str(value)[:200]!r}, expected {str(wanted)[:200]!r}")

        person = one.get("user") or one.get("anonymous")
        equal("key", key, person if len(person) <= 256 else hashlib.sha256(person.encode()).hexdigest())
        equal("type", record["type"], one["call"])
        equal("id", record.get("userId") or record.get("anonymousId"), person)
        equal("version, channel, projectId", [record["version"], record["channel"], record["projectId"]], [2, "server", "p1"])
        body = {**RECORDED, "n": one["n"], **({"big": BIG} if "big" in one["body"] else {})}
        if one["call"] == "track":
            equal("event", record["event"], one["event"])
        if one["call"] == "group":
            equal("groupId", record["groupId"], "g1")
        if one["call"] == "alias":
            equal("previousId", record["previousId"], "before")
        elif one["call"] in ("identify", "group"):
            # RudderStack's libraries put an identify's traits into its context.
            has = record["traits"] if record.get("traits") else record["context"].get("traits")
            equal("traits", has, body)
        else:
            # Some libraries write the name of a page into its properties too.
            equal("properties", {name: value for name, value in record["properties"].items() if name != "name"}, body)
            if one["call"] != "track":
                equal("name", record.get("name") or record["properties"].get("name"), one["name"])
        equal("writeKey", record.get("writeKey"), None)
        times = {name: ms_of(record[name]) for name in ("originalTimestamp", "receivedAt", "timestamp")}
        late = times["receivedAt"] - ms_of(record["sentAt"]) if sends_time else 0
        equal("sentAt", "sentAt" in record, sends_time)
        equal("timestamp", times["timestamp"], times["originalTimestamp"] + late)
        if not begun_ms <= times["receivedAt"] <= time.time() * 1000 + 1:
            findings.append(f"{where}: receivedAt {record['receivedAt']} is not of this run")
    if len(ids) != len(made):
        findings.append(f"{len(ids)} message ids for {len(made)} calls")
    return findings


def sdk(name):
    """The scenario of one SDK."""

    def run(server, report, log_dir):
        label = name.replace("@", "").replace("/", "-")
        one = started(server, f"segment-{label}", log_dir, 'profile = "astronomer"\nproject_id = "p1"')
        try:
            begun_ms = time.time() * 1000 - 1
            made = calls(name in NODE, EVENTS + 2)
            said = Sdk(name, one.http_port, log_dir).run(made, 120)
            report.equal(f"{name}: nothing was given up", said["failed"], [])
            one.wait_delivered(len(made), 120)
            found = records_of(server, one.stream)
            report.check(f"{name}: {len(made)} records, field by field", lambda: compare(made, found, begun_ms, name not in WITHOUT_SENT_AT))

            again = [{**call, "n": call["n"] + 5000, "pause": 0.006} for call in calls(name in NODE, EVENTS)]
            trouble, back_at = [], []

            def restarts():
                try:
                    for kill in (False, True):
                        time.sleep(1.5)
                        restart(one, kill)
                        back_at.append(time.monotonic())
                except Exception as error:
                    trouble.append(str(error))

            breaker = threading.Thread(target=restarts)
            breaker.start()
            said = Sdk(name, one.http_port, log_dir).run(again, 300)
            ended_at = time.monotonic()
            breaker.join()
            report.equal(f"{name}: the agent came back twice", trouble, [])
            report.equal(f"{name}: while it sent", [at < ended_at for at in back_at], [True, True])
            one.wait_delivered(0, 120)
            kept = {json.loads(text)["context"]["n"] for _, text in records_of(server, one.stream)}
            missing = sorted(set(said["delivered"]) - kept)
            report.equal(
                f"{name}: of {len(said['delivered'])} told to be safe over restarts ({len(said['failed'])} given up) none is missing",
                missing,
                [],
            )
            report.check(f"{name}: some were told", lambda: [] if len(said["delivered"]) > 100 else [str(said)[:300]])
            report.equal("the agent ends with 0", one.stop(), 0)
        finally:
            one.clean()

    return run


def go(server, report, log_dir):
    """The scenario of the library for Go."""
    program, missing = build_go()
    if program:
        sdk(GO)(server, report, log_dir)
    else:
        report.leave_out(f"Segment's library for Go: {missing}")


def judge(server, report, log_dir):
    """10,000 random messages through the door, then Segment's library over each of them."""
    env = {**os.environ, "NODE_PATH": servers.MODULES}
    script = os.path.join(servers.HERE, "judge_segment.cjs")

    def node(*arguments, stdin=None):
        done = subprocess.run(
            ["node", script, *arguments], input=stdin, capture_output=True, text=True, timeout=300, env={**env, "TZ": "UTC"}, check=False
        )
        assert done.returncode == 0, f"node ended with {done.returncode}: {done.stderr[-2000:]}"
        return done.stdout.split("\n")[:-1]

    messages = node("generate", str(SEED), str(JUDGED))
    one = started(server, "segment-judge", log_dir, "")
    try:
        connection = http.client.HTTPConnection("127.0.0.1", one.http_port, timeout=60)
        chance, shared, at = random.Random(SEED), {}, 0
        while at < len(messages):
            group = messages[at : at + chance.choice((1, 3, 100, 400))]
            common = {}
            if chance.random() < 0.5:
                common["context"] = {"ip": "1.2.3.4", "a": "2012-12-02", "library": {"name": "b", "at": "2012-12-02T01:00+01:00"}}
                common["integrations"] = {"All": True, "Mail": False}
                common["sentAt"] = "2024-02-29T12:00:00.000Z"
            common = json.dumps(common)
            body = common[:-1] + (", " if len(common) > 2 else "") + f'"writeKey": "{KEY}", "batch": [{",".join(group)}]}}'
            connection.request("POST", "/v1/batch", body.encode())
            answer = connection.getresponse()
            told = (answer.status, answer.read())
            assert told == (200, b'{"success":true}'), str(told)
            shared.update({json.loads(text)["messageId"]: (text, common) for text in group})
            at += len(group)
        one.wait_delivered(len(messages), 180)
        found = records_of(server, one.stream)
        lines = []
        for key, text in found:
            message, common = shared[json.loads(text)["messageId"]]
            lines.append(json.dumps({"message": message, "shared": common, "record": text, "key": key}))
        spoiled = {**json.loads(lines[0]), "record": json.loads(lines[0])["record"].replace('"type"', '"kind"')}
        report.equal("the judge tells a record that is wrong", len(node("compare", stdin=json.dumps(spoiled) + "\n")), 2)
        verdict = [json.loads(line) for line in node("compare", stdin="\n".join(lines) + "\n")]
        report.equal("the judge saw every record", (len(found), verdict[-1]), (JUDGED, {"compared": JUDGED}))
        report.check(f"@segment/facade made the same bytes of {JUDGED} messages (seed {SEED})", lambda: [str(v) for v in verdict[:-1]])
        report.equal("the agent ends with 0", one.stop(), 0)
    finally:
        one.clean()


ALL = {"judge": judge, GO: go, **{name.replace("@", "").replace("/", "-"): sdk(name) for name in [*PYTHON, *NODE]}}
