"""The Kinesis Client Library itself as a reader: builds kcl/src/main/java/Reader.java with Maven, runs it, and reads what it wrote.

It needs java (11 or later), mvn and a Maven that answers; where any is missing, `unavailable` says which, and the
scenario goes on with the rule of `AggregatorUtil.deaggregate` as readback.kcl_events restates it. Its lease table
lies in ministack's DynamoDB. Of the servers only kinesis-local can feed it: at the end of a closed shard the library
wants the child shards in the answer to GetRecords, which kinesalite and ferrokinesis leave out.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import cloud
import readback
import servers
import waiting

WORK = os.path.join(servers.HERE, ".work", "kcl")
PROJECT = os.path.join(servers.HERE, "kcl")
BUILD_SECONDS = 240
# The library waits for up to 30 s, as chance has it, for another worker to fill the lease table.
BEGIN_SECONDS = 120
READ_SECONDS = 150


def unavailable():
    """Builds the reader if that has not been done. Empty when it can run; else what is missing."""
    missing = [tool for tool in ("java", "mvn") if not shutil.which(tool)]
    if missing:
        return f"{' and '.join(missing)} not installed"
    java = os.path.join("src", "main", "java")
    sources = [os.path.join(PROJECT, name) for name in ("pom.xml", os.path.join(java, "Reader.java"), os.path.join(java, "Door.java"))]
    wanted = hashlib.sha256()
    for source in sources:
        with open(source, "rb") as file:
            wanted.update(file.read())
    stamp = os.path.join(WORK, "stamp")
    if os.path.exists(stamp):
        with open(stamp, encoding="utf-8") as file:
            if file.read() == wanted.hexdigest():
                return ""
    print("building the KCL's reader with Maven")
    shutil.rmtree(WORK, ignore_errors=True)
    maven = ["mvn", "-B", "-q", "-f", sources[0], f"-Dmaven.repo.local={os.path.join(servers.HERE, '.work', 'm2')}", "process-classes"]
    try:
        built = subprocess.run(maven, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"Maven did not end within {BUILD_SECONDS} s"
    if built.returncode != 0:
        said = built.stdout + built.stderr
        assert "COMPILATION ERROR" not in said, f"the reader does not compile:\n{said[-2000:]}"
        return f"Maven failed: {next((line for line in said.splitlines() if 'ERROR' in line), said[-300:])[:300]}"
    with open(stamp, "w", encoding="utf-8") as file:
        file.write(wanted.hexdigest())
    return ""


class Leases:
    """A DynamoDB for lease tables: ministack, which here believes every signature."""

    def __init__(self, log_dir):
        port = waiting.free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        env = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "IOT_MTLS_ENABLED": "0", "PYTHONPATH": cloud.PACKAGES}
        self.child = waiting.Child(
            "ministack (leases)",
            [sys.executable, "-m", "ministack"],
            os.path.join(log_dir, "leases.log"),
            env={"PATH": os.environ["PATH"], "HOME": log_dir, **env},
        )
        waiting.until("ministack listens", lambda: self.child.check_alive() and waiting.accepts(self.endpoint), 60)


class Reader:
    """Applications of the KCL that read a stream from its beginning, one worker each, as long as they are let.

    The library drops an aggregate only where it knows the shard's hash range, and of a shard that is born while it runs
    it learns that when its list of shards is 30 s old: until then it hands over what it would drop later (ProcessTask,
    KinesisShardDetector). `PLAIN` is left as it comes. `INFORMED` fetches the list whenever a shard is not on it.
    """

    PLAIN, INFORMED = "plain", "informed"
    MISSES = {PLAIN: 1000, INFORMED: 0}

    def __init__(self, server, stream, kinds, log_dir):
        self.leases = Leases(log_dir)
        self.outputs = {kind: os.path.join(log_dir, f"kcl-{stream}-{kind}.ndjson") for kind in kinds}
        command = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        command += ["-Dorg.slf4j.simpleLogger.log.software.amazon.kinesis=info", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
        command += ["-cp", f"{os.path.join(WORK, 'classes')}:{os.path.join(WORK, 'libraries', '*')}", "Reader"]
        command += [server.endpoint, self.leases.endpoint, servers.REGION, stream]
        for kind, output in self.outputs.items():
            command += [f"{kind}-{stream}", str(self.MISSES[kind]), output]
        self.child = waiting.Child(
            "the KCL's reader", command, os.path.join(log_dir, f"kcl-{stream}.log"), env={"PATH": os.environ["PATH"], **servers.CREDENTIALS}
        )

    def lines(self, kind):
        """What an application has written so far."""
        if not os.path.exists(self.outputs[kind]):
            return []
        with open(self.outputs[kind], "rb") as file:
            return [json.loads(line) for line in file if line.endswith(b"\n")]

    def wait_begun(self, shards):
        """Waits until it reads so many shards. Before the first reshard: kinesis-local knows no ShardFilter, so a
        library that starts later is shown parents and children at once, and refuses to begin."""

        def begun():
            self.child.check_alive()
            return all(sum("begun" in line for line in self.lines(kind)) >= shards for kind in self.outputs)

        waiting.until(f"the KCL reads {shards} shards", begun, BEGIN_SECONDS)

    def wait_read(self, shards, events):
        """Waits until both have read all closed shards to their end and been handed every one of these events; gives
        what each was handed, in order, by kind."""
        closed = {parent for shard in shards for parent in shard.parents}
        wanted = {event.data for event in events}

        def all_read():
            self.child.check_alive()
            seen = {kind: Seen(self.lines(kind)) for kind in self.outputs}
            return seen if all(one.ended >= closed and one.data >= wanted for one in seen.values()) else None

        try:
            return waiting.until("the KCL has read all", all_read, READ_SECONDS, pause=0.5)
        except AssertionError as error:
            # Not the end: what was handed over is judged as it is.
            print(f"        {error}; the end of its log:\n{self.child.log_tail(15)}")
            return {kind: Seen(self.lines(kind)) for kind in self.outputs}

    def stop(self):
        """Ends both programs."""
        self.child.kill()
        self.leases.child.kill()


class Seen:
    """What an application was handed, in that order: `events`, each user record of a record once; `places` counts them by
    shard, key and data; `again` those that were handed over once more, as a lease that changes hands makes it."""

    def __init__(self, lines):
        self.events, self.places, self.again, self.moments = [], Counter(), 0, []
        known = set()
        for line in lines:
            if "data" not in line:
                self.moments.append(next(iter(line.items())))
                continue
            place = (line["shard"], line["sequence"], line["sub"])
            if place in known:
                self.again += 1
                continue
            known.add(place)
            event = readback.Event(base64.b64decode(line["key"]).decode(), None, base64.b64decode(line["data"]))
            self.events.append(event)
            self.places[(line["shard"], event.key, event.data)] += 1
        self.data = {event.data for event in self.events}
        self.ended = {name for what, name in self.moments if what == "ended"}

    def too_early(self, shards):
        """Shards that were begun before each of their parents had ended, or that were never begun."""
        found, ended, begun = [], set(), set()
        parents = {shard.name: shard.parents for shard in shards}
        for what, name in self.moments:
            if what == "begun":
                begun.add(name)
                found += [f"{name} was begun before the end of {parent}" for parent in parents[name] if parent not in ended]
            elif what == "ended":
                ended.add(name)
        return found + [f"{name} was never begun" for name in parents if name not in begun]
