"""Options of a fit that are about data: preprocessing, repartitioning, bucketing, and the bound of what waits."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fatwood import (
    AllReduce,
    OneHot,
    Parquet,
    SequenceColumn,
    SparkModel,
    Standardize,
    Vocabulary,
)
from fatwood.data import write_shards
from fatwood.errors import DataError, OptionError

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
