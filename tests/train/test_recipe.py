"""How minibatches become optimizer steps: each option does what the same lines do in a loop of one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fatwood.data import Batch, Layout
from fatwood.errors import OptionError, UserCodeError
from fatwood.testing.threads import Outcome, shard, train_in_threads, training_job
from fatwood.train import AllReduce, GradientSharing, ParameterAveraging, Parameters, pack, unpack

LAYOUT = Layout.of(
    feature_width=4, feature_dtype="float32", feature_name="x", label_dtype="int64", label_name="y"
)
SGD = partial(torch.optim.SGD, lr=0.1)
ROWS = 60


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def rows(count: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    return x, (np.abs(x).argmax(axis=1) % 3).astype(np.int64)


def fitted(workers: int = 1, *, count: int = ROWS, states: Any = None, **options: Any) -> list[Outcome]:
    """Worker r has rows r, r + workers, ...; minibatches of all workers together are rows in a row."""
    x, y = rows(count)
    given = {
        "network": network(),
        "loss": nn.CrossEntropyLoss(),
        "optimizer": SGD,
        "strategy": AllReduce(),
        "batch_size": 12 // workers,
        "epochs": 2,
        "shuffle": False,
    }
    shards = [shard(x, y, np.arange(rank, count, workers)) for rank in range(workers)]
    return train_in_threads(training_job(**{**given, **options}), shards, LAYOUT, states=states)


def by_hand(
    *,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    batch: int = 12,
    before_step: Callable[[nn.Module], None] = lambda net: None,
    after_step: Callable[[torch.optim.Optimizer], Callable[[], None]] | None = None,
    after_epoch: Callable[[torch.optim.Optimizer], Callable[[float], None]] | None = None,
) -> nn.Module:
    """The same by a loop of one process."""
    x, y = (torch.from_numpy(values) for values in rows())
    net = network()
    made = SGD(net.parameters()) if optimizer is None else optimizer(net)
    step_hook = (lambda: None) if after_step is None else after_step(made)
    epoch_hook = (lambda loss: None) if after_epoch is None else after_epoch(made)
    for _ in range(2):
        total = 0.0
        for start in range(0, ROWS, batch):
            made.zero_grad()
            loss = nn.functional.cross_entropy(net(x[start : start + batch]), y[start : start + batch])
            loss.backward()
            before_step(net)
            made.step()
            step_hook()
            total += batch * float(loss.detach())
        epoch_hook(total / ROWS)
    return net


def vector(net: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy().copy()


def assert_same(outcomes: list[Outcome], net: nn.Module) -> None:
    assert len({outcome.stats.digest for outcome in outcomes}) == 1
    np.testing.assert_allclose(vector(outcomes[0].network), vector(net), atol=2e-6, rtol=0)


@pytest.mark.parametrize("workers", [1, 3])
def test_accumulated_minibatches_are_one_large_one(workers: int) -> None:
    outcomes = fitted(workers, accumulate=3, batch_size=12 // (3 * workers) or 1)
    large = 12 if workers == 1 else 9
    plain = by_hand(batch=large) if ROWS % large == 0 else None
    assert outcomes[0].stats.agreements < outcomes[0].stats.minibatches
    assert outcomes[0].history[0].rows == ROWS
    if plain is not None:
        assert_same(outcomes, plain)


def test_accumulation_weighs_minibatches_by_their_rows() -> None:
    outcomes = fitted(1, count=10, accumulate=3, batch_size=4, epochs=1)  # 4, 4 and 2 rows
    x, y = (torch.from_numpy(values) for values in rows(10))
    net = network()
    nn.functional.cross_entropy(net(x), y).backward()
    SGD(net.parameters()).step()
    assert_same(outcomes, net)


@pytest.mark.parametrize("strategy", [AllReduce(), ParameterAveraging(every=1)], ids=str)
def test_gradients_are_clipped_as_torch_clips_them(strategy) -> None:
    workers = 3 if isinstance(strategy, AllReduce) else 1  # the mean of clipped gradients is another one
    norm = fitted(workers, strategy=strategy, clip_norm=0.1)
    assert_same(norm, by_hand(before_step=lambda net: nn.utils.clip_grad_norm_(net.parameters(), 0.1)))
    value = fitted(workers, strategy=strategy, clip_value=0.01)
    assert_same(value, by_hand(before_step=lambda net: nn.utils.clip_grad_value_(net.parameters(), 0.01)))
    assert not np.allclose(vector(norm[0].network), vector(value[0].network))


STEPS = {
    "StepLR": partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.5),
    "LambdaLR": partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    "OneCycleLR": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.3, total_steps=11),
    "MultiStepLR": partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[2, 5]),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_schedule_of_steps(name: str) -> None:
    outcomes = fitted(3, scheduler=STEPS[name])
    assert_same(outcomes, by_hand(after_step=lambda made: STEPS[name](made).step))


def test_a_schedule_of_epochs() -> None:
    halving = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.1)
    outcomes = fitted(2, scheduler=halving, schedule="epoch")

    def after_epoch(made):
        scheduler = halving(made)
        return lambda loss: scheduler.step()

    assert_same(outcomes, by_hand(after_epoch=after_epoch))


def test_a_schedule_that_looks_at_the_loss() -> None:
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0, factor=0.01)
    outcomes = fitted(2, scheduler=plateau, schedule="epoch", epochs=4)
    rates = outcomes[0].state["local"]["optimizer"]["param_groups"][0]["lr"]
    assert rates == pytest.approx(0.1 * 0.01**4)  # no loss is ten times better
    with pytest.raises(OptionError, match="expected schedule='epoch' with ReduceLROnPlateau"):
        fitted(1, scheduler=plateau)


@pytest.mark.parametrize(
    "strategy", [AllReduce(), ParameterAveraging(every=2), GradientSharing(staleness=1)], ids=str
)
def test_workers_without_rows_follow_the_schedule(strategy) -> None:
    adam = partial(torch.optim.Adam, lr=0.1)
    outcomes = fitted(4, count=3, strategy=strategy, optimizer=adam, scheduler=STEPS["StepLR"], epochs=5)
    rates = {outcome.state["local"]["optimizer"]["param_groups"][0]["lr"] for outcome in outcomes}
    assert rates == {0.1 * 0.5}  # five steps, one of each epoch
    assert {outcome.state["steps"] for outcome in outcomes} == {5}


def test_a_schedule_goes_on_in_a_second_fit() -> None:
    options = {"scheduler": STEPS["OneCycleLR"], "strategy": ParameterAveraging(every=2)}
    whole = fitted(2, **options)
    first = fitted(2, epochs=1, **options)
    states = {rank: unpack(pack(outcome.state)) for rank, outcome in enumerate(first)}
    second = fitted(2, epochs=1, first_epoch=1, network=first[0].network, states=states, **options)
    assert vector(second[0].network).tobytes() == vector(whole[0].network).tobytes()


def test_groups_are_made_of_the_network() -> None:
    def groups(parameters: Parameters) -> torch.optim.Optimizer:
        net = parameters.network
        return torch.optim.SGD(
            [{"params": net[0].parameters(), "lr": 0.01}, {"params": net[2].parameters()}], lr=0.2
        )

    def groups_by_hand(net: nn.Module) -> torch.optim.Optimizer:
        return groups(Parameters(net))

    assert_same(fitted(3, optimizer=groups), by_hand(optimizer=groups_by_hand))


def test_a_parameter_without_a_group_is_named() -> None:
    with pytest.raises(
        OptionError, match=r"expected every trainable parameter .*, received none with '2\.weight'"
    ):
        fitted(1, optimizer=lambda parameters: torch.optim.SGD(parameters.network[0].parameters(), lr=0.1))
    with pytest.raises(OptionError, match="received others among its groups"):
        fitted(
            1,
            optimizer=lambda parameters: torch.optim.SGD([*parameters, nn.Parameter(torch.zeros(1))], lr=0.1),
        )


def test_frozen_and_shared_parameters() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.head = nn.Linear(4, 3)
            self.head.weight.requires_grad_(False)

        def forward(self, x):
            return self.head(self.second(torch.tanh(self.first(x))))

    before = Tied()
    outcomes = fitted(3, network=copy.deepcopy(before))
    for outcome in outcomes:
        assert outcome.network.first.weight is outcome.network.second.weight
        assert torch.equal(outcome.network.head.weight, before.head.weight)
        assert not torch.equal(outcome.network.first.weight, before.first.weight)
    assert len({outcome.stats.digest for outcome in outcomes}) == 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_and_keeps_float32_parameters(precision: str) -> None:
    seen = []

    class Seen(nn.Module):
        def forward(self, x):
            seen.append(x.dtype)
            return x

    net = nn.Sequential(*network(), Seen())
    mixed = fitted(2, network=net, precision=precision, epochs=12)
    assert set(seen) == {getattr(torch, precision)}
    full = fitted(2, epochs=12)
    assert {p.dtype for p in mixed[0].network.parameters()} == {torch.float32}
    assert vector(mixed[0].network).tobytes() != vector(full[0].network).tobytes()
    np.testing.assert_allclose(vector(mixed[0].network), vector(full[0].network), atol=0.05)
    assert len({outcome.stats.digest for outcome in mixed}) == 1


def test_a_gradient_that_overflows_in_float16_is_left_out_and_the_scale_lowered() -> None:
    outcomes = fitted(1, precision="float16", loss=Loud(), epochs=3)
    scale = outcomes[0].state["local"]["scaler"]["scale"]
    assert scale < 65536.0
    assert np.isfinite(vector(outcomes[0].network)).all()
    assert outcomes[0].history[0].rows == ROWS


class Loud(nn.CrossEntropyLoss):
    """Whose scaled gradient is too large for float16 at first."""

    def forward(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return 50 * super().forward(output, label)


def test_a_compiled_network_trains_the_same_parameters() -> None:
    compiled = []

    def backend(graph, inputs):
        compiled.append(len(inputs))
        return graph

    once = fitted(1, compile={"backend": backend})
    assert compiled
    assert_same(once, by_hand())
    with pytest.raises(UserCodeError, match="raised by the"):
        fitted(1, compile={"backend": "there is none of this name"})


def test_random_numbers_of_user_code_depend_on_seed_and_rank_alone() -> None:
    import random

    drawn: dict[int, list[tuple[float, float]]] = {}

    def loss(network: nn.Module, batch: Batch) -> torch.Tensor:
        drawn.setdefault(len(drawn), []).append((random.random(), float(np.random.random())))
        return nn.functional.cross_entropy(network(batch.features), batch.label)

    def once(**options: Any) -> list[Any]:
        drawn.clear()
        outcomes = fitted(1, loss=loss, **options)
        return [list(drawn.values()), outcomes]

    first, _ = once()
    again, _ = once()
    other, _ = once(seed=9)
    assert first == again
    assert first != other
    half, outcomes = once(epochs=1)
    rest, _ = once(epochs=1, first_epoch=1, states={0: unpack(pack(outcomes[0].state))})
    assert half + rest == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate: expected a whole number of at least 1, received 0"),
        ({"clip_norm": 0}, "clip_norm: expected a number above 0, received 0"),
        ({"clip_value": -1.0}, "clip_value: expected a number above 0"),
        (
            {"precision": "int8"},
            "precision: expected one of 'float32', 'bfloat16', 'float16', received 'int8'",
        ),
        ({"schedule": "month"}, "schedule: expected one of 'step', 'epoch'"),
        ({"compile": "yes"}, "compile: expected True, False or arguments"),
        ({"scheduler": lambda optimizer: 3}, "scheduler: expected the function to return a scheduler"),
        ({"scheduler": torch.optim.lr_scheduler.StepLR}, "scheduler: TypeError"),
    ],
)
def test_what_cannot_work_is_an_error_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        fitted(1, **options)
