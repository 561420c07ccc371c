"""Many reshards under load: splits at any point and merges of any neighbours, in an order that a seed decides.

Against kinesis-local, and against ferrokinesis with 1,000 records/s and 1 MiB/s enforced for each shard (the one
server that refuses single records of a request). What must hold: under the KCL's rule nothing is lost, no event
overtakes another of its key across parents and children, and the stream holds no more repeats than the agent
counted. Where it can run, the KCL itself reads kinesis-local along, and is judged by the same checks.
"""

import os
import random
import shutil
import tempfile
from collections import Counter

import agent as agents
import checks
import kcl
import readback
import scenarios
import servers
import tap as tapping
import waiting
import workload

SEED = int(os.environ.get("FOREBAY_RESHARD_SEED", "4"))
# Reshards, and seconds from one to the next: in every run, and with --full.
SHORT, FULL = (6, 1), (20, 2)
# Each of the four clients. kinesis-local looks through all records of a shard for each GetRecords: with one event a record
# and the KCL polling, few are enough. ferrokinesis is to refuse some: 1,000 a second is what a shard takes.
EVENTS_A_SECOND = {("kinesis-local", "kpl"): 40, ("kinesis-local", "off"): 40, ("ferrokinesis", "kpl"): 300, ("ferrokinesis", "off"): 300}
# They go on until the last reshard is over; this many only where a server hangs.
EVENTS_MOST = 60_000
SHARDS_AT_FIRST, SHARDS_LEAST, SHARDS_MOST = 2, 2, 6
DELIVERY_SECONDS = 240


# The agent of the process that is started for its Kinesis.
IDLE = """\
[listen]
socket = "{home}/socket"
http = ""
admin = ""

[spool]
dir = "{home}/spool"

[[stream]]
name = "idle"
region = "us-east-1"

[[source]]
name = "idle"
kind = "events"
stream = "idle"
"""


