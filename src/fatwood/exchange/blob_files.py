"""Files that travel on the control channel: how a name is checked, a file is written and a file is read in pieces."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

from fatwood.errors import OptionError, ProtocolError

__all__ = ["BlobWriter", "checked_blob_name", "file_chunks"]

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def checked_blob_name(name: object) -> str:
    """Return the name of a blob if it can be part of a file's name, else raise `OptionError`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = f"name of a blob: expected 1 to 100 letters, digits, '.', '_' or '-', not beginning with '.' or '-', received {name!r:.120}"
        raise OptionError(message)
    return name


@final
class BlobWriter:
    """Writes a blob of known size beside its final path and publishes it when it is complete.

    A disk that fails does not end the conversation: the rest is counted, not written, and `error` says why.

    Args:
        path: The final path.
        size: How many bytes will come.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.error: str | None = None
        self._received = 0
        self._part = path.with_name(path.name + ".part")
        try:
            self._file = self._part.open("wb")
        except OSError as error:
            self.error = f"{self._part}: {error}"

    @property
    def complete(self) -> bool:
        """Whether all bytes have come."""
        return self._received == self.size

    def write(self, chunk: bytes) -> None:
        """Append the next bytes.

        Raises:
            ProtocolError: More bytes came than were announced.
        """
        self._received += len(chunk)
        if self._received > self.size:
            message = f"blob {self.path.name}: expected {self.size} bytes, received at least {self._received}"
            raise ProtocolError(message)
        if self.error is None:
            try:
                self._file.write(chunk)
            except OSError as error:
                self._fail(error)

    def finish(self) -> str | None:
        """Publish the file; return None, or why it could not be written."""
        if self.error is None:
            try:
                self._file.close()
                os.replace(self._part, self.path)
            except OSError as error:
                self._fail(error)
        return self.error

    def abort(self) -> None:
        """Remove what was written of an incomplete blob."""
        if self.error is None:
            self._fail("it was not sent to its end")

    def _fail(self, why: object) -> None:
        self.error = f"{self.path}: {why}"
        try:
            self._file.close()
        except OSError:
            pass  # the flush of a full disk; the file goes away anyway
        finally:
            self._part.unlink(missing_ok=True)


def file_chunks(path: Path, size: int, chunk_bytes: int) -> Iterator[bytes]:
    """Yield exactly `size` bytes of a file in pieces.

    Raises:
        ProtocolError: The file has become shorter.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        left = size
        while left:
            chunk = file.read(min(left, chunk_bytes))
            if not chunk:
                message = f"{path}: expected {left} more bytes, received the file's end"
                raise ProtocolError(message)
            left -= len(chunk)
            yield chunk
