"""Many metrics in one pass over real Spark's partitions: weights, groups, outputs, and what is refused."""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.sql import functions as F
from torch import nn

from fatwood import Batch, Losses, Parquet, SequenceColumn, SparkModel
from fatwood.errors import DataError, OptionError, SchemaError, UserCodeError, UserError
from fatwood.evaluation import ROC, Classification, Loss, Regression, Reports, ROCMultiClass, TorchMetric

pytestmark = pytest.mark.spark

ROWS = 240
COLUMNS: Any = {"features": "x", "label": "y"}
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def make_network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, outputs))


@pytest.fixture(scope="module")
def table(spark):
    """In four partitions: one is empty, one has a single class."""
    ids = spark.range(0, ROWS * 4 // 3, 1, 4).filter(f"id < {ROWS}")
    df = ids.selectExpr(
        "id",
        "array(float(sin(id)), float(cos(id * 2))) x",
        f"int(if(id < {ROWS // 3}, 1, pmod(hash(id), 3))) y",
        "float(sin(id) * 2) number",
        "float(pmod(id, 5) / 4) w",
        "int(cos(id * 2) > 0.3) truth",
        "if(id % 3 = 0, null, concat('g', pmod(id, 2))) g",
        "date_add(date'2024-01-01', int(id % 2)) day",
        "slice(array(float(sin(id)), float(cos(id)), 1f), 1, 1 + int(id % 3)) steps",
        "slice(array(int(id % 3), 2, 0), 1, 1 + int(id % 3)) tags",
    ).cache()
    df.count()
    yield df
    df.unpersist()


@pytest.fixture(scope="module")
def tensors(table):
    rows = table.collect()
    return {
        name: torch.tensor([row[name] for row in rows]) for name in ("x", "y", "number", "w", "truth", "id")
    }


def outputs_of(network: nn.Module, tensors) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(tensors["x"])


def test_many_metrics_in_one_job(spark, table, tensors, tmp_path) -> None:
    classification = pytest.importorskip("torchmetrics.classification")
    torchmetrics = pytest.importorskip("torchmetrics")
    network, loss = make_network(), nn.CrossEntropyLoss()
    scores = outputs_of(network, tensors).double().softmax(1)
    both = torchmetrics.MetricCollection(
        [classification.MulticlassAUROC(3), classification.MulticlassF1Score(3, average="macro")]
    )
    spark.sparkContext.setJobGroup("many metrics", "")
    try:
        found = SparkModel(network, loss=loss).evaluate(
            table, [Classification(top_n=2), ROCMultiClass(), Loss(), both], **COLUMNS, batch_size=17
        )
    finally:
        spark.sparkContext.setJobGroup("", "")
    assert len(spark.sparkContext.statusTracker().getJobIdsForGroup("many metrics")) == 1
    assert isinstance(found, Reports)
    assert found["roc_multi_class"] == ROCMultiClass().update(scores, tensors["y"])
    expected = Classification(top_n=2).update(scores, tensors["y"])
    assert found["classification"].confusion.tolist() == expected.confusion.tolist()
    assert found["classification"].top_n_accuracy == expected.top_n_accuracy
    assert found["loss"].loss == pytest.approx(
        float(loss(outputs_of(network, tensors), tensors["y"])), rel=1e-6
    )
    both.update(scores.float(), tensors["y"])
    for name, value in both.compute().items():
        assert float(found[name].value) == pytest.approx(float(value), abs=1e-6)
    text = found.to_json(str(tmp_path / "reports.json"))
    again = Reports.from_json(str(tmp_path / "reports.json"), both)
    assert again.to_json() == text
    assert again.merge(found)["loss"].rows == 2 * ROWS


@pytest.mark.parametrize("batch_size", [7, 64])
def test_weights_of_rows_and_classes(table, tensors, batch_size) -> None:
    network = make_network()
    model = SparkModel(network, loss=nn.CrossEntropyLoss(weight=CLASS_WEIGHTS))
    outputs, y, w = outputs_of(network, tensors), tensors["y"], tensors["w"]
    losses = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, reduction="none")(outputs, y)
    expected = float((losses * w).sum() / (CLASS_WEIGHTS[y] * w).sum())
    named = {**COLUMNS, "weight": "w", "batch_size": batch_size}
    report = model.evaluate(table, **named)
    assert report.loss == pytest.approx(expected, rel=1e-5)
    right = (outputs.argmax(1) == y).double()
    assert report.accuracy == pytest.approx(float((right * w).sum() / w.sum()), rel=1e-9)
    assert report.rows == ROWS
    assert model.evaluate(table, ROCMultiClass(), **named)["roc_multi_class"] == ROCMultiClass().update(
        outputs.double().softmax(1), y, weights=w
    )
    assert model.mean_score(table, **named) == pytest.approx(expected, rel=1e-5)
    assert model.mean_score(table, **COLUMNS, batch_size=batch_size) == pytest.approx(
        float(model.loss(outputs, y)), rel=1e-5
    )


