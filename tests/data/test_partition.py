from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.data import Batch, Layout, PartitionData
from fatwood.errors import DataError, OptionError, StorageError

WIDTH = 2
LAYOUT = Layout.of(
    feature_width=WIDTH,
    feature_dtype="float32",
    feature_name="pixels",
    label_dtype="int64",
    label_name="digit",
)


def _batch(row_ids: list[int], *, bad: frozenset[int] = frozenset()) -> pa.RecordBatch:
    features = [[i, math.nan if i in bad else -i] for i in row_ids]
    return pa.RecordBatch.from_arrays(
        [
            pa.array(row_ids, pa.int64()),
            pa.array(features, pa.list_(pa.float32())),
            pa.array([i % 5 for i in row_ids], pa.int64()),
        ],
        names=["row_id", "features", "label"],
    )


def _batches(sizes: list[int], *, bad: frozenset[int] = frozenset()) -> list[pa.RecordBatch]:
    """Arrow batches of these sizes, as slices of one larger batch."""
    whole = _batch(list(range(sum(sizes))), bad=bad)
    starts = np.cumsum([0, *sizes])
    return [whole.slice(start, size) for start, size in zip(starts, sizes, strict=False)]


def _data(batches: Any, directory: Path, **options: Any) -> PartitionData:
    defaults: dict[str, Any] = {
        "layout": LAYOUT,
        "batch_size": 3,
        "seed": 1,
        "rank": 0,
        "first_epoch": 0,
        "epochs": 1,
        "shuffle": True,
        "on_bad_row": "error",
    }
    return PartitionData(batches, **{**defaults, **options}, spill_directory=directory)


def _ids(batches: Iterator[Batch]) -> list[int]:
    """Row ids in order, after checking that every batch's tensors belong to them."""
    row_ids: list[int] = []
    for batch in batches:
        ids = torch.from_numpy(batch.row_ids)
        assert torch.equal(batch.features, torch.stack([ids, -ids], dim=1).float())
        assert batch.label is not None
        assert torch.equal(batch.label, ids % 5)
        row_ids += batch.row_ids.tolist()
    return row_ids


sizes_of_batches = st.lists(st.integers(0, 12), max_size=8)


@given(
    sizes=sizes_of_batches,
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
    first_epoch=st.integers(0, 2),
    prefetch=st.integers(0, 3),
)
@settings(max_examples=120, deadline=None)
def test_every_row_is_in_exactly_one_batch_of_every_epoch(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    batch_size: int,
    shuffle: bool,
    first_epoch: int,
    prefetch: int,
) -> None:
    n = sum(sizes)
    options: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle, "first_epoch": first_epoch}
    options |= {"epochs": 3, "prefetch": prefetch}
    with _data(iter(_batches(sizes)), tmp_path_factory.getbasetemp(), **options) as data:
        for number in range(first_epoch, first_epoch + 3):
            batches = list(data.epoch(number))
            row_ids = _ids(iter(batches))
            assert sorted(row_ids) == list(range(n))
            assert [len(batch) for batch in batches] == [batch_size] * (n // batch_size) + [
                n % batch_size
            ] * (n % batch_size > 0)
            if number == 0 or not shuffle:
                assert row_ids == list(range(n))
        assert data.rows == n
        assert data.rows_skipped == 0


@given(sizes=sizes_of_batches, cuts=sizes_of_batches, batch_size=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_how_the_rows_arrive_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], cuts: list[int], batch_size: int
) -> None:
    n = sum(sizes)
    other = [min(cut, n - min(n, sum(cuts[:i]))) for i, cut in enumerate(cuts)]
    other.append(n - sum(other))
    with (
        _data(_batches(sizes), tmp_path_factory.getbasetemp(), batch_size=batch_size, epochs=2) as one,
        _data(_batches(other), tmp_path_factory.getbasetemp(), batch_size=batch_size, epochs=2) as two,
    ):
        for number in range(2):
            for left, right in zip(one.epoch(number), two.epoch(number), strict=True):
                assert left.row_ids.tolist() == right.row_ids.tolist()
                assert torch.equal(left.features, right.features)


