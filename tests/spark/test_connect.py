"""DataFrames of a real Spark Connect server: evaluate, predict and score give what one process gives."""

from __future__ import annotations

import logging
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark import StorageLevel
from pyspark.sql import functions as F
from torch import nn

from fatwood import Batch, Classification, Files, Parquet, SparkModel
from fatwood.data.inputs import DenseColumn, SequenceColumn
from fatwood.errors import ClusterError, DataError, OptionError, SchemaError, UserCodeError
from fatwood.spark.caching import persist
from fatwood.spark.connect import is_connect
from fatwood.spark.failures import failure_of_spark, spark_errors
from fatwood.spark.partitions import has_fixed_partitions
from fatwood.spark.session import available_slots, require_spark

pytestmark = [
    pytest.mark.spark,
    pytest.mark.timeout(300),
]  # a server starts, and a Python worker for each of its cores

ROWS = 90


def make_network(width: int = 8) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 3))


class Failing(nn.Module):
    """A network that cannot be called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such thing")


class Pair(nn.Module):
    """Steps ``(B, T, 2)`` and a vector ``(B, 2)``, added up."""

    def forward(self, steps: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        return steps.sum(1) + vector


@pytest.fixture(scope="module")
def table(connect):
    """In three partitions of which one is empty."""
    ids = connect.range(0, ROWS * 3 // 2, 1, 3).filter(f"id < {ROWS}")
    return ids.selectExpr("id", "array(float(sin(id)), float(cos(id * 2))) x", "int(pmod(hash(id), 3)) y")


@pytest.fixture(scope="module")
def tensors(table):
    rows = sorted(table.collect())
    return {name: torch.tensor([row[name] for row in rows]) for name in table.columns}


def outputs_of(network: nn.Module, tensors) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(tensors["x"])


def test_what_a_client_can_know(connect, table) -> None:
    assert is_connect(connect)
    assert is_connect(table)
    assert not is_connect(StorageLevel.NONE)
    assert require_spark(table) is connect
    assert available_slots(connect, wanted=64, wait_seconds=30) == 2
    assert not has_fixed_partitions(table)


@pytest.mark.parametrize(("width", "sent"), [(8, 0), (200_000, 1)], ids=["small", "megabytes"])
def test_evaluation(connect, table, tensors, monkeypatch, width, sent) -> None:
    network, loss = make_network(width), nn.CrossEntropyLoss()
    outputs = outputs_of(network, tensors)
    files, send = [], type(connect).addArtifacts
    spied = lambda self, *paths, **options: (files.append(paths), send(self, *paths, **options))  # noqa: E731
    monkeypatch.setattr(type(connect), "addArtifacts", spied)
    for _ in range(2):
        report = SparkModel(network, loss=loss).evaluate(table, features="x", label="y", batch_size=7)
        assert isinstance(report, Classification)
        assert report.rows == ROWS
        assert report.accuracy == pytest.approx(float((outputs.argmax(1) == tensors["y"]).double().mean()))
        assert report.loss == pytest.approx(float(loss(outputs, tensors["y"])), rel=1e-5)
    assert len(files) == sent


def test_metrics_by_group_in_one_pass(table, tensors) -> None:
    network, loss = make_network(), nn.CrossEntropyLoss()
    model = SparkModel(network, loss=loss)
    outputs, labels = outputs_of(network, tensors), tensors["y"].long()
    found = model.evaluate(
        table.withColumn("half", F.col("id") < 45),
        metrics={"best": Classification(), "two": Classification(top_n=2)},
        features="x",
        label="y",
        by="half",
    )
    assert set(found) == {True, False}
    ranked = outputs.argsort(1, descending=True)
    for half, rows in ((True, slice(0, 45)), (False, slice(45, ROWS))):
        right = ranked[rows] == labels[rows, None]
        assert found[half]["best"].accuracy == pytest.approx(float(right[:, 0].double().mean()))
        assert found[half]["two"].top_n_accuracy == pytest.approx(float(right[:, :2].any(1).double().mean()))
    mean = model.mean_score(table, features="x", label="y")
    assert mean == pytest.approx(float(loss(outputs, labels)), rel=1e-5)


def test_prediction_and_scores(table, tensors) -> None:
    network = make_network()
    model = SparkModel(network, loss=nn.CrossEntropyLoss())
    keyed = table.withColumn("id", F.when(F.col("id") > 5, F.col("id"))).withColumn("a.b", F.lit("k"))
    predicted = model.predict(keyed, key=["id", "a.b"], features="x", batch_size=4)
    assert predicted.columns == ["id", "a.b", "prediction"]
    rows = sorted(predicted.collect(), key=lambda row: -1 if row["id"] is None else row["id"])
    assert [row["id"] for row in rows] == [None] * 6 + list(range(6, ROWS))
    outputs = outputs_of(network, tensors)
    np.testing.assert_allclose([row["prediction"] for row in rows][6:], outputs[6:].numpy(), atol=1e-6)

    scored = dict(model.score(table, key="id", features="x", label="y").collect())
    losses = nn.functional.cross_entropy(outputs, tensors["y"].long(), reduction="none")
    np.testing.assert_allclose([scored[i] for i in range(ROWS)], losses.numpy(), rtol=1e-5)


def test_functions_of_columns(connect, table, tensors) -> None:
    network = make_network()
    best = SparkModel(network, loss=nn.CrossEntropyLoss()).udf(returns="class")
    expected = dict(zip(range(ROWS), outputs_of(network, tensors).argmax(1).tolist(), strict=True))
    assert dict(table.select("id", best("x")).collect()) == expected
    connect.udf.register("best", best)
    table.createOrReplaceTempView("points")
    assert dict(connect.sql("SELECT id, best(x) FROM points").collect()) == expected


def test_a_stream_is_predicted(connect, table, tensors, tmp_path) -> None:
    table.coalesce(1).write.parquet(str(tmp_path / "rows"))  # a stream has Python workers of its own
    network = make_network()
    stream = connect.readStream.schema(table.schema).parquet(str(tmp_path / "rows"))
    predicted = SparkModel(network).predict(stream, key="id", features="x")
    query = predicted.writeStream.format("memory").queryName("predicted").trigger(availableNow=True).start()
    assert query.awaitTermination(90)
    rows = sorted(connect.table("predicted").collect())
    assert [row["id"] for row in rows] == list(range(ROWS))
    outputs = outputs_of(network, tensors).numpy()
    np.testing.assert_allclose([row["prediction"] for row in rows], outputs, atol=1e-6)


def test_vectors_and_sequences(connect) -> None:
    from pyspark.ml.linalg import Vectors

    rows = [(i, Vectors.dense([i, -i]), [[1.0, 2.0]] * (i + 1)) for i in range(5)]
    df = connect.createDataFrame(rows, ["id", "v", "s"])
    features = [SequenceColumn("s"), DenseColumn("v")]
    predicted = dict(SparkModel(Pair()).predict(df, key="id", features=features).collect())
    assert predicted == {i: [i + 1 + i, 2 * (i + 1) - i] for i in range(5)}


def test_other_forms_of_data(connect, tmp_path) -> None:
    ids = np.arange(20)
    table = pa.table({"id": ids, "x": [[float(i), float(-i)] for i in ids], "y": ids % 3})
    pq.write_table(table, tmp_path / "rows.parquet")
    model = SparkModel(make_network(), loss=nn.CrossEntropyLoss())
    expected = model.evaluate(table, features="x", label="y")
    assert expected.rows == 20
    of_files = model.evaluate(Parquet(str(tmp_path / "rows.parquet")), features="x", label="y")
    assert of_files.confusion.tolist() == expected.confusion.tolist()

    def load(path, store) -> Batch:
        rows = pq.read_table(path).to_pydict()
        return Batch(features=torch.tensor(rows["x"]), label=torch.tensor(rows["y"]))

    of_loader = model.evaluate(Files(str(tmp_path / "*.parquet"), load))
    assert of_loader.confusion.tolist() == expected.confusion.tolist()
    keys = model.predict(Files(str(tmp_path / "*.parquet"), load)).select("row").collect()
    assert sorted(row["row"] for row in keys) == ids.tolist()


def test_errors_keep_their_names(table) -> None:
    with pytest.raises(UserCodeError, match=r"^KeyError: 'no such thing'\n[\s\S]*on partition \d"):
        SparkModel(Failing()).evaluate(table, features="x", label="y")
    with pytest.raises(SchemaError, match="unknown name"):
        SparkModel(make_network()).evaluate(table, features="z", label="y")
    with pytest.raises(DataError, match="at least one usable row"):
        SparkModel(make_network()).evaluate(table.limit(0), features="x", label="y")


def test_caches(connect, caplog) -> None:
    caplog.set_level(logging.INFO, "fatwood.data")
    df = connect.range(7).selectExpr("id", "array(float(id), 1f) x", "int(id % 3) y")
    assert persist(df) is df
    assert df.storageLevel == StorageLevel.MEMORY_AND_DISK_DESER
    df.unpersist()
    df.persist(StorageLevel.MEMORY_ONLY)
    report = SparkModel(make_network()).evaluate(df, features="x", label="y")
    df.unpersist()
    assert report.rows == 7
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1
    assert lines[0].startswith("rows cached at MEMORY_ONLY: what does not fit")


def test_a_session_that_was_stopped(connect, connect_server) -> None:
    from pyspark.sql.connect.session import SparkSession

    other = SparkSession.builder.remote(connect_server).create()
    df = other.range(3)
    other.stop()
    SparkSession._set_default_and_active_session(connect)
    with pytest.raises(ClusterError, match="session was stopped"):
        require_spark(df)


def test_a_stream_is_no_batch(connect) -> None:
    with pytest.raises(OptionError, match="received a stream"):
        require_spark(connect.readStream.format("rate").load())


def test_what_spark_says_of_a_failure(table) -> None:
    """The last, since what fails takes its Python worker with it, and the next has to import torch again."""
    from pyspark.errors.exceptions import connect as raised

    def bad_row(batches):
        raise DataError("row 3: expected a number", hint="look at it")
        yield from batches

    def die(batches):
        os._exit(3)
        yield from batches

    with pytest.raises(DataError) as caught, spark_errors():
        table.mapInArrow(bad_row, "id long").collect()
    assert caught.value.message.startswith("row 3: expected a number\nin the Spark job")
    assert caught.value.hint == "look at it"
    with pytest.raises(UserCodeError, match=r"no x[\s\S]*raised by the DataFrame's own plan"), spark_errors():
        table.selectExpr("if(id < 50, 1, raise_error('no x'))").collect()
    with pytest.raises(ClusterError, match="the Spark job failed"), spark_errors():
        table.mapInArrow(die, "id long").collect()
    lost = failure_of_spark(raised.SparkConnectGrpcException("UNAVAILABLE: failed to connect"))
    assert isinstance(lost, ClusterError)
