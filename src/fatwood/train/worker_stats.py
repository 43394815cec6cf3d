"""What one worker did in a fit, and what happened to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fatwood.codec import EncodingRecord

__all__ = ["Incident", "WorkerStats"]


@dataclass(frozen=True, kw_only=True)
class WorkerStats:
    """What one worker did in one fit."""

    rank: int
    host: str = ""
    """The machine, as the driver knows it."""
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
    """Wall seconds by phase: read, batch, compute, encode, exchange, apply, validate, checkpoint, missing (waiting for
    lost workers to come back); those that there were. docs/stats.md says what each means."""
    waited_seconds: Mapping[int, float] = field(default_factory=dict)
    """Wall seconds spent waiting in exchanges, by the rank whose message came last; part of exchange."""
    encoding: tuple[EncodingRecord, ...] = ()
    """With ``encoding_debug``, what was measured of every message; of a long run every second, fourth, ... of them,
    see :class:`EncodingLog`."""
    device: Mapping[str, Any] | None = None
    """The GPU that it computed on: ``device``, ``name``, Spark's ``address``, ``cudnn`` (its version; None where it is off), ``tf32``
    of matrix products and of cuDNN, and ``autocast`` (a type, or None); None for the CPU."""
    trace: Mapping[str, Any] | None = field(default=None, repr=False)
    """When it did what, as JSON values; see :meth:`Trace.to_json`."""

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

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Incident:
        """From the values of :meth:`to_json`."""
        return cls(**values)
