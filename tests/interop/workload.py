"""Events with known keys and order, and the clients that send them: socket (lines and frames) and HTTP.

Each client has keys of its own, so that the order of a key is the order in which one client sent it. Clients check
what they are answered as they go: acknowledgements grow, a reject comes before the `ack` that covers it, and
everything is acknowledged in the end.
"""

import http.client
import json
import random
import socket
import struct
import threading
import time

ACK_SECONDS = 90


class Pace:
    """At most `rate` events a second from one client; None means as fast as it goes."""

    def __init__(self, rate):
        self.rate, self.begun, self.sent = rate, time.monotonic(), 0

    def wait(self):
        """Called before each event."""
        if self.rate:
            ahead = self.sent / self.rate - (time.monotonic() - self.begun)
            if ahead > 0.005:
                time.sleep(ahead)
        self.sent += 1


class Client(threading.Thread):
    """Sends its events on a thread of its own. `sent` is a list of (key, data) in order; `error` is what went wrong."""

    def __init__(self, name, agent, count, keys, rate=None, large=()):
        super().__init__(name=name, daemon=True)
        self.agent, self.count, self.rate, self.large = agent, count, rate, set(large)
        self.random = random.Random(name)
        # Keys of one character class each: ASCII, Cyrillic (2 bytes a character), and one of 256 characters.
        self.keys = [f"{name}-user-{n}" if n % 3 else f"{name}-ключ-{n}" for n in range(keys - 1)] + [(name + "é" * 256)[:256]]
        self.sent, self.rejects_wanted, self.rejected = [], 0, 0
        self.error = self.reader_error = None
        # Asked before each event (HTTP: before each request): whether to end before `count`.
        self.enough = lambda: False

    def run(self):
        try:
            self.send_all()
        except Exception as error:  # Told by the main thread, whatever it is.
            found = self.reader_error or f"{type(error).__name__}: {error}"
            self.error = f"{self.name}: {found}"

    def make(self, number):
        """The next event: JSON, with a body of 20 B to 2 kB, or of 300 kB where `large` asks for it."""
        key = self.random.choice(self.keys)
        size = 300_000 if number in self.large else self.random.randrange(20, 2000)
        body = "".join(self.random.choices("abc déf\\\"{}[],:ж", k=16)) * (size // 16 + 1)
        data = json.dumps({"user": key, "id": f"{self.name}-{number}", "body": body[:size]}, ensure_ascii=number % 2 == 0)
        return key, data.encode()

    def note(self, key, data):
        """Remembers an event as sent."""
        self.sent.append((key, data))

    def send_all(self):
        """The client's whole life."""
        raise NotImplementedError


class SocketClient(Client):
    """A connection with `ack=on`. Subclasses say how an event looks on the wire."""

    format = "lines"
    greeting_options = ""

    def send_all(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(ACK_SECONDS)
        self.socket.connect(self.agent.socket)
        self.answers = self.socket.makefile("rb")
        self.socket.sendall(f"forebay/1 ack=on format={self.format}{self.greeting_options}\n".encode())
        greeting = self.answers.readline()
        assert greeting.startswith(b"ok"), f"the hello is answered with {greeting!r}"
        self.rejects = {}  # event number, from 1 -> the wire says it must be refused
        self.total = None
        reader = threading.Thread(target=self.read_answers, name=self.name + "-answers", daemon=True)
        reader.start()
        pace, events = Pace(self.rate), 0
        for number in range(self.count):
            if self.enough():
                break
            pace.wait()
            events += 1
            bad = self.bad_event(number)
            if bad is not None:
                self.rejects[events] = True
                self.rejects_wanted += 1
                self.socket.sendall(bad)
                events += 1
            key, data, wire = self.good_event(number)
            self.note(key, data)
            self.socket.sendall(wire)
        self.total = events
        self.socket.shutdown(socket.SHUT_WR)
        reader.join(ACK_SECONDS)
        assert not reader.is_alive(), f"not all of {events} events were acknowledged within {ACK_SECONDS} s"
        self.socket.close()
        if self.reader_error:
            raise AssertionError(self.reader_error)

    def read_answers(self):
        """Reads until the last event is acknowledged and the agent closes; notes the first broken rule."""
        try:
            acked, rejected = 0, set()
            for line in self.answers:
                word, _, rest = line.decode().rstrip("\n").partition(" ")
                if word == "ack":
                    assert int(rest) > acked, f"ack {rest} after ack {acked}"
                    acked = int(rest)
                    overdue = [number for number in list(self.rejects) if number <= acked and number not in rejected]
                    assert not overdue, f"ack {acked} came before the rejects of {overdue}"
                elif word == "reject":
                    number, _, reason = rest.partition(" ")
                    assert int(number) > acked, f"reject {number} after ack {acked}"
                    assert int(number) in self.rejects, f"event {number} is refused: {reason}"
                    assert reason, f"reject {number} has no reason"
                    rejected.add(int(number))
                else:
                    assert word == "bye", f"an unknown answer: {line!r}"
            assert acked == self.total, f"end of answers at ack {acked} of {self.total}"
            self.rejected = len(rejected)
        except Exception as error:
            self.reader_error = str(error)
            self.socket.close()


class Lines(SocketClient):
    """Events as JSON lines; the key comes from the source's rule. Every 400th is preceded by one without a key."""

    greeting_options = " source=web"

    def good_event(self, number):
        """Key, data, bytes on the wire. Every seventh line ends as on Windows: the CR is not part of the event."""
        key, data = self.make(number)
        return key, data, data + (b"\r\n" if number % 7 == 0 else b"\n")

    def bad_event(self, number):
        """JSON without the key, or no JSON at all; and an empty line, which is no event, goes along."""
        if number % 400 != 399:
            return None
        return b'\n{"nobody": 1}\n' if number % 800 == 399 else b"\nthis is not JSON\n"


class Frames(SocketClient):
    """Length-prefixed events; most carry their key and any bytes, every third leaves the key to the source's rule."""

    format = "frames"

    def good_event(self, number):
        """Key, data, bytes on the wire."""
        key, data = self.make(number)
        if number % 3 == 0:
            return key, data, frame(b"", data)
        data = f"{self.name}-{number}:".encode() + self.random.randbytes(len(data))
        return key, data, frame(key.encode(), data)

    def bad_event(self, number):
        """A key of 257 characters."""
        return frame(b"k" * 257, b"{}") if number % 500 == 250 else None


def frame(key, data):
    """One event of `format=frames`."""
    return struct.pack(">IH", 2 + len(key) + len(data), len(key)) + key + data


class Http(Client):
    """`POST /ingest` on one connection: newline-delimited JSON, arrays, one object, and raw bytes in turn."""

    def send_all(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.agent.http_port, timeout=ACK_SECONDS)
        pace, number, turn = Pace(self.rate), 0, 0
        while number < self.count and not self.enough():
            many = [1, 50, 50, 1][turn % 4]
            batch = []
            while len(batch) < many and number < self.count:
                pace.wait()
                batch.append(self.make(number))
                number += 1
            self.post(connection, turn, batch)
            turn += 1
        connection.close()

    def post(self, connection, turn, batch):
        """One request; its answer must account for every event."""
        path, headers, refused = "/ingest", {"Content-Type": "application/x-ndjson"}, []
        if turn % 4 == 0:
            key, data = batch[0]
            data = f"{self.name}-raw-{turn}:\n".encode() + self.random.randbytes(500)
            key = key if key.isascii() else self.keys[1]
            batch, body = [(key, data)], data
            headers = {"Content-Type": "application/octet-stream", "X-Partition-Key": key}
        elif turn % 4 == 1:
            lines = [data for _, data in batch]
            if turn % 8 == 1:
                lines.insert(3, b'{"nobody": 1}')
                refused = [3]
            body = b"\n".join(lines)
        elif turn % 4 == 2:
            path, headers = "/ingest/web", {"Content-Type": "application/json"}
            body = b"[" + b",".join(data for _, data in batch) + b"]"
        else:
            headers = {"Content-Type": "application/json"}
            body = batch[0][1]
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, f"{path} {headers} says {answer.status}: {text[:300]!r}"
        result = json.loads(text)
        assert result["accepted"] == len(batch), f"{len(batch)} good events, answer {result}"
        assert [one["index"] for one in result["rejected"]] == refused, f"refused should be {refused}: {result}"
        self.rejects_wanted += len(refused)
        self.rejected += len(refused)
        for key, data in batch:
            self.note(key, data)


def run_all(clients, meanwhile=None):
    """Runs the clients to their end, `meanwhile` beside them; fails with what any of them found."""
    for client in clients:
        client.start()
    if meanwhile:
        meanwhile()
    deadline = time.monotonic() + 2 * ACK_SECONDS
    for client in clients:
        client.join(max(0.0, deadline - time.monotonic()))
    late = [client.name for client in clients if client.is_alive()]
    errors = [client.error for client in clients if client.error]
    if late or errors:
        raise AssertionError("; ".join(errors + [f"{name} did not end" for name in late]))


def expected_of(clients):
    """Data to key, and each key's data in order, of all that must arrive."""
    expected, by_key = {}, {}
    for client in clients:
        for key, data in client.sent:
            assert data not in expected, "the workload made one event twice"
            expected[data] = key
            by_key.setdefault(key, []).append(data)
    return expected, by_key
