"""A Kinesis that knows each event: which arrived, how often, in which order. One process for all pods of a test.

It answers ListShards, DescribeStreamSummary and PutRecords (JSON 1.1), each record in the shard that its key's MD5 says, as the
agent compares. A socket that listens in a pod's network is handed to it (`serve`), so that it is at the same address in each.
Events are JSON with `k`, the key, and `n`, its number from 1; aggregation is off. Absent on purpose: signatures, TLS, reading back;
the project's other tests have those.
"""

import base64
import hashlib
import http.server
import json
import sys
import threading

SHARDS = 2
_WIDTH = (1 << 128) // SHARDS


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A connection that breaks is an agent that was killed; everything else is told."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Kinesis:
    """`arrived` has each key's numbers in the order of their arrival, with repetitions."""

    def __init__(self):
        self.arrived = {}
        self._lock = threading.Lock()
        self._away = False
        self._sequence = 0
        self.refused = 0

    def serve(self, listening):
        """Answers on this socket for ever."""
        kinesis = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = kinesis._answer(self.headers["X-Amz-Target"].partition(".")[2], body)
                answer = json.dumps(answer).encode()
                head = f"HTTP/1.1 {status} Answer\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {len(answer)}\r\n\r\n"
                try:
                    self.wfile.write(head.encode() + answer)
                except OSError:
                    # The agent was killed meanwhile; what it sent is stored all the same.
                    self.close_connection = True

            def log_message(self, *_arguments):
                pass

        server = _Server(listening.getsockname(), Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listening
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def set_away(self, away):
        """While away it answers 500 to everything."""
        with self._lock:
            self._away = away

    def numbers(self, key):
        """A key's numbers as they arrived."""
        with self._lock:
            return list(self.arrived.get(key, []))

    def _answer(self, action, body):
        with self._lock:
            if self._away:
                self.refused += 1
                return 500, {"__type": "InternalFailure", "message": "away"}
            if action == "PutRecords":
                return 200, {"FailedRecordCount": 0, "Records": [self._store(record) for record in json.loads(body)["Records"]]}
            if action == "ListShards":
                return 200, {"Shards": [_shard(at) for at in range(SHARDS)]}
            if action == "DescribeStreamSummary":
                return 200, {"StreamDescriptionSummary": _summary(json.loads(body)["StreamName"])}
            return 400, {"__type": "UnknownOperationException", "message": f"not here: {action}"}

    def _store(self, record):
        event = json.loads(base64.b64decode(record["Data"]))
        self.arrived.setdefault(event["k"], []).append(event["n"])
        self._sequence += 1
        at = int.from_bytes(hashlib.md5(record["PartitionKey"].encode()).digest(), "big") // _WIDTH
        return {"SequenceNumber": f"4966{self._sequence:052}", "ShardId": f"shardId-{at:012}"}


def _shard(at):
    return {
        "ShardId": f"shardId-{at:012}",
        "HashKeyRange": {"StartingHashKey": str(at * _WIDTH), "EndingHashKey": str((at + 1) * _WIDTH - 1)},
        "SequenceNumberRange": {"StartingSequenceNumber": "4966"},
    }


def _summary(stream):
    return {
        "StreamName": stream,
        "StreamARN": f"arn:aws:kinesis:us-east-1:000000000000:stream/{stream}",
        "StreamStatus": "ACTIVE",
        "StreamModeDetails": {"StreamMode": "PROVISIONED"},
        "MaxRecordSizeInKiB": 1024,
        "RetentionPeriodHours": 24,
        "StreamCreationTimestamp": 1_767_225_600,
        "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
        "EncryptionType": "NONE",
        "OpenShardCount": SHARDS,
        "ConsumerCount": 0,
    }
