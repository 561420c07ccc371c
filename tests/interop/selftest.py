"""Shows that the readers and the checks find what they are there to find, with aggregates that are not ours.

Runs before the agent does: aggregates written by the Python library's own aggregator go through the tap into each
server and are read back; then each kind of damage is done to them, and the check for it must speak.
"""

import copy

from aws_kinesis_agg.aggregator import RecordAggregator

import checks
import readback
import servers
import tap as tapping

STREAM = "selftest"


def run(server, report):
    """All self-tests on one server."""
    name = f"selftest on {server.name}: "
    server.create_stream(STREAM, 4)
    tap = tapping.Tap(server.endpoint)
    shards = readback.list_shards(server.client, STREAM)
    expected, by_key = write(servers.client(tap.endpoint), shards)
    records = readback.read_stream(server.client, STREAM)
    events = readback.kcl_events(records)
    tap.close()

    report.check(name + "foreign aggregates are read back whole", lambda: checks.whole_aggregates(records))
    report.check(name + "foreign aggregates hold every event once", lambda: checks.exactly_once(expected, events))
    report.check(name + "their keys are right", lambda: checks.right_keys(expected, events))
    report.check(name + "their order is right", lambda: checks.order_by_key(by_key, events))
    report.check(name + "they lie in their shards", lambda: checks.in_their_shards(records))
    report.check(name + "explicit hashes on the wire are in range", lambda: checks.explicit_hashes(tap.puts, shards))
    report.check(name + "they are inside the limits", lambda: checks.inside_the_limits(tap.puts))
    report.check(name + "both libraries see them alike", lambda: checks.seen_alike(records))
    report.check(name + "most of them are aggregates", lambda: [] if sum(one.aggregated for one in records) >= 4 else ["too few"])

    def speaks(what, finds):
        report.check(name + "the checks find " + what, lambda: [] if finds() else ["nothing found"])

    at = next(n for n, one in enumerate(records) if one.aggregated)
    flipped = damaged(records, at, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    speaks("a wrong MD5 (Python)", lambda: checks.whole_aggregates(flipped))
    speaks("a wrong MD5 (npm)", lambda: checks.seen_alike(flipped))
    speaks("the events of a broken aggregate missing", lambda: checks.exactly_once(expected, readback.kcl_events(flipped)))
    speaks("a lost event", lambda: checks.exactly_once(expected, events[1:]))
    speaks("an event that came twice", lambda: checks.exactly_once(expected, events + events[:1]))
    speaks("too many repeats", lambda: checks.at_least_once(expected, events + events[:2], 1))
    speaks("an event that was never sent", lambda: checks.exactly_once(dict(list(expected.items())[1:]), events))
    speaks("two events of a key swapped", lambda: checks.order_by_key(by_key, events[::-1]))
    speaks("a wrong key", lambda: checks.right_keys(expected, [readback.Event("x", None, events[0].data)]))
    moved = copy.copy(records[at])
    moved.shard = next(shard for shard in shards if shard.name != moved.shard.name)
    speaks("an event in a foreign shard", lambda: checks.in_their_shards([moved]))
    speaks("that KCL drops such a record", lambda: not readback.kcl_events([moved]))
    wrong = tapping.Put(1, "k", (shards[0].first_hash - 1) % (1 << 128), 1, True, shards[0].name)
    speaks("an explicit hash out of range", lambda: checks.explicit_hashes([wrong], shards))
    bare = tapping.Put(1, "k", None, 1, True, shards[0].name)
    speaks("an aggregate without an explicit hash", lambda: checks.explicit_hashes([bare], shards))
    speaks("a request of 501 records", lambda: checks.inside_the_limits([wrong] * 501))
    speaks("an account that does not balance", lambda: checks.balance({"accepted": 2, "delivered": 1}, 2))
    report.check(name + "repeats within the count are no finding", lambda: checks.at_least_once(expected, events + events[:1], 1))


def write(client, shards):
    """One aggregate with an explicit hash for each shard, and a few plain records; what was written."""
    expected, by_key, entries = {}, {}, []
    for shard in shards:
        aggregator = RecordAggregator()
        users = [f"user-{n}" for n in range(200) if shard.holds(readback.hash_of(f"user-{n}"))][:20]
        for number in range(200):
            user = users[number % len(users)]
            data = f"{shard.name}-{number}-\n\x00é".encode()
            aggregator.add_user_record(user, data)
            expected[data] = user
            by_key.setdefault(user, []).append(data)
        key, _, body = aggregator.clear_and_get().get_contents()
        entries.append({"PartitionKey": key, "ExplicitHashKey": str(shard.first_hash + 1), "Data": body})
        for number in range(2):
            data = f"plain-{shard.name}-{number}".encode()
            user = f"{shard.name}-plain"
            entries.append({"PartitionKey": user, "Data": data})
            expected[data] = user
            by_key.setdefault(user, []).append(data)
    answer = client.put_records(StreamName=STREAM, Records=entries)
    assert answer["FailedRecordCount"] == 0, "the server refused some of our own records"
    return expected, by_key


def damaged(records, at, change):
    """The records with the data of one changed, taken apart again."""
    one = records[at]
    record = {"Data": change(one.data), "SequenceNumber": one.sequence, "PartitionKey": one.key}
    record["ApproximateArrivalTimestamp"] = 0
    return records[:at] + [readback.take_apart(one.shard, record)] + records[at + 1 :]
