"""Prediction on real Spark: rows in are rows out, keys untouched, the same numbers as on the driver."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

import numpy as np
import pytest
import torch
from pyspark.errors import PythonException
from pyspark.ml.linalg import Vectors
from pyspark.sql import Row
from pyspark.sql import functions as F
from torch import nn

from fatwood import SparkModel
from fatwood.data import Batch
from fatwood.errors import OptionError, SchemaError

pytestmark = pytest.mark.spark

SIZES = (0, 1, 7, 0, 300)
BATCH_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"


class Network(nn.Module):
    """Dropout and batch statistics: in training mode its output is another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Shaped(nn.Module):
    """What a row holds, in another shape and type."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        makers = {
            "(B,)": lambda: x[:, 0],
            "(B, 1)": lambda: x[:, :1],
            "(B, 3)": lambda: x,
            "(B, 2, 3)": lambda: torch.stack([x, 2 * x], dim=1),
            "(B, 0)": lambda: x[:, :0],
            "int64": lambda: (100 * x).to(torch.int64),
            "bool": lambda: x > 0,
            "float64": lambda: x.to(torch.float64).t().contiguous().t(),
            "gradient": self._gradient,
        }
        return makers[self.kind]()

    @torch.enable_grad()
    def _gradient(self) -> torch.Tensor:
        x = torch.ones(2, 2, requires_grad=True)
        (gradient,) = torch.autograd.grad((x**3).sum(), x)
        return gradient + x


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.prepared(x))

    def prepared(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such thing")


def frame(spark, sizes=SIZES):
    """Partitions of these sizes; features are functions of the id alone."""
    step = max(*sizes, 1)
    ids = spark.range(0, step * len(sizes), 1, len(sizes))
    ids = ids.filter(f"id % {step} < get(array({', '.join(map(str, sizes))}), int(id DIV {step}))")
    return ids.selectExpr("id", "array(float(sin(id)), float(cos(id)), float(sin(id * 3))) x")


def expected(network: nn.Module, xs: list[list[float]]) -> np.ndarray:
    """The network applied to one row after the other."""
    network = network.eval()
    with torch.no_grad():
        rows = [network(torch.tensor([x])).reshape(-1) for x in xs]
    return torch.stack(rows).numpy() if rows else np.zeros((0, 2), np.float32)


@contextmanager
def arrow_batches_of(spark, rows: int) -> Iterator[None]:
    before = spark.conf.get(BATCH_ROWS)
    spark.conf.set(BATCH_ROWS, rows)
    try:
        yield
    finally:
        spark.conf.set(BATCH_ROWS, before)


@contextmanager
def no_jobs(spark) -> Iterator[None]:
    """What is done within must start no Spark job."""
    context = spark.sparkContext
    context.setJobGroup("fatwood-no-jobs", "must stay empty")
    try:
        yield
        assert list(context.statusTracker().getJobIdsForGroup("fatwood-no-jobs")) == []
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)


@pytest.mark.parametrize(("arrow_rows", "batch_size"), [(10_000, 64), (16, 5), (3, 1), (128, 10_000)])
def test_rows_in_are_rows_out_in_order_whatever_the_batches(spark, arrow_rows, batch_size) -> None:
    network, df = Network(), frame(spark)
    rows = df.collect()
    with arrow_batches_of(spark, arrow_rows):
        result = SparkModel(network).predict(df, key="id", features="x", batch_size=batch_size)
        found = result.withColumn("partition", F.spark_partition_id()).collect()
    assert [row.id for row in found] == [row.id for row in rows]
    assert [row.partition for row in found] == [row.id // max(SIZES) for row in rows]
    np.testing.assert_allclose(
        np.array([row.prediction for row in found]), expected(network, [row.x for row in rows]), atol=1e-6
    )


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row(spark, rows) -> None:
    df = frame(spark, (1, 0)).limit(rows)
    result = SparkModel(Network()).predict(df, key="id", features="x")
    assert result.schema.simpleString() == "struct<id:bigint,prediction:array<float>>"
    found = result.collect()
    assert len(found) == rows
    assert all(len(row.prediction) == 2 for row in found)


def test_it_is_lazy_takes_todays_parameters_and_leaves_the_drivers_network_alone(spark) -> None:
    network, df = Network().train(), frame(spark, (5, 4)).cache()
    network.layers[3].eval()  # a mode of its own
    xs = [row.x for row in df.collect()]
    with no_jobs(spark):
        result = SparkModel(network).predict(df, key="id", features="x")
    assert network.training
    assert not network.layers[3].training
    then = expected(Network(), xs)
    with torch.no_grad():
        network.layers[0].weight.zero_()
    np.testing.assert_allclose(np.array([row.prediction for row in result.collect()]), then, atol=1e-6)
    assert network.layers[1].num_batches_tracked == 0
    df.unpersist()


def test_keys_of_every_type_are_untouched(spark) -> None:
    whole = Row(
        k_bigint=2**62,
        k_byte=-7,
        k_yes=True,
        k_float=0.1,
        k_text="naïve \U0001f525 \x00 'quoted'",
        k_decimal=Decimal("12345678901234567.890123456789012345"),
        k_time=datetime.datetime(2024, 2, 29, 23, 59, 59, 123456),
        k_local=datetime.datetime(1969, 12, 31, 1, 2, 3),
        k_day=datetime.date(1582, 10, 4),
        k_bytes=bytearray(b"\x00\xff"),
        k_gap=datetime.timedelta(days=-3, microseconds=1),
        k_struct=Row(a=1, b=Row(c=["x", None])),
        k_array=[[1, None], []],
        k_map={"a": Row(v=1.5), "b": None},
        k_vector=Vectors.sparse(4, {1: 2.0}),
        x=[1.0, 2.0, 3.0],
    )
    schema = (
        "k_bigint bigint, k_byte tinyint, k_yes boolean, k_float float, k_text string, k_decimal decimal(38,18),"
        "k_time timestamp, k_local timestamp_ntz, k_day date, k_bytes binary, k_gap interval day to second,"
        "k_struct struct<a: int not null, b: struct<c: array<string>>>, k_array array<array<int>>,"
        "k_map map<string, struct<v: double>>"
    )
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql.types import ArrayType, FloatType

    known = spark.createDataFrame([], schema).schema
    fields = known.add("k_vector", VectorUDT()).add("x", ArrayType(FloatType()))
    nulls = (*[None] * (len(fields) - 1), [0.0, 0.0, 1.0])
    df = spark.createDataFrame([tuple(whole), nulls, tuple(whole)], fields).coalesce(1)
    # Metadata and a column that cannot be null travel too.
    df = df.withColumn("k_byte", F.col("k_byte").alias("k_byte", metadata={"unit": "apples"}))
    df = df.withColumn("k_constant", F.lit(5))
    keys = [name for name in df.columns if name != "x"]
    result = SparkModel(Network()).predict(df, key=keys, features="x", output="y")
    assert result.columns == [*keys, "y"]
    assert [result.schema[name].dataType for name in keys] == [df.schema[name].dataType for name in keys]
    assert result.schema["k_byte"].metadata == {"unit": "apples"}
    assert result.select(*keys).collect() == df.select(*keys).collect()
    # Not only the same to Python: the same to Spark.
    plain = [name for name in keys if name not in ("k_map", "k_vector")]
    assert result.select(F.xxhash64(*plain)).collect() == df.select(F.xxhash64(*plain)).collect()


def test_keys_may_have_any_name_and_may_be_features(spark) -> None:
    rows = [(1, 2.0, 3.0, "a"), (2, 3.0, 4.0, "b")]
    names = ["features", "row_id", "key_0", "a.b `c`"]
    df = spark.createDataFrame(rows, names).coalesce(1)
    result = SparkModel(Shaped("(B, 3)")).predict(
        df, key=["a.b `c`", "ROW_ID", "features"], features=["row_id", "key_0"], output="label"
    )
    assert result.columns == ["a.b `c`", "row_id", "features", "label"]
    assert [tuple(row) for row in result.collect()] == [("a", 2.0, 1, [2.0, 3.0]), ("b", 3.0, 2, [3.0, 4.0])]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"key": "idd"}, SchemaError, "column 'idd'.*did you mean 'id'"),
        ({"key": ["id", "ID"]}, OptionError, r"different names.*received key=\['id', 'ID'\]"),
        ({"key": []}, OptionError, "key: expected the name of a column"),
        ({"key": 5}, OptionError, "key: expected the name of a column.*received 5"),
        ({"key": ["id", None]}, OptionError, "key: expected the name of a column"),
        ({"output": "Id"}, OptionError, "different names.*output='Id'.*hint: .*output="),
        ({"output": ""}, OptionError, "output: expected a name"),
        ({"key": "prediction", "features": "id"}, OptionError, "different names"),
        ({"features": "y"}, SchemaError, "column 'y'"),
        ({"batch_size": 0}, OptionError, "batch_size: expected .* at least 1, received 0"),
        ({"batch_size": True}, OptionError, "batch_size: .*received True"),
        ({"on_bad_row": "ignore"}, OptionError, "on_bad_row: expected 'error' or 'skip', received 'ignore'"),
    ],
    ids=str,
)
def test_what_cannot_work_is_an_error_before_any_job(spark, options, error, text) -> None:
    df = frame(spark, (3,)).withColumn("prediction", F.lit(1))
    with no_jobs(spark), pytest.raises(error, match=f"(?s){text}"):
        SparkModel(Network()).predict(df, **{"key": "id", "features": "x", **options})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("(B,)", [0.5]),
        ("(B, 1)", [0.5]),
        ("(B, 3)", [0.5, -1.25, 3.0]),
        ("(B, 2, 3)", [0.5, -1.25, 3.0, 1.0, -2.5, 6.0]),
        ("(B, 0)", []),
        ("int64", [50.0, -125.0, 300.0]),
        ("bool", [1.0, 0.0, 1.0]),
        ("float64", [0.5, -1.25, 3.0]),
        ("gradient", [4.0, 4.0]),
    ],
)
def test_any_output_is_flattened_to_floats(spark, kind, value) -> None:
    df = spark.createDataFrame([(1, [0.5, -1.25, 3.0]), (2, [0.5, -1.25, 3.0])], ["id", "x"]).coalesce(1)
    found = SparkModel(Shaped(kind)).predict(df, key="id", features="x").collect()
    assert [(row.id, row.prediction) for row in found] == [(1, value), (2, value)]


def with_bad_rows(spark):
    """One partition with bad rows of every kind; also the ids of the good rows, and how many rows there are."""
    nan, good = float("nan"), [0.1, 0.2, 0.3]
    bad = [[1.0], None, [1.0, nan, 1.0], [1.0, None, 1.0], [1.0] * 4, [float("inf")] * 3, []]
    xs = [good, good, good, *bad[:3], good, *bad[3:], good, *bad, *bad]
    df = spark.createDataFrame(list(enumerate(xs)), "id int, x array<float>").coalesce(1)
    good_ids = {i for i, x in enumerate(xs) if x is good}
    return df, good_ids, len(xs)


@pytest.mark.parametrize("arrow_rows", [10_000, 3])
def test_bad_rows_get_null_on_request_and_no_other_row_does(spark, arrow_rows) -> None:
    df, good, rows = with_bad_rows(spark)
    network = Network()
    with arrow_batches_of(spark, arrow_rows):
        result = SparkModel(network).predict(df, key="id", features="x", on_bad_row="skip", batch_size=2)
        found = result.collect()
    assert [row.id for row in found] == list(range(rows))
    assert {row.id for row in found if row.prediction is not None} == good
    values = np.array([row.prediction for row in found if row.id in good])
    np.testing.assert_allclose(values, expected(network, [[0.1, 0.2, 0.3]] * len(good)), atol=1e-6)


def test_a_bad_first_row_does_not_decide_the_width(spark) -> None:
    df = spark.createDataFrame([(0, [1.0]), (1, [1.0] * 3), (2, [2.0] * 3)], "id int, x array<float>")
    result = SparkModel(Network()).predict(df.coalesce(1), key="id", features="x", on_bad_row="skip")
    assert [row.prediction is None for row in result.collect()] == [True, False, False]


def test_scalar_columns_with_nulls(spark) -> None:
    df = spark.createDataFrame([(0, None, 2.0), (1, 1.0, 2.0)], "id int, a double, b double").coalesce(1)
    model = SparkModel(Shaped("(B, 3)"))
    found = model.predict(df, key="id", features=["b", "a"], on_bad_row="skip").collect()
    assert [row.prediction for row in found] == [None, [2.0, 1.0]]


def test_a_bad_row_is_an_error_that_says_where(spark) -> None:
    df, _, _ = with_bad_rows(spark)
    before = spark.range(0, 4, 1, 2).selectExpr("int(id)", "array(float(id), 1f, 2f) x")
    model = SparkModel(Network())
    with pytest.raises(PythonException) as caught:
        model.predict(before.union(df), key="id", features="x").collect()
    text = str(caught.value)
    assert "DataError: partition 2, row 3: column 'x': expected 3 finite numbers, received 1 value" in text
    assert 'on_bad_row="skip"' in text


def test_the_users_own_error_comes_first(spark) -> None:
    df = frame(spark, (3,))
    with pytest.raises(PythonException) as caught:
        SparkModel(Failing()).predict(df, key="id", features="x").collect()
    said = str(caught.value).partition("fatwood.errors.UserCodeError: ")[2]
    assert said.startswith("KeyError: 'no such thing'\nraised by the network's forward, given features of")
    assert "on partition 0 on host" in said
    assert 'raise KeyError("no such thing")' in said  # the user's own line
    assert "fatwood/train/step.py" not in said


def test_the_result_is_an_ordinary_frame(spark, capsys) -> None:
    sizes = (2500, 0, 1200)
    df = frame(spark, sizes)
    with arrow_batches_of(spark, 100):
        result = SparkModel(Network()).predict(df, key="id", features="x")
        positive = result.filter("prediction[0] > prediction[1]")
        assert 0 < positive.count() < sum(sizes)
        joined = df.join(result, "id").filter("prediction is not null")
        assert joined.selectExpr("count(*)", "count(distinct id)").first() == (sum(sizes), sum(sizes))
        assert [row.id for row in result.limit(3).collect()] == [0, 1, 2]
        result.show(2)
        assert result.orderBy(F.desc("id")).first().id == 2 * max(sizes) + 1199
    assert "only showing top 2 rows" in capsys.readouterr().out


class Parts(nn.Module):
    """An autoencoder of sorts: what it makes of a row, and what it keeps of it."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        code = x[:, :2]
        return {"code": code, "again": torch.cat([code, torch.zeros(len(x), 1)], 1)}


