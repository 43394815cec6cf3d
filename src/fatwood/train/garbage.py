"""When Python looks for cyclic garbage in a worker: between two steps, and not whenever it has made many objects.

Python's own collection comes in the middle of whatever runs, also of an exchange that all workers wait in, and the oldest
generation has hundreds of thousands of objects of imported modules to go through. Deeplearning4j has the same with Java's
(``workerTogglePeriodicGC``, ``workerPeriodicGCFrequency``: every 5 seconds).
"""

from __future__ import annotations

import gc
import math
import time
from types import TracebackType

from fatwood.errors import OptionError

__all__ = ["GarbageCollection", "checked_gc_every_seconds"]


def checked_gc_every_seconds(seconds: object) -> float | None:
    """What the user gave, if it can work.

    Raises:
        OptionError: It is no finite number above 0, nor None.
    """
    if seconds is None:
        return None
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < float(seconds) < math.inf:  # type: ignore[arg-type]
        text = f"gc_every_seconds: expected a number of seconds above 0, or None, received {seconds!r}"
        raise OptionError(text, hint="None leaves garbage collection to Python")
    return float(seconds)  # type: ignore[arg-type]


class GarbageCollection:
    """Collects every so many seconds, at most, and not in between; a context manager that leaves Python as it was.

    The setting is the process's, so one of them is in use at a time.

    Args:
        every_seconds: Between two collections; None leaves all to Python.
    """

    def __init__(self, every_seconds: float | None) -> None:
        self._every = every_seconds
        self._last = time.monotonic()
        self._enabled = self._frozen = False
        self.collections = 0
        """Made until now."""

    def __enter__(self) -> GarbageCollection:
        if self._every is not None:
            self._enabled = gc.isenabled()
            gc.disable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._frozen:
            gc.unfreeze()
            self._frozen = False
        if self._enabled:
            gc.enable()

    def freeze(self) -> None:
        """All that is there now will not be looked at: imported modules, network, optimizer. It may be garbage later again.

        Where the process was forked with frozen objects (:mod:`fatwood.spark.daemon`), they stay all there is: they could not
        be told from others when the time comes to look at these again.
        """
        if self._every is not None and not gc.get_freeze_count():
            gc.freeze()
            self._frozen = True

    def between_steps(self) -> None:
        """Collect, if it is time."""
        if self._every is not None and time.monotonic() - self._last >= self._every:
            gc.collect()
            self.collections += 1
            self._last = time.monotonic()