@given(
    sizes=sizes_of_batches,
    batch_size=st.integers(1, 5),
    bad=st.frozensets(st.integers(0, 40)),
    first=st.integers(0, 1),
)
@settings(max_examples=40, deadline=None)
def test_skipping_reads_what_the_good_rows_alone_would_give(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    batch_size: int,
    bad: frozenset[int],
    first: int,
) -> None:
    n = sum(sizes)
    good = [i for i in range(n) if i not in bad]
    options = {"batch_size": batch_size, "first_epoch": first, "epochs": 3}
    with (
        _data(_batches(sizes, bad=bad), tmp_path_factory.getbasetemp(), on_bad_row="skip", **options) as data,
        _data([_batch(good)], tmp_path_factory.getbasetemp(), **options) as expected,
    ):
        for number in range(first, first + 3):
            assert [b.row_ids.tolist() for b in data.epoch(number)] == [
                b.row_ids.tolist() for b in expected.epoch(number)
            ]
        assert data.rows == len(good)
        assert data.rows_skipped == n - len(good)  # once each, not once per epoch


def test_two_fits_of_one_epoch_read_what_one_fit_of_two_reads(tmp_path: Path) -> None:
    with _data(_batches([7, 0, 20]), tmp_path, epochs=2) as both:
        expected = [_ids(both.epoch(0)), _ids(both.epoch(1))]
    apart = []
    for number in range(2):
        with _data(_batches([7, 0, 20]), tmp_path, first_epoch=number, epochs=1) as data:
            apart.append(_ids(data.epoch(number)))
    assert apart == expected
    assert expected[0] != expected[1]


def test_the_order_depends_on_seed_rank_and_epoch(tmp_path: Path) -> None:
    orders = set()
    for seed in range(2):
        for rank in range(2):
            with _data(_batches([50]), tmp_path, seed=seed, rank=rank, first_epoch=1, epochs=2) as data:
                orders |= {tuple(_ids(data.epoch(1))), tuple(_ids(data.epoch(2)))}
    assert len(orders) == 8


def test_one_epoch_streams_and_touches_no_disk(tmp_path: Path) -> None:
    arrived = []

    def arriving() -> Iterator[pa.RecordBatch]:
        for batch in _batches([4, 4, 4]):
            arrived.append(batch)
            yield batch

    with _data(arriving(), tmp_path / "never made") as data:
        stream = data.epoch(0)
        assert next(stream).row_ids.tolist() == [0, 1, 2]
        assert len(arrived) == 1  # the first minibatch came before the second Arrow batch was asked for
        assert _ids(stream) == list(range(3, 12))
    assert not (tmp_path / "never made").exists()


@pytest.mark.parametrize(
    ("epochs", "start", "keep_first"), [(1, 0, False), (2, 0, False), (2, 4500, False), (2, 4500, True)]
)
def test_memory_stays_at_one_minibatch_and_one_arrow_batch(
    tmp_path: Path, epochs: int, start: int, keep_first: bool
) -> None:
    rows, width, count = 1000, 256, 12
    one_batch = rows * width * 4
    layout = Layout.of(feature_width=width, feature_dtype="float32", feature_name="x")
    base = pa.total_allocated_bytes()
    peaks = []

    def arriving() -> Iterator[pa.RecordBatch]:
        for first in range(0, rows * count, rows):
            peaks.append(
                pa.total_allocated_bytes() - base
            )  # what is still held when the next batch is asked for
            # Arithmetic results live in Arrow's own memory pool, so that the pool's figure counts them.
            values = pc.add(pa.array(np.zeros(rows * width, dtype=np.float32)), pa.scalar(1, pa.float32()))
            offsets = pa.array(np.arange(0, rows * width + 1, width, dtype=np.int32))
            yield pa.RecordBatch.from_arrays(
                [pa.array(np.arange(first, first + rows)), pa.ListArray.from_arrays(offsets, values)],
                names=["row_id", "features"],
            )
            del values

    with _data(arriving(), tmp_path, layout=layout, batch_size=300, epochs=epochs) as data:
        if keep_first:
            data.keep_all()
        for _ in data.epoch(0, start):
            assert pa.total_allocated_bytes() - base < 1.5 * one_batch
    assert len(peaks) == count
    assert max(peaks) < 0.5 * one_batch


@pytest.mark.parametrize("number", [0, 1])
def test_batches_are_writable_and_alias_nothing(tmp_path: Path, number: int) -> None:
    source = _batches([6])
    with _data(source, tmp_path, epochs=3, shuffle=False) as data:
        for _ in data.epoch(0) if number else ():
            pass
        for batch in data.epoch(number):
            batch.features.fill_(99)
            batch.row_ids[:] = 99
            assert batch.label is not None
            batch.label.fill_(99)
        assert _ids(data.epoch(2)) == list(range(6))
    assert source[0].column("features").to_pylist()[1] == [1, -1]


