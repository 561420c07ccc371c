"""Amplitude's SDKs against the agent: every kind of call, what arrives compared column by column, restarts in the middle.

As a program (`door_amplitude.py URL`) this is the driver of the Python SDK; door_amplitude.cjs drives the two for Node. What an
SDK tells that it sent is translated into a row by the rules of the Export schema, written down here once more, and
compared with the row in the stream.
"""

import hashlib
import json
import os
import re
import sys
import threading
import time
import urllib.parse
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))

COLUMNS = """$insert_id $insert_key $schema adid amplitude_attribution_ids amplitude_event_type amplitude_id app city
client_event_time client_upload_time country data data_type device_brand device_carrier device_family device_id
device_manufacturer device_model device_type dma event_id event_properties event_time event_type global_user_properties
group_properties groups idfa ip_address is_attribution_event language library location_lat location_lng os_name os_version
partner_id paying plan platform processed_time region sample_rate server_received_time server_upload_time session_id source_id
start_version user_creation_time user_id user_properties uuid version_name""".split()
RENAMED = {"insert_id": "$insert_id", "app_version": "version_name", "carrier": "device_carrier", "ip": "ip_address"}
OURS = ["uuid", "processed_time", "server_received_time", "server_upload_time", "client_upload_time"]
MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}")

MORE = """
[[source]]
name = "amplitude"
kind = "amplitude"
stream = "{stream}"
forward_identify = true
"""


def events(sdk, count, numbers):
    """What the drivers are fed: tracks with hard values, and of the other calls each a few."""
    import sdks

    made = []
    for at in range(count):
        user = f"user-{at % sdks.USERS:04}"
        if at % 97 == 0:
            user = "lång-" + "x" * 300
        properties = {
            "unicode": "Grüße 🚀 \u2028 \u0000 \"\\/",
            "none": None,
            "nested": {"a": {"b": [1, 2.5, {"c": "d"}]}, "empty": {}},
            "large": numbers,
            "small": -0.000001234,
            "yes": True,
            "n": at,
        }
        call = {7: "identify", 11: "group", 13: "revenue", 17: "set_group"}.get(at % 50, "track")
        made.append(
            {
                "id": f"{sdk}-{at}",
                "call": call,
                "type": ["Song Played", "Ünïcode", "a"][at % 3],
                "user": user,
                "device": f"device-{at % 9}",
                "properties": properties,
                "options": {"app_version": "2.1", "carrier": "Verizon", "language": "de", "session_id": 1700000000000, "city": "Zürich"},
            }
        )
    return made


