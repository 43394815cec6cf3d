"""Read an archive; nothing in it is believed before it is checked."""

from __future__ import annotations

import io
import json
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fatwood.archive.frame import ALIGNMENT, Entry
from fatwood.archive.hashing import Piece, crc_of, digest_of, plain_digest_of, slices
from fatwood.archive.kind import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PIECE_BYTES,
    Kind,
    is_part_name,
    is_reasonable_json,
)
from fatwood.archive.listing import ListingError, check_crc, first_name, is_framed, list_entries, read_at
from fatwood.errors import StorageError

__all__ = ["Archive"]

_LOCAL_FILES = (io.BufferedReader, io.BufferedRandom, io.FileIO)
_DIGESTS = {1: ("sha256", plain_digest_of), 2: ("sha256_of_pieces", digest_of)}
"""Of old versions: the field of the manifest, and what makes a digest."""


class Archive:
    """An archive open for reading: everything but the parts' bytes was checked, and those are checked when read.

    A context manager. Threads must not share it.

    Args:
        file: A seekable binary file, from its beginning; it stays open.
        kind: What it must hold.

    Raises:
        StorageError: Another kind of file, truncated, altered, or of a newer version of the format.
    """

    def __init__(self, file: BinaryIO, kind: Kind) -> None:
        self._file = file
        self._kind = kind
        self._title = _title(file, kind)
        with self._reading():
            self._framed = is_framed(file)
            self._entries = list_entries(file)
            self._text = self._manifest_text()
            self.manifest: dict[str, Any] = json.loads(self._text.decode())
            """The whole manifest."""
            self._version = self._checked_version()
            self._digests = self._checked_digests()
            names, expected = sorted(self._entries), sorted([MANIFEST, *self._digests])
            if names != expected:
                problem = f"expected the entries {expected!r:.200}, received {names!r:.200}"
                raise self.damaged(problem)

    @property
    def parts(self) -> list[str]:
        """The names of all parts, sorted."""
        return sorted(self._digests)

    def part_bytes(self, part: str) -> int:
        """How large a part is."""
        return self._entries[part].size

    def read(self, part: str, *, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        """A small part, in memory.

        Raises:
            StorageError: Its bytes are not those that were written, or more than ``max_bytes``.
        """
        entry = self._entries[part]
        if entry.size > max_bytes:
            problem = f"{part}: expected at most {max_bytes} bytes, received {entry.size}"
            raise self.damaged(problem)
        with self._reading():
            content = read_at(self._file, entry.data, entry.size)
        self._check(part, slices(content))
        return content

    def memory(self, part: str) -> memoryview:
        """A part as bytes in memory that can be written to without a change of the file.

        Of a local file it is mapped and not copied: what processes do not write to they share. Such a file must be replaced as a
        whole, as `fatwood.storage.write_atomic` does, and not be written into, as long as the memory is used.

        Raises:
            StorageError: Its bytes are not those that were written.
        """
        entry = self._entries[part]
        if entry.size == 0:
            self._check(part, iter(()))
            return memoryview(bytearray())
        mapped = self._mapped(entry)
        if mapped is not None:
            self._check(part, slices(mapped))
            return mapped
        view = memoryview(mmap.mmap(-1, entry.size))
        self._check(part, self._read_into(view, entry))
        return view

    def extract(self, part: str, path: Path) -> None:
        """Copy a part to a local file, a piece at a time.

        Args:
            part: Its name.
            path: The file to write, in a directory that exists; after an error it is not there.

        Raises:
            StorageError: The part's bytes are not those that were written, or the local disk cannot take them.
        """
        try:
            with open(path, "wb") as target:
                self._check(part, self._pieces(self._entries[part]), target.write)
        except BaseException as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            message = f"{self._title}: could not write {part} to {path}: {error}"
            raise StorageError(message, hint="free space there, or check that this user may write") from error

    def close(self) -> None:
        """End reading; the file stays open."""

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def damaged(self, problem: str) -> StorageError:
        """An error for contents that cannot have been written as they are."""
        hint = f"the file is damaged, incomplete or no saved {self._kind.content}: {self._kind.remedy}"
        return StorageError(f"{self._title}: {problem}", hint=hint)

    def wrong_manifest(self) -> StorageError:
        """An error for a manifest without the fields of its format."""
        expected = f"expected the fields of version {self._kind.version}"
        return self.damaged(f"{MANIFEST}: {expected}, received {self._text[:200]!r}")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn the dozen kinds of exceptions with which a damaged file is met into one."""
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            expected = f"expected a saved {self._kind.content} (a zip archive)"
            received = str(error) if isinstance(error, ListingError) else f"{type(error).__name__}: {error}"
            with suppress(Exception):
                if (name := first_name(self._file)) is not None:
                    received += f"; the file begins with the entry {name}"
            problem = f"{expected}, received a file with a fault: {received}"
            raise self.damaged(problem) from error

    def _manifest_text(self) -> bytes:
        entry = self._entries.get(MANIFEST)
        if entry is None or entry.size > MAX_MANIFEST_BYTES:
            received = "none" if entry is None else f"{entry.size}"
            problem = f"{MANIFEST}: expected at most {MAX_MANIFEST_BYTES} stored bytes, received {received}"
            raise self.damaged(problem)
        text = read_at(self._file, entry.data, entry.size)
        check_crc(entry, text)
        if not is_reasonable_json(text):
            problem = f"{MANIFEST}: expected fewer values, received {len(text)} bytes of them"
            raise self.damaged(problem)
        return text

    def _checked_version(self) -> int:
        manifest, newest = self.manifest, self._kind.version
        if not isinstance(manifest, dict) or manifest.get("format") != self._kind.format:
            expected = f"expected the format {self._kind.format!r}"
            problem = f"{MANIFEST}: {expected}, received {self._text[:80]!r}"
            raise self.damaged(problem)
        version = manifest.get("format_version")
        if type(version) is int and version > newest:
            message = (
                f"{self._title}: expected format version {newest} or older, received version {version}, "
                f"written by {manifest.get('versions')!r:.200}"
            )
            hint = "install the version of Fatwood that wrote the file: pip install -U fatwood"
            raise StorageError(message, hint=hint)
        if type(version) is not int or version < 1 or self._framed != (version > 1):
            raise self.wrong_manifest()
        return version

    def _checked_digests(self) -> dict[str, str | None]:
        """By part; None where zip's CRC-32 is the checksum."""
        if self._version in _DIGESTS:
            digests = self.manifest.get(_DIGESTS[self._version][0])
            if not isinstance(digests, dict) or not all(isinstance(one, str) for one in digests.values()):
                raise self.wrong_manifest()
            names = list(digests)
        else:
            names = self.manifest.get("parts", ())
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise self.wrong_manifest()
            digests = dict.fromkeys(names)
        if len(digests) != len(names) or not all(is_part_name(name) for name in names):
            raise self.wrong_manifest()
        return digests

    def _mapped(self, entry: Entry) -> memoryview | None:
        """The bytes of the file themselves, where it is a local one and they are aligned; private to this process."""
        if os.name != "posix" or entry.data % ALIGNMENT or not isinstance(self._file, _LOCAL_FILES):
            return None
        try:
            number = self._file.fileno()
            if not stat.S_ISREG(os.fstat(number).st_mode):
                return None
            start = entry.data - entry.data % mmap.ALLOCATIONGRANULARITY
            length = entry.data + entry.size - start
            return memoryview(mmap.mmap(number, length, access=mmap.ACCESS_COPY, offset=start))[
                entry.data - start :
            ]
        except (OSError, ValueError):  # a file system that cannot map
            return None

    def _read_into(self, view: memoryview, entry: Entry) -> Iterator[memoryview]:
        at = 0
        for piece in self._pieces(entry):
            view[at : at + len(piece)] = piece
            yield view[at : at + len(piece)]
            at += len(piece)

    def _pieces(self, entry: Entry) -> Iterator[bytes]:
        for start in range(0, entry.size, PIECE_BYTES):
            with self._reading():
                piece = read_at(self._file, entry.data + start, min(PIECE_BYTES, entry.size - start))
            yield piece

    def _check(
        self,
        part: str,
        pieces: Iterator[bytes] | Iterator[memoryview],
        use: Callable[[Piece], object] | None = None,
    ) -> None:
        expected = self._digests[part]
        if expected is not None:
            received = _DIGESTS[self._version][1](pieces, use)
            what, same = "sha256", received == expected
        else:
            crc, _ = crc_of(pieces, use)
            what, same = "CRC-32", crc == self._entries[part].crc
            expected, received = f"{self._entries[part].crc:#010x}", f"{crc:#010x}"
        if not same:
            problem = f"{part}: expected {what} {expected:.100}, received {received}"
            raise self.damaged(problem)


def _title(file: BinaryIO, kind: Kind) -> str:
    """What to call a file in a message: its path, where it knows one."""
    for attribute in ("path", "name"):
        name = getattr(file, attribute, None)
        if isinstance(name, str):
            return f"{kind.content} file {name}"
    return f"{kind.content} file"
