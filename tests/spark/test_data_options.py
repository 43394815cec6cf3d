"""Options of a fit that are about data: preprocessing, repartitioning, bucketing, and the bound of what waits."""

from __future__ import annotations

import logging
import os
from functools import partial

import numpy as np
import psutil
import pytest
import torch
from pyspark import StorageLevel
from torch import nn

from fatwood import (
    AllReduce,
    Batch,
    Files,
    OneHot,
    Parquet,
    SequenceColumn,
    SparkModel,
    Standardize,
    Vocabulary,
    WorkerCallback,
)
from fatwood.data import write_shards
from fatwood.errors import DataError, OptionError
from fatwood.spark.given import Selection, feed_of
from fatwood.spark.workers import small_arrow_batches

pytestmark = pytest.mark.spark

COLUMNS = {"features": {"size": ["length", "width"], "colour": "colour"}, "label": "kind"}
UNFITTED = {
    "features/size": Standardize(),
    "features/colour": OneHot(),
    "label": Vocabulary(unknown=False, padding=False),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, size, colour):
        return self.body(torch.cat([size, colour], dim=1))


@pytest.fixture(scope="module")
def table(spark):
    rng = np.random.default_rng(0)
    rows = [
        (
            i,
            1e6 + 10.0 * (i % 3) + float(rng.normal()),
            float(rng.normal()),
            ["red", "green"][i % 2],
            "cab"[i % 3],
        )
        for i in range(60)
    ]
    return spark.createDataFrame(
        rows, "id int, length double, width double, colour string, kind string"
    ).coalesce(3)


def model(network=None, **options) -> SparkModel:
    torch.manual_seed(0)
    return SparkModel(
        Net() if network is None else network,
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.5),
        strategy=AllReduce(),
        **options,
    )


def test_preprocessing_is_fitted_once_saved_and_applied_alike(spark, table, tmp_path) -> None:
    write_shards(table, tmp_path / "shards", rows_per_shard=25, seed=1)
    before = model(preprocessing=UNFITTED)
    with pytest.raises(OptionError, match="preprocessing: expected transforms that are fitted"):
        before.evaluate(table, **COLUMNS)
    found = {}
    for name, data in {"frame": table.repartition(4), "shards": Parquet(tmp_path / "shards")}.items():
        trained = model(preprocessing=UNFITTED)
        trained.fit(data, **COLUMNS, workers=2, batch_size=30, epochs=12, progress=False)
        found[name] = trained
    frame, shards = found["frame"], found["shards"]
    assert frame.preprocessing == shards.preprocessing
    assert frame.preprocessing["features/colour"] == OneHot(["green", "red"])
    assert frame.preprocessing["label"].words == ("a", "b", "c")
    report = frame.evaluate(table, **COLUMNS)
    assert report.accuracy > 0.8  # without standardising, a million drowns the rest
    assert shards.evaluate(Parquet(tmp_path / "shards"), **COLUMNS).accuracy == report.accuracy
    frame.save(tmp_path / "model.fatwood")
    again = SparkModel.load(tmp_path / "model.fatwood", network=Net(), loss=nn.CrossEntropyLoss())
    assert again.preprocessing == frame.preprocessing
    features = {"features": COLUMNS["features"]}
    predicted = [
        {row.id: row.prediction for row in of.predict(table, key="id", **features).collect()}
        for of in (frame, again)
    ]
    assert predicted[0] == predicted[1]
    strange = table.limit(1).selectExpr("id", "length", "width", "colour", "'z' kind")
    with pytest.raises(DataError, match=r"row 0: column 'kind': expected one of the 3 words.*received 'z'"):
        again.evaluate(strange, **COLUMNS)
    fitted = frame.preprocessing
    frame.fit(
        strange.selectExpr("id", "length", "width", "colour", "'a' kind"),
        **COLUMNS,
        workers=2,
        progress=False,
    )
    assert frame.preprocessing == fitted


@pytest.mark.parametrize("wrong", [3, {"features": "x"}, [Standardize()]])
def test_preprocessing_of_no_kind_is_refused(wrong) -> None:
    with pytest.raises(OptionError, match="preprocessing: expected a transform, or a dict"):
        model(preprocessing=wrong)


