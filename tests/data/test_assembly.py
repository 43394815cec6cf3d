from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.data.assembly import Assembled, assemble

NUMBER = st.one_of(st.none(), st.integers(0, 9))
LIST = st.one_of(st.none(), st.lists(NUMBER, min_size=0, max_size=3))
NESTED = st.one_of(st.none(), st.lists(LIST, max_size=3))


@given(
    rows=st.lists(st.tuples(NUMBER, LIST, st.lists(st.integers(0, 9), min_size=2, max_size=2)), max_size=6),
    start=st.integers(0, 6),
)
@settings(max_examples=150, deadline=None)
def test_columns_side_by_side(rows: list[tuple[Any, ...]], start: int) -> None:
    start = min(start, len(rows))
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array([row[0] for row in rows], pa.int32()),
            pa.array([row[1] for row in rows], pa.list_(pa.float64())),
            pa.array([row[2] for row in rows], pa.list_(pa.int16(), 2)),
            pa.array(range(len(rows)), pa.int64()),
        ],
        names=["a", "b", "c", "row_id"],
    ).slice(start)
    made = assemble(batch, [Assembled(name="features", columns=("a", "b", "c"), dtype="float32")], ["a"])
    assert made.schema.names == ["key_0", "row_id", "features"]
    assert made.column(0).to_pylist() == [row[0] for row in rows[start:]]
    assert made.column(1).to_pylist() == list(range(start, len(rows)))
    expected = [None if row[1] is None else [row[0], *row[1], *row[2]] for row in rows[start:]]
    assert made.column(2).to_pylist() == expected
    assert made.column(2).type.value_type == pa.float32()


@given(rows=st.lists(NESTED, max_size=6), start=st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_arrays_of_arrays_become_one(rows: list[Any], start: int) -> None:
    column = pa.array(rows, pa.list_(pa.list_(pa.int32()))).slice(min(start, len(rows)))
    batch = pa.RecordBatch.from_arrays([column, pa.array(range(len(column)))], names=["v", "row_id"])
    made = assemble(batch, [Assembled(name="features", columns=("v",), dtype="int64")], [])
    expected: list[Any] = []
    for row in rows[min(start, len(rows)) :]:
        flat = None if row is None or None in row else [value for part in row for value in part]
        expected.append(flat)
    assert made.column(1).to_pylist() == expected


@pytest.mark.parametrize(
    ("values", "kind", "of", "expected"),
    [
        (
            [True, None],
            pa.bool_(),
            Assembled(name="label", columns=("x",), dtype="int64", alone=True),
            [1, None],
        ),
        (
            [1.5, None],
            pa.float64(),
            Assembled(name="label", columns=("x",), dtype="float32", alone=True),
            [1.5, None],
        ),
        ([3, 4], pa.int8(), Assembled(name="features", columns=("x",), dtype="float32"), [[3.0], [4.0]]),
        (
            [b"ab"],
            pa.binary(),
            Assembled(name="features", columns=("x",), dtype="uint8", as_it_is=True),
            [b"ab"],
        ),
    ],
)
def test_numbers_and_bytes(values: list[Any], kind: Any, of: Assembled, expected: list[Any]) -> None:
    batch = pa.RecordBatch.from_arrays(
        [pa.array(values, kind), pa.array(range(len(values)))], names=["x", "row_id"]
    )
    assert assemble(batch, [of], []).column(1).to_pylist() == expected
