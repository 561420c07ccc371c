"""Sources that keep their vendor's own limits (`limits = "vendor"`), with the vendors' SDKs: what is exactly at a limit is taken, what
is one over it is answered as the vendor answers it, the SDK does with that answer what it does at home, and the others of the same
batch arrive.

What an SDK refuses by itself is noted as that: the limit is in the SDK then too, and the same one.
"""

import gzip
import http.server
import json
import threading

import agent as agents
import door_amplitude
import door_mparticle
import door_segment
import readback
import sdks

SOURCE = """
[[source]]
name = "{kind}"
kind = "{kind}"
stream = "{stream}"
limits = "vendor"
{more}
"""

MESSAGE_BYTES = 32 << 10
BATCH_BYTES = 500 << 10
REQUEST_BYTES = 256 << 10


class Capture:
    """A server that answers all with success and keeps the bodies: tells how large what an SDK sends really is."""

    def __init__(self):
        self.bodies = []
        capture = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                capture.bodies.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
                answer = b'{"success":true}'
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.port = self._server.server_address[1]

    def close(self):
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()


def elements(body, member):
    """The elements of the array of this name, as they were sent."""
    text, decoder = body.decode(), json.JSONDecoder()
    at, found = text.index("[", text.index(f'"{member}"')) + 1, []
    while True:
        while text[at] in " ,\n":
            at += 1
        if text[at] == "]":
            return found
        end = decoder.raw_decode(text, at)[1]
        found.append(text[at:end])
        at = end


def started(server, kind, log_dir, more=""):
    """An agent with one source of this kind, which keeps its vendor's limits."""
    stream = f"limits-{kind}"
    server.create_stream(stream, 1)
    return agents.Agent(stream, server.endpoint, "off", log_dir, more=SOURCE.format(kind=kind, stream=stream, more=more))


def rejected(agent, kind, reason):
    """How many events of the source were refused for this reason."""
    return int(agent.metric("forebay_events_rejected_total", source=kind, reason=reason))


def track(n, pad=0, **more):
    """A call whose message is `pad` bytes larger than the smallest."""
    return {"n": n, "call": "track", "event": "e", "user": f"u{n}", "body": {"pad": "x" * pad}, **more}


def smallest(name, log_dir):
    """Bytes of the message that an SDK makes of a call without padding whose number has four digits."""
    capture = Capture()
    try:
        door_segment.Sdk(name, capture.port, log_dir).run([track(1000)], 60)
        (message,) = elements(capture.bodies[0], "batch")
        return len(message.encode())
    finally:
        capture.close()


def segment(server, report, log_dir):
    """Messages of 32,768 bytes and messageIds of 99 characters, and one more of each."""
    agent = started(server, "segment", log_dir, 'profile = "astronomer"')
    refused = {"not_valid": 0, "too_large": 0}
    try:
        for at, name in enumerate(("segment-analytics-python", "@segment/analytics-node")):
            first = 1000 * (at + 1)
            room = MESSAGE_BYTES - smallest(name, log_dir)
            calls = [track(first + n) for n in range(40)]
            good = {first + n for n in range(40)}
            # In the middle of a batch of others.
            calls[5] = track(first + 5, room)
            calls[6] = track(first + 6, room + 1)
            calls[7] = track(first + 7, id=f"{first}{'i' * 95}")
            calls[8] = track(first + 8, id=f"{first}{'i' * 96}")
            said = door_segment.Sdk(name, agent.http_port, log_dir).run(calls, 120)
            agent.wait_delivered(0, 60)
            arrived = {json.loads(text)["context"]["n"] for _, text in door_segment.records_of(server, agent.stream)}
            arrived = {n for n in arrived if first <= n < first + 1000}
            report.equal(f"limits, {name}: all but the two over a limit arrive", sorted(good - arrived), [first + 6, first + 8])
            # Python's refuses the large one itself.
            by_itself = [] if name.startswith("@") else [first + 6]
            report.equal(f"limits, {name}: the answer is success all the same, and so the SDK says", said["failed"], by_itself)
            refused["not_valid"] += 1
            refused["too_large"] += name.startswith("@")
            told = {reason: rejected(agent, "segment", reason) for reason in refused}
            report.equal(f"limits, {name}: what was refused is counted", told, refused)

            # More than a request may hold: the SDK sends several.
            first += 500
            many = [track(first + n, 24_000) for n in range(60)]
            said = door_segment.Sdk(name, agent.http_port, log_dir).run(many, 120)
            agent.wait_delivered(0, 60)
            arrived = {json.loads(text)["context"]["n"] for _, text in door_segment.records_of(server, agent.stream)}
            missing = [one["n"] for one in many if one["n"] not in arrived]
            report.equal(f"limits, {name}: of 1.4 MB in requests of at most 500 KB all arrives", (missing, said["failed"]), ([], []))
        report.equal("the agent ends with 0", agent.stop(), 0)
    finally:
        agent.clean()


