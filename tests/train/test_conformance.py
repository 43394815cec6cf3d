"""Every strategy, on four kinds of networks and one to three workers, against one process with the same global batch."""

from __future__ import annotations

import pytest

from fatwood.codec import AdaptiveThreshold, TargetSparsityThreshold
from fatwood.testing.conformance import TASKS, Task, check_strategy
from fatwood.train import AllReduce, DiLoCo, GradientSharing, LookAhead, ParameterAveraging, Strategy

SPARSE = TargetSparsityThreshold(initial="quantile", target=0.06)
STRATEGIES = [  # name, strategy, share of one process's progress that it makes at least
    ("all-reduce", AllReduce(), 0.98),
    ("all-reduce, stale", AllReduce(staleness=1), 0.8),
    ("averaging every 2", ParameterAveraging(every=2), 0.96),
    ("averaging every 5, optimizers apart", ParameterAveraging(every=5, average_optimizer=False), 0.93),
    ("sharing", GradientSharing(threshold=SPARSE), 0.93),
    ("sharing, adaptive", GradientSharing(threshold=AdaptiveThreshold(initial=1e-2)), 0.78),
    ("sharing, gradients", GradientSharing(threshold=SPARSE, exchange="gradients"), 0.8),
    ("sharing, sum", GradientSharing(threshold=SPARSE, reduction="sum"), 0.9),
    ("sharing, stale", GradientSharing(threshold=SPARSE, staleness=1), 0.7),
    ("sharing, ahead", GradientSharing(threshold=SPARSE, ahead=LookAhead(velocity=1.0)), 0.93),
    ("diloco", DiLoCo(every=4, outer_momentum=0.5), 0.84),
    ("diloco, threshold", DiLoCo(every=4, outer_lr=1.0, outer_momentum=0.0, threshold=SPARSE), 0.75),
]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("task", TASKS, ids=str)
@pytest.mark.parametrize(("strategy", "least"), [s[1:] for s in STRATEGIES], ids=[s[0] for s in STRATEGIES])
def test_a_strategy_trains_as_one_process_does(
    strategy: Strategy, least: float, task: Task, workers: int
) -> None:
    check_strategy(strategy, task, workers, least_progress=least)


@pytest.mark.parametrize("task", [task for task in TASKS if task.name != "cnn"], ids=str)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_all_reduce_is_one_process_but_for_rounding_and_order(task: Task, workers: int) -> None:
    check_strategy(
        AllReduce(), task, workers, least_progress=0.98
    )  # batch norm sees its worker's minibatch only


def test_the_suite_sees_a_strategy_that_does_not_train() -> None:
    slow = DiLoCo(every=4, outer_lr=0.01, outer_momentum=0.0)
    with pytest.raises(AssertionError, match="of its progress"):
        check_strategy(slow, TASKS[0], 2, least_progress=0.75)
