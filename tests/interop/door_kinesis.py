"""The Kinesis door: AWS' own clients write to the agent as they would to Kinesis, and what lands in the stream is read back.

boto3, the AWS CLI (from PyPI), @aws-sdk/client-kinesis and, where Maven answers, the Java SDK, which speaks CBOR (over HTTP/1.1
and over HTTP/2). Each first makes the read-only calls that libraries begin with. Events have keys of every kind, explicit hash
keys at both ends, and data that no text could hold; some of boto3's come in aggregates made by aws-kinesis-agg.

`writes`: everything arrives exactly once, in each key's order, byte for byte. `restarts`: while the clients send, the agent is
stopped and started, then killed and started. A client sends a batch again until the SDK says it is safe, so that nothing may be
missing, and what was said to be safe was so at that moment. Every request is signed, and the agent checks it.
"""

import base64
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter

import aws_kinesis_agg.aggregator
import boto3
import botocore.exceptions
from botocore.config import Config

import agent as agents
import kcl
import readback
import servers
import waiting

SECRETS = f'{servers.CREDENTIALS["AWS_ACCESS_KEY_ID"]}:{servers.CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}'
HASH_MAX = 2**128 - 1
BATCH = 25
DELIVERY_SECONDS = 120
CLIENT_SECONDS = 240


def door(stream):
    """The source that the clients write to."""
    return f'\n[[source]]\nname = "door"\nkind = "kinesis"\nstream = "{stream}"\naccess_keys = ["{SECRETS}"]\n'


def hard_values(name, count):
    """Events of one client: (id, key, explicit hash key or None, data)."""
    chance = random.Random(name)
    keys = [f"{name}-{n}" for n in range(20)] + [f"{name}-ключ-🚀", (name + "é" * 256)[:256], f"{name} \"\\/\t"]
    made = []
    for number in range(count):
        ident = f"{name}-{number}"
        data = chance.choice(
            [
                lambda: json.dumps(
                    {"id": ident, "n": None, "big": 2**63 - 1, "deep": {"a": [1.5, {"b": "ж🚀\u0000"}]}, "float": 0.1}
                ).encode(),
                lambda: ident.encode() + bytes(range(256)) * chance.randrange(4),
                lambda: ident.encode() + b"\0" + chance.randbytes(chance.randrange(5000)),
                lambda: f'{{"id":"{ident}","long":12345678901234567890123456789,"text":"{"é" * 300}"}}'.encode(),
            ]
        )()
        explicit = chance.choice([None, None, None, 0, HASH_MAX, chance.randrange(2**128)])
        made.append((ident, chance.choice(keys), explicit, data))
    return made


def batches(made):
    """In pieces of one request."""
    return [made[at : at + BATCH] for at in range(0, len(made), BATCH)]


class Client(threading.Thread):
    """A client on a thread of its own. `safe` maps what the SDK said was taken to its shard and sequence number; `again` are
    those that were sent more than once, as after a lost answer; `calls` is what it learned before it began."""

    def __init__(self, name, agent, made):
        super().__init__(name=name, daemon=True)
        self.agent, self.made = agent, made
        # Batches before which it waits until it may go on, by their number; and seconds before each batch.
        self.gates, self.pause = {}, 0
        self.safe, self.again, self.calls, self.error = {}, set(), {}, None

    def run(self):
        try:
            self.send_all()
        except Exception as error:  # Told by the main thread, whatever it is.
            self.error = f"{self.name}: {type(error).__name__}: {error}"

    @property
    def endpoint(self):
        """Of the agent."""
        return f"http://127.0.0.1:{self.agent.http_port}"

    def batches(self):
        """Its events in pieces of one request, each when its time has come."""
        for number, batch in enumerate(batches(self.made)):
            if number in self.gates:
                assert self.gates[number].wait(CLIENT_SECONDS), f"batch {number} was never let go"
            time.sleep(self.pause)
            yield batch

    def send_all(self):
        """The client's whole life."""
        raise NotImplementedError


