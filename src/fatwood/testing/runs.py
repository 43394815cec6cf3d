"""Statistics of runs that never were, for the page and its tests."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from fatwood.exchange import ClockOffset
from fatwood.train import EpochRecord, FitStats, History, Incident, ValidationRecord, WorkerStats
from fatwood.train.series import StepSeries, StepTrace
from fatwood.train.trace import Trace

__all__ = ["synthetic_stats"]

_SHARES = {"read": 0.06, "batch": 0.02, "compute": 0.6, "encode": 0.07, "exchange": 0.18, "apply": 0.07}


def synthetic_stats(
    *, workers: int, seconds: float, step_seconds: float = 0.25, epochs: int = 5, seed: int = 0
) -> FitStats:
    """Statistics of a made-up run in which the last worker is slow and one is lost.

    Args:
        workers: How many.
        seconds: Length of the run.
        step_seconds: Mean length of a step.
        epochs: How many.
        seed: Of the noise.
    """
    random = np.random.default_rng(seed)
    steps = max(1, int(seconds / step_seconds))
    lengths = random.gamma(20.0, step_seconds / 20.0, steps)
    per_epoch = math.ceil(steps / epochs)
    found = tuple(_worker(rank, workers, lengths, per_epoch, random) for rank in range(workers))
    validations = tuple(
        ValidationRecord(
            step=min(steps, (epoch + 1) * per_epoch), epoch=epoch, loss=2.2 / (1.4 + epoch), accuracy=1 - 0.4 / (1 + epoch),
            rows=2000, best=epoch > 0,
        )
        for epoch in range(epochs)
    )  # fmt: skip
    history = History(
        EpochRecord(
            epoch=v.epoch, loss=2.0 / (1.4 + v.epoch), rows=32 * per_epoch * workers, seconds=seconds / epochs,
            rows_of_worker=(32 * per_epoch,) * workers, validation=v,
        )
        for v in validations
    )  # fmt: skip
    lost = Incident(
        seconds=0.3 * seconds,
        kind="lost",
        rank=workers - 1,
        text=f"worker {workers - 1} on host made-up was lost: silent",
    )
    back = Incident(
        seconds=0.32 * seconds, kind="rejoined", rank=workers - 1, text=f"worker {workers - 1} is back"
    )
    rows = 32 * steps * workers
    return FitStats(
        workers=found,
        rows_trained=rows,
        rows_expected=rows,
        incidents=(lost, back),
        parameters=1_199_882,
        seconds=seconds,
        started=time.time(),
        history=history,
        validations=validations,
    )


def _worker(
    rank: int, workers: int, lengths: np.ndarray[Any, Any], per_epoch: int, random: np.random.Generator
) -> WorkerStats:
    trace, series, start, now = Trace(), StepSeries(), time.perf_counter(), 0.0
    trace.clock(ClockOffset(seconds=0.004 * rank, error_seconds=0.0002))
    totals = dict.fromkeys(_SHARES, 0.0)
    slow = 1.2 if rank == workers - 1 else random.uniform(0.85, 1.0)
    for number, length in enumerate(lengths.tolist()):
        left = length
        for name, share in _SHARES.items():
            part = min(left, length * share * (slow if name == "compute" else 1.0))
            if name == "exchange":
                part = max(0.0, left - length * _SHARES["apply"])
            trace.span(name, start + now, start + now + part)
            totals[name] += part
            now, left = now + part, left - part
        series.add(
            now,
            StepTrace(
                step=number + 1, epoch=number // per_epoch, rows=32, loss=2.3 * math.exp(-3 * number / len(lengths)) + random.gamma(2, 0.05),
                message_bytes=int(random.integers(4_000, 9_000)), tau=1e-3 / (1 + number / 500), density=float(random.uniform(0.001, 0.003)), seconds=length,
            ),
        )  # fmt: skip
    waited = {
        other: totals["exchange"] * (0.8 if other == workers - 1 else 0.2 / workers)
        for other in range(workers)
        if other != rank
    }
    return WorkerStats(
        rank=rank, host=f"executor-{rank % 8}", rows_trained=32 * len(lengths), rows_skipped=0, minibatches=len(lengths),
        agreements=len(lengths), message_bytes=6_500 * len(lengths), bytes_sent=6_560 * (workers - 1) * len(lengths), digest=1,
        seconds=totals, waited_seconds=waited, trace={**trace.to_json(), "steps": series.to_json()},
    )  # fmt: skip
