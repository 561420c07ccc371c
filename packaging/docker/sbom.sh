#!/bin/sh
# The bill of materials: each crate that the released binary is made of, with version, licence and checksum, as CycloneDX JSON.
#
#   packaging/docker/sbom.sh FILE      in the sources' root; needs cargo-cyclonedx
#
# The same sources give the same file: its date is SOURCE_DATE_EPOCH's, its serial number is left out.
set -eu
file=$1
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}"
mkdir -p "$(dirname "$file")"
cargo cyclonedx --format json --spec-version 1.5 --no-default-features --no-build-deps --target "$(rustc -vV | sed -n 's/^host: //p')" \
    --override-filename forebay-sbom --quiet
# It writes beside Cargo.toml, and names the sources' directory.
sed -e '/"serialNumber"/d' -e "s|file://$PWD|file://.|g" forebay-sbom.json > "$file"
rm forebay-sbom.json
