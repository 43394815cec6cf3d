"""What a worker's code logs and warns of, on its way to the driver: bounded, and never in the way of training.

::

    logging, warnings --> handler, in the thread that logs --> some lines wait --> a thread --> Member.report("log", ...)

What is too much is counted and not kept: the lines of a flood cost little more than a comparison.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from fatwood.errors import OptionError
from fatwood.exchange import Member

__all__ = ["DRIVER_LOGGER", "Allowance", "WorkerLogs", "checked_level", "shortened"]

DRIVER_LOGGER: Final = "fatwood.worker"
"""The logger on the driver that gets the workers' lines. What it logs is never sent itself."""

_LINES, _BYTES, _REFILL_SECONDS = 100, 64 << 10, 10.0
"""Of a worker: at once, and again within so many seconds."""
_MAX_CHARACTERS = 2_000
_SEND_SECONDS = 0.5
_IDLE_SECONDS = 60.0
_END_SECONDS = 2.0


def checked_level(level: object) -> int | None:
    """The number of a level of ``logging``.

    Args:
        level: Its number, its name, or None for none.

    Raises:
        OptionError: It is something else.
    """
    if level is None:
        return None
    number = logging.getLevelName(level.upper()) if isinstance(level, str) else level
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        text = f"worker_logs: expected a level of logging, or None, received {level!r}"
        raise OptionError(text, hint="worker_logs='INFO', or None for no lines of workers")
    return max(1, number)


def shortened(text: str) -> str:
    """A line that is not too long, in characters that can be encoded.

    Args:
        text: Any; it may hold several lines.
    """
    cut = text[:_MAX_CHARACTERS].encode("utf-8", "replace").decode()
    return (
        cut if len(text) <= _MAX_CHARACTERS else f"{cut}... [{len(text) - _MAX_CHARACTERS} characters more]"
    )


class Allowance:
    """Lines and bytes that may pass: so many at once, and as many again, evenly, within some seconds.

    Args:
        lines: How many.
        size: In bytes.
        seconds: In which they come again.
        clock: In seconds.

    >>> allowance = Allowance(2, 100, seconds=10.0, clock=lambda: 0.0)
    >>> allowance.take(10), allowance.take(10), allowance.take(10)
    (True, True, False)
    """

    def __init__(
        self, lines: int, size: int, *, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = lines, size
        self._left: tuple[float, float] = self._most
        self._seconds = seconds
        self._clock = clock
        self._last = clock()

    @property
    def is_open(self) -> bool:
        """Whether the shortest line would pass."""
        self._refill()
        return self._left[0] >= 1 and self._left[1] >= 1

    def take(self, size: int) -> bool:
        """Whether a line of so many bytes passes; then it is counted."""
        self._refill()
        lines, left = self._left
        if lines < 1 or left < size:
            return False
        self._left = lines - 1, left - size
        return True

    def _refill(self) -> None:
        now = self._clock()
        share = (now - self._last) / self._seconds
        self._last = now
        lines, size = (
            min(most, left + share * most) for most, left in zip(self._most, self._left, strict=True)
        )
        self._left = lines, size


class WorkerLogs(logging.Handler):
    """While entered, tells the driver what is logged and warned of in this process; a context manager.

    Nothing that goes wrong with it is raised or logged. A forked process sends nothing. What was written to other handlers,
    or to the process's standard error for want of any, still is.

    Args:
        member: Of the worker.
        level: The lowest that is told; loggers without a level of their own get it, too, while it is lower than the root's. None
            tells nothing.
        allowance: How much.
    """

    def __init__(self, member: Member, level: int | None, *, allowance: Allowance | None = None) -> None:
        super().__init__(logging.CRITICAL if level is None else level)
        self._member = member
        self._wanted = level is not None
        self._allowance = allowance or Allowance(_LINES, _BYTES, seconds=_REFILL_SECONDS)
        self._pid = os.getpid()
        self._lines: list[tuple[int, str, str]] = []
        self._more = 0
        self._open = False
        self._root_level: int | None = None
        self._shown: Any = None
        self._told = threading.local()
        self._sending = threading.Lock()
        self._wake, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"fatwood-logs-{member.rank}", daemon=True)

    def __enter__(self) -> WorkerLogs:
        if self._wanted:
            root = logging.getLogger()
            if root.level > self.level:
                self._root_level = root.level
                root.setLevel(self.level)
            root.addHandler(self)
            if self.level <= logging.WARNING:
                self._shown, warnings.showwarning = warnings.showwarning, self._show_warning
            self._open = True
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._wanted:
            return
        self._open = False
        root = logging.getLogger()
        root.removeHandler(self)
        if self._root_level is not None and root.level == self.level:
            root.setLevel(self._root_level)
        if warnings.showwarning == self._show_warning:
            warnings.showwarning = self._shown
        self._end.set()
        self._wake.set()
        self.flush()
        self._thread.join(_END_SECONDS)
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Take up a record; called by ``logging``, which holds this handler's lock."""
        otherwise = (
            logging.lastResort
        )  # what gets a record where there is no handler, as if this one were not there
        if otherwise and record.levelno >= otherwise.level and not self._is_heard_elsewhere(record):
            otherwise.handle(record)
        if self._open and record.name != DRIVER_LOGGER and os.getpid() == self._pid:
            self._told.by_logging = True
            self._take(record.levelno, record.name, lambda: _message(record))

    def flush(self) -> None:
        """Send what waits, and return when it is sent or cannot be."""
        with suppress(Exception):
            self._send()

    def _take(self, level: int, logger: str, text: Callable[[], str]) -> None:
        line = None
        if self._allowance.is_open:
            try:
                line = level, shortened(logger), shortened(text())
            except Exception:  # of what the user logs
                line = level, shortened(logger), "(a message that cannot be shown)"
        if line is not None and self._allowance.take(len(line[1].encode()) + len(line[2].encode())):
            self._lines.append(line)
        else:
            self._more += 1
        self._wake.set()

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        self._told.by_logging = False
        self._shown(message, category, filename, lineno, file, line)
        # with logging.captureWarnings it has come as a record already
        if self._open and file is None and not self._told.by_logging and os.getpid() == self._pid:
            with self._guard():
                text = f"{category.__name__}: {{}} ({filename}:{lineno})"
                self._take(logging.WARNING, "warnings", lambda: text.format(message))

    def _guard(self) -> Any:
        """The handler's lock, which ``logging`` makes anew in a forked process."""
        return self.lock if self.lock is not None else threading.Lock()

    def _is_heard_elsewhere(self, record: logging.LogRecord) -> bool:
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False

    def _run(self) -> None:
        while not self._end.is_set():
            if self._wake.wait(_IDLE_SECONDS) and not self._end.wait(_SEND_SECONDS):
                self._wake.clear()
                self.flush()

    def _send(self) -> None:
        with self._sending:
            with self._guard():
                lines, self._lines = self._lines, []
                more, self._more = self._more, 0
            if (lines or more) and self._member.stopped is None and not self._member.finished:
                self._member.report("log", {"lines": lines, "more": more})


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    return text
