"""Read an archive; nothing in it is believed before it is checked."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fatwood.archive.kind import MANIFEST, MAX_MANIFEST_BYTES, PIECE_BYTES, Kind, is_part_name
from fatwood.errors import StorageError

__all__ = ["Archive"]


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
        self._kind = kind
        self._title = _title(file, kind)
        with self._unzipping():
            file_bytes = file.seek(0, os.SEEK_END)
            self._zip = zipfile.ZipFile(file)
            self._check_sizes(file_bytes)
            self._text = self._zip.read(MANIFEST)
            self.manifest: dict[str, Any] = json.loads(self._text)
            """The whole manifest; ``sha256`` names the parts."""
            self._check_manifest()
            names = sorted(entry.filename for entry in self._zip.infolist())
            expected = sorted([MANIFEST, *self.manifest["sha256"]])
            if names != expected:
                problem = f"expected the entries {expected!r:.200}, received {names!r:.200}"
                raise self.damaged(problem)

    def read(self, part: str) -> bytes:
        """A part in memory.

        Raises:
            StorageError: Its bytes are not those that were written.
        """
        with self._unzipping():
            content = self._zip.read(part)
        self._check_digest(part, hashlib.sha256(content).hexdigest())
        return content

    def extract(self, part: str, path: Path) -> None:
        """Copy a part to a local file, a piece at a time.

        Args:
            part: Its name.
            path: The file to write, in a directory that exists; after an error it is not there.

        Raises:
            StorageError: The part's bytes are not those that were written, or the local disk cannot take them.
        """
        digest = hashlib.sha256()
        try:
            with open(path, "wb") as target:
                for piece in self._pieces(part):
                    digest.update(piece)
                    target.write(piece)
            self._check_digest(part, digest.hexdigest())
        except BaseException as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            message = f"{self._title}: could not write {part} to {path}: {error}"
            raise StorageError(message, hint="free space there, or check that this user may write") from error

    def close(self) -> None:
        """End reading; the file stays open."""
        self._zip.close()

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
    def _unzipping(self) -> Iterator[None]:
        """Turn the dozen kinds of exceptions with which zipfile and json meet a damaged file into one."""
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            expected = f"expected a saved {self._kind.content} (a zip archive)"
            problem = f"{expected}, received {type(error).__name__}: {error}"
            raise self.damaged(problem) from error

    def _check_sizes(self, file_bytes: int) -> None:
        for entry in self._zip.infolist():
            limit = min(MAX_MANIFEST_BYTES if entry.filename == MANIFEST else file_bytes, file_bytes)
            stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
            if not stored or entry.file_size > limit:
                received = f"{entry.compress_size} bytes that stand for {entry.file_size}"
                problem = f"{entry.filename}: expected at most {limit} stored bytes, received {received}"
                raise self.damaged(problem)

    def _check_manifest(self) -> None:
        manifest, newest = self.manifest, self._kind.version
        if not isinstance(manifest, dict) or manifest.get("format") != self._kind.format:
            expected = f"expected the format {self._kind.format!r}"
            problem = f"{MANIFEST}: {expected}, received {self._text[:80]!r}"
            raise self.damaged(problem)
        version, digests = manifest.get("format_version"), manifest.get("sha256")
        if type(version) is int and version > newest:
            message = (
                f"{self._title}: expected format version {newest} or older, received version {version}, "
                f"written by {manifest.get('versions')}"
            )
            hint = "install the version of Fatwood that wrote the file: pip install -U fatwood"
            raise StorageError(message, hint=hint)
        if (
            type(version) is not int
            or version != newest
            or not isinstance(digests, dict)
            or not all(is_part_name(name) and isinstance(digest, str) for name, digest in digests.items())
        ):
            raise self.wrong_manifest()

    def _pieces(self, part: str) -> Iterator[bytes]:
        with self._unzipping():
            source = self._zip.open(part)
        with source:
            while True:
                with self._unzipping():
                    piece = source.read(PIECE_BYTES)
                if not piece:
                    return
                yield piece

    def _check_digest(self, part: str, received: str) -> None:
        expected = self.manifest["sha256"][part]
        if received != expected:
            problem = f"{part}: expected sha256 {expected}, received {received}"
            raise self.damaged(problem)


def _title(file: BinaryIO, kind: Kind) -> str:
    """What to call a file in a message: its path, where it knows one."""
    for attribute in ("path", "name"):
        name = getattr(file, attribute, None)
        if isinstance(name, str):
            return f"{kind.content} file {name}"
    return f"{kind.content} file"
