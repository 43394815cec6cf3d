"""Validation rows: each once, whenever they are asked for, and without any effect on the rows to train on."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.data import Batch, Layout, PartitionData
from fatwood.errors import DataError, OptionError, StorageError

LAYOUT = Layout.of(
    feature_width=1,
    feature_dtype="float32",
    feature_name="x",
    label_dtype="int64",
    label_name="y",
    weight_name="w",
)


def _rows(ids: list[int], *, bad: frozenset[int] = frozenset(), validation: bool = False) -> pa.RecordBatch:
    row_ids = [~i for i in ids] if validation else ids
    return pa.RecordBatch.from_arrays(
        [
            pa.array(row_ids, pa.int64()),
            pa.array([[math.nan if i in bad else i] for i in ids], pa.list_(pa.float32())),
            pa.array([i % 3 for i in ids], pa.int64()),
            pa.array([i / 2 for i in ids], pa.float32()),
        ],
        names=["row_id", "features", "label", "weight"],
    )


def _cut(batch: pa.RecordBatch, sizes: list[int]) -> list[pa.RecordBatch]:
    """The batch in slices of these sizes, and what is left."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(batch.slice(start, size))
        start += min(size, batch.num_rows - start)
    return [*pieces, batch.slice(start)]


def _arriving(training: int, validation: int, sizes: list[int], **options: Any) -> list[pa.RecordBatch]:
    """A worker's rows: those to validate on first, in Arrow batches that may hold rows of both kinds."""
    both = [_rows(list(range(validation)), validation=True), _rows(list(range(training)), **options)]
    whole = pa.Table.from_batches(both).combine_chunks()
    return (
        _cut(pa.RecordBatch.from_arrays([c.chunk(0) for c in whole.columns], names=whole.column_names), sizes)
        if whole.num_rows
        else []
    )


def _data(batches: Any, directory: Path, **options: Any) -> PartitionData:
    defaults: dict[str, Any] = {
        "batch_size": 3,
        "seed": 1,
        "rank": 0,
        "first_epoch": 0,
        "epochs": 1,
        "shuffle": True,
        "on_bad_row": "error",
    }
    return PartitionData(batches, LAYOUT, **{**defaults, **options}, spill_directory=directory)


def _content(batches: Iterator[Batch]) -> list[tuple[list[int], list[Any], list[Any], list[Any]]]:
    found = []
    for batch in batches:
        assert batch.label is not None
        assert batch.weight is not None
        found.append(
            (batch.row_ids.tolist(), batch.features.tolist(), batch.label.tolist(), batch.weight.tolist())
        )
    return found


cuts = st.lists(st.integers(0, 7), max_size=6)


@given(
    training=st.integers(0, 15),
    validation=st.integers(0, 10),
    sizes=cuts,
    batch_size=st.integers(1, 5),
    prefetch=st.integers(0, 2),
    epochs=st.integers(1, 2),
    asked_after=st.integers(0, 4),
    keep_first=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_validation_rows_come_once_and_change_no_training(
    tmp_path_factory: pytest.TempPathFactory,
    training: int,
    validation: int,
    sizes: list[int],
    batch_size: int,
    prefetch: int,
    epochs: int,
    asked_after: int,
    keep_first: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    options: dict[str, Any] = {"batch_size": batch_size, "epochs": epochs}
    expected_there = [
        ([~i for i in part], [[float(i)] for i in part], [i % 3 for i in part], [i / 2 for i in part])
        for part in (
            list(range(start, min(start + batch_size, validation)))
            for start in range(0, validation, batch_size)
        )
    ]
    with (
        _data([_rows(list(range(training)))], folder, **options) as alone,
        _data(
            _arriving(training, validation, sizes), folder, **options, prefetch=prefetch, keep=keep_first
        ) as both,
    ):
        if keep_first:
            both.keep_all()
        for number in range(epochs):
            expected, found = _content(alone.epoch(number)), []
            batches = both.epoch(number)
            for position in range(len(expected) + 1):
                if position == asked_after:  # in the middle of an epoch
                    assert _content(both.validation()) == expected_there
                found += _content(islice(batches, 1))
            assert found == expected
        for _ in range(2):
            assert _content(both.validation()) == expected_there
        assert both.validation_rows == validation
        assert (both.rows, both.rows_skipped, both.validation_skipped) == (training, 0, 0)
    assert [t for t in threading.enumerate() if t.name == "fatwood-prefetch"] == []


def test_the_first_look_reads_no_more_than_it_must(tmp_path: Path) -> None:
    arrived: list[int] = []

    def arriving() -> Iterator[pa.RecordBatch]:
        for batch in _arriving(9, 4, [2, 3, 4]):  # 2 | 2 and 1 to train on | 4 | 4
            arrived.append(batch.num_rows)
            yield batch

    with _data(arriving(), tmp_path) as data:
        assert [len(batch) for batch in data.validation()] == [3, 1]
        assert arrived == [2, 3]
        assert data.validation_rows == 4
        assert [ids for ids, *_ in _content(data.epoch(0))] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
        assert [len(batch) for batch in data.validation()] == [3, 1]


def test_bad_validation_rows_are_named_or_counted(tmp_path: Path) -> None:
    source = [_rows([5, (2 << 33) | 7], bad=frozenset({(2 << 33) | 7}), validation=True), _rows([0, 1, 2])]
    with _data(source, tmp_path) as data:
        for read in (data.validation, lambda: next(data.epoch(0)), data.validation):
            with pytest.raises(
                DataError, match=r"^validation DataFrame, partition 2, row 7: column 'x'.* NaN"
            ):
                read()
    with _data(source, tmp_path, on_bad_row="skip") as data:
        assert [ids for ids, *_ in _content(data.epoch(0))] == [[0, 1, 2]]
        assert [ids for ids, *_ in _content(data.validation())] == [[~5]]
        assert (data.validation_rows, data.validation_skipped) == (1, 1)
        assert (data.rows, data.rows_skipped) == (3, 0)


def test_a_bad_row_to_train_on_is_no_validation_row(tmp_path: Path) -> None:
    source = [_rows([1], validation=True), *_cut(_rows(list(range(6)), bad=frozenset({4})), [2, 2])]
    with _data(source, tmp_path, batch_size=2) as data:
        assert [ids for ids, *_ in _content(data.validation())] == [[~1]]
        batches = data.epoch(0)
        assert [next(batches).row_ids.tolist() for _ in range(2)] == [[0, 1], [2, 3]]
        with pytest.raises(DataError, match=r"^partition 0, row 4"):
            next(batches)
        assert [ids for ids, *_ in _content(data.validation())] == [[~1]]


@pytest.mark.parametrize("together", [True, False])
def test_validation_rows_that_come_late_are_refused(tmp_path: Path, together: bool) -> None:
    late = [_rows([0]), _rows([1], validation=True)]
    if together:
        late = pa.Table.from_batches(late).combine_chunks().to_batches()
    with _data(late, tmp_path) as data, pytest.raises(DataError, match="before the first row to train on"):
        _content(data.epoch(0))


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = [_rows([0], validation=True), _rows([0])]
    with _data(source, tmp_path / "file") as data, pytest.raises(StorageError, match="file"):
        data.validation()


def test_closed_data_has_no_validation(tmp_path: Path) -> None:
    with _data([_rows([0], validation=True)], tmp_path) as data:
        batches = data.validation()
    with pytest.raises(OptionError, match=r"validation: .*close"):
        data.validation()
    with pytest.raises(OptionError, match="expected a finished, open spill"):
        next(batches)
    assert list(tmp_path.iterdir()) == []
