"""See run.sh. Each `claim` is what holds afterwards; the first that does not ends the run with code 1."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

from dockerfile import Dockerfile, is_in_context
from kinesis import Kinesis
from runtime import Container, Network, until

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
WORK = os.path.join(HERE, ".work", "run")
BINARY = os.path.abspath(os.environ["FOREBAY_BIN"])
DOCKER = os.path.join(ROOT, "packaging", "docker")
BEGUN = time.monotonic()
KINESIS_PORT = 4567


def claim(text):
    """Says what is tested now."""
    print(f"{time.monotonic() - BEGUN:5.1f} s  {text}", flush=True)


def read(*path):
    """A file of the project."""
    with open(os.path.join(ROOT, *path)) as file:
        return file.read()


# --- what the Dockerfile says ---------------------------------------------------------------------------------------------


def judge(dockerfile):
    """The Dockerfile by itself, and against the files that it uses."""
    claim("hadolint finds nothing in the Dockerfile")
    linter = os.path.join(os.path.dirname(sys.executable), "hadolint")
    subprocess.run([linter, "--failure-threshold", "style", os.path.join(DOCKER, "Dockerfile")], check=True)

    claim("the last stage starts from nothing, needs no shell, and names a user by number")
    names = {name for name, _ in dockerfile.stages[-1]}
    assert dockerfile.stages[-1][0] == ("FROM", "scratch")
    assert not names & {"RUN", "ADD", "SHELL", "WORKDIR", "EXPOSE"}, names
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", dockerfile.only("USER"))
    assert dockerfile.only("USER").split(":")[0] == re.search(r"^id=(\d+)$", read("packaging", "docker", "root.sh"), re.M)[1]
    assert dockerfile.only("STOPSIGNAL") == "SIGTERM"
    health = dict(word[2:].split("=") for word in dockerfile.only("HEALTHCHECK").split() if word.startswith("--"))
    # `forebay status` itself gives up after 5 s, and says why.
    assert health["timeout"] == "6s", health

    claim("the build takes every file that Cargo needs, exactly the locked crates, and the compiler that the project asks for")
    cargo = read("Cargo.toml")
    copied = [path.removeprefix("./").rstrip("/") for source, _, paths, _ in dockerfile.copies(0) if not source for path in paths]
    needed = ["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "src/main.rs", "packaging/forebay.toml", "packaging/docker/build.sh"]
    needed += re.findall(r'^path = "(.*)"$', cargo, re.M)
    needed += [f"benches/{name}.rs" for name in re.findall(r'^\[\[bench\]\]\nname = "(.*)"$', cargo, re.M)]
    ignore = os.path.join(ROOT, ".dockerignore")
    for path in copied + needed:
        assert os.path.exists(os.path.join(ROOT, path)), f"{path} is not there"
        assert is_in_context(path, ignore), f".dockerignore keeps {path} out"
    for path in needed:
        assert any(path == one or path.startswith(one + "/") for one in copied), f"{path} is not copied"
    for path in ("target/debug/forebay", ".git/HEAD", "tests/interop/.work/stamp", "docs/INSTALL.md"):
        assert not is_in_context(path, ignore), f"{path} goes to the builder"
    build = read("packaging", "docker", "build.sh")
    for word in ("--locked", "--profile dist", "--no-default-features", "--remap-path-prefix", "SOURCE_DATE_EPOCH", "packaging/docker/root.sh"):
        assert word in build, f"build.sh has no {word}"
    version = re.search(r'^version = "(.*)"$', cargo, re.M)[1]
    assert dockerfile.arguments["VERSION"] == version
    asked = re.search(r'^rust-version = "(.*)"$', cargo, re.M)[1]
    assert dockerfile.arguments["RUST_IMAGE"].startswith(f"rust:{asked}"), "another compiler than Cargo.toml asks for"
    labels = " ".join(dockerfile.image("LABEL"))
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels, name


# --- what is in it --------------------------------------------------------------------------------------------------------


def fingerprint(root):
    """All of a tree: names, kinds, modes, times, contents."""
    total = hashlib.sha256()
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(names + files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            total.update(f"{os.path.relpath(path, root)} {status.st_mode:o} {int(status.st_mtime)}\n".encode())
            if os.path.isfile(path):
                total.update(hashlib.sha256(open(path, "rb").read()).digest())
    return total.hexdigest()


def assemble(sbom):
    """The root as the Dockerfile's script and COPY lines make it."""
    claim("root.sh makes the same files each time")
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1000000000"}
    prints = []
    for name in ("out", "again"):
        out = os.path.join(WORK, name)
        subprocess.run([os.path.join(DOCKER, "root.sh"), BINARY, out] + sbom, check=True, env=environment)
        prints.append(fingerprint(out))
    assert prints[0] == prints[1]
    shutil.rmtree(os.path.join(WORK, "again"))
    image = os.path.join(WORK, "image")
    dockerfile.lay_down(os.path.join(WORK, "out"), image)
    return image


