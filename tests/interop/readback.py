"""Reading a stream back as a consumer would, and taking KPL aggregates apart with two libraries.

Records are read with boto3 from TRIM_HORIZON, parents before children. Two views of them: `Stored` is what lies in
the shards; `kcl_events` is what a KCL application would be handed, which drops a whole aggregate when any of its
events hashes outside the shard (AggregatorUtil in KCL 2 and 3).
"""

import base64
import hashlib
import json
import os
import subprocess
import time
from dataclasses import dataclass, field

from aws_kinesis_agg.deaggregator import iter_deaggregate_records

import servers
from tap import KPL_MAGIC


@dataclass
class Shard:
    """A shard with its inclusive hash range and its parents' names."""

    name: str
    first_hash: int
    last_hash: int
    parents: list

    def holds(self, key_hash):
        """Whether a hash belongs here."""
        return self.first_hash <= key_hash <= self.last_hash


@dataclass
class Event:
    """What the application handed over, as the Python library found it."""

    key: str
    explicit_hash: int | None
    data: bytes

    def key_hash(self):
        """The hash that decides the shard."""
        return self.explicit_hash if self.explicit_hash is not None else hash_of(self.key)


@dataclass
class Stored:
    """One record as it lies in a shard. `broken` says what is wrong with an aggregate, if anything."""

    shard: Shard
    sequence: str
    key: str
    data: bytes
    aggregated: bool = False
    lines: bool = False
    broken: str = ""
    events: list = field(default_factory=list)


def hash_of(key):
    """The 128-bit hash of a partition key."""
    return int.from_bytes(hashlib.md5(key.encode()).digest(), "big")


def list_shards(client, stream):
    """All shards, open and closed, parents before children."""
    found, token = [], None
    while True:
        page = client.list_shards(**({"NextToken": token} if token else {"StreamName": stream}))
        for shard in page["Shards"]:
            parents = [shard[name] for name in ("ParentShardId", "AdjacentParentShardId") if shard.get(name)]
            found.append(
                Shard(
                    shard["ShardId"],
                    int(shard["HashKeyRange"]["StartingHashKey"]),
                    int(shard["HashKeyRange"]["EndingHashKey"]),
                    parents,
                )
            )
        token = page.get("NextToken")
        if not token:
            break
    ordered, placed = [], set()
    while found:
        ready = [shard for shard in found if not (set(shard.parents) - placed) & {one.name for one in found}]
        assert ready, "the shards' parents form a circle"
        ordered += ready
        placed |= {shard.name for shard in ready}
        found = [shard for shard in found if shard.name not in placed]
    return ordered


def read_stream(client, stream, seconds=120):
    """Every record of the stream, in shard order, aggregates taken apart. To be called when all is still."""
    deadline = time.monotonic() + seconds
    stored = []
    for shard in list_shards(client, stream):
        iterator = client.get_shard_iterator(StreamName=stream, ShardId=shard.name, ShardIteratorType="TRIM_HORIZON")
        position, empty = iterator["ShardIterator"], 0
        # A closed shard ends with no next iterator; an open one is read out after a few empty answers at its tip.
        while position and empty < 3:
            assert time.monotonic() < deadline, f"reading {stream} back took over {seconds} s"
            page = client.get_records(ShardIterator=position, Limit=5000)
            for record in page["Records"]:
                stored.append(take_apart(shard, record))
            at_tip = not page["Records"] and page.get("MillisBehindLatest", 0) == 0
            empty = empty + 1 if at_tip else 0
            position = page.get("NextShardIterator")
    return stored


def take_apart(shard, record):
    """One record of GetRecords as `Stored`, through the Python library."""
    data = record["Data"]
    stored = Stored(shard, record["SequenceNumber"], record["PartitionKey"], data, data.startswith(KPL_MAGIC))
    if not stored.aggregated:
        stored.events = [Event(record["PartitionKey"], None, data)]
        return stored
    if hashlib.md5(data[4:-16]).digest() != data[-16:]:
        stored.broken = "its MD5 is not that of its body"
        return stored
    for one in iter_deaggregate_records([record], data_format="Boto3"):
        user = one["kinesis"]
        if not user.get("aggregated"):
            stored.broken = "the Python library hands it on as a plain record"
            stored.events = []
            return stored
        explicit = user.get("explicitHashKey")
        stored.events.append(Event(user["partitionKey"], int(explicit) if explicit else None, base64.b64decode(user["data"])))
    return stored


def split_lines(records, expected):
    """The records of `aggregate = "lines"` taken apart as any consumer would: at each newline, the last one ends the last
    line. A record that is an event with newlines, byte for byte, is that event. A line's key is the one it was sent with, since
    the record has only its first event's."""
    for stored in records:
        if stored.data in expected:
            stored.events = [Event(stored.key, None, stored.data)]
            continue
        stored.lines = True
        *lines, rest = stored.data.split(b"\n")
        if rest:
            stored.broken = "its last line has no newline"
        stored.events = [Event(expected.get(line, "?"), None, line) for line in lines]
        if stored.events and stored.events[0].key != stored.key:
            stored.broken = "its key is not its first event's"
    return records


def disagreements(records):
    """Takes the same records apart with the npm library; gives what it sees differently, in words."""
    lines = [
        json.dumps({"key": one.key, "sequence": one.sequence, "data": base64.b64encode(one.data).decode()}) for one in records
    ]
    node = subprocess.run(
        ["node", os.path.join(servers.HERE, "deaggregate.cjs")],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NODE_PATH": servers.MODULES},
        check=False,
    )
    if node.returncode != 0:
        return [f"node ended with {node.returncode}: {node.stderr[-500:]}"]
    answers = [json.loads(line) for line in node.stdout.splitlines()]
    if len(answers) != len(records):
        return [f"{len(records)} records went in, {len(answers)} answers came out"]
    found = []
    for stored, answer in zip(records, answers):
        where = f"{stored.shard.name} {stored.sequence}"
        if "error" in answer:
            found.append(f"{where}: {answer['error']}")
            continue
        events = [(one["key"], one["hash"], base64.b64decode(one["data"])) for one in answer["events"]]
        ours = [(one.key, str(one.explicit_hash) if one.explicit_hash is not None else None, one.data) for one in stored.events]
        # The npm library takes an absent hash index for 0, as the Python one does: both see it alike.
        if events != ours:
            found.append(f"{where}: {len(events)} events, the Python library finds {len(ours)}, or they differ")
    return found


def kcl_events(records):
    """The events that a KCL application would be handed, in the order in which it would be."""
    events = []
    for stored in records:
        if stored.broken:
            continue
        if stored.aggregated and any(not stored.shard.holds(one.key_hash()) for one in stored.events):
            continue
        events += stored.events
    return events
