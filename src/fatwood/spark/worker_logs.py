"""The lines of workers on the driver: logged with rank and host, or kept where there is no way to the driver yet."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fatwood.train.logs import DRIVER_LOGGER, Allowance, shortened

__all__ = ["LOG", "KeptLogs", "LogWriter"]

LOG = logging.getLogger(DRIVER_LOGGER)
"""Gets the lines of all workers."""

_LINES, _BYTES, _REFILL_SECONDS = 1_000, 1 << 20, 10.0
"""Of all workers together: at once, and again within so many seconds."""
_KEPT_LINES, _KEPT_BYTES = 500, 256 << 10


class LogWriter:
    """Logs what workers report, as ``worker 1 on host h: <logger>: <message>``, and how much more there was.

    Args:
        allowance: How much, of all workers together.
    """

    def __init__(self, allowance: Allowance | None = None) -> None:
        self._allowance = allowance or Allowance(_LINES, _BYTES, seconds=_REFILL_SECONDS)

    def __call__(self, rank: int, host: str, body: Mapping[str, Any]) -> None:
        """Log one report. What cannot be understood or logged is left out: it must not break the training.

        Args:
            rank: Of the worker.
            host: Its host.
            body: ``{"lines": [[level, logger, message], ...], "more": count}``.
        """
        with suppress(Exception):
            more = int(body["more"])
            for level, logger, text in body["lines"]:
                line = f"{shortened(str(logger))}: {shortened(str(text))}"
                if self._allowance.take(len(line.encode())):
                    LOG.log(int(level), "worker %d on host %s: %s", rank, host, line)
                else:
                    more += 1
            if more > 0:
                LOG.warning("worker %d on host %s: and %s more lines", rank, host, f"{more:,}")


class KeptLogs:
    """Keeps the first lines of a job whose driver hears of it only at the end, and counts the rest."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, str, Any]] = []
        self._size = 0
        self._more: dict[tuple[int, str], int] = {}

    def __call__(self, rank: int, host: str, body: Mapping[str, Any]) -> None:
        """As :class:`LogWriter`."""
        with suppress(Exception):
            more = int(body["more"])
            for level, logger, text in body["lines"]:
                self._size += len(str(text)) + len(str(logger))
                if len(self._lines) < _KEPT_LINES and self._size <= _KEPT_BYTES:
                    self._lines.append((rank, host, [int(level), str(logger), str(text)]))
                else:
                    more += 1
            if more:
                self._more[rank, host] = self._more.get((rank, host), 0) + more

    def to_json(self) -> list[Any]:
        """Calls of a :class:`LogWriter`, as JSON values."""
        told = [[rank, host, {"lines": [line], "more": 0}] for rank, host, line in self._lines]
        return told + [[*worker, {"lines": [], "more": more}] for worker, more in self._more.items()]

    @staticmethod
    def tell(calls: Iterable[Sequence[Any]]) -> None:
        """Log on the driver what :meth:`to_json` gave.

        Args:
            calls: As they came.
        """
        writer = LogWriter()
        with suppress(Exception):
            for rank, host, body in calls:
                writer(int(rank), str(host), body)
