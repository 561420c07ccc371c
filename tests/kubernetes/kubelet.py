"""What a kubelet does with a pod, as far as the agent's promises hang on it: volumes, order of the start, probes, restarts, and the end.

A pod is built from its rendered spec alone: command, arguments, environment, mounts, users, groups, probes, hooks. The end is
Kubernetes': preStop hooks of all containers run at once; a container gets SIGTERM after its own hook; one that is an init container
with restartPolicy Always gets it when the containers and those started after it have ended; SIGKILL at the end of the grace period.

Place: `life.py` plays with it. What is not here: cgroups (limits), the API server, images, back-off.
"""

import os
import re
import shutil
import signal
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "container"))

from runtime import Container, Network, until  # noqa: E402

SIGTERM, SIGKILL = signal.SIGTERM, signal.SIGKILL


class Image:
    """What an image says by itself."""

    def __init__(self, root, command, arguments, uid, gid, mounts=()):
        self.root, self.command, self.arguments, self.uid, self.gid, self.mounts = root, command, arguments, uid, gid, list(mounts)


class Node:
    """A machine: its disk, its images, and Kinesis, which is reached from each pod's network."""

    def __init__(self, directory, images, service, port):
        self.directory, self.images, self.service, self.port = directory, images, service, port
        os.makedirs(directory)

    def host_path(self, path):
        """A hostPath of type DirectoryOrCreate: root's, 0755."""
        made = self.directory + "/host" + path
        os.makedirs(made, exist_ok=True)
        os.chmod(made, 0o755)
        return made


