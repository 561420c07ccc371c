"""Kinesis servers that others wrote, on loopback: kinesalite and kinesis-local.

They share no code with each other or with the agent. Each is started once for a run and holds everything in memory.
"""

import os

import boto3
from botocore.config import Config

import waiting

REGION = "eu-west-1"
HERE = os.path.dirname(os.path.abspath(__file__))
MODULES = os.path.join(HERE, ".work", "node_modules")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret-of-a-test", "AWS_REGION": REGION}


def client(endpoint):
    """A boto3 client for an endpoint."""
    return boto3.client(
        "kinesis",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        config=Config(connect_timeout=5, read_timeout=30, retries={"max_attempts": 3}),
    )


class Server:
    """A running server: `endpoint` for the agent, `client` for us."""

    def __init__(self, name, endpoint, command, log_dir, env):
        self.name, self.endpoint = name, endpoint
        self.child = waiting.Child(
            name, command, os.path.join(log_dir, f"{name}.log"), env={"PATH": os.environ["PATH"], **env}
        )
        waiting.until(f"{name} listens", lambda: self.child.check_alive() and waiting.accepts(endpoint), 60)
        self.client = client(endpoint)

    def create_stream(self, name, shards):
        """Creates a stream and waits until it takes records."""
        self.client.create_stream(StreamName=name, ShardCount=shards)
        self.wait_active(name)

    def wait_active(self, name):
        """Waits until a stream is ACTIVE (again)."""

        def active():
            self.child.check_alive()
            summary = self.client.describe_stream_summary(StreamName=name)
            return summary["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE"

        waiting.until(f"{self.name}: stream {name} is ACTIVE", active, 30)

    def stop(self):
        """Ends it."""
        self.child.kill()


def kinesalite(log_dir):
    """Node, old and faithful; splits and merges."""
    port = waiting.free_port()
    command = ["node", "-r", os.path.join(HERE, "loopback.cjs"), os.path.join(MODULES, "kinesalite", "cli.js")]
    command += ["--port", str(port), "--shardLimit", "500", "--createStreamMs", "50", "--updateStreamMs", "200"]
    return Server("kinesalite", f"http://127.0.0.1:{port}", command, log_dir, {})


def kinesis_local(log_dir):
    """Scala.js, code of its own; slow, so it is fed at 2,000 records a second at most."""
    plain, tls = waiting.free_port(), waiting.free_port()
    env = {
        "KINESIS_MOCK_PLAIN_PORT": str(plain),
        "KINESIS_MOCK_TLS_PORT": str(tls),
        "KINESIS_MOCK_CERT_PATH": os.path.join(MODULES, "kinesis-local", "server.json"),
        "SHARD_LIMIT": "500",
        "LOG_LEVEL": "ERROR",
    }
    command = ["node", "-r", os.path.join(HERE, "loopback.cjs"), os.path.join(MODULES, "kinesis-local", "main.js")]
    return Server("kinesis-local", f"http://127.0.0.1:{plain}", command, log_dir, env)


ALL = {"kinesalite": kinesalite, "kinesis-local": kinesis_local}
