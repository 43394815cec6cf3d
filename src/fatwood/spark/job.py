"""The driver's side of a training job: one Spark job, one coordinator, and what comes back of them.

::

    driver   Coordinator  <--- joined, progress, encoding, failed, parameters, state, done ---  W workers (Spark tasks)
    driver   Spark action --- rows in, task order ----------------------------------------->    W workers

The Spark action runs in a thread of its own under a job group. Everything of value takes the coordinator's
connection, so the job is over when all workers said "done", and whatever happens the group is cancelled, the
thread joined, and sockets, broadcasts and files are gone when :func:`run_training` returns or raises.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyspark import Broadcast
from pyspark.sql import DataFrame, SparkSession

from fatwood.codec import EncodingRecord
from fatwood.data import Layout
from fatwood.errors import ClusterError, FatwoodError, ProtocolError, UserError, WorkerLost
from fatwood.exchange import Coordinator, Event
from fatwood.spark.action import BackgroundAction
from fatwood.spark.failures import failure_of_spark, rebuild_failure, severity
from fatwood.spark.session import driver_address
from fatwood.spark.task import RESULT_SCHEMA, Rendezvous, TaskOrder, run_worker
from fatwood.train import EpochRecord, WorkerStats

__all__ = ["ENCODING_LOG", "JobOptions", "TrainingResult", "run_training"]

ENCODING_LOG = logging.getLogger("fatwood.encoding")
"""Gets a line per worker and step of strategies with ``encoding_debug=True``, and the findings."""

_POLL_SECONDS = 0.1
_BLAME_SECONDS = 1.0
"""How long after a first failure others may still come in: the cause can arrive after its consequences."""
_END_SECONDS = 10.0
"""How long the Spark job of finished workers may take to end by itself."""
_CALLED_OFF_SECONDS = 2.0
"""The same of workers that were told to stop: they do so before their next exchange, and then remove their files."""
_LATE_SECONDS = 30.0
"""How much longer than the driver a worker waits for the others, so that the driver says who is missing."""


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How the job is run, apart from what is trained."""

    workers: int
    directory: Path
    """Where what comes back is kept: ``parameters`` of rank 0 and each rank's ``state``."""
    states: Mapping[int, Path]
    """Each rank's state of an earlier fit, if it is to go on from there."""
    max_result_bytes: int
    """The largest result that a worker may send."""
    start_timeout_seconds: float = 120.0
    """How long the last worker may start after the first."""
    exchange_timeout_seconds: float = 600.0
    """How long workers wait for a minibatch of the slowest; a dead worker is noticed at once."""


@dataclass(kw_only=True)
class TrainingResult:
    """What came back."""

    workers: list[WorkerStats] = field(default_factory=list)
    history: list[EpochRecord] = field(default_factory=list)
    parameters: Path | None = None
    states: dict[int, Path] = field(default_factory=dict)


def run_training(
    rows: DataFrame,
    shipped: bytes,
    job_options: Mapping[str, Any],
    layout: Layout,
    options: JobOptions,
    on_progress: Callable[[int, int, float], None],
) -> TrainingResult:
    """Train on a balanced DataFrame.

    Args:
        rows: Columns ``row_id``, ``features`` and ``label`` in exactly ``options.workers`` partitions.
        shipped: From :func:`fatwood.spark.shipping.ship`.
        job_options: The fields of :class:`fatwood.train.TrainingJob` that are not shipped.
        layout: Of the rows.
        options: How to run the job.
        on_progress: Called on this thread with epoch, rows trained in it and mean loss.

    Raises:
        UserError: A worker raised it, for example a bad row or the user's own code.
        WorldError: A worker was lost, or Spark failed.
    """
    context = rows.sparkSession.sparkContext
    secret = secrets.token_bytes(32)
    with ExitStack() as cleanup:  # every step is taken, also when Ctrl-C comes in the middle of another
        coordinator = cleanup.enter_context(_coordinator(rows.sparkSession, secret, options))
        order = TaskOrder(
            shipped=shipped,
            options=dict(job_options),
            layout=layout,
            rendezvous=Rendezvous(
                address=coordinator.address,
                secret=secret,
                start_timeout_seconds=options.start_timeout_seconds + _LATE_SECONDS,
                exchange_timeout_seconds=options.exchange_timeout_seconds,
                state_bytes=options.max_result_bytes,
            ),
        )
        broadcast = context.broadcast(order)
        cleanup.callback(_destroy, broadcast)

        def task(batches: Any) -> Any:
            return run_worker(batches, broadcast.value)

        action = BackgroundAction(
            context, "fatwood.fit", lambda: rows.mapInArrow(task, RESULT_SCHEMA).collect()
        )
        cleanup.callback(action.end, _CALLED_OFF_SECONDS)
        cleanup.callback(coordinator.cancel, "the driver ended the job")
        action.start()
        result = _Watch(coordinator, action, options, on_progress).run()
        action.join(_END_SECONDS)
        return result