def errors(output: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    return (output["again"] - batch.features).square().sum(1)


def test_a_function_of_outputs_and_batch(spark) -> None:
    df, model = frame(spark, (5, 0, 4)), SparkModel(Parts())
    xs = np.array([row.x for row in df.collect()])
    result = model.predict(
        df, key="id", features="x", function=errors, scalar=True, output="error", batch_size=2
    )
    assert result.schema.simpleString() == "struct<id:bigint,error:float>"
    np.testing.assert_allclose([row.error for row in result.collect()], xs[:, 2] ** 2, atol=1e-6)

    def several(output, batch):
        return {"error": errors(output, batch), "code": output["code"], "unused": None}

    found = model.predict(df, key="id", features="x", function=several, outputs=["code", "error"], output="p")
    assert found.columns == ["id", "p_code", "p_error"]
    rows = found.collect()
    np.testing.assert_allclose(np.array([row.p_code for row in rows]), xs[:, :2], atol=1e-6)
    np.testing.assert_allclose(np.array([row.p_error for row in rows])[:, 0], xs[:, 2] ** 2, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (
            lambda output, batch: output["again"].sum(),
            "function must return one tensor with a row for each of 3 rows",
        ),
        (
            lambda output, batch: output["nothing"],
            "KeyError: 'nothing'\nraised by the function that predict was given",
        ),
    ],
    ids=["form", "raises"],
)
def test_a_function_that_does_not_fit_is_named(spark, function, text) -> None:
    with pytest.raises(PythonException, match=text):
        SparkModel(Parts()).predict(frame(spark, (3,)), key="id", features="x", function=function).collect()


