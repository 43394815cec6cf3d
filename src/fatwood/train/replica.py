"""One worker's replica of the network and the loop that trains it together with the others.

The loop is the same for every strategy (:mod:`fatwood.train.strategy`)::

    epoch:
      round:  up to `every` optimizer steps      -> rows, loss, vector (update or gradient)
              outcome = team.play(message)       one round trip; again with the same message if a worker is lost in it
              parameters <- mean of all vectors  the same arithmetic in the same order on all workers
              ledger    <- headers               whose rows are trained, and what comes next
      until all rows of all ranks are trained
    float buffers are averaged and validation rows measured at an epoch's end, or after every so many agreements

A worker that has run out of rows goes on agreeing with weight 0 until all have, so every row counts once and
nobody hangs. Its residual keeps what it has not sent. When only ranks that are missing have rows left, all wait.

With ``staleness=1`` a round is played while the next one computes. What is computed and not sent yet is this worker's own
business: nobody counts its rows, and a checkpoint holds it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fatwood.codec import EncodingRecord, FlatBuffers, digest64
from fatwood.codec.vectors import host
from fatwood.data import PartitionData
from fatwood.errors import ExchangeError
from fatwood.exchange import Buffer, Exchange, Outcome, Team, Trainee
from fatwood.train.callback import WorkerCallbacks, WorkerContext
from fatwood.train.clock import PhaseClock
from fatwood.train.computing import Computed, Computing
from fatwood.train.device import Place
from fatwood.train.digests import require_equal_digests
from fatwood.train.encoding_log import EncodingLog
from fatwood.train.flight import Flight
from fatwood.train.header import Header
from fatwood.train.job import TrainingJob
from fatwood.train.judge import Judge
from fatwood.train.ledger import Ledger, Stage
from fatwood.train.local import LocalTrainer
from fatwood.train.packing import pack
from fatwood.train.placing import device_facts
from fatwood.train.recorder import RunRecorder
from fatwood.train.records import EpochRecord, StepRecord
from fatwood.train.reduce import headers_of
from fatwood.train.replica_state import ReplicaState
from fatwood.train.series import StepTrace
from fatwood.train.sharing import Sharing
from fatwood.train.trace import Trace
from fatwood.train.validating import measured, validation_record
from fatwood.train.worker_stats import WorkerStats

__all__ = ["EncodingCallback", "ProgressCallback", "Replica"]

ProgressCallback = Callable[[StepRecord, Ledger], None]
"""Called after every agreement, on the worker of the lowest rank."""

EncodingCallback = Callable[[Sequence[EncodingRecord]], None]
"""Called with what ``encoding_debug`` measured of this worker's last message."""


