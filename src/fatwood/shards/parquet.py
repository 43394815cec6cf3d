"""Parquet files at any URI, opened so that little of them is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from fatwood.errors import DamagedError, FatwoodError, StorageError
from fatwood.storage import URI, open_read

__all__ = ["is_data_file", "open_parquet"]

_HINT = "the file is damaged, incomplete or no Parquet: write it again, or restore it from a copy"
# Of a column, and never more than its share of a row group. Columns are read in turns; a store that reads ahead is slow when
# it is sent back and forth, and with row groups of 8 MiB, as in shards, it is not.
_BUFFER_BYTES = 8 << 20


def is_data_file(name: str) -> bool:
    """Whether a file of this name holds rows: Spark and Arrow leave out names that begin with ``_`` or ``.``."""
    return not name.startswith(("_", "."))


@contextmanager
def open_parquet(uri: URI) -> Iterator[pq.ParquetFile]:
    """A Parquet file, open while the block runs.

    Columns are read through buffers of at most 8 MiB, so a row group of any size is never whole in memory.
    Pages that carry a checksum are checked against it; those of :func:`fatwood.spark.shards.write_shards` do.

    Args:
        uri: The file; a scheme picks the store, a plain path is local.

    Raises:
        StorageError: The file cannot be opened or read.
        DamagedError: It is no Parquet, or what is read of it within the block is damaged.
    """
    with open_read(uri) as file:
        try:
            # Without pre_buffer: it would fetch all row groups that are asked for, and keep them.
            with pq.ParquetFile(
                file, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
            ) as parquet:
                yield parquet
        except FatwoodError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            message = f"cannot read {uri} as Parquet: {type(error).__name__}: {error}"
            # Arrow raises what it finds wrong in a file as an OSError, too, but without a number.
            of_the_system = isinstance(error, OSError) and error.errno is not None
            raise (StorageError if of_the_system else DamagedError)(message, hint=_HINT) from error
