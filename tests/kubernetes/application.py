"""The application of a pod: numbered events through the shared socket until it is told to end, and a note of what was receipted.

    application.py KEY LEDGER COUNT     COUNT 0: until SIGTERM, and then 200 more, as an application that ends still has things to say

It sends again what was not acknowledged. LEDGER gets a line `made N`, `receipted N` (the first N events of KEY have receipts) or
`connected N` each time one changes. Exit code 0 only if all that it made is receipted. Twenty partition keys, so that deliveries can
be made side by side; `n` counts over all of them.
"""

import json
import os
import select
import signal
import socket
import sys
import time

SOCKET = "/run/forebay/forebay.sock"
BATCH = 25
LAST = 200
# The longest it waits for its last receipts.
END = 5


class Application:
    def __init__(self, key, ledger, count):
        self.key, self.count = key, count
        self.ledger = open(ledger, "a", buffering=1)
        self.made = self.receipted = self.connections = 0
        self.stream = None
        self.pending = b""
        self.deadline = None

    def note(self, what, number):
        self.ledger.write(f"{what} {number}\n")

    def terminate(self, *_arguments):
        self.deadline = time.monotonic() + END
        self.count = self.made + LAST

    def connect(self):
        """One attempt. The count of acknowledgements begins anew with each connection."""
        try:
            stream = socket.socket(socket.AF_UNIX)
            stream.settimeout(2)
            stream.connect(SOCKET)
            stream.sendall(b"forebay/1 ack=on\n")
            answer = b""
            while not answer.endswith(b"\n"):
                more = stream.recv(1)
                if not more:
                    return
                answer += more
            if not answer.startswith(b"ok "):
                return
        except OSError:
            return
        self.stream, self.pending, self.base = stream, b"", self.receipted
        self.sent = self.receipted
        self.connections += 1
        self.note("connected", self.connections)

    def lose(self):
        self.stream.close()
        self.stream = None

    def step(self):
        """Sends what was made and takes what was acknowledged."""
        if self.sent < self.made:
            numbers = range(self.sent + 1, self.made + 1)
            lines = [json.dumps({"userId": f"{self.key}-{n % 20}", "k": self.key, "n": n}) for n in numbers]
            self.stream.sendall("".join(line + "\n" for line in lines).encode())
            self.sent = self.made
        if select.select([self.stream], [], [], 0.2)[0]:
            more = self.stream.recv(4096)
            if not more:
                raise OSError("the agent has gone")
            *lines, self.pending = (self.pending + more).split(b"\n")
            for line in lines:
                if line.startswith(b"ack "):
                    self.receipted = self.base + int(line[4:])
                    self.note("receipted", self.receipted)

    def run(self):
        while not (self.count and self.receipted >= self.count):
            if self.deadline and time.monotonic() > self.deadline:
                return 1
            if self.stream is None:
                self.connect()
            if self.stream is None:
                time.sleep(0.02)
                continue
            try:
                # The next ones when these are receipted, so that it keeps the pace of the disk.
                if self.receipted == self.made:
                    self.made = min(self.made + BATCH, self.count or self.made + BATCH)
                    self.note("made", self.made)
                    time.sleep(0.005)
                self.step()
            except OSError:
                self.lose()
        return 0


if __name__ == "__main__":
    application = Application(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    signal.signal(signal.SIGTERM, application.terminate)
    os.umask(0o077)
    sys.exit(application.run())
