"""Early stopping in real fits: one decision for all workers, the best network in the end, also when workers are killed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from fatwood import AllReduce, EarlyStopping, FixedThreshold, GradientSharing, ParameterAveraging, SparkModel
from fatwood.testing.faults import Faults

pytestmark = [pytest.mark.spark, pytest.mark.usefixtures("nothing_left")]

WORKERS, ROWS, HELD_OUT, BATCH = 3, 120, 30, 5
CALLS = ROWS // WORKERS // BATCH + HELD_OUT // WORKERS // BATCH
"""Calls of the loss by a worker in an epoch, its validation included."""
STEPS = ROWS // WORKERS // BATCH
GOOD_EPOCHS = 3
SHARING = GradientSharing(threshold=FixedThreshold(tau=1e-3))


def rate(step: int) -> float:
    """Down the slope for some epochs, and then up."""
    return 1.0 if step < GOOD_EPOCHS * STEPS else -0.2


def make_network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1))


def distance(output, label):
    return nn.functional.mse_loss(output, label / 100)


@pytest.fixture(scope="module")
def frames(spark):
    numbers = spark.range(0, ROWS + HELD_OUT, 1, 4).selectExpr("id", "float(id / 120) x", "float(id) y")
    held_out = numbers.where(f"id % {(ROWS + HELD_OUT) // HELD_OUT} = 2")
    return numbers.subtract(held_out).orderBy("id").cache(), held_out.orderBy("id").cache()


def stopped(frames, loss=distance, *, strategy, **options):
    model = SparkModel(
        make_network(),
        loss=loss,
        optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=rate),
        strategy=strategy,
    )
    df, held_out = frames
    given = {"early_stopping": EarlyStopping(patience=2), "epochs": 12, **options}
    fit = model.fit(
        df,
        features="x",
        label="y",
        validation=held_out,
        workers=WORKERS,
        batch_size=BATCH,
        progress=False,
        **given,
    )
    return model, fit


def assert_ends_with_the_best(model, fit, held_out) -> None:
    best = min(fit.validations, key=lambda record: record.loss)
    assert fit.validations.index(best) == len(fit.validations) - 3
    assert best.best
    assert len(fit.history) < 12
    assert fit.stopped.startswith("no better score in 2 judgements")
    assert fit.stats.digest_equal
    assert len(fit.stats.workers) == WORKERS
    rows = held_out.collect()
    with torch.no_grad():
        output = model.network.eval()(torch.tensor([[row.x] for row in rows]))
    loss = distance(output, torch.tensor([[row.y] for row in rows]))
    assert float(loss) == pytest.approx(best.loss, rel=1e-4)


@pytest.mark.parametrize("strategy", [AllReduce(), SHARING], ids=["all-reduce", "sharing"])
def test_a_fit_that_gets_worse_ends_with_the_best(frames, strategy) -> None:
    model, fit = stopped(frames, strategy=strategy)
    assert_ends_with_the_best(model, fit, frames[1])
    assert fit.stats.rows_trained == fit.stats.rows_expected == ROWS * len(fit.history)
    assert fit.stats.rows_lost == 0
    assert model.epochs_trained == len(fit.history)
    assert "no better score" in str(fit)


@pytest.mark.parametrize(
    ("rank", "call"),
    [(0, GOOD_EPOCHS * CALLS + 3), (1, (GOOD_EPOCHS + 1) * CALLS - 1)],
    ids=["the leader, in an epoch", "another, in a validation"],
)
def test_a_worker_dies_between_the_best_and_the_stop(frames, tmp_path, rank, call) -> None:
    tmp_path.joinpath("faults").mkdir()
    faults = Faults(tmp_path / "faults").kill(rank=rank, call=call)
    model, fit = stopped(frames, faults.wrap(distance), strategy=SHARING)
    assert faults.struck == {f"kill-rank{rank}-call{call}"}
    assert fit.stats.workers_lost == fit.stats.rejoined == 1
    assert fit.stats.rows_lost == 0
    assert [record.rows for record in fit.validations] == [HELD_OUT] * len(fit.validations)
    assert_ends_with_the_best(model, fit, frames[1])


def test_validations_within_epochs_and_time(frames) -> None:
    model, fit = stopped(
        frames, strategy=ParameterAveraging(every=3), validate_every=2, epochs=2, early_stopping=None
    )
    assert [record.step for record in fit.validations] == [2, 4, 6]
    assert fit.stopped is None
    rule = EarlyStopping(max_seconds=1e-6)
    model, fit = stopped(frames, strategy=AllReduce(), early_stopping=rule)
    assert fit.stopped == "its time is over"
    assert fit.stats.rows_trained == fit.stats.rows_expected == WORKERS * BATCH
    assert model.epochs_trained == 1
