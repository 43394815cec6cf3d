"""The executors' side of a training job: one call per Spark task, one task per worker and attempt.

What the user can change (a bad row, an error in the network) is reported to the driver, and the task then ends
normally: started again it would fail again. What is the machine's or the cluster's fault is reported too, and the task
fails, so that Spark starts it elsewhere; the others train on meanwhile.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from fatwood.errors import ClusterError, PeerLost
from fatwood.exchange import Member
from fatwood.spark.failures import describe_failure, is_of_the_machine
from fatwood.spark.gpus import task_gpus
from fatwood.spark.room import cgroup_limit, require_cgroup
from fatwood.spark.shipping import unship
from fatwood.train import Recipe, TrainingJob, WorkOrder, join_job, run_member
from fatwood.train.device import DeviceOrder, taken_device
from fatwood.train.logs import WorkerLogs
from fatwood.train.placing import release

__all__ = ["RESULT_SCHEMA", "TaskOrder", "run_worker"]

RESULT_SCHEMA = "rank int"
"""Schema of the rows that training tasks return to Spark; the results themselves take the job's own connection."""

_DRAIN_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class TaskOrder:
    """All that a training task is told."""

    shipped: bytes
    """Network, loss, optimizer, scheduler, strategy, callbacks and decoders, from :func:`fatwood.spark.shipping.ship`."""
    reading: bytes | None
    """The reader of the rows, where Spark sends none, from the same."""
    options: Mapping[str, Any]
    """The other fields of :class:`fatwood.train.TrainingJob`."""
    recipe: Mapping[str, Any]
    """The other fields of :class:`fatwood.train.Recipe`."""
    work: WorkOrder
    device: DeviceOrder = field(default_factory=DeviceOrder)
    """Where to compute."""
    logs: int | None = None
    """The lowest level of log records that are told to the driver; None for none."""


def run_worker(
    batches: Iterator[pa.RecordBatch], order: TaskOrder, *, network: Mapping[str, Any] | None = None
) -> Iterator[pa.RecordBatch]:
    """Train on one partition as one worker of the job. Runs on an executor, inside ``mapInArrow``.

    Args:
        batches: The partition's rows.
        order: What to do.
        network: A state dict for the network, in place of what it was sent with.
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    if context is None:
        text = "run_worker: expected to run inside a Spark task"
        raise RuntimeError(text)
    rank = context.partitionId()
    torch.set_num_threads(max(1, context.cpus()))
    with join_job(order.work, rank, {"pid": os.getpid(), "attempt": context.attemptNumber()}) as member:
        try:
            with WorkerLogs(member, order.logs) as logs:
                if not member.finished:
                    _train(batches, order, member, network, logs)
        except BaseException as error:  # also what the user's code raises to leave the process
            _drain(batches)
            if member.stopped is None:
                failure = describe_failure(error)
                again = is_of_the_machine(failure)
                with suppress(PeerLost):
                    member.report("stumbled" if again else "failed", failure)
                if again:
                    raise
    yield pa.RecordBatch.from_pydict({"rank": pa.array([rank], pa.int32())})


def _train(
    batches: Iterator[pa.RecordBatch],
    order: TaskOrder,
    member: Member,
    network: Mapping[str, Any] | None,
    logs: WorkerLogs,
) -> None:
    place = taken_device(order.device, task_gpus(), member.rank)
    parts = unship(order.shipped)
    if network is not None:
        parts["network"].load_state_dict(dict(network))
    layout = replace(order.work.layout, decoders=parts.pop("decoders"))
    made_of = {name: parts.pop(name) for name in ("optimizer", "scheduler")}
    job = TrainingJob(**parts, **order.options, recipe=Recipe(**made_of, **order.recipe))
    work = replace(order.work, layout=layout)
    if place.device is None:
        require_cgroup(job, work.workers, cgroup_limit())
    rows = _fed(batches)
    if order.reading is not None:
        # Spark throws away a Python process that leaves input unread, and the next one imports torch again.
        for _ in batches:
            pass
        rows = unship(order.reading)["reader"].batches(member.rank)
    run_member(job, work, member, rows, _local_directory(), place, before_end=logs.flush)
    del job, parts
    release(place.device)


def _local_directory() -> Path:
    """Where the executor's own files are; a worker's have no names, so that a killed one leaves none."""
    return Path(os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0] or tempfile.gettempdir())


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
