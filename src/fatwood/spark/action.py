"""Spark actions in threads of their own that can be called off and always end."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from pyspark import InheritableThread, SparkContext

__all__ = ["BackgroundAction", "end_actions"]

_CANCEL_SECONDS = 10.0
"""How long cancelled actions may take to end."""
_CANCEL_AGAIN_SECONDS = 0.2
_LAST_BREATH_SECONDS = 10.0
"""Of a thread that has nothing more to do."""


class BackgroundAction:
    """Runs an action under a job group, so that it can be cancelled without touching the user's other jobs.

    Args:
        context: Of the session.
        name: Shown in Spark's user interface.
        action: Called once in the thread, for example ``frame.collect``.
        on_end: Called last in the thread, when `finished`.

    Attributes:
        cancelled: Whether it was told to end.
        failed: What the action raised.
    """

    def __init__(
        self,
        context: SparkContext,
        name: str,
        action: Callable[[], Any],
        on_end: Callable[[BackgroundAction], None] | None = None,
    ) -> None:
        self._context = context
        self._group = f"{name}-{uuid.uuid4().hex[:8]}"
        self._name = name
        self._action = action
        self._on_end = on_end
        self._thread = _Thread(self._act, self._over, name)
        self.cancelled = False
        self.failed: BaseException | None = None
        # Not Thread.join and is_alive: in Python 3.11 a Ctrl-C in join() makes a running thread look dead.
        self._finished = threading.Event()

    @property
    def finished(self) -> bool:
        """Whether it has ended, as it should or not."""
        return self._finished.is_set()

    @property
    def is_alive(self) -> bool:
        """Whether it has begun and not ended."""
        return self._thread.ident is not None and not self.finished

    def start(self) -> None:
        """Begin, with the caller's scheduler pool and other properties of its jobs; once."""
        self._thread.start()

    def join(self, timeout_seconds: float) -> None:
        """Wait until it has ended; not at all if it has not begun."""
        if self._thread.ident is not None and self._finished.wait(timeout_seconds):
            self._thread.join(_LAST_BREATH_SECONDS)

    def cancel(self) -> None:
        """Tell it to end, and return at once.

        A job that Spark has not registered yet does not hear it: say it again while the action is alive.
        """
        self.cancelled = True
        with suppress(Exception):  # the session may have been stopped meanwhile
            self._context.cancelJobGroup(self._group)

    def end(self, patience_seconds: float) -> None:
        """Return when the thread has ended; cancel the action if it does not end by itself in time.

        Args:
            patience_seconds: How long it may take to end by itself; cancelled executors cannot clean up.
        """
        end_actions([self], patience_seconds)

    def _act(self) -> None:
        self._context.setJobGroup(self._group, self._name, interruptOnCancel=True)
        if not self.cancelled:
            self._action()

    def _over(self, error: BaseException | None) -> None:
        self.failed = error
        self._finished.set()
        if self._on_end is not None:
            self._on_end(self)


class _Thread(InheritableThread):
    """Says how it ended, also when Spark's own preparation of the thread failed."""

    def __init__(
        self, target: Callable[[], None], on_end: Callable[[BaseException | None], None], name: str
    ) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self._on_end = on_end

    def run(self) -> None:
        failed: BaseException | None = None
        try:
            super().run()
        except BaseException as error:  # a Py4J call in an ending JVM can raise anything
            failed = error
        self._on_end(failed)


def end_actions(actions: Collection[BackgroundAction], patience_seconds: float) -> None:
    """Return when the threads of all have ended; cancel those that do not end by themselves in time.

    Actions that have not begun never will. An action whose start was interrupted either never begins or is seen here.

    Args:
        actions: Cancelled together: many take no longer than one.
        patience_seconds: How long they may take to end by themselves.
    """
    try:
        _join(actions, patience_seconds)
    finally:  # also when an impatient user interrupts the wait
        for action in actions:
            action.cancelled = True
        deadline = time.monotonic() + _CANCEL_SECONDS
        while (alive := [action for action in actions if action.is_alive]) and time.monotonic() < deadline:
            for action in alive:
                action.cancel()
            _join(alive, _CANCEL_AGAIN_SECONDS)


def _join(actions: Collection[BackgroundAction], timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    for action in actions:
        action.join(max(0.0, deadline - time.monotonic()))
