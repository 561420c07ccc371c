#!/bin/sh
# What the Dockerfile's first stage does with the sources: list of contents, binary, root. In the sources' root.
#
#   packaging/docker/build.sh OUT      COMMIT and SOURCE_DATE_EPOCH in the environment; cargo-cyclonedx below /opt/cyclonedx or in PATH
#
# Packages are built in the same way (packaging/release.sh): profile `dist`, without the embedded Kinesis, exactly Cargo.lock's crates.
set -eu
out=$1
here=$PWD
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export CARGO_TERM_COLOR=never
export FOREBAY_COMMIT="${COMMIT:-unknown}"
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}"
export PATH="/opt/cyclonedx/bin:$PATH"
# Neither Rust's nor C's files (aws-lc, zstd) remember where they lay.
export RUSTFLAGS="--remap-path-prefix=$here=. --remap-path-prefix=$cargo_home=cargo ${RUSTFLAGS:-}"
export CFLAGS="-ffile-prefix-map=$here=. -ffile-prefix-map=$cargo_home=cargo ${CFLAGS:-}"

packaging/docker/sbom.sh target/sbom.cdx.json
cargo build --locked --profile dist --no-default-features --bin forebay
packaging/docker/root.sh target/dist/forebay "$out" target/sbom.cdx.json
