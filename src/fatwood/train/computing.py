"""A worker's part of an agreement before it is sent: minibatches, optimizer steps, and the vector that comes of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from fatwood.codec.vectors import Update
from fatwood.data import Batch, Lookahead, PartitionData
from fatwood.train.callback import WorkerCallbacks
from fatwood.train.clock import PhaseClock
from fatwood.train.header import Header
from fatwood.train.job import TrainingJob
from fatwood.train.local import LocalTrainer
from fatwood.train.sharing import Sharing
from fatwood.train.step import Trained

__all__ = ["Computed", "Computing"]


class Computed(NamedTuple):
    """What was computed and not sent yet."""

    header: Header
    """Without position, digest and requests, which are known when it is sent."""
    vector: Update
    learning_rate: float
    """Of the first optimizer step."""


class Computing:
    """Reads an epoch's minibatches and trains on them, up to ``every`` optimizer steps at a time.

    Args:
        job: What to train.
        local: This worker's network and optimizer.
        sharing: Makes the vector.
        callbacks: Told of every minibatch.
        clock: Told of the phases read, compute and encode.
    """

    def __init__(
        self,
        job: TrainingJob,
        local: LocalTrainer,
        sharing: Sharing,
        callbacks: WorkerCallbacks,
        clock: PhaseClock,
    ) -> None:
        self._job = job
        self._local = local
        self._sharing = sharing
        self._callbacks = callbacks
        self._clock = clock
        self._batches: Lookahead | None = None
        self.minibatches = 0
        """Trained until now."""
        self.epoch_start = time.perf_counter()
        """When the first minibatch of the epoch was asked for."""

    def forget(self) -> None:
        """Begin with the rows that :meth:`next` is told, next time."""
        self._batches = None

    def next(self, data: PartitionData, epoch: int, start: int) -> Computed:
        """Train on the next minibatches.

        Args:
            data: This worker's rows.
            epoch: To read; it goes on where it was unless it was forgotten.
            start: Rows of it to leave out where it begins.
        """
        if self._batches is None:
            self.epoch_start = time.perf_counter()
            self._batches = Lookahead(self._clock.timed("read", data.epoch(epoch, start=start)))
        self._sharing.begin()
        total, read, learning_rate = Trained(), 0, self._local.learning_rate
        for _ in range(self._job.strategy.every):
            batches = list(islice(self._batches, self._job.recipe.accumulate))
            if not batches:
                break
            with self._clock.phase("compute"):
                total = total.plus(self._step(batches))
            read += sum(len(batch) for batch in batches)
        with self._clock.phase("encode"):
            vector = self._sharing.vector()
        header = Header(
            rows=total.rows,
            loss_sum=total.loss_sum,
            more=self._batches.has_more(),
            consumed=read,
            weight=total.share,
        )
        return Computed(header, vector, learning_rate)

    def _step(self, batches: Sequence[Batch]) -> Trained:
        if self._callbacks:
            for batch in batches:
                self._callbacks.before_step(batch)
        trained = self._local.gradient(batches)
        if self._sharing.steps_alone:
            if trained.weight:
                self._local.descend()
            self._local.follow_schedule(self._local.scheduled + 1)
        self.minibatches += len(batches)
        if self._callbacks:
            loss = trained.loss_sum / trained.weight if trained.weight else 0.0
            for batch in batches:
                self._callbacks.after_step(batch, loss)
        return trained
