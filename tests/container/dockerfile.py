"""The Dockerfile, read: its stages, what its last one is and runs, and how its COPY lines lay files down."""

import json
import os
import re
import subprocess

from dockerfile_parse import DockerfileParser

VARIABLE = re.compile(r"\$\{(\w+)\}")


class Dockerfile:
    """`stages` is a list of lists of (instruction, value); the last stage is the image."""

    def __init__(self, path):
        with open(path, "rb") as file:
            structure = DockerfileParser(fileobj=file).structure
        self.stages, self.arguments = [], {}
        for line in structure:
            name, value = line["instruction"], line["value"]
            if name == "ARG" and "=" in value and value.partition("=")[0] not in self.arguments:
                self.arguments.__setitem__(*value.split("=", 1))
            if name == "FROM":
                self.stages.append([])
            if self.stages and name != "COMMENT":
                self.stages[-1].append((name, value))

    def expand(self, text):
        """A text with its arguments' defaults."""
        return VARIABLE.sub(lambda found: self.arguments[found[1]], text)

    def image(self, name):
        """Values of an instruction in the last stage."""
        return [self.expand(value) for instruction, value in self.stages[-1] if instruction == name]

    def only(self, name):
        """The one value of an instruction in the last stage."""
        (value,) = self.image(name)
        return value

    def exec_form(self, name):
        """The last stage's ENTRYPOINT, CMD, or the command of HEALTHCHECK, which must not need a shell."""
        text = self.only(name)
        if name == "HEALTHCHECK":
            text = text.partition(" CMD ")[2]
        command = json.loads(text)
        assert isinstance(command, list) and all(isinstance(word, str) for word in command), f"{name} is no list: {text}"
        return command

    def environment(self):
        """ENV of the last stage."""
        return dict(pair.split("=", 1) for value in self.image("ENV") for pair in value.split())

    def copies(self, stage):
        """COPY lines of a stage: (from, owner, sources, destination)."""
        for name, value in self.stages[stage]:
            if name == "COPY":
                words = self.expand(value).split()
                flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
                paths = [word for word in words if not word.startswith("--")]
                yield flags.get("from"), flags.get("chown", "0:0"), paths[:-1], paths[-1]

    def lay_down(self, out, root):
        """Does the last stage's COPY lines, with `out` for the build's /out. As BuildKit: what is made anew belongs to --chown,
        directories that are there stay as they are."""
        os.makedirs(root)
        for source_stage, owner, sources, destination in self.copies(-1):
            assert source_stage == "build", "the image takes from the build alone"
            for source in sources:
                assert source.startswith("/out/") and source.endswith("/") and destination.endswith("/"), source
                self._copy_tree(out + source[len("/out"):], root + destination, owner)

    def _copy_tree(self, source, destination, owner):
        os.makedirs(destination, exist_ok=True)
        uid, gid = map(int, owner.split(":"))
        for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
            target = os.path.join(destination, entry.name)
            new = not os.path.lexists(target)
            if entry.is_dir(follow_symlinks=False):
                if new:
                    os.mkdir(target)
                self._copy_tree(entry.path, target, owner)
            else:
                subprocess.run(["cp", "--no-dereference", entry.path, target], check=True)
            if new:
                os.chown(target, uid, gid, follow_symlinks=False)
                if not entry.is_symlink():
                    os.chmod(target, entry.stat().st_mode & 0o7777)


def is_in_context(path, ignore_file):
    """Whether .dockerignore lets a path of the sources into the build, by its last line that fits."""
    kept = True
    for line in open(ignore_file):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        pattern = line.lstrip("!").strip("/")
        # `*` stays within a name, `**/` is any directories; what a pattern names is gone with all below it.
        text = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(text + "(/.*)?", path):
            kept = line.startswith("!")
    return kept
