"""The real agent: its configuration, its start, what it says of itself, its end."""

import json
import os
import shutil
import tempfile
import urllib.error
import urllib.request

import servers
import waiting

BINARY = os.environ.get("FOREBAY_BIN", "")

CONFIG = """\
[listen]
socket = "{socket}"
http = "127.0.0.1:{http_port}"
admin = "127.0.0.1:{admin_port}"

[spool]
dir = "{spool}"

[[stream]]
name = "{stream}"
region = "{region}"
endpoint = "{endpoint}"
aggregate = "{aggregate}"
order = "key"
linger = "50ms"
ask_mode_within = "0s"
{keys}
[[source]]
name = "web"
kind = "events"
stream = "{stream}"
partition_key = ["/user"]
partition_key_fallback = "reject"
{more}"""


class Agent:
    """`forebay run --config` in a directory of its own, delivering to `endpoint`.

    `env` is what the agent finds in its environment besides, credentials first of all; `keys` are further lines of the
    stream, `more` further tables of the configuration.
    """

    def __init__(self, stream, endpoint, aggregate, log_dir, env=None, keys="", more=""):
        # Directly under the system's temporary directory: a socket's path has 108 bytes at most.
        self.dir = tempfile.mkdtemp(prefix="forebay-")
        self.stream = stream
        self.socket = os.path.join(self.dir, "socket")
        self.http_port, self.admin_port = waiting.free_port(), waiting.free_port()
        config = os.path.join(self.dir, "forebay.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                CONFIG.format(
                    socket=self.socket,
                    http_port=self.http_port,
                    admin_port=self.admin_port,
                    spool=os.path.join(self.dir, "spool"),
                    stream=stream,
                    region=servers.REGION,
                    endpoint=endpoint,
                    aggregate=aggregate,
                    keys=keys,
                    more=more,
                )
            )
        given = {"AWS_EC2_METADATA_DISABLED": "true", **servers.CREDENTIALS} if env is None else env
        env = {"PATH": os.environ["PATH"], "HOME": self.dir, "RUST_BACKTRACE": "1", **given}
        self.child = waiting.Child(
            f"forebay run ({stream})", [BINARY, "run", "--config", config], os.path.join(log_dir, f"{stream}.log"), env=env
        )
        try:
            waiting.until("the agent is ready", lambda: self.child.check_alive() and self._get("/readyz")[0] == 200, 30)
        except AssertionError:
            self.clean()
            raise

    def _get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""
        except OSError:
            return 0, ""

    def status(self, stream=None):
        """The part of /status of a stream, or of the first."""
        self.child.check_alive()
        code, body = self._get("/status")
        assert code == 200, f"/status says {code}"
        return next(one for one in json.loads(body)["streams"] if one["name"] == (stream or self.stream))

    def metric(self, name, **labels):
        """The sum of a metric over its label sets, or over those with these labels."""
        code, body = self._get("/metrics")
        assert code == 200, f"/metrics says {code}"
        mine = [line for line in body.splitlines() if line.startswith(name + "{")]
        mine = [line for line in mine if all(f'{label}="{value}"' in line for label, value in labels.items())]
        return sum(float(line.rsplit(" ", 1)[1]) for line in mine)

    def wait_delivered(self, accepted, seconds, stream=None):
        """Waits until all is accepted and nothing pending; gives the status then."""
        last = {}

        def settled():
            last.update(self.status(stream))
            return last["account"]["accepted"] >= accepted and last["account"]["pending"] == 0

        try:
            waiting.until(f"{accepted} events accepted and none pending", settled, seconds)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\nlast account: {last.get('account')}, paused: {last.get('paused_reason')!r}\n{self.child.log_tail(20)}"
            ) from None
        return last

    def stop(self, seconds=30):
        """SIGTERM; gives the exit code."""
        return self.child.terminate(seconds)

    def clean(self):
        """Ends it if it still runs, and removes its directory."""
        self.child.kill()
        shutil.rmtree(self.dir)