def test_by_columns(table, tensors, tmp_path) -> None:
    network = make_network()
    model = SparkModel(network, loss=nn.CrossEntropyLoss())
    found = model.evaluate(
        table, {"roc": ROCMultiClass(), "c": Classification()}, by="g", **COLUMNS, batch_size=9
    )
    assert list(found) == [None, "g0", "g1"]
    scores, ids = outputs_of(network, tensors).double().softmax(1), tensors["id"]
    for value, reports in found.items():
        own = ids % 3 == 0 if value is None else (ids % 3 != 0) & (ids % 2 == int(value[1]))
        assert reports["roc"] == ROCMultiClass().update(scores[own], tensors["y"][own])
        assert reports["c"].rows == int(own.sum())
    days = model.evaluate(table, by=["day", "g"], **COLUMNS)
    first, second = datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)
    assert list(days) == [(first, None), (first, "g0"), (second, None), (second, "g1")]
    assert sum(report.rows for report in days.values()) == ROWS
    table.write.parquet(str(tmp_path / "rows"))
    of_files = model.evaluate(Parquet(str(tmp_path / "rows")), by=["day", "g"], **COLUMNS)
    assert {group: report.rows for group, report in of_files.items()} == {
        group: report.rows for group, report in days.items()
    }


def test_groups_of_odd_values_and_bad_rows(table) -> None:
    df = table.select(
        "x",
        F.expr("if(id = 7, 9, y)").alias("y"),
        F.expr("if(id % 2 = 0, double('nan'), double(id % 3))").alias("d"),
        F.expr("case when id = 7 then binary('b') when id = 8 then null else binary('a') end").alias("b"),
    )
    model = SparkModel(make_network())
    found = model.evaluate(df, by="d", **COLUMNS, on_bad_row="skip")
    assert list(map(str, found)) == ["0.0", "1.0", "2.0", "nan"]
    assert found[math.nan].rows == ROWS // 2
    assert [report.skipped for value, report in found.items() if value == 1.0] == [1]
    assert sum(report.skipped for report in found.values()) == 1
    of_bytes = model.evaluate(df, by="b", **COLUMNS, on_bad_row="skip")
    assert {value: report.rows for value, report in of_bytes.items()} == {None: 1, b"a": ROWS - 2}


class Twins(nn.Module):
    """A class and a number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.kind, self.size = nn.Linear(2, 3), nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"kind": self.kind(x), "size": self.size(x)[:, 0]}


def test_several_outputs(table, tensors) -> None:
    network, label = Twins(), {"kind": "y", "size": "number"}
    with torch.no_grad():
        outputs = network(tensors["x"])
    losses = {"kind": nn.CrossEntropyLoss(), "size": nn.MSELoss()}
    model = SparkModel(network, loss=Losses(losses, weights={"size": 0.5}))
    asked = {"kind": ROCMultiClass(), "size": [Regression(), Loss()]}
    found = model.evaluate(table, asked, features="x", label=label)
    assert found["kind"]["roc_multi_class"] == ROCMultiClass().update(
        outputs["kind"].double().softmax(1), tensors["y"]
    )
    assert found["size"]["regression"].rows == ROWS
    truth = {"kind": tensors["y"], "size": tensors["number"]}
    parts = {key: float(loss(outputs[key], truth[key])) for key, loss in losses.items()}
    assert found["size"]["loss"].loss == pytest.approx(parts["size"], rel=1e-5)
    expected = parts["kind"] + 0.5 * parts["size"]
    assert model.mean_score(table, features="x", label=label) == pytest.approx(expected, rel=1e-5)

    def together(outputs, labels):
        return sum(losses[key](outputs[key], labels[key]) for key in losses)

    same = SparkModel(network, loss=together).evaluate(table, Loss(), features="x", label=label, by="g")
    assert set(same) == {None, "g0", "g1"}
    assert set(same["g0"]) == {"kind", "size", "loss"}
    mean = SparkModel(network, loss=together).mean_score(table, features="x", label=label)
    assert mean == pytest.approx(sum(parts.values()), rel=1e-5)


class Tagger(nn.Module):
    """Three numbers for each step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, -x, x * x], -1)


def test_steps(table) -> None:
    rows = table.select("steps", "tags", "w", "g").collect()
    x = torch.tensor([step for row in rows for step in row.steps])
    y = torch.tensor([step for row in rows for step in row.tags])
    w = torch.tensor([row.w for row in rows for _ in row.tags])
    columns: Any = {"features": SequenceColumn("steps"), "label": SequenceColumn("tags")}
    model = SparkModel(Tagger(), loss=nn.CrossEntropyLoss(ignore_index=2))
    found = model.evaluate(table, [ROCMultiClass(), Loss()], weight="w", **columns, batch_size=11)
    real, output = y != 2, Tagger()(x)
    expected = ROCMultiClass().update(output[real].double().softmax(1), y[real], weights=w[real])
    assert found["roc_multi_class"] == expected
    losses = nn.functional.cross_entropy(output, y, ignore_index=2, reduction="none")
    assert found["loss"].loss == pytest.approx(float((losses * w).sum() / w[real].sum()), rel=1e-5)
    ignored = table.withColumn("tags", F.expr("transform(tags, t -> 2)"))
    with pytest.raises(DataError, match="at least one usable row"):
        model.evaluate(ignored, ROCMultiClass(), **columns)


