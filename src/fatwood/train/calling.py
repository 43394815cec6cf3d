"""Who calls the driver's callbacks: in order, each epoch and validation once, whatever worker tells of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from fatwood.errors import OptionError, UserCodeError
from fatwood.train.callback import Callback, RunInfo, WorkerCallback, hook
from fatwood.train.records import EpochRecord, History, StepRecord
from fatwood.train.stats import FitStats
from fatwood.train.telling import Record, in_order, place

__all__ = ["Callbacks", "split_callbacks"]

_LOG = logging.getLogger("fatwood.callbacks")
"""Gets what callbacks raise after the error that ends the fit is already known."""


class Callbacks:
    """All driver callbacks of one fit.

    Args:
        callbacks: In the order in which they are called.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = tuple(callbacks)
        self._started: list[Callback] = []
        self._last: dict[type[Record], tuple[int, ...]] = {}

    def start(self, run: RunInfo) -> None:
        """Call ``on_start``.

        Raises:
            UserCodeError: One of them raised; those after it are not called, now or later.
        """
        for callback in self._callbacks:
            self._started.append(callback)
            with hook(callback, "on_start"):
                callback.on_start(run)

    def tell(self, *parts: Iterable[Record]) -> None:
        """Tell the records that were not told yet, in the order of events.

        A worker that takes over the reports tells again what its predecessor may not have told.

        Raises:
            UserCodeError: A callback raised.
        """
        for record in in_order(*parts):
            kind, where = type(record), place(record)
            if kind not in self._last or where > self._last[kind]:
                self._last[kind] = where
                self._tell(record)

    def end(self, history: History, stats: FitStats) -> None:
        """Call ``on_end`` of all, also when one of them raises.

        Raises:
            UserCodeError: The first that one of them raised; later ones are logged.
        """
        first: UserCodeError | None = None
        for callback in self._started:
            try:
                with hook(callback, "on_end"):
                    callback.on_end(history, stats)
            except UserCodeError as error:
                if first is None:
                    first = error
                else:
                    _log(error)
        if first is not None:
            raise first

    def error(self, error: BaseException) -> None:
        """Call ``on_error`` of those that were started; what they raise is logged, and hides nothing."""
        for callback in self._started:
            try:
                with hook(callback, "on_error"):
                    callback.on_error(error)
            except UserCodeError as other:
                _log(other)

    def _tell(self, record: Record) -> None:
        for callback in self._callbacks:
            if isinstance(record, StepRecord):
                with hook(callback, "on_step"):
                    callback.on_step(record)
            elif isinstance(record, EpochRecord):
                with hook(callback, "on_epoch"):
                    callback.on_epoch(record)
            else:
                with hook(callback, "on_validation"):
                    callback.on_validation(record)


def split_callbacks(callbacks: Any) -> tuple[tuple[Callback, ...], tuple[WorkerCallback, ...]]:
    """Those of the driver and those of the workers.

    Args:
        callbacks: What the user passed.

    Raises:
        OptionError: It is no sequence, or something in it is neither or both; the message names the position.
    """
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str | bytes):
        text = f"callbacks: expected a list of callbacks, received {_named(callbacks)}"
        raise OptionError(text, hint="put it in a list: callbacks=[...]")
    for position, callback in enumerate(callbacks):
        driver, worker = isinstance(callback, Callback), isinstance(callback, WorkerCallback)
        if driver == worker:
            both = ", which is both" if driver else ""
            text = f"callbacks[{position}]: expected a Callback or a WorkerCallback, received {_named(callback)}{both}"
            is_class = isinstance(callback, type) and issubclass(callback, Callback | WorkerCallback)
            hint = "pass an instance, not the class" if is_class else None
            raise OptionError(text, hint=hint)
    return (
        tuple(callback for callback in callbacks if isinstance(callback, Callback)),
        tuple(callback for callback in callbacks if isinstance(callback, WorkerCallback)),
    )


def _named(value: object) -> str:
    return (
        f"the class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__} {value!r:.200}"
    )


def _log(error: UserCodeError) -> None:
    _LOG.warning("%s", error, exc_info=error.__cause__)
