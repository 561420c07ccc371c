"""Pods' lives with real processes, as the rendered manifests say, and every event counted. See run.sh and kubelet.py.

The application notes what was receipted; Kinesis notes what arrived. Nothing but the loss of a node together with the spool's volume
may make these two differ, and then by exactly what was receipted and not delivered.
"""

import copy
import os
import shutil
import subprocess
import time

import kubelet
import render
from kubelet import Image, Node, Pod, until
from rendered import has_metrics_listener

from dockerfile import Dockerfile  # noqa: E402 (kubelet.py says where it is)
from kinesis import Kinesis

BINARY = os.path.abspath(os.environ["FOREBAY_BIN"])
WORK = os.path.join(render.WORK, "life")
DOCKER = os.path.join(render.ROOT, "packaging", "docker")
KINESIS_PORT = 4567
BEGUN = time.monotonic()
# What differs from a real cluster: where Kinesis is, and patience.
HERE = ["--values", render.values("life")]


def claim(text):
    """Says what is tested now."""
    print(f"{time.monotonic() - BEGUN:5.1f} s  {text}", flush=True)


class Ledger:
    """What the application wrote down."""

    def __init__(self, name):
        self.path = os.path.join(WORK, "ledgers", name)
        os.makedirs(self.path)
        os.chown(self.path, 10001, 10001)

    def last(self, what):
        """The last number of a kind."""
        file = os.path.join(self.path, "ledger")
        lines = open(file).read().splitlines() if os.path.exists(file) else []
        numbers = [int(line.split()[1]) for line in lines if line.startswith(what + " ")]
        return numbers[-1] if numbers else 0


