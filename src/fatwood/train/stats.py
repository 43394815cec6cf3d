"""What a fit did, by count: per epoch, per worker, and in all."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fatwood.codec import EncodingRecord, findings

__all__ = [
    "EncodingLog",
    "FitStats",
    "Incident",
    "PhaseClock",
    "WorkerStats",
]

T = TypeVar("T")

_ENCODING_RECORDS = 1000
"""At most so many of a worker are kept: half a megabyte on their way to the driver, in a frame of at most one."""


@dataclass(frozen=True, kw_only=True)
class WorkerStats:
    """What one worker did in one fit."""

    rank: int
    rows_trained: int
    """Counted once per epoch."""
    rows_skipped: int
    """Bad rows left out, counted once each."""
    minibatches: int
    agreements: int
    message_bytes: int
    """Size of this worker's messages, headers included; what it sent of them to each peer is up to the exchange."""
    bytes_sent: int
    """Bytes this worker put on the network, all peers and all framing included."""
    digest: int
    """64-bit digest of parameters and float buffers at the end."""
    seconds: Mapping[str, float]
    """Wall seconds by phase: read, compute, send (encode and exchange), apply; missing (waiting for lost workers to come
    back) and checkpoint where there were any."""
    waited_seconds: Mapping[int, float] = field(default_factory=dict)
    """Wall seconds spent waiting in exchanges, by the rank whose message came last; part of send."""
    encoding: tuple[EncodingRecord, ...] = ()
    """With ``encoding_debug``, what was measured of every message; of a long run every second, fourth, ... of them,
    see :class:`EncodingLog`."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        encoding = [record.to_json() for record in self.encoding]
        waited = {str(rank): seconds for rank, seconds in self.waited_seconds.items()}
        return {**vars(self), "seconds": dict(self.seconds), "waited_seconds": waited, "encoding": encoding}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> WorkerStats:
        """From the values of :meth:`to_json`."""
        encoding = tuple(EncodingRecord.from_json(record) for record in values["encoding"])
        waited = {int(rank): float(seconds) for rank, seconds in values["waited_seconds"].items()}
        return cls(**{**values, "encoding": encoding, "waited_seconds": waited})


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Something that happened to a worker during a fit."""

    seconds: float
    """Since the training job began."""
    kind: str
    """``"lost"``; ``"rejoined"``: another process has taken its place and its state; ``"spare"``: a second process waits
    beside a living one; ``"held"``: too few workers; ``"abandoned"``: the others went on without this worker's rows."""
    rank: int | None
    """Of the worker; None where it is about all."""
    text: str

    def __str__(self) -> str:
        return f"{self.seconds:8.1f} s  {self.text}"


