"""The installed distributions of an environment as parts of an archive, file by file as their ``RECORD`` lists them."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fatwood.errors import OptionError, StorageError
from fatwood.packing.interpreter import PYTHON
from fatwood.packing.part import Entry, Part, check_link
from fatwood.packing.scripts import relative_script

__all__ = ["SPARKS_OWN", "Environment", "Installed", "installed", "torch_build"]

SPARKS_OWN = frozenset({"pyspark", "pyspark-client", "pyspark-connect", "py4j"})
"""What a cluster's Spark puts on the path itself."""
_SITE = f"lib/{PYTHON}/site-packages"
_UNKEPT = ("direct_url.json", "INSTALLER", "REQUESTED")
"""In a ``.dist-info``: how and from where it was installed on this machine."""
_TESTS = {"tests", "test"}
_REINSTALL = "install it again with pip, which writes a RECORD of its files"


@dataclass(frozen=True)
class Environment:
    """A virtual environment, or an interpreter's own folder."""

    prefix: Path
    site: tuple[Path, ...]
    """Its folders of pure and of compiled packages; often the same."""


@dataclass(frozen=True)
class Installed:
    """One distribution of an environment."""

    environment: Environment
    distribution: Distribution

    @property
    def name(self) -> str:
        """With dashes and in small letters."""
        return re.sub(r"[-_.]+", "-", self.distribution.metadata["Name"]).lower()

    @property
    def version(self) -> str:
        """As it was released."""
        return str(self.distribution.version)

    @property
    def editable(self) -> Path | None:
        """The folder of its sources, where it is installed as a link to them."""
        text = self.distribution.read_text("direct_url.json")
        origin = json.loads(text) if text else {}
        if not origin.get("dir_info", {}).get("editable"):
            return None
        return Path(url2pathname(urlsplit(origin["url"]).path))

    def part(self, *, drop_tests: bool) -> Part:
        """Its files as a part.

        Args:
            drop_tests: Leave out folders named ``tests`` or ``test``.

        Raises:
            OptionError: It has no list of its files, or a file that would not work on another machine.
            StorageError: A file of the list is not there.
        """
        listed = self._listed(drop_tests=drop_tests)
        record = "".join(f"{name},{digest},{size}\n" for name, _, digest, size in listed)
        key = hashlib.sha256(record.encode()).hexdigest()
        entries = self._entries(listed)
        return Part(self.name, self.version, key, lambda: entries)

    def _listed(self, *, drop_tests: bool) -> list[tuple[str, Path, str, int]]:
        """Name in the archive, place, digest by RECORD (empty for what is changed), size."""
        # not Distribution.files: where the backport importlib_metadata was imported, that leaves out files that are not there
        record = self.distribution.read_text("RECORD")
        if record is None:
            message = f"{self.name}: expected a list of its files, received none"
            raise OptionError(message, hint=_REINSTALL)
        found = []
        for file, digest in (row[:2] for row in csv.reader(record.splitlines()) if len(row) > 1):
            place = Path(os.path.normpath(str(self.distribution.locate_file(file))))
            name = self._archived(place)
            if name.endswith(".pyc") or _unkept(name) or (drop_tests and _TESTS & set(name.split("/")[3:-1])):
                continue
            try:
                size = place.lstat().st_size
            except OSError as error:
                message = f"{self.name}: expected the file {place}, as its RECORD says, received none"
                raise StorageError(message, hint=_REINSTALL) from error
            kept = name.startswith(_SITE) and not name.endswith("/RECORD")
            found.append((name, place, digest if kept else "", size))
        return sorted((name, place, digest, size if digest else 0) for name, place, digest, size in found)

    def _archived(self, place: Path) -> str:
        for site in self.environment.site:
            if place.is_relative_to(site):
                relative = place.relative_to(site).as_posix()
                top = relative.split("/")[0].removesuffix(".py")
                if top in ("pyspark", "py4j"):
                    message = (
                        f"{self.name}: expected no package {top} outside of Spark's own, received {place}"
                    )
                    hint = "Spark's own comes first or second by chance; uninstall it, or leave it out with --exclude"
                    raise OptionError(message, hint=hint)
                return f"{_SITE}/{relative}"
        if place.is_relative_to(self.environment.prefix):
            return place.relative_to(self.environment.prefix).as_posix()
        message = f"{self.name}: expected files inside of {self.environment.prefix} only, received {place} in its RECORD"
        raise OptionError(message, hint=_REINSTALL)

    def _entries(self, listed: list[tuple[str, Path, str, int]]) -> list[Entry]:
        entries = []
        for name, place, _, _ in listed:
            executable = bool(place.lstat().st_mode & 0o100)
            if place.is_symlink():
                check_link(name, str(place.readlink()))
                entries.append(Entry(name, link=str(place.readlink())))
            elif name.endswith(".dist-info/RECORD"):
                lines = (_record_line(*line) for line in listed)
                entries.append(Entry(name, content="".join(lines).encode()))
            elif name.startswith("bin/"):
                script = relative_script(self.name, place, self.environment.prefix)
                kept = place if script is None else None
                entries.append(Entry(name, path=kept, content=script, executable=executable))
            else:
                if name == f"{_SITE}/{place.name}" and place.suffix == ".pth":
                    _check_paths(self.name, place)
                entries.append(Entry(name, path=place, executable=executable))
        return entries


def installed(environment: Environment) -> list[Installed]:
    """The distributions of an environment, by name."""
    folders = list(dict.fromkeys(map(str, environment.site)))
    found: dict[str, Installed] = {}
    for distribution in distributions(path=folders):
        if distribution.metadata["Name"] is not None:
            one = Installed(environment, distribution)
            found.setdefault(one.name, one)
    return [found[name] for name in sorted(found)]


def torch_build(parts: Sequence[Installed]) -> str | None:
    """The CUDA that torch was built for, such as ``12.8``; ``cpu`` for none, None where torch is not installed.

    Nothing is imported: a build for CUDA can be packed where no driver is.
    """
    for part in parts:
        if part.name == "torch":
            source = Path(str(part.distribution.locate_file("torch/version.py"))).read_text()
            for node in ast.parse(source).body:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                named = any(isinstance(target, ast.Name) and target.id == "cuda" for target in targets)
                value = getattr(node, "value", None)
                if named and isinstance(value, ast.Constant) and value.value is not None:
                    return str(value.value)
            return "cpu"
    return None


def _unkept(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder.endswith(".dist-info") and file in _UNKEPT


def _record_line(name: str, _: Path, digest: str, size: int) -> str:
    inside = name.removeprefix(f"{_SITE}/") if name.startswith(_SITE) else f"../../../{name}"
    quoted = '"' + inside.replace('"', '""') + '"' if "," in inside or '"' in inside else inside
    return f"{quoted},{digest},{size if digest else ''}\n"


def _check_paths(name: str, place: Path) -> None:
    """A ``.pth`` file must not add folders of this machine to the path."""
    for line in place.read_text(errors="replace").splitlines():
        if os.path.isabs(line.strip()):
            message = (
                f"{name}: expected no folder of this machine on the path, received {line.strip()} in {place}"
            )
            raise OptionError(message, hint="install it as a wheel: pip install without --editable")
