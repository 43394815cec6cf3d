"""The interpreter's part of an archive: program, standard library and the shared libraries both need, to run in any folder.

The program that runs this is copied. Its libraries are found by ``$ORIGIN``, the folder of whoever asks for them. Only glibc is left
out, which every Linux has and which must fit the loader there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from fatwood.errors import OptionError
from fatwood.packing.elf import needed_files, set_search_path
from fatwood.packing.part import Entry, Part

__all__ = ["PYTHON", "interpreter_part"]

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
"""The program's name, and that of the folder in ``lib``."""
_SKIPPED = {
    *("__pycache__", "site-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "turtle.py"),
    *("ensurepip", "pydoc_data", "lib2to3"),
}
"""Of the standard library: what is no use on a worker, or needs a screen."""
_SKIPPED_MODULES = ("_tkinter.", "nis.", "_test", "_ctypes_test.", "_xxtest")
_GLIBC = (
    *("ld-linux", "libc.so.", "libm.so.", "libdl.so.", "libpthread.so.", "librt.so.", "libutil.so."),
    *("libresolv.so.", "libanl.so.", "libnsl.so.1", "libmvec.so."),
)


def interpreter_part(staging: Path, base: Path | None = None) -> Part:
    """The part of the interpreter that runs this code.

    Args:
        staging: An empty folder for changed copies; it must be there until the part is packed.
        base: Where the interpreter is installed; None for where it says it is.

    Raises:
        OptionError: It is not one that can be moved.
    """
    base = base or Path(sys.base_prefix)
    program, library = base / "bin" / PYTHON, base / "lib" / PYTHON
    if base == Path("/usr") or not program.exists() or not (library / "os.py").exists():
        message = (
            f"interpreter: expected bin/{PYTHON} and lib/{PYTHON} in a folder of its own, received {base}"
        )
        hint = "make the environment with a Python of pyenv, conda, uv or another relocatable build, not with the system's"
        raise OptionError(message, hint=hint)
    files = [program, *_standard_library(library)]
    digest = hashlib.sha256(str(base).encode())
    for file in files:
        facts = file.stat()
        digest.update(f"{file}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    version = ".".join(map(str, sys.version_info[:3]))
    return Part("python", version, digest.hexdigest(), lambda: _entries(base, files, staging))


def _standard_library(library: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(library):
        top = Path(folder) == library
        folders[:] = sorted(
            name for name in folders if name not in _SKIPPED and not name.startswith("config-")
        )
        for name in sorted(names):
            if (top and name in _SKIPPED) or name.startswith(_SKIPPED_MODULES) or name.endswith(".pyc"):
                continue
            yield Path(folder) / name


def _entries(base: Path, files: list[Path], staging: Path) -> list[Entry]:
    entries = [Entry("bin/python", link=PYTHON), Entry("bin/python3", link=PYTHON)]
    libraries: dict[str, Path] = {}
    for file in files:
        name, program = file.relative_to(base).as_posix(), file.parent.name == "bin"
        if program or ".so" in file.suffixes:
            needed = {
                soname: path for soname, path in needed_files(file).items() if not soname.startswith(_GLIBC)
            }
            if needed:
                libraries |= needed
                file = _changed(file, staging, "$ORIGIN/../lib" if program else "$ORIGIN/../..")
        entries.append(Entry(name, path=file, executable=program))
    # Copies under the names by which they are asked for: here these are often links.
    entries += [Entry(f"lib/{soname}", path=path) for soname, path in libraries.items()]
    return entries


def _changed(file: Path, staging: Path, search: str) -> Path:
    copy = staging / file.name
    shutil.copyfile(file, copy)
    copy.chmod(0o755)
    set_search_path(copy, search)
    return copy
