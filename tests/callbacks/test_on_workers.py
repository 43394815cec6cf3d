"""Worker callbacks on all strategies: called in order, beside the rows they are about, and named when they fail."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fatwood import AllReduce, GradientSharing, ParameterAveraging, WorkerCallback
from fatwood.data import Layout
from fatwood.errors import UserCodeError
from fatwood.testing.threads import shard, train_in_threads, training_job
from fatwood.train import Strategy
from fatwood.train.options import json_value

LAYOUT = Layout.of(
    feature_width=4, feature_dtype="float32", feature_name="x", label_dtype="int64", label_name="y"
)
STRATEGIES = [AllReduce(), ParameterAveraging(every=3), GradientSharing()]
ROWS = 22


class Noting(WorkerCallback):
    """Notes all calls, by rank; threads share it."""

    def __init__(self) -> None:
        self.calls: dict[int, list[tuple]] = {}

    def note(self, worker, *what) -> None:
        self.calls.setdefault(worker.rank, []).append(what)

    def on_start(self, worker):
        assert isinstance(worker.optimizer, torch.optim.SGD)
        assert worker.network.training
        self.note(worker, "start", worker.workers)

    def before_step(self, worker, batch):
        self.note(worker, "before", tuple(batch.row_ids))

    def after_step(self, worker, batch, loss):
        assert any(p.grad is not None for p in worker.network.parameters())
        self.note(worker, "after", tuple(batch.row_ids), loss)

    def after_agreement(self, worker, record):
        self.note(worker, "agreed", record)

    def on_end(self, worker):
        self.note(worker, "end")


def trained(strategy: Strategy, *callbacks: WorkerCallback, workers: int = 2):
    torch.manual_seed(1)
    x = np.random.default_rng(0).standard_normal((ROWS, 4)).astype(np.float32)
    job = training_job(
        network=nn.Linear(4, 3),
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        strategy=strategy,
        batch_size=4,
        epochs=2,
        callbacks=callbacks,
    )
    y = np.arange(ROWS) % 3
    shards = [shard(x, y, np.arange(rank, ROWS, workers)) for rank in range(workers)]
    return train_in_threads(job, shards, LAYOUT)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_hooks_are_called_in_order_with_what_they_are_about(strategy) -> None:
    noting = Noting()
    outcomes = trained(strategy, noting)
    assert sorted(noting.calls) == [0, 1]
    agreed = {
        rank: [call[1] for call in calls if call[0] == "agreed"] for rank, calls in noting.calls.items()
    }
    assert agreed[0] == agreed[1]
    assert [record.step for record in agreed[0]] == list(range(1, len(agreed[0]) + 1))
    assert sum(record.rows for record in agreed[0]) == 2 * ROWS
    for rank, calls in noting.calls.items():
        assert (calls[0], calls[-1]) == (("start", 2), ("end",))
        batches = [call[1] for call in calls if call[0] == "before"]
        assert len(batches) == outcomes[rank].stats.minibatches == 6
        assert sorted(row for batch in batches for row in batch) == sorted([*range(rank, ROWS, 2)] * 2)
        for before, after in itertools.pairwise(calls):
            if before[0] == "before":
                assert after[:2] == ("after", before[1])
                assert after[2] > 0


def test_no_callback_changes_no_bit_and_one_that_changes_gradients_does() -> None:
    class Halving(WorkerCallback):
        def before_step(self, worker, batch):
            batch.features.mul_(0.5)

    plain, noted, halved = (
        trained(AllReduce(), *given)[0].network.weight for given in ([], [Noting()], [Halving()])
    )
    assert torch.equal(plain, noted)
    assert not torch.equal(plain, halved)


HOOKS = ["on_start", "before_step", "after_step", "after_agreement", "on_end"]


@pytest.mark.parametrize("hook", HOOKS)
def test_an_error_names_class_and_hook(hook) -> None:
    class Failing(WorkerCallback):
        pass

    def fail(self, *_args):
        raise LookupError("nothing here")

    setattr(Failing, hook, fail)
    with pytest.raises(UserCodeError) as caught:
        trained(AllReduce(), Failing(), workers=1)
    assert caught.value.message == f"LookupError: nothing here\nraised by the callback Failing.{hook}"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (partial(torch.optim.SGD, lr=0.1), "SGD(lr=0.1)"),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), "SGD(lr=0.1, momentum=0.9)"),
        (partial(partial, trained), "partial(trained)"),
        (nn.CrossEntropyLoss(), "CrossEntropyLoss()"),
        (lambda: 0, "<lambda>"),
        (object(), "object"),
        (("x", 1, None, 2.5, True), ["x", 1, None, 2.5, True]),
        ({1: partial(dict, name="x")}, {"1": "dict(name='x')"}),
        (AllReduce(), str(AllReduce())),
    ],
    ids=["partial", "two", "nested", "loss", "lambda", "object", "tuple", "dict", "dataclass"],
)
def test_options_are_told_as_they_are_written(value, written) -> None:
    assert json_value(value) == written
