"""Where a worker's wall time goes, by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

from fatwood.train.series import StepTrace
from fatwood.train.trace import Trace

__all__ = ["PhaseClock"]

T = TypeVar("T")


class PhaseClock:
    """Adds up wall seconds by phase; costs two clock readings a phase.

    Two threads may use it, with different phases.

    Args:
        trace: Is told of every phase and step, if there is one.
    """

    def __init__(self, trace: Trace | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.trace = trace

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Count the block's time as this phase's."""
        return _Phase(self, name)

    def timed(self, name: str, items: Iterator[T]) -> Iterator[T]:
        """The same items, with the time spent waiting for each counted as this phase's."""
        missing: Any = object()
        while True:
            with self.phase(name):
                item = next(items, missing)
            if item is missing:
                return
            yield item

    def step(self, step: StepTrace) -> None:
        """Note an agreement that has just ended."""
        if self.trace is not None:
            self.trace.step(step)


class _Phase(AbstractContextManager[None]):
    """One block of one phase."""

    __slots__ = ("_clock", "_name", "_start")

    def __init__(self, clock: PhaseClock, name: str) -> None:
        self._clock = clock
        self._name = name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        end = time.perf_counter()
        clock, name = self._clock, self._name
        clock.seconds[name] = clock.seconds.get(name, 0.0) + end - self._start
        if clock.trace is not None:
            clock.trace.span(name, self._start, end)