def _columns(batches: Iterator[Batch]) -> list[tuple[list[int], list[Any], list[Any]]]:
    """Everything in minibatches, in a form that can be compared."""
    return [
        (batch.row_ids.tolist(), batch.features.tolist(), batch.label.tolist())
        for batch in batches
        if batch.label is not None
    ]


@given(
    sizes=sizes_of_batches,
    batch_size=st.integers(1, 9),
    bad=st.frozensets(st.integers(0, 40)),
    number=st.integers(0, 2),
    keep_first=st.booleans(),
    shuffle=st.booleans(),
    prefetch=st.integers(0, 3),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_an_epoch_from_a_start_is_the_tail_of_the_whole_epoch(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    batch_size: int,
    bad: frozenset[int],
    number: int,
    keep_first: bool,
    shuffle: bool,
    prefetch: int,
    data: st.DataObject,
) -> None:
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "epochs": 3,
        "shuffle": shuffle,
        "on_bad_row": "skip",
    }
    folder = tmp_path_factory.getbasetemp()
    with (
        _data(_batches(sizes, bad=bad), folder, **options) as whole,
        _data(_batches(sizes, bad=bad), folder, **options, prefetch=prefetch) as rest,
    ):
        minibatches = _columns(whole.epoch(number))
        consumed = data.draw(st.integers(0, len(minibatches)))
        start = sum(len(row_ids) for row_ids, _, _ in minibatches[:consumed])
        if keep_first:
            rest.keep_all()
        assert _columns(rest.epoch(number, start)) == minibatches[consumed:]
        assert _columns(rest.epoch(number, start)) == minibatches[consumed:]  # from the spill in any case
        assert _columns(rest.epoch(number)) == minibatches
        assert (rest.rows, rest.rows_skipped) == (whole.rows, whole.rows_skipped)


@given(sizes=sizes_of_batches, batch_size=st.integers(1, 9), start=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_any_start_leaves_out_that_many_rows(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], batch_size: int, start: int
) -> None:
    n = sum(sizes)
    for keep in (False, True):
        with _data(_batches(sizes), tmp_path_factory.getbasetemp(), batch_size=batch_size, keep=keep) as data:
            if keep:
                data.keep_all()
            if start > n:
                with pytest.raises(
                    DataError, match=f"epoch 0: expected at least {start} good rows.*received {n}"
                ):
                    _ids(data.epoch(0, start))
            else:
                assert _ids(data.epoch(0, start)) == list(range(start, n))
            assert data.rows == n


def test_an_order_of_many_blocks_starts_anywhere(tmp_path: Path) -> None:
    n = 100_000  # three blocks of the shuffled order
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(n, dtype=np.float32)), 1)
    source = pa.RecordBatch.from_arrays([pa.array(np.arange(n)), features], names=["row_id", "features"])
    layout = Layout.of(feature_width=1, feature_dtype="float32", feature_name="x")
    with _data([source], tmp_path, layout=layout, batch_size=1000, first_epoch=1) as data:
        whole = np.concatenate([batch.row_ids for batch in data.epoch(1)])
        for start in (1000, 32_000, 33_000, 99_000, n):
            rest = [batch.row_ids for batch in data.epoch(1, start)]
            assert np.array_equal(np.concatenate([*rest, whole[:0]]), whole[start:])
            assert {len(row_ids) for row_ids in rest} <= {1000}


def test_keep_all_reads_everything_once_and_at_once(tmp_path: Path) -> None:
    arrived = []

    def arriving() -> Iterator[pa.RecordBatch]:
        for batch in _batches([4, 4, 4], bad=frozenset({5})):
            arrived.append(batch)
            yield batch

    with _data(arriving(), tmp_path, keep=True, on_bad_row="skip") as data:
        data.keep_all()
        assert len(arrived) == 3
        assert (data.rows, data.rows_skipped) == (11, 1)
        data.keep_all()
        for _ in range(2):
            assert _ids(data.epoch(0)) == [i for i in range(12) if i != 5]
        assert (data.rows, data.rows_skipped) == (11, 1)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_keep_all_in_the_middle_of_the_stream_loses_nothing(tmp_path: Path, prefetch: int) -> None:
    with _data(_batches([4, 4, 4]), tmp_path, keep=True, prefetch=prefetch) as data:
        assert next(data.epoch(0)).row_ids.tolist() == [0, 1, 2]
        data.keep_all()
        assert _ids(data.epoch(0, 3)) == list(range(3, 12))


