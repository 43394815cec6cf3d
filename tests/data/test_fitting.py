from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.data import Decoder, Field, Group, Layout, tensors_of
from fatwood.data.fitting import Fitting, all_fitted
from fatwood.data.preprocessing import Chain, MinMax, OneHot, Standardize, Transform, Vocabulary
from fatwood.data.preprocessing.measures import Moments
from fatwood.errors import DataError, OptionError, SchemaError, UserError

LAYOUT = Layout(
    features=Group(
        form="dict",
        fields=(
            Field(name="features/x", title="x", shape=(2,)),
            Field(name="features/pixels", title="pixels", dtype="uint8", shape=(2,), divisor=255.0),
            Field(name="features/kind", title="kind", dtype="int64"),
            Field(name="features/text", title="text", dtype="int64", ragged=True),
            Field(name="features/steps", title="steps", ragged=True, shape=(2,)),
        ),
    ),
    label=Group(fields=(Field(name="label", title="price"),)),
)
TRANSFORMS: dict[str, Transform] = {
    "features/x": Standardize(),
    "features/pixels": Standardize("all"),
    "features/kind": OneHot(),
    "features/text": Vocabulary(),
    "features/steps": Chain(Standardize(), MinMax()),
    "label": MinMax(),
}


def _batch(rows: list[Any]) -> pa.RecordBatch:
    """Rows of (x, pixels, kind, text, steps, label)."""
    types = [
        pa.list_(pa.float32()),
        pa.list_(pa.uint8()),
        pa.string(),
        pa.list_(pa.string()),
        pa.list_(pa.float32()),
        pa.float32(),
    ]
    names = ["row_id", *(field.name for field in LAYOUT.fields)]
    columns = [pa.array([row[i] for row in rows], type_of) for i, type_of in enumerate(types)]
    return pa.RecordBatch.from_arrays([pa.array(range(len(rows)), pa.int64()), *columns], names)


GOOD: list[Any] = [
    ([1, 5], [0, 51], "cat", ["a", "b"], [1, 2, 3, 4], 10),
    ([2, 5], [102, 255], "dog", ["b"], [5, 6], 20),
    ([6, 5], [0, 0], "cat", ["c", "b", "a"], [7, 8, 9, 0], 40),
]
BAD: list[Any] = [
    ([1, math.nan], [0, 0], "bird", ["z"], [9, 9], 99),
    ([1, 1], [0, 0], None, ["z"], [9, 9], 99),
    ([1, 1], [0, 0], "bird", ["z", None], [9, 9], 99),
    ([1, 1], [0, 0], "bird", None, [9, 9], 99),
    ([1, 1], [0, 0], "bird", [], [9, 9], 99),
    ([1, 1], [0, 0], "bird", ["z"], [9, 9, 9], 99),
    ([1, 1], [0, 0], "bird", ["z"], [9, 9], None),
]


def _fit(
    parts: list[list[Any]], transforms: dict[str, Transform] = TRANSFORMS, layout: Layout = LAYOUT
) -> Any:
    found = dict(transforms)
    while not all_fitted(found):
        whole = Fitting(layout, found)
        for rows in parts:
            part = Fitting(layout, found)
            for row in rows:
                part.update(_batch([row]), on_bad_row="skip")
            whole.merge_json(part.to_json())
        found = whole.fitted()
    return found