class World:
    """The image, nodes, Kinesis, and pods of a form."""

    def __init__(self):
        shutil.rmtree(WORK, ignore_errors=True)
        os.makedirs(os.path.join(WORK, "ledgers"))
        subprocess.run([os.path.join(DOCKER, "root.sh"), BINARY, os.path.join(WORK, "out")], check=True)
        file = Dockerfile(os.path.join(DOCKER, "Dockerfile"))
        root = os.path.join(WORK, "image")
        file.lay_down(os.path.join(WORK, "out"), root)
        uid, gid = map(int, file.only("USER").split(":"))
        self.agent = Image(root, file.exec_form("ENTRYPOINT"), file.exec_form("CMD"), uid, gid)
        self.service = Kinesis()
        self._number = 0

    def node(self, key="app", count=0):
        """A machine, on which the application sends with this key."""
        self._number += 1
        ledger = Ledger(f"{self._number}-{key}")
        script = os.path.join(WORK, "script")
        if not os.path.exists(script):
            os.makedirs(script)
            shutil.copy(os.path.join(render.HERE, "application.py"), script)
        application = Image(
            "/", ["/usr/bin/python3", "/tmp/script/application.py"], [key, "/tmp/ledger/ledger", str(count)], 10001, 10001,
            [(script, "/tmp/script", True), (ledger.path, "/tmp/ledger", False)])
        node = Node(os.path.join(WORK, f"node-{self._number}"), {"forebay": self.agent, "application": application}, self.service, KINESIS_PORT)
        node.ledger, node.key = ledger, key
        return node

    def pod(self, node, form, *flags, name="pod", claims=None, change=None):
        """A pod of the chart's, not started yet."""
        objects = render.helm(form, *HERE, *flags)
        spec = copy.deepcopy(render.pod_spec(objects))
        if change:
            change(spec)
        maps = {one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"}
        return Pod(node, name, spec, maps, claims)

    def arrived(self, node):
        """Distinct events of the node's application."""
        return set(self.service.numbers(node.key))

    def wait_for_receipts(self, node, more):
        """Until the application has so many more."""
        goal = node.ledger.last("receipted") + more
        until(f"{goal} receipts", lambda: node.ledger.last("receipted") >= goal, 60)

    def all_arrived(self, node):
        """Everything receipted is there, each key's in order; tells how much."""
        receipted, arrived = node.ledger.last("receipted"), self.arrived(node)
        missing = set(range(1, receipted + 1)) - arrived
        assert not missing, f"{len(missing)} of {receipted} are lost, such as {sorted(missing)[:5]}"
        self._in_order(node)
        print(f"        {receipted} receipts, {len(arrived)} arrived, {len(self.service.numbers(node.key)) - len(arrived)} of them twice")

    def _in_order(self, node):
        seen = {}
        for number in dict.fromkeys(self.service.numbers(node.key)):
            assert number > seen.get(number % 20, 0), f"{number} came late"
            seen[number % 20] = number


def exits(pod, codes):
    """All ended with 0."""
    assert set(codes.values()) == {0}, f"{codes}: " + " | ".join(f"{name}: {kubelet.words(one.log())}" for name, one in pod.running.items())


def native(world):
    claim("native: the agent is ready before the application starts, and the application's first attempt gets through")
    node = world.node("native")
    pod = world.pod(node, "native")
    pod.start()
    assert pod.order == ["start forebay", "started forebay", "start app"], pod.order
    world.wait_for_receipts(node, 200)
    assert node.ledger.last("connected") == 1
    code, text = pod.running["forebay"].execute(["/usr/bin/forebay", "check", "--local"])
    assert code == 0 and "✗" not in text, text

    claim("native: with Kinesis away it stays ready and alive, and takes events")
    world.service.set_away(True)
    refused = world.service.refused
    until("Kinesis was tried", lambda: world.service.refused > refused, 30)
    world.wait_for_receipts(node, 500)
    assert pod.probe("forebay", "readinessProbe") and pod.probe("forebay", "livenessProbe")

    claim("native: kill -9, a new start on the same emptyDir, and the application goes on")
    pod.running["forebay"].kill(kubelet.SIGKILL)
    assert pod.running["forebay"].wait(5) == 137
    pod.restart("forebay")
    world.wait_for_receipts(node, 500)
    assert node.ledger.last("connected") == 2
    world.service.set_away(False)

    claim("native: the pod's end: the application's last events are taken, then the agent delivers them all")
    before = node.ledger.last("made")
    codes = pod.delete()
    exits(pod, codes)
    assert pod.order[-2:] == ["end app", "end forebay"]
    assert node.ledger.last("made") >= before + 200
    world.all_arrived(node)
    pod.remove()


def metrics(world):
    claim("metrics: whoever reaches the pod reads them, and can ask for nothing else")
    if not has_metrics_listener():
        print("        SKIPPED: the binary has no listen.metrics")
        return
    node = world.node("metrics")
    pod = world.pod(node, "native", "--set", "metrics.enabled=true")
    pod.start()
    world.wait_for_receipts(node, 100)
    assert b"forebay_events_accepted_total" in ask(pod, 4713, "GET /metrics").partition(b"\r\n\r\n")[2]
    assert ask(pod, 4713, "GET /readyz").startswith(b"HTTP/1.1 200 ")
    assert ask(pod, 4713, "POST /drain").startswith(b"HTTP/1.1 404 ")
    assert ask(pod, 4711, "GET /metrics").startswith(b"HTTP/1.1 403 "), "the admin listener knows no such Host"
    exits(pod, pod.delete())
    pod.remove()


def ask(pod, port, request):
    """An HTTP answer, called by the pod's address."""
    with pod.network.connect(port) as stream:
        stream.sendall(f"{request} HTTP/1.1\r\nHost: 10.1.2.3:{port}\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: stream.recv(65536), b""))


def job(world):
    claim("Job: the application ends by itself, the agent after it")
    node = world.node("job", count=1000)
    pod = world.pod(node, "job")
    pod.start()
    exits(pod, pod.finish())
    assert node.ledger.last("receipted") == 1000
    world.all_arrived(node)
    pod.remove()


def plain(world):
    claim("plain: told to end together, the agent stays until the application has ended")
    node = world.node("plain")
    pod = world.pod(node, "plain", "--set", "workload.stopSeconds=3")
    pod.start()
    world.wait_for_receipts(node, 300)
    before = node.ledger.last("made")
    exits(pod, pod.delete())
    assert pod.order[-2:] == ["end app", "end forebay"] and node.ledger.last("made") >= before + 200
    world.all_arrived(node)
    pod.remove()


def hook(world):
    claim("why the native form has no preStop hook: with a drain there, the agent is gone while the application still sends")

    def with_hooks(spec):
        render.agent(spec)["lifecycle"] = {"preStop": {"exec": {"command": ["/usr/bin/forebay", "drain"]}}}
        # As an application has that is given time to leave a load balancer.
        spec["containers"][0]["lifecycle"] = {"preStop": {"sleep": {"seconds": 2}}}

    node = world.node("hook")
    pod = world.pod(node, "native", change=with_hooks)
    pod.start()
    world.wait_for_receipts(node, 300)
    codes = pod.delete()
    assert codes["app"] == 1, "the application had all its receipts"
    made, receipted = node.ledger.last("made"), node.ledger.last("receipted")
    assert made > receipted
    # What was receipted is not lost even so.
    world.all_arrived(node)
    pod.remove()


def lost_node(world, form):
    claim(f"a node is lost, {form}: exactly what was receipted and not delivered is lost")
    node = world.node(f"lost-{form}")
    pod = world.pod(node, form)
    pod.start()
    until("some deliveries", lambda: len(world.arrived(node)) >= 200)
    world.service.set_away(True)
    world.wait_for_receipts(node, 300)
    pod.lose()
    receipted, delivered = node.ledger.last("receipted"), world.arrived(node)
    world.service.set_away(False)
    other = world.node(f"after-{form}", count=200)
    successor = world.pod(other, form)
    successor.start()
    until("the next pod's events", lambda: other.ledger.last("receipted") == 200, 30)
    codes = successor.delete()
    exits(successor, codes)
    world.all_arrived(other)
    assert world.arrived(node) == delivered, "events of a volume that is gone"
    lost = set(range(1, receipted + 1)) - delivered
    assert len(lost) >= 200 and len(lost) + len(delivered & set(range(1, receipted + 1))) == receipted
    print(f"        {receipted} receipts, {len(delivered)} delivered before, {len(lost)} lost")
    successor.remove()


def kept_claim(world):
    claim("a node is lost, StatefulSet with a claim: the replica's next pod on another node delivers all of it")
    disk = os.path.join(WORK, "claim")
    os.mkdir(disk, 0o755)
    node = world.node("claim")
    pod = world.pod(node, "statefulset", claims={"forebay-spool": disk})
    pod.start()
    until("some deliveries", lambda: len(world.arrived(node)) >= 200)
    world.service.set_away(True)
    world.wait_for_receipts(node, 300)
    pod.lose()
    receipted = node.ledger.last("receipted")
    waiting = receipted - len(world.arrived(node) & set(range(1, receipted + 1)))
    assert waiting >= 200
    world.service.set_away(False)
    other = world.node("claim-after", count=200)
    successor = world.pod(other, "statefulset", claims={"forebay-spool": disk})
    successor.start()
    until("the events of the pod before", lambda: set(range(1, receipted + 1)) <= world.arrived(node), 60)
    until("the next pod's events", lambda: other.ledger.last("receipted") == 200, 30)
    exits(successor, successor.delete())
    print(f"        {waiting} waited in the claim")
    world.all_arrived(node)
    world.all_arrived(other)
    mode = os.stat(os.path.join(disk, "clicks")).st_mode & 0o777
    assert mode == 0o700, f"the kubelet opened the spool to others: {mode:o}"
    successor.remove()


def daemon(world):
    claim("DaemonSet: an agent that is root without any right; a pod of the socket's group may send")
    node = world.node("daemon")
    agent = world.pod(node, "daemonset", name="agent")
    agent.start()
    status = open(f"/proc/{agent.running['forebay'].pid}/status").read()
    assert "CapEff:\t0000000000000000" in status and "CapBnd:\t0000000000000000" in status
    sender = world.pod(node, "native", name="sender", change=lambda spec: sends_to_node(spec, [65532]))
    sender.start()
    world.wait_for_receipts(node, 300)

    claim("DaemonSet: a pod that is not of the group may not")
    stranger = world.pod(node, "native", name="stranger", change=lambda spec: sends_to_node(spec, []))
    before = node.ledger.last("connected")
    stranger.start()
    code, text = stranger.running["app"].execute(
        ["/usr/bin/python3", "-c", "import socket; socket.socket(socket.AF_UNIX).connect('/run/forebay/forebay.sock')"])
    assert code == 1 and "PermissionError" in text, text
    assert node.ledger.last("connected") == before
    stranger.lose()

    claim("DaemonSet: the agent is replaced while pods send; nothing is lost, and its spool stays with the node")
    world.service.set_away(True)
    world.wait_for_receipts(node, 300)
    agent.running["forebay"].kill(kubelet.SIGKILL)
    agent.running["forebay"].wait(5)
    agent.remove()
    world.service.set_away(False)
    successor = world.pod(node, "daemonset", name="agent-2")
    successor.start()
    world.wait_for_receipts(node, 300)
    exits(sender, sender.delete())
    exits(successor, successor.delete())
    world.all_arrived(node)


def sends_to_node(spec, groups):
    """The pod of an application that sends to its node's agent."""
    spec.pop("initContainers")
    spec["volumes"] = [{"name": "forebay-socket", "hostPath": {"path": "/run/forebay", "type": "Directory"}}]
    for mount in spec["containers"][0]["volumeMounts"]:
        mount["readOnly"] = True
    spec["securityContext"] = {"runAsNonRoot": True, "supplementalGroups": groups}


if __name__ == "__main__":
    everything = World()
    native(everything)
    metrics(everything)
    job(everything)
    plain(everything)
    hook(everything)
    lost_node(everything, "native")
    lost_node(everything, "ephemeral")
    kept_claim(everything)
    daemon(everything)
    shutil.rmtree(WORK)
    claim("all lives are good")
