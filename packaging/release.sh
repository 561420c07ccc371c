#!/usr/bin/env bash
# Builds everything that is released, from a clean checkout, into target/release-files: the Debian package, the RPM, an archive of the
# stripped binary with its units, man pages and completions, and SHA256SUMS.
#
#   packaging/release.sh              needs cargo; cargo-deb and cargo-generate-rpm are installed where they are missing
#   packaging/release.sh --dirty      from a checkout with changes, for trying; the version then says so
#
# A release: set the version in Cargo.toml, give CHANGELOG.md its heading and packaging/deb/changelog its entry (a test compares),
# commit, tag vVERSION, run this. The commit stands in `forebay --version`. Paths of this machine are kept out of the binary, and dates
# are the commit's, so that the same toolchain builds the same files.
set -euo pipefail
cd "$(dirname "$0")/.."

dirty=$(git status --porcelain)
if [ -n "$dirty" ] && [ "${1:-}" != --dirty ]; then
    printf 'the checkout has changes; commit them, or say --dirty:\n%s\n' "$dirty" >&2
    exit 1
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
commit=$(git rev-parse --short=12 HEAD)
[ -z "$dirty" ] || commit+=-dirty
if [ -z "$dirty" ] && tag=$(git describe --exact-match --tags 2> /dev/null) && [ "$tag" != "v$version" ]; then
    echo "the tag is $tag, and Cargo.toml says $version" >&2
    exit 1
fi
grep -q "^## $version\|^## Unreleased" packaging/CHANGELOG.md || { echo "packaging/CHANGELOG.md does not have $version" >&2; exit 1; }

export FOREBAY_COMMIT=$commit
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
export CARGO_TERM_COLOR=never
export RUSTFLAGS="--remap-path-prefix=$PWD=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo ${RUSTFLAGS:-}"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}
# The paths in Cargo.toml's metadata are below target.
[ "$(realpath -m "$CARGO_TARGET_DIR")" = "$PWD/target" ] || { echo "CARGO_TARGET_DIR must be this checkout's target" >&2; exit 1; }

for tool in cargo-deb cargo-generate-rpm; do
    command -v "$tool" > /dev/null || env -u RUSTFLAGS -u CARGO_TARGET_DIR cargo install --locked "$tool"
done

out=target/release-files
rm -rf "$out" target/packaging
mkdir -p "$out"
# Packages are built without the embedded Kinesis.
cargo build --locked --profile dist --no-default-features --bin forebay
cargo run --locked --quiet --profile dist --no-default-features --example cli_files -- target/packaging
cargo deb --locked --profile dist --no-build --output "$out/"
strip target/dist/forebay
cargo generate-rpm --profile dist --output "$out/"

name=forebay-$version-$(uname -m)-linux
mkdir -p "target/$name/systemd" "target/$name/man" "target/$name/completions"
cp target/dist/forebay LICENSE README.md packaging/CHANGELOG.md packaging/forebay.toml "target/$name/"
cp packaging/systemd/* "target/$name/systemd/"
cp target/packaging/*.1 "target/$name/man/"
cp target/packaging/forebay.bash target/packaging/_forebay target/packaging/forebay.fish "target/$name/completions/"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C target -cf - "$name" | gzip -n9 > "$out/$name.tar.gz"
rm -rf "target/$name"
(cd "$out" && sha256sum -- * > SHA256SUMS && cat SHA256SUMS)
target/dist/forebay --version
