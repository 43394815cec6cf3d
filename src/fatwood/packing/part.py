"""A part of an archive: files of one distribution as one gzip member, kept in a folder and used again while nothing changes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import posixpath
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from fatwood.errors import OptionError
from fatwood.packing.elf import read_binary

__all__ = ["Entry", "PackedPart", "Part", "check_link", "forget_old", "pack_part", "write_entries"]

_DATE = 315532800  # 1980-01-01: tools that make zip files of these refuse an earlier one
_BINARIES = (".so", ".so.")
_FORMAT = 1
_KEPT_SECONDS = 30 * 86400.0


@dataclass(frozen=True)
class Entry:
    """One file or link of the archive; exactly one of `path`, `content` and `link` is given."""

    name: str
    """In the archive, with slashes."""
    path: Path | None = None
    content: bytes | None = None
    link: str = ""
    executable: bool = False


@dataclass(frozen=True)
class Part:
    """What belongs together: an interpreter, or a distribution."""

    name: str
    version: str
    key: str
    """The same for the same contents."""
    entries: Callable[[], Sequence[Entry]]


@dataclass(frozen=True, kw_only=True)
class PackedPart:
    """A part as it lies in the cache."""

    name: str
    version: str
    file: str
    """Its name in the cache."""
    sha256: str
    """Of its bytes in the tar."""
    bytes: int
    """In the tar."""
    packed_sha256: str
    packed_bytes: int
    files: int
    needs: dict[str, tuple[str, str]]
    """The newest version of each interface that a binary needs, and the file."""
    machines: tuple[str, ...]
    """The CPUs of its binaries."""
    libraries: tuple[str, ...]
    """The names of the shared libraries that its binaries need."""
    provides: tuple[str, ...]
    """The names of the shared libraries it has."""
    seconds: float = 0.0
    reused: bool = False


def check_link(name: str, target: str) -> None:
    """Refuse a link that leads out of the archive.

    Raises:
        OptionError: It is absolute, or leads above the archive's root.
    """
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if posixpath.isabs(target) or inside == ".." or inside.startswith("../"):
        message = f"{name}: expected a link to a file in the archive, received one to {target}"
        raise OptionError(message, hint="on other machines it leads nowhere; replace the link by the file")


def pack_part(part: Part, folder: Path, *, level: int) -> PackedPart:
    """Compress `part` into `folder`, unless it is there.

    Args:
        part: What to pack.
        folder: Of the cache.
        level: Of gzip.

    Raises:
        OptionError: A link leads out of the archive.
        OSError: A file cannot be read or written.
    """
    began = time.perf_counter()
    digest = hashlib.sha256(f"{_FORMAT} {level} {part.name} {part.version} {part.key}".encode()).hexdigest()
    base = folder / f"{part.name}-{part.version}-{digest[:20]}"
    data, facts = base.with_name(base.name + ".tar.gz"), base.with_name(base.name + ".json")
    known = _read_facts(facts)
    if known is not None and data.exists() and data.stat().st_size == known.packed_bytes:
        data.touch()
        return replace(known, reused=True, seconds=time.perf_counter() - began)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = data.with_name(f".{data.name}.{os.getpid()}")
    try:
        packed = _compress(part, temporary, data.name, level)
        temporary.replace(data)
        temporary.write_text(json.dumps(asdict(packed)))
        temporary.replace(facts)
    finally:
        temporary.unlink(missing_ok=True)
    return replace(packed, seconds=time.perf_counter() - began)


def forget_old(folder: Path) -> None:
    """Remove the parts and wheels in `folder` that nothing used for a month."""
    for file in [*folder.glob("*.tar.gz"), *folder.glob("wheels/*/*.whl")]:
        if time.time() - file.stat().st_mtime > _KEPT_SECONDS:
            file.unlink(missing_ok=True)
            file.with_name(file.name.removesuffix(".tar.gz") + ".json").unlink(missing_ok=True)


def write_entries(
    entries: Sequence[Entry], file: BinaryIO, *, level: int, end: bytes = b""
) -> tuple[str, int]:
    """Write `entries` as a gzip member that is a piece of a tar, then `end`, which is nothing where other pieces follow.

    Returns:
        The SHA-256 of the piece before compression, and its length in bytes.
    """
    with gzip.GzipFile(filename="", mode="wb", compresslevel=level, fileobj=file, mtime=0) as member:
        hashing = _Hashing(member)
        tar = tarfile.TarFile(fileobj=hashing, mode="w", format=tarfile.GNU_FORMAT)
        for entry in entries:
            _add(tar, entry)
        hashing.write(end)  # The tar is not closed: that would write its end after every piece.
    return hashing.digest.hexdigest(), hashing.size


class _Hashing(BytesIO):
    """Passes everything on, and keeps its digest and length."""

    def __init__(self, file: gzip.GzipFile) -> None:
        super().__init__()
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def tell(self) -> int:
        return self.size

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


def _add(tar: tarfile.TarFile, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.name)
    info.mtime, info.mode = _DATE, 0o755 if entry.executable else 0o644
    if entry.link:
        check_link(entry.name, entry.link)
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
        tar.addfile(info)
    elif entry.path is not None:
        with entry.path.open("rb") as source:
            info.size = os.fstat(source.fileno()).st_size
            tar.addfile(info, source)
    else:
        content = entry.content or b""
        info.size = len(content)
        tar.addfile(info, BytesIO(content))


def _compress(part: Part, path: Path, file_name: str, level: int) -> PackedPart:
    entries = sorted(part.entries(), key=lambda entry: entry.name)
    needs: dict[str, tuple[str, str]] = {}
    machines: set[str] = set()
    libraries: set[str] = set()
    provides: set[str] = set()
    for entry in entries:
        name = posixpath.basename(entry.name)
        binary = None
        if entry.path is not None and (entry.executable or any(mark in name for mark in _BINARIES)):
            binary = read_binary(entry.path)
        if binary is None:
            continue
        machines.add(binary.machine)
        libraries.update(binary.needed)
        provides.update({name, binary.soname} - {""})
        for interface, version in binary.versions.items():
            known = tuple(map(int, needs.get(interface, ("0", ""))[0].split(".")))
            if version > known:
                needs[interface] = (".".join(map(str, version)), entry.name)
    with path.open("wb") as file:
        sha256, size = write_entries(entries, file, level=level)
    with path.open("rb") as file:
        packed_sha256 = _digest(file)
    return PackedPart(
        name=part.name,
        version=part.version,
        file=file_name,
        sha256=sha256,
        bytes=size,
        packed_sha256=packed_sha256,
        packed_bytes=path.stat().st_size,
        files=len(entries),
        needs=needs,
        machines=tuple(sorted(machines)),
        libraries=tuple(sorted(libraries)),
        provides=tuple(sorted(provides)),
    )


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while data := file.read(1 << 20):
        digest.update(data)
    return digest.hexdigest()


def _read_facts(file: Path) -> PackedPart | None:
    """What was written beside a packed part; None where there is nothing that can be read."""
    try:
        facts: dict[str, Any] = json.loads(file.read_bytes())
        lists = {name: tuple(facts[name]) for name in ("machines", "libraries", "provides")}
        needs = {name: (version, place) for name, (version, place) in facts["needs"].items()}
        return PackedPart(**{**facts, **lists, "needs": needs})
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
