from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.data import Ragged
from fatwood.data.columns import Column
from fatwood.data.fields import Field
from fatwood.errors import SchemaError

WIDTH = 2
FLOATS = st.sampled_from([0.0, 1.5, -2.0, 3.4e38, math.nan, math.inf, -math.inf, None])
INTS = st.sampled_from([0, -1, 2**63 - 1, None])


def _column(dtype: Any, width: int | None) -> Column:
    shape = () if width is None else (width,)
    return Column(Field(name="x", title="pixels", dtype=dtype, shape=shape))


def _usable(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


@given(
    data=st.data(),
    dtype=st.sampled_from(["float32", "int64"]),
    kind=st.sampled_from(["list", "large", "fixed"]),
)
@settings(max_examples=150, deadline=None)
def test_lists_are_judged_like_one_by_one(data: st.DataObject, dtype: str, kind: str) -> None:
    element = st.one_of(st.just(1), FLOATS if dtype == "float32" else INTS)
    sizes = (WIDTH, WIDTH) if kind == "fixed" else (0, WIDTH + 1)
    lists = st.one_of(
        st.just([1] * WIDTH), st.none(), st.lists(element, min_size=sizes[0], max_size=sizes[1])
    )
    values = data.draw(st.lists(lists, max_size=8))
    start = data.draw(st.integers(0, len(values)))
    length = data.draw(st.integers(0, len(values) - start))
    scalar = getattr(pa, dtype)()
    arrow_type = {"list": pa.list_(scalar), "large": pa.large_list(scalar), "fixed": pa.list_(scalar, WIDTH)}[
        kind
    ]
    sliced = pa.array(values, arrow_type).slice(start, length)
    expected = [
        value is not None and len(value) == WIDTH and all(map(_usable, value))
        for value in values[start : start + length]
    ]
    rule = _column(dtype, WIDTH)
    assert rule.good(sliced).tolist() == expected
    dense = rule.dense(sliced)
    assert (dense is not None) == all(expected)
    if dense is not None:
        assert dense.shape == (length, WIDTH)
        assert dense.dtype == dtype
        assert dense.tolist() == pa.array(values, arrow_type).slice(start, length).to_pylist()


@given(data=st.data(), dtype=st.sampled_from(["float32", "int64"]))
@settings(max_examples=60, deadline=None)
def test_scalars_are_judged_like_one_by_one(data: st.DataObject, dtype: str) -> None:
    values = data.draw(st.lists(st.one_of(st.just(1), FLOATS if dtype == "float32" else INTS), max_size=6))
    start = data.draw(st.integers(0, len(values)))
    sliced = pa.array(values, getattr(pa, dtype)()).slice(start)
    rule = _column(dtype, None)
    assert rule.good(sliced).tolist() == [_usable(value) for value in values[start:]]
    dense = rule.dense(sliced)
    assert (dense is not None) == all(map(_usable, values[start:]))
    assert dense is None or dense.tolist() == sliced.to_pylist()


def test_a_null_list_that_hides_values_is_bad_and_its_values_are_not_used() -> None:
    flat = pa.array(np.arange(6, dtype=np.float32))
    offsets = pa.array([0, 2, 4, 6], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, flat, mask=pa.array([False, True, False]))
    rule = _column("float32", 2)
    assert rule.dense(lists) is None
    assert rule.good(lists).tolist() == [True, False, True]
    assert np.asarray(rule.dense(lists.filter(pa.array([True, False, True])))).tolist() == [[0, 1], [4, 5]]


def test_good_rows_are_not_copied() -> None:
    flat = np.arange(6, dtype=np.float32)
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 4, 6], pa.int32()), pa.array(flat))
    assert np.shares_memory(_column("float32", 2).dense(lists), flat)


