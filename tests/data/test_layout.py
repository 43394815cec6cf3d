from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
import torch

from fatwood.data import Layout, describe_row, tensors_of
from fatwood.errors import DataError, OptionError, SchemaError

LAYOUT = Layout.of(
    feature_width=2, feature_dtype="float32", feature_name="pixels", label_dtype="int64", label_name="digit"
)
VECTOR_LABELS = Layout.of(
    feature_width=2,
    feature_dtype="int64",
    feature_name="words",
    label_dtype="float32",
    label_width=3,
    label_name="y",
)


def _batch(features: list[Any], labels: list[Any], first_row_id: int = (3 << 33) + 16) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [
            pa.array(range(first_row_id, first_row_id + len(features)), pa.int64()),
            pa.array(features, pa.list_(pa.float32())),
            pa.array(labels, pa.int64()),
        ],
        names=["row_id", "features", "label"],
    )


BAD = _batch([[1, 2], [3, math.nan], [5, 6], None, [7, 8]], [1, 2, None, 4, 5])


def test_a_good_batch_becomes_tensors_of_its_own() -> None:
    source = _batch([[1, 2], [3, 4]], [7, 8])
    batch, kept = tensors_of(source, LAYOUT)
    assert batch.features.tolist() == [[1, 2], [3, 4]]
    assert batch.features.dtype == torch.float32
    assert batch.label is not None
    assert batch.label.tolist() == [7, 8]
    assert batch.label.dtype == torch.int64
    assert batch.row_ids.tolist() == [(3 << 33) + 16, (3 << 33) + 17]
    assert kept.tolist() == [True, True]
    batch.features.zero_()
    assert source.column("features").to_pylist() == [[1, 2], [3, 4]]


def test_vector_labels_and_integer_features() -> None:
    source = pa.RecordBatch.from_arrays(
        [
            pa.array([0, 1], pa.int64()),
            pa.array([[1, 2], [3, 4]], pa.list_(pa.int64())),
            pa.array([[1, 2, 3], [4, 5, 6]], pa.list_(pa.float32())),
        ],
        names=["row_id", "features", "label"],
    )
    batch, _ = tensors_of(source, VECTOR_LABELS)
    assert batch.features.dtype == torch.int64
    assert batch.label is not None
    assert batch.label.dtype == torch.float32
    assert batch.label.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_an_error_names_partition_row_column_and_fault_and_says_what_to_do() -> None:
    with pytest.raises(DataError) as caught:
        tensors_of(BAD, LAYOUT)
    assert caught.value.message == (
        "partition 3, row 17: column 'pixels': expected 2 finite numbers, received NaN at position 1"
    )
    assert 'on_bad_row="skip"' in str(caught.value.hint)


def test_an_error_in_a_slice_names_the_row_of_the_whole() -> None:
    with pytest.raises(
        DataError, match="partition 3, row 18: column 'digit': expected an integer, received null"
    ):
        tensors_of(BAD.slice(2), LAYOUT)


def test_skip_keeps_the_good_rows_in_order() -> None:
    batch, kept = tensors_of(BAD, LAYOUT, on_bad_row="skip")
    assert kept.tolist() == [True, False, False, False, True]
    assert batch.features.tolist() == [[1, 2], [7, 8]]
    assert (batch.row_ids & 0xFFFF).tolist() == [16, 20]


def test_skip_can_leave_nothing() -> None:
    batch, kept = tensors_of(BAD.slice(1, 3), LAYOUT, on_bad_row="skip")
    assert batch.features.shape == (0, 2)
    assert not kept.any()


def test_labels_are_neither_needed_nor_looked_at_for_prediction() -> None:
    unlabelled = LAYOUT.without_label()
    batch, kept = tensors_of(BAD.slice(2, 1), unlabelled)
    assert batch.label is None
    assert kept.all()
    tensors_of(BAD.slice(0, 1).select(["row_id", "features"]), unlabelled)


def test_rows_without_ids_are_a_schema_error() -> None:
    with pytest.raises(SchemaError, match="'row_id'"):
        tensors_of(BAD.select(["features", "label"]), LAYOUT)


def test_a_null_row_id_is_a_schema_error() -> None:
    batch = _batch([[1, 2]], [1]).set_column(0, "row_id", pa.array([None], pa.int64()))
    with pytest.raises(SchemaError, match="'row_id': expected an integer in every row, received null"):
        tensors_of(batch, LAYOUT)


def test_no_rows_are_fine() -> None:
    batch, kept = tensors_of(_batch([], []), LAYOUT)
    assert len(batch) == 0
    assert len(kept) == 0
    assert batch.features.shape == (0, 2)


def test_rows_are_described_in_words() -> None:
    assert describe_row((3 << 33) | 17) == "partition 3, row 17"
    assert describe_row((1 << 33) - 1) == f"partition 0, row {2**33 - 1}"
    assert describe_row(~((3 << 33) | 17)) == "validation DataFrame, partition 3, row 17"
    assert describe_row(~0) == "validation DataFrame, partition 0, row 0"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"feature_width": 0}, "field 'features'"),
        ({"feature_dtype": "float64"}, "field 'features'"),
        ({"label_dtype": "int32"}, "field 'label'"),
        ({"label_name": "digit"}, "label_dtype"),
        ({"label_width": 3}, "label_dtype"),
        ({"label_dtype": "float32", "label_width": 0}, "field 'label'"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(OptionError, match=f"^{name}: expected .* received"):
        Layout.of(**{"feature_width": 2, "feature_dtype": "float32", "feature_name": "pixels", **options})


def test_an_unnamed_label_is_called_label() -> None:
    layout = Layout.of(feature_width=2, feature_dtype="float32", feature_name="pixels", label_dtype="int64")
    with pytest.raises(DataError, match="column 'label'"):
        tensors_of(BAD.slice(2), layout)
