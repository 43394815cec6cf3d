"""Losses: called with output and label, or with network and minibatch; weighted so that workers together are one process."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fatwood.data import Batch, Layout
from fatwood.errors import OptionError, UserCodeError
from fatwood.testing.threads import shard, train_in_threads, training_job
from fatwood.train import AllReduce, Criterion, takes_batch

NAMED = {
    "feature_width": 4,
    "feature_dtype": "float32",
    "feature_name": "x",
    "label_dtype": "int64",
    "label_name": "y",
}
ROWS = 12


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(4, 3)


def one_step(loss: Any, workers: int, weights: np.ndarray | None, labels: np.ndarray) -> nn.Module:
    x = np.random.default_rng(0).standard_normal((ROWS, 4)).astype(np.float32)
    layout = Layout.of(**NAMED, weight_name=None if weights is None else "w")
    job = training_job(
        network=network(),
        loss=loss,
        optimizer=partial(torch.optim.SGD, lr=0.5),
        strategy=AllReduce(),
        batch_size=ROWS,
        epochs=1,
        weighted=weights is not None,
        shuffle=False,
    )
    # not dealt out in turns: the workers' shares differ in rows and in weights
    bounds = [0, ROWS] if workers == 1 else [0, 3, 5, ROWS]
    shards = [
        shard(x, labels, np.arange(start, stop), weights=weights)
        for start, stop in itertools.pairwise(bounds)
    ]
    outcomes = train_in_threads(job, shards, layout)
    assert len({outcome.stats.digest for outcome in outcomes}) == 1
    return outcomes[0].network


LOSSES = {
    "plain": nn.CrossEntropyLoss(),
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2])),
    "ignored labels": nn.CrossEntropyLoss(ignore_index=1),
    "both": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]), ignore_index=2),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_workers_of_unequal_weight_make_the_step_of_one_process(name: str, weighted: bool) -> None:
    labels = np.arange(ROWS) % 3
    weights = np.linspace(0, 3, ROWS).astype(np.float32) if weighted else None
    one, three = (one_step(LOSSES[name], workers, weights, labels) for workers in (1, 3))
    assert torch.allclose(one.weight, three.weight, atol=1e-6)
    assert not torch.equal(one.weight, network().weight)


def test_sample_weights_change_the_step_and_equal_ones_do_not() -> None:
    labels = np.arange(ROWS) % 3
    plain = one_step(nn.CrossEntropyLoss(), 1, None, labels)
    alike = one_step(nn.CrossEntropyLoss(), 1, np.full(ROWS, 7, np.float32), labels)
    other = one_step(nn.CrossEntropyLoss(), 1, np.arange(ROWS, dtype=np.float32), labels)
    assert torch.allclose(plain.weight, alike.weight, atol=1e-6)
    assert not torch.allclose(plain.weight, other.weight, atol=1e-4)


def test_a_row_of_weight_zero_changes_nothing() -> None:
    labels = np.arange(ROWS) % 3
    wrong = labels.copy()
    wrong[4] = (wrong[4] + 1) % 3
    weights = np.ones(ROWS, np.float32)
    weights[4] = 0
    first, second = (one_step(nn.CrossEntropyLoss(), 3, weights, values) for values in (labels, wrong))
    assert torch.equal(first.weight, second.weight)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=8).filter(any), st.booleans())
def test_the_weighted_mean_is_sum_over_sum(weights: list[float], classes: bool) -> None:
    weight = torch.tensor(weights)
    torch.manual_seed(len(weights))
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0]) if classes else None)
    output, label = torch.randn(len(weights), 3), torch.arange(len(weights)) % 3
    criterion = Criterion(loss, weighted=True)
    of_rows = nn.functional.cross_entropy(output, label, reduction="none")
    full = weight * (loss.weight[label] if classes else 1)
    assert criterion.share(label, weight) == pytest.approx(float(full.sum()), rel=1e-5)
    expected = float((full * of_rows).sum() / full.sum())
    assert float(criterion(output, label, weight)) == pytest.approx(expected, rel=1e-4)


def test_losses_of_several_numbers_a_row_are_their_mean() -> None:
    criterion = Criterion(nn.MSELoss(), weighted=True)
    output, label = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert float(criterion(output, label, torch.tensor([1.0, 1.0]))) == float(nn.MSELoss()(output, label))
    assert float(criterion(output, label, torch.tensor([0.0, 2.0]))) == 0.0


def test_a_loss_that_cannot_tell_rows_apart_takes_no_weights() -> None:
    def loss(output, label):
        return ((output - label) ** 2).mean()

    with pytest.raises(OptionError, match="weight: expected a loss with reduction='mean'") as caught:
        Criterion(loss, weighted=True)
    assert "batch.weight" in str(caught.value.hint)


def test_which_losses_take_a_minibatch() -> None:
    class Module(nn.Module):
        def forward(self, network, batch):
            return network(batch.features).mean()

    assert takes_batch(lambda network, batch: network(batch.features).mean())
    assert takes_batch(Module())
    assert not takes_batch(nn.CrossEntropyLoss())
    assert not takes_batch(nn.functional.mse_loss)
    assert not takes_batch(max)


def test_a_loss_with_the_minibatch_is_the_same_training() -> None:
    def loss(network: nn.Module, batch: Batch) -> torch.Tensor:
        assert batch.weight is not None
        of_rows = nn.functional.cross_entropy(network(batch.features), batch.label, reduction="none")
        return (of_rows * batch.weight).sum() / batch.weight.sum()

    labels, weights = np.arange(ROWS) % 3, np.linspace(0.5, 3, ROWS).astype(np.float32)
    whole = one_step(loss, 3, weights, labels)
    usual = one_step(nn.CrossEntropyLoss(), 3, weights, labels)
    assert torch.allclose(whole.weight, usual.weight, atol=1e-6)


def test_a_loss_with_the_minibatch_must_be_a_scalar() -> None:
    def loss(network: nn.Module, batch: Batch) -> torch.Tensor:
        return network(batch.features)

    with pytest.raises(UserCodeError, match="the loss must return a scalar tensor"):
        one_step(loss, 1, None, np.arange(ROWS) % 3)
