"""Rows on local disk: written once as they come, read later in any order.

The file is an Arrow IPC file without compression, mapped into memory. Every column is numbers of a fixed size or
lists of one length, so a row is a run of numbers at an address that follows from its index. `Spill.take` computes
all addresses at once and gathers with one NumPy call per column, however many record batches the rows lie in.

The file has no name (it is unlinked as soon as it is open): a killed worker leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fatwood.data.batch import Array, Ragged
from fatwood.errors import OptionError, StorageError


class _Mapped(NamedTuple):
    """One column in the mapped file."""

    runs: NDArray[Any]
    """The whole file as numbers of this column's type: element i is the number, or the run of width numbers, at i."""
    starts: NDArray[np.int64]
    """(batches,) where each record batch's values begin, in numbers."""
    width: int
    """Numbers per row."""

    def rows(self, batch: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[Any]:
        """A copy of some rows, each the number of a batch and of a row in it."""
        taken: NDArray[Any] = self.runs[self.starts[batch] + row * self.width]
        return taken


class _MappedSteps(NamedTuple):
    """One column of rows with steps: where each row's begin and end, and the steps."""

    offsets: _Mapped
    steps: _Mapped

    def rows(self, batch: NDArray[np.int64], row: NDArray[np.int64]) -> Ragged:
        """A copy of some rows, each the number of a batch and of a row in it."""
        begins = self.offsets.rows(batch, row)
        lengths = self.offsets.rows(batch, row + 1) - begins
        ends = np.cumsum(lengths)
        within = np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(ends - lengths, lengths)
        steps = self.steps.rows(np.repeat(batch, lengths), np.repeat(begins, lengths) + within)
        return Ragged(steps, lengths)


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
        self._columns: dict[str, _Mapped | _MappedSteps] | None = None
        self._ends = np.zeros(0, dtype=np.int64)
        self._begins = np.zeros(0, dtype=np.int64)
        self._closed = False
        self.rows = 0
        """Rows appended so far."""

    def append(self, batch: pa.RecordBatch) -> None:
        """Write rows at the end.

        Args:
            batch: Any number of rows; columns of int or float, of fixed-size lists of them, or of large lists of either,
                without nulls and not sliced.

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
        columns: dict[str, _Mapped | _MappedSteps] = {}
        if self._file is not None:
            with self._storage("finish and map"):
                self._writer.close()
                self._file.flush()
                columns = _mapped_columns(self._file)
        self._writer = None
        self._columns = columns
        self._ends = np.cumsum(self._lengths, dtype=np.int64)
        self._begins = self._ends - np.array(self._lengths, dtype=np.int64)

    def take(self, indices: NDArray[np.int64]) -> dict[str, Array]:
        """Copy rows out of the file, in the order asked.

        Args:
            indices: (m,) row numbers in ``range(rows)``, in any order, repeats allowed.

        Returns:
            By column name, (m,) or (m, width), or steps, in writable memory of their own; no columns when there are no rows.

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
        return {name: column.rows(batch, row) for name, column in self._columns.items()}

    def lengths(self, name: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many steps some rows have.

        Args:
            name: Of a column of rows with steps.
            indices: (m,) row numbers in ``range(rows)``.
        """
        column = {} if self._columns is None else self._columns
        steps = column[name]
        assert isinstance(steps, _MappedSteps)  # noqa: S101  the caller knows its columns
        batch = np.searchsorted(self._ends, indices, side="right")
        row = indices - self._begins[batch]
        lengths: NDArray[np.int64] = steps.offsets.rows(batch, row + 1) - steps.offsets.rows(batch, row)
        return lengths

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
        values, nulls = column, column.null_count
        if pa.types.is_large_list(values.type):
            values = values.flatten()
            nulls += values.null_count
        if pa.types.is_fixed_size_list(values.type):
            values = values.flatten()
            nulls += values.null_count
        plain = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
        if not plain or nulls:
            message = (
                f"Spill.append: column {field.name!r}: expected numbers, or lists of them, without nulls, "
                f"received {field.type} with {nulls} nulls"
            )
            raise OptionError(message)


def _mapped_columns(file: IO[bytes]) -> dict[str, _Mapped | _MappedSteps]:
    """Map a finished IPC file and find where each column's numbers lie in each record batch."""
    content = np.asarray(np.memmap(file, dtype=np.uint8, mode="r"))
    reader = pa.ipc.open_file(pa.py_buffer(content))
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    columns: dict[str, _Mapped | _MappedSteps] = {}
    for index, field in enumerate(reader.schema):
        arrays = [batch.column(index) for batch in batches]
        if pa.types.is_large_list(field.type):
            offsets = [array.offsets for array in arrays]
            steps = [array.values for array in arrays]
            columns[field.name] = _MappedSteps(_mapped(content, offsets), _mapped(content, steps))
        else:
            columns[field.name] = _mapped(content, arrays)
    return columns


def _mapped(content: NDArray[np.uint8], of_batches: Sequence[Any]) -> _Mapped:
    """One column of numbers, or of fixed-size lists of them."""
    kind = of_batches[0].type
    width = kind.list_size if pa.types.is_fixed_size_list(kind) else 1
    is_list = pa.types.is_fixed_size_list(kind)
    arrays = [(array.flatten() if is_list else array).to_numpy(zero_copy_only=True) for array in of_batches]
    item_bytes = arrays[0].itemsize
    # Arrow aligns every buffer to 8 bytes or more, so the offsets are whole numbers of items.
    starts = [(array.ctypes.data - content.ctypes.data) // item_bytes for array in arrays]
    runs = content[: len(content) // item_bytes * item_bytes].view(arrays[0].dtype)
    return _Mapped(sliding_window_view(runs, width) if is_list else runs, np.array(starts, np.int64), width)
