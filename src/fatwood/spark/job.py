"""The driver's side of a training job: a Spark job for each worker, one coordinator, and what comes back of them.

::

    driver   Coordinator  <--- joined, ready, progress, failed, checkpoints, results, done ---  W workers (Spark tasks)
    driver   WorkerJobs   --- rows in, task order ----------------------------------------->    W workers

The Spark jobs run in threads of their own under job groups. Everything of value takes the coordinator's connection, so
the job is over when all workers that are there said "done", and whatever happens the groups are cancelled, the threads
joined, and sockets, broadcasts and files are gone when :func:`run_training` returns or raises.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark import Broadcast
from pyspark.sql import DataFrame, SparkSession

from fatwood.exchange import Coordinator, Identity
from fatwood.snapshots import Checkpoints
from fatwood.spark.checkpointing import CheckpointWriter
from fatwood.spark.elasticity import Elasticity
from fatwood.spark.executors import lost_executors
from fatwood.spark.session import driver_address
from fatwood.spark.task import RESULT_SCHEMA, TaskOrder, run_worker
from fatwood.spark.watch import TrainingResult, Watch
from fatwood.spark.worker_logs import LogWriter
from fatwood.spark.workers import WorkerJobs
from fatwood.train import Record, Rendezvous

__all__ = ["JobOptions", "rendezvous_of", "run_training"]

_END_SECONDS = 10.0
"""How long the Spark jobs of finished workers may take to end by themselves."""
_CALLED_OFF_SECONDS = 2.0
"""The same of workers that were told to stop: they do so before their next exchange, and then remove their files."""
_LATE_SECONDS = 30.0
"""How much longer than the driver a worker waits for the others, so that the driver says who is missing."""


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How the job is run, apart from what is trained."""

    workers: int
    directory: Path
    """Where what comes back is kept."""
    states: Mapping[int, Path]
    """Each rank's state of an earlier fit, if it is to go on from there."""
    max_result_bytes: int
    """The largest result that a worker may send."""
    elasticity: Elasticity
    identity: Identity | None
    """The job's certificate, where connections are encrypted."""
    profile: Any = None
    """A ``pyspark.resource.ResourceProfile`` of the workers' executors and tasks; None for the session's."""


def run_training(
    rows: DataFrame,
    order: Callable[[Rendezvous], TaskOrder],
    options: JobOptions,
    on_progress: Callable[[Sequence[Record]], None],
    writer: CheckpointWriter | None,
) -> TrainingResult:
    """Train on a balanced DataFrame.

    Args:
        rows: Columns ``row_id``, ``features`` and ``label`` in exactly ``options.workers`` partitions.
        order: Makes what the tasks are told.
        options: How to run the job.
        on_progress: Called on this thread with the records of a worker's report, in the order of events.
        writer: Gets the parts of checkpoints.

    Raises:
        UserError: A worker raised it, for example a bad row or the user's own code.
        WorldError: The cluster failed in a way that cannot be mended.
    """
    context = rows.sparkSession.sparkContext
    began = time.time()
    secret = secrets.token_bytes(32)
    elasticity = options.elasticity
    with ExitStack() as cleanup:  # every step is taken, also when Ctrl-C comes in the middle of another
        coordinator = cleanup.enter_context(_coordinator(rows.sparkSession, secret, options))
        rendezvous = rendezvous_of(options, coordinator.address, secret)
        broadcast = context.broadcast(order(rendezvous))
        cleanup.callback(_destroy, broadcast)

        def task(batches: Any) -> Any:
            return run_worker(batches, broadcast.value)

        # PySpark before 4 has no profiles
        resources = {} if options.profile is None else {"profile": options.profile}
        frame = rows.mapInArrow(task, RESULT_SCHEMA, **resources)
        jobs = WorkerJobs(context, frame, options.workers, "fatwood.fit")
        cleanup.callback(jobs.end, _CALLED_OFF_SECONDS)
        cleanup.callback(coordinator.cancel, "the driver ended the job")
        jobs.start()
        checkpoints = elasticity.checkpoints
        watch = Watch(
            coordinator,
            jobs,
            workers=options.workers,
            start_timeout_seconds=elasticity.start_timeout_seconds,
            on_progress=on_progress,
            writer=writer,
            how_to_resume=lambda: _how_to_resume(checkpoints, writer),
            why_lost=lambda: lost_executors(context, began),
            on_log=LogWriter(),
        )
        result = watch.run()
        jobs.end(_END_SECONDS)
        return result


def rendezvous_of(options: JobOptions, address: tuple[str, int], secret: bytes) -> Rendezvous:
    """How the job's workers find and trust each other.

    Args:
        options: Of the job.
        address: The coordinator's.
        secret: The job's.
    """
    elasticity = options.elasticity
    return Rendezvous(
        address=address,
        secret=secret,
        identity=options.identity,
        patience_seconds=max(elasticity.start_timeout_seconds, elasticity.rejoin_timeout_seconds)
        + _LATE_SECONDS,
        exchange_timeout_seconds=elasticity.exchange_timeout_seconds,
        heartbeat_timeout_seconds=elasticity.heartbeat_timeout_seconds,
        state_bytes=options.max_result_bytes,
    )


def _how_to_resume(checkpoints: Checkpoints | None, writer: CheckpointWriter | None) -> str:
    if checkpoints is None or writer is None:
        return "pass checkpoints=Checkpoints(uri=..., every_seconds=60) to fit, and a lost run can be resumed"
    if writer.last is None:
        return f"no checkpoint was written to {checkpoints.uri} yet: begin anew, with a shorter interval"
    return (
        "call fit with the same arguments and the folder of its checkpoints, of which the newest is taken: "
        f"resume_from={str(checkpoints.uri)!r}"
    )


def _coordinator(spark: SparkSession, secret: bytes, options: JobOptions) -> Coordinator:
    bind_host, advertise_host = driver_address(spark)
    inbox = options.directory / "inbox"
    inbox.mkdir(parents=True)
    elasticity = options.elasticity
    return Coordinator(
        workers=options.workers,
        min_workers=elasticity.min_workers,
        secret=secret,
        tls=options.identity,
        host=bind_host,
        advertise_host=advertise_host,
        start_timeout_seconds=elasticity.start_timeout_seconds,
        rejoin_timeout_seconds=elasticity.rejoin_timeout_seconds,
        heartbeat_timeout_seconds=elasticity.heartbeat_timeout_seconds,
        inbox=inbox,
        max_blob_bytes=options.max_result_bytes,
        outbox={(rank, "state"): path for rank, path in options.states.items()},
    )


def _destroy(broadcast: Broadcast[TaskOrder]) -> None:
    with suppress(Exception):  # the session may have been stopped meanwhile, and its broadcasts with it
        broadcast.destroy()