def _coordinator(spark: SparkSession, secret: bytes, options: JobOptions) -> Coordinator:
    bind_host, advertise_host = driver_address(spark)
    inbox = options.directory / "inbox"
    inbox.mkdir(parents=True)
    return Coordinator(
        workers=options.workers,
        secret=secret,
        host=bind_host,
        advertise_host=advertise_host,
        start_timeout_seconds=options.start_timeout_seconds,
        inbox=inbox,
        max_blob_bytes=options.max_result_bytes,
        outbox={(rank, "state"): path for rank, path in options.states.items()},
    )


def _destroy(broadcast: Broadcast[TaskOrder]) -> None:
    with suppress(Exception):  # the session may have been stopped meanwhile, and its broadcasts with it
        broadcast.destroy()


class _Watch:
    """Follows the job's events until all workers are done or the first one failed."""

    def __init__(
        self,
        coordinator: Coordinator,
        action: BackgroundAction,
        options: JobOptions,
        on_progress: Callable[[int, int, float], None],
    ) -> None:
        self._coordinator = coordinator
        self._action = action
        self._options = options
        self._on_progress = on_progress
        self._result = TrainingResult()
        self._failures: list[FatwoodError] = []
        self._blame_until: float | None = None
        self._spark_ended = False

    def run(self) -> TrainingResult:
        while len(self._result.workers) < self._options.workers:
            event = self._coordinator.next_event(_POLL_SECONDS)
            if event is not None:
                self._take(event)
            elif self._action.finished and not self._spark_ended:
                self._spark_ended = True
                self._fail(self._failure_of_action())
            if self._blame_until is not None and time.monotonic() >= self._blame_until:
                raise min(self._failures, key=severity)
        self._result.workers.sort(key=lambda worker: worker.rank)
        return self._result

    def _failure_of_action(self) -> FatwoodError:
        if self._action.failed is None:
            text = "the Spark job ended before all workers reported"
            return ClusterError(text, hint="look for errors in the executors' logs")
        error = failure_of_spark(self._action.failed)
        if not isinstance(error, UserError):
            error.__cause__ = self._action.failed
        return error

    def _fail(self, error: FatwoodError) -> None:
        self._failures.append(error)
        if isinstance(error, UserError):  # never a consequence of something else
            self._blame_until = 0.0
        elif self._blame_until is None:
            self._blame_until = time.monotonic() + _BLAME_SECONDS

    def _take(self, event: Event) -> None:
        where = f"worker {event.rank} on host {event.host}"
        body = event.body
        match event.kind:
            case "progress":
                self._on_progress(int(body["epoch"]), int(body["rows"]), float(body["loss"]))
            case "encoding":
                self._log_encoding(event.rank, body, where)
            case "done":
                self._done(body, where)
            case "blob" if body["name"] == "parameters":
                self._result.parameters = Path(body["path"])
            case "blob" if body["name"] == "state":
                self._result.states[event.rank] = Path(body["path"])
            case "failed":
                self._fail(rebuild_failure(body, where))
            case "lost":
                text = f"{where} was lost: {body['reason']}"
                hint = "the executor's log says why; running out of memory is the usual cause"
                self._fail(WorkerLost(text, hint=hint))
            case "missing":
                seconds = self._options.start_timeout_seconds
                text = f"expected {self._options.workers} workers, ranks {body['ranks']} did not start within {seconds:.0f} s"
                hint = "other jobs may hold the cluster's slots: ask for fewer workers or try again later"
                self._fail(ClusterError(text, hint=hint))

    def _log_encoding(self, rank: int, body: Mapping[str, Any], where: str) -> None:
        with _understood("records of encoding_debug", body, where):
            records = [EncodingRecord.from_json(values) for values in body["records"]]
        for record in records:
            ENCODING_LOG.info("worker %d, %s", rank, record)

    def _done(self, body: Mapping[str, Any], where: str) -> None:
        with _understood("the statistics of a finished worker", body, where):
            self._result.workers.append(WorkerStats.from_json(body["stats"]))
            if body["history"]:
                self._result.history = [EpochRecord.from_json(values) for values in body["history"]]


@contextmanager
def _understood(what: str, body: Mapping[str, Any], where: str) -> Iterator[None]:
    """Say of a report that cannot be read what it should have been."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        text = f"{where}: expected {what}, received {body!r:.1000}"
        raise ProtocolError(text, hint="driver and executors must run the same version of fatwood") from error