def test_without_a_loss_and_with_an_activation(table, tensors) -> None:
    network = make_network(1)
    outputs = outputs_of(network, tensors)
    model = SparkModel(network)
    found = model.evaluate(table, [Regression()], features="x", label="number")
    assert found["regression"].rows == ROWS
    named: Any = {"features": "x", "label": "truth"}
    truth = tensors["truth"][:, None].float()
    assert model.evaluate(table, ROC(), activation="sigmoid", **named)["roc"] == ROC().update(
        outputs.double().sigmoid(), truth
    )
    clipped = model.evaluate(table, ROC(bins=10), activation=lambda output: output.clamp(0, 1), **named)
    assert clipped["roc"] == ROC(bins=10).update(outputs.clamp(0, 1), truth)
    with pytest.raises(UserError, match=r"(?s)probabilities from 0 to 1.*on partition 0.*activation="):
        model.evaluate(table, ROC(bins=10), **named)
    with pytest.raises(UserCodeError, match=r"(?s)raised by the activation.*on partition 0"):
        model.evaluate(table, ROC(), activation=lambda output: output.missing, **named)


def test_minibatches_with_weights(spark, table, tensors) -> None:
    network, loss = make_network(), nn.CrossEntropyLoss()
    batches = [
        Batch(tensors["x"][i : i + 50], tensors["y"][i : i + 50], weight=tensors["w"][i : i + 50])
        for i in range(0, ROWS, 50)
    ]
    rdd = spark.sparkContext.parallelize(batches, 2)
    model = SparkModel(network, loss=loss)
    found = model.evaluate(rdd, [Classification(), ROCMultiClass()])
    expected = model.evaluate(table, [Classification(), ROCMultiClass()], weight="w", **COLUMNS)
    assert found["roc_multi_class"] == expected["roc_multi_class"]
    assert found["classification"].loss == pytest.approx(expected["classification"].loss, rel=1e-6)
    with pytest.raises(OptionError, match=r"by: expected None for .*RDD"):
        model.evaluate(rdd, by="g")


def test_what_is_refused_before_any_job(spark, table) -> None:
    regression = pytest.importorskip("torchmetrics.regression")
    model, bare = SparkModel(make_network(), loss=nn.CrossEntropyLoss()), SparkModel(make_network())
    wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (bare, {"metrics": Loss()}, OptionError, "a model with loss for the report 'loss'"),
        (model, {"metrics": "auroc"}, OptionError, "metrics: expected reports"),
        (
            model,
            {"metrics": TorchMetric(regression.R2Score()), "weight": "w"},
            OptionError,
            "weighs all rows alike",
        ),
        (model, {"metrics": ROC(), "activation": "relu"}, OptionError, "activation: expected"),
        (model, {"by": "nobody"}, SchemaError, "column 'nobody'"),
        (model, {"by": "x"}, SchemaError, "by: expected a column of single values, received 'x'"),
        (model, {"by": []}, OptionError, "by: expected the name of a column"),
        (model, {"weight": "nobody"}, SchemaError, "column 'nobody'"),
        (model, {"workers_per_node": 0}, OptionError, "workers_per_node"),
    ]
    for of, options, kind, text in wrong:
        with pytest.raises(kind, match=text):
            of.evaluate(table, **COLUMNS, **options)
    with pytest.raises(OptionError, match="mean_score: expected a model with loss"):
        bare.mean_score(table, **COLUMNS)
    own = SparkModel(make_network(), loss=lambda output, label: output.mean())
    with pytest.raises(OptionError, match=r"weight: expected a loss with reduction='mean'"):
        own.evaluate(table, weight="w", **COLUMNS)
    stream = spark.readStream.format("rate").load().selectExpr("array(1f, 2f) x", "1 y")
    for by in (None, "y"):
        with pytest.raises(UserError, match="received a stream"):
            model.evaluate(stream, by=by, **COLUMNS)


def test_too_many_groups(spark) -> None:
    df = spark.range(0, 10_002, 1, 2).selectExpr("id", "array(1f, 2f) x", "1 y")
    with pytest.raises(OptionError, match="by: expected at most 10,000 groups"):
        SparkModel(make_network()).evaluate(df, by="id", **COLUMNS, batch_size=4096)


def test_workers_per_node_changes_nothing(table) -> None:
    model = SparkModel(make_network(), loss=nn.CrossEntropyLoss())
    assert model.evaluate(table, **COLUMNS, workers_per_node=1) == model.evaluate(table, **COLUMNS)
    assert np.isfinite(model.mean_score(table, **COLUMNS, workers_per_node=1))