LOSSES = [
    (nn.CrossEntropyLoss(), "auto", lambda y: y.softmax(1)),
    (None, "softmax", lambda y: y.softmax(1)),
    (nn.NLLLoss(), "auto", torch.exp),
    (nn.MSELoss(), lambda y: y.square() / y.square().sum(1, keepdim=True), None),
]


@pytest.mark.parametrize(
    ("loss", "activation", "expected_of"), LOSSES, ids=["loss", "named", "nll", "function"]
)
def test_class_and_probability(spark, loss, activation, expected_of) -> None:
    df, network = frame(spark, (6, 0, 5)), nn.Sequential(Network())
    if isinstance(loss, nn.NLLLoss):
        network.append(nn.LogSoftmax(1))
    result = SparkModel(network, loss=loss).predict(
        df, key="id", features="x", returns=["probability", "class"], activation=activation, batch_size=4
    )
    kinds = "struct<id:bigint,prediction_probability:double,prediction_class:int>"
    assert result.schema.simpleString() == kinds
    outputs = torch.from_numpy(expected(network, [row.x for row in df.collect()])).double()
    probabilities = (expected_of or activation)(outputs)
    found = result.collect()
    assert [row.prediction_class for row in found] == probabilities.argmax(1).tolist()
    chosen = probabilities.max(1).values
    np.testing.assert_allclose([row.prediction_probability for row in found], chosen, atol=1e-6)


