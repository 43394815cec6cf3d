"""Training jobs on hosts of their own, for the benchmarks of exchanges: Fatwood's own exchange and coordinator, without Spark.

::

    driver   (this process)          Coordinator
    host 0   (a network namespace)   process: serve(0, ...)
    host 1   ...

A worker's process reads from its standard input, line by line, what it is to train, and ends with it. Needs root, `ip` and `tc`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from fatwood.data import Layout
from fatwood.exchange import Coordinator, new_secret
from fatwood.exchange.grid import TWO_LEVEL_FROM
from fatwood.testing.network import Network, inside
from fatwood.testing.threads import shard, training_job
from fatwood.train import (
    EpochRecord,
    Rendezvous,
    TrainingJob,
    WorkerStats,
    WorkOrder,
    join_job,
    record_from_json,
    run_member,
)

__all__ = ["Run", "Work", "end_by_signals", "random_work", "run", "serve", "worker_processes"]

Processes = Sequence["subprocess.Popen[str]"]

STATE_BYTES = 3 << 30
RUN_SECONDS = 300.0
"""The longest that one run may take."""
END_SECONDS = 10.0
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Work:
    """What one worker is to train."""

    job: TrainingJob
    layout: Layout
    batches: Sequence[pa.RecordBatch]
    two_level_from: int = TWO_LEVEL_FROM


@dataclass(frozen=True)
class Run:
    """What came of a job."""

    workers: list[WorkerStats]
    epochs: list[EpochRecord]
    cpu_seconds: list[float]
    """Of each worker's process, in no order."""


def random_work(
    rank: int, *, rows: int, width: int, classes: int, two_level_from: int = TWO_LEVEL_FROM, **options: Any
) -> Work:
    """A classifier of random numbers, which differ from worker to worker.

    Args:
        rank: Of the worker.
        rows: Of it.
        width: Numbers of a row.
        classes: Labels are 0 to classes - 1.
        two_level_from: See `fatwood.exchange.Exchange`.
        options: Of :func:`fatwood.testing.threads.training_job`.
    """
    generator = np.random.default_rng(rank)
    features = generator.standard_normal((rows, width), np.float32)
    layout = Layout.of(
        feature_width=width,
        feature_dtype="float32",
        feature_name="x",
        label_dtype="int64",
        label_name="y",
    )
    batches = shard(features, generator.integers(0, classes, rows), np.arange(rows))
    return Work(training_job(loss=nn.CrossEntropyLoss(), **options), layout, batches, two_level_from)


def serve(rank: int, work: Callable[[Mapping[str, Any], int], Work]) -> None:
    """Train what the lines of standard input say, until its end.

    Args:
        rank: This worker's.
        work: Makes of a case, as :func:`run` was given it, and the rank what to train.
    """
    torch.set_num_threads(1)
    for line in sys.stdin:
        told = json.loads(line)
        made = work(told["case"], rank)
        order = WorkOrder(
            workers=told["workers"],
            layout=made.layout,
            rendezvous=Rendezvous(
                address=tuple(told["address"]),
                secret=bytes.fromhex(told["secret"]),
                patience_seconds=RUN_SECONDS,
                exchange_timeout_seconds=RUN_SECONDS,
                heartbeat_timeout_seconds=RUN_SECONDS,
                state_bytes=STATE_BYTES,
                two_level_from=made.two_level_from,
            ),
        )
        folder = Path(told["folder"])
        with join_job(order, rank, {}) as member:
            begun = time.process_time()
            run_member(made.job, order, member, made.batches, folder)
            spent = time.process_time() - begun
        unfinished = folder / f".cpu-{rank}"
        unfinished.write_text(str(spent))
        unfinished.rename(folder / f"cpu-{rank}")


@contextmanager
def worker_processes(net: Network, script: str) -> Iterator[list[subprocess.Popen[str]]]:
    """One on each host, of a script that calls :func:`serve` when it is given ``--worker RANK``.

    They end with their standard input, so also when this process is killed.
    """
    processes: list[subprocess.Popen[str]] = []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        for rank, host in enumerate(net.workers):
            command = [sys.executable, script, "--worker", str(rank)]
            with inside(host):
                processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment))
        yield processes
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def end_by_signals() -> None:
    """End at SIGTERM and SIGHUP as after an error, so that hosts and processes are cleared away, undisturbed by more of these."""

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(f"ended by signal {number}")

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def run(net: Network, processes: Processes, case: Mapping[str, Any]) -> Run:
    """Train a case.

    Args:
        net: The hosts.
        processes: On them.
        case: JSON values for their ``work``.

    Raises:
        RuntimeError: A worker was lost, or the time is over.
    """
    secret = new_secret()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fatwood-hosts-"))
        stack.enter_context(inside(net.driver))
        coordinator = stack.enter_context(
            Coordinator(
                workers=len(processes),
                secret=secret,
                host=net.driver_host,
                start_timeout_seconds=RUN_SECONDS,
                heartbeat_timeout_seconds=RUN_SECONDS,
                inbox=Path(folder),
                max_blob_bytes=STATE_BYTES,
            )
        )
        told = {"case": dict(case), "workers": len(processes), "folder": folder}
        told |= {"address": coordinator.address, "secret": secret.hex()}
        for process in processes:
            print(json.dumps(told), file=process.stdin, flush=True)
        workers, epochs = _heard(coordinator, processes)
        coordinator.finish()
        return Run(workers, epochs, _cpu_seconds(Path(folder), len(processes)))


def _heard(coordinator: Coordinator, processes: Processes) -> tuple[list[WorkerStats], list[EpochRecord]]:
    """What the workers say until all are done."""
    done: dict[int, WorkerStats] = {}
    epochs: list[EpochRecord] = []
    deadline = time.monotonic() + RUN_SECONDS
    while len(done) < len(processes):
        event = coordinator.next_event(POLL_SECONDS)
        if event is None:
            ended = [rank for rank, process in enumerate(processes) if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                why = f"workers {ended} ended" if ended else f"not after {RUN_SECONDS:.0f} s"
                text = f"expected {len(processes)} workers to be done, {len(done)} are: {why}"
                raise RuntimeError(text)
        elif event.kind == "progress":
            records = [record_from_json(values) for values in event.body["records"]]
            epochs += [record for record in records if isinstance(record, EpochRecord)]
        elif event.kind == "done":
            done[event.rank] = WorkerStats.from_json(event.body["stats"])
        elif event.kind in ("lost", "failed", "stumbled"):
            text = f"worker {event.rank}: {event.body}"
            raise RuntimeError(text)
    return [done[rank] for rank in sorted(done)], epochs


def _cpu_seconds(folder: Path, workers: int) -> list[float]:
    """What the workers write when they have left the job."""
    deadline = time.monotonic() + END_SECONDS
    while len(found := list(folder.glob("cpu-*"))) < workers:
        if time.monotonic() > deadline:
            text = f"expected {workers} workers to end within {END_SECONDS} s, received {len(found)}"
            raise RuntimeError(text)
        time.sleep(0.01)
    return [float(path.read_text()) for path in found]