def test_keep_all_tells_of_every_failure_each_time(tmp_path: Path) -> None:
    with _data(_batches([5, 5], bad=frozenset({7})), tmp_path, keep=True) as data:
        for _ in range(2):
            with pytest.raises(DataError, match="row 7"):
                data.keep_all()
        with pytest.raises(DataError, match="row 7"):
            _ids(data.epoch(0))


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_an_epoch_that_was_broken_off_leaves_the_next_one_whole(tmp_path: Path, prefetch: int) -> None:
    with _data(_batches([5, 5, 5]), tmp_path, epochs=2, prefetch=prefetch) as data:
        assert next(data.epoch(0)).row_ids.tolist() == [0, 1, 2]
        assert sorted(_ids(data.epoch(1))) == list(range(15))
        assert _ids(data.epoch(0)) == list(range(15))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_bad_row_is_an_error_in_every_epoch_that_would_miss_it(tmp_path: Path, prefetch: int) -> None:
    with _data(_batches([5, 5], bad=frozenset({7})), tmp_path, epochs=2, prefetch=prefetch) as data:
        with pytest.raises(DataError, match="partition 0, row 7: column 'pixels': expected 2 finite numbers"):
            _ids(data.epoch(0))
        with pytest.raises(DataError, match="row 7"):
            _ids(data.epoch(1))


def test_a_failing_source_is_not_taken_for_the_end(tmp_path: Path) -> None:
    def arriving() -> Iterator[pa.RecordBatch]:
        yield _batch([0, 1, 2, 3])
        message = "the JVM went away"
        raise OSError(message)

    with _data(arriving(), tmp_path, first_epoch=1, epochs=2) as data:
        for number in (1, 2):
            with pytest.raises(OSError, match="the JVM went away"):
                _ids(data.epoch(number))


def test_a_spill_directory_that_cannot_be_used_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with _data(_batches([5]), tmp_path / "file", epochs=2) as data, pytest.raises(StorageError, match="file"):
        _ids(data.epoch(0))


def test_reads_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with _data(_batches([5]), tmp_path) as data:
        for number in (-1, 1):
            with pytest.raises(OptionError, match="expected one of 0 to 0"):
                data.epoch(number)
        _ids(data.epoch(0))
        with pytest.raises(OptionError, match="read once"):
            data.epoch(0)
        with pytest.raises(OptionError, match=r"keep_all: .*\nhint: .*keep=True"):
            data.keep_all()
        with pytest.raises(OptionError, match="start: expected at least 0, received -1"):
            data.epoch(0, -1)
    data.close()
    for read in (data.keep_all, lambda: data.epoch(0)):
        with pytest.raises(OptionError, match="close"):
            read()


@pytest.mark.parametrize(
    "option",
    [{"batch_size": 0}, {"first_epoch": -1}, {"epochs": 0}, {"on_bad_row": "ignore"}, {"prefetch": -1}],
)
def test_options_that_cannot_work_are_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"^{next(iter(option))}: expected .* received"):
        _data([], tmp_path, **option)


def test_vector_labels_and_no_labels_survive_the_spill(tmp_path: Path) -> None:
    ids = np.arange(5)
    features = pa.array([[i] for i in ids], pa.list_(pa.int64()))
    labels = pa.array([[i, i + 1, i + 2] for i in ids], pa.list_(pa.float32()))
    source = pa.RecordBatch.from_arrays(
        [pa.array(ids), features, labels], names=["row_id", "features", "label"]
    )
    layout = Layout.of(
        feature_width=1,
        feature_dtype="int64",
        feature_name="word",
        label_dtype="float32",
        label_width=3,
        label_name="y",
    )
    with _data([source], tmp_path, layout=layout, first_epoch=1) as data:
        for batch in data.epoch(1):
            assert batch.features.dtype == torch.int64
            assert batch.features[:, 0].tolist() == batch.row_ids.tolist()
            assert batch.label is not None
            assert batch.label.tolist() == [[i, i + 1, i + 2] for i in batch.row_ids]
    with _data([source], tmp_path, layout=layout.without_label(), first_epoch=1) as data:
        assert [batch.label for batch in data.epoch(1)] == [None, None]
