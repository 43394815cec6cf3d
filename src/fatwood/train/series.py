"""Figures of every step of one worker, in bounded memory however long the run."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIGURES", "StepSeries", "StepTrace"]

_BINS: Final = 512
_BATCH: Final = 128

FIGURES: Final = ("rows", "loss", "message_bytes", "tau", "density", "seconds")
"""What is kept of a step beside its number, epoch and time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTrace:
    """One agreement as one worker saw it."""

    step: int
    """Agreements over the model's whole life, this one included."""
    epoch: int
    """Counted from 0 over the model's whole life."""
    rows: int
    """This worker's rows since the agreement before."""
    loss: float
    """Mean training loss over these rows; NaN where there are none."""
    message_bytes: int
    """Size of this worker's message, header included."""
    tau: float | None = None
    """The threshold that was sent; None where there is none."""
    density: float | None = None
    """Share of the parameters that was sent, 0 to 1; None where all are."""
    seconds: float = 0.0
    """Wall seconds since the end of the agreement before."""


_Row = tuple[int, int, float, float, float, float | None, float | None, float]


class StepSeries:
    """Least, mean and largest value of every figure, for each of at most 512 stretches of equally many steps.

    A stretch is one step at first; the lengths double when there are too many. Used by one thread.
    """

    def __init__(self) -> None:
        self._coming: deque[tuple[float, _Row]] = deque()
        self._folding = threading.Lock()
        self._first: int | None = None
        self._width = 1
        self._steps = np.zeros(_BINS, np.int64)
        self._epoch = np.zeros(_BINS, np.int64)
        self._end = np.zeros(_BINS)
        shape = (len(FIGURES), _BINS)
        self._count, self._sum = np.zeros(shape), np.zeros(shape)
        self._least, self._most = np.full(shape, math.inf), np.full(shape, -math.inf)

    def add(self, at_seconds: float, step: StepTrace) -> None:
        """Take up a step that ended at a moment, in seconds since the trace's start."""
        self._coming.append((at_seconds, _row(step)))
        if len(self._coming) >= _BATCH:
            self._fold()

    def to_json(self) -> dict[str, Any]:
        """As JSON values.

        ``first`` is the number of the first step and ``width`` the length of a stretch; ``steps``, ``epoch`` and ``end``
        (seconds since the trace's start) have an entry for each; so have the ``figures``' ``mean``, ``least`` and
        ``most``, with None where nothing was measured. Where a stretch is one step, there are means alone.
        """
        self._fold()
        with self._folding:
            used = np.flatnonzero(self._steps)
            count = int(used[-1]) + 1 if len(used) else 0
            return {
                "first": self._first,
                "width": self._width,
                "steps": self._steps[:count].tolist(),
                "epoch": self._epoch[:count].tolist(),
                "end": [round(float(end), 6) for end in self._end[:count]],
                "figures": {
                    name: self._figure(i, count) for i, name in enumerate(FIGURES) if self._count[i].any()
                },
            }

    def _figure(self, i: int, count: int) -> dict[str, list[float | None]]:
        there = self._count[i, :count] > 0
        means = self._sum[i, :count] / np.maximum(self._count[i, :count], 1)
        found = {"mean": means}
        if self._width > 1:
            found |= {"least": self._least[i, :count], "most": self._most[i, :count]}
        return {name: _rounded(values, there) for name, values in found.items()}

    def _fold(self) -> None:
        with self._folding:
            batch = [self._coming.popleft() for _ in range(len(self._coming))]
            if not batch:
                return
            if self._first is None:
                self._first = batch[0][1][0]
            table = np.array([row for _, row in batch], np.float64)  # None becomes NaN
            place = np.maximum(table[:, 0].astype(np.int64) - self._first, 0)
            while place.max() // self._width >= _BINS:
                self._halve()
            at = place // self._width
            np.add.at(self._steps, at, 1)
            np.maximum.at(self._epoch, at, table[:, 1].astype(np.int64))
            np.maximum.at(self._end, at, np.array([end for end, _ in batch]))
            for i, values in enumerate(table[:, 2:].T):
                there = np.isfinite(values)
                where, found = at[there], values[there]
                np.add.at(self._count[i], where, 1)
                np.add.at(self._sum[i], where, found)
                np.minimum.at(self._least[i], where, found)
                np.maximum.at(self._most[i], where, found)

    def _halve(self) -> None:
        """Make two stretches one, everywhere."""
        self._width *= 2
        self._steps = _merged(self._steps, np.add, 0)
        self._epoch = _merged(self._epoch, np.maximum, 0)
        self._end = _merged(self._end, np.maximum, 0)
        self._count = _merged(self._count, np.add, 0)
        self._sum = _merged(self._sum, np.add, 0)
        self._least = _merged(self._least, np.minimum, math.inf)
        self._most = _merged(self._most, np.maximum, -math.inf)


def _row(s: StepTrace) -> _Row:
    """Number, epoch and the figures."""
    return s.step, s.epoch, s.rows, s.loss, s.message_bytes, s.tau, s.density, s.seconds


def _merged(values: NDArray[Any], merge: np.ufunc, empty: float) -> NDArray[Any]:
    half = merge(values[..., ::2], values[..., 1::2])
    return np.concatenate([half, np.full_like(half, empty)], axis=-1)


def _rounded(values: NDArray[np.float64], there: NDArray[np.bool_]) -> list[float | None]:
    """With six digits, which a picture does not need."""
    pairs = zip(values.tolist(), there.tolist(), strict=True)
    return [float(f"{value:.6g}") if known else None for value, known in pairs]