class Replica(Trainee):
    """Trains ``job.network`` in place, in step with the other workers of a team that has started.

    Args:
        job: The same on all workers; the network is this worker's own copy.
        team: As this worker sees it.
        workers: How many ranks the job has.
        state: What :meth:`state` or :meth:`run_state` of this rank gave, to go on from there.
        ledger: Of a run that was broken off, to go on from there.
        on_encoding: Told of every message, where the strategy measures them.
        recorder: Asked when to keep the run's state, and given it.
        trace: Told when this worker does what.
        place: Where it computes; the network and the loss are brought there.
        between_steps: Called after every agreement, when nobody waits for this worker.

    Note:
        Seeds the process-wide generators of PyTorch, NumPy and Python from ``job.seed`` and the rank.
    """

    def __init__(
        self,
        job: TrainingJob,
        team: Team,
        *,
        workers: int,
        state: Mapping[str, Any] | None = None,
        ledger: Ledger | None = None,
        on_encoding: EncodingCallback | None = None,
        recorder: RunRecorder | None = None,
        trace: Trace | None = None,
        place: Place | None = None,
        between_steps: Callable[[], None] = lambda: None,
    ) -> None:
        self._job = job
        self._team = team
        self._place = place or Place(device=None)
        device = self._place.device
        self._between_steps = between_steps
        job.network.train()
        self._local = LocalTrainer(
            job.network, job.loss, job.recipe, on_bad_row=job.on_bad_row, weighted=job.weighted, device=device
        )
        self._buffers = FlatBuffers(job.network)
        self._sharing = Sharing(job.strategy, self._local, job.recipe)
        self._clock = PhaseClock(trace)
        self._encoding = EncodingLog()
        self._on_encoding = on_encoding
        self._recorder = recorder or RunRecorder()
        context = WorkerContext(
            rank=team.rank, workers=workers, network=job.network, optimizer=self._local.optimizer
        )
        self._callbacks = WorkerCallbacks(job.callbacks, context)
        self._computing = Computing(job, self._local, self._sharing, self._callbacks, self._clock)
        self._agreements = self._message_bytes = self._last_bytes = 0
        self._digest: int | None = None
        self._ahead: Computed | None = None
        self._busy = threading.Lock()  # a snapshot is taken by the thread that plays a round meanwhile
        self._step_end = time.perf_counter()
        self._ledger = ledger or Ledger(
            workers=workers,
            epoch=job.first_epoch,
            end=job.first_epoch + job.epochs,
            with_buffers=self._buffers.size > 0,
            with_validation=job.with_validation,
            validate_every=job.validate_every,
        )
        self._judge = Judge(job.early_stopping, self._sharing.agreed, self._buffers)
        self._state = ReplicaState(job, self._local, self._sharing, self._judge.best, team.rank)
        self._state.seed()
        if state is not None:
            ahead = self._state.load(state, self._ledger)
            self._ahead = None if ahead is None else Computed(*ahead)

    @property
    def leads(self) -> bool:
        """Whether this is the worker of the lowest rank that is there."""
        return self._team.ranks[0] == self._team.rank

    @property
    def ledger(self) -> Ledger:
        """What all workers know of the run."""
        return self._ledger

    def train(self, data: PartitionData, on_progress: ProgressCallback) -> list[EpochRecord]:
        """Train all epochs of the job on this worker's rows.

        Args:
            data: This worker's rows.
            on_progress: Called on the worker of the lowest rank only.

        Returns:
            One record per epoch, over all workers.

        Raises:
            DivergenceError: Replicas are not bitwise equal.
            NotFiniteError: This worker's update has a NaN or an infinity; nothing of it was sent.
            ExchangeError: The job was stopped, or a worker was lost that cannot be done without.
        """
        ledger = self._ledger
        self._judge.start(ledger)
        self._callbacks.on_start()
        with ExitStack() as stack:
            flight = stack.enter_context(Flight()) if self._job.strategy.staleness else None
            while ledger.stage is not Stage.OVER:
                if ledger.must_wait(self._team.ranks, self._team.abandoned):
                    with self._clock.phase("missing"):
                        self._wait_for_missing()
                elif ledger.stage is Stage.TRAIN:
                    self._round(data, flight, on_progress)
                elif ledger.stage is Stage.BUFFERS:
                    self._average_buffers()
                elif ledger.stage is Stage.VALIDATE:
                    self._validate(data)
                else:
                    self._judge.best.put_back()
                    self._sharing.return_to_agreed()
                    self._compare_digests()
        self._callbacks.on_end()
        return ledger.records

    def stats(self, data: PartitionData) -> WorkerStats:
        """What this worker did, after :meth:`train`."""
        rank = self._team.rank
        return WorkerStats(
            rank=rank,
            rows_trained=self._ledger.rows_trained[rank],
            rows_skipped=data.rows_skipped + self._ledger.rows_skipped[rank],
            minibatches=self._computing.minibatches,
            agreements=self._agreements,
            message_bytes=self._message_bytes,
            bytes_sent=self._team.bytes_sent,
            digest=self.digest(),
            seconds=dict(self._clock.seconds),
            waited_seconds=dict(self._team.waited_seconds),
            encoding=self._encoding.records,
            device=device_facts(self._place, self._job.recipe.precision),
        )

    def digest(self) -> int:
        """64-bit digest of parameters and float buffers."""
        parts = [host(self._local.flat.values).view(np.uint8), self._buffers.read().view(np.uint8)]
        return digest64(np.concatenate(parts))

    def state(self) -> dict[str, Any]:
        """All that this worker needs to go on in a later fit as if there had been no break."""
        return self._state.own(self._ledger)

    def run_state(self) -> dict[str, Any]:
        """All that this worker alone needs to go on within an epoch: buffers differ until its end."""
        return self._state.of_run(self._ledger, self._ahead)

    def shared_state(self) -> bytes:
        """What is the same on all workers after an agreement: ``network`` (a state dict) and ``ledger``, packed.

        Within an epoch the buffers in it are this worker's own.
        """
        return self._state.shared(self._ledger)

    def snapshot(self) -> bytes:
        """All that a worker which takes over a lost rank needs: parameters, buffers, optimizer, threshold, ledger."""
        with self._busy:
            return self._state.snapshot(self._ledger)

    def restore(self, snapshot: Buffer) -> None:
        """Take up another worker's :meth:`snapshot`."""
        self._ledger = self._state.restore(snapshot)

    def _wait_for_missing(self) -> None:
        if not self._team.wait(for_missing=True):
            text = f"rank {self._team.rank}: the job was over before the rows of missing workers were trained"
            raise ExchangeError(text)

    def _round(self, data: PartitionData, flight: Flight | None, on_progress: ProgressCallback) -> None:
        number = self._ledger.agreements
        computed, self._ahead = self._ahead or self._compute(data, 0), None
        header = self._prepare(number, computed)
        play = partial(self._play, lambda exchange: self._sharing.play(exchange, number))
        goes_on = header.more and not header.stop and not header.not_finite
        if flight is None or not goes_on or self._ledger.validates_after(number + 1):
            outcome = play()
        else:
            outcome = flight.during(play, partial(self._compute_ahead, data, header.consumed))
        record = self._enter(number, header, outcome, computed.learning_rate)
        if self.leads:
            on_progress(record, self._ledger)
        self._between_steps()

    def _compute_ahead(self, data: PartitionData, ahead: int) -> None:
        with self._busy:
            self._sharing.return_to_agreed()
            self._ahead = self._compute(data, ahead)

    def _compute(self, data: PartitionData, ahead: int) -> Computed:
        """The next minibatches; `ahead` rows of the epoch are read and not in the ledger yet."""
        ledger = self._ledger
        return self._computing.next(data, ledger.epoch, ledger.positions[self._team.rank] + ahead)

    def _forget_ahead(self) -> None:
        self._ahead = None
        self._computing.forget()

    def _prepare(self, number: int, computed: Computed) -> Header:
        vector = computed.vector
        header = computed.header._replace(
            position=self._ledger.positions[self._team.rank],
            digest=self._digest,
            checkpoint=self.leads and self._recorder.is_due(number + 1),
            stop=self.leads and self._judge.time_is_over(),
        )
        if self._judge.refuses(header, vector):  # its rows are not trained, and all stop
            header = header._replace(rows=0, weight=None, loss_sum=0.0, consumed=0, not_finite=True)
        with self._clock.phase("encode"):
            self._last_bytes = self._sharing.prepare(number, header, vector)
        self._message_bytes += self._last_bytes
        if measured_now := self._sharing.records():
            self._encoding.extend(measured_now)
            if self._on_encoding is not None:
                self._on_encoding(measured_now)
        return header

    def _play(self, move: Callable[[Exchange], Sequence[Buffer]]) -> Outcome:
        with self._clock.phase("exchange"):
            return self._team.play(move)

    def _enter(self, number: int, own: Header, outcome: Outcome, learning_rate: float) -> StepRecord:
        ledger, headers = self._ledger, headers_of(outcome)
        digests = zip(outcome.ranks, headers, strict=True)
        require_equal_digests({r: h.digest for r, h in digests if h.digest is not None}, number)
        trained = any(h.share for h in headers)
        if trained:
            with self._clock.phase("apply"):
                self._sharing.apply(number, outcome, headers)
        else:
            self._sharing.return_to_agreed()
        self._agreements += 1
        epochs = len(ledger.records)
        record = ledger.enter(
            outcome.ranks,
            outcome.abandoned,
            headers,
            steps=self._optimizer_steps(headers),
            seconds=time.perf_counter() - self._computing.epoch_start,
        )
        record = replace(record, learning_rate=learning_rate)
        self._local.follow_schedule(ledger.steps)
        if ledger.stopped is not None:
            self._forget_ahead()
        self._digest = self._local.flat.digest() if ledger.agreements % self._job.digest_every == 0 else None
        self._trace(own, record)
        self._close_epoch(epochs)
        if any(h.checkpoint for h in headers):
            self._keep(outcome.ranks)
        if self._callbacks:
            self._callbacks.after_agreement(record)
        return record

    def _optimizer_steps(self, headers: Sequence[Header]) -> int:
        """Of the worker that made the most since the last agreement."""
        if not self._sharing.steps_alone:
            return int(any(h.share for h in headers))
        rows = self._job.batch_size * self._job.recipe.accumulate
        return max(-(-h.consumed // rows) for h in headers)

    def _trace(self, own: Header, record: StepRecord) -> None:
        now = time.perf_counter()
        if self._clock.trace is not None:
            sparsity = self._sharing.sparsity
            step = StepTrace(
                step=record.step,
                epoch=record.epoch,
                rows=own.rows,
                loss=own.loss_sum / own.share if own.share else float("nan"),
                message_bytes=self._last_bytes,
                tau=None if sparsity is None else sparsity.tau,
                density=None if sparsity is None else sparsity.density,
                seconds=now - self._step_end,
            )
            self._clock.step(step)
        self._step_end = now

    def _close_epoch(self, epochs: int) -> None:
        """What follows when the ledger has closed an epoch, of which there were `epochs` before."""
        ledger = self._ledger
        if len(ledger.records) == epochs:
            return
        self._computing.forget()
        self._local.end_epoch(ledger.records[-1])
        self._judge.epoch(ledger)

    def _keep(self, ranks: Sequence[int]) -> None:
        with self._clock.phase("checkpoint"):
            shared = self.shared_state() if ranks[0] == self._team.rank else None
            self._recorder.keep(self._ledger.agreements, ranks, pack(self.run_state()), shared)

    def _average_buffers(self) -> None:
        ledger = self._ledger
        values, epochs = self._buffers.read(), len(ledger.records)
        # a forward pass whose update was refused may have spoilt them
        usable = bool(np.isfinite(values).all())
        rows = float(ledger.rows[self._team.rank]) if usable else 0.0

        def move(exchange: Exchange) -> Sequence[Buffer]:
            return [exchange.mean(values, rows).astype("<f4", copy=False).view(np.uint8).data]

        outcome = self._play(move)
        self._buffers.write(np.frombuffer(outcome.parts[0], "<f4"))
        ledger.enter_buffers(time.perf_counter() - self._computing.epoch_start)
        self._close_epoch(epochs)

    def _validate(self, data: PartitionData) -> None:
        ledger, number = self._ledger, self._ledger.agreements
        with self._clock.phase("validate"):
            own = measured(self._local.step, data.validation())
        outcome = self._play(lambda exchange: exchange.gather(number, own))
        if ledger.lacks(outcome.ranks, outcome.abandoned):
            return  # a worker was lost in it: all wait for its successor and validate again
        record = validation_record(number, ledger.epoch, outcome.ranks, outcome.parts)
        epochs, seconds = len(ledger.records), time.perf_counter() - self._computing.epoch_start
        self._judge.validation(record, ledger, seconds)
        self._close_epoch(epochs)
        if ledger.stopped is not None:
            self._forget_ahead()

    def _compare_digests(self) -> None:
        own, number = self.digest().to_bytes(8, "little"), self._ledger.agreements
        outcome = self._team.play(lambda exchange: exchange.gather(number, own))
        digests = zip(outcome.ranks, outcome.parts, strict=True)
        require_equal_digests({r: int.from_bytes(part, "little") for r, part in digests}, number)
        self._ledger.enter_digests()
