#!/usr/bin/env bash
# Interop: the real agent against Kinesis servers that others wrote, read back with clients and libraries that others
# wrote. Installs what it needs (Python and npm packages, pinned) into tests/interop/.work, then runs main.py.
#
#   tests/interop/run.sh               everything
#   tests/interop/run.sh --list        names of the scenarios
#   tests/interop/run.sh NAME...       only these
#   tests/interop/run.sh --full ...    manyreshards-* with 20 reshards instead of 6, and the KCL reading `off` too (10 minutes more)
#   FOREBAY_RESHARD_SEED=N             which reshards manyreshards-* does; default 4
#   FOREBAY_BIN=path                   the agent's binary; default target/debug/forebay, built if it is missing
#
# The Kinesis Client Library reads along, and the AWS SDK for Java writes to door-kinesis-*, where java and mvn are there and Maven
# answers; else a line says LEFT OUT.
# `browser` needs Chromium, or a line says LEFT OUT.
#
# The last line is "N passed, M failed"; the exit code is 0 only if M is 0.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$here/.work
mkdir -p "$work"

for tool in python3 node npm; do
    command -v "$tool" > /dev/null || { echo "tests/interop needs $tool" >&2; exit 1; }
done

stamp=$(cat "$here/requirements.txt" "$here/requirements-ministack.txt" "$here/package.json" | cksum; python3 --version; node --version)
if [ ! -f "$work/stamp" ] || [ "$(cat "$work/stamp")" != "$stamp" ]; then
    echo "installing Python and npm packages into $work"
    rm -rf "$work/venv" "$work/site" "$work/ministack" "$work/node_modules"
    if python3 -m venv "$work/venv" > /dev/null 2>&1; then
        "$work/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    else # Some distributions cut venv out of Python.
        rm -rf "$work/venv"
        python3 -m pip install --quiet --disable-pip-version-check --target "$work/site" -r "$here/requirements.txt"
    fi
    pip=(python3 -m pip)
    if [ -x "$work/venv/bin/pip" ]; then pip=("$work/venv/bin/pip"); fi
    "${pip[@]}" install --quiet --disable-pip-version-check --no-warn-conflicts --target "$work/ministack" -r "$here/requirements-ministack.txt"
    cp "$here/package.json" "$work/package.json"
    (cd "$work" && npm install --silent --no-audit --no-fund --no-package-lock)
    echo "$stamp" > "$work/stamp"
fi
python=python3
if [ -x "$work/venv/bin/python" ]; then python=$work/venv/bin/python; fi

if [ -z "${FOREBAY_BIN:-}" ]; then
    export FOREBAY_BIN=$root/target/debug/forebay
    [ -x "$FOREBAY_BIN" ] || (cd "$root" && cargo build --locked)
fi
PYTHONPATH=$work/site PYTHONDONTWRITEBYTECODE=1 exec "$python" -u "$here/main.py" "$@"