def inspect(image, user):
    """Nothing in the root but what the agent needs."""
    claim("there is no shell in it, nothing that gives rights, and nothing writable but its two directories and /tmp")
    files, programs = [], []
    for directory, names, plain in os.walk(image):
        for name in names + plain:
            path = os.path.join(directory, name)
            inside, status = path[len(image):], os.lstat(path)
            assert not status.st_mode & 0o6000, f"{inside} is setuid"
            if inside in ("/var/lib/forebay", "/run/forebay"):
                assert (status.st_uid, status.st_gid) == user, inside
            else:
                assert (status.st_uid, status.st_gid) == (0, 0), inside
                assert inside == "/tmp" or not status.st_mode & 0o022, f"{inside} is writable"
            if name in plain:
                files.append(inside)
                if status.st_mode & 0o111 and not re.search(r"\.so(\.\d+)*$", name):
                    programs.append(inside)
    assert programs == ["/usr/bin/forebay"], programs
    libraries = [os.path.basename(path) for path in files if ".so" in path]
    assert len(libraries) <= 6, libraries
    assert not [path for path in files if re.search(r"/(sh|bash|dash|busybox|env|ld|cat)$", path)]
    assert open(image + "/etc/ssl/certs/ca-certificates.crt").read().count("BEGIN CERTIFICATE") > 50
    assert f":{user[0]}:{user[1]}:" in open(image + "/etc/passwd").read()
    packages = os.listdir(image + "/var/lib/dpkg/status.d")
    assert "libc6" in packages and "ca-certificates" in packages, packages
    size = sum(os.lstat(image + path).st_size for path in files)
    others = size - os.lstat(image + "/usr/bin/forebay").st_size
    print(f"        {len(files)} files, {others / 1e6:.1f} MB beside the binary; libraries: {', '.join(sorted(libraries))}")


def check_sbom(image):
    """The list names the crates that Cargo.lock has, and only crates that the binary is made of."""
    claim("the list of contents names what is inside")
    contents = json.load(open(image + "/usr/share/doc/forebay/sbom.cdx.json"))
    crates = {part["name"] for part in contents["components"]}
    assert contents["bomFormat"] == "CycloneDX" and contents["metadata"]["component"]["name"] == "forebay"
    assert {"tokio", "aws-sdk-kinesis", "rustls", "sled"} <= crates and len(crates) > 100, len(crates)
    assert not crates & {"ferrokinesis", "proptest", "criterion"}, "it names what is not inside"
    assert ROOT not in json.dumps(contents), "it names this machine's directories"
    print(f"        {len(crates)} crates")


# --- what it does ---------------------------------------------------------------------------------------------------------


class Sender:
    """Events through the socket, each counted when it is acknowledged."""

    def __init__(self, path, key):
        self.key, self.receipted = key, 0
        self._path = path

    def send(self, count):
        """`count` more events; returns when all are durable."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(30)
            stream.connect(self._path)
            lines = stream.makefile("rb")
            numbers = range(self.receipted + 1, self.receipted + count + 1)
            events = "".join(json.dumps({"userId": self.key, "k": self.key, "n": n}) + "\n" for n in numbers)
            stream.sendall(b"forebay/1 ack=on\n" + events.encode())
            assert lines.readline().startswith(b"ok "), "no answer to the hello"
            while True:
                line = lines.readline()
                assert re.fullmatch(rb"ack \d+\n", line), line
                if int(line.split()[1]) == count:
                    break
            self.receipted += count


def post(network, key, number):
    """One event over HTTP in the container's network; true when it is durable."""
    body = json.dumps({"userId": key, "k": key, "n": number}).encode()
    with network.connect(4710) as stream:
        head = f"POST /ingest HTTP/1.1\r\nHost: 127.0.0.1:4710\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        stream.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: stream.recv(4096), b""))
    return answer.startswith(b"HTTP/1.1 200 ") and b'"accepted":1' in answer


class Image:
    """Starts containers of the image, as an engine would from the Dockerfile."""

    def __init__(self, root, user):
        self.root, (self.uid, self.gid) = root, user
        self.network = Network()
        self.volumes = {path: os.path.join(WORK, "volumes", path.strip("/").replace("/", "-")) for path in json.loads(dockerfile.only("VOLUME"))}
        for path, volume in self.volumes.items():
            # As an engine fills a new volume: with what the image has there, owner and mode too.
            subprocess.run(["cp", "-a", root + path, volume], check=True)
        self.command = dockerfile.exec_form("ENTRYPOINT") + dockerfile.exec_form("CMD")
        self.health = dockerfile.exec_form("HEALTHCHECK")
        self.environment = dockerfile.environment() | {
            "FOREBAY_STREAM__0__NAME": "clicks",
            "FOREBAY_STREAM__0__REGION": "us-east-1",
            "FOREBAY_STREAM__0__ENDPOINT": f"http://127.0.0.1:{KINESIS_PORT}",
            "FOREBAY_DRAIN_TIMEOUT": "20s",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }

    def start(self, name, command=None, volumes=True):
        """A container of it; the volumes are the same for all."""
        mounts = [(volume, path, False) for path, volume in self.volumes.items()] if volumes else []
        return Container(
            name, self.root, command or self.command, self.environment, self.uid, self.gid, [self.gid], mounts, self.network, WORK)


