"""A store's file by Python's rules, where the store can only read so many bytes from a place."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from typing import Any

__all__ = ["SeekableReader"]


class SeekableReader(io.RawIOBase):
    """Keeps the position; best wrapped in an ``io.BufferedReader``.

    Args:
        size: Of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    @abstractmethod
    def read_at(self, start: int, length: int) -> bytes:
        """At most `length` bytes from `start`, at least one; both lie in the file."""

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position; nothing is asked of the store."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            text = f"negative position {start + offset}"
            raise ValueError(text)
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Read from the position on; 0 at the end."""
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        content = self.read_at(self._position, wanted)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
