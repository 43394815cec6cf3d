"""The phases of one worker over time, in bounded memory however long the run.

Two levels of detail. **Bins** tell, for the whole run, how many seconds of each slice of time went to each phase; a slice
has a width of a power of two, and doubles when the bins are full. **Windows** are runs of consecutive spans kept exactly:
the first, some of those in between, evenly thinned, and the last.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Spans"]

_BINS: Final = 1024
_FIRST_BIN_SECONDS: Final = 2.0**-10
_WINDOW_SPANS: Final = 256
_FIRST_WINDOWS: Final = 8
_SAMPLED_WINDOWS: Final = 16
_MICRO: Final = 1e6

_Span = tuple[str, float, float]


class Spans:
    """Takes up spans of time by phase; any thread may add, at about half a microsecond a span."""

    def __init__(self) -> None:
        self._coming: deque[_Span] = deque()  # appended to without a lock; its own operations are atomic
        self._folding = threading.Lock()
        self._phases: dict[str, int] = {}
        self._bin_seconds = _FIRST_BIN_SECONDS
        self._bins = np.zeros((0, _BINS))
        self._first: list[list[_Span]] = []
        self._sampled: list[list[_Span]] = []
        self._last: list[_Span] = []
        self._last_is_kept = True
        self._every = 1
        self._windows = 0

    def add(self, phase: str, start_seconds: float, end_seconds: float) -> None:
        """Count the time from one moment to another, in seconds since the trace's start, as this phase's."""
        coming = self._coming
        coming.append((phase, start_seconds, end_seconds))
        if len(coming) >= _WINDOW_SPANS and self._folding.acquire(blocking=False):
            try:
                if len(coming) >= _WINDOW_SPANS:
                    self._fold([coming.popleft() for _ in range(_WINDOW_SPANS)])
            finally:
                self._folding.release()

    def to_json(self) -> dict[str, Any]:
        """As JSON values; times are whole microseconds.

        ``phases`` are names; ``bins`` has ``width`` and by phase the time in each slice; ``windows`` are lists of phase
        number, start since the start of the span before (of the first: since the trace's start), and duration.
        """
        with self._folding:
            rest = [self._coming.popleft() for _ in range(len(self._coming))]
            windows = [*self._first, *self._sampled]
            if not self._last_is_kept:
                windows.append(self._last)
            if rest:
                self._enter(rest)
                windows.append(rest)
                self._last, self._last_is_kept = rest, False
            used = np.flatnonzero(self._bins.any(axis=0))
            count = int(used[-1]) + 1 if len(used) else 0
            return {
                "phases": list(self._phases),
                "bins": {
                    "width": round(self._bin_seconds * _MICRO, 6),
                    "phases": np.rint(self._bins[:, :count] * _MICRO).astype(np.int64).tolist(),
                },
                "windows": [self._packed(window) for window in windows],
            }

    def _fold(self, window: list[_Span]) -> None:
        """With the lock held: take up a whole window."""
        self._enter(window)
        self._last, self._last_is_kept = window, True
        if len(self._first) < _FIRST_WINDOWS:
            self._first.append(window)
            return
        if self._windows % self._every == 0 and len(self._sampled) == _SAMPLED_WINDOWS:
            self._sampled = self._sampled[::2]
            self._every *= 2
        if self._windows % self._every == 0:
            self._sampled.append(window)
        else:
            self._last_is_kept = False
        self._windows += 1

    def _enter(self, window: Sequence[_Span]) -> None:
        """Count the spans of a window in the bins."""
        names, starts, ends = zip(*window, strict=True)
        for name in [name for name in dict.fromkeys(names) if name not in self._phases]:
            self._phases[name] = len(self._phases)
            self._bins = np.concatenate([self._bins, np.zeros((1, _BINS))])
        numbers = np.array([self._phases[name] for name in names])
        times = np.array([starts, ends]).T.clip(min=0.0)
        while times.max() >= self._bin_seconds * _BINS:
            merged = self._bins.reshape(len(self._bins), -1, 2).sum(axis=2)
            self._bins = np.concatenate([merged, np.zeros_like(merged)], axis=1)
            self._bin_seconds *= 2
        first, last = (times / self._bin_seconds).astype(np.int64).T
        within = first == last
        flat = numbers[within] * _BINS + first[within]
        seconds = (times[:, 1] - times[:, 0])[within]
        self._bins += np.bincount(flat, seconds, self._bins.size).reshape(self._bins.shape)
        for i in np.flatnonzero(~within):
            self._spread(self._bins[numbers[i]], int(first[i]), int(last[i]), *times[i].tolist())

    def _spread(self, bins: NDArray[np.float64], first: int, last: int, start: float, end: float) -> None:
        width = self._bin_seconds
        bins[first] += (first + 1) * width - start
        bins[first + 1 : last] += width
        bins[last] += end - last * width

    def _packed(self, window: Sequence[_Span]) -> list[int]:
        packed, before = [], 0
        for phase, start, end in window:
            begin = round(start * _MICRO)
            packed += [self._phases[phase], begin - before, round(end * _MICRO) - begin]
            before = begin
        return packed