@dataclass(frozen=True, kw_only=True)
class FitStats:
    """What a fit did in all."""

    workers: tuple[WorkerStats, ...]
    """Those that were there at the end; of a worker that was replaced, what its last process did."""
    rows_trained: int
    """Rows trained by all workers in all epochs, those of lost workers included; no row of a dropped message."""
    rows_expected: int
    """Rows of the DataFrame times epochs, counted before the job."""
    rows_lost: int = 0
    """Rows that no agreement counted: rows of workers that were lost and did not come back in time. Bad rows that were
    skipped are not among them."""
    rows_trained_twice: int = 0
    """Rows that two agreements of one epoch counted."""
    incidents: tuple[Incident, ...] = ()
    """What happened to workers, in order."""
    checkpoints: int = 0
    """Checkpoints that were written."""
    parameters: int
    """Trainable parameters."""
    seconds: float
    """Wall seconds on the driver, from the first Spark job to the last."""

    @property
    def workers_lost(self) -> int:
        """How often a worker was lost; what it held back as a residual is lost with it."""
        return sum(incident.kind == "lost" for incident in self.incidents)

    @property
    def rejoined(self) -> int:
        """How often another process took a lost worker's place."""
        return sum(incident.kind == "rejoined" for incident in self.incidents)

    @property
    def rows_skipped(self) -> int:
        """Bad rows left out by all workers."""
        return sum(worker.rows_skipped for worker in self.workers)

    @property
    def bytes_per_step(self) -> float:
        """Mean bytes of one worker's message at one agreement, headers included."""
        agreements = sum(worker.agreements for worker in self.workers)
        return sum(worker.message_bytes for worker in self.workers) / agreements if agreements else 0.0

    @property
    def dense_bytes_per_step(self) -> int:
        """Bytes of the same message as dense float32."""
        return 4 * self.parameters

    @property
    def digest_equal(self) -> bool:
        """Whether parameters and buffers were bitwise equal on all workers at the end."""
        return len({worker.digest for worker in self.workers}) == 1

    @property
    def findings(self) -> list[str]:
        """What ``encoding_debug`` has to say against the threshold, worker by worker; empty when all is well."""
        return [f"worker {w.rank}: {finding}" for w in self.workers for finding in findings(w.encoding)]

    def __str__(self) -> str:
        sent = self.bytes_per_step
        times = self.dense_bytes_per_step / sent if sent else 0
        ratio = f", {times:,.0f} times fewer than dense float32" if times >= 2 else ""
        lines = [
            f"{len(self.workers)} workers, {self.seconds:.1f} s, {self.rows_trained:,} of {self.rows_expected:,} rows trained"
            + (f", {self.rows_skipped:,} skipped" if self.rows_skipped else "")
            + (f", {self.rows_lost:,} LOST" if self.rows_lost else "")
            + (f", {self.rows_trained_twice:,} trained TWICE" if self.rows_trained_twice else ""),
            f"{sent:,.0f} bytes a step and worker{ratio}",
            "replicas bitwise equal" if self.digest_equal else "replicas DIFFER",
            "rank       rows  minibatches        sent    read s  compute s    send s   apply s",
        ]
        for w in self.workers:
            phases = [w.seconds.get(name, 0.0) for name in ("read", "compute", "send", "apply")]
            lines.append(
                f"{w.rank:>4} {w.rows_trained:>10,} {w.minibatches:>12,} {w.bytes_sent:>11,} "
                f"{phases[0]:>9.1f} {phases[1]:>10.1f} {phases[2]:>9.1f} {phases[3]:>9.1f}"
            )
        lines += [
            f"worker {w.rank} waited {_waits(w.waited_seconds)}"
            for w in self.workers
            if _waits(w.waited_seconds)
        ]
        if self.incidents:
            lines.append(
                f"{self.workers_lost} workers lost, {self.rejoined} replaced; residuals of lost workers are gone"
            )
            lines += [str(incident) for incident in self.incidents]
        return "\n".join([*lines, *(f"finding: {finding}" for finding in self.findings)])


def _waits(seconds: Mapping[int, float]) -> str:
    """Whom a worker waited for, the longest first; nothing where it is less than five seconds in all."""
    if sum(seconds.values()) < 5:
        return ""
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{waited:.1f} s for worker {rank}" for rank, waited in longest if waited >= 0.1)


class PhaseClock:
    """Adds up wall seconds by phase; costs two clock readings a phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time as this phase's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def timed(self, name: str, items: Iterator[T]) -> Iterator[T]:
        """The same items, with the time spent waiting for each counted as this phase's."""
        missing: Any = object()
        while True:
            with self.phase(name):
                item = next(items, missing)
            if item is missing:
                return
            yield item


class EncodingLog:
    """Keeps the records of a run of any length in bounded memory, evenly thinned.

    Of the records that come it keeps every one until there are too many; then it lets every second one go and from
    there on keeps only every second that comes, then every fourth, and so on. The first is always among them.

    Args:
        most: How many are kept at most.

    >>> log = EncodingLog(most=4)
    >>> log.extend(range(11))
    >>> log.records
    (0, 4, 8)
    """

    def __init__(self, most: int = _ENCODING_RECORDS) -> None:
        self._most = most
        self._every = 1
        self._seen = 0
        self._kept: list[EncodingRecord] = []

    @property
    def records(self) -> tuple[EncodingRecord, ...]:
        """What was kept, in order."""
        return tuple(self._kept)

    def extend(self, records: Iterable[EncodingRecord]) -> None:
        """Take up the next records."""
        for record in records:
            if self._seen % self._every == 0:
                if len(self._kept) == self._most:
                    self._kept = self._kept[::2]
                    self._every *= 2
                if self._seen % self._every == 0:
                    self._kept.append(record)
            self._seen += 1
