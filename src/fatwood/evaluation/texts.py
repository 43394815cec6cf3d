"""Text of reports on any storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fatwood import storage
from fatwood.errors import UserError

__all__ = ["read_text", "write_text"]

_MAX_BYTES: Final = 1 << 30


def read_text(source: storage.URI, storage_options: Mapping[str, Any] | None = None) -> str:
    """JSON text.

    Args:
        source: The text itself, or the file that holds it.
        storage_options: Of the file's store; text goes without.

    Raises:
        UserError: The file holds no text.
        StorageError: It cannot be read.
    """
    if isinstance(source, str) and source.lstrip()[:1] in ("{", "[", ""):
        return source
    try:
        return storage.read_bytes(storage.location(source, storage_options), max_bytes=_MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        message = f"{source}: expected a report as JSON, received bytes that are no text"
        raise UserError(message, hint="pass what to_json() returned or wrote, unchanged") from error


def write_text(uri: storage.URI, text: str, storage_options: Mapping[str, Any] | None = None) -> None:
    """Write a file.

    Args:
        uri: On any storage.
        text: All of it.
        storage_options: Of the file's store.

    Raises:
        StorageError: It cannot be written.
    """
    storage.write_atomic(storage.location(uri, storage_options), lambda file: _write(file, text.encode()))


def _write(file: object, data: bytes) -> None:
    file.write(data)  # type: ignore[attr-defined]
