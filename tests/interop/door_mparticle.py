"""mParticle's SDKs against the agent: single and bulk calls, what arrives compared member by member, restarts in the middle.

As a program (`door_mparticle.py URL KEY`) this is the driver of the Python SDK; door_mparticle.cjs drives the one for Node. What
an SDK sent is translated into the outgoing form by rules written down here once more, and compared with the record.
"""

import hashlib
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))

MORE = """
[[source]]
name = "batched"
kind = "mparticle"
stream = "{stream}"
keys = ["batched"]

[[source]]
name = "apart"
kind = "mparticle"
stream = "{stream}"
keys = ["apart:secret"]
send_as_batch = false
include = ["location", "metadata", "empty_batches", "batch_location", "mp_deviceid"]
"""

MADE = ["events", "user_identities", "timestamp_unixtime_ms", "batch_id", "message_id", "message_type", "schema_version", "source_info"]


def events(sdk, count, mpid):
    """What the drivers are fed: a batch each."""
    import sdks

    made = []
    for at in range(count):
        customer = f"user-{at % sdks.USERS:04}" if at % 97 else "lång-" + "x" * 300
        made.append(
            {
                "id": f"{sdk}-{at}",
                "call": "bulk" if at % 10 == 3 else "single",
                "customer": customer,
                "mpid": mpid - at % 50 if at % 3 == 0 else None,
                "device": f"59780f39-d7a0-4ebe-9950-{at % 7:012}",
                "attributes": {"Grüße": "🚀 \u2028 \"\\/", "none": None, "list": ["a", "b"], "n": at, "nested": {"a": {"b": [1, 2.5]}}},
                "time": 1700000000000 + at,
                "events": at % 4,
            }
        )
    return made


def expected(sent, part, included):
    """The record that a sent batch must become, but for what is made up; `part`: the event it is of, or all."""
    record = {name: value for name, value in sent.items() if name not in MADE + ["ip"]}
    if not included:
        record.pop("mp_deviceid", None)
        if isinstance(record.get("context"), dict):
            record["context"] = {name: value for name, value in record["context"].items() if name != "location"}
    listed = sent.get("events") or []
    record["events"] = listed if part is None else [listed[part]] if listed else []
    if sent.get("user_identities") is not None:
        record["user_identities"] = [
            ("customer_id" if name == "customerid" else name, value) for name, value in sent["user_identities"].items() if value
        ]
    record.update({"schema_version": 2, "message_type": "events"})
    record["source_info"] = {
        "channel": "server_to_server",
        "partner": None,
        "replay_request_id": None,
        "replay_job_id": None,
        "is_historical": False,
    }
    return record


def compare(sent, part, key, record, included):
    """What differs, in words."""
    wanted, found = expected(sent, part, included), []
    record = dict(record)
    now = record.pop("timestamp_unixtime_ms")
    batch_id = record.pop("batch_id")
    if not (isinstance(now, int) and 0 < batch_id < 2**63 and len(record.pop("message_id")) == 36):
        found.append("a made member has no good value")
    if "user_identities" in record:
        if any(one["timestamp_unixtime_ms"] != now for one in record["user_identities"]):
            found.append("an identity has another time than its batch")
        record["user_identities"] = [(one["identity_type"], one["identity"]) for one in record["user_identities"]]
    for event, original in zip(record["events"], wanted["events"]):
        data, given = event["data"], original.get("data") or {}
        for name, value in (("event_id", None), ("timestamp_unixtime_ms", now)):
            if given.get(name) is None:
                made = data.pop(name, None)
                if made is None or (value is not None and made != value):
                    found.append(f"{name} of an event is {made!r}")
        start = data["event_start_unixtime_ms"] if given.get("event_start_unixtime_ms") else data.pop("event_start_unixtime_ms", None)
        if start != (given.get("event_start_unixtime_ms") or given.get("timestamp_unixtime_ms") or now):
            found.append(f"an event starts at {start!r}")
    wanted["events"] = [
        {**one, "data": {name: value for name, value in (one.get("data") or {}).items() if value is not None or name not in ("event_id", "timestamp_unixtime_ms")}}
        for one in wanted["events"]
    ]
    for name in sorted(set(wanted) | set(record)):
        if wanted.get(name, "absent") != record.get(name, "absent"):
            found.append(f"{name} is {record.get(name, 'absent')!r}, sent was {wanted.get(name, 'absent')!r}")
    owner = str(sent["mpid"]) if sent.get("mpid") else sent["user_identities"]["customerid"]
    if key != (owner if len(owner) <= 256 else hashlib.sha256(owner.encode()).hexdigest()):
        found.append(f"the key is {key[:40]!r}")
    return found


def judge(driver, stored, apart=False):
    """Every batch that the SDK called delivered is there, as it was sent."""
    records = {}
    for one in stored:
        record = json.loads(one.data)
        records.setdefault(record.get("source_request_id"), []).append((one.key, record))
    found = []
    for name in driver.delivered():
        sent, arrived = driver.outcomes[name]["sent"], records.get(name, [])
        wanted = max(len(sent.get("events") or []), 1) if apart else 1
        # Sent twice is allowed around a restart; missing is not.
        if len(arrived) < wanted:
            found.append(f"{name}: {len(arrived)} records of {wanted}")
            continue
        for part in range(wanted):
            found += [f"{name}: {what}" for what in compare(sent, part if apart else None, *arrived[part], apart)]
    return found


def commands(port, key):
    """SDK name -> its driver, and the largest mpid that it can send exactly."""
    base = f"http://127.0.0.1:{port}/v2"
    return {
        "python": ([sys.executable, __file__, base, key], 2**63 - 1),
        "node": (["node", os.path.join(HERE, "door_mparticle.cjs"), base, key], 2**53 - 1),
    }


