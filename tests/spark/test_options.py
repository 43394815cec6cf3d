"""Every option of a fit arrives at the workers and changes something there."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from fatwood import (
    AdaptiveThreshold,
    AllReduce,
    DiLoCo,
    EarlyStopping,
    FixedThreshold,
    GradientSharing,
    LookAhead,
    ParameterAveraging,
    SparkModel,
)
from fatwood.train import Strategy

pytestmark = [pytest.mark.spark, pytest.mark.usefixtures("nothing_left")]

STEP = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
SHARING = partial(GradientSharing, threshold=FixedThreshold(tau=1e-2))


class Noisy(nn.Module):
    """Draws from PyTorch's generator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x)


def trained(
    df: Any, *, strategy: Strategy | None = None, scheduler: Any = None, **options: Any
) -> tuple[bytes, Any]:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), Noisy(), nn.Linear(6, 2))
    model = SparkModel(
        network,
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9),
        scheduler=scheduler,
        strategy=strategy or AllReduce(),
    )
    given = {
        "features": ["a", "b"],
        "label": "y",
        "batch_size": 8,
        "epochs": 2,
        "workers": 2,
        "progress": False,
    }
    fit = model.fit(df, **{**given, **options})
    return b"".join(p.detach().numpy().tobytes() for p in network.parameters()), fit


@pytest.fixture(scope="module")
def df(spark):
    return (
        spark.range(0, 60, 1, 3)
        .selectExpr("float(sin(id)) a", "float(cos(id)) b", "int(sin(id) > 0) y", "id % 3 w")
        .cache()
    )


@pytest.fixture(scope="module")
def plain(df) -> bytes:
    return trained(df)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 5},
        {"epochs": 1},
        {"workers": 3},
        {"shuffle": False},
        {"seed": 1},
        {"weight": "w"},
        {"accumulate": 2},
        {"clip_norm": 0.1},
        {"clip_value": 0.01},
        {"precision": "bfloat16"},
        {"scheduler": STEP},
        {"early_stopping": EarlyStopping(patience=1, min_delta=100.0, keep_best=True), "epochs": 4},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_option_changes_what_is_trained(df, plain, options) -> None:
    assert trained(df, **options)[0] != plain


def test_a_schedule_of_epochs_is_another_one(df) -> None:
    by_step, _ = trained(df, scheduler=STEP)
    by_epoch, _ = trained(df, scheduler=STEP, schedule="epoch")
    assert by_step != by_epoch


@pytest.mark.parametrize(
    ("strategy", "other"),
    [
        (SHARING(), SHARING(threshold=AdaptiveThreshold(initial=0.1))),
        (SHARING(), SHARING(exchange="gradients")),
        (SHARING(), SHARING(reduction="sum")),
        (SHARING(), SHARING(staleness=1)),
        (SHARING(), SHARING(ahead=LookAhead())),
        (SHARING(ahead=LookAhead()), SHARING(ahead=LookAhead(residual=0.0))),
        (SHARING(ahead=LookAhead()), SHARING(ahead=LookAhead(velocity=0.0))),
        (SHARING(ahead=LookAhead()), SHARING(ahead=LookAhead(momentum=0.5))),
        (AllReduce(), AllReduce(staleness=1)),
        (ParameterAveraging(every=2), ParameterAveraging(every=1)),
        (ParameterAveraging(every=2), ParameterAveraging(every=2, average_optimizer=False)),
        (DiLoCo(every=2), DiLoCo(every=1)),
        (DiLoCo(every=2), DiLoCo(every=2, outer_lr=0.3)),
        (DiLoCo(every=2), DiLoCo(every=2, outer_momentum=0.1)),
        (DiLoCo(every=2), DiLoCo(every=2, threshold=FixedThreshold(tau=1e-2))),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_an_option_of_a_strategy_changes_what_is_trained(df, strategy, other) -> None:
    bits = [trained(df, strategy=chosen, epochs=1) for chosen in (strategy, other)]
    assert bits[0][0] != bits[1][0]
    assert all(fit.stats.digest_equal for _, fit in bits)


def test_a_compiled_network_is_compiled_on_the_workers(df, plain) -> None:
    again, _ = trained(df, compile={"backend": "eager"})
    assert len(again) == len(plain)
    with pytest.raises(Exception, match="there is no backend of this name"):
        trained(df, compile={"backend": "there is no backend of this name"})