def test_class_of_one_number(spark) -> None:
    df = spark.createDataFrame([(0, [-3.0] * 3), (1, [2.0] * 3), (2, None)], "id int, x array<float>")
    model = SparkModel(Shaped("(B, 1)"), loss=nn.BCEWithLogitsLoss())
    both = {"key": "id", "features": "x", "returns": ("class", "probability", "output"), "on_bad_row": "skip"}
    rows = model.predict(df.coalesce(1), **both, scalar=True).collect()
    assert [row.prediction_class for row in rows] == [0, 1, None]
    assert [row.prediction for row in rows] == [-3.0, 2.0, None]
    sure = [1 - 1 / (1 + np.exp(3.0)), 1 / (1 + np.exp(-2.0))]
    np.testing.assert_allclose([row.prediction_probability for row in rows[:2]], sure, atol=1e-7)
    assert rows[2].prediction_probability is None


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (
            "(B, 3)",
            {"returns": "class"},
            "(?s)must become probabilities, received numbers from -1.25 to 3.*softmax",
        ),
        (
            "(B, 2, 3)",
            {"returns": "class"},
            r"must be \(B, classes\) or one number a row, received \(1, 2, 3\)",
        ),
        ("(B, 3)", {"scalar": True}, r"scalar=True an output must be one number a row, received \(1, 3\)"),
    ],
)
def test_outputs_without_a_class_or_not_one_number(spark, kind, options, text) -> None:
    df = spark.createDataFrame([(1, [0.5, -1.25, 3.0])], ["id", "x"]).coalesce(1)
    with pytest.raises(PythonException, match=text):
        SparkModel(Shaped(kind)).predict(df, key="id", features="x", **options).collect()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"returns": "classes"}, "returns: expected one or more of 'output', 'class', 'probability'"),
        ({"returns": []}, "returns: expected"),
        ({"returns": ("class", "class")}, "returns: expected"),
        ({"returns": "class", "activation": "relu"}, "activation: expected"),
        ({"scalar": 1}, "scalar: expected True or False"),
        ({"function": "mean"}, "function: expected function"),
        ({"workers_per_node": 0}, "workers_per_node: expected a whole number of at least 1, received 0"),
        ({"key": "prediction_class", "returns": "class"}, "different names"),
    ],
    ids=str,
)
def test_options_of_what_is_returned(spark, options, text) -> None:
    df = frame(spark, (3,)).withColumn("prediction_class", F.lit(1))
    with no_jobs(spark), pytest.raises(OptionError, match=text):
        SparkModel(Network()).predict(df, **{"key": "id", "features": "x", **options})


