"""One worker's replica of the network and the loop that trains it together with the others.

The loop is the same for every strategy (:mod:`fatwood.train.strategy`)::

    epoch:
      round:  up to `every` minibatches          -> rows, loss, vector (update or gradient)
              headers = send(vector)             one round trip
              parameters <- mean of all vectors  the same arithmetic in the same order on all workers
      until no worker has more minibatches

A worker that has run out of rows goes on agreeing with weight 0 until all have, so every row counts once and
nobody hangs. Its residual keeps what it has not sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from fatwood.codec import EncodingRecord, FlatBuffers, FlatParameters, digest64
from fatwood.data import Batch, PartitionData
from fatwood.errors import DivergenceError, NotFiniteError, OptionError
from fatwood.exchange import Exchange
from fatwood.train.header import Header
from fatwood.train.job import TrainingJob
from fatwood.train.reduce import DenseReducer
from fatwood.train.stats import EncodingLog, EpochRecord, PhaseClock, WorkerStats, epoch_record
from fatwood.train.step import Step, user_code

__all__ = ["EncodingCallback", "ProgressCallback", "Replica"]

ProgressCallback = Callable[[int, int, float], None]
"""Called after every agreement with the epoch, the rows all workers trained in it, and their mean loss."""

EncodingCallback = Callable[[Sequence[EncodingRecord]], None]
"""Called with what ``encoding_debug`` measured of this worker's last message."""


