"""What the chart and the kustomizations render, held to the schemas, the profile, the binary and each other. See run.sh."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time

import kubernetes_validate
import yaml

import render
from render import agent, config_map, helm, helm_refuses, kustomize, only, pod_spec, values, workload
from restricted import violations

BINARY = os.path.abspath(os.environ["FOREBAY_BIN"])
FORMS = ("native", "plain", "ephemeral", "statefulset", "job", "daemonset", "library", "everything")
# The overlay that says the same as the chart with a form's values.
TWINS = {"native": "base", "plain": "overlays/plain", "ephemeral": "overlays/ephemeral", "statefulset": "overlays/statefulset",
         "daemonset": "overlays/daemonset"}
VERSIONS = ("1.35.0", "1.36.0", "1.37.0")
BEGUN = time.monotonic()


def claim(text):
    """Says what is tested now."""
    print(f"{time.monotonic() - BEGUN:5.1f} s  {text}", flush=True)


def environment(container):
    """A container's variables."""
    return {one["name"]: one["value"] for one in container["env"]}


def seconds(text):
    """A time of the agent's, such as 20s."""
    return int(re.fullmatch(r"(\d+)s", text)[1])


def mib(text):
    """A size such as 3Gi or 2GiB."""
    number, unit = re.fullmatch(r"(\d+)([MGT])iB?", text).groups()
    return int(number) * {"M": 1, "G": 1 << 10, "T": 1 << 20}[unit]


