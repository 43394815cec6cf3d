"""Rows on local disk: written once as they come, read later in any order.

The file is an Arrow IPC file without compression, mapped into memory. Every column is numbers of a fixed size or
lists of one length, so a row is a run of numbers at an address that follows from its index. `Spill.take` computes
all addresses at once and gathers with one NumPy call per column, however many record batches the rows lie in.

The file has no name (it is unlinked as soon as it is open): a killed worker leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fatwood.errors import OptionError, StorageError


class _Mapped(NamedTuple):
    """One column in the mapped file."""

    runs: NDArray[Any]
    """The whole file as numbers of this column's type: element i is the number, or the run of width numbers, at i."""
    starts: NDArray[np.int64]
    """(batches,) where each record batch's values begin, in numbers."""
    width: int
    """Numbers per row."""


class Spill:
    """Record batches on local disk, to be taken back row by row in any order.

    Call `append` any number of times, then `finish`, then `take` any number of times, then `close`; it is a context
    manager. Threads must not share it.

    Args:
        directory: Where the file goes, on a local disk; made when missing.
    """

    def __init__(self, directory: Path | str) -> None:
        self._directory = Path(directory)
        self._file: IO[bytes] | None = None
        self._writer: Any = None
        self._lengths: list[int] = []
        self._columns: dict[str, _Mapped] | None = None
        self._ends = np.zeros(0, dtype=np.int64)
        self._begins = np.zeros(0, dtype=np.int64)
        self._closed = False
        self.rows = 0
        """Rows appended so far."""

    def append(self, batch: pa.RecordBatch) -> None:
        """Write rows at the end.

        Args:
            batch: Any number of rows; columns of int or float, or of fixed-size lists of them, without nulls.

        Raises:
            OptionError: A column has a type that cannot be kept, or a null; or `finish` was called.
            StorageError: The disk is full or the directory cannot be written.
        """
        if self._columns is not None or self._closed:
            message = "Spill.append: expected an open spill, received rows after finish or close"
            raise OptionError(message)
        _check_columns(batch)
        if batch.num_rows == 0:
            return
        with self._storage("write rows to"):
            if self._writer is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._directory, prefix="fatwood-spill-")  # noqa: SIM115
                self._writer = pa.ipc.new_file(self._file, batch.schema)
            self._writer.write_batch(batch)
        self._lengths.append(batch.num_rows)
        self.rows += batch.num_rows

    def finish(self) -> None:
        """End writing and map the file; later calls change nothing.

        Raises:
            StorageError: The disk is full or the file cannot be mapped.
        """
        if self._columns is not None or self._closed:
            return
        columns: dict[str, _Mapped] = {}
        if self._file is not None:
            with self._storage("finish and map"):
                self._writer.close()
                self._file.flush()
                columns = _mapped_columns(self._file)
        self._writer = None
        self._columns = columns
        self._ends = np.cumsum(self._lengths, dtype=np.int64)
        self._begins = self._ends - np.array(self._lengths, dtype=np.int64)

    def take(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Copy rows out of the file, in the order asked.

        Args:
            indices: (m,) row numbers in ``range(rows)``, in any order, repeats allowed.

        Returns:
            By column name, (m,) or (m, width) in writable memory of their own; no columns when there are no rows.

        Raises:
            IndexError: An index is not in ``range(rows)``.
            OptionError: `finish` was not called, or `close` was.
        """
        if self._columns is None:
            message = "Spill.take: expected a finished, open spill"
            raise OptionError(message, hint="call finish() after the last append()")
        if indices.size and not (indices.min() >= 0 and indices.max() < self.rows):
            message = f"Spill.take: expected indices in range({self.rows}), received {indices}"
            raise IndexError(message)
        batch = np.searchsorted(self._ends, indices, side="right")
        row = indices - self._begins[batch]
        return {
            name: column.runs[column.starts[batch] + row * column.width]
            for name, column in self._columns.items()
        }

    def close(self) -> None:
        """Give the disk space back; later calls change nothing."""
        self._closed = True
        self._columns = None  # the last views of the map: dropping them unmaps the file
        self._writer = None
        if self._file is not None:
            # After a full disk, closing tries once more to write what is buffered.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _storage(self, operation: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = (
                f"could not {operation} the spill file in {self._directory} after {self.rows} rows: {error}"
            )
            hint = "free space there, or point Spark's local directories at a larger disk"
            raise StorageError(message, hint=hint) from error


def _check_columns(batch: pa.RecordBatch) -> None:
    for field, column in zip(batch.schema, batch.columns, strict=True):
        values = column.flatten() if pa.types.is_fixed_size_list(field.type) else column
        plain = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
        if not plain or column.null_count or values.null_count:
            message = (
                f"Spill.append: column {field.name!r}: expected numbers or fixed-size lists of numbers without nulls, "
                f"received {field.type} with {column.null_count + values.null_count} nulls"
            )
            raise OptionError(message)


def _mapped_columns(file: IO[bytes]) -> dict[str, _Mapped]:
    """Map a finished IPC file and find where each column's numbers lie in each record batch."""
    content = np.asarray(np.memmap(file, dtype=np.uint8, mode="r"))
    reader = pa.ipc.open_file(pa.py_buffer(content))
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    columns = {}
    for index, field in enumerate(reader.schema):
        is_list = pa.types.is_fixed_size_list(field.type)
        columns_of_batches = [batch.column(index) for batch in batches]
        arrays = [
            (column.flatten() if is_list else column).to_numpy(zero_copy_only=True)
            for column in columns_of_batches
        ]
        item_bytes = arrays[0].itemsize
        # Arrow aligns every buffer to 8 bytes or more, so the offsets are whole numbers of items.
        starts = [(array.ctypes.data - content.ctypes.data) // item_bytes for array in arrays]
        runs = content[: len(content) // item_bytes * item_bytes].view(arrays[0].dtype)
        width = field.type.list_size if is_list else 1
        columns[field.name] = _Mapped(
            sliding_window_view(runs, width) if is_list else runs, np.array(starts, dtype=np.int64), width
        )
    return columns
