#!/usr/bin/env bash
# The Helm chart and the kustomize manifests: rendered in all forms, held to Kubernetes' schemas, to the Pod Security profile "restricted",
# to each other and to the binary; then a pod's life with real processes, as the rendered manifests say, in namespaces of its own: start
# order, probes, kill -9, the end of each form, and the loss of a node with each kind of volume, with every event counted.
#
#   tests/kubernetes/run.sh            about 1 minute; the first time some minutes more, because helm is compiled
#   tests/kubernetes/run.sh --static   without the pods' lives, which need root and namespaces
#   tests/kubernetes/run.sh --prepare  only fetches and compiles
#
# FOREBAY_BIN: the agent's binary, instead of target/debug/forebay. Needs Python, and Go for helm (and for kustomize, where kubectl is not
# there); without Go it says SKIPPED and ends well. What it fetches and compiles stays in tests/kubernetes/.work.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$here/.work
mkdir -p "$work/bin"
helm=v3.19.5
kustomize=v5.8.1

skip() {
    echo "SKIPPED: tests/kubernetes: $*" >&2
    exit 0
}

command -v python3 > /dev/null || skip "python3 is not installed"
# install VERSION MODULE FLAGS...: compiles a command once.
install() {
    local version=$1 module=$2 name
    name=$(basename "${module%/v5}")
    shift 2
    if [ ! -x "$work/bin/$name" ] || [ "$(cat "$work/bin/$name.version" 2> /dev/null)" != "$version" ]; then
        command -v go > /dev/null || skip "go is not installed, which compiles $name"
        echo "compiling $name $version"
        GOBIN=$work/bin go install -trimpath "$@" "$module@$version" 2> "$work/$name.log" || { tail -n 5 "$work/$name.log" >&2; skip "$name cannot be compiled"; }
        echo "$version" > "$work/bin/$name.version"
    fi
}
# What it takes for the cluster's version, where nobody says one.
pretended=helm.sh/helm/v3/pkg/chartutil.k8sVersion
install "$helm" helm.sh/helm/v3/cmd/helm -ldflags="-s -w -X ${pretended}Major=1 -X ${pretended}Minor=35"
kubectl kustomize --help > /dev/null 2>&1 || install "$kustomize" sigs.k8s.io/kustomize/kustomize/v5

. "$root/tests/container/python_packages.sh"
[ "${1:-}" != --prepare ] || exit 0
if [ -z "${FOREBAY_BIN:-}" ]; then
    export FOREBAY_BIN=$root/target/debug/forebay
    [ -x "$FOREBAY_BIN" ] || (cd "$root" && cargo build --locked)
fi
export PYTHONDONTWRITEBYTECODE=1 PATH=$work/bin:$PATH
"$work/venv/bin/python" -u "$here/rendered.py"
[ "${1:-}" != --static ] || exit 0

[ "$(id -u)" -eq 0 ] || skip "the pods' lives: they need root"
for tool in unshare ldd strip dpkg-query; do
    command -v "$tool" > /dev/null || skip "the pods' lives: $tool is not installed"
done
unshare --mount --pid --net --uts --ipc --fork true 2> /dev/null || skip "the pods' lives: namespaces cannot be made here"
[ -x /usr/bin/python3 ] || skip "the pods' lives: there is no /usr/bin/python3 for the application"
# The first process of a process namespace: whatever it started ends with it.
exec unshare --mount --pid --fork --kill-child --mount-proc "$work/venv/bin/python" -u "$here/life.py"
