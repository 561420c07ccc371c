"""Accounts, rights and credentials: ministack with AUTH=true, and the places where a machine finds its credentials.

ministack checks every signature against the key that made it and every call against the caller's policies; its root is
`test`. It is not used for reshards (a split shard's parent vanishes there). `Handout` stands for what AWS runs beside
a program: the agent of ECS and EKS Pod Identity, and the instance metadata service of EC2, version 2 only.
"""

import http.client
import http.server
import json
import os
import sys
import threading
import time

import boto3
from botocore.config import Config

import servers
import waiting

ACCOUNT = "000000000000"
OTHER_ACCOUNT = "222222222222"
PACKAGES = os.path.join(servers.HERE, ".work", "ministack")


class Cloud(servers.Server):
    """ministack. `of(service)` gives a client with the rights of root, or with given keys."""

    def __init__(self, log_dir):
        port = waiting.free_port()
        env = {
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "AUTH": "true",
            "IOT_MTLS_ENABLED": "0",
            "PYTHONPATH": PACKAGES,
            "HOME": log_dir,
        }
        super().__init__("ministack", f"http://127.0.0.1:{port}", [sys.executable, "-m", "ministack"], log_dir, env)
        self.client = self.of("kinesis")
        self._users = 0

    def of(self, service, key="test", secret="test", token=None, region=servers.REGION):
        """A boto3 client. A key of twelve digits is root of the account of that number."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=region,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            # Sessions shorter than the 900 s that boto3 asks for at least.
            config=Config(connect_timeout=5, read_timeout=30, retries={"max_attempts": 3}, parameter_validation=False),
        )

    def user(self, *statements):
        """A new user who may do what the statements say: name and environment with its keys."""
        self._users += 1
        name = f"app-{self._users}"
        self.of("iam").create_user(UserName=name)
        self.allow(name, *statements)
        key = self.of("iam").create_access_key(UserName=name)["AccessKey"]
        return name, environment(self, AWS_ACCESS_KEY_ID=key["AccessKeyId"], AWS_SECRET_ACCESS_KEY=key["SecretAccessKey"])

    def allow(self, user, *statements):
        """The user's whole policy from now on."""
        self.of("iam").put_user_policy(UserName=user, PolicyName="rights", PolicyDocument=document(statements))

    def role(self, name, trust, *statements, account="test"):
        """A role that is trusted and allowed so; its ARN."""
        iam = self.of("iam", account)
        arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document([trust]))["Role"]["Arn"]
        iam.put_role_policy(RoleName=name, PolicyName="rights", PolicyDocument=document(statements))
        return arn

    def session(self, role_arn, seconds, sts=None):
        """Credentials of a role for so long, as a handout gives them."""
        sts = sts or self.of("sts")
        given = sts.assume_role(RoleArn=role_arn, RoleSessionName="machine", DurationSeconds=seconds)["Credentials"]
        return {
            "AccessKeyId": given["AccessKeyId"],
            "SecretAccessKey": given["SecretAccessKey"],
            "Token": given["SessionToken"],
            "Expiration": stamp(seconds),
        }


def environment(cloud, **variables):
    """What an agent finds in its environment, to be led to ministack for everything but the stream."""
    return {"AWS_ENDPOINT_URL": cloud.endpoint, "AWS_REGION": servers.REGION, "AWS_EC2_METADATA_DISABLED": "true", **variables}


def document(statements):
    """A policy."""
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def stamp(seconds):
    """A time from now, as AWS writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def trust_root():
    """Whoever is of the account and is allowed to."""
    return {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "sts:AssumeRole"}


class Handout:
    """Hands out credentials over HTTP as ECS, EKS Pod Identity and IMDSv2 do. `give` makes them, or says None for "not now"."""

    TOKEN = "token-of-the-machine"

    def __init__(self, give):
        self.asked, self.refused, self.give = 0, 0, give
        handout = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, code, body):
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_PUT(self):
                known = self.path == "/latest/api/token" and self.headers.get("x-aws-ec2-metadata-token-ttl-seconds")
                if not known:
                    self.answer(404, b"")
                    return
                self.send_response(200)
                self.send_header("x-aws-ec2-metadata-token-ttl-seconds", "21600")
                self.send_header("Content-Length", str(len(handout.TOKEN)))
                self.end_headers()
                self.wfile.write(handout.TOKEN.encode())

            def do_GET(self):
                metadata = self.path.startswith("/latest/")
                token = self.headers.get("x-aws-ec2-metadata-token" if metadata else "Authorization")
                if token != handout.TOKEN:
                    handout.refused += 1
                    self.answer(401, b"")
                elif self.path.rstrip("/").endswith("/security-credentials"):
                    self.answer(200, b"role-of-the-machine")
                elif metadata and "/security-credentials" not in self.path:
                    self.answer(404, b"")
                else:
                    handout.asked += 1
                    given = handout.give()
                    if given is None:
                        self.answer(503, b"")
                    else:
                        self.answer(200, json.dumps({"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": stamp(0), **given}).encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # Who asked may have stopped waiting.
        self.server.handle_error = lambda *_: None
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        """Stops listening."""
        self.server.shutdown()
        self.server.server_close()


class Proxy:
    """An HTTP proxy that notes which hosts it is asked for: passes plain requests on to `target`, refuses tunnels."""

    def __init__(self, target):
        self.hosts = set()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_CONNECT(self):
                proxy.hosts.add(self.path)
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.send_header("Connection", "close")
                self.end_headers()

            def do_POST(self):
                url = self.path
                proxy.hosts.add(url.split("/")[2] if url.startswith("http://") else url)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                connection = http.client.HTTPConnection(*target, timeout=30)
                connection.request("POST", "/" + url.split("/", 3)[-1], body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                connection.close()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        """Stops listening."""
        self.server.shutdown()
        self.server.server_close()
