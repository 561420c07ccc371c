#!/usr/bin/env bash
# Installs the Debian package for real: in a Debian of its own, booted by systemd-nspawn, from the installation to the purge. In between: the
# activated socket, reload, kill -9, a hang, 20 restarts and an upgrade under load, in which no connection may be refused and no event lost.
#
#   tests/packaging/run.sh           builds what it needs (debug profile) and runs; about 3 minutes, the first time 2 more
#   tests/packaging/run.sh --full    also with cargo-deb's own package, lintian, and the RPM, whose tools it compiles once (minutes)
#
# FOREBAY_BIN: the binary to package, instead of target/debug/forebay. Needs root, systemd-nspawn, debootstrap and a Debian archive that
# apt-get is set up for; where one of these is not to be had it says SKIPPED and ends well. What it fetches stays in
# tests/packaging/.work. The guest has no network but loopback: Kinesis is a process in it (tests/packaging/peer.rs).
set -euo pipefail
cd "$(dirname "$0")/../.."
full=""
[ "${1:-}" != --full ] || full=yes
work=$PWD/tests/packaging/.work
target=${CARGO_TARGET_DIR:-target}
guest=$work/guest
leader=""
nspawn=""
mkdir -p "$work"

skip() {
    echo "SKIPPED: tests/packaging: $*" >&2
    exit 0
}

[ "$(id -u)" -eq 0 ] || skip "it needs root"
for tool in systemd-nspawn debootstrap dpkg-deb nsenter strip python3; do
    command -v "$tool" > /dev/null || skip "$tool is not installed"
done
unshare --mount --pid --net --uts --ipc --fork true 2> /dev/null || skip "namespaces cannot be made here"

# The whole guest ends with its first process.
finish() {
    local code=$?
    if [ "$code" -ne 0 ] && [ -n "$leader" ]; then
        echo "FAILED in: ${claim:-start}; the end of the guest's journal:" >&2
        inside journalctl --no-pager -n 60 >&2 || true
        inside cat /root/load.out /root/load.err >&2 || true
    fi
    stop_guest
    exit "$code"
}
trap finish EXIT

stop_guest() {
    [ -n "$nspawn" ] || return 0
    # SIGKILL to the guest's init takes everything in it along.
    [ -z "$leader" ] || kill -KILL "$leader" 2> /dev/null || true
    wait "$nspawn" 2> /dev/null || true
    nspawn="" leader=""
}

# inside COMMAND...: runs it in the guest.
inside() {
    nsenter --target "$leader" --all -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C.UTF-8 "$@"
}

claim() {
    claim=$1
    printf '%4d s  %s\n' "$SECONDS" "$claim"
}

fail() {
    echo "not so: $claim: $*" >&2
    exit 1
}

# wait_for SECONDS WHAT COMMAND...: polls until the command succeeds.
wait_for() {
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" > /dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || fail "waited too long for $what"
        sleep 0.1
    done
}

is_active() { [ "$(inside systemctl is-active "${1:-forebay.service}")" = active ]; }
main_pid() { inside systemctl show --property MainPID --value forebay.service; }
restarts() { inside systemctl show --property NRestarts --value forebay.service; }
told() { inside journalctl --no-pager --quiet -u forebay.service --grep "$1"; }

# --- what is tested -------------------------------------------------------------------------------------------------------

claim "the binary, man pages and completions, and the peer are built"
if [ -z "${FOREBAY_BIN:-}" ]; then
    cargo build --locked --quiet
    FOREBAY_BIN=$target/debug/forebay
fi
cargo build --locked --quiet --examples
rm -rf target/packaging
"$target/debug/examples/cli_files" target/packaging
python3 tests/packaging/deb_from_metadata.py "$FOREBAY_BIN" 0.1.0-1 "$work/forebay-1.deb"
python3 tests/packaging/deb_from_metadata.py "$FOREBAY_BIN" 0.1.1-1 "$work/forebay-2.deb"
if [ -n "$full" ]; then
    . tests/packaging/full.sh
