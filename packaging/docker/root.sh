#!/bin/sh
# Assembles what the container image holds: the binary, the shared libraries that it names with their loader, root certificates, two
# users, and nothing that could start a shell.
#
#   packaging/docker/root.sh BINARY OUT [SBOM]
#
# OUT/root is the file system's root, all of it root's. OUT/spool and OUT/socket hold one directory each, for /var/lib and /run, that the
# image gives to the agent's user. The Dockerfile calls this, and so does tests/container/run.sh, which has no container engine.
#
# Needs a Debian: ldd, dpkg-query, strip. Each library's package is noted as Debian notes it, for scanners that look for known faults.
# With SOURCE_DATE_EPOCH all times are that one, and the same files come out each time.
set -eu
binary=$1
out=$2
sbom=${3:-}
here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)
certificates=/etc/ssl/certs/ca-certificates.crt
# `nonroot` of the images that have no shell; tests/container/run.sh compares it with the Dockerfile's USER.
id=65532

[ -s "$certificates" ] || { echo "$certificates is not there: install ca-certificates" >&2; exit 1; }
rm -rf "$out"
root=$out/root
umask 022
mkdir -p "$root/usr/bin" "$root/usr/share/doc/forebay" "$root/etc/ssl/certs" "$root/etc/forebay" "$root/var/lib/dpkg/status.d" \
    "$root/run" "$root/tmp" "$root/proc" "$root/sys" "$root/dev" "$out/spool/forebay" "$out/socket/forebay"
chmod 1777 "$root/tmp"
# Events are nobody else's to read; the socket's own mode (0660) says who may write.
chmod 700 "$out/spool/forebay"
chmod 755 "$out/socket/forebay"

strip --strip-all -o "$root/usr/bin/forebay" "$binary"
chmod 755 "$root/usr/bin/forebay"

# bring FILE: at the path under which the loader looks for it, and the package that it is of.
bring() {
    [ -e "$root$1" ] && return
    mkdir -p "$root$(dirname "$1")"
    # The file itself, not the link to it.
    cp "$(readlink -f "$1")" "$root$1"
    # A library's path may lead through a link (/lib, /lib64) that dpkg does not know.
    for path in "$1" "$(readlink -f "$1")" "/usr$1" "${1#/usr}"; do
        package=$(dpkg-query --search "$path" 2> /dev/null | sed -n '1s/: .*//p')
        [ -z "$package" ] || break
    done
    [ -n "$package" ] || { echo "no package has $1" >&2; exit 1; }
    name=${package%%:*}
    [ ! -e "$root/var/lib/dpkg/status.d/$name" ] || return 0
    dpkg-query --status "$package" | sed '/^Conffiles:/,/^[^ ]/{/^Conffiles:/d;/^ /d}' > "$root/var/lib/dpkg/status.d/$name"
    mkdir -p "$root/usr/share/doc/$name"
    cp "$(readlink -f "/usr/share/doc/$name/copyright")" "$root/usr/share/doc/$name/copyright"
}

# Lines of ldd: "NAME => PATH (0x…)", or "PATH (0x…)" for the loader.
libraries=$(ldd "$binary" | sed -n 's|.*=> \(/[^ ]*\) .*|\1|p; s|^[[:space:]]*\(/[^ ]*\) .*|\1|p')
[ -n "$libraries" ] || { echo "ldd names no library of $binary" >&2; exit 1; }
for library in $libraries; do
    bring "$library"
done
cp "$certificates" "$root$certificates"
bring /usr/share/doc/ca-certificates/copyright

printf 'root:x:0:0:root:/:/sbin/nologin\nforebay:x:%s:%s:forebay:/var/lib/forebay:/sbin/nologin\n' "$id" "$id" > "$root/etc/passwd"
printf 'root:x:0:\nforebay:x:%s:\n' "$id" > "$root/etc/group"
printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
cp "$(readlink -f /etc/os-release)" "$root/etc/os-release"
cp "$source/LICENSE" "$source/packaging/forebay.toml" "$root/usr/share/doc/forebay/"
if [ -n "$sbom" ]; then
    cp "$sbom" "$root/usr/share/doc/forebay/sbom.cdx.json"
fi

find "$out" -type f ! -perm -u+x -exec chmod 644 {} +
if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
    find "$out" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
fi
