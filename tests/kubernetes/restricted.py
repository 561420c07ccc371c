"""The Pod Security profile "restricted", as Kubernetes' page "Pod Security Standards" lists it
(https://kubernetes.io/docs/concepts/security/pod-security-standards/), each control a line that says what a pod does against it.
Windows' controls are left out.
"""

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"}
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def violations(spec):
    """What in a pod's spec the profile forbids; empty for a pod that it admits."""
    found = [f"hostNamespaces: {name}" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    pod = spec.get("securityContext", {})
    for sysctl in pod.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            found.append(f"sysctls: {sysctl['name']}")
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            found.append(f"volumes: {volume['name']} is {', '.join(kinds)}")
    for container in spec.get("initContainers", []) + spec["containers"] + spec.get("ephemeralContainers", []):
        found += [f"{container['name']}: {text}" for text in _container(container, pod)]
    return found


def _container(container, pod):
    own = container.get("securityContext", {})
    if own.get("privileged"):
        yield "privileged"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities: ALL are not dropped"
    if not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}:
        yield "capabilities: some are added"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "hostPort"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if 0 in (own.get("runAsUser"), pod.get("runAsUser")):
        yield "runAsUser is 0"
    if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile is not RuntimeDefault"
    for context in (own, pod):
        if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
            yield "appArmorProfile"
        linux = context.get("seLinuxOptions", {})
        if linux.get("type", "") not in SELINUX or linux.get("user") or linux.get("role"):
            yield "seLinuxOptions"
    hooks = list(container.get("lifecycle", {}).values())
    for probe in hooks + [container.get(name, {}) for name in ("livenessProbe", "readinessProbe", "startupProbe")]:
        if any(probe.get(kind, {}).get("host") for kind in ("httpGet", "tcpSocket")):
            yield "a probe or hook names a host"
