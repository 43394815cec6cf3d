"""Write an archive; the same contents give the same bytes everywhere."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import torch

from fatwood.archive.early import EarlySync
from fatwood.archive.frame import Entry, descriptor, directory, local_header
from fatwood.archive.hashing import Piece, crc_of, slices
from fatwood.archive.kind import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PIECE_BYTES,
    Kind,
    is_part_name,
    is_reasonable_json,
)
from fatwood.archive.tensors import Tensors
from fatwood.errors import OptionError, UserError

__all__ = ["Part", "write_archive"]

Part: TypeAlias = bytes | Path | Tensors


def write_archive(
    file: BinaryIO, kind: Kind, *, fields: Mapping[str, Any], parts: Mapping[str, Part]
) -> None:
    """Write an archive, from the first byte to the last: the file needs no `seek`.

    Args:
        file: An open binary file; it stays open.
        kind: What is written.
        fields: What stands in the manifest beside the fields of every archive; JSON values.
        parts: By plain file name, bytes, tensors, or a local file, which is copied a piece at a time; none may change meanwhile.

    Raises:
        OptionError: A part's name is not a plain file name.
        UserError: A field that JSON cannot say, or a manifest that is too large; nothing was written then.
    """
    for name in parts:
        if not is_part_name(name):
            message = f"archive of a {kind.content}: expected plain file names of parts, received {name!r}"
            raise OptionError(message)
    manifest = {
        **fields,
        "format": kind.format,
        "format_version": kind.version,
        "versions": _versions(),
        "parts": sorted(parts),
    }
    text = _json(manifest, kind)  # what it cannot say is an error before anything is written
    with EarlySync(file) as early:
        writer = _Writer(file, early)
        for name in sorted(parts):
            writer.add(name, _pieces(parts[name]))
    writer.add(MANIFEST, iter([text]))
    writer.end()


class _Writer:
    """A zip archive on its way."""

    def __init__(self, file: BinaryIO, early: EarlySync) -> None:
        self._file = file
        self._early = early
        self._offset = 0
        self._entries: list[Entry] = []

    def add(self, name: str, pieces: Iterator[bytes] | Iterator[memoryview]) -> None:
        """Write an entry, a piece at a time."""
        begin = self._offset
        self._write(local_header(name, begin))
        data = self._offset
        crc, size = crc_of(pieces, self._write)
        entry = Entry(name=name, offset=begin, data=data, size=size, crc=crc)
        self._write(descriptor(entry))
        self._entries.append(entry)

    def end(self) -> None:
        """Write the directory."""
        self._write(directory(self._entries, self._offset))

    def _write(self, content: Piece) -> None:
        written: Callable[[Piece], int | None] = self._file.write
        view = memoryview(content)
        while view:
            count = written(view)  # a raw stream may take less than it is given
            view = view[len(view) if count is None else count :]
        self._offset += len(content)
        self._early.wrote(len(content))


def _pieces(part: Part) -> Iterator[bytes] | Iterator[memoryview]:
    if isinstance(part, bytes):
        return slices(part)
    return part.pieces() if isinstance(part, Tensors) else _pieces_of_file(part)


def _pieces_of_file(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as source:
        while piece := source.read(PIECE_BYTES):
            yield piece


def _json(manifest: Mapping[str, Any], kind: Kind) -> bytes:
    try:
        plain = json.loads(json.dumps(manifest))  # keys that are numbers become text before they are sorted
        text = json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        message = (
            f"cannot save the {kind.content}: expected JSON values beside the tensors, received: {error}"
        )
        raise UserError(message, hint="use numbers, strings, lists and dicts with string keys") from error
    if len(text) > MAX_MANIFEST_BYTES or not is_reasonable_json(text):
        message = f"cannot save the {kind.content}: expected a manifest of at most {MAX_MANIFEST_BYTES} bytes, received {len(text)}"
        raise UserError(message, hint="keep large things in a file of their own")
    return text


def _versions() -> dict[str, str]:
    try:
        fatwood = importlib.metadata.version("fatwood")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree or a shipped archive
        fatwood = "unknown"
    return {"fatwood": fatwood, "python": platform.python_version(), "torch": torch.__version__}