fi

if [ ! -e "$work/debian/etc/debian_version" ]; then
    claim "a small Debian is fetched"
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 2> /dev/null | sort -u | grep -v -e '-security' -e '-updates' -e '-backports' | head -n 1)
    [ -n "$mirror" ] || skip "apt-get knows no Debian archive"
    rm -rf "$work/debian.new"
    # Unquoted: the archive's address and the release's name.
    set -- $mirror
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,init-system-helpers,ca-certificates "$2" "$work/debian.new" "$1" > "$work/debootstrap.log" 2>&1 ||
        skip "debootstrap fails, see $work/debootstrap.log"
    mv "$work/debian.new" "$work/debian"
fi

claim "it boots"
rm -rf "$guest"
cp -a --reflink=auto "$work/debian" "$guest"
cp "$work/forebay-1.deb" "$work/forebay-2.deb" "$guest/root/"
strip -o "$guest/usr/local/bin/peer" "$target/debug/examples/packaging_peer"
systemd-nspawn --quiet --boot --register=no --keep-unit --private-network --directory="$guest" --machine=forebay-test < /dev/null > "$work/boot.log" 2>&1 &
nspawn=$!
# Its child on the way there is still in our namespaces, and must not be entered.
find_leader() {
    leader=$(pgrep --parent "$nspawn" --exact systemd | head -n 1)
    [ -n "$leader" ] && [ "$(readlink "/proc/$leader/ns/pid")" != "$(readlink /proc/self/ns/pid)" ]
}
for _ in $(seq 300); do find_leader && break || leader=""; sleep 0.1; done
[ -n "$leader" ] || { tail -n 5 "$work/boot.log" >&2; skip "systemd-nspawn starts nothing here"; }
wait_for 60 "the guest's boot" inside systemctl is-active --quiet multi-user.target

# --- the installation -----------------------------------------------------------------------------------------------------

claim "a fresh installation runs by itself, and says what is missing"
inside dpkg --install /root/forebay-1.deb > "$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; fail "dpkg"; }
is_active || fail "the service does not run"
is_active forebay.socket || fail "the socket is not there"
inside systemctl is-enabled --quiet forebay.service forebay.socket || fail "it would not start at boot"
echo '{"userId":"early","n":1}' | inside forebay send --quiet || fail "it takes no event"
missing() { inside systemctl show --property StatusText --value forebay.service | grep -q 'stream events: .*region'; }
wait_for 30 "the status to name the missing region" missing
inside forebay status | grep -q 'delivery is paused' || fail "forebay status does not say it"
inside forebay status --quiet || fail "an agent that cannot deliver is ready all the same"

claim "units are sound, hardened, and documented"
inside systemd-analyze verify forebay.service forebay.socket forebay@x.service forebay@x.socket 2>&1 | grep -v 'man forebay' | grep -i forebay && fail "systemd-analyze verify"
exposure=$(inside systemd-analyze security --no-pager forebay.service | sed -n 's/.*Overall exposure level for forebay.service: \([0-9.]*\) .*/\1/p')
python3 -c "import sys; sys.exit(float('$exposure') > 1.5)" || fail "exposure $exposure"
inside test -e /usr/share/man/man1/forebay-run.1.gz -a -e /usr/share/bash-completion/completions/forebay || fail "man pages"

