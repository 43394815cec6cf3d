"""What one Arrow column must hold, checked over all rows at once.

Arrow arrays can be slices of larger ones: `flatten` honours that, `values` does not. A row is looked at on its own
only to word the message about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fatwood.data.batch import Array, Ragged
from fatwood.data.fields import Field
from fatwood.errors import SchemaError

_ARROW = {"float32": pa.float32(), "int64": pa.int64(), "uint8": pa.uint8()}


@dataclass(frozen=True)
class Column:
    """The rule for the column of one field."""

    field: Field

    def of(self, batch: pa.RecordBatch) -> Any:
        """The Arrow array of this column.

        Args:
            batch: A record batch as Spark hands it over.

        Returns:
            The Arrow array, of the right type; its values are not checked.

        Raises:
            SchemaError: The column is missing or has another type.
        """
        title = self.field.title
        index = batch.schema.get_field_index(self.field.name)
        if index < 0:
            found = ", ".join(batch.schema.names) or "no columns"
            message = f"column {title!r}: expected an Arrow column {self.field.name!r} of {self._type()}, received {found}"
            raise SchemaError(message)
        column = batch.column(index)
        if self.field.dtype == "uint8" and self.field.listed:
            column = _bytes_as_lists(column)
        self.require_type(column.type)
        return column

    def require_type(self, arrow_type: Any) -> None:
        """Check the type of a column.

        Raises:
            SchemaError: It is another one.
        """
        if not self._fits(arrow_type):
            message = f"column {self.field.title!r}: expected {self._type()}, received {arrow_type}"
            raise SchemaError(
                message, hint=f"cast the column to {self._type()} in Spark before fit, evaluate or predict"
            )

    def dense(self, column: Any) -> Array | None:
        """All rows as one array, without a copy, when every row is good.

        Args:
            column: What `of` returned, n rows.

        Returns:
            (n, ...), or the rows' steps; None when any row is bad.
        """
        field, values = self.field, column
        lengths: Any = None
        if field.listed:
            if column.null_count:
                return None
            lengths = pc.list_value_length(column)
            if not pc.all(self._long_enough(lengths), min_count=0).as_py():
                return None
            values = column.flatten()
        if values.null_count:
            return None
        array: NDArray[Any] = values.to_numpy(zero_copy_only=True)
        if field.dtype == "float32" and not np.isfinite(array).all():
            return None
        if field.least is not None and not (array >= field.least).all():
            return None
        if field.ragged:
            steps = np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64) // field.width
            return Ragged(array.reshape(-1, *field.shape), steps)
        return array.reshape(len(column), *field.shape)

    def good(self, column: Any) -> NDArray[np.bool_]:
        """Which rows are good.

        Args:
            column: What `of` returned, n rows.

        Returns:
            (n,) booleans.
        """
        field = self.field
        if field.listed:
            lengths = pc.list_value_length(column)
            rows = _booleans(self._long_enough(lengths).fill_null(False))
            counts = lengths.filter(pa.array(rows)).to_numpy(zero_copy_only=False)
            values = column.filter(pa.array(rows)).flatten()
        else:
            rows = _booleans(column.is_valid())
            counts = np.ones(int(rows.sum()), np.int64)
            values = column.filter(pa.array(rows))
        fine = _booleans(values.is_valid())
        if field.dtype == "float32":
            fine &= np.isfinite(values.fill_null(0).to_numpy(zero_copy_only=False))
        if field.least is not None:
            fine &= values.fill_null(field.least).to_numpy(zero_copy_only=False) >= field.least
        if len(counts):
            starts = np.cumsum(counts) - counts  # every list here has an element
            rows[rows] = np.logical_and.reduceat(fine, starts)
        return rows

    def complaint(self, column: Any, row: int) -> str:
        """What is wrong with one bad row.

        Args:
            column: What `of` returned.
            row: The index of a row that `good` calls bad.

        Returns:
            Text such as ``column 'pixels': expected 784 finite numbers, received NaN at position 5``.
        """
        field, value = self.field, column[row].as_py()
        noun = "finite number" if field.dtype == "float32" else "integer"
        if not field.listed:
            article = "a" if field.dtype == "float32" else "an"
            limit = "" if field.least is None else f" of at least {field.least:g}"
            return f"column {field.title!r}: expected {article} {noun}{limit}, received {_spelled(value)}"
        expected = f"column {field.title!r}: expected {self._wanted(noun)}"
        if value is None:
            return f"{expected}, received null"
        if not pc.all(self._long_enough(pa.array([len(value)]))).as_py():
            return f"{expected}, received {_count(len(value), 'value')}"
        position, fault = next((i, v) for i, v in enumerate(value) if v is None or not math.isfinite(v))
        return f"{expected}, received {_spelled(fault)} at position {position}"

    def _long_enough(self, lengths: Any) -> Any:
        """Which of the lists have as many numbers as they must."""
        width = self.field.width
        if not self.field.ragged:
            return pc.equal(lengths, width)
        some = pc.greater(lengths, 0)
        if width == 1:
            return some
        return pc.and_(some, pc.equal(pc.multiply(pc.divide(lengths, width), width), lengths))

    def _wanted(self, noun: str) -> str:
        if not self.field.ragged:
            return _count(self.field.width, noun)
        return f"one step or more, each of {_count(self.field.width, noun)}"

    def _type(self) -> str:
        return f"list<{self.field.dtype}>" if self.field.listed else self.field.dtype

    def _fits(self, arrow_type: Any) -> bool:
        if self.field.listed:
            if not (
                pa.types.is_list(arrow_type)
                or pa.types.is_large_list(arrow_type)
                or pa.types.is_fixed_size_list(arrow_type)
            ):
                return False
            arrow_type = arrow_type.value_type
        return bool(arrow_type == _ARROW[self.field.dtype])


def _bytes_as_lists(column: Any) -> Any:
    """A column of bytes as lists of uint8, without a copy; another column as it is."""
    large = pa.types.is_large_binary(column.type)
    if not (large or pa.types.is_binary(column.type)):
        return column
    valid, offsets, content = column.buffers()
    values = pa.Array.from_buffers(pa.uint8(), 0 if content is None else content.size, [None, content])
    kind = (pa.large_list if large else pa.list_)(pa.uint8())
    return pa.Array.from_buffers(
        kind, len(column), [valid, offsets], column.null_count, column.offset, children=[values]
    )


def _booleans(array: Any) -> NDArray[np.bool_]:
    """A writable NumPy copy of an Arrow boolean array without nulls."""
    return np.array(array.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _spelled(value: float | None) -> str:
    if value is None:
        return "null"
    return "NaN" if math.isnan(value) else str(value)
