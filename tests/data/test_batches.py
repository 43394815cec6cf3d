from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.data import Batch, Layout, PartitionData, each, tensors_of
from fatwood.data.batches import BatchSchema, pieces
from fatwood.errors import DataError, SchemaError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8]


def layout_of(schema: BatchSchema) -> Layout:
    return Layout(features=schema.features, label=schema.label, weight=schema.weight)


def rows_of(batch: Batch) -> list[dict[str, Any]]:
    """Every row by itself: the values of its real steps, by the names of the tensors."""
    rows: list[dict[str, Any]] = [{} for _ in range(len(batch))]
    for group, tensors, masks in (
        ("features", batch.features, dict(each(batch.feature_mask))),
        ("label", batch.label, dict(each(batch.label_mask))),
        ("weight", batch.weight, {}),
    ):
        for key, tensor in each(tensors):
            for i, row in enumerate(rows):
                value = torch.as_tensor(tensor)[i].to(torch.float64)
                row[f"{group}.{key}"] = (value[masks[key][i]] if key in masks else value).tolist()
    return rows


@st.composite
def tensor_of_rows(draw: st.DrawFn, kind: tuple[torch.dtype, tuple[int, ...], bool], rows: int) -> Any:
    """A tensor (rows, ...) and, where it has steps, its mask."""
    dtype, shape, ragged = kind
    lengths = torch.tensor([draw(st.integers(1, 4)) for _ in range(rows)]) if ragged else None
    steps = () if lengths is None else (draw(st.integers(int(lengths.max()) if rows else 0, 5)),)
    numbers = torch.arange(rows * int(np.prod((*steps, *shape)))).reshape(rows, *steps, *shape) % 100
    tensor = (numbers + draw(st.integers(0, 20))).to(dtype)
    return tensor, None if lengths is None else torch.arange(steps[0]) < lengths[:, None]


@st.composite
def minibatches(draw: st.DrawFn) -> list[Batch]:
    """Some of one schema, of any sizes, in any of the forms."""
    kinds = st.tuples(
        st.sampled_from([*FLOATS, *INTEGERS, torch.uint8]),
        st.sampled_from([(), (3,), (2, 2)]),
        st.booleans(),
    )
    forms: dict[str, Any] = {}
    for group in ("features", "label"):
        form = draw(st.sampled_from(["one", "tuple", "dict", *(["none"] if group == "label" else [])]))
        count = {"none": 0, "one": 1}.get(form) if form in ("none", "one") else draw(st.integers(1, 3))
        forms[group] = form, [draw(kinds) for _ in range(count or 0)]
    weighted = draw(st.booleans())
    found = []
    for rows in draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)):
        given: dict[str, Any] = {"weight": torch.rand(rows) if weighted else None}
        for group, (form, of) in forms.items():
            drawn = [draw(tensor_of_rows(kind, rows)) for kind in of]
            for argument, values in zip(
                (group, "feature_mask" if group == "features" else "label_mask"),
                ([tensor for tensor, _ in drawn], [mask for _, mask in drawn]),
                strict=True,
            ):
                given[argument] = {
                    "none": None,
                    "one": values[0] if values else None,
                    "tuple": tuple(values),
                    "dict": {f"n{i}": value for i, value in enumerate(values) if value is not None},
                }[form]
        found.append(Batch(row_ids=np.arange(rows), **given))
    return found


@settings(deadline=None)
@given(minibatches())
def test_rows_come_back_as_they_were_in_every_form(batches: list[Batch]) -> None:
    schema = BatchSchema.of(batches[0])
    for batch in batches[1:]:
        schema = schema.merge(BatchSchema.of(batch))
    assert BatchSchema.from_json(schema.to_json()) == schema
    first = 5 << 33
    for batch in batches:
        arrow = schema.to_arrow(batch, first)
        assert arrow.schema == schema.arrow
        found, kept = tensors_of(arrow, layout_of(schema))
        assert kept.all()
        assert rows_of(found) == rows_of(batch)
        assert found.row_ids is not None
        assert found.row_ids.tolist() == list(range(first, first + len(batch)))
        for own, made in ((batch.features, found.features), (batch.label, found.label)):
            assert type(own) is type(made)
            assert [key for key, _ in each(own)] == [key for key, _ in each(made)]


