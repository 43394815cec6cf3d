"""A small run that trackers are told of: two epochs of two steps, two validations."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fatwood.train import EpochRecord, FitStats, History, RunInfo, StepRecord, ValidationRecord, WorkerStats


@pytest.fixture
def run() -> SimpleNamespace:
    torch.manual_seed(3)
    info = RunInfo(
        workers=1,
        epochs=2,
        first_epoch=0,
        rows=8,
        batch_size=4,
        parameters=15,
        strategy="AllReduce()",
        options={"batch_size": 4, "optimizer": "SGD(lr=0.1)", "clip_norm": None},
        network=torch.nn.Linear(4, 3),
    )
    steps = [
        StepRecord(
            step=n, epoch=(n - 1) // 2, rows=4, rows_of_epoch=8 - 4 * (n % 2), loss=1 / n, mean_loss=2 / n
        )
        for n in (1, 2, 3, 4)
    ]
    validations = [
        ValidationRecord(step=2, epoch=0, loss=0.5, accuracy=None, rows=5),
        ValidationRecord(step=4, epoch=1, loss=0.25, accuracy=0.75, rows=5),
    ]
    epochs = [
        EpochRecord(epoch=0, loss=1.5, rows=8, seconds=2.0, rows_of_worker=(8,), validation=validations[0]),
        EpochRecord(epoch=1, loss=0.6, rows=8, seconds=4.0, rows_of_worker=(8,), validation=validations[1]),
    ]
    worker = WorkerStats(
        rank=0,
        rows_trained=16,
        rows_skipped=0,
        minibatches=4,
        agreements=4,
        message_bytes=400,
        bytes_sent=0,
        digest=7,
        seconds={},
    )
    stats = FitStats(workers=(worker,), rows_trained=16, rows_expected=16, parameters=15, seconds=6.0)
    return SimpleNamespace(
        info=info, steps=steps, validations=validations, epochs=epochs, history=History(epochs), stats=stats
    )


@pytest.fixture
def replay(run):
    """Tells a callback of the run as a fit does."""
    from fatwood.train import Callback, Callbacks

    def tell(callback: Callback, error: BaseException | None = None) -> None:
        told = Callbacks([callback])
        told.start(run.info)
        told.tell(run.steps, run.validations, run.epochs)
        if error is None:
            told.end(run.history, run.stats)
        else:
            told.error(error)

    return tell
