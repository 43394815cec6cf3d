"""All that a user writes and reads, on each store, with executors and with a default file system that is another one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fatwood import AllReduce, Checkpoints, FitStats, Parquet, SparkModel, latest_checkpoint
from fatwood.evaluation import Classification
from fatwood.shards import read_manifest
from fatwood.shards.checking import validate_shards
from fatwood.spark.shards import write_shards

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(params=["local", "hdfs", "s3"])
def base(request, tmp_path, spark, hdfs, s3) -> Iterator[SimpleNamespace]:
    """A place, its options, and a session whose default file system is another one."""
    uri = {"local": f"file://{tmp_path}", "hdfs": hdfs.uri, "s3": s3.uri}[request.param]
    settings = spark.sparkContext._jsc.hadoopConfiguration()
    before = settings.get("fs.defaultFS")
    settings.set("fs.defaultFS", "file:///" if request.param == "hdfs" else hdfs.uri)
    options: Any = s3.options if request.param == "s3" else None
    yield SimpleNamespace(uri=f"{uri}/everything", options=options, s3=s3)
    settings.set("fs.defaultFS", before)


def _model() -> SparkModel:
    torch.manual_seed(1)
    return SparkModel(
        nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)),
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.Adam, lr=0.02),
        strategy=AllReduce(),
    )


def test_everything_that_is_written_is_read(base, spark, monkeypatch) -> None:
    at = {"storage_options": base.options}
    rows = [(float(i % 7), float(i % 5), int(i % 7 > 3)) for i in range(200)]
    frame = spark.createDataFrame(rows, "x double, y double, label int").repartition(2)
    columns = {"features": ["x", "y"], "label": "label"}

    shards = write_shards(frame, f"{base.uri}/shards", rows_per_shard=50, **at)
    assert shards.rows == 200
    assert read_manifest(f"{base.uri}/shards", **at).files == shards.files
    assert validate_shards(f"{base.uri}/shards", label="label", classes=2, **at).ok

    training = {**columns, "batch_size": 10, "workers": 2, "epochs": 1}
    data = Parquet(f"{base.uri}/shards", **at)
    whole = _model()
    whole.fit(data, **training | {"epochs": 2})
    policy = Checkpoints(uri=f"{base.uri}/run", every_steps=4, **at)
    first = _model()
    first.fit(data, **training | {"epochs": 2}, checkpoints=policy)
    newest = latest_checkpoint(f"{base.uri}/run", **at)
    assert newest is not None
    if base.options:  # credentials from the environment, too
        monkeypatch.setenv("AWS_ENDPOINT_URL", base.s3.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", base.options["key"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", base.options["secret"])
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    resumed = _model()
    fit = resumed.fit(data, **training | {"epochs": 2}, resume_from=str(newest))
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name])

    fit.stats.save(f"{base.uri}/stats.json", **at)
    assert FitStats.load(f"{base.uri}/stats.json", **at) == fit.stats
    fit.stats.to_html(f"{base.uri}/stats.html", **at)

    resumed.save(f"{base.uri}/model.fatwood", **at)
    loaded = SparkModel.load(f"{base.uri}/model.fatwood", **at)
    keyed = frame.selectExpr("monotonically_increasing_id() AS id", "x", "y").persist()
    expected = sorted(resumed.predict(keyed, key="id", features=["x", "y"]).collect())
    assert sorted(loaded.predict(keyed, key="id", features=["x", "y"]).collect()) == expected
    assert len(expected) == 200
    keyed.unpersist()

    report = loaded.evaluate(data, **columns)
    assert report.rows == 200
    report.to_json(f"{base.uri}/report.json", **at)
    report.to_html(f"{base.uri}/report.html", **at)
    assert Classification.from_json(f"{base.uri}/report.json", **at) == report
