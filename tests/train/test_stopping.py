"""Early stopping and validation: judged alike everywhere, the best kept, and nothing of the training changed by looking."""

from __future__ import annotations

import copy
import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fatwood.codec import FixedThreshold
from fatwood.data import Layout
from fatwood.errors import NotFiniteError, OptionError
from fatwood.testing.threads import Outcome, shard, train_in_threads, training_job
from fatwood.train import (
    AllReduce,
    DiLoCo,
    EarlyStopping,
    GradientSharing,
    ParameterAveraging,
    ValidationRecord,
    WorkerCallback,
    pack,
    unpack,
)

LAYOUT = Layout.of(
    feature_width=4, feature_dtype="float32", feature_name="x", label_dtype="int64", label_name="y"
)
ROWS, HELD_OUT = 60, 21
STRATEGIES = [
    AllReduce(),
    GradientSharing(threshold=FixedThreshold(tau=0.02)),
    GradientSharing(threshold=FixedThreshold(tau=0.02), staleness=1),
    ParameterAveraging(every=3),
    DiLoCo(every=2),
]
NAMES = ["all-reduce", "sharing", "stale", "averaging", "diloco"]


def data(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32)
    return x, (np.abs(x).argmax(axis=1) % 3).astype(np.int64)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def fitted(*, workers: int = 3, held_out: bool = True, rate: float = 0.05, **options: Any) -> list[Outcome]:
    given = {
        "network": network(),
        "loss": nn.CrossEntropyLoss(),
        "optimizer": partial(torch.optim.SGD, lr=rate),
        "strategy": AllReduce(),
        "batch_size": 5,
        "epochs": 4,
        "with_validation": held_out,
    }
    x, y = data(ROWS, 0)
    shards = [shard(x, y, np.arange(rank, ROWS, workers)) for rank in range(workers)]
    if held_out:
        vx, vy = data(HELD_OUT, 1)
        mine = [shard(vx, vy, np.arange(rank, HELD_OUT, workers), validation=True) for rank in range(workers)]
        shards = [first + then for first, then in zip(mine, shards, strict=True)]
    states = options.pop("states", None)
    return train_in_threads(training_job(**{**given, **options}), shards, LAYOUT, states=states)


def held_out_loss(net: nn.Module) -> tuple[float, float]:
    x, y = (torch.from_numpy(values) for values in data(HELD_OUT, 1))
    net = copy.deepcopy(net).eval()
    with torch.no_grad():
        output = net(x)
    return float(nn.functional.cross_entropy(output, y)), float((output.argmax(1) == y).float().mean())


def bits(outcomes: list[Outcome]) -> bytes:
    assert len({outcome.stats.digest for outcome in outcomes}) == 1
    return pack(dict(outcomes[0].network.state_dict()))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_a_validation_measures_the_network_as_it_is_and_changes_nothing(strategy) -> None:
    watched = fitted(strategy=strategy)
    assert bits(watched) == bits(fitted(strategy=strategy, held_out=False))
    last = watched[0].history[-1].validation
    assert last is not None
    loss, accuracy = held_out_loss(watched[0].network)
    assert last.loss == pytest.approx(loss, rel=1e-5)
    assert last.accuracy == pytest.approx(accuracy)
    assert last.rows == HELD_OUT
    assert [r.validation.epoch for r in watched[0].history] == [0, 1, 2, 3]
    for outcome in watched:
        assert [r.validation for r in outcome.history] == [r.validation for r in watched[0].history]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_validations_within_epochs_come_every_so_many_agreements(strategy) -> None:
    outcomes = fitted(strategy=strategy, validate_every=3, epochs=2)
    steps = [record.step for record in outcomes[0].validations]
    last = outcomes[0].stats.agreements
    assert steps == sorted({*range(3, last + 1, 3), last})
    assert outcomes[0].history[-1].validation.step == last


