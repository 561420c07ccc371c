"""What must be true of what arrived. Each function returns a list of findings; an empty list is good.

Kept apart from the scenarios, so that `selftest` can show of each one that it finds what it is there to find.
"""

from collections import Counter, defaultdict

import readback

REQUEST_RECORDS_MAX = 500
REQUEST_BYTES_MAX = 5 << 20
RECORD_BYTES_MAX = 1 << 20
KEY_CHARS_MAX = 256


def exactly_once(expected, events):
    """Every expected event arrived once, and nothing else did. `expected` maps data to key."""
    seen = Counter(event.data for event in events)
    missing = [data for data in expected if data not in seen]
    strange = [data for data in seen if data not in expected]
    repeated = [data for data, times in seen.items() if times > 1]
    return [
        f"{len(found)} events {what}, such as {short(found[0])}"
        for what, found in (("are missing", missing), ("were never sent", strange), ("arrived more than once", repeated))
        if found
    ]


def at_least_once(expected, events, repeats_allowed):
    """Every expected event arrived; at most `repeats_allowed` arrivals repeat another."""
    seen = Counter(event.data for event in events)
    found = exactly_once(expected, [event for event in map(_first_only(), events) if event])
    repeats = sum(seen.values()) - len(seen)
    if repeats > repeats_allowed:
        found.append(f"{repeats} arrivals repeat another, the agent counted {repeats_allowed}")
    return found


def _first_only():
    seen = set()

    def keep(event):
        if event.data in seen:
            return None
        seen.add(event.data)
        return event

    return keep


def order_by_key(sent_by_key, events):
    """First arrivals of each key come in the order in which the key's events were sent."""
    arrived = defaultdict(list)
    seen = set()
    for event in events:
        if event.data not in seen:
            seen.add(event.data)
            arrived[event.key].append(event.data)
    found = []
    for key, sent in sent_by_key.items():
        arrivals = arrived.get(key, [])
        if arrivals != [data for data in sent if data in seen]:
            found.append(f"key {key[:40]!r}: {len(arrivals)} events out of order")
    return found


def right_keys(expected, events):
    """Every event carries the key it was sent with."""
    wrong = [event for event in events if event.data in expected and expected[event.data] != event.key]
    return [f"{len(wrong)} events with another key, such as {wrong[0].key[:40]!r}"] if wrong else []


def whole_aggregates(records):
    """Every aggregate's MD5 is right, and the Python library reads it as an aggregate with events."""
    found = [f"{one.shard.name} {one.sequence}: {one.broken}" for one in records if one.broken]
    found += [f"{one.shard.name} {one.sequence}: an aggregate of nothing" for one in records if not one.broken and not one.events]
    return found


def in_their_shards(records):
    """Every event's hash lies in the range of the shard that holds its record: else KCL drops the record."""
    found = []
    for stored in records:
        out = [event for event in stored.events if not stored.shard.holds(event.key_hash())]
        if out:
            found.append(f"{stored.shard.name} {stored.sequence}: {len(out)} of {len(stored.events)} events hash elsewhere")
    return found


def explicit_hashes(puts, shards):
    """Every aggregate has an explicit hash key, and every one lies in the range of the shard that the server answered."""
    ranges = {shard.name: shard for shard in shards}
    bare = [put for put in puts if put.aggregated and put.explicit_hash is None]
    return [f"request {put.request}: an aggregate without an explicit hash" for put in bare] + [
        f"request {put.request}: explicit hash {put.explicit_hash} is not in {put.shard}"
        for put in puts
        if put.shard is not None and put.explicit_hash is not None and not ranges[put.shard].holds(put.explicit_hash)
    ]


def inside_the_limits(puts):
    """No request broke a service limit."""
    found, by_request = [], defaultdict(list)
    for put in puts:
        by_request[put.request].append(put)
        if not 1 <= len(put.key) <= KEY_CHARS_MAX:
            found.append(f"request {put.request}: a key of {len(put.key)} characters")
        if put.data_bytes + len(put.key.encode()) > RECORD_BYTES_MAX:
            found.append(f"request {put.request}: a record of {put.data_bytes} bytes")
        if put.explicit_hash is not None and not 0 <= put.explicit_hash < 1 << 128:
            found.append(f"request {put.request}: explicit hash {put.explicit_hash}")
    for request, entries in by_request.items():
        total = sum(put.data_bytes + len(put.key.encode()) for put in entries)
        if len(entries) > REQUEST_RECORDS_MAX or total > REQUEST_BYTES_MAX:
            found.append(f"request {request}: {len(entries)} records, {total} bytes")
    return found


def balance(account, accepted):
    """The agent's own account: all accepted, all delivered, nothing else."""
    want = {"accepted": accepted, "delivered": accepted, "pending": 0, "dead": 0, "expired": 0, "dropped": 0}
    return [] if account == want else [f"account {account}, expected {want}"]


def seen_alike(records):
    """The npm library, checksums on, finds what the Python library finds."""
    return readback.disagreements(records)


def short(data):
    """The beginning of an event, for a finding."""
    return repr(data[:60])
