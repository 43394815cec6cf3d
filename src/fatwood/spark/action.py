"""A Spark action in a thread of its own that can be called off and always ends."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pyspark import InheritableThread, SparkContext

__all__ = ["BackgroundAction"]

_CANCEL_SECONDS = 10.0
"""How long a cancelled action may take to end."""
_CANCEL_AGAIN_SECONDS = 0.5


class BackgroundAction:
    """Runs an action under a job group, so that it can be cancelled without touching the user's other jobs.

    Args:
        context: Of the session.
        name: Shown in Spark's user interface.
        action: Called once in the thread, for example ``frame.collect``.
    """

    def __init__(self, context: SparkContext, name: str, action: Callable[[], Any]) -> None:
        self._context = context
        self._group = f"{name}-{uuid.uuid4().hex[:8]}"
        self._name = name
        self._action = action
        self._thread = InheritableThread(self._run, name=name, daemon=True)
        self._cancelled = False
        self.failed: BaseException | None = None
        self.finished = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout_seconds: float) -> None:
        """Wait until it has ended."""
        self._thread.join(timeout_seconds)

    def end(self, patience_seconds: float) -> None:
        """Return when the thread has ended; cancel the action if it does not end by itself in time.

        Args:
            patience_seconds: How long it may take to end by itself; cancelled executors cannot clean up.
        """
        if self._thread.ident is None:
            return
        self._thread.join(patience_seconds)
        self._cancelled = True
        deadline = time.monotonic() + _CANCEL_SECONDS
        # Again and again: a job that Spark has not registered yet is not in the group, and does not hear it.
        while self._thread.is_alive() and time.monotonic() < deadline:
            with suppress(Exception):  # the session may have been stopped meanwhile
                self._context.cancelJobGroup(self._group)
            self._thread.join(_CANCEL_AGAIN_SECONDS)

    def _run(self) -> None:
        try:
            self._context.setJobGroup(self._group, self._name, interruptOnCancel=True)
            if not self._cancelled:
                self._action()
        except BaseException as error:  # a Py4J call in an ending JVM can raise anything
            self.failed = error
        finally:
            self.finished = True
