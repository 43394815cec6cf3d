"""Values of Arrow columns that cannot be trained on: nulls, NaN, infinities, labels that are no class; by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = ["bad_rows", "can_be_classes", "rows_outside"]

Found = Iterator[tuple[str, NDArray[np.int64]]]


def bad_rows(column: pa.Array) -> Found:
    """Rows of a column with a value that is null, NaN or infinite, wherever in nested values it is.

    Args:
        column: Of any type; within maps nothing is looked for.

    Returns:
        (kind, rows): ``"null"``, ``"NaN"`` or ``"infinite"``, and the numbers of the rows, sorted. Kinds may repeat.
    """
    yield from _bad(column, None)


def can_be_classes(kind: pa.DataType) -> bool:
    """Whether values of a type can be class numbers: numbers or booleans, or arrays of them."""
    while _is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def rows_outside(column: pa.Array, classes: int) -> NDArray[np.int64]:
    """Rows of a label column that hold something else than a whole number in ``range(classes)``; nulls are passed over.

    Args:
        column: Of a type for which :func:`can_be_classes` holds.
        classes: How many there are.
    """
    rows = None
    while _is_list(column.type):
        column, rows = _flattened(column, rows)
    present = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    values = column.drop_null().to_numpy(zero_copy_only=False)
    if values.dtype.kind == "b":
        values = values.astype(np.int8)
    with np.errstate(invalid="ignore"):
        outside = ~((values >= 0) & (values < classes))
        if values.dtype.kind == "f":
            outside |= values != np.floor(values)
    return _rows(present[outside], rows)


def _bad(column: pa.Array, rows: NDArray[np.int64] | None) -> Found:
    """Of values that belong to the rows of these numbers; None: each to its own."""
    if column.null_count:
        yield "null", _rows(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)), rows)
    kind = column.type
    if pa.types.is_floating(kind):
        yield from _bad_floats(column, rows)
    elif _is_list(kind):
        yield from _bad(*_flattened(column, rows))
    elif pa.types.is_struct(kind):
        valid = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        kept = column.drop_null() if column.null_count else column
        inner = valid if rows is None else rows[valid]
        for field in kept.flatten():
            yield from _bad(field, inner)


def _bad_floats(column: pa.Array, rows: NDArray[np.int64] | None) -> Found:
    values = column.to_numpy(zero_copy_only=False)
    if not column.null_count and np.isfinite(values).all():
        return
    for kind, found in (("NaN", pc.is_nan(column)), ("infinite", pc.is_inf(column))):
        at = np.flatnonzero(pc.fill_null(found, fill_value=False).to_numpy(zero_copy_only=False))
        if at.size:
            yield kind, _rows(at, rows)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _flattened(column: pa.Array, rows: NDArray[np.int64] | None) -> tuple[pa.Array, NDArray[np.int64] | None]:
    """The values in lists, with the row of each."""
    if column.null_count:
        valid = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        column, rows = column.drop_null(), valid if rows is None else rows[valid]
    parents: NDArray[Any] = pc.list_parent_indices(column).to_numpy()
    return column.flatten(), parents.astype(np.int64) if rows is None else rows[parents]


def _rows(at: NDArray[Any], rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.unique(at if rows is None else rows[at])
    return found
