"""A container runtime by hand, for machines without an engine: what is between an image's root and a running process.

A container has mount, process, IPC and host-name namespaces of its own, the network of its pod, the image's root (read-only where
asked for), volumes on it, a uid with its groups, no capability, and no way to get one. `Container.execute` runs a second process in
it, as probes and hooks do. What is not here: cgroups, seccomp, user namespaces.

Place: `tests/container/main.py` runs the image with it, `tests/kubernetes/kubelet.py` builds pods of it. As a program of its own
(`python3 runtime.py start|enter`, a JSON object on stdin) it is the process between the test and the container. Needs root. Everything
ends with the test: run.sh starts it as the first process of a process namespace.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

# From linux/sched.h, linux/mount.h, linux/prctl.h.
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = (
    1, 2, 4, 8, 32, 4096, 8192, 16384, 1 << 18)
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 23, 24, 38, 47, 4
DEVICES = ("null", "zero", "full", "random", "urandom")
HERE = os.path.abspath(__file__)
sys.path.append(os.path.join(os.path.dirname(os.path.dirname(HERE)), "interop"))

from waiting import until  # noqa: E402

_libc = ctypes.CDLL(None, use_errno=True)


# --- in the process between -----------------------------------------------------------------------------------------------


def _call(what, result):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source, target, kind, flags, data=None):
    texts = [text.encode() if text is not None else None for text in (source, target, kind)]
    _call(f"mount {target}", _libc.mount(*texts, ctypes.c_ulong(flags), data.encode() if data else None))


def _join(path, kind):
    handle = os.open(path, os.O_RDONLY)
    _call(f"setns {path}", _libc.setns(handle, kind))
    os.close(handle)


def _become(spec):
    """Gives up what root may do, and turns into the command."""
    capability = 0
    while _libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        _call("prctl", _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
        capability += 1
    os.umask(0o022)
    os.setgroups(spec["groups"])
    os.setresgid(spec["gid"], spec["gid"], spec["gid"])
    os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _call("prctl", _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    os.chdir(spec["cwd"])
    # Python ignores these two, and an ignored signal stays so over exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execve(spec["command"][0], spec["command"], spec["env"])


def _build(spec):
    """The file system as the container sees it, then `/`."""
    root = spec["mount_point"]
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount(spec["root"], root, None, MS_BIND | (MS_REC if spec["root"] == "/" else 0))
    for path in spec["tmpfs"]:
        _mount("tmpfs", root + path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    _mount("proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if spec["root"] != "/":
        _mount("tmpfs", root + "/dev", "tmpfs", MS_NOSUID, "mode=755")
        for name in DEVICES:
            open(f"{root}/dev/{name}", "wb").close()
            _mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    for volume in spec["volumes"]:
        target = root + volume["path"]
        os.makedirs(target, exist_ok=True)
        _mount(volume["source"], target, None, MS_BIND)
        if volume["read_only"]:
            _mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY)
    if spec["read_only"]:
        _mount(None, root, None, MS_REMOUNT | MS_BIND | MS_RDONLY)
    os.chdir(root)
    _mount(".", "/", None, MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def _end_as(pid):
    """Waits for the child and ends as it did."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _start(spec):
    _join(spec["network"], CLONE_NEWNET)
    _call("unshare", _libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS))
    pid = os.fork()
    if pid == 0:
        socket.sethostname(spec["host"])
        _build(spec)
        _become(spec)
    with open(spec["pid_file"] + ".new", "w") as file:
        file.write(str(pid))
    os.rename(spec["pid_file"] + ".new", spec["pid_file"])
    _end_as(pid)


def _enter(spec):
    namespaces = f"/proc/{spec['pid']}/ns/"
    handles = [os.open(namespaces + name, os.O_RDONLY) for name in ("ipc", "uts", "net", "pid", "mnt")]
    for handle in handles:
        _call("setns", _libc.setns(handle, 0))
        os.close(handle)
    pid = os.fork()
    if pid == 0:
        _become(spec)
    _end_as(pid)


# --- in the test ----------------------------------------------------------------------------------------------------------


