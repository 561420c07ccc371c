# Sourced by a run.sh: what $here/requirements.txt lists is in $work/venv, installed anew when the list or Python has changed.
stamp=$(cksum < "$here/requirements.txt"; python3 --version)
if [ ! -f "$work/stamp" ] || [ "$(cat "$work/stamp")" != "$stamp" ]; then
    echo "installing Python packages into $work"
    rm -rf "$work/venv"
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    echo "$stamp" > "$work/stamp"
fi
