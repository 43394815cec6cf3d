"""A training job whose coordinator lives in its first task, where tasks cannot reach the driver: Spark Connect.

::

    client -- one barrier stage of W tasks --> task 0: Coordinator, Watch, worker 0 <--> workers 1 .. W - 1
    client <-- rows: results as pieces of bytes -- task 0

Spark runs a barrier stage as a whole: when a task is lost it sends out all of them again, at most four times. They go on from
the run's newest checkpoint, if it writes any, and begin anew otherwise.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import torch
from pyspark import BarrierTaskContext

from fatwood.errors import ExchangeError, UserError, WorkerLost
from fatwood.exchange import Coordinator
from fatwood.snapshots import list_snapshots, snapshot_uri
from fatwood.spark.checkpointing import CheckpointWriter, Resumed, resume
from fatwood.spark.delivery import Delivered, rebuilt
from fatwood.spark.elasticity import Elasticity
from fatwood.spark.failures import describe_failure
from fatwood.spark.task import TaskOrder, run_worker
from fatwood.spark.watch import TrainingResult, Watch
from fatwood.spark.worker_logs import KeptLogs
from fatwood.train import Record, record_to_json

__all__ = ["ANSWER", "RESULT_SCHEMA", "BarrierOrder", "bytes_as_tensor", "run_barrier_worker"]

RESULT_SCHEMA = "name string, rank int, start bigint, data binary"
"""Schema of what task 0 returns: the answer, and files in pieces, with the place of their first byte."""

ANSWER = "answer"
"""The name of one row, JSON: a failure, or what is known of the workers."""

_PIECE_BYTES = 1 << 20  # a row has to fit into a message of the server, which are 4 MB by default
_END_SECONDS = 60.0
_CALLED_OFF_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class BarrierOrder:
    """What the tasks are told, beside bytes that go as tensors."""

    task: TaskOrder
    """Without what is shipped, and with a rendezvous of which only the address is not known."""
    elasticity: Elasticity
    about: Mapping[str, Any]
    """As for :class:`CheckpointWriter`."""
    agreements: int
    """Of the model's life before the fit, if it goes on from a checkpoint; -1 otherwise."""


def bytes_as_tensor(content: bytes) -> torch.Tensor:
    """Bytes as a tensor of uint8, for :func:`fatwood.spark.delivery.deliver`."""
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if content
        else torch.empty(0, dtype=torch.uint8)
    )


