"""A tap between a client and a Kinesis server: passes everything on and keeps each PutRecords with its answer.

GetRecords does not tell a record's explicit hash key, nor does it tell which records came in one request. What the
client really asked for is seen here, so explicit hash keys and the service's limits are checked on the wire.
"""

import base64
import http.client
import http.server
import json
import threading
import urllib.parse
from dataclasses import dataclass

KPL_MAGIC = b"\xf3\x89\x9a\xc2"


@dataclass
class Put:
    """One record of a PutRecords with its answer. `shard` is None where the server refused it."""

    request: int
    key: str
    explicit_hash: int | None
    data_bytes: int
    aggregated: bool
    shard: str | None


class Tap:
    """Listens on loopback for one server."""

    def __init__(self, target):
        self.puts, self.requests, self.refused_requests = [], 0, []
        self._lock = threading.Lock()
        url = urllib.parse.urlsplit(target)
        tap = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 120

            def setup(self):
                super().setup()
                self.upstream = http.client.HTTPConnection(url.hostname, url.port, timeout=60)

            def finish(self):
                self.upstream.close()
                super().finish()

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "expect", "content-length")}
                try:
                    self.upstream.request("POST", self.path, body, headers)
                    answer = self.upstream.getresponse()
                    answer_body = answer.read()
                except (OSError, http.client.HTTPException):
                    self.upstream.close()
                    self.close_connection = True
                    return
                if self.headers.get("X-Amz-Target", "").endswith(".PutRecords"):
                    tap.keep(body, answer.status, answer_body)
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length", "keep-alive"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer_body)))
                self.end_headers()
                self.wfile.write(answer_body)

            def log_message(self, *_arguments):
                pass

        http.server.ThreadingHTTPServer.request_queue_size = 64
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def keep(self, body, status, answer_body):
        """Notes one PutRecords."""
        entries = json.loads(body)["Records"]
        answers = json.loads(answer_body).get("Records") if status == 200 else None
        puts = []
        for at, entry in enumerate(entries):
            explicit = entry.get("ExplicitHashKey")
            data = base64.b64decode(entry["Data"], validate=True)
            puts.append(
                Put(
                    request=0,
                    key=entry["PartitionKey"],
                    explicit_hash=int(explicit) if explicit is not None else None,
                    data_bytes=len(data),
                    aggregated=data.startswith(KPL_MAGIC),
                    shard=answers[at].get("ShardId") if answers else None,
                )
            )
        with self._lock:
            self.requests += 1
            for put in puts:
                put.request = self.requests
            self.puts += puts
            if status != 200:
                self.refused_requests.append((status, answer_body[:200].decode(errors="replace")))

    def close(self):
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