class Boto(Client):
    """boto3. Every fifth batch is a PutRecord for each event, every seventh is one aggregate; other batches are PutRecords."""

    def send_all(self):
        kinesis = boto3.client(
            "kinesis",
            endpoint_url=self.endpoint,
            region_name=servers.REGION,
            aws_access_key_id=servers.CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=servers.CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            config=Config(connect_timeout=5, read_timeout=30, retries={"max_attempts": 3}),
        )
        stream = self.agent.stream
        summary = kinesis.describe_stream_summary(StreamName=stream)["StreamDescriptionSummary"]
        self.calls = {
            "status": summary["StreamStatus"],
            "open": summary["OpenShardCount"],
            "shards": len(kinesis.list_shards(StreamName=stream)["Shards"]),
            "described": len(kinesis.describe_stream(StreamName=stream)["StreamDescription"]["Shards"]),
            "streams": kinesis.list_streams()["StreamNames"],
            "limit": kinesis.describe_limits()["OpenShardCount"],
            "tags": kinesis.list_tags_for_stream(StreamName=stream)["Tags"],
        }
        for number, batch in enumerate(self.batches()):
            if number % 5 == 4:
                calls = [
                    (lambda event=event: {"Records": [kinesis.put_record(StreamName=stream, **self.entry(event))]}, [event])
                    for event in batch
                ]
            elif number % 7 == 6:
                calls = [(lambda batch=batch: self.put_aggregate(kinesis, batch), batch)]
            else:
                calls = [
                    (
                        lambda batch=batch: kinesis.put_records(
                            StreamARN=summary["StreamARN"], Records=[self.entry(event) for event in batch]
                        ),
                        batch,
                    )
                ]
            for call, events in calls:
                self.until_taken(call, events)

    @staticmethod
    def entry(event):
        """An event as the SDK wants it."""
        _, key, explicit, data = event
        return {"PartitionKey": key, "Data": data, **({} if explicit is None else {"ExplicitHashKey": str(explicit)})}

    def put_aggregate(self, kinesis, batch):
        """All of a batch as one record, as the KPL would send it."""
        packer = aws_kinesis_agg.aggregator.RecordAggregator()
        for _, key, explicit, data in batch:
            full = packer.add_user_record(key, data, None if explicit is None else str(explicit))
            assert full is None, "a batch is far smaller than a record may be"
        key, explicit, data = packer.clear_and_get().get_contents()
        answer = kinesis.put_record(
            StreamName=self.agent.stream, PartitionKey=key, Data=data, **({"ExplicitHashKey": explicit} if explicit else {})
        )
        # Its number is its first event's; the others follow.
        first = int(answer["SequenceNumber"])
        return {"Records": [{**answer, "SequenceNumber": str(first + at)} for at in range(len(batch))]}

    def until_taken(self, call, events):
        """Repeats a call until the SDK says that all of it is safe."""
        deadline = time.monotonic() + 60
        while True:
            try:
                records = call()["Records"]
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
                assert time.monotonic() < deadline, f"still not taken: {error}"
                self.again |= {event[0] for event in events}
                time.sleep(0.2)
                continue
            assert len(records) == len(events) and all("SequenceNumber" in record for record in records), records
            self.safe |= {event[0]: (one["ShardId"], one["SequenceNumber"]) for event, one in zip(events, records)}
            return


