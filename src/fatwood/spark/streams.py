"""Arrow streams as values of a column of bytes: how rows that Python made get into a DataFrame without being Python objects.

This module imports nothing but Arrow: the process that unpacks streams stands beside the one that makes them, in the same task, and
need not load PyTorch, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

__all__ = ["packed", "unpacked"]


def packed(batches: list[pa.RecordBatch], schema: pa.Schema) -> bytes:
    """Record batches as one stream of one batch.

    Args:
        batches: At least one, less than 2 GiB together; lists and bytes may be large ones, with 64-bit offsets.
        schema: Theirs, without large ones.
    """
    table = pa.Table.from_batches(
        [batch if batch.schema == schema else batch.cast(schema) for batch in batches]
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue().to_pybytes())


def unpacked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The record batches of all streams. Runs on an executor, inside ``mapInArrow``.

    Args:
        batches: Of one column of streams.
    """
    for batch in batches:
        for stream in batch.column(0):
            with pa.ipc.open_stream(stream.as_buffer()) as reader:
                yield from reader