def test_the_best_is_the_lowest_loss_until_then() -> None:
    outcomes = fitted(epochs=5, rate=1.0)
    losses = [record.loss for record in outcomes[0].validations]
    assert [r.best for r in outcomes[0].validations] == [
        loss < min(losses[:i], default=math.inf) for i, loss in enumerate(losses)
    ]


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_a_fit_that_gets_worse_stops_and_ends_with_the_best(strategy, every: int | None) -> None:
    rising = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.0 if step < 9 else 400.0)
    rule = EarlyStopping(patience=2)
    outcomes = fitted(
        strategy=strategy, scheduler=rising, epochs=40, early_stopping=rule, validate_every=every
    )
    records = outcomes[0].validations
    best = min(records, key=lambda record: record.loss)
    assert records.index(best) == len(records) - 3
    assert outcomes[0].stopped.startswith("no better score in 2 judgements")
    assert {outcome.stopped for outcome in outcomes} == {outcomes[0].stopped}
    assert len(outcomes[0].history) < 40
    bits(outcomes)
    assert held_out_loss(outcomes[0].network)[0] == pytest.approx(best.loss, rel=1e-5)
    last = fitted(
        strategy=strategy,
        scheduler=rising,
        epochs=40,
        validate_every=every,
        early_stopping=EarlyStopping(patience=2, keep_best=False),
    )
    assert held_out_loss(last[0].network)[0] > best.loss


def test_what_ends_a_fit() -> None:
    scores = [record.loss for record in fitted(epochs=4)[0].validations]
    on_target = fitted(early_stopping=EarlyStopping(target=scores[1]))
    assert len(on_target[0].history) == 2
    assert "reached the target" in on_target[0].stopped
    accurate = fitted(early_stopping=EarlyStopping(monitor="validation_accuracy", target=0.0))
    assert len(accurate[0].history) == 1
    hopeless = fitted(early_stopping=EarlyStopping(worst=scores[0] / 2))
    assert len(hopeless[0].history) == 1
    assert "is worse than" in hopeless[0].stopped
    demanding = fitted(early_stopping=EarlyStopping(patience=1, min_delta=10.0))
    assert len(demanding[0].history) == 2
    by_training = fitted(held_out=False, early_stopping=EarlyStopping(patience=1, min_delta=10.0))
    assert len(by_training[0].history) == 2
    patient = fitted(early_stopping=EarlyStopping(patience=None, min_delta=10.0))
    assert len(patient[0].history) == 4
    assert patient[0].stopped is None


@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_time_ends_a_fit_within_an_epoch(strategy) -> None:
    outcomes = fitted(strategy=strategy, early_stopping=EarlyStopping(max_seconds=1e-9), epochs=9)
    assert [outcome.stopped for outcome in outcomes] == ["its time is over"] * 3
    assert len(outcomes[0].history) == 1
    assert outcomes[0].stats.agreements == 1
    bits(outcomes)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_an_update_that_is_not_finite_ends_the_fit_with_what_was_agreed(strategy) -> None:
    class Poisoned(nn.CrossEntropyLoss):
        calls = itertools.count()  # of all threads

        def forward(self, output, label):
            loss = super().forward(output, label)
            return loss * math.nan if next(Poisoned.calls) == 20 else loss

    outcomes = fitted(strategy=strategy, loss=Poisoned(), early_stopping=EarlyStopping(), epochs=9)
    assert "was not finite" in outcomes[0].stopped
    assert all(torch.isfinite(p).all() for p in outcomes[0].network.parameters())
    bits(outcomes)
    Poisoned.calls = itertools.count()
    with pytest.raises(NotFiniteError):
        fitted(strategy=strategy, loss=Poisoned(), early_stopping=EarlyStopping(stop_on_nan=False), epochs=9)


def test_a_fit_after_a_stop_goes_on() -> None:
    rule = EarlyStopping(patience=1, min_delta=10.0)
    first = fitted(early_stopping=rule, epochs=9)
    states = {rank: unpack(pack(outcome.state)) for rank, outcome in enumerate(first)}
    second = fitted(network=first[0].network, first_epoch=2, epochs=2, states=states)
    assert [record.epoch for record in second[0].history] == [2, 3]


