from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.data import Spill
from fatwood.errors import OptionError, StorageError


def _batch(first: int, n: int, width: int = 3) -> pa.RecordBatch:
    """Columns that all follow from the row's number, so that any mix-up shows."""
    number = np.arange(first, first + n)
    lists = pa.array((number[:, None] * 100 + np.arange(width)).astype(np.float32).reshape(-1))
    return pa.RecordBatch.from_arrays(
        [
            pa.array(number),
            pa.FixedSizeListArray.from_arrays(lists, width),
            pa.array((number % 7).astype(np.int8)),
            pa.array(number.astype(np.float64) / 2),
        ],
        names=["row_id", "features", "small", "double"],
    )


def _assert_rows(columns: dict[str, Any], numbers: np.ndarray, width: int = 3) -> None:
    assert list(columns) == ["row_id", "features", "small", "double"]
    np.testing.assert_array_equal(columns["row_id"], numbers)
    np.testing.assert_array_equal(columns["features"], numbers[:, None] * 100 + np.arange(width))
    np.testing.assert_array_equal(columns["small"], numbers % 7)
    np.testing.assert_array_equal(columns["double"], numbers / 2)
    assert columns["features"].dtype == np.float32
    assert columns["small"].dtype == np.int8


@given(sizes=st.lists(st.integers(0, 9), max_size=8), width=st.integers(1, 5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_rows_come_back_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], width: int, data: st.DataObject
) -> None:
    with Spill(tmp_path_factory.getbasetemp() / "spill") as spill:
        total = 0
        for size in sizes:
            spill.append(_batch(total, size, width))
            total += size
        spill.finish()
        assert spill.rows == total
        indices = st.lists(st.integers(0, total - 1), max_size=20) if total else st.just([])
        numbers = np.array(data.draw(indices), dtype=np.int64)
        columns = spill.take(numbers)
        if total:
            _assert_rows(columns, numbers, width)
        else:
            assert columns == {}


def test_slices_are_written_as_the_rows_they_show(tmp_path: Path) -> None:
    with Spill(tmp_path) as spill:
        spill.append(_batch(0, 10).slice(2, 3))
        spill.append(_batch(0, 10).slice(7))
        spill.finish()
        columns = spill.take(np.array([5, 0, 2]))
        _assert_rows(columns, np.array([9, 2, 4]))


def test_what_is_taken_is_writable_and_outlives_the_spill(tmp_path: Path) -> None:
    spill = Spill(tmp_path)
    spill.append(_batch(0, 4))
    spill.finish()
    first = spill.take(np.arange(4))
    first["features"][:] = -1
    second = spill.take(np.arange(4))
    spill.close()
    _assert_rows(second, np.arange(4))
    assert (first["features"] == -1).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_is_left_on_disk_nor_open(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    spill = Spill(tmp_path / "made" / "when missing")
    spill.append(_batch(0, 4))
    spill.finish()
    spill.finish()
    spill.take(np.arange(4))
    assert (
        list((tmp_path / "made" / "when missing").iterdir()) == []
    )  # a killed worker would leave nothing either
    spill.close()
    spill.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert "fatwood-spill" not in Path("/proc/self/maps").read_text()


def test_a_spill_without_rows_makes_no_file(tmp_path: Path) -> None:
    with Spill(tmp_path / "never") as spill:
        spill.append(_batch(0, 0))
        spill.finish()
        assert spill.rows == 0
        assert spill.take(np.zeros(0, dtype=np.int64)) == {}
    assert not (tmp_path / "never").exists()


def _fill(spill: Spill) -> None:
    for first in range(0, 100_000, 1000):
        spill.append(_batch(first, 1000))  # 29 bytes a row


def test_a_full_disk_names_the_directory_and_the_remedy(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # writes beyond fail, as on a full disk
    try:
        with Spill(tmp_path) as spill, pytest.raises(StorageError) as caught:
            _fill(spill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in caught.value.message
    assert "after 3000 rows" in caught.value.message
    assert "free space" in str(caught.value.hint)


def test_a_disk_that_fills_up_at_the_end_is_reported(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with Spill(tmp_path) as spill:
            spill.append(_batch(0, 1000))
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
            with pytest.raises(StorageError, match="could not finish and map"):
                spill.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with Spill(blocker / "below") as spill, pytest.raises(StorageError, match="file/below"):
        spill.append(_batch(0, 1))


@pytest.mark.parametrize("index", [-1, 4])
def test_indices_outside_are_refused(tmp_path: Path, index: int) -> None:
    with Spill(tmp_path) as spill:
        spill.append(_batch(0, 4))
        spill.finish()
        with pytest.raises(IndexError, match=r"range\(4\)"):
            spill.take(np.array([0, index]))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True, False]),
        pa.array(["a", "b"]),
        pa.array([[1.0], [2.0]], pa.list_(pa.float32())),
        pa.array([1, None], pa.int64()),
        pa.array([[1.0], [None]], pa.list_(pa.float32(), 1)),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(tmp_path: Path, column: Any) -> None:
    with Spill(tmp_path) as spill, pytest.raises(OptionError, match="column 'x': expected numbers"):
        spill.append(pa.RecordBatch.from_arrays([column], names=["x"]))


def test_calls_out_of_turn_are_refused(tmp_path: Path) -> None:
    with Spill(tmp_path) as spill:
        spill.append(_batch(0, 2))
        with pytest.raises(OptionError, match="finished"):
            spill.take(np.array([0]))
        spill.finish()
        with pytest.raises(OptionError, match="after finish"):
            spill.append(_batch(0, 2))
    with pytest.raises(OptionError, match="finished"):
        spill.take(np.array([0]))
    with pytest.raises(OptionError, match="close"):
        spill.append(_batch(0, 2))
    spill.finish()