class Cli(Client):
    """The AWS CLI: a process for each call."""

    def call(self, operation, *arguments):
        """One call; its answer, or None where it failed."""
        own = {name: os.environ.get(name, "") for name in ("PATH", "PYTHONPATH")}
        env = {**own, "HOME": self.agent.dir, **servers.CREDENTIALS}
        command = [sys.executable, "-m", "awscli", "--endpoint-url", self.endpoint]
        command += ["--region", servers.REGION, "--output", "json"]
        done = subprocess.run(
            [*command, "kinesis", operation, *arguments], capture_output=True, text=True, timeout=120, env=env, check=False
        )
        self.last_error = done.stderr.strip()
        return json.loads(done.stdout) if done.returncode == 0 else None

    def send_all(self):
        stream = self.agent.stream
        summary = self.call("describe-stream-summary", "--stream-name", stream)
        assert summary, self.last_error
        self.calls = {
            "status": summary["StreamDescriptionSummary"]["StreamStatus"],
            "open": summary["StreamDescriptionSummary"]["OpenShardCount"],
            "shards": len(self.call("list-shards", "--stream-name", stream)["Shards"]),
            "streams": self.call("list-streams")["StreamNames"],
        }
        for batch in self.batches():
            records = [
                {
                    "PartitionKey": key,
                    # In version 1 of the CLI a blob within JSON is its text.
                    "Data": data.decode(),
                    **({} if explicit is None else {"ExplicitHashKey": str(explicit)}),
                }
                for _, key, explicit, data in batch
            ]
            path = os.path.join(self.agent.dir, f"{self.name}.json")
            with open(path, "w", encoding="utf-8") as file:
                json.dump(records, file)
            deadline = time.monotonic() + 90
            while not (answer := self.call("put-records", "--stream-name", stream, "--records", f"file://{path}")):
                assert time.monotonic() < deadline, f"still not taken: {self.last_error}"
                self.again |= {event[0] for event in batch}
            assert answer["FailedRecordCount"] == 0, answer
            self.safe |= {event[0]: (one["ShardId"], one["SequenceNumber"]) for event, one in zip(batch, answer["Records"])}