def test_every_field_is_fitted_with_what_its_transform_will_be_given() -> None:
    found = _fit([GOOD])
    layout = Layout(features=LAYOUT.features, label=LAYOUT.label, transforms=found)
    batch, _ = tensors_of(_batch(GOOD), layout)
    assert isinstance(batch.features, dict)
    assert batch.features["x"][:, 0].mean().item() == pytest.approx(0.0, abs=1e-7)
    assert batch.features["x"][:, 1].tolist() == [0.0] * 3
    pixels = torch.tensor([row[1] for row in GOOD]) / 255
    assert found["features/pixels"].mean.array == pytest.approx(pixels.double().mean().item(), rel=1e-7)
    assert batch.features["pixels"].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert batch.features["kind"].tolist() == [[1, 0], [0, 1], [1, 0]]
    assert batch.features["text"].tolist() == [[3, 2, 0], [2, 0, 0], [4, 2, 3]]
    assert batch.features["steps"].shape == (3, 2, 2)
    assert batch.features["steps"][1, 1].tolist() == [0.0, 0.0]
    assert isinstance(batch.feature_mask, dict)
    real = batch.features["steps"][batch.feature_mask["steps"]]
    assert (real.min().item(), real.max().item()) == (0.0, 1.0)
    assert batch.label is not None
    assert batch.label.tolist() == pytest.approx([0.0, 1 / 3, 1.0])
    assert found["label"].inverse(batch.label).tolist() == [10.0, 20.0, 40.0]


@given(rows=st.permutations([*GOOD, *BAD]), cuts=st.lists(st.integers(0, 10), max_size=3))
@settings(max_examples=12, deadline=None)
def test_bad_rows_do_not_count_and_the_split_does_not_matter(rows: list[Any], cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(rows)]
    parts = [rows[start:stop] for start, stop in pairwise(ends)]
    assert _fit(parts) == _fit([GOOD])


def test_bad_rows_are_counted_and_named() -> None:
    fitting = Fitting(LAYOUT, TRANSFORMS)
    assert fitting.update(_batch([*GOOD, *BAD]), on_bad_row="skip") == len(BAD)
    for row in BAD[1:4]:
        with pytest.raises(DataError, match=r"partition 0, row 1: column '(kind|text)': expected .* null"):
            Fitting(LAYOUT, TRANSFORMS).update(_batch([GOOD[0], row]), on_bad_row="error")


def test_no_good_rows_are_an_error_that_names_the_column() -> None:
    fitting = Fitting(LAYOUT, TRANSFORMS)
    fitting.update(_batch(BAD), on_bad_row="skip")
    with pytest.raises(DataError, match="column 'x': moments: expected at least one row"):
        fitting.fitted()


def test_fitted_ones_are_left_alone_and_must_fit() -> None:
    found = _fit([GOOD])
    assert _fit([GOOD[:1]], found) == found
    only = {**found, "features/x": Standardize()}
    again = _fit([GOOD[:1]], only)
    assert again["features/x"] != found["features/x"]
    assert {**again, "features/x": found["features/x"]} == found
    tally = Moments("feature")
    tally.update(np.zeros((1, 3), np.float32))
    other = Standardize().fitted_by(tally)
    with pytest.raises(SchemaError, match=r"column 'pixels': Standardize: expected rows of shape \(3,\)"):
        Fitting(LAYOUT, {"features/pixels": other})


def test_a_transform_of_no_field_or_of_the_wrong_column_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"expected one of the fields features/x, .* received 'features'"):
        Fitting(LAYOUT, {"features": Standardize()})
    fitting = Fitting(LAYOUT, {**TRANSFORMS, "features/kind": Standardize()})
    with pytest.raises(SchemaError, match="column 'kind': moments: expected a column of numbers"):
        fitting.update(_batch(GOOD), on_bad_row="error")


def test_a_decoded_text_is_measured_as_numbers() -> None:
    field = Field(name="features", title="text", dtype="int64")
    layout = Layout(features=Group(fields=(field,)), decoders={"features": Decoder(len)})
    fitting = Fitting(layout, {"features": OneHot()})
    batch = pa.RecordBatch.from_arrays([pa.array([0, 1]), pa.array(["abc", "é"])], ["row_id", "features"])
    fitting.update(batch, on_bad_row="error")
    assert fitting.fitted()["features"] == OneHot([1, 3])


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '{"features/x": 1}'])
def test_tallies_that_make_no_sense_are_errors(text: str) -> None:
    with pytest.raises(UserError):
        Fitting(LAYOUT, {"features/x": Standardize()}).merge_json(text)
