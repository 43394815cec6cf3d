"""The driver's eyes on a training job: what workers and Spark report, who is missed, and when it is over or has failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fatwood.codec import EncodingRecord
from fatwood.errors import ClusterError, ExchangeError, FatwoodError, ProtocolError, UserError, WorkerLost
from fatwood.exchange import Coordinator, Event
from fatwood.spark.causes import explained, original_of
from fatwood.spark.checkpointing import CheckpointWriter
from fatwood.spark.failures import failure_of_spark, made_again, rebuild_failure, severity
from fatwood.spark.workers import JobEnded, Jobs, PlanFailed
from fatwood.train import Incident, Record, WorkerStats, record_from_json

__all__ = ["ENCODING_LOG", "LOG", "TrainingResult", "Watch"]

ENCODING_LOG = logging.getLogger("fatwood.encoding")
"""Gets a line per worker and step of strategies with ``encoding_debug=True``, and the findings."""

LOG = logging.getLogger("fatwood.job")
"""Gets a warning for every worker that is lost, and a line for everyone that comes."""

_POLL_SECONDS = 0.05
_BLAME_SECONDS = 1.0
"""How long after a first failure others may still come in: the cause can arrive after its consequences."""
_MAX_LOSSES = 4
"""How often in a row a worker may be lost without having trained a row, as Spark's own ``spark.task.maxFailures``."""


@dataclass(kw_only=True)
class TrainingResult:
    """What came back."""

    workers: dict[int, WorkerStats] = field(default_factory=dict)
    shared: Path | None = None
    """A file with network and ledger."""
    states: dict[int, Path] = field(default_factory=dict)
    traces: dict[int, Path] = field(default_factory=dict)
    """Files with what each worker did when."""
    incidents: list[Incident] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    """When the driver began to watch, in seconds since 1970; incidents count from then."""


@dataclass
class _Worker:
    """What is known of a rank."""

    losses: int = 0
    """In a row, without a row trained in between."""
    trained: int = 0
    trained_at_loss: int = -1
    joined: bool = False
    """Whether a process has joined since its job was started."""
    place: Literal["none", "taken", "empty", "abandoned"] = "none"
    """None until the first view with it; empty when its process was lost."""
    reason: FatwoodError | None = None
    """Why it was lost last."""


