#!/usr/bin/env bash
# The container image without a container engine: the Dockerfile is read and judged, its root is assembled by the script that it calls,
# and what its last lines say is run in namespaces of its own: read-only root, no shell, no capability, two volumes. Then: events through
# socket and HTTP, the health check, kill -9, SIGTERM, each with nothing lost.
#
#   tests/container/run.sh           about 20 s; the first time half a minute more for two Python packages
#   tests/container/run.sh --full    the list of contents (SBOM) too; compiles cargo-cyclonedx once, some minutes
#
# FOREBAY_BIN: the binary for the image, instead of target/debug/forebay. Needs root and namespaces; where these are not to be had it says
# SKIPPED and ends well. Where docker or another engine runs, `docker build` is the better test of the first stage.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$here/.work
mkdir -p "$work"

skip() {
    echo "SKIPPED: tests/container: $*" >&2
    exit 0
}

[ "$(id -u)" -eq 0 ] || skip "it needs root"
for tool in unshare ldd strip dpkg-query python3; do
    command -v "$tool" > /dev/null || skip "$tool is not installed"
done
unshare --mount --pid --net --uts --ipc --fork true 2> /dev/null || skip "namespaces cannot be made here"
[ -s /etc/ssl/certs/ca-certificates.crt ] || skip "there are no root certificates (package ca-certificates)"

. "$root/tests/container/python_packages.sh"
if [ "${1:-}" = --full ] && [ ! -x "$work/cyclonedx/bin/cargo-cyclonedx" ]; then
    version=$(sed -n 's/^ARG CYCLONEDX_VERSION=//p' "$root/packaging/docker/Dockerfile")
    cargo install --quiet --locked --root "$work/cyclonedx" cargo-cyclonedx --version "$version"
fi
if [ -z "${FOREBAY_BIN:-}" ]; then
    export FOREBAY_BIN=$root/target/debug/forebay
    [ -x "$FOREBAY_BIN" ] || (cd "$root" && cargo build --locked)
fi
# The first process of a process namespace: whatever it started ends with it.
export PYTHONDONTWRITEBYTECODE=1
exec unshare --mount --pid --fork --kill-child --mount-proc "$work/venv/bin/python" -u "$here/main.py" "$@"
