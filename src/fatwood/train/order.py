"""What the workers of a job are told, beside what they train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fatwood.data import Layout
from fatwood.exchange import Identity
from fatwood.exchange.grid import TWO_LEVEL_FROM
from fatwood.snapshots import Checkpoints

__all__ = ["Rendezvous", "WorkOrder"]


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """How workers find and trust each other."""

    address: tuple[str, int]
    """The coordinator's host and port."""
    secret: bytes = field(repr=False)
    identity: Identity | None = None
    """The job's certificate, where connections are encrypted."""
    patience_seconds: float
    """How long a worker waits for a view; longer than the coordinator, so that the driver says who is missing."""
    exchange_timeout_seconds: float
    """How long workers wait for a minibatch of the slowest."""
    heartbeat_timeout_seconds: float
    """How long a worker may be silent before it is lost."""
    state_bytes: int
    """The largest state of one worker."""
    two_level_from: int = TWO_LEVEL_FROM
    """See `fatwood.exchange.Exchange`."""


@dataclass(frozen=True, kw_only=True)
class WorkOrder:
    """What all workers of a job are told, beside what they train."""

    workers: int
    layout: Layout
    rendezvous: Rendezvous
    checkpoints: Checkpoints | None = None
    stateless: tuple[int, ...] = ()
    """Ranks for which the driver holds no state although it does for others."""
    prefetch: int = 0
    """Minibatches that a thread reads ahead."""
    prefetch_bytes: int | None = None
    """The most bytes of them that wait."""
    time_source: str = "job"
    """By which clock the times of the run are told; see ``checked_time_source``."""
    gc_every_seconds: float | None = None
    """Seconds between two collections of garbage; None leaves them to Python."""
    ledger: Mapping[str, Any] | None = None
    """Of the run to go on with, as JSON values."""
