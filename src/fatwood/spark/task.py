"""The executors' side of a training job: one call per Spark task, one task per worker.

Whatever goes wrong is reported to the driver over the job's own connection and the task then ends normally: a
task that fails would only be started again by Spark, with the same error and a longer log.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import torch

from fatwood.codec import EncodingRecord
from fatwood.data import Layout
from fatwood.errors import ClusterError, PeerLost
from fatwood.exchange import Exchange, Member, TcpExchange
from fatwood.spark.failures import describe_failure
from fatwood.spark.shipping import unship
from fatwood.train import Replica, TrainingJob, pack, unpack

__all__ = ["RESULT_SCHEMA", "Rendezvous", "TaskOrder", "run_worker", "spill_directory"]

RESULT_SCHEMA = "rank int"
"""Schema of the rows that training tasks return to Spark; the results themselves take the job's own connection."""

_PROGRESS_SECONDS = 0.1
_ENCODING_SECONDS = 0.5
_ENCODING_RECORDS = 200
"""At most so many in one report: a tenth of a megabyte, in a frame of at most one."""
_DRAIN_SECONDS = 0.5
_SPILL_PREFIX = "fatwood-"


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """How workers find and trust each other."""

    address: tuple[str, int]
    secret: bytes
    start_timeout_seconds: float
    exchange_timeout_seconds: float
    state_bytes: int
    """The largest state of an earlier fit that the driver holds for a worker."""


@dataclass(frozen=True, kw_only=True)
class TaskOrder:
    """All that a training task is told."""

    shipped: bytes
    """Network, loss, optimizer and strategy, from :func:`fatwood.spark.shipping.ship`."""
    options: Mapping[str, Any]
    """The other fields of :class:`fatwood.train.TrainingJob`."""
    layout: Layout
    rendezvous: Rendezvous


def run_worker(batches: Iterator[pa.RecordBatch], order: TaskOrder) -> Iterator[pa.RecordBatch]:
    """Train on one partition as one worker of the job. Runs on an executor, inside ``mapInArrow``."""
    from pyspark import TaskContext

    context = TaskContext.get()
    if context is None:
        text = "run_worker: expected to run inside a Spark task"
        raise RuntimeError(text)
    rank = context.partitionId()
    torch.set_num_threads(max(1, context.cpus()))
    rendezvous = order.rendezvous
    stop = _Stop()
    member = Member.join(
        rendezvous.address,
        secret=rendezvous.secret,
        rank=rank,
        facts={"pid": os.getpid(), "attempt": context.attemptNumber()},
        start_timeout_seconds=rendezvous.start_timeout_seconds,
        on_stop=stop.trigger,
    )
    with member:
        try:
            with spill_directory() as directory:
                outcome = _train(batches, order, member, stop, directory)
            member.report("done", outcome)
        except BaseException as error:  # also what the user's code raises to leave the process
            if member.stopped is None:
                member.report("failed", describe_failure(error))
            _drain(batches)
    yield pa.RecordBatch.from_pydict({"rank": pa.array([rank], pa.int32())})


@contextmanager
def spill_directory() -> Iterator[Path]:
    """A new directory on the executor's local disk, without those that killed workers of this executor left there."""
    local = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0]
    for left in Path(local).glob(f"{_SPILL_PREFIX}*") if local else ():
        if not _is_alive(left.name.split("-")[1]):
            shutil.rmtree(left, ignore_errors=True)
    prefix = f"{_SPILL_PREFIX}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=local or None, ignore_cleanup_errors=True) as name:
        yield Path(name)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        pass
    return True


def _train(
    batches: Iterator[pa.RecordBatch], order: TaskOrder, member: Member, stop: _Stop, directory: Path
) -> dict[str, Any]:
    job = TrainingJob(**unship(order.shipped), **order.options)
    rank = member.view.rank
    rendezvous = order.rendezvous
    kept = member.fetch_blob("state", max_bytes=rendezvous.state_bytes)
    tensor_bytes = sum(tensor.nbytes for tensor in job.network.state_dict().values())
    exchange = TcpExchange.connect(
        member.view,
        member.listener,
        rendezvous.secret,
        timeout_seconds=rendezvous.exchange_timeout_seconds,
        max_message_bytes=2 * tensor_bytes + 2**20,
    )
    stop.attach(exchange)
    with (
        exchange,
        job.partition(_fed(batches), order.layout, rank, directory) as data,
        _EncodingReports(member) as on_encoding,
    ):
        replica = Replica(job, exchange, None if kept is None else unpack(kept), on_encoding)
        records = replica.train(data, _Progress(member))
        stats = replica.stats(data, records)
        if rank == 0:
            member.send_blob("parameters", pack(dict(job.network.state_dict())))
        member.send_blob("state", pack(replica.state()))
    return {"stats": stats.to_json(), "history": [r.to_json() for r in records] if rank == 0 else []}


def _fed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        for batch in batches:  # noqa: UP028  # `yield from` would close Spark's own iterator with this one
            yield batch
    except Exception as error:
        text = f"Spark stopped sending rows: {type(error).__name__}: {error}"
        hint = (
            "its executor was killed, or could not fetch the rows from another: the executors' logs say why"
        )
        raise ClusterError(text, hint=hint) from error


def _drain(batches: Iterator[pa.RecordBatch]) -> None:
    """Read what is left of a failed worker's rows, if it is little.

    Spark ends a process that has not read all of its rows, and the next fit would wait for a new one to import torch.
    """
    deadline = time.monotonic() + _DRAIN_SECONDS
    with suppress(Exception):
        while time.monotonic() < deadline and next(batches, None) is not None:
            pass


class _Progress:
    """Tells the driver how far the job is, from worker 0 and not more often than a person can read."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._next = 0.0

    def __call__(self, epoch: int, rows: int, loss: float) -> None:
        now = time.monotonic()
        if self._member.view.rank == 0 and now >= self._next:
            self._next = now + _PROGRESS_SECONDS
            self._member.report("progress", {"epoch": epoch, "rows": rows, "loss": loss})


class _EncodingReports:
    """Tells the driver what ``encoding_debug`` measures, from every worker: twice a second, and at the end.

    A worker that takes more than 400 steps a second leaves some out, evenly, so that neither the connection nor the
    driver's log is flooded; what the statistics keep does not depend on it.
    """

    def __init__(self, member: Member) -> None:
        self._member = member
        self._waiting: list[EncodingRecord] = []
        self._next = 0.0

    def __call__(self, records: Sequence[EncodingRecord]) -> None:
        self._waiting.extend(records)
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _ENCODING_SECONDS
            self._report()

    def __enter__(self) -> _EncodingReports:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._report()
        elif self._member.stopped is None:  # the last steps before an error are those that one wants to see
            with suppress(PeerLost):
                self._report()

    def _report(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            stride = -(-len(waiting) // _ENCODING_RECORDS)
            records = [record.to_json() for record in waiting[-1::-stride]]
            self._member.report("encoding", {"records": records[::-1]})


class _Stop:
    """Closes the exchange when the driver calls the job off, also when the exchange is opened only after that."""

    def __init__(self) -> None:
        self._exchange: Exchange | None = None
        self._triggered = False

    def trigger(self, _reason: str) -> None:
        self._triggered = True
        if self._exchange is not None:
            self._exchange.close()

    def attach(self, exchange: Exchange) -> None:
        self._exchange = exchange
        if self._triggered:
            exchange.close()
