"""Steps and several outputs on real Spark: evaluate, predict and score give what one process gives row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pyspark.errors import PythonException
from pyspark.sql import functions as F
from torch import nn
from torch.nn import functional

from fatwood import Classification, Loss
from fatwood.data import Batch
from fatwood.data.inputs import DenseColumn, SequenceColumn
from fatwood.errors import DataError, OptionError, UserCodeError
from fatwood.files import Parquet
from fatwood.spark.evaluation import evaluate
from fatwood.spark.inference import predict, score
from fatwood.train import Losses

pytestmark = pytest.mark.spark

ROWS = 60
CLASSES = 3
COMMON: dict[str, Any] = {"batch_size": 8, "on_bad_row": "error"}


class Steps(nn.Module):
    """``(B, T, 2)`` to ``(B, T, 3)``; it is given the mask, and a step sees those before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.memory = nn.GRU(2, 4, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert mask.shape == x.shape[:2]
        return self.head(self.memory(x)[0])


class Twins(nn.Module):
    """A picture ``(B, 2, 3)`` and a number ``(B, 1)``, to a class and an angle."""

    def __init__(self, form: str = "dict") -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer, self.form = nn.Linear(7, CLASSES + 1), form

    def forward(self, picture: torch.Tensor, number: torch.Tensor) -> Any:
        assert picture.shape[1:] == (2, 3)
        found = self.layer(torch.cat([picture.flatten(1), number], 1))
        named = {"side": found[:, :CLASSES], "angle": found[:, CLASSES]}
        return named if self.form == "dict" else tuple(named.values())


@pytest.fixture(scope="module")
def table(spark):
    """Sequences of 1 to 5 steps, pictures, numbers and labels, in three partitions of which one is empty."""
    ids = spark.range(0, ROWS * 3 // 2, 1, 3).filter(f"id < {ROWS}")
    steps = "sequence(1, int(pmod(hash(id, 7), 5)) + 1)"
    df = ids.selectExpr(
        "id",
        f"transform({steps}, i -> array(float(sin(id * i)), float(cos(id + i)))) x",
        f"transform({steps}, i -> int(pmod(hash(id, i), {CLASSES}))) y",
        "transform(sequence(0, 1), i -> transform(sequence(0, 2), j -> float(sin(id + 3 * i + j)))) picture",
        "float(cos(id * 5)) number",
        f"int(pmod(hash(id), {CLASSES})) side",
        "float(sin(id * 2)) angle",
        "float(1 + pmod(id, 3)) w",
    ).cache()
    df.count()
    yield df
    df.unpersist()


@pytest.fixture(scope="module")
def rows(table):
    return table.collect()


def outputs_of_steps(rows) -> list[torch.Tensor]:
    network = Steps()
    with torch.no_grad():
        return [network(torch.tensor([row.x]), torch.ones(1, len(row.x)))[0] for row in rows]


def outputs_of_twins(rows) -> tuple[torch.Tensor, torch.Tensor]:
    network = Twins("tuple")
    with torch.no_grad():
        return network(
            torch.tensor([row.picture for row in rows]), torch.tensor([[row.number] for row in rows])
        )


def test_steps(table, rows) -> None:
    network, loss = Steps().train(), nn.CrossEntropyLoss()
    parts = {"network": network, "loss": loss}
    features, label = SequenceColumn("x"), SequenceColumn("y")
    outputs = outputs_of_steps(rows)
    output, truth = torch.cat(outputs), torch.tensor([step for row in rows for step in row.y])
    for df, batch_size in ((table, 8), (table.coalesce(1), 64)):
        common = {**COMMON, "batch_size": batch_size}
        report = evaluate(df, parts, features=features, label=label, **common)
        assert isinstance(report, Classification)
        assert report.rows == len(truth)
        assert report.accuracy == pytest.approx(float((output.argmax(1) == truth).double().mean()))
        assert report.loss == pytest.approx(float(loss(output, truth)), rel=1e-5)
        found = predict(df, network, key="id", features=features, output="p", **common).collect()
        assert [row.id for row in found] == [row.id for row in rows]
        for row, expected in zip(found, outputs, strict=True):
            np.testing.assert_allclose(row.p, expected.ravel().numpy(), atol=1e-6)
    scored = score(table, parts, key=["id"], features=features, label=label, **COMMON)
    assert scored.schema.simpleString() == "struct<id:bigint,score:float>"
    expected = [float(loss(own, torch.tensor(row.y))) for own, row in zip(outputs, rows, strict=True)]
    np.testing.assert_allclose([row.score for row in scored.collect()], expected, rtol=1e-5)


def test_a_bad_step(table, rows) -> None:
    df = table.withColumn("y", F.expr(f"if(id = 35, transform(y, i -> {CLASSES}), y)"))
    parts = {"network": Steps(), "loss": nn.CrossEntropyLoss()}
    named: dict[str, Any] = {"features": SequenceColumn("x"), "label": SequenceColumn("y")}
    with pytest.raises(
        DataError, match=r"(?s)^partition 1, row 5: label out of range at step 0: expected 0 to 2"
    ):
        evaluate(df, parts, **named, **COMMON)
    with pytest.raises(PythonException, match=r"partition 1, row 5: label out of range at step 0"):
        score(df, parts, key="id", **named, **COMMON).collect()
    df = df.withColumn("x", F.expr("if(id = 50, transform(x, i -> array(1f, 2f, 3f, 4f)), x)"))
    skipping: Any = {"batch_size": 8, "on_bad_row": "skip"}
    report = evaluate(df, parts, **named, **skipping)
    assert isinstance(report, Classification)
    assert report.skipped == 2
    assert report.rows == sum(len(row.y) for row in rows if row.id not in (35, 50))
    found = score(df, parts, key="id", **named, **skipping).filter("score is null").collect()
    assert [row.id for row in found] == [35, 50]
    found = predict(df, parts["network"], key="id", features=named["features"], output="p", **skipping)
    assert [row.id for row in found.filter("p is null").collect()] == [50]


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_several_inputs_and_outputs(table, rows, form) -> None:
    losses = {"side": nn.CrossEntropyLoss(), "angle": nn.MSELoss()}
    weights = {"side": 1.0, "angle": 0.5}
    columns: Any = {"picture": "picture", "number": DenseColumn("number", shape=(1,))}
    label: Any = {"side": "side", "angle": "angle"}
    loss, outputs, names = Losses(losses, weights), ["angle", "side"], ["angle", "side"]
    if form == "tuple":
        columns, label = [DenseColumn("picture"), ["number"]], [DenseColumn("side"), DenseColumn("angle")]
        loss, outputs, names = Losses(list(losses.values()), list(weights.values())), 2, [1, 0]
    parts = {"network": Twins(form), "loss": loss}
    side, angle = outputs_of_twins(rows)
    sides, angles = torch.tensor([row.side for row in rows]), torch.tensor([row.angle for row in rows])
    reports = evaluate(table, parts, features=columns, label=label, **COMMON)
    assert isinstance(reports, dict)
    assert list(reports) == names[::-1]
    of_angle, of_side = (reports[name] for name in names)
    assert isinstance(of_side, Classification)
    assert isinstance(of_angle, Loss)
    assert of_side.rows == of_angle.rows == ROWS
    assert of_side.accuracy == pytest.approx(float((side.argmax(1) == sides).double().mean()))
    assert of_side.loss == pytest.approx(float(functional.cross_entropy(side, sides)), rel=1e-5)
    assert of_angle.loss == pytest.approx(float(functional.mse_loss(angle, angles)), rel=1e-5)
    common: dict[str, Any] = {"key": "id", "features": columns, **COMMON}
    found = predict(table, parts["network"], output="p", outputs=outputs, **common).collect()
    assert [row.id for row in found] == [row.id for row in rows]
    np.testing.assert_allclose([row[f"p_{names[1]}"] for row in found], side.numpy(), atol=1e-6)
    np.testing.assert_allclose([row[f"p_{names[0]}"] for row in found], angle[:, None].numpy(), atol=1e-6)
    scored = score(table, parts, label=label, weight="w", **common).collect()
    each = functional.cross_entropy(side, sides, reduction="none") + 0.5 * (angle - angles) ** 2
    expected = each * torch.tensor([row.w for row in rows])
    np.testing.assert_allclose([row.score for row in scored], expected.numpy(), rtol=1e-4, atol=1e-6)


def test_one_loss_of_all_outputs_has_a_report_of_its_own(table, rows) -> None:
    def loss(outputs: Any, labels: Any) -> torch.Tensor:
        return functional.mse_loss(outputs["angle"], labels["angle"])

    named: dict[str, Any] = {
        "features": {"picture": "picture", "number": DenseColumn("number", shape=(1,))},
        "label": {"side": "side", "angle": "angle"},
    }
    reports = evaluate(table, {"network": Twins(), "loss": loss}, **named, **COMMON)
    assert isinstance(reports, dict)
    assert list(reports) == ["loss", "side"]
    angles = torch.tensor([row.angle for row in rows])
    assert reports["loss"].loss == pytest.approx(
        float(functional.mse_loss(outputs_of_twins(rows)[1], angles)), rel=1e-5
    )
    assert np.isnan(reports["side"].loss)
    with pytest.raises(OptionError, match="expected other names of labels than 'loss'"):
        evaluate(table, {"network": Twins(), "loss": loss}, **{**named, "label": {"loss": "angle"}}, **COMMON)


def test_a_picture_of_another_shape_and_as_many_numbers_is_a_bad_row(table) -> None:
    turned = "transform(sequence(0, 2), i -> array(1f, 2f))"
    df = table.withColumn("picture", F.expr(f"if(id = 7, {turned}, picture)"))
    columns = {"picture": "picture", "number": DenseColumn("number", shape=(1,))}
    common: dict[str, Any] = {"key": "id", "features": columns, "output": "p", "outputs": ["side"]}
    found = predict(df, Twins(), **common, batch_size=8, on_bad_row="skip")
    assert [row.id for row in found.filter("p_side is null").collect()] == [7]


def test_rows_of_files_and_of_minibatches(spark, table, rows, tmp_path) -> None:
    parts = {"network": nn.Linear(1, 1), "loss": nn.MSELoss()}
    named: dict[str, Any] = {"features": ["number"], "label": "angle"}
    table.drop("x", "y", "picture").write.parquet(str(tmp_path / "table"))
    files = Parquet(str(tmp_path / "table"))
    expected = predict(table, parts["network"], key="id", features=["number"], output="p", **COMMON).collect()
    found = predict(files, parts["network"], key=["ID"], features=["number"], output="p", **COMMON)
    assert found.schema.simpleString() == "struct<id:bigint,p:array<float>>"
    assert sorted(found.coalesce(1).collect()) == expected
    figures = [evaluate(data, parts, **named, **COMMON) for data in (files, table)]
    assert figures[0].rows == figures[1].rows == ROWS
    assert figures[0].loss == pytest.approx(figures[1].loss, rel=1e-6)
    scores = {row.id: row.score for row in score(table, parts, key="id", **named, **COMMON).collect()}
    assert {row.id: row.score for row in score(files, parts, key="id", **named, **COMMON).collect()} == scores

    numbers, angles = torch.tensor([[row.number] for row in rows]), torch.tensor([row.angle for row in rows])
    batches = [Batch(features=numbers[i : i + 7], label=angles[i : i + 7]) for i in range(0, ROWS, 7)]
    rdd = spark.sparkContext.parallelize(batches, 2)
    none: dict[str, Any] = {"features": None, "label": None}
    assert evaluate(rdd, parts, **none, **COMMON).loss == pytest.approx(figures[1].loss, rel=1e-6)
    scored = score(rdd, parts, key=None, **none, **COMMON)
    assert scored.schema.simpleString() == "struct<partition:int,row:bigint,score:float>"
    found = scored.orderBy("partition", "row").collect()
    assert [row.score for row in found] == list(scores.values())
    assert [(row.partition, row.row) for row in found] == [(0, i) for i in range(28)] + [
        (1, i) for i in range(32)
    ]
    with pytest.raises(OptionError, match="key: expected None, received 'id'"):
        predict(rdd, parts["network"], key="id", features=None, output="p", **COMMON)


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ("side", "outputs: expected different names .* received 'side'"),
        ([], r"outputs: expected .* received \[\]"),
        (["a", "a"], "outputs: expected"),
        (0, "outputs: expected"),
        (True, "outputs: expected"),
        ([""], "outputs: expected"),
        (["side", "SIDE"], "predict: expected different names for key and output columns"),
    ],
)
def test_outputs_that_cannot_be(table, outputs, text) -> None:
    with pytest.raises(OptionError, match=text):
        predict(table, Twins(), key="id", features="number", output="p", outputs=outputs, **COMMON)


def test_what_does_not_belong_together(table) -> None:
    columns: Any = {"picture": "picture", "number": DenseColumn("number", shape=(1,))}
    label: Any = {"side": "side", "angle": "angle"}
    parts = {"network": Twins(), "loss": {"side": nn.CrossEntropyLoss()}}
    with pytest.raises(OptionError, match="loss: expected a loss for each of the labels 'side', 'angle'"):
        evaluate(table, parts, features=columns, label=label, **COMMON)
    with pytest.raises(OptionError, match="score: expected a label, received None"):
        score(table, parts, key="id", features=columns, label=None, **COMMON)
    with pytest.raises(OptionError, match="score: expected a model with loss"):
        score(table, {**parts, "loss": None}, key="id", features=columns, label=label, **COMMON)
    with pytest.raises(UserCodeError, match=r"must return one tensor .*received dict with 'side': \(8, 3\)"):
        evaluate(table, {"network": Twins(), "loss": nn.MSELoss()}, features=columns, label="angle", **COMMON)