def test_rows_stay_where_they_are_only_if_that_is_wanted_or_pays(spark, caplog) -> None:
    df = spark.range(0, 90, 1, 3).selectExpr("id * 1.0D x", "id % 2 y").cache()
    two = df.coalesce(2)  # 30 and 60 rows
    told = {"features": "x", "label": "y", "batch_size": 10, "progress": False}
    caplog.set_level(logging.INFO, logger="fatwood.data")

    def fitted(data, workers, **options):
        caplog.clear()
        fit = model(nn.Linear(1, 2)).fit(data, **told, workers=workers, **options)
        assert fit.stats.rows_trained == 90
        return [worker.rows_trained for worker in fit.stats.workers], caplog.text

    assert fitted(two, 2)[0] == [45, 45]
    assert (
        "2 partitions of 30 to 60; they are dealt out to 2 workers in equal shares, in random order"
        in caplog.text
    )
    rows, said = fitted(two, 2, repartition="never")
    assert sorted(rows) == [30, 60]
    assert "they stay there, as repartition='never' says" in said
    even = spark.range(0, 90, 1, 2).selectExpr("id * 1.0D x", "id % 2 y")
    rows, said = fitted(even, 2, shuffle=False)
    assert rows == [45, 45]
    assert "and are not to be shuffled: they stay there" in said
    rows, said = fitted(even, 2, shuffle=False, repartition="always")
    assert "as repartition='always' says" in said
    with pytest.raises(OptionError, match="expected at least 2 partitions with rows, received 1"):
        fitted(df.coalesce(1), 2, repartition="never")
    with pytest.raises(OptionError, match="expected no validation data"):
        fitted(two, 2, repartition="never", validation=two)
    with pytest.raises(OptionError, match="repartition: expected one of 'auto', 'never', 'always'"):
        fitted(two, 2, repartition="sometimes")
    df.unpersist()


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(1, 1)

    def forward(self, visits, mask):
        return self.out((visits * mask).sum(1, keepdim=True))


def padding(network, batch):
    """A loss that is the share of padded steps, so that the history tells it."""
    share = 1 - batch.feature_mask.float().mean()
    return share + 0 * network(batch.features, batch.feature_mask).sum()


def test_bucketing_pads_less_and_loses_no_row(spark) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    df = spark.createDataFrame([([1.0] * int(n),) for n in lengths], "visits array<double>")
    found = {}
    for bucket in (False, True):
        torch.manual_seed(0)
        fit = SparkModel(
            Sums(), loss=padding, optimizer=partial(torch.optim.SGD, lr=0.0), strategy=AllReduce()
        ).fit(
            df,
            features=SequenceColumn("visits"),
            workers=2,
            batch_size=10,
            epochs=2,
            bucket_by_length=bucket,
            prefetch=2,
            prefetch_bytes=1 << 20,
            progress=False,
        )
        assert fit.stats.rows_trained == 400
        found[bucket] = [record.loss for record in fit.history]
    assert max(found[True]) < 0.2 < 0.4 < min(found[False])


def test_options_that_cannot_work_are_refused_before_any_job(spark, table) -> None:
    with pytest.raises(OptionError, match="bucket_by_length: expected features with steps"):
        model(nn.Linear(2, 3)).fit(
            table, features=["length", "width"], label="id", workers=2, bucket_by_length=True, progress=False
        )
    with pytest.raises(
        OptionError, match="prefetch_bytes: expected a whole number of at least 1, received 0"
    ):
        model(nn.Linear(2, 3)).fit(table, features="length", label="id", prefetch_bytes=0, progress=False)


def test_a_cache_that_hurts_is_warned_about(spark, caplog) -> None:
    df = spark.range(5).selectExpr("id * 1.0D x").persist(StorageLevel.MEMORY_ONLY)
    feed_of(df, Selection(features="x"))
    assert "rows cached at MEMORY_ONLY" in caplog.text
    caplog.clear()
    feed_of(df.unpersist(), Selection(features="x"))
    assert caplog.text == ""


def test_workers_getsmall_arrow_batches_unless_the_user_has_chosen(spark) -> None:
    limit = "spark.sql.execution.arrow.maxBytesPerBatch"
    wide = spark.range(0, 3000, 1, 1).selectExpr(
        "transform(sequence(1, 784), x -> cast(x as double)) x", "id % 2 y"
    )
    seen = {}
    for chosen in (None, "1000000"):
        if chosen is not None:
            spark.conf.set(limit, chosen)
        try:
            with small_arrow_batches(spark):
                seen[chosen] = spark.conf.get(limit, None)
            assert spark.conf.get(limit, None) == chosen
        finally:
            spark.conf.unset(limit)
    assert seen == {None: str(8 << 20), "1000000": "1000000"}
    fit = model(nn.Linear(784, 2)).fit(wide, features="x", label="y", workers=1, progress=False)
    assert fit.stats.rows_trained == 3000