def nested(depth):
    """An object with so many arrays and objects within each other, itself included."""
    value = {"n": 1}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def amplitude(server, report, log_dir):
    """Strings of 1,024 characters, properties nested 40 deep, requests of 1 MiB; and more of each."""
    agent = started(server, "amplitude", log_dir)
    listed = 0
    try:
        for name, (command, _) in door_amplitude.commands(agent.http_port).items():
            # @amplitude/node sends the others again in the background, after it has told of the whole batch what became of it.
            if name not in ("amplitude-analytics", "analytics-node"):
                continue
            calls = [{**one, "call": "track"} for one in door_amplitude.events(f"limits-{name}", 40, 1)]
            calls[5]["properties"] = {"text": "ä" * 1024}
            calls[6]["properties"] = {"text": "ä" * 1025}
            calls[7]["properties"] = nested(40)
            calls[8]["properties"] = nested(41)
            driver = sdks.run(f"limits-{name}", command, calls, log_dir)
            over = [f"limits-{name}-6", f"limits-{name}-8"]
            if name == "amplitude-analytics":
                # Python's cuts its strings itself.
                over = over[1:]
                calls[6]["properties"] = {"text": "ä" * 1024}
            listed += len(over)
            lost = sorted(event for event, outcome in driver.outcomes.items() if not outcome["ok"])
            report.equal(f"limits, {name}: of its batches the SDK gives up what is over a limit, and nothing else", lost, over)
            report.equal(f"limits, {name}: the others it calls delivered", len(driver.delivered()), 40 - len(over))
            sdks.wait_settled(agent)
            rows = {row["$insert_id"]: row for row in rows_of(server, agent.stream)}
            missing = [one["id"] for one in calls if one["id"] not in rows]
            report.equal(f"limits, {name}: all but those arrive", missing, over)
            at_limit = [rows.get(one["id"], {}).get("event_properties") for one in (calls[5], calls[7])]
            report.equal(f"limits, {name}: what is at a limit arrives whole", at_limit, [calls[5]["properties"], calls[7]["properties"]])
            report.equal(f"limits, {name}: what was given up is counted", rejected(agent, "amplitude", "too_large"), listed)

            # Nine of 120 KB in one request are more than 1 MiB: the SDK halves it on 413, and nothing is lost, so nothing is counted.
            large = [{**one, "call": "track"} for one in door_amplitude.events(f"large-{name}", 50, 1)]
            for one in large:
                one["properties"] = {f"text{n}": "x" * 1000 for n in range(120)}
            driver = sdks.run(f"limits-large-{name}", command, large, log_dir)
            sdks.wait_settled(agent)
            rows = {row["$insert_id"] for row in rows_of(server, agent.stream)}
            lost = [one["id"] for one in large if one["id"] not in rows]
            report.equal(f"limits, {name}: of a request over 1 MiB every event arrives", (lost, len(driver.delivered())), ([], 50))
            report.equal(f"limits, {name}: and none is counted as refused", rejected(agent, "amplitude", "too_large"), listed)
        report.equal("the agent ends with 0", agent.stop(), 0)
    finally:
        agent.clean()


def rows_of(server, stream):
    """All rows of the stream."""
    return [json.loads(one.data) for one in readback.read_stream(server.client, stream)]


def mparticle(server, report, log_dir):
    """Requests of 262,144 bytes, and of one more."""
    agent = started(server, "mparticle", log_dir)
    over = 0
    try:
        for name, (command, mpid) in door_mparticle.commands(agent.http_port, "key").items():
            calls = door_mparticle.events(f"limits-{name}", 20, mpid)
            calls[5].update(call="single", bytes=REQUEST_BYTES)
            calls[6].update(call="single", bytes=REQUEST_BYTES + 1)
            driver = sdks.run(f"limits-mparticle-{name}", command, calls, log_dir)
            told = {event: outcome["status"] for event, outcome in driver.outcomes.items() if not outcome["ok"]}
            report.equal(f"limits, mparticle {name}: the SDK is told 413 of the one that is over", told, {calls[6]["id"]: 413})
            sdks.wait_settled(agent)
            arrived = {row.get("source_request_id") for row in rows_of(server, agent.stream)}
            missing = [one["id"] for one in calls if one["id"] not in arrived]
            report.equal(f"limits, mparticle {name}: all others arrive", missing, [calls[6]["id"]])
            over += 1
            report.equal(f"limits, mparticle {name}: it is counted", rejected(agent, "mparticle", "too_large"), over)
        report.equal("the agent ends with 0", agent.stop(), 0)
    finally:
        agent.clean()


ALL = {"segment": segment, "amplitude": amplitude, "mparticle": mparticle}