claim "with a region and credentials it delivers what it took before"
inside systemd-run --quiet --unit=sink /usr/local/bin/peer sink 4567 /root/sink
inside mkdir -p /etc/credstore
printf '[default]\naws_access_key_id = test\naws_secret_access_key = test\n' | inside sh -c 'umask 077; cat > /etc/credstore/forebay.aws-credentials'
inside sed -i 's|^name = "events"|&\nregion = "us-east-1"\nendpoint = "http://127.0.0.1:4567"\naggregate = "kpl"|' /etc/forebay/forebay.toml
inside systemctl restart forebay.service
events() {
    local n
    n=$(inside sed -n "s/.*\b$1=\([0-9]*\).*/\1/p" /root/sink 2> /dev/null) || true
    echo "${n:-0}"
}
has_events() { [ "$(($(events events) - $(events duplicates)))" -ge "$1" ]; }
wait_for 30 "the early event" has_events 1

claim "members of the group may send, others may not"
inside useradd --groups forebay app
inside useradd stranger
echo '{"userId":"app","n":1}' | inside setpriv --reuid app --regid app --init-groups forebay send --quiet || fail "a member is refused"
echo '{"userId":"x","n":1}' | inside setpriv --reuid stranger --regid stranger --init-groups forebay send --quiet 2> /dev/null && fail "a stranger is not"

claim "a connection starts a stopped agent"
inside systemctl stop forebay.service
is_active && fail "it still runs"
echo '{"userId":"waker","n":1}' | inside forebay send --quiet || fail "nobody answers"
is_active || fail "it does not run"

claim "forebay drain delivers and ends, and the next event wakes it again"
inside forebay drain --timeout 20s | grep -q 'all is delivered' || fail "drain"
gone() { ! is_active; }
wait_for 10 "the agent's end" gone
echo '{"userId":"waker","n":2}' | inside forebay send --quiet || fail "nobody answers"
wait_for 30 "four events" has_events 4

claim "reload takes what can change, names what cannot, and refuses what is wrong"
pid=$(main_pid)
inside sed -i '1i drain_timeout = "5s"' /etc/forebay/forebay.toml
printf '\n[spool]\nmax_bytes = "1GiB"\n' | inside sh -c 'cat >> /etc/forebay/forebay.toml'
inside systemctl reload forebay.service || fail "reload"
wait_for 10 "word of the reload" told 'changed="drain_timeout"'
told 'keys="spool.max_bytes"' > /dev/null || fail "what needs a restart is not named"
inside sed -i 's/^max_bytes/max_byte/' /etc/forebay/forebay.toml
inside systemctl reload forebay.service 2> /dev/null && fail "a wrong configuration is taken"
told 'max_byte' > /dev/null || fail "the journal does not say what is wrong"
inside sed -i 's/^max_byte /max_bytes /' /etc/forebay/forebay.toml
[ "$(main_pid)" = "$pid" ] || fail "the agent did not go on"

claim "a second instance has places of its own"
printf '[listen]\nhttp = ""\nadmin = "127.0.0.1:4721"\n\n[[stream]]\nname = "web"\nregion = "us-east-1"\nendpoint = "http://127.0.0.1:4567"\n' | inside sh -c 'cat > /etc/forebay/web.toml'
inside cp -p /etc/credstore/forebay.aws-credentials /etc/credstore/forebay-web.aws-credentials
inside systemctl start forebay@web.socket forebay@web.service || fail "it does not start"
echo '{"userId":"w","n":1}' | inside forebay send --quiet --socket /run/forebay-web/forebay.sock || fail "it takes nothing"
inside test -d /var/lib/forebay-web/web || fail "its spool is elsewhere"
inside systemctl stop forebay@web.socket forebay@web.service

# --- bad days, under load -------------------------------------------------------------------------------------------------

claim "applications send from here on"
# The second instance's event too has arrived and is counted: else it would be taken for one of theirs.
wait_for 30 "five events" has_events 5
before=$(($(events events) - $(events duplicates)))
inside sh -c 'exec peer load /run/forebay/forebay.sock 127.0.0.1:4710 load /root/stop > /root/load.out 2> /root/load.err' &
load=$!
wait_for 20 "the first events" has_events $((before + 100))

