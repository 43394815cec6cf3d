"""A model as a function of columns, in `select` and SQL; predictions of streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyspark.errors import PythonException
from pyspark.sql import functions as F
from torch import nn

from fatwood import SparkModel
from fatwood.data.preprocessing import OneHot
from fatwood.errors import OptionError

pytestmark = pytest.mark.spark


class Sum(nn.Module):
    """As many numbers as it is given, and what they are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x.double().reshape(len(x), -1).sum(1)
        kind = torch.full_like(total, float(x.dtype == torch.int64))
        return torch.stack([total, kind, torch.full_like(total, x.dim())], 1)


def classifier() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(3, 900), nn.ReLU(), nn.Linear(900, 600), nn.ReLU(), nn.Linear(600, 4))


def rows(spark, count=23, parts=2):
    x = "array(float(sin(id)), float(cos(id)), float(sin(id * 3))) x"
    return spark.range(0, count, 1, parts).selectExpr(
        "id", x, "float(sin(id)) a", "cos(id) b", "sin(id * 3) c"
    )


def test_it_is_predict_in_select_and_in_sql(spark) -> None:
    network, df = classifier(), rows(spark)
    model = SparkModel(network, loss=nn.CrossEntropyLoss())
    predicted = model.predict(
        df, key="id", features="x", output="p", returns=("output", "class", "probability")
    ).collect()
    udfs = {name: model.udf(returns=name, batch_size=5) for name in ("array<float>", "class", "probability")}
    chosen = df.select(
        "id",
        udfs["array<float>"]("x").alias("p"),
        udfs["class"]("a", "b", "c").alias("p_class"),
        udfs["probability"](F.array("a", "b", "c")).alias("p_probability"),
    )
    assert chosen.schema.simpleString() == "struct<id:bigint,p:array<float>,p_class:int,p_probability:double>"
    found = chosen.collect()
    assert [row.id for row in found] == [row.id for row in predicted]
    assert [row.p_class for row in found] == [row.p_class for row in predicted]
    for name in ("p", "p_probability"):
        a, b = ([getattr(row, name) for row in part] for part in (found, predicted))
        np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-6)
    spark.udf.register("digit", udfs["class"])
    df.createOrReplaceTempView("udf_rows")
    sql = spark.sql("SELECT digit(x) AS c, count(*) AS n FROM udf_rows WHERE digit(x) >= 0 GROUP BY 1")
    counted = {row.c: row.n for row in sql.collect()}
    classes = [row.p_class for row in predicted]
    assert counted == {c: classes.count(c) for c in classes}


def test_columns_of_every_kind(spark) -> None:
    df = spark.sql(
        "SELECT 1 i, 2L j, true yes, 2.5D d, array(1, 2) xs, array(array(1f, 2f), array(3f, 4f)) m, X'0102' bytes"
    )
    plain = SparkModel(Sum()).udf(returns="array<float>")
    shaped = SparkModel(Sum()).udf(shape=(2, 2))
    alone = SparkModel(Sum()).udf(shape=())
    found = df.select(
        plain("i", "j").alias("whole"),
        plain("i", "xs", "d", "yes").alias("mixed"),
        plain("bytes").alias("bytes"),
        shaped("m").alias("m"),
        shaped("d", "d", "d", "d").alias("four"),
        alone("i").alias("alone"),
    ).first()
    assert found.asDict() == {
        "whole": [3.0, 1.0, 2.0],
        "mixed": [7.5, 0.0, 2.0],
        "bytes": [3.0, 0.0, 2.0],
        "m": [10.0, 0.0, 3.0],
        "four": [10.0, 0.0, 3.0],
        "alone": [1.0, 1.0, 1.0],
    }


def test_bad_rows_and_bad_columns(spark) -> None:
    df = spark.createDataFrame([(0, [1.0, 2.0]), (1, None), (2, [1.0])], "id int, x array<float>").coalesce(1)
    skipping = SparkModel(Sum()).udf(returns="array<float>", on_bad_row="skip")
    assert [row.p is None for row in df.select(skipping("x").alias("p")).collect()] == [False, True, True]
    with pytest.raises(
        PythonException, match=r"DataError: partition 0, row 1: column 'features': expected 2 finite"
    ):
        df.select(SparkModel(Sum()).udf()("x")).collect()
    with pytest.raises(PythonException, match=r"udf: expected numbers, .*received string"):
        df.select(SparkModel(Sum()).udf()(F.lit("a"))).collect()
    with pytest.raises(PythonException, match="with scalar=True an output must be one number a row"):
        df.limit(1).select(SparkModel(Sum()).udf(returns="float")("x")).collect()
    number = SparkModel(nn.Linear(2, 1)).udf(returns="float")
    assert df.limit(1).select(number("x").alias("y")).schema.simpleString() == "struct<y:float>"
    assert isinstance(df.limit(1).select(number("x").alias("y")).first().y, float)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"returns": "string"}, "returns: expected one of 'array<float>', 'float', 'class', 'probability'"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers_per_node": 0}, "workers_per_node"),
        ({"on_bad_row": "no"}, "on_bad_row"),
        ({"activation": "relu"}, "activation: expected"),
    ],
    ids=str,
)
def test_what_cannot_work_is_an_error(spark, options, text) -> None:
    with pytest.raises(OptionError, match=text):
        SparkModel(Sum()).udf(**options)


def test_preprocessing_of_other_tensors_is_refused(spark) -> None:
    model = SparkModel(Sum())
    model.preprocessing = {"features/age": OneHot()}
    with pytest.raises(
        OptionError, match=r"one tensor of numbers, received preprocessing of \['features/age'\]"
    ):
        model.udf()


@pytest.mark.parametrize("way", ["predict", "score", "udf"])
def test_a_stream_of_files(spark, tmp_path, way) -> None:
    network = classifier()
    model = SparkModel(network, loss=nn.CrossEntropyLoss())
    table = rows(spark, 60, 3).withColumn("y", F.col("id") % 4)
    table.write.parquet(str(tmp_path / "rows"))
    stream = (
        spark.readStream.schema(table.schema).option("maxFilesPerTrigger", 1).parquet(str(tmp_path / "rows"))
    )
    batch = {"batch_size": 7, "features": "x", "key": "id"}
    if way == "udf":
        result, expected = (
            stream.select("id", model.udf()("x").alias("prediction")),
            model.predict(table, **batch),
        )
    elif way == "score":
        result, expected = model.score(stream, **batch, label="y"), model.score(table, **batch, label="y")
    else:
        result, expected = model.predict(stream, **batch), model.predict(table, **batch)
    assert result.isStreaming
    started = (
        result.writeStream.format("memory").queryName(f"stream_{way}").trigger(availableNow=True).start()
    )
    try:
        assert started.awaitTermination(90)
    finally:
        started.stop()
    assert len(started.recentProgress) >= 3
    found = spark.table(f"stream_{way}").orderBy("id").collect()
    wanted = expected.orderBy("id").collect()
    assert [row.id for row in found] == list(range(60))
    np.testing.assert_allclose(
        np.array([row[1] for row in found]), np.array([row[1] for row in wanted]), atol=1e-6
    )


def test_a_stream_has_columns_and_is_not_evaluated(spark, tmp_path) -> None:
    stream = spark.readStream.format("rate").load().selectExpr("value id", "array(float(value)) x")
    model = SparkModel(nn.Linear(1, 2))
    with pytest.raises(OptionError, match="features: expected the columns"):
        model.predict(stream, key="id")
    with pytest.raises(OptionError, match="expected a batch of rows, received a stream"):
        model.evaluate(stream, features="x", label="id")