def run_barrier_worker(batches: Iterator[pa.RecordBatch], delivered: Delivered) -> Iterator[pa.RecordBatch]:
    """Train on one partition as one worker. Runs on an executor, inside ``mapInArrow(..., barrier=True)``."""
    context = BarrierTaskContext.get()
    parts = rebuilt(delivered)
    order: BarrierOrder = parts["order"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fatwood-barrier-")))
        host = None
        invitation: dict[str, Any] = {}
        if context.partitionId() == 0:
            address = context.getTaskInfos()[0].address.rpartition(":")[0].strip("[]")
            host = stack.enter_context(_Host(order, parts["states"], address, folder))
            invitation = host.invitation
        invitation = json.loads(context.allGather(json.dumps(invitation))[0])
        resumed = _resumed(order, invitation["resume"], folder) if host is None else host.resumed
        network = None if resumed is None else resumed.network
        task = _task_order(order, parts, invitation, resumed)
        if host is None:
            for _ in run_worker(batches, task, network=network):
                pass
        else:
            yield from host.answer(_Worker(partial(run_worker, batches, task, network=network)))


class _Worker(threading.Thread):
    """Worker 0, beside its coordinator: it may hang in the user's code, and the task must end all the same."""

    def __init__(self, work: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        super().__init__(name="fatwood-worker-0", daemon=True)
        self._work = work
        self.failed: BaseException | None = None

    def run(self) -> None:
        """Train until the job is over."""
        try:
            for _ in self._work():
                pass
        except BaseException as error:  # raised in the task's own thread
            self.failed = error


def _resumed(order: BarrierOrder, agreements: int | None, folder: Path) -> Resumed | None:
    """The run's own checkpoint after so many agreements."""
    policy = order.elasticity.checkpoints
    if agreements is None or policy is None:
        return None
    return resume(snapshot_uri(policy.uri, agreements), folder / "resumed")


def _task_order(
    order: BarrierOrder, parts: Mapping[str, Any], invitation: Mapping[str, Any], resumed: Resumed | None
) -> TaskOrder:
    host, port = invitation["address"]
    work = replace(order.task.work, rendezvous=replace(order.task.work.rendezvous, address=(host, port)))
    if resumed is not None:
        stateless = tuple(rank for rank in range(work.workers) if rank not in resumed.states)
        work = replace(work, ledger=resumed.ledger.to_json(), stateless=stateless)
    reading = parts["reading"]
    return replace(
        order.task,
        shipped=parts["shipped"].numpy().tobytes(),
        reading=None if reading is None else reading.numpy().tobytes(),
        work=work,
    )


class _Stage:
    """Stands for the jobs of a `Watch`: all workers are one stage, which Spark restarts as a whole."""

    def __init__(self, worker: _Worker) -> None:
        self._worker = worker

    def next_event(self) -> None:
        """None: another task that ends takes this one with it; worker 0 raises here what its machine did to it."""
        if self._worker.failed is not None:
            raise self._worker.failed

    def restart(self, rank: int) -> None:
        """Spark does."""

    def kill(self, rank: int) -> None:
        """The worker is silent, and Spark does not know: this task fails, and with it the stage."""
        text = f"worker {rank} gave no sign of life and was given up"
        raise WorkerLost(
            text, hint="Spark runs all workers again, from the run's newest checkpoint if it writes any"
        )


class _Host:
    """The coordinator's side of the job, in task 0; a context manager.

    Args:
        order: Of the job.
        states: What each rank goes on from.
        address: Of this machine, as Spark knows it.
        folder: An empty one, for what comes in.
    """

    def __init__(
        self, order: BarrierOrder, states: Mapping[int, torch.Tensor], address: str, folder: Path
    ) -> None:
        self._order = order
        self._folder = folder
        self._address = address
        self._records: list[Any] = []
        self._logs = KeptLogs()
        policy = order.elasticity.checkpoints
        found = [] if policy is None else [step for step, _ in list_snapshots(policy.uri)]
        newest = max(found, default=-1)
        # the folder had no newer one when the fit began: an earlier attempt of this stage has written it
        self.resumed = _resumed(order, newest if newest > order.agreements else None, folder)
        self._outbox = self._given(states) if self.resumed is None else self.resumed.states
        self._writer = None if policy is None else CheckpointWriter(policy, order.about)
        self._cleanup = ExitStack()

    def __enter__(self) -> _Host:
        with ExitStack() as stack:
            self._coordinator = stack.enter_context(self._made())
            if self._writer is not None:
                stack.enter_context(self._writer)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._coordinator.cancel("the first task of the job ended")
        self._cleanup.close()

    @property
    def invitation(self) -> dict[str, Any]:
        """What the other tasks need to join."""
        resume = None if self.resumed is None else self.resumed.agreements
        return {"address": list(self._coordinator.address), "resume": resume}

    def answer(self, worker: _Worker) -> Iterator[pa.RecordBatch]:
        """Train with worker 0; return what goes back to the client when all workers are done.

        Raises:
            FatwoodError: The machines failed, and another attempt may do better.
        """
        worker.start()
        try:
            result = self._watched(worker)
        except BaseException as error:
            self._coordinator.cancel("the job has failed")
            # A stage ends with its last task: a worker that does not stop has to be ended by Spark, with all others.
            if isinstance(error, UserError) and self._coordinator.wait_until_left(_CALLED_OFF_SECONDS):
                answer = {"failure": describe_failure(error), "logs": self._logs.to_json()}
                yield _row(ANSWER, -1, 0, json.dumps(answer).encode())
                return
            raise
        worker.join(_END_SECONDS)
        self._cleanup.close()  # the last checkpoint is written, and counted
        yield _row(ANSWER, -1, 0, json.dumps(self._known(result)).encode())
        files = {("shared", -1): result.shared} if result.shared is not None else {}
        files |= {("state", rank): path for rank, path in result.states.items()}
        files |= {("trace", rank): path for rank, path in result.traces.items()}
        for (name, rank), path in files.items():
            with path.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    yield _row(name, rank, file.tell() - len(piece), piece)

    def _known(self, result: TrainingResult) -> dict[str, Any]:
        return {
            "workers": {rank: stats.to_json() for rank, stats in result.workers.items()},
            "incidents": [incident.to_json() for incident in result.incidents],
            "started": result.started,
            "records": self._records,
            "logs": self._logs.to_json(),
            "checkpoints": 0 if self._writer is None else self._writer.written,
        }

    def _given(self, states: Mapping[int, torch.Tensor]) -> Mapping[int, Path]:
        paths = {}
        for rank, state in states.items():
            paths[rank] = self._folder / f"given-{rank}"
            paths[rank].write_bytes(state.numpy().tobytes())
        return paths

    def _made(self) -> Coordinator:
        try:
            return self._coordinator_at(self._address)
        except ExchangeError:  # behind address translation the machine has another address than others see
            return self._coordinator_at("0.0.0.0")  # noqa: S104

    def _coordinator_at(self, host: str) -> Coordinator:
        order, elasticity = self._order, self._order.elasticity
        rendezvous = order.task.work.rendezvous
        inbox = self._folder / f"inbox-{secrets.token_hex(4)}"
        inbox.mkdir()
        return Coordinator(
            workers=order.task.work.workers,
            min_workers=order.task.work.workers,  # nobody goes on alone until Spark ends the stage
            secret=rendezvous.secret,
            tls=rendezvous.identity,
            host=host,
            advertise_host=self._address,
            start_timeout_seconds=elasticity.start_timeout_seconds,
            rejoin_timeout_seconds=elasticity.rejoin_timeout_seconds,
            heartbeat_timeout_seconds=elasticity.heartbeat_timeout_seconds,
            inbox=inbox,
            max_blob_bytes=rendezvous.state_bytes,
            outbox={(rank, "state"): path for rank, path in self._outbox.items()},
        )

    def _watched(self, worker: _Worker) -> TrainingResult:
        watch = Watch(
            self._coordinator,
            _Stage(worker),
            workers=self._order.task.work.workers,
            start_timeout_seconds=self._order.elasticity.start_timeout_seconds,
            on_progress=self._note,
            writer=self._writer,
            how_to_resume=lambda: "Spark runs all workers again",
            on_log=self._logs,
        )
        return watch.run()

    def _note(self, records: Sequence[Record]) -> None:
        self._records += [record_to_json(record) for record in records]


def _row(name: str, rank: int, start: int, data: bytes) -> pa.RecordBatch:
    columns = {
        "name": pa.array([name]),
        "rank": pa.array([rank], pa.int32()),
        "start": pa.array([start], pa.int64()),
        "data": pa.array([data], pa.binary()),
    }
    return pa.RecordBatch.from_pydict(columns)