def run(server, report, log_dir):
    """Both SDKs, in peace, one record an event, and with restarts; then what they say of refusals."""
    import agent as agents
    import readback
    import sdks

    stream = "door-mparticle"
    server.create_stream(stream, 2)
    agent = agents.Agent(stream, server.endpoint, "off", log_dir, more=MORE.format(stream=stream))
    drivers, apart, restarted, refused = {}, {}, {}, {}
    try:
        port = agent.http_port
        for name, (command, mpid) in commands(port, "batched").items():
            drivers[name] = sdks.run(f"mparticle-{name}", command, events(name, sdks.EVENTS, mpid), log_dir)
        for name, (command, mpid) in commands(port, "apart").items():
            apart[name] = sdks.run(f"mparticle-apart-{name}", command, events(f"apart-{name}", 200, mpid), log_dir)
        for name, (command, mpid) in commands(port, "nobody").items():
            refused[name] = sdks.run(f"mparticle-refused-{name}", command, events(f"refused-{name}", 1, mpid), log_dir)
        for name, (command, mpid) in commands(port, "batched").items():
            restarts = sdks.Restarts(agent)
            sent = events(f"restart-{name}", sdks.EVENTS, mpid)
            restarted[name] = sdks.run(f"mparticle-restart-{name}", command, sent, log_dir, restarts, rate=200)
            report.equal(f"mparticle {name}: SIGTERM ends the agent with exit code 0", restarts.codes, [0])
        sdks.wait_settled(agent)
        stored = readback.read_stream(server.client, stream)
    finally:
        agent.clean()
    for name, driver in drivers.items():
        report.equal(f"mparticle {name}: the SDK calls every batch delivered", len(driver.delivered()), sdks.EVENTS)
        report.check(f"mparticle {name}: every member is what was sent", lambda driver=driver: judge(driver, stored))
    for name, driver in apart.items():
        report.equal(f"mparticle {name}, apart: the SDK calls every batch delivered", len(driver.delivered()), 200)
        report.check(f"mparticle {name}, apart: a record for each event", lambda driver=driver: judge(driver, stored, True))
    mine = [one for one in stored if b'"source_request_id":"python-' in one.data.replace(b" ", b"") and b"-second" not in one.data]
    for what, spoil in (("missing record", None), ("changed member", lambda one: one.update(mpid=1)), ("member too many", lambda one: one.update(ip="::1"))):
        findings = judge(drivers["python"], sdks.spoiled(mine, spoil))
        report.check(f"mparticle: a {what} would be found", lambda findings=findings: [] if len(findings) == 1 else findings or ["none"])
    for name, driver in refused.items():
        outcome = next(iter(driver.outcomes.values()))
        report.equal(f"mparticle {name}: an unknown key is told as 403", (outcome["ok"], outcome["status"]), (False, 403))
    for name, driver in restarted.items():
        share = len(driver.delivered())
        report.check(f"mparticle {name}: most got through two restarts", lambda share=share: [] if share > 500 else [f"{share} of 1000"])
        report.check(
            f"mparticle {name}: nothing of {share} is missing that the SDK called delivered around two restarts",
            lambda driver=driver: judge(driver, stored),
        )


def drive(url, key):
    """The driver of mparticle for Python."""
    import mparticle
    from mparticle.rest import ApiException

    configuration = mparticle.Configuration()
    configuration.host = url
    configuration.api_key, configuration.api_secret = key, "secret"
    api = mparticle.EventsApi(configuration)

    def batch_of(event, request_id):
        flat = {name: value for name, value in event["attributes"].items() if isinstance(value, (str, int))}
        kinds = [
            mparticle.AppEvent("Ünïcode", "other", custom_attributes=flat, timestamp_unixtime_ms=event["time"]),
            mparticle.ScreenViewEvent(screen_name="s", location=mparticle.GeoLocation(latitude=1.5, longitude=-0.25, accuracy=3.0)),
            mparticle.CommerceEvent(mparticle.ProductAction("purchase", products=[mparticle.Product(name="p", id="sku", price=19.99)])),
        ]
        batch = mparticle.Batch()
        batch.environment = "production"
        batch.source_request_id = request_id
        batch.events = kinds[: event["events"]]
        batch.user_attributes = event["attributes"]
        batch.user_identities = mparticle.UserIdentities(customerid=event["customer"], email="ä@example.com")
        batch.device_info = mparticle.DeviceInformation(ios_idfv=event["device"])
        batch.application_info = mparticle.ApplicationInformation(package="p", application_name="ä")
        batch.mpid = event["mpid"]
        batch.mp_deviceid = "59780f39-d7a0-4ebe-9950-280f937c29e2"
        batch.ip = "172.217.12.142"
        return batch

    for line in sys.stdin:
        event = json.loads(line)
        batch, status = batch_of(event, event["id"]), 0
        sent = api.api_client.sanitize_for_serialization(batch)
        if "bytes" in event:
            # So that the request's body has exactly so many.
            batch.user_attributes["pad"] = "x" * (event["bytes"] - len(json.dumps(sent)) - len(', "pad": ""'))
            sent = api.api_client.sanitize_for_serialization(batch)
        try:
            if event["call"] == "bulk":
                api.bulk_upload_events([batch, batch_of({**event, "events": 0}, event["id"] + "-second")])
            else:
                api.upload_events(batch)
            ok = True
        except ApiException as error:
            ok, status = False, error.status
        except Exception as error:
            print(error, file=sys.stderr)
            ok = False
        print(json.dumps({"id": event["id"], "ok": ok, "status": status, "sent": sent}), flush=True)


if __name__ == "__main__":
    drive(*sys.argv[1:3])
