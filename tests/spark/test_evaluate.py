"""Evaluation on real Spark: whatever the partitions, the report of one process over all rows."""

from __future__ import annotations

import math
import os
import sys

import numpy as np
import pytest
import torch
from pyspark.sql import functions as F
from torch import nn

from fatwood import Classification, Loss, SparkModel
from fatwood.errors import ClusterError, DataError, OptionError, SchemaError, ShippingError, UserCodeError

pytestmark = pytest.mark.spark

ROWS = 400


def make_network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, outputs))


class Behaving(nn.Module):
    """A network that does something else than a network should."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.what = what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.layer(x)
        if self.what == "raise":
            return self.prepared(output)
        if self.what == "exit":
            sys.exit("enough")
        if self.what == "die":
            os._exit(3)
        return {"scalar": output.sum(), "tuple": (output, output), "few": output[:1], "flat": output[:, 0]}[
            self.what
        ]

    def prepared(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such thing")


@pytest.fixture(scope="module")
def table(spark):
    """In three partitions of which one is empty: features, a class, a number, a pair, a truth."""
    ids = spark.range(0, ROWS * 3 // 2, 1, 3).filter(f"id < {ROWS}")
    df = ids.selectExpr(
        "id",
        "array(float(sin(id)), float(cos(id * 2))) x",
        "int(pmod(hash(id), 3)) y",
        "float(sin(id) * 2) number",
        "array(float(sin(id)), float(cos(id))) pair",
        "int(sin(id) > 0) truth",
    ).cache()
    df.count()
    yield df
    df.unpersist()


@pytest.fixture(scope="module")
def tensors(table):
    rows = table.collect()
    return {name: torch.tensor([row[name] for row in rows]) for name in table.columns}


def outputs_of(network: nn.Module, tensors) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(tensors["x"])


@pytest.mark.parametrize("partitions", ["as they are", "one", "many"])
@pytest.mark.parametrize("batch_size", [64, 7])
def test_it_equals_one_process_on_all_rows(table, tensors, partitions, batch_size) -> None:
    network, loss = make_network(), nn.CrossEntropyLoss()
    outputs = outputs_of(network, tensors)
    network.train()
    df = {"one": table.coalesce(1), "many": table.repartition(7)}.get(partitions, table)
    report = SparkModel(network, loss=loss).evaluate(df, features="x", label="y", batch_size=batch_size)
    assert isinstance(report, Classification)
    confusion = np.zeros((3, 3), np.int64)
    np.add.at(confusion, (tensors["y"].numpy(), outputs.argmax(1).numpy()), 1)
    assert report.confusion.tolist() == confusion.tolist()
    assert report.rows == ROWS
    assert report.accuracy == np.trace(confusion) / ROWS
    assert report.loss == pytest.approx(float(loss(outputs, tensors["y"])), rel=1e-6)
    assert network.training
    assert network[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("label", "outputs", "squeezed", "loss"),
    [
        ("number", 1, False, nn.MSELoss()),
        ("number", 1, True, nn.MSELoss()),
        ("pair", 2, False, nn.L1Loss()),
        ("truth", 1, False, nn.BCEWithLogitsLoss()),
        ("truth", 1, True, nn.BCEWithLogitsLoss()),
        ("cast truth", 1, False, nn.BCEWithLogitsLoss()),
    ],
)
def test_numbers_as_labels_give_a_loss(table, tensors, label, outputs, squeezed, loss) -> None:
    network = make_network(outputs)
    if squeezed:
        network.append(nn.Flatten(0))
    df = table.withColumn("truth", F.col("truth").cast("float")) if label.startswith("cast") else table
    label = label.removeprefix("cast ")
    report = SparkModel(network, loss=loss).evaluate(df, features="x", label=label, batch_size=32)
    assert isinstance(report, Loss)
    assert report.rows == ROWS
    output = outputs_of(network, tensors)
    assert report.loss == pytest.approx(
        float(loss(output, tensors[label].reshape(output.shape).float())), rel=1e-6
    )


def test_without_a_loss_there_is_accuracy(table, tensors) -> None:
    network = make_network()
    report = SparkModel(network).evaluate(table, features="x", label="y")
    right = outputs_of(network, tensors).argmax(1) == tensors["y"]
    assert report.accuracy == pytest.approx(float(right.double().mean()))
    assert math.isnan(report.loss)


def test_without_a_loss_numbers_cannot_be_evaluated(table) -> None:
    with pytest.raises(OptionError, match=r"expected a model with loss.*'number'"):
        SparkModel(make_network(1)).evaluate(table, features="x", label="number")
    with pytest.raises(OptionError, match=r"expected a model with loss.*output of shape \(64,\)"):
        SparkModel(Behaving("flat")).evaluate(table, features="x", label="y")


def test_rows_that_the_loss_ignores_are_not_counted(table, tensors) -> None:
    df = table.withColumn("y", F.expr("if(id % 3 = 0, -100, y)"))
    loss, network = nn.CrossEntropyLoss(), make_network()
    report = SparkModel(network, loss=loss).evaluate(df, features="x", label="y", batch_size=10)
    counted = tensors["id"] % 3 != 0
    assert report.rows == int(counted.sum())
    outputs = outputs_of(network, tensors)[counted]
    assert report.loss == pytest.approx(float(loss(outputs, tensors["y"][counted])), rel=1e-6)


BAD = {
    "null label": (("y", "if(id = 210, null, y)"), "row 10: column 'y': expected an integer, received null"),
    "label out of range": (
        ("y", "if(id = 210, 3, y)"),
        "row 10: label out of range: expected 0 to 2 .*, received 3",
    ),
    "NaN feature": (
        ("x", "if(id = 210, array(float('nan'), 1f), x)"),
        "row 10: column 'x': expected 2 finite numbers, received NaN at position 0",
    ),
    "short first row": (
        ("x", "if(id = 200, array(1f), x)"),
        "row 0: column 'x': expected 2 finite numbers, received 1 value",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows(table, kind) -> None:
    (column, expression), text = BAD[kind]
    df = table.withColumn(column, F.expr(expression))
    model = SparkModel(make_network(), loss=nn.CrossEntropyLoss())
    with pytest.raises(
        DataError, match=f'(?s)^partition 1, {text}.*on partition 1 on host.*on_bad_row="skip"'
    ):
        model.evaluate(df, features="x", label="y")
    report = model.evaluate(df, features="x", label="y", on_bad_row="skip")
    assert (report.rows, report.skipped) == (ROWS - 1, 1)
    assert "(1 skipped)" in str(report)


def test_list_labels_that_are_null_in_the_first_rows(spark) -> None:
    rows = [([1.0, 2.0], None), ([1.0, 2.0], None), ([0.0, 0.0], [1.0, 1.0, 3.0])]
    df = spark.createDataFrame(rows, "x array<float>, y array<float>").coalesce(1)
    model = SparkModel(nn.Linear(2, 3, bias=False), loss=nn.L1Loss())
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 1)
    try:
        report = model.evaluate(df, features="x", label="y", on_bad_row="skip")
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    assert (report.rows, report.skipped, report.loss) == (1, 2, pytest.approx(5 / 3))


def test_no_usable_row(table) -> None:
    model = SparkModel(make_network(), loss=nn.CrossEntropyLoss())
    with pytest.raises(DataError, match="at least one usable row"):
        model.evaluate(table.filter("id < 0"), features="x", label="y")
    with pytest.raises(DataError, match="at least one usable row"):
        model.evaluate(table.withColumn("y", F.lit(9)), features="x", label="y", on_bad_row="skip")


def test_the_users_own_error_comes_first(table) -> None:
    with pytest.raises(UserCodeError) as caught:
        SparkModel(Behaving("raise"), loss=nn.CrossEntropyLoss()).evaluate(table, features="x", label="y")
    text = str(caught.value)
    assert text.startswith(
        "KeyError: 'no such thing'\nraised by the network's forward, given features of shape (64, 2)"
    )
    assert "on partition 0 on host" in text  # the first of those that failed, always
    assert 'raise KeyError("no such thing")' in text
    assert "fatwood/spark" not in text


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("exit", "SystemExit: enough"),
        ("scalar", r"must return one tensor with a row for each of 64 rows, received \(\)"),
        ("tuple", "must return one tensor .* received tuple"),
        ("few", r"must return one tensor .* received \(1, 3\)"),
    ],
)
def test_networks_that_misbehave(table, what, text) -> None:
    with pytest.raises(UserCodeError, match=f"(?s){text}.*on partition 0"):
        SparkModel(Behaving(what), loss=nn.CrossEntropyLoss()).evaluate(table, features="x", label="y")


def test_a_process_that_dies_is_named(table) -> None:
    model = SparkModel(Behaving("die"), loss=nn.CrossEntropyLoss())
    with pytest.raises(ClusterError, match=r"(?i)python worker exited unexpectedly"):
        model.evaluate(table.coalesce(1), features="x", label="y")


def test_a_failing_loss_says_what_it_was_given(table) -> None:
    with pytest.raises(
        UserCodeError,
        match=r"(?s)Error: .*raised by the loss, given output of .*\(64, 3\).*label of .*hint: .*cast it to int",
    ):
        SparkModel(make_network(), loss=nn.CrossEntropyLoss()).evaluate(table, features="x", label="number")


def test_columns_that_cannot_be_evaluated(table) -> None:
    model = SparkModel(make_network(), loss=nn.CrossEntropyLoss())
    with pytest.raises(SchemaError, match="column 'z'"):
        model.evaluate(table, features="x", label="z")
    with pytest.raises(OptionError, match="batch_size"):
        model.evaluate(table, features="x", label="y", batch_size=0)


def test_a_package_of_the_driver_alone_is_named(table, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "site-packages"  # what is installed travels by name
    folder.mkdir()
    (folder / "fatwood_test_driver_only.py").write_text(
        "import torch\nclass Loss(torch.nn.MSELoss):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    import fatwood_test_driver_only

    model = SparkModel(make_network(1), loss=fatwood_test_driver_only.Loss())
    with pytest.raises(ShippingError, match=r"(?s)No module named 'fatwood_test_driver_only'.*hint: "):
        model.evaluate(table.coalesce(1), features="x", label="number")
    monkeypatch.delitem(sys.modules, "fatwood_test_driver_only")