def healthy(container, image):
    """What the engine learns from the health check."""
    return container.execute(image.health, timeout=10)[0] == 0


def live(image, kinesis):
    """The life of a container."""
    claim("the health check says unhealthy where no agent runs")
    assert image.start("no-agent", image.health).wait(20) == 1

    claim("it starts with a read-only root, as a user without any right, and is healthy")
    agent = image.start("agent")
    until("the agent is healthy", lambda: healthy(agent, image), 30)
    status = dict(line.split(":\t", 1) for line in open(f"/proc/{agent.pid}/status").read().splitlines() if ":\t" in line)
    assert status["Uid"].split() == [str(image.uid)] * 4 and int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    mounts = [line.split() for line in open(f"/proc/{agent.pid}/mountinfo")]
    assert [mount[5].split(",")[0] for mount in mounts if mount[4] == "/"][-1] == "ro"
    assert sorted(mount[4] for mount in mounts if mount[5].startswith("rw") and not mount[4].startswith(("/proc", "/dev"))) == sorted(image.volumes)

    claim("forebay check finds its volume, its disk and its configuration good")
    code, text = agent.execute(["/usr/bin/forebay", "check", "--local"])
    assert code == 0 and "✗" not in text and "!" not in text, text

    claim("events come in through the socket and over HTTP, and arrive")
    through_socket = Sender(os.path.join(image.volumes["/run/forebay"], "forebay.sock"), "socket")
    through_socket.send(500)
    over_http = 20
    assert all(post(image.network, "http", n) for n in range(1, over_http + 1))
    arrived = lambda: len(set(kinesis.numbers("socket"))) == 500 and len(set(kinesis.numbers("http"))) == over_http
    until("all have arrived", arrived, 30)
    assert os.stat(os.path.join(image.volumes["/run/forebay"], "forebay.sock")).st_mode & 0o777 == 0o660

    claim("with Kinesis away it stays healthy and takes events")
    kinesis.set_away(True)
    through_socket.send(500)
    until("Kinesis was tried", lambda: kinesis.refused > 0, 30)
    assert healthy(agent, image)

    claim("kill -9: the next container on the same volume has them all")
    agent.kill(signal.SIGKILL)
    assert agent.wait(10) == 128 + signal.SIGKILL
    agent = image.start("agent-2")
    until("the agent is healthy again", lambda: healthy(agent, image), 30)
    through_socket.send(500)

    claim("a hang is unhealthy")
    agent.kill(signal.SIGSTOP)
    assert not healthy(agent, image)
    agent.kill(signal.SIGCONT)
    until("it is healthy again", lambda: healthy(agent, image), 30)

    claim("SIGTERM delivers what is there, then it ends with 0")
    kinesis.set_away(False)
    agent.kill(signal.SIGTERM)
    assert agent.wait(30) == 0, agent.log()[-2000:]
    numbers = kinesis.numbers("socket")
    assert sorted(set(numbers)) == list(range(1, through_socket.receipted + 1)), f"{len(set(numbers))} of {through_socket.receipted}"
    first_seen = list(dict.fromkeys(numbers))
    assert first_seen == sorted(first_seen), "out of order"
    print(f"        {through_socket.receipted + over_http} receipts, all delivered, {len(numbers) - len(set(numbers))} of them twice")

    claim("the log is JSON, and says that all is delivered")
    lines = [json.loads(line) for line in agent.log().splitlines()]
    assert "all is delivered" in json.dumps(lines[-1]), lines[-1]

    claim("without volumes it takes nothing, and says why")
    lost = image.start("no-volumes", volumes=False)
    assert lost.wait(20) != 0
    assert "Read-only file system" in lost.log(), lost.log()

    claim("a configuration that is wrong is told with code 78")
    image.environment["FOREBAY_SPOOL__MAX_BYTES"] = "much"
    wrong = image.start("wrong")
    assert wrong.wait(20) == 78 and "FOREBAY_SPOOL__MAX_BYTES" in wrong.log(), wrong.log()


if __name__ == "__main__":
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(os.path.join(WORK, "volumes"))
    dockerfile = Dockerfile(os.path.join(DOCKER, "Dockerfile"))
    judge(dockerfile)
    sbom = []
    if "--full" in sys.argv:
        claim("the list of contents is made")
        tools = os.path.join(HERE, ".work", "cyclonedx", "bin")
        sbom = [os.path.join(WORK, "sbom.cdx.json")]
        subprocess.run([os.path.join(DOCKER, "sbom.sh"), sbom[0]], check=True, cwd=ROOT, env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"})
    image_root = assemble(sbom)
    agent_user = tuple(map(int, dockerfile.only("USER").split(":")))
    inspect(image_root, agent_user)
    if sbom:
        check_sbom(image_root)
    else:
        print("        LEFT OUT: the list of contents; --full makes it")
    started = Image(image_root, agent_user)
    service = Kinesis()
    service.serve(started.network.listen(KINESIS_PORT))
    live(started, service)
    claim("all good")