class Replica:
    """Trains ``job.network`` in place, in step with the other workers of ``exchange``.

    Args:
        job: The same on all workers; the network is this worker's own copy.
        exchange: This worker's end.
        state: What :meth:`state` of this rank gave at the end of an earlier fit, to go on from there.
        on_encoding: Told of every message, where the strategy measures them.

    Note:
        Seeds PyTorch's process-wide generator from ``job.seed`` and the rank.
    """

    def __init__(
        self,
        job: TrainingJob,
        exchange: Exchange,
        state: Mapping[str, Any] | None = None,
        on_encoding: EncodingCallback | None = None,
    ) -> None:
        self._job = job
        self._exchange = exchange
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
        self._agreements_before = self._agreements = 0
        self._minibatches = 0
        self._message_bytes = 0
        self._digest = 0
        torch.manual_seed(
            int(np.random.SeedSequence([job.seed, exchange.rank]).generate_state(1, np.uint64)[0])
        )
        if state is not None:
            self._load_state(state)

    def train(self, data: PartitionData, on_progress: ProgressCallback) -> list[EpochRecord]:
        """Train all epochs of the job on this worker's rows.

        Returns:
            One record per epoch, over all workers.

        Raises:
            DivergenceError: Replicas are not bitwise equal.
            NotFiniteError: This worker's update has a NaN or an infinity; nothing of it was sent.
        """
        first = self._job.first_epoch
        records = [self._train_epoch(e, data, on_progress) for e in range(first, first + self._job.epochs)]
        digests = self._exchange.gather(self._agreements, self.digest().to_bytes(8, "little"))
        self._require_equal([int.from_bytes(digest, "little") for digest in digests])
        return records

    def stats(self, data: PartitionData, records: Sequence[EpochRecord]) -> WorkerStats:
        """What this worker did, after :meth:`train`."""
        rank = self._exchange.rank
        return WorkerStats(
            rank=rank,
            rows_trained=sum(record.rows_of_worker[rank] for record in records),
            rows_skipped=data.rows_skipped + len(self._step.rows_skipped),
            minibatches=self._minibatches,
            agreements=self._agreements - self._agreements_before,
            message_bytes=self._message_bytes,
            bytes_sent=self._exchange.bytes_sent,
            digest=self.digest(),
            seconds=dict(self._clock.seconds),
            encoding=self._encoding.records,
        )

    def digest(self) -> int:
        """64-bit digest of parameters and float buffers."""
        parts = [self._flat.array.view(np.uint8), self._buffers.read().view(np.uint8)]
        return digest64(np.concatenate(parts))

    def state(self) -> dict[str, Any]:
        """All that this worker needs to go on in a later fit as if there had been no break."""
        return {
            "agreements": self._agreements,
            "optimizer": self._optimizer.state_dict(),
            "reducer": self._reducer.state(),
            "torch_generator": torch.get_rng_state(),
        }

    def _load_state(self, state: Mapping[str, Any]) -> None:
        try:
            self._agreements_before = self._agreements = int(state["agreements"])
            self._optimizer.load_state_dict(dict(state["optimizer"]))
            self._reducer.load_state(state["reducer"])
            torch.set_rng_state(state["torch_generator"])
        except (KeyError, ValueError, TypeError) as error:
            text = f"state of an earlier fit: it does not fit this network, optimizer and strategy ({error})"
            raise OptionError(
                text, hint="call model.reset() to begin with a fresh optimizer and residual"
            ) from error

    def _train_epoch(self, epoch: int, data: PartitionData, on_progress: ProgressCallback) -> EpochRecord:
        start = time.perf_counter()
        rows = [0] * self._exchange.size
        loss_sum = 0.0
        batches = _Lookahead(self._clock.timed("read", data.epoch(epoch)))
        more = True
        while more:
            headers = self._agree(self._local_round(batches))
            rows = [sum(pair) for pair in zip(rows, (header.rows for header in headers), strict=True)]
            loss_sum += sum(header.loss_sum for header in headers)
            on_progress(epoch, sum(rows), loss_sum / max(1, sum(rows)))
            more = any(header.more for header in headers)
        if self._buffers.size:
            mean = self._exchange.mean(self._buffers.read(), float(rows[self._exchange.rank]))
            self._buffers.write(mean)
        return epoch_record(epoch, rows, loss_sum, time.perf_counter() - start)

    def _local_round(self, batches: _Lookahead) -> Header:
        self._optimizer.zero_grad(set_to_none=True)
        rows, loss_sum = 0, 0.0
        for batch in islice(batches, self._job.strategy.every):
            with self._clock.phase("compute"):
                trained, loss = self._local_step(batch)
            rows += trained
            loss_sum += loss * trained
        return Header(rows, loss_sum, self._digest, batches.has_more())

    def _local_step(self, batch: Batch) -> tuple[int, float]:
        self._optimizer.zero_grad(set_to_none=True)
        rows, loss = self._step.backward(batch)
        if rows and self._steps_alone:
            with user_code("optimizer"):
                self._optimizer.step()
        self._minibatches += 1
        return rows, loss

    def _agree(self, header: Header) -> list[Header]:
        with self._clock.phase("send"):
            if self._steps_alone:
                np.subtract(self._flat.array, self._agreed, out=self._vector)
            else:
                self._vector = self._flat.gradient()
            headers = self._send(header)
            self._message_bytes += self._reducer.message_bytes(self._flat.size)
        self._require_equal([h.digest for h in headers])
        if any(h.rows for h in headers):
            with self._clock.phase("apply"):
                self._apply(headers)
        self._agreements += 1
        due = self._agreements % self._job.digest_every == 0
        self._digest = self._flat.digest() if due else 0
        return headers

    def _send(self, header: Header) -> list[Header]:
        if header.rows and isinstance(self._reducer, DenseReducer):  # an encoder sees it in its own pass
            self._flat.require_finite(self._vector)
        try:
            headers = self._reducer.send(self._exchange, self._agreements, header, self._vector)
        except NotFiniteError as error:
            name = self._flat.locate(error.position)
            raise NotFiniteError(error.position, error.n, error.value, name) from None
        if measured := self._reducer.take_records():
            self._encoding.extend(measured)
            if self._on_encoding is not None:
                self._on_encoding(measured)
        return headers

    def _apply(self, headers: Sequence[Header]) -> None:
        if self._steps_alone:
            self._reducer.add_mean(self._exchange, self._agreements, headers, self._agreed)
            np.copyto(self._flat.array, self._agreed)
            return
        mean = np.zeros_like(self._flat.array)
        self._reducer.add_mean(self._exchange, self._agreements, headers, mean)
        self._flat.set_gradient(mean)
        with user_code("optimizer"):
            self._optimizer.step()

    def _require_equal(self, digests: Sequence[int]) -> None:
        if len(set(digests)) == 1:
            return
        counts: dict[int, list[int]] = {}
        for rank, digest in enumerate(digests):
            counts.setdefault(digest, []).append(rank)
        groups = "; ".join(f"{digest:016x} on ranks {ranks}" for digest, ranks in counts.items())
        text = f"agreement {self._agreements}: expected bitwise equal parameters on all workers, received digests {groups}"
        raise DivergenceError(text, hint="all workers must run the same versions of torch, numpy and fatwood")


class _Lookahead(Iterator[Batch]):
    """Minibatches, with the next one read ahead, so that a worker can say with a message that it was its last."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._next: Batch | None = next(batches, None)

    def has_more(self) -> bool:
        """Whether another minibatch will come."""
        return self._next is not None

    def __next__(self) -> Batch:
        if self._next is None:
            raise StopIteration
        current, self._next = self._next, next(self._batches, None)
        return current
