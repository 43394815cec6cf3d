"""One shard, written by the task that has its rows.

What a task may do depends on the run's mark, a file in the directory that the driver writes first and deletes last: without it
a task publishes nothing. So one that goes on after its run was given up leaves no file, and one on a machine that does not see
the driver's directory says so before it has written a byte.
"""

from __future__ import annotations

import hashlib
import io
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext

from fatwood import storage
from fatwood.errors import StorageError
from fatwood.shards import MANIFEST, shard_name

__all__ = ["REPORT_SCHEMA", "ShardOrder", "write_shard"]

REPORT_SCHEMA = "shard int, rows bigint, bytes bigint, sha256 string, error string"
"""What a task tells: either what it wrote, or in words why it cannot, where another attempt would not help."""

_GROUP_BYTES, _GROUP_ROWS = 8 << 20, 10_000
"""Of a row group, at most. It is what a task holds in memory and what a reader reads at once: 8 MiB are enough for a store to be
at full speed, and few enough to start in the middle of a shard; 10,000 rows are what Spark hands over at once."""
_UNIT_ROWS = 64
"""Rows that are measured and put into a row group together."""


@dataclass(frozen=True, kw_only=True)
class ShardOrder:
    """What the tasks are told."""

    folder: str | storage.Location
    """The shard directory's URI."""
    mark: str
    """The name of the file in it that says that the run is under way."""
    shards: int
    """How many there will be."""
    names: tuple[str, ...]
    """Of the columns, in the order of those that the rows come in."""


def write_shard(batches: Iterator[pa.RecordBatch], order: ShardOrder) -> Iterator[pa.RecordBatch]:
    """Write the rows of a task as the shard of its partition.

    Args:
        batches: The rows, in order.
        order: Where to.

    Returns:
        A batch of one row in the form of :data:`REPORT_SCHEMA`; none, if there are no rows.

    Raises:
        StorageError: The shard cannot be written, or the run was given up meanwhile.
    """
    context = TaskContext.get()
    number = 0 if context is None else context.partitionId()
    if not _marked(order):
        message = f"{order.folder}: expected the driver's directory, the executor on {socket.gethostname()} sees another or none"
        yield _report(shard=number, rows=None, bytes=None, sha256=None, error=message)
        return
    first = next(batches, None)
    if first is None:  # the frame gave fewer rows than were counted: the driver will say so
        return
    uri = storage.join(order.folder, shard_name(number, order.shards))
    written: dict[str, Any] = {}

    def write(file: BinaryIO) -> None:
        target = _Hashed(file)
        written["rows"] = _write_parquet(target, _named(first, batches, order.names))
        written.update(bytes=target.bytes, sha256=target.digest.hexdigest())
        if not _marked(order):
            raise _given_up(order)

    storage.write_atomic(uri, write)
    if not _marked(order) and MANIFEST not in storage.list_folder(order.folder):
        storage.delete(uri)  # the driver gave the run up, and may have cleaned up before this shard came
        raise _given_up(order)
    yield _report(shard=number, **written, error=None)


def _marked(order: ShardOrder) -> bool:
    with suppress(StorageError):
        storage.open_read(storage.join(order.folder, order.mark)).close()
        return True
    return False


def _given_up(order: ShardOrder) -> StorageError:
    message = f"{order.folder}: the run that this task writes for is over"
    return StorageError(message, hint="look for what ended it on the driver")


def _report(**fields: Any) -> pa.RecordBatch:
    kinds = {"shard": pa.int32(), "rows": pa.int64(), "bytes": pa.int64()}
    arrays = [pa.array([value], kinds.get(name, pa.string())) for name, value in fields.items()]
    wanted = ["shard", "rows", "bytes", "sha256", "error"]
    return pa.RecordBatch.from_arrays(arrays, names=list(fields)).select(wanted)


def _named(
    first: pa.RecordBatch, others: Iterator[pa.RecordBatch], names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    schema = pa.schema([field.with_name(name) for field, name in zip(first.schema, names, strict=True)])
    for batch in chain([first], others):
        yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def _write_parquet(target: io.RawIOBase, batches: Iterator[pa.RecordBatch]) -> int:
    """Write rows as Parquet whose row groups do not depend on how the batches are cut; returns how many."""
    rows = 0
    first = next(batches)
    # A checksum in each page, so that readers notice a flipped bit without reading the manifest.
    with pq.ParquetWriter(target, first.schema, write_page_checksum=True) as writer:
        for group in _row_groups(first, batches):
            writer.write_table(group, row_group_size=group.num_rows)
            rows += group.num_rows
    return rows


def _row_groups(first: pa.RecordBatch, others: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    group: list[pa.RecordBatch] = []
    rows = size = 0
    for unit in _units(first, others):
        unit_bytes = pa.ipc.get_record_batch_size(unit)
        if group and (size + unit_bytes > _GROUP_BYTES or rows + unit.num_rows > _GROUP_ROWS):
            yield pa.Table.from_batches(group).combine_chunks()
            group, rows, size = [], 0, 0
        group.append(unit)
        rows, size = rows + unit.num_rows, size + unit_bytes
    yield pa.Table.from_batches(group, first.schema).combine_chunks()


def _units(first: pa.RecordBatch, others: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows, 64 by 64."""
    left = pa.Table.from_batches([first])
    while left is not None:
        batch = next(others, None)
        last = batch is None
        whole = left.num_rows if last else left.num_rows - left.num_rows % _UNIT_ROWS
        for start in range(0, whole, _UNIT_ROWS):
            yield from left.slice(start, _UNIT_ROWS).combine_chunks().to_batches()
        rest = left.slice(whole)
        left = None if last else pa.concat_tables([rest, pa.Table.from_batches([batch])])


class _Hashed(io.RawIOBase):
    """A file to write to, from its beginning on, that keeps count and digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.bytes

    def write(self, content: Any) -> int:
        self._file.write(content)
        self.digest.update(content)
        self.bytes += len(content)
        return len(content)
