"""A Spark action in a thread of its own that can be called off and always ends."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from pyspark import InheritableThread, SparkContext

__all__ = ["BackgroundAction"]


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
        self.failed: BaseException | None = None
        self.finished = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self, patience_seconds: float) -> None:
        """Return when the thread has ended; cancel the action if it does not end by itself in time."""
        self._thread.join(patience_seconds if self.failed is None else 0)
        if self._thread.is_alive():
            self._context.cancelJobGroup(self._group)
            self._thread.join(patience_seconds)

    def _run(self) -> None:
        try:
            self._context.setJobGroup(self._group, self._name, interruptOnCancel=True)
            self._action()
        except BaseException as error:  # a Py4J call in an ending JVM can raise anything
            self.failed = error
        finally:
            self.finished = True
