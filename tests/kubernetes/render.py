"""Renders the chart and the kustomizations, and finds things in what comes out."""

import os
import shutil
import subprocess

import yaml

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
WORK = os.path.join(HERE, ".work")
MANIFESTS = os.path.join(ROOT, "packaging", "kubernetes")
CHART = os.path.join(MANIFESTS, "chart")
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


def values(name):
    """A file of values of the tests."""
    return os.path.join(HERE, "values", f"{name}.yaml")


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def helm(form, *more, chart=CHART, version="1.37.0"):
    """The chart's objects with the tests' values of a form, and more flags."""
    files = ["--values", values("base"), "--values", values(form)]
    code, out, err = _run(["helm", "template", "forebay", chart, "--namespace", "apps", "--kube-version", version, *files, *more])
    assert code == 0, err
    return [one for one in yaml.safe_load_all(out) if one]


def helm_refuses(*flags):
    """What helm says against values."""
    code, _, err = _run(["helm", "template", "forebay", CHART, "--kube-version", "1.37.0", "--values", values("base"), *flags])
    assert code != 0, f"taken: {flags}"
    return err


def helm_notes(form):
    """What `helm install` tells a person. It would ask a cluster first, so that the text is rendered as a template among the others."""
    copy = os.path.join(WORK, "notes")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(CHART, copy)
    notes = os.path.join(copy, "templates", "NOTES.txt")
    with open(notes) as file:
        text = file.read()
    os.remove(notes)
    with open(os.path.join(copy, "templates", "notes.yaml"), "w") as file:
        file.write('{{- define "notes" -}}\n' + text + '{{- end }}\nkind: Notes\ntext: {{ include "notes" . | quote }}\n')
    return only(helm(form, chart=copy), "Notes")["text"]


def helm_lint(form):
    """helm's own judgement."""
    code, out, err = _run(["helm", "lint", "--strict", CHART, "--kube-version", "1.37.0", "--values", values("base"), "--values", values(form)])
    assert code == 0, out + err


def kustomize(directory):
    """A kustomization's objects."""
    path = os.path.join(MANIFESTS, directory)
    command = ["kustomize", "build", path] if shutil.which("kustomize") else ["kubectl", "kustomize", path]
    code, out, err = _run(command)
    assert code == 0, err
    return [one for one in yaml.safe_load_all(out) if one]


def only(objects, *kinds):
    """The one object of these kinds."""
    found = [one for one in objects if one["kind"] in kinds]
    assert len(found) == 1, f"{len(found)} of {kinds}"
    return found[0]


def workload(objects):
    """The object that makes pods."""
    return only(objects, *WORKLOADS)


def pod_spec(objects):
    """The pod's spec."""
    return workload(objects)["spec"]["template"]["spec"]


def agent(spec):
    """The agent's container of a pod, wherever it stands."""
    found = [one for one in spec.get("initContainers", []) + spec["containers"] if one["name"] == "forebay"]
    assert len(found) == 1, f"{len(found)} containers are the agent's"
    return found[0]


def config_map(objects, spec):
    """The ConfigMap that the pod names."""
    (name,) = [volume["configMap"]["name"] for volume in spec["volumes"] if volume["name"] == "forebay-config"]
    return [one for one in objects if one["kind"] == "ConfigMap" and one["metadata"]["name"] == name][0]
