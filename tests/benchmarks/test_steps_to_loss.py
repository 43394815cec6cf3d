"""The standing convergence benchmark counts steps and bytes rightly, and its loop is the library's arithmetic."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def methods() -> Iterator[ModuleType]:
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("steps_methods")
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def digits(methods: ModuleType) -> object:
    del methods  # its folder is importable now
    return importlib.import_module("steps_tasks").CNNTask()


def test_a_loss_is_reached_on_the_line_between_two_smoothed_points(methods: ModuleType) -> None:
    losses = [4.0, 4.0, 4.0, 1.0, 1.0, 1.0]
    curve = methods.Curve([(10 * (i + 1), loss) for i, loss in enumerate(losses)], 40.0, 100)
    assert curve.smooth() == [(20, 4.0), (30, 3.0), (40, 2.0), (50, 1.0)]
    assert curve.steps_to(2.5) == pytest.approx(35)
    assert curve.steps_to(0.5) is None
    assert curve.share_of_dense == pytest.approx(0.1)


@pytest.mark.slow
def test_dense_updates_of_plain_descent_are_dense_gradients(methods: ModuleType, digits: object) -> None:
    """The mean of four plain steps is one plain step on the mean gradient."""

    class Plain(type(digits)):  # type: ignore[misc]
        def optimizer(self, network: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
            return torch.optim.SGD(network.parameters(), lr=rate)

    curves = [
        methods.run(Plain(), methods.METHODS[name], rate=0.05, seed=3, steps=10)
        for name in ("dense", "local")
    ]
    for (_, one), (_, other) in zip(*(curve.points for curve in curves), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
def test_a_message_of_one_in_a_hundred_costs_what_it_should(methods: ModuleType, digits: object) -> None:
    curve = methods.run(digits, methods.METHODS["sharing"], rate=0.02, seed=0, steps=10)
    assert 1 / 600 < curve.share_of_dense < 1 / 320


@pytest.mark.slow
def test_looking_ahead_changes_where_workers_train(methods: ModuleType, digits: object) -> None:
    losses = {
        name: methods.run(digits, methods.METHODS[name], rate=0.05, seed=0, steps=10).points[-1][1]
        for name in ("sharing", "sharing-own", "sharing-ahead")
    }
    assert len(set(losses.values())) == len(losses)
