"""Rows of Parquet files, dealt out to workers that read them themselves: no JVM, no shuffle.

::

    parquet_files(uri)   -> [(uri of a file, rows), ...]     from a manifest, or from the footers
    divide(rows, W)      -> for each worker, spans of rows   shares differ by at most one row
    read_piece(piece)    -> Arrow batches with ``row_id``    only the row groups and columns that are needed

Workers read long runs of rows, so that few row groups are read by two of them. Rows that lie side by side in a file
therefore come to the same worker, one after another: in the first epoch the order is that of the files, which
:func:`fatwood.spark.shards.write_shards` has shuffled; later epochs are permuted by :class:`fatwood.data.PartitionData`.
Files that are sorted by class are no good for this: shuffle them once with ``write_shards``, or train on a DataFrame.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fatwood.data import ROW_BITS
from fatwood.errors import DamagedError, OptionError, StorageError
from fatwood.shards import MANIFEST, ShardSet, is_data_file, open_parquet, read_manifest
from fatwood.storage import URI, Location, absolute, join, list_folder, list_sizes

__all__ = ["Piece", "Span", "divide", "divided", "parquet_files", "parquet_schema", "read_piece"]

_MAX_FILES = 1 << (63 - ROW_BITS)
_THREADS = 8
_BATCH_BYTES = 4 << 20
_ROW_ID = "row_id"


class Span(NamedTuple):
    """Rows ``start`` to ``stop - 1`` of a file."""

    file: int
    """The file's number in the list of all files."""
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows ``start`` to ``stop - 1`` of a Parquet file, for one worker to read."""

    uri: str | Location
    """Of the file."""
    file: int
    """Its number in the list of all files; the row ids tell it."""
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start


def divide(rows_of_files: Sequence[int], workers: int, *, shuffle: bool, seed: int) -> list[list[Span]]:
    """Deal the rows of files out in exactly equal shares: each row once, shares differ by at most one.

    The files are laid end to end, with `shuffle` in an order drawn from `seed`, and cut into as many runs as there are
    workers. So at most ``workers - 1`` files are read by more than one worker, but for files larger than a share.

    Args:
        rows_of_files: Rows of each file.
        workers: How many shares, at least 1.
        shuffle: Whether the order of the files is drawn; the rows in a file keep theirs.
        seed: Any integer.

    Returns:
        For each worker its spans, in reading order; none is empty, but a worker may have none.

    Raises:
        OptionError: `workers` is less than 1, or a file has a negative number of rows.
    """
    if workers < 1:
        message = f"divide: workers: expected at least 1, received {workers}"
        raise OptionError(message)
    if any(rows < 0 for rows in rows_of_files):
        message = f"divide: expected at least 0 rows in every file, received {min(rows_of_files)}"
        raise OptionError(message)
    order = list(range(len(rows_of_files)))
    if shuffle:
        order.sort(key=lambda file: hashlib.blake2b(f"files:{seed}:{file}".encode(), digest_size=8).digest())
    total = sum(rows_of_files)
    ends = [total * (rank + 1) // workers for rank in range(workers)]
    shares: list[list[Span]] = [[] for _ in range(workers)]
    rank = at = 0
    for file in order:
        start, rows = 0, rows_of_files[file]
        while start < rows:
            while ends[rank] == at:
                rank += 1
            taken = min(rows - start, ends[rank] - at)
            shares[rank].append(Span(file, start, start + taken))
            start, at = start + taken, at + taken
    return shares


def divided(
    files: Sequence[tuple[str | Location, int]], workers: int, *, shuffle: bool, seed: int
) -> list[list[Piece]]:
    """The pieces of each worker: :func:`divide` over what :func:`parquet_files` found.

    Args:
        files: URI and rows of each file; its place in the list is its number.
        workers: How many shares, at least 1.
        shuffle: Whether the order of the files is drawn.
        seed: Any integer.

    Raises:
        OptionError: `workers` is less than 1.
    """
    shares = divide([rows for _, rows in files], workers, shuffle=shuffle, seed=seed)
    return [
        [Piece(uri=files[span.file][0], file=span.file, start=span.start, stop=span.stop) for span in share]
        for share in shares
    ]


def parquet_files(uri: URI) -> list[tuple[str | Location, int]]:
    """The Parquet files at a place, sorted by name, with their rows.

    Args:
        uri: A shard directory, whose manifest tells all; another directory, of whose files those are left out that begin
            with ``_`` or ``.``, and folders within; one file; or a pattern with ``*``, ``?`` or ``[...]`` in its last part.

    Returns:
        (URI, rows) of each. Rows are from the footers, or from the manifest, where there is one.

    Raises:
        StorageError: There is nothing, a file is no Parquet, or something cannot be read.
    """
    place = absolute(uri)
    above, _, last = str(place).rstrip("/").rpartition("/")
    folder = replace(place, uri=above) if isinstance(place, Location) else above or "/"
    if any(sign in last for sign in "*?["):
        names = fnmatch.filter(list_folder(folder), last)
        return _with_rows([join(folder, name) for name in names if is_data_file(name)], place)
    try:
        sizes = list_sizes(place)
    except StorageError:  # a file, or a folder that cannot be listed, which opening it will say, too
        sizes = {}
    names = sorted(sizes)
    if MANIFEST in names:
        shards = read_manifest(place)
        _require_files(shards.files, place)
        _require_sizes(shards, sizes)
        return [(join(shards.uri, file.name), file.rows) for file in shards.files]
    found = [join(place, name) for name in names if is_data_file(name)]
    if not names and _is_file(folder, last):
        found = [place]
    return _with_rows(found, place)


def parquet_schema(uri: URI) -> pa.Schema:
    """The columns of one Parquet file.

    Args:
        uri: The file; a scheme picks the store, a plain path is local.

    Raises:
        StorageError: It cannot be read, or is no Parquet.
    """
    with open_parquet(uri) as parquet:
        return parquet.schema_arrow


def read_piece(
    piece: Piece, columns: Sequence[str], *, schema: pa.Schema | None = None, batch_rows: int = 4096
) -> Iterator[pa.RecordBatch]:
    """The rows of a piece, in their order.

    Only row groups with rows of the piece are read, and of these only the columns that are asked for, through a buffer of
    at most 8 MiB for each column. A batch has about 4 MiB, however large the rows or the row groups are.

    Args:
        piece: Which rows.
        columns: Names of top-level columns.
        schema: What the columns must be like in every file, by type; None: as they are.
        batch_rows: Rows of a batch, at most.

    Returns:
        Record batches of the columns in the order of `columns`, and ``row_id`` (int64): ``file << 33 | row``.

    Raises:
        StorageError: The file cannot be read, is damaged, has not the rows of the piece, or not these columns.
    """
    with open_parquet(piece.uri) as parquet:
        _check(parquet.schema_arrow, columns, schema, piece.uri)
        groups, start = _groups(parquet.metadata, piece)
        if not groups:
            return
        at = start
        rows = _rows_of_batch(parquet.metadata, groups, batch_rows)
        for batch in parquet.iter_batches(rows, row_groups=groups, columns=list(columns), use_threads=False):
            low, high = max(piece.start - at, 0), min(piece.stop - at, batch.num_rows)
            if low < high:
                ids = np.arange(at + low, at + high, dtype=np.int64) | (piece.file << ROW_BITS)
                kept = batch.slice(low, high - low)
                arrays = [*(kept.column(name) for name in columns), pa.array(ids)]
                yield pa.RecordBatch.from_arrays(arrays, names=[*columns, _ROW_ID])
            at += batch.num_rows
        if at < piece.stop:
            message = f"{piece.uri}: expected rows up to {piece.stop}, its row groups hold rows up to {at}"
            raise DamagedError(message, hint="the file is damaged: restore it from a copy")


def _groups(metadata: Any, piece: Piece) -> tuple[list[int], int]:
    """The row groups with rows of the piece, and the number of the first row in the first of them."""
    rows = metadata.num_rows
    if not 0 <= piece.start <= piece.stop <= rows:
        message = f"{piece.uri}: expected at least {piece.stop} rows, found {rows}"
        raise StorageError(message, hint="the file was replaced since its rows were counted: start again")
    groups: list[int] = []
    first = at = 0
    for group in range(metadata.num_row_groups):
        end = at + metadata.row_group(group).num_rows
        if at < piece.stop and piece.start < end:
            first = first if groups else at
            groups.append(group)
        at = end
    return groups, first


def _rows_of_batch(metadata: Any, groups: Sequence[int], most: int) -> int:
    sizes = [metadata.row_group(group) for group in groups]
    widest = max(size.total_byte_size / max(size.num_rows, 1) for size in sizes)
    return max(1, min(most, int(_BATCH_BYTES / max(widest, 1))))


def _check(found: pa.Schema, columns: Sequence[str], expected: pa.Schema | None, uri: URI) -> None:
    for name in columns:
        if found.names.count(name) != 1:
            message = f"{uri}: column {name!r}: expected it once among the columns ({', '.join(found.names)})"
            raise StorageError(message, hint="all files that are read together must have the same columns")
        kind = found.field(name).type
        if expected is not None and kind != expected.field(name).type:
            message = f"{uri}: column {name!r}: expected {expected.field(name).type}, found {kind}"
            raise StorageError(message, hint="all files that are read together must have the same columns")


def _require_files(found: Sequence[object], place: URI) -> None:
    if not found:
        message = f"{place}: expected Parquet files, found none"
        hint = (
            "check the path; folders within a folder, such as date=2026-01-01, are read by spark.read.parquet"
        )
        raise StorageError(message, hint=hint)
    if len(found) > _MAX_FILES:
        message = f"{place}: expected at most {_MAX_FILES} files, found {len(found)}"
        raise StorageError(message, hint="write fewer and larger files")


def _is_file(folder: URI, name: str) -> bool:
    try:
        return name in list_folder(folder)
    except StorageError:
        return True  # opening it will say what is wrong


def _require_sizes(shards: ShardSet, sizes: Mapping[str, int | None]) -> None:
    """Find missing and truncated shards before any task does."""
    for file in shards.files:
        received = sizes.get(file.name, -1)
        if received is not None and received != file.bytes:
            found = "no file" if received == -1 else f"{received} bytes"
            message = f"{join(shards.uri, file.name)}: expected {file.bytes} bytes, as the manifest says, received {found}"
            raise DamagedError(
                message,
                hint="validate_shards(uri) tells all that is wrong; restore the file, or write the shards again",
            )


def _with_rows(uris: Sequence[str | Location], place: URI) -> list[tuple[str | Location, int]]:
    _require_files(uris, place)
    with ThreadPoolExecutor(min(_THREADS, len(uris)), "fatwood-footers") as pool:
        return list(zip(uris, pool.map(_rows, uris), strict=True))


def _rows(uri: URI) -> int:
    with open_parquet(uri) as parquet:
        return int(parquet.metadata.num_rows)