claim "kill -9: it is started again"
was=$(restarts)
inside sh -c "kill -9 $(main_pid)"
again() { [ "$(restarts)" -gt "$was" ] && is_active; }
wait_for 30 "the restart" again

claim "a hang: the watchdog ends it, and it is started again"
inside mkdir -p /run/systemd/system/forebay.service.d
printf '[Service]\nWatchdogSec=3s\n' | inside sh -c 'cat > /run/systemd/system/forebay.service.d/watchdog.conf'
inside systemctl daemon-reload
inside systemctl restart forebay.service
sleep 7
[ "$(restarts)" -eq 0 ] || fail "a healthy agent under load does not feed the watchdog"
was=$(restarts)
inside sh -c "kill -STOP $(main_pid)"
wait_for 40 "the watchdog" again
inside journalctl --no-pager --quiet -u forebay.service --grep 'Watchdog timeout' > /dev/null || fail "it was not the watchdog"
inside rm /run/systemd/system/forebay.service.d/watchdog.conf
inside systemctl daemon-reload

claim "20 restarts"
for at in $(seq 20); do
    inside systemctl restart forebay.service || fail "restart $at"
done

claim "an upgrade: the new version runs, configuration and spool are kept"
inside sha256sum /etc/forebay/forebay.toml > "$work/toml.before"
pid=$(main_pid)
inside dpkg --install /root/forebay-2.deb > "$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; fail "dpkg"; }
is_active || fail "the service does not run"
[ "$(main_pid)" != "$pid" ] || fail "the old process still runs"
inside sha256sum /etc/forebay/forebay.toml | cmp - "$work/toml.before" || fail "the configuration was changed"

claim "no connection was refused in all of this"
inside touch /root/stop
wait "$load" || fail "$(inside cat /root/load.out /root/load.err)"
printf '        %s\n' "$(inside cat /root/load.out)"

claim "nothing was lost in all of this, and every key's events came in order"
made=$(inside sed -n 's/^made=\([0-9]*\) .*/\1/p' /root/load.out)
wait_for 60 "$made events" has_events $((before + made))
[ "$(($(events events) - $(events duplicates)))" -eq $((before + made)) ] || fail "more events than were made: $(inside cat /root/sink)"
[ "$(events gaps)" -eq 0 ] && [ "$(events bad)" -eq 0 ] || fail "$(inside cat /root/sink)"
printf '        %s\n' "$(inside cat /root/sink)"
inside forebay spool verify --config /etc/forebay/forebay.toml > /dev/null || fail "the spool's balance"

claim "the journal can be read"
inside journalctl --no-pager --output=json -u forebay.service -n 200 | python3 -c 'import json, sys
lines = [json.loads(line) for line in sys.stdin]
assert any("accepting" in (line["MESSAGE"] if isinstance(line["MESSAGE"], str) else "") for line in lines), "no line says that it accepts"
assert all(isinstance(line["MESSAGE"], str) for line in lines), "a line is not text: colours in it?"'

# --- the end ---------------------------------------------------------------------------------------------------------------

claim "removed, the configuration and the spool stay"
inside dpkg --remove forebay > "$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; fail "dpkg"; }
inside test ! -e /usr/bin/forebay -a ! -e /run/forebay/forebay.sock || fail "it is still there"
inside test -e /etc/forebay/forebay.toml -a -d /var/lib/forebay/events || fail "they are gone"

claim "purged, nothing is left"
inside dpkg --purge forebay > "$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; fail "dpkg"; }
inside rm -f /etc/forebay/web.toml
left=$(inside sh -c 'ls -d /etc/forebay/forebay.toml /var/lib/forebay /var/lib/forebay-web /run/forebay /etc/systemd/system/*/forebay* 2> /dev/null || true')
[ -z "$left" ] || fail "left: $left"
inside systemctl --failed --no-legend | grep forebay && fail "a failed unit is left"

stop_guest
rm -rf "$guest"
printf '%4d s  all good\n' "$SECONDS"