class Watch:
    """Follows a job's events until it is over or has failed.

    Args:
        coordinator: Of the job.
        jobs: Of the job, started.
        workers: How many ranks it has.
        start_timeout_seconds: As the coordinator's, for a message.
        on_progress: Called with the records of a worker's report, in the order of events.
        writer: Gets the parts of checkpoints.
        how_to_resume: For the hint of an error after which the run cannot go on.
        why_lost: What Spark says of executors that are gone, to find the cause of an error among it.
        on_log: Gets the rank, host and body of what a worker has logged.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        jobs: Jobs,
        *,
        workers: int,
        start_timeout_seconds: float,
        on_progress: Callable[[Sequence[Record]], None],
        writer: CheckpointWriter | None,
        how_to_resume: Callable[[], str],
        why_lost: Callable[[], Sequence[str]] = tuple,
        on_log: Callable[[int, str, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._jobs = jobs
        self._start_timeout_seconds = start_timeout_seconds
        self._on_progress = on_progress
        self._writer = writer
        self._how_to_resume = how_to_resume
        self._why_lost = why_lost
        self._on_log = on_log
        self._start = time.monotonic()
        self._workers = [_Worker() for _ in range(workers)]
        self._result = TrainingResult()
        self._view: set[int] = set()
        """Members of the present view."""
        self._ranks: dict[int, int] = {}
        """By member."""
        self._done: set[int] = set()
        self._failures: list[FatwoodError] = []
        self._said: list[str] = []
        """What Spark said of jobs that ended before the training did, the last few."""
        self._blame_until: float | None = None

    def run(self) -> TrainingResult:
        """Return when every worker that is there has delivered what it has.

        Raises:
            UserError: A worker raised it, for example a bad row or the user's own code.
            WorldError: The cluster failed in a way that cannot be mended.
        """
        while not self._is_over():
            event = self._coordinator.next_event(_POLL_SECONDS)
            while event is not None:  # all of them first: they say why a worker's job has ended
                self._take(event)
                event = self._coordinator.next_event(0.0)
            while (ended := self._jobs.next_event()) is not None:
                self._spark(ended)
            if self._blame_until is not None and time.monotonic() >= self._blame_until:
                raise self._cause()
        self._coordinator.finish()
        done = {self._ranks[member] for member in self._done}
        for rank in set(range(len(self._workers))) - done:
            self._jobs.kill(rank)  # still on its way back, and no longer needed
        return self._result

    def _is_over(self) -> bool:
        return self._result.shared is not None and bool(self._view) and self._view <= self._done

    def _take(self, event: Event) -> None:
        where = f"worker {event.rank} on host {event.host}"
        body = event.body
        match event.kind:
            case "progress":
                with _understood("a report of progress", body, where):
                    records = [record_from_json(values) for values in body["records"]]
                    for worker, trained in zip(self._workers, body["trained"], strict=True):
                        worker.trained = max(worker.trained, int(trained))
                self._on_progress(records)
            case "encoding":
                self._log_encoding(event.rank, body, where)
            case "log":
                if self._on_log is not None:
                    self._on_log(event.rank, event.host, body)
            case "blob":
                self._blob(event.rank, str(body["name"]), Path(body["path"]))
            case "checkpoint" if self._writer is not None:
                self._writer.reported(event.rank, int(body["agreements"]), body["ranks"])
            case "done":
                with _understood("the statistics of a finished worker", body, where):
                    stats = WorkerStats.from_json(body["stats"])
                self._result.workers[event.rank] = replace(stats, host=event.host)
                self._done.add(event.member)
            case "joined":
                self._ranks[event.member] = event.rank
                self._workers[event.rank].joined = True
            case "view":
                self._new_view(body)
            case "spare":
                self._tell("spare", event.rank, f"a second process for {where} waits beside the first")
            case "held":
                self._tell(
                    "held",
                    None,
                    f"training waits: workers {body['ranks']} are there, min_workers={body['min_workers']}",
                )
            case "stumbled":
                self._lost(event.rank, f"{where} failed: {body['message']}", rebuild_failure(body, where))
            case "failed":
                self._fail(rebuild_failure(body, where))
            case "lost" if self._is_spare(event):
                LOG.info("a second process for %s is gone", where)
            case "lost":
                text = f"{where} was lost: {body['reason']}"
                hint = "the executor's log says why; running out of memory is the usual cause"
                self._lost(event.rank, text, WorkerLost(text, hint=hint))
                if body["silent"]:  # its process may still be there, and Spark know nothing of it
                    self._jobs.kill(event.rank)
            case "missing" | "starved" | "extinct":
                self._fail(self._end_of_patience(event.kind, body))

    def _blob(self, rank: int, name: str, path: Path) -> None:
        if name == "shared":
            self._result.shared = path
        elif name == "state":
            self._result.states[rank] = path
        elif name == "trace":
            self._result.traces[rank] = path
        elif self._writer is not None:
            self._writer.add_part(rank, name, path)

    def _new_view(self, body: Mapping[str, Any]) -> None:
        self._view = set(body["members"])
        ranks = body["ranks"]
        for rank in ranks:
            worker = self._workers[rank]
            if worker.place in ("empty", "abandoned"):
                self._tell("rejoined", rank, f"worker {rank} is back; training goes on with workers {ranks}")
                if self._writer is not None:
                    self._writer.returned(rank)
            worker.place = "taken"
        for rank in body["abandoned"]:
            worker = self._workers[rank]
            if worker.place != "abandoned":
                text = f"worker {rank} did not come in time; training goes on without its rows"
                self._tell("abandoned", rank, text)
            worker.place = "abandoned"

    def _is_spare(self, event: Event) -> bool:
        return event.member not in self._view and self._workers[event.rank].place == "taken"

    def _lost(self, rank: int, text: str, reason: FatwoodError) -> None:
        self._tell("lost", rank, text)
        if self._writer is not None:
            self._writer.lost(rank)
        worker = self._workers[rank]
        worker.place, worker.reason = "empty", reason
        self._count_loss(rank, reason)

    def _count_loss(self, rank: int, error: FatwoodError) -> None:
        worker = self._workers[rank]
        worker.losses = worker.losses + 1 if worker.trained <= worker.trained_at_loss else 1
        worker.trained_at_loss = worker.trained
        if worker.losses >= _MAX_LOSSES:
            self._fail(self._repeated(error, worker.losses))

    def _repeated(self, error: FatwoodError, losses: int) -> FatwoodError:
        """The last reason, with how often it came to that and how to go on."""
        message, hint = original_of(error)
        first, newline, rest = message.partition("\n")
        text = f"{first} ({losses} times in a row, without a row trained in between){newline}{rest}"
        hint = "; ".join(filter(None, (hint, self._how_to_resume())))
        again = made_again(type(error).__name__, text, hint)
        again.__cause__ = error.__cause__
        return again

    def _spark(self, ended: JobEnded | PlanFailed) -> None:
        if isinstance(ended, PlanFailed):
            self._fail(_spark_failure(ended.error))
            return
        worker = self._workers[ended.rank]
        if not ended.killed:
            text = f"the task of worker {ended.rank} ended before the training did"
            error = ClusterError(text) if ended.error is None else _spark_failure(ended.error)
            self._said = [*self._said, original_of(error)[0]][-len(self._workers) :]
            if isinstance(error, UserError):
                self._fail(error)
            elif not worker.joined:  # those that have are counted when they leave
                self._count_loss(ended.rank, error)
        if not self._failures and not self._has_ended_well(ended.rank):
            worker.joined = False
            self._jobs.restart(ended.rank)

    def _has_ended_well(self, rank: int) -> bool:
        return any(self._ranks[member] == rank for member in self._done & self._view)

    def _cause(self) -> FatwoodError:
        """The failure that the others are consequences of, explained if it is a known one."""
        error = min(self._failures, key=severity)
        can_be_spark = isinstance(error, ClusterError | ExchangeError | WorkerLost)
        return explained(error, [*self._why_lost(), *self._said] if can_be_spark else ())

    def _fail(self, error: FatwoodError) -> None:
        self._failures.append(error)
        if isinstance(error, UserError):  # never a consequence of something else
            self._blame_until = 0.0
        elif self._blame_until is None:
            self._blame_until = time.monotonic() + _BLAME_SECONDS

    def _end_of_patience(self, kind: str, body: Mapping[str, Any]) -> FatwoodError:
        """The error when the coordinator cannot make a view any more."""
        count = len(self._workers)
        if kind == "missing":
            seconds = self._start_timeout_seconds
            text = f"expected {count} workers, ranks {body['ranks']} did not start within {seconds:.0f} s"
            hint = "other jobs may hold the cluster's slots: ask for fewer workers or try again later"
            return ClusterError(text, hint=hint)
        reasons = "; ".join(str(w.reason.message) for w in self._workers if w.place != "taken" and w.reason)
        if kind == "extinct":
            text = f"no worker is left that knows the state of the training: {reasons}"
        else:
            text = f"workers {body['ranks']} of {count} did not come back within {body['seconds']:.0f} s: {reasons}"
        return WorkerLost(text, hint=self._how_to_resume())

    def _tell(self, kind: str, rank: int | None, text: str) -> None:
        seconds = time.monotonic() - self._start
        self._result.incidents.append(Incident(seconds=seconds, kind=kind, rank=rank, text=text))
        LOG.log(logging.INFO if kind in ("rejoined", "spare") else logging.WARNING, "%s", text)

    def _log_encoding(self, rank: int, body: Mapping[str, Any], where: str) -> None:
        with _understood("records of encoding_debug", body, where):
            records = [EncodingRecord.from_json(values) for values in body["records"]]
        for record in records:
            ENCODING_LOG.info("worker %d, %s", rank, record)


def _spark_failure(error: BaseException) -> FatwoodError:
    if isinstance(error, FatwoodError):
        return error
    failure = failure_of_spark(error)
    if not isinstance(failure, UserError):
        failure.__cause__ = error
    return failure


@contextmanager
def _understood(what: str, body: Mapping[str, Any], where: str) -> Iterator[None]:
    """Say of a report that cannot be read what it should have been."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        text = f"{where}: expected {what}, received {body!r:.1000}"
        raise ProtocolError(text, hint="driver and executors must run the same version of fatwood") from error