def test_weights_of_minibatches_count_as_those_of_a_column(spark) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(20, 3)).astype(np.float32), rng.integers(0, 4, 20).astype(np.float32)
    y = x.argmax(1)
    rows = [(a.tolist(), int(b), float(c)) for a, b, c in zip(x, y, w, strict=True)]
    df = spark.createDataFrame(rows, "x array<float>, y int, w float")
    minibatches = [
        Batch(
            torch.from_numpy(x[i : i + 7]),
            torch.from_numpy(y[i : i + 7]),
            weight=torch.from_numpy(w[i : i + 7]),
        )
        for i in (0, 7, 14)
    ]
    told = {"workers": 2, "batch_size": 20, "progress": False}
    trained = [model(nn.Linear(3, 3)) for _ in range(3)]
    trained[0].fit(df, features="x", label="y", weight="w", **told)
    trained[1].fit(spark.sparkContext.parallelize(minibatches, 2), **told)
    trained[2].fit(df, features="x", label="y", **told)
    weighted, alike, other = (of.network.weight.detach() for of in trained)
    assert torch.allclose(weighted, alike, atol=1e-6)
    assert not torch.allclose(weighted, other, atol=1e-3)


SIZES = [100, 64, 40, 10, 1, 33, 31, 32, 0]


def objects() -> list[Batch]:
    ends = np.cumsum(SIZES)
    return [
        Batch(
            torch.arange(end - size, end, dtype=torch.float32)[:, None], torch.zeros(size, dtype=torch.int64)
        )
        for size, end in zip(SIZES, ends, strict=True)
    ]


def load(path, filesystem) -> Batch:
    with filesystem.open(path, "rb") as file:
        x = np.load(file)
    return Batch(x, np.zeros(len(x), np.int64))


class Seen(WorkerCallback):
    """Writes down which rows were trained: each has its number as feature."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def before_step(self, context, batch) -> None:
        with open(f"{self.folder}/{context.rank}", "a") as file:
            file.write(" ".join(str(int(x)) for x in batch.features[:, 0]) + "\n")


@pytest.mark.parametrize("form", ["rdd", "files", "shards", "frame"])
def test_every_row_is_trained_once_whatever_the_objects_sizes(spark, tmp_path, form) -> None:
    rows, seen = sum(SIZES), tmp_path / "seen"
    seen.mkdir()
    told = {} if form in ("rdd", "files") else {"features": "x", "label": "y"}
    if form == "rdd":
        data = spark.sparkContext.parallelize(objects(), 4)
    elif form == "files":
        for i, batch in enumerate(objects()):
            np.save(tmp_path / f"{i}.npy", batch.features.numpy())
        data = Files(str(tmp_path / "*.npy"), load)
    else:
        data = spark.range(0, rows, 1, 4).selectExpr("id * 1.0F x", "0 y")
        if form == "shards":
            write_shards(data, tmp_path / "shards", rows_per_shard=32)
            data = Parquet(tmp_path / "shards")
    fit = model(nn.Linear(1, 2)).fit(
        data, **told, workers=2, batch_size=32, epochs=2, callbacks=[Seen(str(seen))], progress=False
    )
    lines = [
        [list(map(int, line.split())) for line in (seen / str(rank)).read_text().splitlines()]
        for rank in (0, 1)
    ]
    assert sorted(row for worker in lines for line in worker for row in line) == sorted([*range(rows)] * 2)
    shares = [sum(map(len, worker)) // 2 for worker in lines]
    assert abs(shares[0] - shares[1]) <= 1
    for worker, share in zip(lines, shares, strict=True):
        assert [len(line) for line in worker] == [*[32] * (share // 32), *[share % 32] * (share % 32 > 0)] * 2
    assert fit.stats.rows_trained == fit.stats.rows_expected == 2 * rows
    assert fit.stats.rows_trained_twice == fit.stats.rows_lost == 0


class Process(WorkerCallback):
    """Notes which process a worker is."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def on_start(self, context) -> None:
        with open(f"{self.folder}/{context.rank}", "w") as file:
            file.write(str(os.getpid()))


@pytest.mark.parametrize("form", ["frame", "shards"])
def test_a_fit_leaves_its_python_processes_to_the_next(spark, tmp_path, form) -> None:
    """Spark ends those that leave input unread, and new ones take seconds to import torch."""
    data = spark.range(0, 8, 1, 2).selectExpr("id * 1.0F x", "0 y")
    if form == "shards":
        write_shards(data, tmp_path / "shards", rows_per_shard=4)
        data = Parquet(tmp_path / "shards")
    (tmp_path / "seen").mkdir()
    seen = [Process(str(tmp_path / "seen"))]
    model(nn.Linear(1, 2)).fit(
        data, features="x", label="y", workers=2, batch_size=2, callbacks=seen, progress=False
    )
    spark.range(1).mapInArrow(lambda batches: batches, "id long").collect()  # any process is ended by now
    assert all(psutil.pid_exists(int((tmp_path / "seen" / str(rank)).read_text())) for rank in (0, 1))
