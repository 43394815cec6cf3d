"""Sample weights stay with their rows from the Arrow batch to the minibatch, whatever way they take."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.data import Layout, PartitionData, Rows, tensors_of
from fatwood.data.columns import Column
from fatwood.data.layout import weight_field
from fatwood.errors import DataError, SchemaError

LAYOUT = Layout.of(feature_width=1, feature_dtype="float32", feature_name="x", weight_name="importance")
RULE = Column(weight_field("importance"))


def _batch(weights: list[Any]) -> pa.RecordBatch:
    n = len(weights)
    columns = [pa.array(range(n), pa.int64()), pa.array([[i] for i in range(n)], pa.list_(pa.float32()))]
    return pa.RecordBatch.from_arrays(
        [*columns, pa.array(weights, pa.float32())], names=["row_id", "features", "weight"]
    )


weights_of_rows = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=30)


@given(
    weights=weights_of_rows,
    cut=st.integers(0, 30),
    batch_size=st.integers(1, 7),
    prefetch=st.integers(0, 2),
    keep_first=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_row_keeps_its_weight(
    tmp_path_factory: pytest.TempPathFactory,
    weights: list[float],
    cut: int,
    batch_size: int,
    prefetch: int,
    keep_first: bool,
) -> None:
    whole = _batch(weights)
    with PartitionData(
        [whole.slice(0, cut), whole.slice(cut)],
        LAYOUT,
        batch_size=batch_size,
        seed=3,
        rank=1,
        first_epoch=0,
        epochs=3,
        shuffle=True,
        on_bad_row="error",
        spill_directory=tmp_path_factory.getbasetemp(),
        prefetch=prefetch,
    ) as data:
        if keep_first:
            data.keep_all()
        for number in range(3):
            seen: dict[int, float] = {}
            for batch in data.epoch(number):
                assert batch.weight is not None
                assert batch.weight.dtype == torch.float32
                assert batch.weight.shape == (len(batch),)
                seen |= dict(zip(batch.row_ids.tolist(), batch.weight.tolist(), strict=True))
                batch.weight.fill_(-1)  # writable, and an alias of nothing
            assert [seen[i] for i in range(len(weights))] == weights


@given(
    weights=st.lists(
        st.one_of(
            st.none(),
            st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, -math.inf]),
            st.floats(-2, 2, width=32),
        ),
        max_size=8,
    ),
    start=st.integers(0, 8),
)
def test_weights_are_judged_like_one_by_one(weights: list[float | None], start: int) -> None:
    column = pa.array(weights, pa.float32()).slice(start)
    expected = [w is not None and math.isfinite(w) and w >= 0 for w in weights[start:]]
    assert RULE.good(column).tolist() == expected
    assert (RULE.dense(column) is not None) == all(expected)


@pytest.mark.parametrize(
    ("weight", "spelled"),
    [(None, "null"), (math.nan, "NaN"), (math.inf, "inf"), (-0.5, "-0.5")],
    ids=["null", "nan", "inf", "negative"],
)
def test_a_bad_weight_is_named_or_skipped(weight: float | None, spelled: str) -> None:
    source = _batch([1, weight, 0])
    text = f"^partition 0, row 1: column 'importance': expected a finite number of at least 0, received {spelled}\n"
    with pytest.raises(DataError, match=text):
        tensors_of(source, LAYOUT)
    batch, kept = tensors_of(source, LAYOUT, on_bad_row="skip")
    assert kept.tolist() == [True, False, True]
    assert batch.weight is not None
    assert batch.weight.tolist() == [1, 0]


def test_a_missing_weight_column_is_a_schema_error() -> None:
    with pytest.raises(SchemaError, match="'importance': expected an Arrow column 'weight' of float32"):
        tensors_of(_batch([1]).select(["row_id", "features"]), LAYOUT)


def test_prediction_looks_at_no_weight() -> None:
    batch, kept = tensors_of(_batch([-1]), LAYOUT.without_label())
    assert batch.weight is None
    assert kept.all()


@pytest.mark.parametrize("weighted", [True, False])
def test_rows_to_arrow_and_back(tmp_path: Path, weighted: bool) -> None:
    weight = np.array([1, 0, 2], dtype=np.float32) if weighted else None
    columns = {"features": np.zeros((3, 2), dtype=np.float32), "label": np.arange(3)}
    rows = Rows(np.arange(3), columns if weight is None else {**columns, "weight": weight})
    assert rows.to_arrow().schema.names == ["row_id", "features", "label"] + ["weight"] * weighted
    part = rows.part(1, 3).copy()
    joined = Rows.joined([part, rows.part(0, 1)])
    assert joined.row_ids.tolist() == [1, 2, 0]
    assert ("weight" in joined.columns) == weighted
    if weight is not None:
        assert joined.columns["weight"].tolist() == [0, 2, 1]
        assert not np.shares_memory(part.columns["weight"], weight)