scores = st.lists(st.floats(-10, 10), min_size=1, max_size=12)


@given(scores, st.integers(1, 4), st.floats(0, 2))
def test_patience_ends_at_the_first_run_of_judgements_without_a_better_one(
    values: list[float], patience: int, delta: float
) -> None:
    rule = EarlyStopping(patience=patience, min_delta=delta)
    best, since = math.inf, 0
    for count in range(1, len(values) + 1):
        better = values[count - 1] < best - (delta if best < math.inf else 0)
        best, since = (values[count - 1], 0) if better else (best, since + 1)
        verdict = rule.judge(values[:count])
        assert verdict.best == better
        assert (verdict.stop is not None) == (since >= patience)


@given(scores)
def test_accuracies_are_judged_the_other_way_round(values: list[float]) -> None:
    falling, rising = EarlyStopping(), EarlyStopping(monitor="validation_accuracy")
    assert falling.judge(values)[0] == rising.judge([-value for value in values])[0]


def test_a_score_that_is_no_number() -> None:
    assert EarlyStopping().judge([1.0, math.nan]).stop == "the score is nan"
    patient = EarlyStopping(stop_on_nan=False, patience=2)
    assert patient.judge([1.0, math.nan]) == (False, None)
    assert patient.judge([math.nan, math.nan]).stop == "no score in 2 judgements was a number"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, r"EarlyStopping\(patience=...\): expected a whole number of at least 1"),
        ({"min_delta": -1.0}, r"EarlyStopping\(min_delta=...\): expected at least 0"),
        ({"target": "low"}, r"EarlyStopping\(target=...\): expected a number, received 'low'"),
        ({"max_seconds": 0}, r"EarlyStopping\(max_seconds=...\): expected a number above 0"),
        ({"monitor": "f1"}, r"EarlyStopping\(monitor=...\): expected one of auto"),
        ({"keep_best": 1}, r"EarlyStopping\(keep_best=...\): expected True or False"),
    ],
)
def test_rules_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EarlyStopping(**options)


def test_scores_that_there_will_not_be() -> None:
    with pytest.raises(OptionError, match="expected validation rows, received none"):
        fitted(held_out=False, early_stopping=EarlyStopping(monitor="validation_loss"))
    with pytest.raises(OptionError, match="validate_every: expected validation rows"):
        fitted(held_out=False, validate_every=3)
    record = ValidationRecord(step=1, epoch=0, loss=1.0, accuracy=None, rows=3)
    with pytest.raises(OptionError, match="expected labels that are classes"):
        EarlyStopping(monitor="validation_accuracy").score(record)


def test_statistics_that_a_refused_update_has_spoilt_are_left_out() -> None:
    class Spoilt(nn.Module):
        calls = itertools.count()  # of all threads

        def forward(self, x):
            return x * math.nan if next(Spoilt.calls) == 7 else x

    net = nn.Sequential(Spoilt(), *network())
    outcomes = fitted(network=net, early_stopping=EarlyStopping(), epochs=9)
    assert "was not finite" in outcomes[0].stopped
    assert all(torch.isfinite(tensor).all() for tensor in outcomes[0].network.state_dict().values())
    bits(outcomes)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_a_step_is_told_with_its_learning_rate(strategy) -> None:
    counting = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.0 + step)
    told: list[float] = []

    class Listening(WorkerCallback):
        def after_agreement(self, worker, record):
            if worker.rank == 0:
                told.append(record.learning_rate)

    fitted(strategy=strategy, scheduler=counting, rate=1e-4, epochs=1, callbacks=(Listening(),))
    every = strategy.every
    assert told == pytest.approx([1e-4 * (1 + every * i) for i in range(len(told))])
    assert len(told) == -(-4 // every)