class Pod:
    """`claims` gives a directory for each claim's name: a disk that outlives the pod."""

    def __init__(self, node, name, spec, config_maps, claims=None):
        self.node, self.name, self.spec = node, name, spec
        self._directory = os.path.join(node.directory, name)
        self._config_maps, self._claims = config_maps, claims or {}
        os.makedirs(self._directory)
        self.network = Network()
        node.service.serve(self.network.listen(node.port))
        self._volumes = {volume["name"]: self._volume(volume) for volume in spec["volumes"]}
        self._volumes |= {name: self._owned(path) for name, path in self._claims.items()}
        self._images = {}
        self.running, self.starts = {}, {}
        self.order = []

    # --- volumes ---

    def _volume(self, volume):
        path = os.path.join(self._directory, "volumes", volume["name"])
        if "hostPath" in volume:
            return self.node.host_path(volume["hostPath"]["path"])
        os.makedirs(path)
        if "configMap" in volume:
            for name, text in self._config_maps[volume["configMap"]["name"]].items():
                with open(os.path.join(path, name), "w") as file:
                    file.write(text)
            return path
        assert "emptyDir" in volume or "ephemeral" in volume, volume
        os.chmod(path, 0o777)
        return self._owned(path)

    def _owned(self, path):
        """As fsGroup asks: the group's, and what is made in it too."""
        group = self.spec["securityContext"].get("fsGroup")
        if group is None:
            return path
        status = os.stat(path)
        # OnRootMismatch: what is right at its root is left as it is.
        if status.st_gid != group or status.st_mode & 0o2770 != 0o2770:
            for directory, names, files in os.walk(path):
                for name in [""] + files:
                    one = os.path.join(directory, name)
                    os.chown(one, -1, group)
                    os.chmod(one, os.stat(one).st_mode | (0o2770 if not name else 0o660))
        return path

    # --- start ---

    def _start(self, container):
        image = self.node.images[container["image"].partition(":")[0]]
        pod, own = self.spec["securityContext"], container["securityContext"]
        uid = own.get("runAsUser", pod.get("runAsUser", image.uid))
        gid = own.get("runAsGroup", pod.get("runAsGroup", image.gid))
        if own.get("runAsNonRoot", pod.get("runAsNonRoot")):
            assert uid != 0, f"{container['name']} would be root"
        assert own["allowPrivilegeEscalation"] is False and own["capabilities"]["drop"] == ["ALL"]
        groups = [gid] + ([pod["fsGroup"]] if "fsGroup" in pod else []) + pod.get("supplementalGroups", [])
        variables = {one["name"]: one["value"] for one in container.get("env", [])}
        mounts = [(self._volumes[one["name"]], one["mountPath"], one.get("readOnly", False)) for one in container["volumeMounts"]]
        self.running[container["name"]] = Container(
            f"{self.name}-{container['name']}", image.root, container.get("command", image.command) + container.get("args", image.arguments),
            variables, uid, gid, groups, mounts + image.mounts, self.network, self._directory,
            read_only=own.get("readOnlyRootFilesystem", False) or image.root == "/")
        self.starts[container["name"]] = self.starts.get(container["name"], 0) + 1
        self.order.append(f"start {container['name']}")

    def start(self):
        """Init containers in order, each ready to go on when its startup probe is good; then the containers."""
        for container in self.spec.get("initContainers", []):
            assert container["restartPolicy"] == "Always"
            self._start(container)
            self._await_startup(container)
        for container in self.spec["containers"]:
            self._start(container)
        for container in self.spec["containers"]:
            self._await_startup(container)

    def _await_startup(self, container):
        probe = container.get("startupProbe")
        if probe:
            until(f"{container['name']} has started", lambda: self.probe(container["name"], "startupProbe"),
                  min(60, probe["periodSeconds"] * probe["failureThreshold"]), pause=0.05)
            self.order.append(f"started {container['name']}")

    def _container(self, name):
        return [one for one in self.spec.get("initContainers", []) + self.spec["containers"] if one["name"] == name][0]

    def probe(self, name, kind):
        """What a probe of a container says."""
        probe = self._container(name)[kind]
        return self.running[name].is_running() and self.running[name].execute(probe["exec"]["command"], probe["timeoutSeconds"])[0] == 0

    def restart(self, name):
        """After its end: a new process, the same volumes."""
        assert not self.running[name].is_running()
        self._start(self._container(name))
        self._await_startup(self._container(name))

    # --- end ---

    def delete(self):
        """The pod's end in good order. Gives each container's exit code."""
        deadline = time.monotonic() + self.spec["terminationGracePeriodSeconds"]
        turns = {}
        main = [one["name"] for one in self.spec["containers"]]
        later = list(main)
        for container in reversed(self.spec.get("initContainers", [])):
            turns[container["name"]] = list(later)
            later.append(container["name"])
        ends = [threading.Thread(target=self._end, args=(name, turns.get(name, []), deadline)) for name in later]
        for end in ends:
            end.start()
        for end in ends:
            end.join()
        return {name: container.wait(1) for name, container in self.running.items()}

    def _end(self, name, after, deadline):
        container = self.running[name]
        hook = self._container(name).get("lifecycle", {}).get("preStop", {})
        if "sleep" in hook:
            time.sleep(hook["sleep"]["seconds"])
        elif "exec" in hook:
            container.execute(hook["exec"]["command"], max(1, deadline - time.monotonic()))
        for other in after:
            _ended_by(self.running[other], deadline)
        container.kill(SIGTERM)
        if not _ended_by(container, deadline):
            container.kill(SIGKILL)
            _ended_by(container, time.monotonic() + 5)
        self.order.append(f"end {name}")

    def finish(self):
        """A Job's: the containers end by themselves, then those that run beside them are ended."""
        codes = {one["name"]: self.running[one["name"]].wait(60) for one in self.spec["containers"]}
        return self.delete() | codes

    def lose(self):
        """The node is gone: every process at once, and what was the pod's own on its disk. Claims are not the node's."""
        for container in self.running.values():
            container.kill(SIGKILL)
        for container in self.running.values():
            container.wait(5)
        self.remove()

    def remove(self):
        """What is left of a pod that has ended: nothing."""
        shutil.rmtree(os.path.join(self._directory, "volumes"), ignore_errors=True)


def _ended_by(container, deadline):
    """Whether it ends before the deadline."""
    while container.is_running():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def words(log):
    """A log's sentences, for a failure."""
    return re.sub(r"\s+", " ", log[-3000:])
