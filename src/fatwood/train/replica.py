"""One worker's replica of the network and the loop that trains it together with the others.

The loop is the same for every strategy (:mod:`fatwood.train.strategy`)::

    epoch:
      round:  up to `every` minibatches          -> rows, loss, vector (update or gradient)
              outcome = team.play(message)       one round trip; again with the same message if a worker is lost in it
              parameters <- mean of all vectors  the same arithmetic in the same order on all workers
              ledger    <- headers               whose rows are trained, and whether the epoch is over
      until all rows of all ranks are trained

A worker that has run out of rows goes on agreeing with weight 0 until all have, so every row counts once and
nobody hangs. Its residual keeps what it has not sent. When only ranks that are missing have rows left, all wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from fatwood.codec import EncodingRecord, FlatBuffers, FlatParameters, digest64
from fatwood.data import Batch, Lookahead, PartitionData
from fatwood.errors import DivergenceError, ExchangeError, NotFiniteError, OptionError
from fatwood.exchange import Buffer, Exchange, Outcome, Team, Trainee
from fatwood.train.header import Header
from fatwood.train.job import TrainingJob
from fatwood.train.ledger import Ledger, Stage
from fatwood.train.packing import pack, unpack
from fatwood.train.recorder import RunRecorder
from fatwood.train.records import EpochRecord
from fatwood.train.reduce import DenseReducer, headers_of
from fatwood.train.stats import EncodingLog, PhaseClock, WorkerStats
from fatwood.train.step import Step, user_code

__all__ = ["EncodingCallback", "ProgressCallback", "Replica"]

ProgressCallback = Callable[[int, int, float], None]
"""Called after every agreement with the epoch, the rows all workers trained in it, and their mean loss."""

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

    Note:
        Seeds PyTorch's process-wide generator from ``job.seed`` and the rank.
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
    ) -> None:
        self._job = job
        self._team = team
        job.network.train()
        self._flat = FlatParameters(job.network)
        self._buffers = FlatBuffers(job.network)
        with user_code("optimizer"):
            self._optimizer = job.optimizer([p for p in job.network.parameters() if p.requires_grad])
        self._reducer = job.strategy.reducer(self._flat.size)
        self._step = Step(job.network, job.loss, job.on_bad_row)
        self._steps_alone = job.strategy.shares == "updates"
        self._agreed = self._flat.array.copy() if self._steps_alone else self._flat.array
        self._vector = np.zeros_like(self._flat.array)
        self._clock = PhaseClock()
        self._encoding = EncodingLog()
        self._on_encoding = on_encoding
        self._recorder = recorder or RunRecorder()
        self._minibatches = self._agreements = 0
        self._message_bytes = 0
        self._digest: int | None = None
        self._batches: Lookahead | None = None
        self._epoch_start = time.perf_counter()
        self._ledger = ledger or Ledger(
            workers=workers,
            epoch=job.first_epoch,
            end=job.first_epoch + job.epochs,
            with_buffers=self._buffers.size > 0,
        )
        self._seed_generator()
        if state is not None:
            self._load_state(state)

    @property
    def leads(self) -> bool:
        """Whether this is the worker of the lowest rank that is there."""
        return self._team.ranks[0] == self._team.rank

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
        while ledger.stage is not Stage.OVER:
            if ledger.must_wait(self._team.ranks, self._team.abandoned):
                with self._clock.phase("missing"):
                    self._wait_for_missing()
            elif ledger.stage is Stage.TRAIN:
                self._agree(self._local_round(data))
                if self.leads:
                    on_progress(*ledger.progress)
            elif ledger.stage is Stage.BUFFERS:
                self._average_buffers()
            else:
                self._compare_digests()
        return ledger.records

    def stats(self, data: PartitionData) -> WorkerStats:
        """What this worker did, after :meth:`train`."""
        rank = self._team.rank
        return WorkerStats(
            rank=rank,
            rows_trained=self._ledger.rows_trained[rank],
            rows_skipped=data.rows_skipped + self._ledger.rows_skipped[rank],
            minibatches=self._minibatches,
            agreements=self._agreements,
            message_bytes=self._message_bytes,
            bytes_sent=self._team.bytes_sent,
            digest=self.digest(),
            seconds=dict(self._clock.seconds),
            waited_seconds=dict(self._team.waited_seconds),
            encoding=self._encoding.records,
        )

    @property
    def ledger(self) -> Ledger:
        """What all workers know of the run."""
        return self._ledger

    def digest(self) -> int:
        """64-bit digest of parameters and float buffers."""
        parts = [self._flat.array.view(np.uint8), self._buffers.read().view(np.uint8)]
        return digest64(np.concatenate(parts))

    def state(self) -> dict[str, Any]:
        """All that this worker needs to go on in a later fit as if there had been no break."""
        return {
            "agreements": self._ledger.agreements,
            "optimizer": self._optimizer.state_dict(),
            "reducer": self._reducer.state(),
            "torch_generator": torch.get_rng_state(),
        }

    def run_state(self) -> dict[str, Any]:
        """All that this worker alone needs to go on within an epoch: buffers differ until its end."""
        return {**self.state(), "buffers": self._saved_buffers()}

    def shared_state(self) -> bytes:
        """What is the same on all workers after an agreement: ``network`` (a state dict) and ``ledger``, packed.

        Within an epoch the buffers in it are this worker's own.
        """
        return pack({"network": dict(self._job.network.state_dict()), "ledger": self._ledger.to_json()})

    def snapshot(self) -> bytes:
        """All that a worker which takes over a lost rank needs: parameters, buffers, optimizer, threshold, ledger."""
        return pack(
            {
                "parameters": self._agreed,
                "buffers": self._saved_buffers(),
                "optimizer": self._optimizer.state_dict(),
                "reducer": self._reducer.common_state(),
                "ledger": self._ledger.to_json(),
            }
        )

    def restore(self, snapshot: Buffer) -> None:
        """Take up another worker's :meth:`snapshot`."""
        content = unpack(bytes(snapshot))
        np.copyto(self._agreed, content["parameters"])
        np.copyto(self._flat.array, self._agreed)
        self._job.network.load_state_dict(content["buffers"], strict=False)
        self._optimizer.load_state_dict(content["optimizer"])
        self._reducer.load_common_state(content["reducer"])
        self._ledger = Ledger.from_json(content["ledger"])
        self._seed_generator(self._ledger.agreements)

    def _load_state(self, state: Mapping[str, Any]) -> None:
        try:
            self._ledger.agreements = int(state["agreements"])
            self._optimizer.load_state_dict(dict(state["optimizer"]))
            self._reducer.load_state(state["reducer"])
            torch.set_rng_state(state["torch_generator"])
            self._job.network.load_state_dict(dict(state.get("buffers", {})), strict=False)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            text = f"state of an earlier fit: it does not fit this network, optimizer and strategy ({error})"
            raise OptionError(
                text, hint="call model.reset() to begin with a fresh optimizer and residual"
            ) from error

    def _saved_buffers(self) -> dict[str, torch.Tensor]:
        """What the network saves beside its parameters, copied."""
        named = {name for name, _ in self._job.network.named_parameters(remove_duplicate=False)}
        saved = self._job.network.state_dict()
        return {name: tensor.clone() for name, tensor in saved.items() if name not in named}

    def _seed_generator(self, *more: int) -> None:
        entropy = [self._job.seed, self._team.rank, *more]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))

    def _wait_for_missing(self) -> None:
        if not self._team.wait(for_missing=True):
            text = f"rank {self._team.rank}: the job was over before the rows of missing workers were trained"
            raise ExchangeError(text)

    def _local_round(self, data: PartitionData) -> Header:
        rank, ledger = self._team.rank, self._ledger
        if self._batches is None:
            self._epoch_start = time.perf_counter()
            batches = data.epoch(ledger.epoch, start=ledger.positions[rank])
            self._batches = Lookahead(self._clock.timed("read", batches))
        self._optimizer.zero_grad(set_to_none=True)
        rows, read, loss_sum = 0, 0, 0.0
        for batch in islice(self._batches, self._job.strategy.every):
            with self._clock.phase("compute"):
                trained, loss = self._local_step(batch)
            rows += trained
            read += len(batch)
            loss_sum += loss * trained
        return Header(
            rows=rows,
            loss_sum=loss_sum,
            more=self._batches.has_more(),
            position=ledger.positions[rank],
            consumed=read,
            digest=self._digest,
            checkpoint=self.leads and self._recorder.is_due(ledger.agreements + 1),
        )

    def _local_step(self, batch: Batch) -> tuple[int, float]:
        self._optimizer.zero_grad(set_to_none=True)
        rows, loss = self._step.backward(batch)
        if rows and self._steps_alone:
            with user_code("optimizer"):
                self._optimizer.step()
        self._minibatches += 1
        return rows, loss

    def _agree(self, header: Header) -> None:
        ledger, number = self._ledger, self._ledger.agreements
        with self._clock.phase("send"):
            if self._steps_alone:
                np.subtract(self._flat.array, self._agreed, out=self._vector)
            else:
                self._vector = self._flat.gradient()
            self._prepare(number, header)
            outcome = self._team.play(lambda exchange: self._reducer.play(exchange, number))
        headers = headers_of(outcome)
        self._require_equal(
            {r: h.digest for r, h in zip(outcome.ranks, headers, strict=True) if h.digest is not None}
        )
        if any(h.rows for h in headers):
            with self._clock.phase("apply"):
                self._apply(number, outcome, headers)
        self._agreements += 1
        epoch = ledger.epoch
        seconds = time.perf_counter() - self._epoch_start
        ledger.enter(outcome.ranks, outcome.abandoned, headers, seconds)
        if ledger.epoch != epoch:
            self._batches = None
        self._digest = self._flat.digest() if ledger.agreements % self._job.digest_every == 0 else None
        if any(h.checkpoint for h in headers):
            self._keep(outcome.ranks)

    def _prepare(self, number: int, header: Header) -> None:
        if header.rows and isinstance(self._reducer, DenseReducer):  # an encoder sees it in its own pass
            self._flat.require_finite(self._vector)
        try:
            self._reducer.prepare(number, header, self._vector)
        except NotFiniteError as error:
            name = self._flat.locate(error.position)
            raise NotFiniteError(error.position, error.n, error.value, name) from None
        self._message_bytes += self._reducer.message_bytes(self._flat.size)
        if measured := self._reducer.take_records():
            self._encoding.extend(measured)
            if self._on_encoding is not None:
                self._on_encoding(measured)

    def _apply(self, number: int, outcome: Outcome, headers: Sequence[Header]) -> None:
        if self._steps_alone:
            self._reducer.add_mean(number, outcome, headers, self._agreed)
            np.copyto(self._flat.array, self._agreed)
            return
        mean = np.zeros_like(self._flat.array)
        self._reducer.add_mean(number, outcome, headers, mean)
        self._flat.set_gradient(mean)
        with user_code("optimizer"):
            self._optimizer.step()

    def _keep(self, ranks: Sequence[int]) -> None:
        with self._clock.phase("checkpoint"):
            shared = self.shared_state() if ranks[0] == self._team.rank else None
            self._recorder.keep(self._ledger.agreements, ranks, pack(self.run_state()), shared)

    def _average_buffers(self) -> None:
        values, rows = self._buffers.read(), float(self._ledger.rows[self._team.rank])

        def move(exchange: Exchange) -> Sequence[Buffer]:
            return [exchange.mean(values, rows).astype("<f4", copy=False).view(np.uint8).data]

        with self._clock.phase("send"):
            outcome = self._team.play(move)
        self._buffers.write(np.frombuffer(outcome.parts[0], "<f4"))
        self._batches = None
        self._ledger.next_stage(time.perf_counter() - self._epoch_start)

    def _compare_digests(self) -> None:
        own, number = self.digest().to_bytes(8, "little"), self._ledger.agreements
        outcome = self._team.play(lambda exchange: exchange.gather(number, own))
        self._require_equal(
            {r: int.from_bytes(part, "little") for r, part in zip(outcome.ranks, outcome.parts, strict=True)}
        )
        self._ledger.next_stage(0.0)

    def _require_equal(self, digests: Mapping[int, int]) -> None:
        if len(set(digests.values())) <= 1:
            return
        counts: dict[int, list[int]] = {}
        for rank, digest in digests.items():
            counts.setdefault(digest, []).append(rank)
        groups = "; ".join(f"{digest:016x} on ranks {ranks}" for digest, ranks in counts.items())
        number = self._ledger.agreements
        text = (
            f"agreement {number}: expected bitwise equal parameters on all workers, received digests {groups}"
        )
        raise DivergenceError(text, hint="all workers must run the same versions of torch, numpy and fatwood")
