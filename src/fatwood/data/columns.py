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

from fatwood.errors import SchemaError


@dataclass(frozen=True, kw_only=True)
class Column:
    """The rule for one column: every row a scalar, or every row a list of ``width`` of them."""

    name: str
    """The column's name in the record batch."""
    title: str
    """The column's name in the user's DataFrame, for messages."""
    dtype: str
    """``"float32"`` (null, NaN and infinities are faults) or ``"int64"`` (null is a fault)."""
    width: int | None
    """Values per row; None for a scalar column."""
    least: float | None = None
    """A smaller number is a fault; None where any is fine. Scalar columns only."""

    def of(self, batch: pa.RecordBatch) -> Any:
        """The Arrow array of this column.

        Args:
            batch: A record batch as Spark hands it over.

        Returns:
            The Arrow array, of the right type; its values are not checked.

        Raises:
            SchemaError: The column is missing or has another type.
        """
        index = batch.schema.get_field_index(self.name)
        expected = self.dtype if self.width is None else f"list<{self.dtype}>"
        if index < 0:
            found = ", ".join(batch.schema.names) or "no columns"
            message = f"column {self.title!r}: expected an Arrow column {self.name!r} of {expected}, received {found}"
            raise SchemaError(message)
        column = batch.column(index)
        if not self._fits(column.type):
            message = f"column {self.title!r}: expected {expected}, received {column.type}"
            raise SchemaError(
                message, hint=f"cast the column to {expected} in Spark before fit, evaluate or predict"
            )
        return column

    def dense(self, column: Any) -> NDArray[Any] | None:
        """All rows as one array, without a copy, when every row is good.

        Args:
            column: What `of` returned, n rows.

        Returns:
            (n,) or (n, width); None when any row is bad.
        """
        values = column
        if self.width is not None:
            if (
                column.null_count
                or not pc.all(pc.equal(pc.list_value_length(column), self.width), min_count=0).as_py()
            ):
                return None
            values = column.flatten()
        if values.null_count:
            return None
        array: NDArray[Any] = values.to_numpy(zero_copy_only=True)
        if self.dtype == "float32" and not np.isfinite(array).all():
            return None
        if self.least is not None and not (array >= self.least).all():
            return None
        return array if self.width is None else array.reshape(len(column), self.width)

    def good(self, column: Any) -> NDArray[np.bool_]:
        """Which rows are good.

        Args:
            column: What `of` returned, n rows.

        Returns:
            (n,) booleans.
        """
        if self.width is None:
            rows = _booleans(column.is_valid())
            values = column.filter(pa.array(rows))
        else:
            rows = _booleans(pc.equal(pc.list_value_length(column), self.width).fill_null(False))
            values = column.filter(pa.array(rows)).flatten()
        fine = _booleans(values.is_valid())
        if self.dtype == "float32":
            fine &= np.isfinite(values.fill_null(0).to_numpy(zero_copy_only=False))
        if self.least is not None:
            fine &= values.fill_null(self.least).to_numpy(zero_copy_only=False) >= self.least
        rows[rows] = fine.reshape(-1, self.width or 1).all(axis=1)
        return rows

    def complaint(self, column: Any, row: int) -> str:
        """What is wrong with one bad row.

        Args:
            column: What `of` returned.
            row: The index of a row that `good` calls bad.

        Returns:
            Text such as ``column 'pixels': expected 784 finite numbers, received NaN at position 5``.
        """
        value = column[row].as_py()
        noun = "integer" if self.dtype == "int64" else "finite number"
        if self.width is None:
            article = "an" if self.dtype == "int64" else "a"
            limit = "" if self.least is None else f" of at least {self.least:g}"
            return f"column {self.title!r}: expected {article} {noun}{limit}, received {_spelled(value)}"
        expected = f"column {self.title!r}: expected {_count(self.width, noun)}"
        if value is None:
            return f"{expected}, received null"
        if len(value) != self.width:
            return f"{expected}, received {_count(len(value), 'value')}"
        position, fault = next((i, v) for i, v in enumerate(value) if v is None or not math.isfinite(v))
        return f"{expected}, received {_spelled(fault)} at position {position}"

    def _fits(self, arrow_type: Any) -> bool:
        if self.width is not None:
            if not (
                pa.types.is_list(arrow_type)
                or pa.types.is_large_list(arrow_type)
                or pa.types.is_fixed_size_list(arrow_type)
            ):
                return False
            arrow_type = arrow_type.value_type
        return bool(arrow_type == (pa.float32() if self.dtype == "float32" else pa.int64()))


def _booleans(array: Any) -> NDArray[np.bool_]:
    """A writable NumPy copy of an Arrow boolean array without nulls."""
    return np.array(array.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _spelled(value: float | None) -> str:
    if value is None:
        return "null"
    return "NaN" if math.isnan(value) else str(value)