class Network:
    """A network namespace with a loopback interface, held open by a descriptor; nothing leads out of it."""

    def __init__(self):
        self._descriptor = self._inside(self._make)
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @staticmethod
    def _make():
        with socket.socket() as any_socket:
            request = struct.pack("16sH14x", b"lo", 1 | 64)  # IFF_UP | IFF_RUNNING
            fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def _inside(self, action, path=None):
        """Runs `action` in a new namespace, or in this one, and comes back."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            if path is None:
                _call("unshare", _libc.unshare(CLONE_NEWNET))
            else:
                _join(path, CLONE_NEWNET)
            return action()
        finally:
            _call("setns", _libc.setns(home, CLONE_NEWNET))
            os.close(home)

    def listen(self, port):
        """A socket that listens in this namespace. It belongs there, whoever holds it."""
        return self._inside(lambda: socket.create_server(("127.0.0.1", port), backlog=64), self.path)

    def connect(self, port):
        """A connection within this namespace."""
        return self._inside(lambda: socket.create_connection(("127.0.0.1", port), timeout=10), self.path)

    def refuses(self, port):
        """Whether nobody listens at a port."""
        try:
            self.connect(port).close()
            return False
        except ConnectionRefusedError:
            return True


class Container:
    """A process in a container. `volumes` are (source, path, read_only); `root` is copied (by links), or "/" for this machine's own."""

    def __init__(self, name, root, command, env, uid, gid, groups, volumes, network, work, read_only=True):
        self.name = name
        self.log_path = os.path.join(work, f"{name}.log")
        self._spec = {"uid": uid, "gid": gid, "groups": groups, "env": env, "cwd": "/"}
        self._pid_file = os.path.join(work, f"{name}.pid")
        mount_point = os.path.join(work, f"{name}.root")
        if root != "/":
            shutil.rmtree(mount_point + ".image", ignore_errors=True)
            subprocess.run(["cp", "-al", root, mount_point + ".image"], check=True)
            root = mount_point + ".image"
        os.makedirs(mount_point, exist_ok=True)
        volumes = [{"source": source, "path": path, "read_only": ro} for source, path, ro in volumes]
        tmpfs = ["/run", "/tmp"] if root == "/" else []
        spec = self._spec | {
            "root": root, "mount_point": mount_point, "volumes": volumes, "tmpfs": tmpfs, "read_only": read_only,
            "network": network.path, "host": name, "pid_file": self._pid_file, "command": command}
        if os.path.exists(self._pid_file):
            os.remove(self._pid_file)
        with open(self.log_path, "ab") as log:
            self._process = _helper("start", spec, stdout=log, stderr=log)
        self.pid = until(f"{name} starts", self._read_pid, 10)

    def _read_pid(self):
        if self._process.poll() is not None and not os.path.exists(self._pid_file):
            raise AssertionError(f"{self.name} did not start: {self.log()[-2000:]}")
        return os.path.exists(self._pid_file) and int(open(self._pid_file).read())

    def execute(self, command, timeout=30):
        """Runs a command in it, as its user. Gives exit code and output."""
        spec = self._spec | {"pid": self.pid, "command": command}
        process = _helper("enter", spec, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return 124, "no answer in time"
        return process.returncode, output.decode()

    def kill(self, number):
        """Sends a signal to its first process."""
        if self.is_running():
            os.kill(self.pid, number)

    def is_running(self):
        """Whether its first process runs."""
        return self._process.poll() is None

    def wait(self, seconds):
        """Its exit code (128 + N after signal N); fails when it has not ended in time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end in {seconds} s: {self.log()[-2000:]}") from None

    def log(self):
        """What it printed."""
        with open(self.log_path, errors="replace") as file:
            return file.read()


def _helper(mode, spec, stdout, stderr):
    process = subprocess.Popen([sys.executable, HERE, mode], stdin=subprocess.PIPE, stdout=stdout, stderr=stderr)
    process.stdin.write(json.dumps(spec).encode())
    process.stdin.close()
    process.stdin = None
    return process


if __name__ == "__main__":
    given = json.load(sys.stdin)
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    {"start": _start, "enter": _enter}[sys.argv[1]](given)