@pytest.mark.parametrize(
    ("dtype", "width", "value", "text"),
    [
        ("float32", 3, [1, 2, math.nan], "expected 3 finite numbers, received NaN at position 2"),
        ("float32", 3, [1, -math.inf, math.nan], "expected 3 finite numbers, received -inf at position 1"),
        ("float32", 3, [None, 2, 3], "expected 3 finite numbers, received null at position 0"),
        ("float32", 3, [1.0], "expected 3 finite numbers, received 1 value"),
        ("float32", 1, [], "expected 1 finite number, received 0 values"),
        ("int64", 3, None, "expected 3 integers, received null"),
        ("int64", 2, [1, None], "expected 2 integers, received null at position 1"),
        ("int64", None, None, "expected an integer, received null"),
        ("float32", None, math.inf, "expected a finite number, received inf"),
    ],
)
def test_complaints_say_what_was_expected_and_received(
    dtype: str, width: int | None, value: Any, text: str
) -> None:
    scalar = getattr(pa, dtype)()
    column = pa.array([value], scalar if width is None else pa.list_(scalar))
    rule = _column(dtype, width)
    assert not rule.good(column)[0]
    assert rule.complaint(column, 0) == f"column 'pixels': {text}"


@pytest.mark.parametrize(
    ("width", "column"),
    [
        (2, pa.array([[1.0, 2.0]], pa.list_(pa.float64()))),
        (2, pa.array([1.0], pa.float32())),
        (None, pa.array([1], pa.int64())),
        (None, pa.array([[1.0]], pa.list_(pa.float32()))),
    ],
)
def test_a_wrong_type_is_a_schema_error(width: int | None, column: Any) -> None:
    batch = pa.RecordBatch.from_arrays([column], names=["x"])
    with pytest.raises(SchemaError, match=r"column 'pixels': expected (list<)?float32>?, received"):
        _column("float32", width).of(batch)


def test_a_missing_column_is_a_schema_error() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1])], names=["y"])
    with pytest.raises(SchemaError, match="expected an Arrow column 'x' of int64, received y"):
        _column("int64", None).of(batch)


@given(
    rows=st.lists(st.one_of(st.none(), st.binary(min_size=0, max_size=5)), max_size=6),
    start=st.integers(0, 6),
    large=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_bytes_are_lists_of_numbers(rows: list[bytes | None], start: int, large: bool) -> None:
    kind = pa.large_binary() if large else pa.binary()
    batch = pa.RecordBatch.from_arrays([pa.array(rows, kind).slice(min(start, len(rows)))], names=["x"])
    rule = Column(Field(name="x", title="photo", dtype="uint8", shape=(4,)))
    column = rule.of(batch)
    wanted = rows[min(start, len(rows)) :]
    assert column.to_pylist() == [None if row is None else list(row) for row in wanted]
    assert rule.good(column).tolist() == [row is not None and len(row) == 4 for row in wanted]
    dense = rule.dense(column)
    assert (dense is not None) == all(row is not None and len(row) == 4 for row in wanted)


STEPS = st.one_of(st.none(), st.lists(st.one_of(st.none(), st.just(1.0), st.just(math.nan)), max_size=5))


@given(rows=st.lists(STEPS, max_size=7), width=st.sampled_from([1, 2]), start=st.integers(0, 7))
@settings(max_examples=100, deadline=None)
def test_steps_are_judged_like_one_by_one(
    rows: list[list[float | None] | None], width: int, start: int
) -> None:
    sliced = pa.array(rows, pa.list_(pa.float32())).slice(min(start, len(rows)))
    wanted = rows[min(start, len(rows)) :]
    shape = () if width == 1 else (width,)
    rule = Column(Field(name="x", title="visits", shape=shape, ragged=True))
    good = [bool(row) and len(row) % width == 0 and all(map(_usable, row)) for row in wanted]
    assert rule.good(sliced).tolist() == good
    dense = rule.dense(sliced)
    assert (dense is not None) == all(good)
    if isinstance(dense, Ragged):
        assert dense.lengths.tolist() == [len(row) // width for row in wanted]
        assert dense.values.reshape(-1).tolist() == [value for row in wanted for value in row]


@pytest.mark.parametrize(
    ("shape", "value", "text"),
    [
        ((), [], "expected one step or more, each of 1 finite number, received 0 values"),
        ((2,), [1.0, 2.0, 3.0], "expected one step or more, each of 2 finite numbers, received 3 values"),
        ((2,), [1.0, math.inf], "expected one step or more, .* received inf at position 1"),
        ((), None, "expected one step or more, .* received null"),
    ],
)
def test_complaints_about_steps(shape: tuple[int, ...], value: Any, text: str) -> None:
    rule = Column(Field(name="x", title="visits", shape=shape, ragged=True))
    assert re.search(text, rule.complaint(pa.array([value], pa.list_(pa.float32())), 0))
