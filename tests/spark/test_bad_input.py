"""Bad input: the message says where it is, what was expected and received, and what to do; skipped rows are counted."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fatwood import AllReduce, Batch, Files, ImageColumn, Parquet, SparkModel
from fatwood.data import validate_shards, write_shards
from fatwood.errors import DamagedError, DataError, SchemaError, StorageError

pytestmark = pytest.mark.spark

GOOD = ([1.0, 2.0], 1, b"")
SCHEMA = "x array<double>, y int, photo binary"


def fit(data, features="x", label="y", **options):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 12 if isinstance(features, ImageColumn) else 2))
    model = SparkModel(
        network, loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.1), strategy=AllReduce()
    )
    told = {"features": features, "label": label} if features else {}
    return model.fit(data, **told, workers=2, batch_size=4, progress=False, **options)


PHOTO = ImageColumn("photo", size=(2, 2))
ROWS = {
    "null": ((None, 1, b""), "x", "column 'x': expected 2 finite numbers, received null"),
    "null within": (
        ([1.0, None], 1, b""),
        "x",
        "'x': expected 2 finite numbers, received null at position 1",
    ),
    "NaN": (([float("nan"), 0.0], 1, b""), "x", "'x': expected 2 finite numbers, received NaN at position 0"),
    "infinite": (([0.0, 1e300], 1, b""), "x", "'x': expected 2 finite numbers, received inf at position 1"),
    "no label": (([0.0, 0.0], None, b""), "x", "column 'y': expected an integer, received null"),
    "label out of range": (([0.0, 0.0], 7, b""), "x", r"label out of range: expected 0 to 1 .*, received 7"),
    "undecodable image": (
        ([0.0, 0.0], 1, b"nothing"),
        PHOTO,
        "'photo': cannot be decoded: UnidentifiedImageError",
    ),
}


def png() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", list(ROWS))
def test_a_bad_row_is_named_and_can_be_left_out(spark, name) -> None:
    row, features, text = ROWS[name]
    good = (*GOOD[:2], png())
    rows = [good] * 5 + [row] + [good] * 5
    df = spark.createDataFrame(rows, SCHEMA).coalesce(1)
    with pytest.raises(DataError, match=rf"partition 0, row 5: .*{text}") as caught:
        fit(df, features)
    assert "fix the row" in str(caught.value.hint)
    assert 'on_bad_row="skip"' in str(caught.value.hint)
    done = fit(df, features, on_bad_row="skip")
    assert done.stats.rows_trained == 10
    assert sum(worker.rows_skipped for worker in done.stats.workers) == 1
    assert done.stats.rows_lost == 0


@pytest.mark.parametrize(
    ("query", "features", "error", "text", "hint"),
    [
        (
            "SELECT 1 y",
            "x",
            SchemaError,
            "column 'x': expected a column of the DataFrame",
            "name one of df.columns",
        ),
        (
            "SELECT array(1.0D) x, 1 y UNION ALL SELECT array(1.0D, 2.0D), 1",
            "x",
            SchemaError,
            "'x': expected arrays of one length, received lengths from 1 to 2",
            "SequenceColumn",
        ),
        (
            "SELECT 1.0D x, 1 y WHERE 1 = 0",
            "x",
            DataError,
            "expected at least one row, received none",
            "filters",
        ),
    ],
    ids=["missing column", "mixed lengths", "empty"],
)
def test_a_bad_frame_is_refused_before_training(spark, query, features, error, text, hint) -> None:
    with pytest.raises(error, match=text) as caught:
        fit(spark.sql(query), features)
    assert hint in str(caught.value.hint)


def load(path, filesystem):
    with filesystem.open(path, "rb") as file, np.load(file) as content:
        return Batch(content["x"], content["y"])


def test_bad_files_are_named(spark, tmp_path) -> None:
    with pytest.raises(StorageError, match=r"none/\*\.npz.*"):
        fit(Files(str(tmp_path / "none" / "*.npz"), load), None)
    with pytest.raises(StorageError, match="none"):
        fit(Parquet(tmp_path / "none"))
    np.savez(tmp_path / "0.npz", x=np.ones((5, 2), np.float32), y=np.ones(5, int))
    np.savez(tmp_path / "1.npz", x=np.full((5, 2), np.nan, np.float32), y=np.ones(5, int))
    with pytest.raises(DataError, match=r"1\.npz, row \d: .*expected 2 finite numbers, received NaN"):
        fit(Files(str(tmp_path / "*.npz"), load), None)
    done = fit(Files(str(tmp_path / "*.npz"), load), None, on_bad_row="skip")
    assert done.stats.rows_trained == 5
    assert sum(worker.rows_skipped for worker in done.stats.workers) == 5
    (tmp_path / "2.npz").write_bytes(b"nothing")
    with pytest.raises(Exception, match=r"2\.npz") as caught:
        fit(Files(str(tmp_path / "*.npz"), load), None)
    assert "load" in str(caught.value)


@pytest.fixture
def shards(spark, tmp_path) -> Path:
    df = spark.createDataFrame(
        [(i, [float(i), 1.0], i % 2) for i in range(40)], "id int, x array<double>, y int"
    )
    write_shards(df, tmp_path / "shards", rows_per_shard=20)
    return tmp_path / "shards"


def test_damaged_shards_are_named(spark, shards) -> None:
    part = sorted(shards.glob("*.parquet"))[1]
    whole = part.read_bytes()
    part.write_bytes(whole[:-200])
    with pytest.raises(
        DamagedError, match=rf"{part.name}: expected {len(whole)} bytes.*received {len(whole) - 200}"
    ):
        fit(Parquet(shards))
    assert [p.kind for p in validate_shards(shards).file_problems] == ["truncated"]
    middle = len(whole) // 3
    part.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(
        DamagedError, match=part.name
    ) as caught:  # found by a task, which is not started again
        fit(Parquet(shards))
    assert "restore it from a copy" in str(caught.value.hint)
    report = validate_shards(shards)
    assert [p.kind for p in report.file_problems] == ["altered"]
    assert part.name in str(report)
    part.unlink()
    with pytest.raises(DamagedError, match=rf"{part.name}: .*received no file"):
        fit(Parquet(shards))
