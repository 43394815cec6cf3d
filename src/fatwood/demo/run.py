"""``fatwood demo``: train, evaluate, predict and save on ``local[2]``, and say what happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fatwood.codec import AdaptiveThreshold
from fatwood.demo.digits import digits
from fatwood.evaluation import Classification
from fatwood.model import SparkModel
from fatwood.spark.local import local_session
from fatwood.train import GradientSharing

__all__ = ["DemoResult", "network", "optimizer", "run", "strategy"]

WORKERS = 2
BATCH_SIZE = 32
EPOCHS = 5


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo measured; :meth:`to_json` is the last line of ``fatwood demo --json``."""

    accuracy: float
    """On the 5 000 test rows."""
    bytes_per_step: float
    """Mean size of one worker's message, headers included."""
    dense_bytes_per_step: int
    rows_trained: int
    rows_expected: int
    digest_equal: bool
    seconds: float
    """From the start of the session to the end of the predictions."""

    def to_json(self) -> dict[str, float | int | bool]:
        """As JSON values."""
        return asdict(self)


def network(seed: int = 0) -> nn.Module:
    """A small convolutional network for 28 x 28 images given as 784 values."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 8, 5, padding=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5, padding=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


optimizer = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
"""The demo's optimizer."""


def strategy() -> GradientSharing:
    """The demo's strategy."""
    return GradientSharing(threshold=AdaptiveThreshold(initial=1e-3))


def run(
    save_to: Path, say: Callable[[str], None], *, progress: bool = True, epochs: int = EPOCHS
) -> DemoResult:
    """Run the demo.

    Args:
        save_to: Where to save the trained model.
        say: Gets every line of the report.
        progress: Show a progress bar when there is a terminal.
        epochs: Passes over the 12 000 training rows.
    """
    start = time.perf_counter()
    say(f"Starting Spark on this machine: local[{WORKERS}], {WORKERS} workers")
    with local_session(WORKERS) as spark:
        train, test = digits(spark)
        net = network()
        parameters = sum(p.numel() for p in net.parameters())
        model = SparkModel(net, loss=nn.CrossEntropyLoss(), optimizer=optimizer, strategy=strategy())
        say(
            f"Training a convolutional network of {parameters:,} parameters on 12,000 digits of MNIST, {epochs} epochs"
        )
        fit = model.fit(
            train,
            features="pixels",
            label="digit",
            batch_size=BATCH_SIZE,
            epochs=epochs,
            workers=WORKERS,
            progress=progress,
        )
        say(str(fit.history))
        say(str(fit.stats))
        report = model.evaluate(test, features="pixels", label="digit")
        assert isinstance(report, Classification)  # noqa: S101  the labels are classes
        say(f"\nOn 5,000 test digits:\n{report}")
        rows = model.predict(test.limit(10), key=["id", "digit"], features="pixels").collect()
        say("\nTen predictions, by key:")
        for row in rows:
            say(f"  id {row['id']}: a {row['digit']}, predicted {_largest(row['prediction'])}")
        model.save(save_to)
        say(f"\nSaved the model to {save_to}")
    return DemoResult(
        accuracy=report.accuracy,
        bytes_per_step=fit.stats.bytes_per_step,
        dense_bytes_per_step=fit.stats.dense_bytes_per_step,
        rows_trained=fit.stats.rows_trained,
        rows_expected=fit.stats.rows_expected,
        digest_equal=fit.stats.digest_equal,
        seconds=time.perf_counter() - start,
    )


def _largest(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
