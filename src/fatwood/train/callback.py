"""What a user can hang into a fit: a `Callback` on the driver, a `WorkerCallback` on every worker.

::

    driver   on_start ─ on_step ... on_validation ... on_epoch ... ─ on_end | on_error
    worker   on_start ─ (before_step ─ after_step) x minibatches ─ after_agreement ... ─ on_end
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fatwood.errors import FatwoodError, UserCodeError

if TYPE_CHECKING:
    from fatwood.data import Batch
    from fatwood.train.records import EpochRecord, History, StepRecord, ValidationRecord
    from fatwood.train.stats import FitStats

__all__ = ["Callback", "RunInfo", "WorkerCallback", "WorkerCallbacks", "WorkerContext", "hook"]


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a fit is about, as far as it is known when its workers are started."""

    workers: int
    epochs: int
    """Of this fit."""
    first_epoch: int
    """Its number, counted from 0 over the model's whole life."""
    rows: int
    """Of the DataFrame."""
    batch_size: int
    """Rows of a minibatch, per worker."""
    parameters: int
    """Trainable parameters."""
    strategy: str
    """As it prints."""
    options: Mapping[str, Any]
    """What :meth:`fatwood.SparkModel.fit` and the model were given, as JSON values; loss and optimizer by name."""
    network: torch.nn.Module = field(repr=False, compare=False)
    """The model's own, on the driver: it has the trained parameters in ``on_end`` and not before."""


class Callback:
    """Hears of a fit on the driver. Derive from it and override what you need; every hook here does nothing.

    All hooks are called on the thread that called ``fit``, one after the other, in the order of events; every epoch and
    every validation is told exactly once. After ``on_start`` there is exactly one ``on_end`` or ``on_error``. An error in
    a hook ends the fit. While a hook runs, workers train on, but lost ones are not replaced: keep hooks short.

    Example::

        class Print(Callback):
            def on_epoch(self, record):
                print(record)

        model.fit(df, features="x", label="y", callbacks=[Print()])
    """

    def on_start(self, run: RunInfo) -> None:
        """Rows are counted and options checked; the workers are about to be started."""

    def on_step(self, record: StepRecord) -> None:
        """All workers have agreed once more. Above 1,000 agreements a second some are left out, evenly."""

    def on_validation(self, record: ValidationRecord) -> None:
        """The network was validated, by all workers together."""

    def on_epoch(self, record: EpochRecord) -> None:
        """An epoch is over, its validation included."""

    def on_end(self, history: History, stats: FitStats) -> None:
        """The fit has succeeded, and the network has its new parameters."""

    def on_error(self, error: BaseException) -> None:
        """The fit has failed or was interrupted; ``fit`` raises this error."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WorkerContext:
    """The worker that a `WorkerCallback` runs in."""

    rank: int
    workers: int
    """Ranks of the job, lost ones included."""
    network: torch.nn.Module
    """This worker's own replica, in training mode."""
    optimizer: torch.optim.Optimizer
    """This worker's own."""


class WorkerCallback:
    """Runs in the training thread of every worker. Derive from it and override what you need; every hook does nothing.

    It travels to the workers by cloudpickle, as the loss does: each has a copy, and what a copy collects stays there.
    A process that takes over a lost worker's rank begins with a copy as it was sent. An error in a hook ends the fit.
    """

    def on_start(self, worker: WorkerContext) -> None:
        """The replica is ready, and no minibatch of this process is trained yet."""

    def before_step(self, worker: WorkerContext, batch: Batch) -> None:
        """A minibatch is about to go through the network."""

    def after_step(self, worker: WorkerContext, batch: Batch, loss: float) -> None:
        """A minibatch is trained.

        Gradients are as the optimizer saw them. Where workers share gradients, the optimizer steps with the agreement.

        Args:
            worker: This one.
            batch: The minibatch.
            loss: The mean loss of the optimizer step that it belongs to; 0 where no row of it could be used.
        """

    def after_agreement(self, worker: WorkerContext, record: StepRecord) -> None:
        """Parameters are equal on all workers again.

        What is done to them here must be the same on all workers; else replicas differ, which is an error.
        """

    def on_end(self, worker: WorkerContext) -> None:
        """All is trained. Not called when the fit fails."""


@contextmanager
def hook(callback: object, name: str) -> Iterator[None]:
    """Raise what a hook of the user's raises as :class:`UserCodeError` that names class and hook."""
    try:
        yield
    except Exception as error:
        message, hint = (error.message, error.hint) if isinstance(error, FatwoodError) else (error, None)
        text = f"{type(error).__name__}: {message}\nraised by the callback {type(callback).__name__}.{name}"
        raise UserCodeError(text, hint=hint) from error


class WorkerCallbacks:
    """All worker callbacks of a job on one worker; false, and without cost, when there are none.

    Args:
        callbacks: In the order in which they are called.
        context: What every hook is given.
    """

    def __init__(self, callbacks: Sequence[WorkerCallback], context: WorkerContext) -> None:
        self._callbacks = tuple(callbacks)
        self._context = context

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def on_start(self) -> None:
        """Before the first minibatch of this process."""
        for callback in self._callbacks:
            with hook(callback, "on_start"):
                callback.on_start(self._context)

    def before_step(self, batch: Batch) -> None:
        """Before a minibatch goes through the network."""
        for callback in self._callbacks:
            with hook(callback, "before_step"):
                callback.before_step(self._context, batch)

    def after_step(self, batch: Batch, loss: float) -> None:
        """After a minibatch, and after the optimizer's step where there was one."""
        for callback in self._callbacks:
            with hook(callback, "after_step"):
                callback.after_step(self._context, batch, loss)

    def after_agreement(self, record: StepRecord) -> None:
        """When an agreement is applied and entered in the ledger."""
        for callback in self._callbacks:
            with hook(callback, "after_agreement"):
                callback.after_agreement(self._context, record)

    def on_end(self) -> None:
        """After the last round."""
        for callback in self._callbacks:
            with hook(callback, "on_end"):
                callback.on_end(self._context)
