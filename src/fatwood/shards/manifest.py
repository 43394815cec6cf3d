"""The manifest of a shard directory: its files with rows, bytes and checksums, and the columns they share.

``_manifest.json``, UTF-8, keys sorted::

    {
     "format": "fatwood-shards", "format_version": 1,
     "rows": 25,                                      of all files, checked against their sum
     "files": [{"name": "part-00000-of-00002.parquet", "rows": 13, "bytes": 1234, "sha256": "..."}, ...],
     "columns": [{"name": "pixels", "type": "list<element: float not null>", "nullable": true}, ...],   to read
     "arrow_schema": "..."                            the same for programs: Arrow's IPC form in base64
    }

The order of the files is the order of their numbers.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from fatwood.errors import StorageError
from fatwood.storage import URI, Location, absolute, join, list_folder, location, read_bytes, write_atomic

__all__ = ["MANIFEST", "ShardFile", "ShardSet", "read_manifest", "shard_name", "write_manifest"]

MANIFEST = "_manifest.json"
_FORMAT, _VERSION = "fatwood-shards", 1
_MAX_BYTES = 256 << 20
"""Of a manifest: a million files and more."""
_NAME = re.compile(r"[^_./\\][^/\\]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DAMAGED = "restore the file from a copy, or write the shards again"


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One file of a shard directory."""

    name: str
    """Within the directory."""
    rows: int
    bytes: int
    sha256: str
    """Of its bytes, 64 hexadecimal digits."""


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """A shard directory, as its manifest describes it."""

    uri: str | Location
    """Of the directory."""
    files: tuple[ShardFile, ...]
    """By number."""
    schema: pa.Schema
    """Of every file."""

    @property
    def rows(self) -> int:
        """Of all files."""
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)

    def __str__(self) -> str:
        head = f"{self.rows:,} rows in {len(self.files)} files ({self.bytes / 1e6:,.1f} MB) at {self.uri}"
        return "\n".join([head, *(f"  {field.name}: {field.type}" for field in self.schema)])


def shard_name(number: int, count: int) -> str:
    """The name of a shard.

    Args:
        number: Of the shard, from 0.
        count: Of all shards; names sort as their numbers do.
    """
    width = max(5, len(str(count)))
    return f"part-{number:0{width}d}-of-{count:0{width}d}.parquet"


def read_manifest(uri: URI, *, storage_options: Mapping[str, Any] | None = None) -> ShardSet:
    """Read what a shard directory holds; no shard is opened.

    Args:
        uri: The directory; a scheme picks the store, a plain path is local.
        storage_options: Arguments of the store's fsspec class, by name: address, credentials.

    Raises:
        StorageError: There is no manifest, it cannot be read, it is damaged, or a newer version wrote it.
    """
    uri = absolute(location(uri, storage_options))
    place = str(join(uri, MANIFEST))
    if MANIFEST not in list_folder(uri):
        message = f"{uri}: expected a shard directory with {MANIFEST}, which is written last; found none"
        hint = "check the path; a write_shards that was broken off leaves no manifest: run it again"
        raise StorageError(message, hint=hint)
    text = read_bytes(join(uri, MANIFEST), max_bytes=_MAX_BYTES)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"{place}: expected JSON, received: {error}"
        raise StorageError(message, hint=_DAMAGED) from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise _wrong(place, f'expected "format": "{_FORMAT}"', text[:100])
    version: Any = found.get("format_version")
    if not _is_count(version, least=1):
        raise _wrong(place, "format_version: expected a whole number", version)
    if version > _VERSION:
        message = f"{place}: expected version {_VERSION} of the format or an older one, received {version}"
        raise StorageError(message, hint="a newer fatwood wrote it: pip install --upgrade fatwood")
    files = _files(place, found.get("files"))
    rows = sum(file.rows for file in files)
    if found.get("rows") != rows:
        raise _wrong(place, f"rows: expected {rows}, the sum over the files", found.get("rows"))
    return ShardSet(uri=uri, files=files, schema=_schema(place, found))


def write_manifest(shards: ShardSet) -> None:
    """Write the manifest of files that are there; equal contents give equal bytes.

    Args:
        shards: What is written.

    Raises:
        StorageError: It cannot be written.
    """
    manifest = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "rows": shards.rows,
        "files": [
            {"name": file.name, "rows": file.rows, "bytes": file.bytes, "sha256": file.sha256}
            for file in shards.files
        ],
        "columns": _columns(shards.schema),
        "arrow_schema": base64.b64encode(shards.schema.serialize().to_pybytes()).decode(),
    }
    text = json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=False).encode()
    write_atomic(join(shards.uri, MANIFEST), lambda file: _write(file, text))


def _write(file: BinaryIO, text: bytes) -> None:
    file.write(text)


def _columns(schema: pa.Schema) -> list[dict[str, Any]]:
    return [{"name": field.name, "type": str(field.type), "nullable": field.nullable} for field in schema]


def _files(place: str, found: object) -> tuple[ShardFile, ...]:
    if not isinstance(found, list):
        raise _wrong(place, "files: expected a list", found)
    files = tuple(_file(place, number, item) for number, item in enumerate(found))
    names = [file.name for file in files]
    if names != sorted(set(names)):
        raise _wrong(place, "files: expected every name once, in sorted order", names[:5])
    return files


def _file(place: str, number: int, found: object) -> ShardFile:
    where = f"files[{number}]"
    if not isinstance(found, dict):
        raise _wrong(place, f"{where}: expected an object", found)
    name, digest = found.get("name"), found.get("sha256")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _wrong(place, f"{where}.name: expected a plain file name", name)
    for field in ("rows", "bytes"):
        if not _is_count(found.get(field), least=0):
            raise _wrong(place, f"{where}.{field}: expected a whole number of at least 0", found.get(field))
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise _wrong(place, f"{where}.sha256: expected 64 hexadecimal digits", digest)
    return ShardFile(name=name, rows=found["rows"], bytes=found["bytes"], sha256=digest)


def _schema(place: str, found: dict[str, Any]) -> pa.Schema:
    try:
        content = base64.b64decode(found["arrow_schema"], validate=True)
        schema = pa.ipc.read_schema(pa.py_buffer(content))
        names = schema.names
    except Exception as error:
        message = f"{place}: arrow_schema: expected an Arrow schema in base64, received: {type(error).__name__}: {error}"
        raise StorageError(message, hint=_DAMAGED) from error
    # The types' spelling is left alone: it is Arrow's, and may differ in another version.
    columns = found.get("columns")
    if not isinstance(columns, list) or [
        column.get("name") if isinstance(column, dict) else None for column in columns
    ] != list(names):
        raise _wrong(place, f"columns: expected those of arrow_schema, {names!r:.200}", columns)
    return schema


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _wrong(place: str, expected: str, received: object) -> StorageError:
    return StorageError(f"{place}: {expected}, received {received!r:.200}", hint=_DAMAGED)