def expected_row(sent):
    """The columns that what an SDK sent must have."""
    row = dict.fromkeys(COLUMNS)
    row.update({"session_id": -1, "data": {}, "event_properties": {}, "user_properties": {}, "groups": {}, "group_properties": {}, "plan": {}})
    for name, value in sent.items():
        if value is None and name in COLUMNS + list(RENAMED):
            continue
        if name == "time":
            moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(value // 1000)) + f".{value % 1000:03}000"
            row["client_event_time"] = row["event_time"] = moment
        elif name in RENAMED:
            row[RENAMED[name]] = value if value != "$remote" else None
        elif name in COLUMNS:
            row[name] = value
        else:
            row["data"][name] = value
    return row


def compare(sent, key, row):
    """What differs, in words."""
    found = []
    wanted = expected_row(sent)
    if list(row) != COLUMNS:
        found.append(f"columns {list(row)}")
    for column in COLUMNS:
        if column in OURS:
            if column != "uuid" and not MOMENT.fullmatch(row[column]):
                found.append(f"{column} is {row[column]!r}")
        elif "time" not in sent and column in ("event_time", "client_event_time"):
            continue
        elif row.get(column) != wanted[column]:
            found.append(f"{column} is {row.get(column)!r}, sent was {wanted[column]!r}")
    owner = row["user_id"] or row["device_id"] or ""
    wanted_key = owner if len(owner) <= 256 else hashlib.sha256(owner.encode()).hexdigest()
    if owner and key != wanted_key:
        found.append(f"the key is {key[:40]!r}")
    return found


def judge(driver, stored):
    """Every event that the SDK called delivered is there, as it was sent."""
    rows = {}
    for one in stored:
        row = json.loads(one.data)
        rows.setdefault(row.get("$insert_id"), (one.key, row))
    found = []
    for name in driver.delivered():
        sent = driver.outcomes[name]["sent"]
        if sent.get("insert_id") not in rows:
            found.append(f"{name} is missing")
        else:
            found += [f"{name}: {what}" for what in compare(sent, *rows[sent["insert_id"]])]
    return found


def commands(port):
    """SDK name -> its driver, and the largest number that it can send exactly."""
    import sdks

    base = f"http://127.0.0.1:{port}"
    node = os.path.join(HERE, "door_amplitude.cjs")
    return {
        "amplitude-analytics": ([sys.executable, __file__, f"{base}/2/httpapi"], sdks.LONGER),
        "amplitude-analytics-batch": ([sys.executable, __file__, f"{base}/batch"], sdks.LONGER),
        "analytics-node": (["node", node, "analytics-node", f"{base}/2/httpapi"], sdks.LARGE),
        "node": (["node", node, "node", f"{base}/2/httpapi"], sdks.LARGE),
    }


def run(server, report, log_dir):
    """All SDKs, once in peace and once with restarts; then what no SDK sends."""
    import agent as agents
    import readback
    import sdks

    stream = "door-amplitude"
    server.create_stream(stream, 2)
    agent = agents.Agent(stream, server.endpoint, "off", log_dir, more=MORE.format(stream=stream))
    drivers, restarted = {}, {}
    try:
        for name, (command, numbers) in commands(agent.http_port).items():
            drivers[name] = sdks.run(f"amplitude-{name}", command, events(name, sdks.EVENTS, numbers), log_dir)
        direct(report, agent.http_port)
        for name, (command, numbers) in commands(agent.http_port).items():
            restarts = sdks.Restarts(agent)
            sent = events(f"restart-{name}", sdks.EVENTS, numbers)
            restarted[name] = sdks.run(f"amplitude-restart-{name}", command, sent, log_dir, restarts, rate=300)
            report.equal(f"{name}: SIGTERM ends the agent with exit code 0", restarts.codes, [0])
        sdks.wait_settled(agent)
        stored = readback.read_stream(server.client, stream)
    finally:
        agent.clean()
    rows = [one for one in stored if b'"$insert_id"' in one.data]
    for name, driver in drivers.items():
        report.equal(f"amplitude {name}: the SDK calls every event delivered", len(driver.delivered()), sdks.EVENTS)
        report.check(f"amplitude {name}: every column is what was sent", lambda driver=driver: judge(driver, rows))
    mine = [one for one in rows if b'"amplitude-analytics-' in one.data and b"-batch-" not in one.data]
    mine = [one for one in mine if b"restart-" not in one.data]
    for what, spoil in (("missing row", None), ("changed column", lambda row: row.update(city="Bern")), ("column too many", lambda row: row.update(x=1))):
        findings = judge(drivers["amplitude-analytics"], sdks.spoiled(mine, spoil))
        report.check(f"amplitude: a {what} would be found", lambda findings=findings: [] if len(findings) == 1 else findings or ["none"])
    for name, driver in restarted.items():
        share = len(driver.delivered())
        report.check(f"amplitude {name}: most got through two restarts", lambda share=share: [] if share > 500 else [f"{share} of 1000"])
        report.check(
            f"amplitude {name}: nothing of {share} is missing that the SDK called delivered around two restarts",
            lambda driver=driver: judge(driver, rows),
        )
    plain = sorted(one.data for one in stored if b'"$insert_id"' not in one.data)
    report.equal("amplitude: identify calls arrive in their own form", plain, sorted(one.encode() for one in IDENTIFIED))


IDENTIFIED = ['{"user_id":"user 1","user_properties":{"$set":{"a":1.50}}}', '{"group_type":"org","group_value":"acme","group_properties":{}}']


def direct(report, port):
    """The Identify API, which server SDKs do not call, and answers that they decide by."""
    base = f"http://127.0.0.1:{port}"
    for path, body in zip(("/identify", "/groupidentify"), IDENTIFIED):
        form = urllib.parse.urlencode({"api_key": "k", "identification": body}).encode()
        with urllib.request.urlopen(base + path, data=form, timeout=30) as answer:
            report.equal(f"amplitude {path}: answer", (answer.status, answer.read()), (200, b"success"))
    # One bad event among good ones: the SDK drops that one and sends the others again.
    import sdks

    bad = events("bad", 20, 1)
    bad[3]["user"], bad[3]["device"] = "ab", None
    driver = sdks.run("amplitude-bad", commands(port)["amplitude-analytics"][0], bad, servers_log(sdks))
    lost = sorted(name for name, outcome in driver.outcomes.items() if not outcome["ok"])
    report.equal("amplitude: of a batch only the event at fault is given up", (lost, len(driver.delivered())), (["bad-3"], 19))


def servers_log(sdks):
    """Where the last driver logs."""
    return os.path.join(sdks.servers.HERE, ".work", "logs")


def drive(url):
    """The driver of amplitude-analytics."""
    from amplitude import Amplitude, BaseEvent, Config, EventOptions, Identify, Revenue

    lock, done, count = threading.Lock(), {}, 0

    def told(event, code, _message):
        with lock:
            done[event["insert_id"]] = code
            body = event.get_event_body()
            print(json.dumps({"id": event["insert_id"], "ok": code == 200, "sent": body}), flush=True)

    client = Amplitude("api-key", Config(flush_queue_size=50, flush_interval_millis=100, server_url=url, callback=told))
    for line in sys.stdin:
        event = json.loads(line)
        count += 1
        options = EventOptions(user_id=event["user"], device_id=event["device"], insert_id=event["id"], **event["options"])
        if event["call"] == "identify":
            identify = Identify().set("plan", "gold").add("visits", 1).append("tags", "ä").unset("old")
            client.identify(identify, options)
        elif event["call"] == "group":
            client.group_identify("org", "acme", Identify().set("seats", 3), options)
        elif event["call"] == "revenue":
            client.revenue(Revenue(3.99, 2, "product-1"), options)
        elif event["call"] == "set_group":
            client.set_group("org", ["acme", "other"], options)
        else:
            made = BaseEvent(event["type"], event_properties=event["properties"])
            made.load_event_options(options)
            client.track(made)
    deadline = time.monotonic() + 60
    while len(done) < count and time.monotonic() < deadline:
        client.flush()
        time.sleep(0.1)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    drive(sys.argv[1])