@pytest.mark.parametrize("sizes", [[100] * 10, [64] * 10, [40] * 10, [10] * 10, [1] * 100, [33, 0, 31, 1, 0]])
def test_minibatches_of_any_size_are_cut_anew_without_loss(sizes: list[int], tmp_path) -> None:
    rows = sum(sizes)
    numbers = torch.arange(rows)
    starts = np.cumsum([0, *sizes])
    objects = [
        Batch(features=numbers[a:b, None].float(), label=numbers[a:b], row_ids=np.arange(b - a))
        for a, b in pairwise(starts.tolist())
    ]
    schema = BatchSchema.of(objects[0])
    arriving = (schema.to_arrow(batch, int(start)) for batch, start in zip(objects, starts, strict=False))
    with PartitionData(
        arriving,
        layout_of(schema),
        batch_size=32,
        seed=0,
        rank=0,
        first_epoch=0,
        epochs=2,
        shuffle=True,
        on_bad_row="error",
        spill_directory=tmp_path,
    ) as data:
        for epoch in range(2):
            minibatches = list(data.epoch(epoch))
            assert [len(batch) for batch in minibatches] == [32] * (rows // 32) + [rows % 32] * (
                rows % 32 > 0
            )
            labels = torch.cat([batch.label for batch in minibatches])
            assert sorted(labels.tolist()) == list(range(rows))
            assert torch.cat([batch.features for batch in minibatches])[:, 0].tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("features", "label", "expected"),
    [
        (torch.eye(2, 3).bool(), torch.tensor([True, False]), ("float32", "int64")),
        (torch.zeros(2, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.uint8), ("int64", "int64")),
        (torch.full((2, 3), 255, dtype=torch.uint8), torch.eye(2, 3).bool(), ("uint8", "float32")),
        (np.zeros((2, 3)), np.zeros(2, np.uint16), ("float32", "int64")),
        (np.eye(2, 3).astype(">f4"), np.ones((2, 1), np.float16), ("float32", "float32")),
    ],
)
def test_types_become_those_of_rows(features: Any, label: Any, expected: tuple[str, str]) -> None:
    batch = Batch(features=features, label=label)
    schema = BatchSchema.of(batch)
    assert tuple(field.dtype for field in schema.fields) == expected
    found, _ = tensors_of(schema.to_arrow(batch, 0), layout_of(schema))
    assert found.features.tolist() == features.tolist()
    assert found.label.tolist() == label.tolist()


def test_a_number_too_large_for_float32_is_a_bad_row_and_so_are_nan_and_a_negative_weight() -> None:
    features = torch.tensor([[1.0], [1e300], [float("nan")], [4.0]], dtype=torch.float64)
    batch = Batch(features=features, weight=torch.tensor([1.0, 1.0, 1.0, -1.0]))
    schema = BatchSchema.of(batch)
    arrow = schema.to_arrow(batch, 2 << 33)
    found, kept = tensors_of(arrow, layout_of(schema), on_bad_row="skip")
    assert kept.tolist() == [True, False, False, False]
    assert len(found) == 1
    with pytest.raises(DataError, match=r"partition 2, row 1: column 'features': expected .* received inf"):
        tensors_of(arrow, layout_of(schema))
    with pytest.raises(
        DataError, match=r"partition 2, row 3: column 'weight': expected .* at least 0, received -1"
    ):
        tensors_of(arrow.slice(3), layout_of(schema))


def test_minibatches_padded_to_different_lengths_or_not_at_all_fit_together() -> None:
    padded = Batch(
        features=torch.ones(2, 4, 3),
        feature_mask=torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool),
    )
    whole = Batch(features=torch.ones(2, 2, 3))
    for first, second in ((padded, whole), (whole, padded)):
        schema = BatchSchema.of(first).merge(BatchSchema.of(second))
        assert schema == BatchSchema.of(padded)
    lengths = [
        schema.to_arrow(batch, 0).column("features").value_lengths().to_pylist() for batch in (padded, whole)
    ]
    assert lengths == [[3, 9], [6, 6]]
    with pytest.raises(
        SchemaError, match=r"features: expected rows of float32 of shape \(2, 3\) as .* with a mask"
    ):
        BatchSchema.of(whole).require(BatchSchema.of(padded))
    BatchSchema.of(padded).require(BatchSchema.of(whole))


