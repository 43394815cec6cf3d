"""The workers of a training job, each a Spark job of one task, so that none falls with another.

::

    frame --- prepared once: the shuffle is computed ---> one RDD of W partitions
                                                           |-- glom --> job of partition 0, attempt 0, attempt 1, ...
                                                           |-- glom --> job of partition 1, attempt 0, ...

In one job of W tasks Spark would end all of them when one has failed too often, and would send out the whole stage
again after a lost shuffle file, with second copies of workers that are alive. Jobs of one task share what was
shuffled and nothing else: after an executor's death only the partitions of its own tasks are sent out again.

Spark also ends, with a failing stage, every job that depends on the stage's RDD. So each attempt has an RDD of its
own on top of the common one: ``glom()``, which costs nothing.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pyspark import SparkContext
from pyspark.sql import DataFrame, SparkSession

from fatwood.errors import ClusterError
from fatwood.spark.action import BackgroundAction, end_actions

__all__ = ["JobEnded", "Jobs", "PlanFailed", "WorkerJobs", "small_arrow_batches"]

_KILL_SECONDS = 10.0
_BYTES_LIMIT = "spark.sql.execution.arrow.maxBytesPerBatch"
_BATCH_BYTES = 8 << 20
_KILL_AGAIN_SECONDS = 0.2


@dataclass(frozen=True)
class JobEnded:
    """A worker's Spark job is over: its task has returned, or failed as often as Spark allows, or was killed."""

    rank: int
    error: BaseException | None
    """What Spark raised; for :func:`fatwood.spark.failures.failure_of_spark`."""
    killed: bool
    """Whether :meth:`WorkerJobs.kill` was called for this job, whatever it ended with."""


@dataclass(frozen=True)
class PlanFailed:
    """Not all workers were started: the frame's own plan failed, or it is not what was promised."""

    error: BaseException
    """What Spark raised, or a `ClusterError`."""


class Jobs(Protocol):
    """What a :class:`fatwood.spark.watch.Watch` does with the Spark jobs of workers."""

    def next_event(self) -> JobEnded | PlanFailed | None:
        """Return the next event, or None when there is none."""

    def restart(self, rank: int) -> None:
        """Run a worker again whose job has ended."""

    def kill(self, rank: int) -> None:
        """End a worker's job."""


@contextmanager
def small_arrow_batches(spark: SparkSession) -> Iterator[None]:
    """While a plan is made: rows come in batches of some megabytes, unless the user has set how many.

    Spark's own limit is 64 MB, which a worker would have several times in memory. Spark before it had the limit has that of
    rows alone. The setting is the session's, so another thread's query that is planned meanwhile gets small batches, too.
    """
    if spark.conf.get(_BYTES_LIMIT, None) is not None:
        yield
        return
    spark.conf.set(_BYTES_LIMIT, str(_BATCH_BYTES))
    try:
        yield
    finally:
        spark.conf.unset(_BYTES_LIMIT)


class WorkerJobs:
    """Runs each partition of a frame as a Spark job of its own.

    Args:
        context: Of the frame's session.
        frame: What the workers run, with a ``mapInArrow`` on top. Its rows are thrown away.
        workers: How many partitions it has. An empty one runs its task too.
        name: Shown in Spark's user interface, with the worker's number.

    All methods belong to one thread. A thread runs for each worker that does, and one until the first are started.
    """

    def __init__(self, context: SparkContext, frame: DataFrame, workers: int, name: str) -> None:
        self._context = context
        self._frame = frame
        self._workers = workers
        self._name = name
        self._rows: Any = None
        """The common RDD, a ``JavaRDD[Row]``."""
        self._events: queue.SimpleQueue[JobEnded | PlanFailed] = queue.SimpleQueue()
        self._preparation = BackgroundAction(context, name, self._prepare, self._prepared)
        self._jobs: dict[int, BackgroundAction] = {}
        self._ending = False
        self._lock = threading.Lock()
        """Held to add a job, so that none is added unseen at the end."""

    def start(self) -> None:
        """Compute what the workers read and then start each, all in the background; once.

        Up to the shuffle the plan is computed here once for all, unless adaptive execution is off: then by the first
        jobs, together.
        """
        self._preparation.start()

    def next_event(self, timeout_seconds: float = 0.0) -> JobEnded | PlanFailed | None:
        """Return the next event, or None when none comes within `timeout_seconds`."""
        try:
            return self._events.get(timeout=max(0.0, timeout_seconds))
        except queue.Empty:
            return None

    def is_running(self, rank: int) -> bool:
        """Whether the worker's job was started and has not ended; its task may still wait for a slot."""
        job = self._jobs.get(rank)
        return job is not None and not job.finished

    def restart(self, rank: int) -> None:
        """Submit the worker's job again; the last one has ended.

        Raises:
            RuntimeError: It has not.
        """
        last = self._jobs.get(rank)
        if last is None or not last.finished:
            text = f"worker {rank}: expected its job to have ended before another, received one that {'runs' if last else 'never began'}"
            raise RuntimeError(text)
        last.join(0.0)
        self._launch(rank)

    def kill(self, rank: int) -> None:
        """End the worker's job, if it runs; `JobEnded` follows.

        Spark then interrupts the task, and destroys its Python process if that does not end within
        ``spark.python.task.killTimeout`` (2 s): also one that is stopped or hangs in native code. The slot is free
        again only then, so that a restarted job may wait for it.
        """
        job = self._jobs.get(rank)
        deadline = time.monotonic() + _KILL_SECONDS
        while job is not None and not job.finished and time.monotonic() < deadline:
            job.cancel()
            job.join(_KILL_AGAIN_SECONDS)

    def end(self, patience_seconds: float) -> None:
        """Return when all threads have ended; cancel the jobs that do not end by themselves in time. Idempotent.

        Args:
            patience_seconds: How long they may take to end by themselves; cancelled executors cannot clean up.
        """
        self._ending = True
        with self._lock:
            jobs = list(self._jobs.values())
        end_actions([self._preparation, *jobs], patience_seconds)
        self._rows = None  # with it Spark's cleaner may remove the shuffle's files

    def _prepare(self) -> None:
        with small_arrow_batches(self._frame.sparkSession):
            rows = self._frame._jdf.javaRDD()
        partitions = rows.getNumPartitions()
        if partitions != self._workers:
            text = f"the frame to train on: expected {self._workers} partitions, received {partitions}"
            raise ClusterError(
                text, hint="a Spark extension may have changed the plan; start the session without it"
            )
        self._rows = rows
        for rank in range(self._workers):
            self._launch(rank)

    def _prepared(self, preparation: BackgroundAction) -> None:
        if preparation.failed is not None:
            self._events.put(PlanFailed(preparation.failed))

    def _launch(self, rank: int) -> None:
        name = f"{self._name} worker {rank}"
        job = BackgroundAction(self._context, name, partial(self._run, rank), partial(self._ended, rank))
        with self._lock:
            if self._ending:
                return
            self._jobs[rank] = job
        job.start()

    def _run(self, rank: int) -> None:
        gateway: Any = self._context._gateway
        partitions = gateway.new_array(gateway.jvm.int, 1)
        partitions[0] = rank
        self._rows.glom().collectPartitions(partitions)

    def _ended(self, rank: int, job: BackgroundAction) -> None:
        self._events.put(JobEnded(rank, job.failed, killed=job.cancelled))
