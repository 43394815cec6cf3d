"""Read whole files, or open one to seek in."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO, cast

from fatwood.errors import StorageError
from fatwood.storage.hints import explained
from fatwood.storage.locating import URI, locate, name_of
from fatwood.storage.seekable import SeekableReader

__all__ = ["open_read", "read_bytes"]

_PIECE_BYTES = 1 << 20


def read_bytes(uri: URI, *, max_bytes: int | None = None) -> bytes:
    """Read a whole file.

    Args:
        uri: Where to read; a scheme picks the store, a plain path is local.
        max_bytes: Refuse a larger file, before any memory is allocated for it; ``None`` for no limit.

    Returns:
        The file's bytes.

    Raises:
        StorageError: The file cannot be read or is larger than ``max_bytes``.
    """
    with open_read(uri) as file, explained("read", uri):
        if max_bytes is None:
            return file.read()
        size = file.seek(0, os.SEEK_END) if file.seekable() else None
        if size is not None:
            file.seek(0)
        if size is None or size <= max_bytes:
            content = file.read(max_bytes + 1 if size is None else size)
            if len(content) <= max_bytes:
                return content
    message = f"cannot read {name_of(uri)}: expected at most {max_bytes} bytes, received more"
    raise StorageError(message, hint="check that this is the file that was meant")


def open_read(uri: URI) -> BinaryIO:
    """Open a file for reading; the caller closes it.

    Args:
        uri: Where to read; a scheme picks the store, a plain path is local.

    Returns:
        A binary file, seekable wherever the store allows it.

    Raises:
        StorageError: The file cannot be opened.
    """
    with explained("open", uri):
        store, path = locate(uri)
        if store is None:
            return open(path, "rb")
        store.invalidate_cache()  # listings are cached per process; another one may have replaced the file
        opened = store.open(path, "rb")
        if hasattr(opened, "read_range"):
            opened = io.BufferedReader(_Ranges(opened), _PIECE_BYTES)
        return cast("BinaryIO", opened)


class _Ranges(SeekableReader):
    """A file of hdfs-native by Python's rules: its own ``seek`` does not tell the position, and it has no ``readinto``."""

    def __init__(self, file: Any) -> None:
        super().__init__(len(file))
        self._file = file

    def read_at(self, start: int, length: int) -> bytes:
        """By the range that it can read."""
        return bytes(self._file.read_range(start, length))