def _mask(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


X, Y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (Batch(X, torch.zeros(3)), DataError, r"label: expected 2 rows as in features, received 3"),
        (Batch(X, row_ids=np.arange(3)), DataError, r"row_ids: expected 2 rows as in features, received 3"),
        (
            Batch(X, weight=torch.zeros(2, 1)),
            SchemaError,
            r"weight: expected one number for each row, .*\(2, 1\)",
        ),
        (
            Batch({}, row_ids=np.arange(2)),
            SchemaError,
            "features: expected at least one tensor, received none",
        ),
        (Batch({3: X}), SchemaError, "features: expected names as keys, received 3"),
        (Batch((X, None)), SchemaError, r"features/1: expected a dense tensor .* received NoneType"),
        (
            Batch([1, 2], row_ids=np.arange(2)),
            SchemaError,
            r"features/0: expected a dense tensor .* received int",
        ),  # type: ignore[arg-type]
        (Batch(X.to_sparse()), SchemaError, "features: expected a dense tensor"),
        (
            Batch(X.to(torch.complex64)),
            SchemaError,
            "features: expected a dense .* received Tensor of torch.complex64",
        ),
        (Batch(np.array(["a"])), SchemaError, "features: expected a dense .* received ndarray of <U1"),
        (
            Batch(torch.zeros(2, 0)),
            SchemaError,
            r"features: expected a shape \(B, ...\) without empty .* \(2, 0\)",
        ),
        (Batch(X, Y, label_mask=_mask([1, 1])), SchemaError, r"label: expected a shape \(B, T, ...\)"),
        (
            Batch(X, feature_mask=_mask([1, 1, 1])),
            DataError,
            r"mask of features: expected shape .* \(2, 3\), received \(1, 3\)",
        ),
        (
            Batch(X, feature_mask=_mask([1, 1, 0], [1, 0, 1])),
            DataError,
            r"mask of features, row 1: .* padding at step 1 before",
        ),
        (
            Batch(X, feature_mask=torch.full((2, 3), 0.5)),
            DataError,
            "mask of features: expected booleans, received float32",
        ),
        (
            Batch({"a": X}, feature_mask=_mask([1, 1, 1])),
            SchemaError,
            r"feature_mask: .* \(a dict of a\), received a single one",
        ),
        (
            Batch({"a": X}, feature_mask={"b": X}),
            SchemaError,
            r"feature_mask: .* \(a dict of a\), received a dict of b",
        ),
        (
            Batch((X, X), feature_mask=(X.bool(),)),
            SchemaError,
            r"feature_mask: .* \(2 by position\), received 1 by",
        ),
        (Batch(X, label_mask=X), SchemaError, r"label_mask: .* \(none\), received a single one"),
    ],
)
def test_a_minibatch_that_cannot_be_used_is_explained(
    batch: Batch, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        BatchSchema.of(batch)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (Batch(X, Y), Batch(X), "label: expected one as in the minibatches before, received none"),
        (Batch(X), Batch(X, weight=torch.ones(2)), "weight: expected none as .*, received one"),
        (Batch(X), Batch((X,)), "features: expected a single tensor as .*, received 1 tensors by position"),
        (Batch({"a": X}), Batch({"b": X}), "features: expected tensors by the names a as .*, received .* b"),
        (
            Batch({"a": X}),
            Batch({"a": Y}),
            r"features/a: expected rows of float32 of shape \(3,\) .*int64 of shape \(\)",
        ),
        (
            Batch(X),
            Batch(X[:, :2]),
            r"(?s)features: .* \(3,\) .* \(2,\).*hint: where rows have different numbers of steps",
        ),
    ],
)
def test_minibatches_that_differ_are_explained(first: Batch, second: Batch, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        BatchSchema.of(first).merge(BatchSchema.of(second))
    with pytest.raises(SchemaError, match=message):
        BatchSchema.of(first).to_arrow(second, 0)


def test_names_may_come_in_another_order_and_a_minibatch_without_rows_fits() -> None:
    first = Batch({"a": X, "b": Y})
    schema = BatchSchema.of(first)
    assert schema.to_arrow(Batch({"b": Y, "a": X}), 0) == schema.to_arrow(first, 0)
    assert schema.to_arrow(Batch(torch.zeros(0)), 0).num_rows == 0


def test_numbers_that_need_no_conversion_are_not_copied() -> None:
    features = torch.rand(4, 3)
    arrow = BatchSchema.of(Batch(features)).to_arrow(Batch(features), 0)
    assert arrow.column("features").values.buffers()[1].address == features.data_ptr()


class _OnDevice(torch.Tensor):
    """A tensor that says it is on a GPU, which this machine need not have."""

    device = torch.device("cuda:1")  # type: ignore[assignment]


def test_tensors_on_a_device_are_copied_with_one_warning() -> None:
    features = torch.rand(2, 3).as_subclass(_OnDevice)
    batch = Batch(features, Y)
    schema = BatchSchema.of(batch)
    with pytest.warns(UserWarning, match=r"on cuda:1 and are copied .* cannot be cached by Spark") as told:
        arrow = schema.to_arrow(batch, 0)
    assert len(told) == 1
    assert arrow.column("features").to_pylist() == features.as_subclass(torch.Tensor).tolist()


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 500))
def test_pieces_are_all_rows_in_bounded_slices(rows: int, most: int) -> None:
    table = pa.RecordBatch.from_pydict({"row_id": pa.array(range(rows), pa.int64())})
    found = list(pieces(table, most))
    assert [number for piece in found for number in piece.column(0).to_pylist()] == list(range(rows))
    assert all(piece.nbytes <= most or piece.num_rows == 1 for piece in found)