def test_regularization_is_added_to_each_score(spark) -> None:
    df = frame(spark, (4, 3)).withColumn("y", F.col("id") % 2)
    model = SparkModel(Network(), loss=nn.CrossEntropyLoss())
    given = {"key": "id", "features": "x", "label": "y"}
    plain = [row.score for row in model.score(df, **given).collect()]
    more = sum(p.detach().square().sum().item() for p in model.network.parameters())
    found = model.score(
        df, **given, regularization=lambda net: sum(p.square().sum() for p in net.parameters())
    )
    np.testing.assert_allclose([row.score for row in found.collect()], np.array(plain) + more, rtol=1e-6)
    with pytest.raises(OptionError, match="regularization: expected function"):
        model.score(df, **given, regularization=0.1)
    with pytest.raises(PythonException, match=r"regularization must return one number, received \(16, 3\)"):
        model.score(df, **given, regularization=lambda net: net.layers[0].weight).collect()


def test_skewed_partitions_and_keys_that_repeat_or_are_null(spark) -> None:
    df = frame(spark, (0, 1, 0, 2000, 3))
    pair = df.withColumn("a", F.expr("if(id % 5 = 0, null, id % 7)")).withColumn(
        "b", F.expr("string(id % 3)")
    )
    rows = pair.collect()
    network = Network()
    by_size = []
    for batch_size in (1000, 37):
        found = (
            SparkModel(network).predict(pair, key=["a", "b"], features="x", batch_size=batch_size).collect()
        )
        assert [(row.a, row.b) for row in found] == [(row.a, row.b) for row in rows]
        by_size.append(np.array([row.prediction for row in found]))
    np.testing.assert_allclose(by_size[0], by_size[1], atol=1e-6)
    np.testing.assert_allclose(by_size[0], expected(network, [row.x for row in rows]), atol=1e-6)