class Ferrokinesis(servers.Server):
    """The embedded Kinesis of `forebay run --dev` in a process of its own, whose agent has nothing to do."""

    def __init__(self, log_dir):
        # Directly under the system's temporary directory: a socket's path has 108 bytes at most.
        self.home = tempfile.mkdtemp(prefix="forebay-")
        config = os.path.join(self.home, "forebay.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(IDLE.format(home=self.home))
        log = os.path.join(log_dir, "ferrokinesis.log")
        command = [agents.BINARY, "run", "--config", config, "--dev", "--dev-enforce-limits"]
        self.child = waiting.Child("ferrokinesis", command, log, env={"PATH": os.environ["PATH"], "HOME": self.home})

        def said():
            self.child.check_alive()
            with open(log, encoding="utf-8") as file:
                return next((line for line in file if line.startswith("embedded Kinesis at ") and line.endswith("\n")), None)

        self.name = "ferrokinesis"
        self.endpoint = waiting.until("ferrokinesis says where it listens", said, 30).split()[3]
        self.client = servers.client(self.endpoint)

    def stop(self):
        """Ends it and removes its directory."""
        super().stop()
        shutil.rmtree(self.home)


def reshard(server, stream, chance):
    """One split or merge; says what it did, and returns when the stream is active again."""
    shards = readback.list_shards(server.client, stream)
    closed = {parent for shard in shards for parent in shard.parents}
    open_shards = sorted((shard for shard in shards if shard.name not in closed), key=lambda shard: shard.first_hash)
    splits = len(open_shards) <= SHARDS_LEAST or (len(open_shards) < SHARDS_MOST and chance.random() < 0.5)
    if splits:
        # The widest half, so that no shard ends with no keys.
        shard = chance.choice(sorted(open_shards, key=lambda one: one.first_hash - one.last_hash)[: (len(open_shards) + 1) // 2])
        width = shard.last_hash - shard.first_hash + 1
        at = shard.first_hash + width * chance.randrange(30, 71) // 100
        server.client.split_shard(StreamName=stream, ShardToSplit=shard.name, NewStartingHashKey=str(at))
        told = f"split {shard.name} at {100 * (at - shard.first_hash) // width} %"
    else:
        left = chance.randrange(len(open_shards) - 1)
        names = [shard.name for shard in open_shards[left : left + 2]]
        server.client.merge_shards(StreamName=stream, ShardToMerge=names[0], AdjacentShardToMerge=names[1])
        told = f"merge {names[0]} and {names[1]}"
    server.wait_active(stream)
    return told


def run(server, aggregate, full, report, log_dir):
    """The whole scenario on one server."""
    reshards, seconds = FULL if full else SHORT
    stream = f"reshards{reshards}-{aggregate}"
    name = f"{aggregate} on {server.name}, {reshards} reshards: "
    reader = None
    server.create_stream(stream, SHARDS_AT_FIRST)
    # One event a record says nothing of aggregates: that the KCL reads those along is left to the long run.
    if server.name == "kinesis-local" and (full or aggregate == "kpl"):
        lacks = kcl.unavailable()
        if lacks:
            report.leave_out(f"the KCL, reading {stream} along: {lacks}")
        else:
            kinds = [kcl.Reader.PLAIN] if aggregate == "off" else list(kcl.Reader.MISSES)
            reader = kcl.Reader(server, stream, kinds, log_dir)
            reader.wait_begun(SHARDS_AT_FIRST)
    tap = tapping.Tap(server.endpoint)
    agent = agents.Agent(stream, tap.endpoint, aggregate, log_dir)
    try:
        rate = EVENTS_A_SECOND[server.name, aggregate]
        apart = 4 * rate * seconds
        clients = [
            workload.Lines("lines-a", agent, EVENTS_MOST, 30, rate),
            workload.Lines("lines-b", agent, EVENTS_MOST, 30, rate),
            workload.Frames("frames", agent, EVENTS_MOST, 30, rate),
            workload.Http("http", agent, EVENTS_MOST, 30, rate),
        ]
        if server.name == "ferrokinesis":
            # It counts a key's bytes where the service counts its characters.
            for client in clients:
                client.keys = [key for key in client.keys if len(key.encode()) <= checks.KEY_CHARS_MAX]
        asleep = []

        def sent():
            return sum(len(client.sent) for client in clients)

        def more_sent(than):
            waiting.until(f"{than + apart} events are sent", lambda: scenarios.failed(clients) or sent() >= than + apart, 120)

        def meanwhile():
            chance = random.Random(SEED)
            print(f"        seed {SEED} (FOREBAY_RESHARD_SEED)")
            for number in range(1, reshards + 1):
                more_sent(sent())
                begun = sent()
                told = reshard(server, stream, chance)
                if sent() == begun:
                    asleep.append(number)
                print(f"        {number:2} at {begun:6} to {sent():6} events: {told}")
            more_sent(sent())
            for client in clients:
                client.enough = lambda: True

        workload.run_all(clients, meanwhile)
        expected, by_key = workload.expected_of(clients)
        status = agent.wait_delivered(len(expected), DELIVERY_SECONDS)
        exit_code = agent.stop()
        shards = readback.list_shards(server.client, stream)
        records = readback.read_stream(server.client, stream, DELIVERY_SECONDS)
        events = readback.kcl_events(records)
        seen = reader.wait_read(shards, events) if reader else {}
    finally:
        agent.clean()
        tap.close()
        if reader:
            reader.stop()
    repeats = sum(status["duplicated"].values())
    tell(records, events, status, tap)
    scenarios.arrived_checks(report, name, records, shards, tap, expected, by_key)
    report.check(name + "nothing is lost, repeats are counted", lambda: checks.at_least_once(expected, events, repeats))
    report.check(name + "the account balances", lambda: checks.balance(status["account"], len(expected)))
    report.equal(name + "SIGTERM ends it with exit code 0", exit_code, 0)
    report.equal(name + "all reshards took place", made(shards), reshards)
    report.equal(name + "events were sent during each", asleep, [])
    for kind, one in seen.items():
        kcl_checks(report, f"{name}the KCL ({kind}): ", one, shards, expected, by_key, repeats)
    if kcl.Reader.INFORMED in seen:
        restated = places(records, readback.kcl_events)
        report.check(
            name + "the KCL, informed, hands over what its rule says as it is restated here",
            lambda: differences(seen[kcl.Reader.INFORMED].places, restated),
        )
        # Besides those only what the rule would have dropped, had it known the shard.
        late = seen[kcl.Reader.PLAIN].places - restated
        report.check(
            name + "the KCL, as it comes, hands over at most what it would drop later besides",
            lambda: differences(seen[kcl.Reader.PLAIN].places - late, restated) + differences(late - places(records, dropped_events), Counter()),
        )
        print(f"        the KCL, as it comes, handed over {sum(late.values())} events of records that it drops once it knows the shard")


def made(shards):
    """How many reshards led to these shards: a split gives two with one parent, a merge one with two."""
    return sum(1 if len(shard.parents) == 2 else 0.5 for shard in shards if shard.parents)


def dropped_events(records):
    """The events that the KCL's rule drops."""
    return [event for one in records if not one.broken and not readback.kcl_events([one]) for event in one.events]


def places(records, chosen):
    """What `chosen` takes of the records, counted by shard, key and data."""
    return Counter((one.shard.name, event.key, event.data) for one in records for event in chosen([one]))


def tell(records, events, status, tap):
    """What happened, in figures."""
    dropped = [one for one in records if dropped_events([one])]
    refused = sum(put.shard is None for put in tap.puts)
    print(
        f"        {status['account']['accepted']} events in {len(records)} records; the KCL's rule drops {len(dropped)} with {len(dropped_events(records))} events;"
        f" {len(events) - len({event.data for event in events})} arrivals repeat another; the agent counted {status['duplicated']};"
        f" {refused} of {len(tap.puts)} records were refused by the server in {tap.requests} requests"
    )


def selftest(_server, report, _log_dir):
    """Shows that the checks that are only used here find what they are there to find."""
    name = "selftest of many reshards: "
    shards = [readback.Shard("old", 0, 9, []), readback.Shard("low", 0, 4, ["old"]), readback.Shard("high", 5, 9, ["old"])]
    record = {"shard": "low", "sequence": "1", "sub": 0, "key": "aw==", "data": "ZA=="}
    good = [{"begun": "old"}, {"ended": "old"}, {"begun": "low"}, {"begun": "high"}, record]

    def speaks(what, finds):
        report.check(name + "the checks find " + what, lambda: [] if finds() else ["nothing found"])

    report.equal(name + "children after their parents' end are no finding", kcl.Seen(good).too_early(shards), [])
    speaks("a child before its parents' end", lambda: kcl.Seen(good[:1] + good[2:]).too_early(shards))
    speaks("a shard that was never read", lambda: kcl.Seen(good[:3]).too_early(shards))
    speaks("a record that is handed over twice", lambda: kcl.Seen([*good, record]).again)
    speaks("an event in another shard", lambda: differences(kcl.Seen([{**record, "shard": "high"}]).places, kcl.Seen(good).places))
    speaks("an event that only one has", lambda: differences(Counter(), kcl.Seen(good).places))
    event = readback.Event("k", None, b"d")
    stored = readback.Stored(shards[0], "1", "k", b"", aggregated=True, events=[event])
    report.equal(name + "an aggregate of a hash that is not in its shard is dropped", dropped_events([stored]), [event])
    report.equal(name + "a split and a merge are two reshards", made([*shards, readback.Shard("all", 0, 9, ["low", "high"])]), 2)


def kcl_checks(report, name, seen, shards, expected, by_key, repeats):
    """The same rules, on what the KCL handed to its application in the order in which it did."""
    report.check(name + "nothing is lost, repeats are counted", lambda: checks.at_least_once(expected, seen.events, repeats))
    report.check(name + "keys are in order", lambda: checks.order_by_key(by_key, seen.events))
    report.check(name + "keys are right", lambda: checks.right_keys(expected, seen.events))
    report.check(name + "no child before its parents' end", lambda: seen.too_early(shards))
    report.equal(name + "no record twice", seen.again, 0)


def differences(ours, theirs):
    """Where two counts of places disagree."""
    sides = (("more than wanted", ours - theirs), ("missing", theirs - ours))
    return [f"{sum(found.values())} user records are {what}, such as one in {next(iter(found))[0]}" for what, found in sides if found]
