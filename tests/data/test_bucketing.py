from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.data import Field, Group, Layout, PartitionData
from fatwood.data.bucketing import bucketed

LAYOUT = Layout(features=Group(fields=(Field(name="features", title="visits", ragged=True),)))


def _rows(lengths: list[int]) -> list[pa.RecordBatch]:
    lists = pa.array([[float(i)] * n for i, n in enumerate(lengths)], pa.list_(pa.float32()))
    return [pa.RecordBatch.from_arrays([pa.array(range(len(lengths))), lists], names=["row_id", "features"])]


def _data(
    directory: Path, lengths: list[int], *, bucket: bool, step: int, shuffle: bool = True
) -> PartitionData:
    return PartitionData(
        _rows(lengths),
        LAYOUT,
        batch_size=step,
        seed=1,
        rank=0,
        first_epoch=0,
        epochs=3,
        shuffle=shuffle,
        on_bad_row="error",
        spill_directory=directory,
        bucket_by="features" if bucket else None,
    )


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=60),
    step=st.integers(1, 9),
    shuffle=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_row_once_an_epoch_and_a_start_in_the_middle_gives_the_rest(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], step: int, shuffle: bool
) -> None:
    directory = tmp_path_factory.mktemp("rows")
    with _data(directory, lengths, bucket=True, step=step, shuffle=shuffle) as data:
        for epoch in range(3):
            whole = [batch.row_ids.tolist() for batch in data.epoch(epoch)]
            assert sorted(row for batch in whole for row in batch) == list(range(len(lengths)))
            assert all(len(batch) == step for batch in whole[:-1])
            middle = len(whole) // 2
            rest = [batch.row_ids.tolist() for batch in data.epoch(epoch, start=middle * step)]
            assert rest == whole[middle:]


def test_less_is_padded_and_epochs_differ(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 3000).tolist()
    steps = {}
    for bucket in (False, True):
        with _data(tmp_path, lengths, bucket=bucket, step=10) as data:
            batches = list(data.epoch(1))
            steps[bucket] = sum(batch.feature_mask.numel() for batch in batches)
            again = [batch.row_ids.tolist() for batch in data.epoch(2)]
            assert again != [batch.row_ids.tolist() for batch in batches]
    assert steps[True] < 1.05 * sum(lengths) < 1.5 * sum(lengths) < steps[False]


def test_the_order_of_minibatches_is_not_that_of_lengths() -> None:
    indices, lengths = np.arange(1000), np.arange(1000)
    mixed = bucketed(indices, lengths, 10, key=3)
    assert sorted(mixed.tolist()) == indices.tolist()
    firsts = mixed[::10]
    assert (np.diff(firsts) < 0).sum() > 20
    assert bucketed(indices, lengths[::-1], 10, key=None).tolist() == indices[::-1].tolist()
