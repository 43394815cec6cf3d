"""From the columns of a file to those of a `Layout`, in Arrow: what a DataFrame's columns go through in Spark's plan, without it.

A row of null, or with a null in it, stays what it is; the layout's check finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fatwood.data.fields import Dtype

__all__ = ["Assembled", "assemble"]

_ARROW = {"float32": pa.float32(), "int64": pa.int64(), "uint8": pa.uint8()}


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """How one field is made."""

    name: str
    """Of the field."""
    columns: tuple[str, ...]
    """Of the file, side by side."""
    dtype: Dtype
    as_it_is: bool = False
    """Whether the column is taken as it is: bytes, text, what a decoder takes."""
    alone: bool = False
    """Whether a row is a number and no list."""


def assemble(batch: pa.RecordBatch, fields: Sequence[Assembled], others: Sequence[str]) -> pa.RecordBatch:
    """A batch with the columns of the fields.

    Args:
        batch: The file's columns, and ``row_id``.
        fields: What to make.
        others: Columns that are kept in front, as they are.
    """
    columns = [batch.column(name) for name in (*others, "row_id")]
    columns += [_field(batch, of) for of in fields]
    names = [*(f"key_{i}" for i in range(len(others))), "row_id", *(of.name for of in fields)]
    return pa.RecordBatch.from_arrays(columns, names=names)


def _field(batch: pa.RecordBatch, of: Assembled) -> Any:
    columns = [batch.column(name) for name in of.columns]
    if of.as_it_is:
        return columns[0]
    element = _ARROW[of.dtype]
    if of.alone:
        return _numbers(columns[0], element)
    lists = [_flat_list(column, element) for column in columns]
    if len(lists) == 1:
        return lists[0]
    return _side_by_side(lists, element)


def _numbers(column: Any, element: Any) -> Any:
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.uint8())  # Arrow has no way from booleans to floats
    return column if column.type == element else pc.cast(column, element, safe=False)


def _flat_list(column: Any, element: Any) -> Any:
    """A list a row, of numbers of one type, whatever was nested in it."""
    if not _is_list(column.type):
        offsets = pa.array(np.arange(len(column) + 1, dtype=np.int32))
        return pa.ListArray.from_arrays(offsets, _numbers(column, element))
    while _is_list(column.type.value_type):
        if column.null_count or column.flatten().null_count:
            depth = _depth(column.type)
            return pa.array([_flattened(row, depth) for row in column.to_pylist()], pa.list_(element))
        inner = column.flatten()
        ends = np.cumsum(pc.list_value_length(inner).to_numpy(zero_copy_only=False))
        starts = np.concatenate([[0], ends])
        of_rows = np.concatenate(
            [[0], np.cumsum(pc.list_value_length(column).to_numpy(zero_copy_only=False))]
        )
        column = pa.LargeListArray.from_arrays(pa.array(starts[of_rows]), inner.flatten())
    if column.type.value_type == element:
        return column
    valid = pa.array(column.is_null().to_numpy(zero_copy_only=False))
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    return pa.LargeListArray.from_arrays(offsets, _numbers(column.flatten(), element), mask=valid)


def _side_by_side(lists: Sequence[Any], element: Any) -> Any:
    widths = []
    for column in lists:
        lengths = pc.list_value_length(column)
        width = lengths[0].as_py() if len(column) else 1
        if column.null_count or not pc.all(pc.equal(lengths, width), min_count=0).as_py():
            break
        widths.append(width)
    values = [column.flatten() for column in lists]
    if len(widths) < len(lists) or any(value.null_count for value in values):
        rows = zip(*(column.to_pylist() for column in lists), strict=True)
        joined = [None if None in row else [v for part in row for v in part] for row in rows]
        return pa.array(joined, pa.list_(element))
    arrays = [
        value.to_numpy(zero_copy_only=False).reshape(len(lists[0]), width)
        for value, width in zip(values, widths, strict=True)
    ]
    together = np.concatenate(arrays, axis=1)
    return pa.FixedSizeListArray.from_arrays(pa.array(together.reshape(-1)), sum(widths))


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _depth(kind: Any) -> int:
    return 1 + _depth(kind.value_type) if _is_list(kind) else 0


def _flattened(row: Any, depth: int) -> Any:
    """Arrays in each other as one; None where any of them is."""
    if depth == 1 or row is None:
        return row
    if any(part is None for part in row):
        return None
    return _flattened([value for part in row for value in part], depth - 1)
