"""Sample weights, validation rows, rows without labels and reading ahead, in real fits."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from pyspark.sql import functions as F
from torch import nn

from fatwood import AllReduce, GradientSharing, SparkModel
from fatwood.errors import DataError, OptionError, SchemaError

pytestmark = [pytest.mark.spark, pytest.mark.usefixtures("nothing_left")]


def make_network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))


def frame(spark, rows, partitions=2, *, start=0):
    """Features, label and weight are functions of the id alone."""
    return spark.range(start, start + rows, 1, partitions).selectExpr(
        "id",
        "array(float(sin(id)), float(cos(id)), float(sin(id * 3))) x",
        "int(sin(id) > 0) y",
        "float(id % 4) w",
    )


def skewed(spark, sizes, *, start=1000):
    """Partitions of these sizes."""
    step = max(sizes)
    kept = (
        f"(id - {start}) % {step} < get(array({', '.join(map(str, sizes))}), int((id - {start}) DIV {step}))"
    )
    return frame(spark, step * len(sizes), len(sizes), start=start).filter(kept)


def fitted(df, *, strategy=None, loss=None, workers=3, epochs=2, **options):
    network = make_network()
    model = SparkModel(
        network,
        loss=loss or nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        strategy=strategy or AllReduce(),
    )
    given = {"features": "x", "label": "y", "batch_size": 8, "progress": False, **options}
    fit = model.fit(df, workers=workers, epochs=epochs, **given)
    return network, fit


def bits(network: nn.Module) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in network.parameters())


def mean_loss(network: nn.Module, rows) -> float:
    with torch.no_grad():
        output = network(torch.tensor([row.x for row in rows]))
    return float(nn.functional.cross_entropy(output, torch.tensor([row.y for row in rows]).long()))


@pytest.mark.parametrize("sizes", [(1,), (0, 50, 3, 0), (7, 1, 1, 1, 1)], ids=str)
def test_validation_rows_are_measured_once_and_change_no_bit(spark, sizes) -> None:
    df, validation = frame(spark, 73), skewed(spark, sizes)
    alone, alone_fit = fitted(df)
    network, fit = fitted(df, validation=validation, prefetch=2)
    assert bits(network) == bits(alone)
    assert (
        [record.rows for record in fit.history] == [record.rows for record in alone_fit.history] == [73, 73]
    )
    assert fit.stats.rows_trained == fit.stats.rows_expected == 146
    assert [record.rows for record in fit.validations] == [sum(sizes)] * 2
    np.testing.assert_allclose(fit.validations[-1].loss, mean_loss(network, validation.collect()), rtol=1e-5)


def test_validation_in_the_middle_of_the_first_epoch(spark) -> None:
    df, validation = frame(spark, 200), skewed(spark, (30, 0, 1))
    alone, _ = fitted(df, epochs=1, strategy=GradientSharing(), workers=2)
    network, fit = fitted(
        df, epochs=1, strategy=GradientSharing(), workers=2, validation=validation, validate_every=3
    )
    assert bits(network) == bits(alone)
    assert [record.rows for record in fit.validations] == [31] * len(fit.validations)
    assert [record.step for record in fit.validations][:2] == [3, 6]


@pytest.mark.parametrize("strategy", [AllReduce(), GradientSharing()], ids=str)
def test_reading_ahead_changes_no_bit(spark, strategy) -> None:
    df = frame(spark, 150)
    plain, _ = fitted(df, strategy=strategy)
    for prefetch in (1, 4):
        network, fit = fitted(df, strategy=strategy, prefetch=prefetch)
        assert bits(network) == bits(plain)
        assert fit.stats.rows_trained == 300


def test_reading_ahead_names_a_bad_row(spark) -> None:
    df = frame(spark, 100).withColumn("x", F.expr("transform(x, v -> if(id = 70, float('nan'), v))"))
    with pytest.raises(DataError, match=r"partition 1, row 20: column 'x'"):
        fitted(df, prefetch=2)


def test_rows_of_weight_zero_change_nothing(spark) -> None:
    """One minibatch of all rows: with weights it is the minibatch of the rows that weigh something."""
    df = frame(spark, 24, 1)
    network, fit = fitted(df, weight="w", workers=1, epochs=1, batch_size=24)
    assert fit.history[0].rows == 24
    single = make_network()
    rows = df.collect()
    losses = nn.functional.cross_entropy(
        single(torch.tensor([row.x for row in rows])),
        torch.tensor([row.y for row in rows]).long(),
        reduction="none",
    )
    weights = torch.tensor([row.w for row in rows])
    ((losses * weights).sum() / weights.sum()).backward()
    for ours, parameter in zip(network.parameters(), single.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), parameter.detach() - 0.1 * parameter.grad, atol=1e-6)


def test_a_bad_weight_is_named(spark) -> None:
    df = frame(spark, 20, 1).withColumn("w", F.expr("if(id = 7, -1.0F, w)"))
    text = r"partition 0, row 7: column 'w': expected a finite number of at least 0, received -1"
    with pytest.raises(DataError, match=text):
        fitted(df, weight="w", workers=2)
    with pytest.raises(DataError, match=f"validation DataFrame, {text}"):
        fitted(frame(spark, 20), weight="w", workers=2, validation=df)
    _, fit = fitted(frame(spark, 20), weight="w", workers=2, validation=df, on_bad_row="skip")
    assert fit.validations[-1].rows == 19
    assert fit.history[-1].rows == 20


def test_training_without_labels(spark) -> None:
    def reconstruction(network, batch):
        assert batch.label is None
        return (network(batch.features).sum(dim=1) - batch.features.sum(dim=1)).square().mean()

    _, fit = fitted(frame(spark, 60), loss=reconstruction, label=None, workers=2, epochs=3)
    assert [record.rows for record in fit.history] == [60] * 3
    assert fit.history[-1].loss < fit.history[0].loss
    with pytest.raises(
        OptionError, match=r"label: expected the name of a column, received None\nhint: .*batch"
    ):
        fitted(frame(spark, 60), label=None)


@pytest.mark.parametrize(
    ("query", "error", "expected"),
    [
        (
            "SELECT array(1.0F, 2.0F) x, 1 y",
            SchemaError,
            "expected arrays of 3 numbers in the validation DataFrame",
        ),
        ("SELECT array(1.0F, 2.0F, 3.0F) x, 1.5F y", SchemaError, "validation: label 'y': expected int64"),
        (
            "SELECT array(1.0F, 2.0F, 3.0F) x, 1 y WHERE rand() > 2",
            DataError,
            "the validation DataFrame: .* none",
        ),
    ],
)
def test_a_validation_frame_that_does_not_fit_starts_no_training(spark, query, error, expected) -> None:
    with pytest.raises(error, match=expected):
        fitted(frame(spark, 10), validation=spark.sql(query))


@pytest.mark.parametrize("prefetch", [-1, 1.0, True, None])
def test_prefetch_is_a_number(spark, prefetch) -> None:
    with pytest.raises(
        OptionError, match=f"prefetch: expected a whole number of at least 0, received {prefetch}"
    ):
        fitted(frame(spark, 10), prefetch=prefetch)