def forebay(arguments, variables=()):
    """Runs the binary with no environment but this."""
    done = subprocess.run([BINARY, *arguments], capture_output=True, text=True, env=dict(variables), stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout + done.stderr


# --- all forms ------------------------------------------------------------------------------------------------------------


def schemas(name, objects):
    """Kubernetes' own, unknown fields refused."""
    for one in objects:
        if one["apiVersion"].startswith("monitoring.coreos.com/"):
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(one, version, strict=True)


def profile(name, objects):
    """Restricted, but for the DaemonSet, whose every violation is known."""
    found = violations(pod_spec(objects))
    if name != "daemonset":
        assert not found, found
        return
    assert sorted(found) == [
        "forebay: runAsNonRoot is not true", "forebay: runAsUser is 0",
        "volumes: forebay-socket is hostPath", "volumes: forebay-spool is hostPath"], found


def is_native(container):
    """The form that starts first and ends last."""
    return container.get("restartPolicy") == "Always"


def times(name, objects):
    """The grace period holds the application's end and the drain; hooks are where they belong."""
    spec = pod_spec(objects)
    container = agent(spec)
    drain = seconds(environment(container)["FOREBAY_DRAIN_TIMEOUT"])
    hook = container.get("lifecycle", {}).get("preStop", {})
    waits = hook.get("sleep", {}).get("seconds", 0)
    assert spec["terminationGracePeriodSeconds"] >= drain + max(waits, 0 if name == "daemonset" else 30) + 10
    if is_native(container):
        assert not hook, "a hook of a native sidecar runs while the application still sends"
        assert container in spec["initContainers"]
    elif name != "daemonset":
        assert waits >= 30 and container in spec["containers"] and "restartPolicy" not in container
        assert not spec.get("initContainers")


def volumes(name, objects):
    """Each mount has its volume; the spool fits in its own."""
    spec, made = pod_spec(objects), workload(objects)["spec"]
    container = agent(spec)
    named = {one["name"]: one for one in spec["volumes"]}
    claims = {one["metadata"]["name"]: one["spec"] for one in made.get("volumeClaimTemplates", [])}
    for one in spec.get("initContainers", []) + spec["containers"]:
        for mount in one["volumeMounts"]:
            assert (mount["name"] in named) != (mount["name"] in claims), mount
    places = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    variables = environment(container)
    assert places[variables["FOREBAY_SPOOL__DIR"]] == "forebay-spool"
    assert places[os.path.dirname(variables["FOREBAY_LISTEN__SOCKET"])] == "forebay-socket"
    assert container["securityContext"]["readOnlyRootFilesystem"]
    spool = named.get("forebay-spool", {})
    claim_spec = claims.get("forebay-spool") or spool.get("ephemeral", {}).get("volumeClaimTemplate", {}).get("spec")
    size = spool.get("emptyDir", {}).get("sizeLimit") or (claim_spec and claim_spec["resources"]["requests"]["storage"])
    if size:
        assert mib(size) > mib(variables["FOREBAY_SPOOL__MAX_BYTES"]) + mib(variables["FOREBAY_SPOOL__DEAD_MAX_BYTES"])
    asked = container["resources"]["requests"]
    assert ("ephemeral-storage" in asked) == ("emptyDir" in spool) and asked["memory"] == "64Mi"


def commands(name, objects):
    """Probes, hooks and arguments are the binary's, and parse."""
    container = agent(pod_spec(objects))
    found = [container["args"]]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if probe in container:
            path, *arguments = container[probe]["exec"]["command"]
            assert path == "/usr/bin/forebay"
            assert container[probe]["timeoutSeconds"] > 5, "forebay status itself gives up after 5 s"
            found.append(arguments)
    for arguments in found:
        code, text = forebay([*arguments, "--help"])
        assert code == 0, f"{arguments}: {text}"
    # Ready is another question than alive.
    assert "--quiet" in container["startupProbe"]["exec"]["command"]
    assert "--quiet" not in container["livenessProbe"]["exec"]["command"]


def configuration(name, objects):
    """The ConfigMap's file with the container's environment is one that the binary takes, and leaves nothing to mend."""
    spec = pod_spec(objects)
    container = agent(spec)
    text = config_map(objects, spec)["data"]["forebay.toml"]
    with tempfile.TemporaryDirectory(dir=render.WORK) as place:
        with open(os.path.join(place, "write-keys"), "w") as file:
            file.write("a-write-key\n")
        with open(os.path.join(place, "encryption-key"), "w") as file:
            file.write("00" * 32)
        path = os.path.join(place, "forebay.toml")
        with open(path, "w") as file:
            file.write(text.replace("/etc/forebay-secrets", place))
        variables = environment(container) | {"FOREBAY_CONFIG": path}
        code, shown = forebay(["config", "--json"], variables)
        assert code == 0, shown
        shown = json.loads(shown)
        assert shown["drain_timeout"]["origin"] != "default" and shown["listen"]["admin"]["value"] == "127.0.0.1:4711"
        # The disk of this machine, in place of the volume.
        variables |= {"FOREBAY_SPOOL__DIR": place, "FOREBAY_SPOOL__MAX_BYTES": "256MiB"}
        code, found = forebay(["check", "--local"], variables)
        assert code == 0 and "✗" not in found, found


def has_metrics_listener():
    """Whether this binary has `listen.metrics`."""
    code, shown = forebay(["config", "--json", "--stream", "s"])
    assert code == 0, shown
    return "metrics" in json.loads(shown)["listen"]


def all_forms():
    """Everything that holds for each form, of the chart and of kustomize."""
    metrics = has_metrics_listener()
    for name in FORMS:
        claim(f"chart, {name}")
        render.helm_lint(name)
        objects = helm(name)
        schemas(name, objects)
        if name == "library":
            assert [one["kind"] for one in objects] == ["ServiceAccount", "ConfigMap"]
            continue
        for check in (profile, times, volumes, commands):
            check(name, objects)
        if name == "everything" and not metrics:
            print("        SKIPPED: the binary has no listen.metrics; the form that has metrics on is not checked against it")
            flags = ("--set", "metrics.enabled=false", "--set", "metrics.podMonitor.enabled=false")
            configuration(name, helm(name, *flags))
        else:
            configuration(name, objects)
    for name, directory in TWINS.items():
        claim(f"kustomize, {directory}")
        objects = kustomize(directory)
        schemas(name, objects)
        for check in (profile, times, volumes, commands, configuration):
            check(name, objects)
        same(helm(name), objects)


# --- chart and kustomize say the same -------------------------------------------------------------------------------------


def plain(spec):
    """A workload's spec without names that differ and without the order of what has names."""
    spec = json.loads(json.dumps(spec))
    spec.pop("selector")
    template = spec.pop("template")["spec"]
    for container in template.get("initContainers", []) + template["containers"]:
        container["env"] = {one["name"]: one["value"] for one in container.get("env", [])}
    for volume in template["volumes"]:
        volume.get("configMap", {}).pop("name", None)
    template["volumes"] = {one["name"]: one for one in template["volumes"]}
    template["containers"] = {one["name"]: one for one in template["containers"]}
    return spec | {"pod": template}


def same(chart, kustomized):
    """The workload is equal in all but labels."""
    one, other = workload(chart), workload(kustomized)
    assert one["kind"] == other["kind"]
    one, other = plain(one["spec"]), plain(other["spec"])
    assert one == other, f"\n{yaml.dump(one)}\n--- is not\n{yaml.dump(other)}"
    left, right = (pod_spec(objects) for objects in (chart, kustomized))
    assert agent(left)["image"] == agent(right)["image"]


# --- details --------------------------------------------------------------------------------------------------------------


def everything():
    """Values that are off by default do what they say."""
    claim("what is off by default is there when it is asked for")
    objects = helm("everything")
    spec = pod_spec(objects)
    container = agent(spec)
    assert container["image"].startswith("example/forebay@sha256:")
    assert container["ports"] == [{"name": "forebay-metrics", "containerPort": 9400, "protocol": "TCP"}]
    assert environment(container)["FOREBAY_LISTEN__METRICS"] == "0.0.0.0:9400"
    assert environment(container)["FOREBAY_LISTEN__HTTP"] == "" and "readinessProbe" not in container
    labels = workload(objects)["spec"]["template"]["metadata"]["labels"]
    monitor = only(objects, "PodMonitor")
    assert set(monitor["spec"]["selector"]["matchLabels"].items()) <= set(labels.items())
    assert [one["port"] for one in monitor["spec"]["podMetricsEndpoints"]] == ["forebay-metrics"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    policy = only(objects, "NetworkPolicy")["spec"]
    assert set(policy["podSelector"]["matchLabels"].items()) <= set(labels.items())
    assert policy["policyTypes"] == ["Egress", "Ingress"] and len(policy["ingress"]) == 2
    assert {port["port"] for rule in policy["egress"] for port in rule.get("ports", [])} == {53, 80, 443}
    account = only(objects, "ServiceAccount")
    assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] and account["metadata"]["name"] == spec["serviceAccountName"]
    (secret,) = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
    assert secret["defaultMode"] == 0o440
    assert "ServiceAccount" not in [one["kind"] for one in helm("native", "--set", "serviceAccount.create=false")]
    policy = only(helm("native", "--set", "networkPolicy.enabled=true"), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Egress"], "what comes in is the application's affair"
    policy = only(helm("daemonset", "--set", "networkPolicy.enabled=true"), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Egress", "Ingress"] and policy["ingress"] == []

    claim("a changed configuration starts new pods, a new chart alone does not")
    template = lambda *flags: workload(helm("native", *flags))["spec"]["template"]
    assert template("--set-string", "config=[[stream]]\nname = \"other\"")["metadata"] != template()["metadata"]
    assert "helm.sh/chart" not in json.dumps(template())

    claim("versions and the image's user agree")
    cargo = open(os.path.join(render.ROOT, "Cargo.toml")).read()
    version = re.search(r'^version = "(.*)"$', cargo, re.M)[1]
    chart = yaml.safe_load(open(os.path.join(render.CHART, "Chart.yaml")))
    assert chart["appVersion"] == version and agent(pod_spec(kustomize("base")))["image"] == f"forebay:{version}"
    user = re.search(r"^USER (\d+):(\d+)$", open(os.path.join(render.ROOT, "packaging", "docker", "Dockerfile")).read(), re.M)
    context = agent(pod_spec(helm("native")))["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert pod_spec(helm("native"))["securityContext"]["fsGroup"] == int(user[2])

    claim("every value has its place in the schema, and the other way round")
    schema = json.load(open(os.path.join(render.CHART, "values.schema.json")))
    known(schema, yaml.safe_load(open(os.path.join(render.CHART, "values.yaml"))), "")

    claim("NOTES name what is to be done, and what a lost pod loses")
    assert "is lost" in render.helm_notes("native") and "forebay-socket" in render.helm_notes("native")
    assert "is lost" not in render.helm_notes("statefulset")
    assert "privileged" in render.helm_notes("daemonset") and "docs/KUBERNETES.md" in render.helm_notes("library")


def known(schema, defaults, path):
    """Each object of the schema is closed, and has the keys of the defaults."""
    if not schema.get("properties") or not isinstance(defaults, dict):
        return
    assert schema["additionalProperties"] is False, path
    assert set(schema["properties"]) - {"global"} == set(defaults), f"{path}: {set(schema['properties']) ^ set(defaults)}"
    for key, value in defaults.items():
        known(schema["properties"][key], value, f"{path}.{key}")


def refusals():
    """What is wrong is refused, and the text says where and why."""
    claim("wrong values are refused, and the text says which")
    for flag, *texts in (
        ("image.colour=red", "/image", "colour"),
        ("drainSeconds=soon", "/drainSeconds", "integer"),
        ("spool.size=lots", "/spool/size", "pattern"),
        ("spool.kind=floppy", "/spool/kind", "emptyDir"),
        ("workload.kind=Deploy", "/workload/kind", "DaemonSet"),
        ("metrics.port=80", "/metrics/port", "minimum"),
        ("image.digest=abc", "/image/digest", "pattern"),
        ("config=", "config: it names no [[stream]]"),
        ("spool.size=2Gi", "spool.size: 2Gi", "2560 MiB"),
        ("workload.kind=Deployment,spool.kind=claim", "spool.kind: claim needs workload.kind StatefulSet"),
        ("workload.kind=Deployment,spool.kind=hostPath", "hostPath goes with workload.kind DaemonSet"),
        ("workload.kind=DaemonSet", "hostPath goes with workload.kind DaemonSet"),
        ("workload.kind=Job,sidecar.native=false", "a Job needs the native form"),
        ("workload.kind=Deployment,workload.containers=null", "a Deployment needs your containers"),
        ("workload.kind=Deployment,workload.containers[0].name=forebay,workload.containers[0].image=x", "the name forebay is the agent's"),
        ("metrics.podMonitor.enabled=true", "nothing to read without metrics.enabled"),
        ("env[0].name=FOREBAY_SPOOL__DIR,env[0].value=/x", "env: the chart sets FOREBAY_SPOOL__DIR itself"),
    ):
        told = helm_refuses("--set", flag)
        for text in texts:
            assert text in told, f"{flag}: {told}"


def including():
    """A chart of a user's own, with this one as its dependency."""
    claim("a chart that includes the sidecar has the same container")
    own = os.path.join(render.WORK, "including")
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(os.path.join(render.HERE, "including"), own)
    shutil.copytree(render.CHART, os.path.join(own, "charts", "forebay"))
    settings = yaml.safe_load(open(values("base")))
    del settings["workload"]
    settings["spool"] = {"kind": "claim", "size": "20Gi", "maxBytes": "15GiB"}
    path = os.path.join(render.WORK, "including.yaml")
    with open(path, "w") as file:
        yaml.safe_dump({"forebay": settings}, file)
    done = subprocess.run(["helm", "template", "shop", own, "--kube-version", "1.37.0", "--values", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    objects = [one for one in yaml.safe_load_all(done.stdout) if one]
    schemas("including", objects)
    assert agent(pod_spec(objects)) == agent(pod_spec(helm("statefulset")))
    for check in (times, volumes):
        check("including", objects)
    assert config_map(objects, pod_spec(objects))


if __name__ == "__main__":
    all_forms()
    everything()
    refusals()
    including()
    claim("all rendered forms are good")
