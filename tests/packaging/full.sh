# Part of run.sh --full, sourced there: the packages as they are released, from the binary that is tested. cargo-deb's must hold what the
# package that is installed holds; lintian must have nothing to say; the RPM must have the same files.
tools=$work/tools
for tool in cargo-deb cargo-generate-rpm; do
    [ -x "$tools/bin/$tool" ] || command -v "$tool" > /dev/null ||
        env -u CARGO_TARGET_DIR cargo install --locked --quiet --root "$tools" --target-dir "$work/tools-target" "$tool"
done
PATH=$tools/bin:$PATH

# cargo-deb takes the binary from its profile's directory.
packaged=$work/target
rm -rf "$packaged"
mkdir -p "$packaged/release"
strip -o "$packaged/release/forebay" "$FOREBAY_BIN"
[ "$(realpath "$target")" = "$PWD/target" ] || { mkdir -p target; rm -rf target/packaging; cp -r "$target/packaging" target/packaging; }

claim "cargo-deb's package holds what the tested one holds"
rm -f "$work"/forebay_*.deb
CARGO_TARGET_DIR=$packaged cargo deb --quiet --locked --fast --no-build --output "$work/"
deb=$(ls "$work"/forebay_*.deb)
contents() { dpkg-deb --contents "$1" | awk '$1 !~ /^d/ { print $1, $6 }' | sort -k 2; }
diff <(contents "$work/forebay-1.deb") <(contents "$deb") || fail "they differ"
control() { dpkg-deb --ctrl-tarfile "$1" | tar -tf - | grep -v -e md5sums -e '/$' | sed 's|^\./||' | sort; }
diff <(control "$work/forebay-1.deb") <(control "$deb") || fail "their maintainer scripts differ"
# From here on it is the one that is installed.
cp "$deb" "$work/forebay-1.deb"

if command -v lintian > /dev/null; then
    claim "lintian has nothing to say"
    lintian --allow-root --fail-on error,warning --tag-display-limit 0 "$deb" || fail "lintian"
else
    echo "LEFT OUT: lintian is not installed" >&2
fi

claim "the RPM has the same files"
rm -f "$work"/forebay-*.rpm
CARGO_TARGET_DIR=$packaged cargo generate-rpm --target-dir "$packaged" --output "$work/"
if command -v rpm > /dev/null; then
    rpm --query --package --list --nosignature "$work"/forebay-*.rpm | sed 's|\.gz$||' | grep -v -e LICENSE -e zsh | sort > "$work/rpm.files"
    dpkg-deb --contents "$deb" | awk '$1 !~ /^d/ { print substr($6, 2) }' | sed 's|\.gz$||' | grep -v -e copyright -e changelog.Debian -e lintian -e zsh | sort > "$work/deb.files"
    diff "$work/deb.files" "$work/rpm.files" || fail "they differ"
    rpm --query --package --configfiles --nosignature "$work"/forebay-*.rpm | grep -qx /etc/forebay/forebay.toml || fail "the configuration is no configuration file there"
else
    echo "LEFT OUT: rpm is not installed" >&2
fi