class Program(Client):
    """A client that is a program: door_kinesis.cjs, or Door.java. It is told `ID KEY HASH DATA` a line (key and data in
    base64, `-` for no hash), an empty line after each batch, and tells `calls JSON`, `again ID` and `ok ID SHARD SEQUENCE`."""

    def __init__(self, name, agent, made, command, env, log_dir):
        super().__init__(name, agent, made)
        self.command, self.env = command, env
        self.log_path = os.path.join(log_dir, f"{agent.stream}-{name}.log")

    def send_all(self):
        env = {"PATH": os.environ["PATH"], **servers.CREDENTIALS, **self.env}
        arguments = [self.endpoint, servers.REGION, self.agent.stream]
        with open(self.log_path, "wb") as log:
            child = subprocess.Popen(
                [*self.command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env
            )
        try:
            feeding = threading.Thread(target=self.feed, args=(child.stdin,), daemon=True)
            feeding.start()
            for line in child.stdout:
                word, _, rest = line.rstrip("\n").partition(" ")
                if word == "calls":
                    self.calls = json.loads(rest)
                elif word == "again":
                    self.again.add(rest)
                elif word == "ok":
                    ident, shard, sequence = rest.split(" ")
                    self.safe[ident] = (shard, sequence)
            code = child.wait(30)
        finally:
            child.kill()
        if code != 0:
            with open(self.log_path, errors="replace", encoding="utf-8") as log:
                raise AssertionError(f"it ended with {code}: {log.read()[-1000:]}")

    def feed(self, stdin):
        """Writes all, and ends it."""
        try:
            for batch in self.batches():
                for ident, key, explicit, data in batch:
                    key, data = (base64.b64encode(one).decode() for one in (key.encode(), data))
                    stdin.write(f"{ident} {key} {'-' if explicit is None else explicit} {data}\n")
                stdin.write("\n")
                stdin.flush()
            stdin.close()
        except OSError:
            pass  # It ended early, which its exit code tells.


def programs(agent, count, log_dir, report):
    """All clients that can run here, each with so many events."""
    node = ["node", os.path.join(servers.HERE, "door_kinesis.cjs")]
    node_path = {"NODE_PATH": servers.MODULES}
    found = [
        Boto("boto3", agent, hard_values("boto3", count)),
        Cli("aws-cli", agent, cli_values(250)),
        Program("node", agent, hard_values("node", count), node, node_path, log_dir),
    ]
    missing = kcl.unavailable()
    if missing:
        report.leave_out(f"the Java SDK (CBOR) through the Kinesis door: {missing}")
    else:
        path = f"{os.path.join(kcl.WORK, 'classes')}:{os.path.join(kcl.WORK, 'libraries', '*')}"
        java = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", path, "Door"]
        for protocol in ("HTTP1_1", "HTTP2"):
            name = f"java-{protocol}"
            found.append(Program(name, agent, hard_values(name, count), [*java, protocol], {}, log_dir))
    return found


def cli_values(count):
    """For the CLI, which has data as text: base64's."""
    return [(ident, key, explicit, base64.b64encode(data)) for ident, key, explicit, data in hard_values("cli", count)]


def judge(report, name, clients, records, exactly):
    """What every run must show."""
    made = [event for client in clients for event in client.made]
    wanted = Counter((key, data) for _, key, _, data in made)
    hashes = {(key, data): explicit for _, key, explicit, data in made}
    events = [(stored, event) for stored in records for event in stored.events]
    got = Counter((event.key, event.data) for _, event in events)
    for client in clients:
        unsafe = [client.error] if client.error else [ident for ident, *_ in client.made if ident not in client.safe]
        report.check(name + f"{client.name} was told that all of it is safe", lambda unsafe=unsafe: unsafe)
    report.check(name + "nothing is missing", lambda: [f"{key}: {data[:60]!r}" for key, data in (wanted - got)])
    made_up = [f"{key}: {data[:60]!r}" for key, data in got if (key, data) not in wanted]
    report.check(name + "nothing was made up", lambda: made_up)
    if exactly:
        report.check(name + "nothing came twice", lambda: [f"{key}: {data[:60]!r}" for key, data in (got - wanted)])

    def misplaced():
        found = []
        for stored, event in events:
            explicit = hashes.get((event.key, event.data))
            if not stored.shard.holds(readback.hash_of(event.key) if explicit is None else explicit):
                found.append(f"{event.key} ({explicit}) in {stored.shard.name}")
            if stored.aggregated and event.explicit_hash not in (explicit, event.key_hash()):
                found.append(f"{event.key}: explicit hash key {event.explicit_hash}, sent {explicit}")
        return found

    report.check(name + "explicit hash keys decide the shard", misplaced)


def in_order(clients, records):
    """Events of one key and one hash that did not arrive in the order in which they were sent."""
    sent, arrived = {}, {}
    for client in clients:
        for _, key, explicit, data in client.made:
            sent.setdefault((key, explicit), []).append(data)
    place = {data: (key, explicit) for client in clients for _, key, explicit, data in client.made}
    for stored in records:
        for event in stored.events:
            if event.data in place:
                arrived.setdefault(place[event.data], []).append(event.data)
    return [f"{key!r} ({explicit})" for (key, explicit), data in sent.items() if arrived.get((key, explicit)) != data]


def run_all(clients, meanwhile=lambda: None):
    """Starts all and waits for all."""
    for client in clients:
        client.start()
    meanwhile()
    deadline = time.monotonic() + CLIENT_SECONDS
    for client in clients:
        client.join(max(1, deadline - time.monotonic()))
        if client.is_alive():
            client.error = client.error or f"{client.name}: still sending after {CLIENT_SECONDS} s"


def writes(server, aggregate, report, log_dir):
    """1,000 events of each client, undisturbed."""
    stream = f"door-{aggregate}"
    server.create_stream(stream, 4)
    agent = agents.Agent(stream, server.endpoint, aggregate, log_dir, more=door(stream))
    try:
        waiting.until("the agent knows the shards", lambda: len(agent.status()["shards"]) == 4, 30)
        clients = programs(agent, 1000, log_dir, report)
        run_all(clients)
        count = sum(len(client.safe) for client in clients)
        agent.wait_delivered(count, DELIVERY_SECONDS)
        code = agent.stop()
        records = readback.read_stream(server.client, stream)
        shards = {shard.name: shard for shard in readback.list_shards(server.client, stream)}
    finally:
        agent.clean()
    name = f"{aggregate} on {server.name}: "
    judge(report, name, clients, records, exactly=True)
    report.check(name + "each key arrives in its order", lambda: in_order(clients, records))
    for client in clients:
        told = [client.calls.get(what) for what in ("status", "open", "shards")]
        report.equal(name + f"{client.name} found the stream and its shards", told, ["ACTIVE", 4, 4])
    boto = clients[0].calls
    told = [boto.get(what) for what in ("described", "streams", "limit", "tags")]
    report.equal(name + "boto3's other calls", told, [4, [stream], 4, []])
    taken = [(event, client.safe[event[0]]) for client in clients for event in client.made if event[0] in client.safe]
    # An aggregate has one shard for all its events: the first's.
    alone = [(event, told) for event, told in taken if not in_aggregate(event[0])]
    report.check(
        name + "the shard that was told is the one that takes the key",
        lambda: [
            f"{ident}: {shard}"
            for (ident, key, explicit, _), (shard, _) in alone
            if not shards[shard].holds(readback.hash_of(key) if explicit is None else explicit)
        ],
    )
    numbers = sorted(int(sequence) for _, (_, sequence) in taken)
    report.equal(name + "sequence numbers are the positions", numbers, list(range(count)))
    report.equal(name + "SIGTERM ends it with exit code 0", code, 0)


def in_aggregate(ident):
    """Boto sends this event within an aggregate."""
    client, _, number = ident.rpartition("-")
    batch = int(number) // BATCH
    return client == "boto3" and batch % 5 != 4 and batch % 7 == 6


def restarts(server, report, log_dir):
    """The agent is stopped and started, then killed and started, while all clients send."""
    stream = "door-restarts"
    server.create_stream(stream, 4)
    agent = agents.Agent(stream, server.endpoint, "off", log_dir, more=door(stream))
    env = {"PATH": os.environ["PATH"], "HOME": agent.dir, "AWS_EC2_METADATA_DISABLED": "true", **servers.CREDENTIALS}

    def start_again():
        child = agent.child
        agent.child = waiting.Child(child.name, child.process.args, child.log_path, env=env)
        waiting.until("the agent is ready again", lambda: agent.child.check_alive() and agent._get("/readyz")[0] == 200, 30)

    try:
        waiting.until("the agent knows the shards", lambda: len(agent.status()["shards"]) == 4, 30)
        clients = programs(agent, 1000, log_dir, report)
        stop, kill = threading.Event(), threading.Event()
        for client in clients:
            number = len(batches(client.made))
            client.gates, client.pause = {number // 4: stop, number // 2: kill}, 0.1
        safe_at_kill, done_at_kill = set(), []

        def reached(gate):
            """Every client waits there, all that it sent before being safe."""
            wanted = {client.name: next(at for at, held in client.gates.items() if held is gate) * BATCH for client in clients}
            return all(client.error or len(client.safe) >= wanted[client.name] for client in clients)

        def meanwhile():
            waiting.until("a quarter of each client's events is safe", lambda: reached(stop), CLIENT_SECONDS)
            stop.set()
            agent.stop()
            start_again()
            waiting.until("half of each client's events is safe", lambda: reached(kill), CLIENT_SECONDS)
            before = sum(len(client.safe) for client in clients)
            kill.set()
            waiting.until("they go on", lambda: sum(len(client.safe) for client in clients) > before, CLIENT_SECONDS)
            safe_at_kill.update(ident for client in clients for ident in list(client.safe))
            agent.child.kill()
            done_at_kill.extend(client.name for client in clients if len(client.safe) == len(client.made))
            start_again()

        run_all(clients, meanwhile)
        waiting.until("nothing is pending", lambda: agent.status()["account"]["pending"] == 0, DELIVERY_SECONDS)
        agent.stop()
        records = readback.read_stream(server.client, stream)
    finally:
        agent.clean()
    name = f"restarts on {server.name}: "
    judge(report, name, clients, records, exactly=False)
    data = {event.data for stored in records for event in stored.events}
    report.check(
        name + "what was safe when it was killed has arrived",
        lambda: [ident for client in clients for ident, _, _, one in client.made if ident in safe_at_kill and one not in data],
    )
    report.equal(name + "it was killed before any client had ended", done_at_kill, [])


ALL = {
    "door-kinesis-off": lambda server, report, logs: writes(server, "off", report, logs),
    "door-kinesis-kpl": lambda server, report, logs: writes(server, "kpl", report, logs),
    "door-kinesis-restarts": restarts,
}
