#!/usr/bin/env python3
"""Builds the Debian package that Cargo.toml's [package.metadata.deb] describes from a binary that is already built.

Place: tests/packaging/run.sh, where cargo-deb is not installed (it takes minutes to compile); with it, run.sh compares the two packages'
contents. Usage: deb_from_metadata.py BINARY VERSION OUT.deb. Needs dpkg-deb and strip. Failure: a traceback, exit code 1.
"""

import glob
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib


def main(binary: str, version: str, out: str) -> None:
    with open("Cargo.toml", "rb") as file:
        package = tomllib.load(file)["package"]
    deb = package["metadata"]["deb"]
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        for source, target, mode in deb["assets"]:
            found = [binary] if source == "target/release/forebay" else sorted(glob.glob(source))
            if not found:
                sys.exit(f"no file {source}, which [package.metadata.deb] names")
            for path in found:
                name = os.path.basename(source if path == binary else path)
                install(path, f"{target}{name}" if target.endswith("/") else target, int(mode, 8), root)
        doc = f"{root}/usr/share/doc/forebay"
        shutil.copy(deb["license-file"][0], f"{doc}/copyright")
        with open(deb["changelog"], "rb") as text, gzip.GzipFile(f"{doc}/changelog.Debian.gz", "wb", mtime=0) as packed:
            packed.write(text.read())
        subprocess.run(["strip", f"{root}/usr/bin/forebay"], check=True)
        control = f"{root}/DEBIAN"
        os.mkdir(control)
        depends = deb["depends"].replace("$auto", "libc6, libgcc-s1")
        with open(f"{control}/control", "w") as text:
            text.write(
                f"Package: forebay\nVersion: {version}\nArchitecture: {architecture()}\nMaintainer: {deb['maintainer']}\n"
                f"Section: {deb['section']}\nPriority: optional\nDepends: {depends}\nDescription: {package['description']}\n"
            )
        with open(f"{control}/conffiles", "w") as text:
            text.writelines(f"{path}\n" for path in deb["conf-files"])
        for script in ("postinst", "prerm", "postrm"):
            shutil.copy(f"{deb['maintainer-scripts']}/{script}", control)
            os.chmod(f"{control}/{script}", 0o755)
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", root, out], check=True, stdout=subprocess.DEVNULL)


def install(path: str, target: str, mode: int, root: str) -> None:
    place = f"{root}/{target}"
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if "/share/man/" in place:
        with open(path, "rb") as text, gzip.GzipFile(f"{place}.gz", "wb", mtime=0) as packed:
            packed.write(text.read())
        place += ".gz"
    else:
        shutil.copy(path, place)
    os.chmod(place, mode)


def architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    os.umask(0o022)
    main(*sys.argv[1:])
