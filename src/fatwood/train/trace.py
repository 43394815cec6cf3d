"""What one worker did when: phases over time, figures by step, and how its clock stands to the job's."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fatwood.errors import ProtocolError
from fatwood.exchange import ClockOffset
from fatwood.train.series import StepSeries, StepTrace
from fatwood.train.spans import Spans

__all__ = ["StepTrace", "Trace", "read_trace"]

_MOST_READINGS: Final = 64


class Trace:
    """The recorder of one worker; its times count from when it was made.

    Less than 1 MiB of JSON, whatever the length of the run. A span costs about a microsecond and a step about four.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._started = time.time()
        self._spans = Spans()
        self._steps = StepSeries()
        self._readings: list[dict[str, Any]] = []

    def span(self, phase: str, start: float, end: float) -> None:
        """Take up a span of a phase; both times are readings of ``time.perf_counter``. Any thread."""
        self._spans.add(phase, start - self._start, end - self._start)

    def step(self, step: StepTrace) -> None:
        """Take up an agreement that has just ended. One thread."""
        self._steps.add(time.perf_counter() - self._start, step)

    def clock(self, offset: ClockOffset) -> None:
        """Note how this worker's clock stands to the job's, as measured just now.

        More than 64 times are not kept, and none by another source than the first: they would not lie on one line.
        """
        if len(self._readings) == _MOST_READINGS or any(r["source"] != offset.source for r in self._readings):
            return
        self._readings.append(
            {
                "at": round(time.perf_counter() - self._start, 6),
                "time": time.time() + offset.seconds,
                "offset": offset.seconds,
                "error": offset.error_seconds,
                "source": offset.source,
                "remark": offset.remark,
            }
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values.

        ``started`` (this worker's own clock, seconds since 1970), ``clock`` with the readings, ``spans``
        (see :meth:`Spans.to_json`) and ``steps`` (see :meth:`StepSeries.to_json`).
        A reading says what the job's clock showed (``time``) at a moment of this trace (``at``), both in seconds.
        """
        return {
            "started": self._started,
            "clock": list(self._readings),
            "spans": self._spans.to_json(),
            "steps": self._steps.to_json(),
        }

    def to_bytes(self) -> bytes:
        """As JSON text, for :func:`read_trace`."""
        return json.dumps(self.to_json(), separators=(",", ":"), allow_nan=False).encode()


def read_trace(path: Path, where: str) -> Mapping[str, Any]:
    """The values of a worker's :meth:`Trace.to_bytes` from a file.

    Args:
        path: Of the file.
        where: The worker, in words.

    Raises:
        ProtocolError: It holds something else.
    """
    try:
        values = json.loads(path.read_bytes())
        if {"started", "clock", "spans", "steps"} <= values.keys():
            found: Mapping[str, Any] = values
            return found
        what = f"the keys {sorted(values)}"
    except (ValueError, RecursionError, AttributeError) as error:
        what = repr(error)
    text = f"{where}: expected a trace as JSON, received {what:.200}"
    raise ProtocolError(text, hint="driver and executors must run the same version of fatwood")
