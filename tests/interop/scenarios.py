"""The real agent from the socket and HTTP to the stream, against each server, aggregated, in lines, and neither.

`delivers`: one run of everything; exactly once, in order. `reshards`: the stream is split and merged while events
flow; nothing is lost, order holds across parents and children, and repeats are no more than the agent counted.
"""

import agent as agents
import checks
import readback
import tap as tapping
import waiting
import workload

# kinesis-local keeps up with 2,000 records a second.
RATES = {"kinesalite": None, "kinesis-local": 500}
EVENTS_A_CLIENT = {"kinesalite": 1500, "kinesis-local": 1000}
DELIVERY_SECONDS = 120


def delivers(server, aggregate, report, log_dir):
    """Four clients at once, 4 shards."""
    stream = f"delivers-{aggregate}"
    server.create_stream(stream, 4)
    tap = tapping.Tap(server.endpoint)
    agent = agents.Agent(stream, tap.endpoint, aggregate, log_dir)
    try:
        count, rate = EVENTS_A_CLIENT[server.name], RATES[server.name]
        clients = [
            workload.Lines("lines-a", agent, count, 40, rate, large=(100, 900)),
            workload.Lines("lines-b", agent, count, 40, rate),
            workload.Frames("frames", agent, count, 40, rate, large=(300,)),
            workload.Http("http", agent, count, 40, rate),
        ]
        workload.run_all(clients)
        expected, by_key = workload.expected_of(clients)
        status = agent.wait_delivered(len(expected), DELIVERY_SECONDS)
        accepted_metric = agent.metric("forebay_events_accepted_total")
        exit_code = agent.stop()
        shards = readback.list_shards(server.client, stream)
        records = readback.read_stream(server.client, stream)
    finally:
        agent.clean()
        tap.close()
    if aggregate == "lines":
        records = readback.split_lines(records, expected)
    events = readback.kcl_events(records)
    name = f"{aggregate} on {server.name}: "
    refused = sum(client.rejects_wanted for client in clients)
    arrived_checks(report, name, records, shards, tap, expected, by_key)
    report.check(name + "every event arrived exactly once", lambda: checks.exactly_once(expected, events))
    report.check(name + "every event hashes into its shard", lambda: checks.in_their_shards(records))
    report.check(name + "the account balances", lambda: checks.balance(status["account"], len(expected)))
    report.equal(name + "nothing was sent twice", status["duplicated"], {})
    report.equal(name + "every bad event was refused and told", sum(client.rejected for client in clients), refused)
    report.equal(name + "the refused are counted", sum(status["rejected"].values()), refused)
    report.equal(name + "metrics agree with status", accepted_metric, float(len(expected)))
    report.equal(name + "records put are records stored", status["put"]["records"], len(records))
    report.equal(name + "SIGTERM ends it with exit code 0", exit_code, 0)
    if aggregate == "lines":
        alone = [one for one in records if not one.lines]
        report.check(
            name + "a record alone is an event with newlines",
            lambda: [] if alone and all(b"\n" in one.data for one in alone) else [f"{len(alone)} records alone"],
        )
    if aggregate == "off":
        report.equal(name + "one event a record", [sum(one.aggregated for one in records), len(records)], [0, len(expected)])
    else:
        # An event with a newline inside has a record of its own among lines.
        together = [one for one in records if one.lines] if aggregate == "lines" else records
        held = sum(len(one.events) for one in together)
        report.check(
            name + "at least five events a record",
            lambda: [] if len(together) * 5 <= held else [f"{len(together)} records for {held} events"],
        )


def reshards(server, aggregate, report, log_dir):
    """Two shards become three by a split, then two by a merge across the old border, while four clients send."""
    stream = f"reshards-{aggregate}"
    server.create_stream(stream, 2)
    tap = tapping.Tap(server.endpoint)
    agent = agents.Agent(stream, tap.endpoint, aggregate, log_dir)
    try:
        count = 3000
        clients = [
            workload.Lines("lines-a", agent, count, 30, 300),
            workload.Lines("lines-b", agent, count, 30, 300),
            workload.Frames("frames", agent, count, 30, 300),
            workload.Http("http", agent, count, 30, 300),
        ]

        def sent():
            return sum(len(client.sent) for client in clients)

        def meanwhile():
            waiting.until("a quarter is sent", lambda: failed(clients) or sent() > count, 60)
            left, right = readback.list_shards(server.client, stream)
            middle = (left.first_hash + left.last_hash) // 2 + 1
            server.client.split_shard(StreamName=stream, ShardToSplit=left.name, NewStartingHashKey=str(middle))
            server.wait_active(stream)
            waiting.until("half is sent", lambda: failed(clients) or sent() > 2 * count, 60)
            child = next(one for one in readback.list_shards(server.client, stream) if one.first_hash == middle)
            server.client.merge_shards(StreamName=stream, ShardToMerge=child.name, AdjacentShardToMerge=right.name)
            server.wait_active(stream)

        workload.run_all(clients, meanwhile)
        expected, by_key = workload.expected_of(clients)
        status = agent.wait_delivered(len(expected), DELIVERY_SECONDS)
        exit_code = agent.stop()
        shards = readback.list_shards(server.client, stream)
        records = readback.read_stream(server.client, stream)
    finally:
        agent.clean()
        tap.close()
    events = readback.kcl_events(records)
    name = f"{aggregate} on {server.name}, resharded: "
    repeats = sum(status["duplicated"].values())
    arrived_checks(report, name, records, shards, tap, expected, by_key)
    report.check(name + "nothing is lost, repeats are counted", lambda: checks.at_least_once(expected, events, repeats))
    report.check(name + "the account balances", lambda: checks.balance(status["account"], len(expected)))
    report.equal(name + "SIGTERM ends it with exit code 0", exit_code, 0)
    report.equal(name + "two shards became five", len(shards), 5)
    with_records = {one.shard.name for one in records}
    report.equal(name + "each of the five took part", len(with_records), 5)


def failed(clients):
    """Whether waiting for more events is idle, because a client gave up."""
    return any(client.error for client in clients)


def arrived_checks(report, name, records, shards, tap, expected, by_key):
    """What must hold with and without a reshard."""
    events = readback.kcl_events(records)
    report.check(name + "keys are in order", lambda: checks.order_by_key(by_key, events))
    report.check(name + "keys are right", lambda: checks.right_keys(expected, events))
    report.check(name + "every record is whole", lambda: checks.whole_aggregates(records))
    if not any(one.lines for one in records):  # Libraries for aggregates do not know lines.
        report.check(name + "both libraries see the same", lambda: checks.seen_alike(records))
    report.check(name + "explicit hashes on the wire are in range", lambda: checks.explicit_hashes(tap.puts, shards))
    report.check(name + "requests are inside the limits", lambda: checks.inside_the_limits(tap.puts))
    report.equal(name + "no request was refused", tap.refused_requests, [])
