"""One worker process of a training job, from joining to leaving. Knows no Spark: rows come as Arrow batches.

::

    join ── late? keep all rows on disk ── ready ── view ── train ... ── shared result, own state, "done" ── job over ── leave
                                                      ^                            |
                                                      └── views change: ElasticTeam ┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pyarrow as pa

from fatwood.data import PartitionData
from fatwood.errors import ExchangeError, StorageError
from fatwood.exchange import ElasticTeam, Exchange, Member, TcpExchange, View
from fatwood.train.device import Place
from fatwood.train.garbage import GarbageCollection
from fatwood.train.job import TrainingJob
from fatwood.train.ledger import Ledger
from fatwood.train.order import WorkOrder
from fatwood.train.packing import pack, unpack
from fatwood.train.replica import Replica
from fatwood.train.reports import EncodingReports, ProgressReports
from fatwood.train.timesource import measure_offset
from fatwood.train.trace import Trace
from fatwood.train.uploads import Uploads

__all__ = ["current_rank", "join_job", "run_member"]

_BEATS = 5
"""Signs of life in the time after which a silent worker is lost."""
_DRIVER_SECONDS = 12.0
"""How long the driver may be silent at least."""
_RANK: ContextVar[int | None] = ContextVar("fatwood_rank", default=None)


def current_rank() -> int | None:
    """The rank of the worker whose network, loss or optimizer is running here; None outside of training."""
    return _RANK.get()


def join_job(order: WorkOrder, rank: int, facts: Mapping[str, Any]) -> Member:
    """Become a member of the job, or a spare.

    Args:
        order: Of the job.
        rank: This worker's.
        facts: What the driver should know of this process, as JSON values.
    """
    rendezvous = order.rendezvous
    silence_seconds = rendezvous.heartbeat_timeout_seconds
    return Member.join(
        rendezvous.address,
        secret=rendezvous.secret,
        tls=rendezvous.identity,
        rank=rank,
        facts=dict(facts),
        stateless=rank in order.stateless,
        patience_seconds=rendezvous.patience_seconds,
        heartbeat_seconds=silence_seconds / _BEATS,
        coordinator_timeout_seconds=max(_DRIVER_SECONDS, silence_seconds),
    )


def run_member(
    job: TrainingJob,
    order: WorkOrder,
    member: Member,
    batches: Iterable[pa.RecordBatch],
    directory: Path,
    place: Place | None = None,
    *,
    before_end: Callable[[], None] = lambda: None,
) -> None:
    """Train as one member until the job is over; the results go to the driver.

    Args:
        job: What to train; its network is changed.
        order: Of the job.
        member: Of this worker, not ready yet.
        batches: This worker's rows.
        directory: A local directory, for rows.
        place: Where it computes; None for the CPU.
        before_end: Called when all is trained, for what the driver has to hear before the job is over.

    Raises:
        FatwoodError: It cannot go on; with ``member.stopped`` set because the driver said so.
    """
    rendezvous = order.rendezvous
    kept = None if member.late else member.fetch_blob("state", max_bytes=rendezvous.state_bytes)

    def connect(view: View) -> Exchange:
        return TcpExchange.connect(
            view,
            member.lobby,
            rendezvous.secret,
            timeout_seconds=rendezvous.exchange_timeout_seconds,
            max_message_bytes=rendezvous.state_bytes,
            tls=rendezvous.identity,
            two_level_from=rendezvous.two_level_from,
        )

    with (
        job.partition(
            batches,
            order.layout,
            member.rank,
            directory,
            keep=member.late,
            prefetch=order.prefetch,
            prefetch_bytes=order.prefetch_bytes,
            pin=place is not None and place.device is not None,
        ) as data,
        EncodingReports(member) as on_encoding,
        Uploads(member, order.checkpoints) as uploads,
        GarbageCollection(order.gc_every_seconds) as garbage,
    ):
        if member.late:
            data.keep_all()  # before the others wait for it
        trace = Trace() if job.collect_stats else None
        _note_clock(trace, order, member)
        team = ElasticTeam(member, connect)
        replica = Replica(
            job,
            team,
            workers=order.workers,
            state=None if kept is None else unpack(kept),
            ledger=None if order.ledger is None else Ledger.from_json(order.ledger),
            on_encoding=on_encoding,
            recorder=uploads,
            trace=trace,
            place=place,
            between_steps=garbage.between_steps,
        )
        garbage.freeze()
        member.ready()
        token = _RANK.set(member.rank)
        try:
            if team.start(replica):
                on_progress = ProgressReports(member)
                replica.train(data, on_progress)
                on_progress.flush()
                uploads.finish()
                on_encoding.flush()  # nobody hears it once the job is over
                before_end()
                _note_clock(trace, order, member)
                _deliver(member, replica, team, data, trace)
        finally:
            _RANK.reset(token)
            team.close()


def _note_clock(trace: Trace | None, order: WorkOrder, member: Member) -> None:
    if trace is not None:
        trace.clock(measure_offset(order.time_source, member))


def _deliver(
    member: Member, replica: Replica, team: ElasticTeam, data: PartitionData, trace: Trace | None
) -> None:
    """Send what came of it, and stay until the job is over: a worker that was lost may come back for the end."""
    has_shared = has_own = False
    while True:
        if replica.leads and not has_shared:
            member.send_blob("shared", replica.shared_state())
            has_shared = True
        if not has_own:
            member.send_blob("state", pack(replica.state()))
            if trace is not None:
                with suppress(ExchangeError, StorageError):  # the run is worth more than a picture of it
                    member.send_blob("trace", trace.to_bytes())
            member.report("done", {"stats": replica.stats(data).to_json()})
            has_own = True
        if not team.wait(for_missing=False):
            return
