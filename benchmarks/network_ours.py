"""Our side of `network.py`: `SparkModel.fit` on a DataFrame that has the rivals' rows in their order."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from network_cells import Cell, Measured, factor_at, intervals, link_bytes, sent
from network_rivals import look, merged
from network_tasks import TASKS, Array, Task, stream

from fatwood import SparkModel
from fatwood.codec import DensityWarmup, TargetSparsityThreshold
from fatwood.data import Batch
from fatwood.train import GradientSharing, LookAhead, StepRecord, WorkerCallback, WorkerContext

__all__ = ["Clock", "run", "strategy"]


class Clock(WorkerCallback):
    """Notes when each step began and what the link had sent until then, and writes it down.

    Args:
        folder: That all workers can write to.
        cell: Whose held-out rows are looked at, at the agreed parameters.
    """

    def __init__(self, folder: str, cell: Cell) -> None:
        self.folder, self.cell = folder, cell
        self.task = _task(cell)
        self.looks: list[tuple[int, tuple[float, float]]] = []
        self.stamps: list[float] = []
        self.counters: list[int] = []
        self.computed: list[float] = []

    def on_start(self, worker: WorkerContext) -> None:
        """The same threads as the rivals."""
        del worker
        torch.set_num_threads(1)

    def before_step(self, worker: WorkerContext, batch: Batch) -> None:
        """One more; the first one must have the rows that the rival's worker of this rank has."""
        if not self.stamps:
            size = self.cell.batch_size or self.task.batch_size
            _, labels = self.task.rows(self.cell.seed, 0, worker.rank, worker.workers, size)
            assert torch.equal(torch.as_tensor(batch.label), labels), "rows are not in the rivals' order"
        self.stamps.append(time.perf_counter())
        self.counters.append(link_bytes())
        self.computed.append(time.process_time())

    def after_agreement(self, worker: WorkerContext, record: StepRecord) -> None:
        """Look, where it is time."""
        if self.cell.every and record.step % self.cell.every == 0:
            part = look(worker.network, self.task, self.cell.held_out, worker.rank, worker.workers)
            self.looks.append((record.step, part))

    def on_end(self, worker: WorkerContext) -> None:
        """All."""
        told = {"stamps": self.stamps, "counters": self.counters, "cpu": self.computed, "looks": self.looks}
        Path(self.folder, f"{worker.rank}.json").write_text(json.dumps(told))


def strategy(settings: dict[str, Any]) -> GradientSharing:
    """Of a method."""
    density = settings["density"]
    warmup = DensityWarmup(
        steps=1 << 30, initial=density, final=density
    )  # each step's threshold is its quantile
    return GradientSharing(
        threshold=TargetSparsityThreshold(target=density),
        clipping=None,
        warmup=warmup,
        staleness=settings.get("staleness", 0),
        ahead=LookAhead() if settings.get("ahead") else None,
    )


def table(task: Task, cell: Cell, workers: int) -> pa.Table:
    """Rows of all workers, one worker after the other; in each the order of its steps."""
    size = cell.batch_size or task.batch_size
    series = stream(task.rows_total, cell.seed, 0, cell.steps * workers * size)
    order = series.reshape(cell.steps, workers, size).transpose(1, 0, 2).reshape(-1)
    return _arrow(*task.columns(order))


def _arrow(inputs: Array, labels: Array) -> pa.Table:
    return pa.table({"inputs": _column(inputs), "label": _column(labels)})


def _column(values: Array) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if values.ndim == 1:
        return flat
    ends = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends), flat)


def run(spark: Any, cell: Cell, workers: int, folder: Path) -> Measured:
    """One fit.

    Args:
        spark: A session with as many slots as workers.
        cell: What to run.
        workers: How many.
        folder: Of files, empty; the workers must reach it.
    """
    task = _task(cell)
    rows = _dealt(spark, table(task, cell, workers), workers)
    model = SparkModel(
        task.network(cell.seed),
        loss=task.loss,
        optimizer=partial(task.optimizer, rate=cell.rate),
        scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=partial(factor_at, cell=cell)),
        strategy=strategy(cell.settings),
    )
    fit = model.fit(
        rows,
        features="inputs",
        label="label",
        batch_size=cell.batch_size or task.batch_size,
        workers=workers,
        shuffle=False,
        repartition="never",
        seed=cell.seed,
        callbacks=[Clock(str(folder), cell)],
        heartbeat_timeout_seconds=60,
        progress=False,
    )
    stats = fit.stats
    assert stats.digest_equal
    told = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(workers)]
    points = _curve([one["looks"] for one in told])
    parts = []
    for worker in sorted(stats.workers, key=lambda one: one.rank):
        mine = told[worker.rank]
        steps, first = intervals(mine["stamps"], cell.every)
        waited = sum(worker.waited_seconds.values())
        phases = {name: seconds / worker.agreements for name, seconds in worker.seconds.items()}
        phases["wait"] = waited / worker.agreements
        phases["exchange"] = max(0.0, phases.get("exchange", 0.0) - phases["wait"])
        parts.append(
            {
                "points": points,
                "step_seconds": steps,
                "first_seconds": first,
                "cpu_seconds": intervals(mine["cpu"], cell.every)[0],
                "sent_bytes": sent(mine["counters"], cell.every),
                "phases": phases,
            }
        )
    return merged(cell, parts)


def _dealt(spark: Any, rows: pa.Table, workers: int) -> Any:
    """A frame whose partitions are the workers' rows; Spark makes one of every record batch that it cuts."""
    wanted = {
        "spark.sql.execution.arrow.maxRecordsPerBatch": rows.num_rows // workers,
        "spark.sql.execution.arrow.localRelationThreshold": 0,  # else a small table is one partition
    }
    usual = {name: spark.conf.get(name) for name in wanted}
    for name, value in wanted.items():
        spark.conf.set(name, value)
    try:
        return spark.createDataFrame(rows)
    finally:
        for name, value in usual.items():
            spark.conf.set(name, value)


def _task(cell: Cell) -> Task:
    return TASKS[cell.task](None if cell.folder is None else Path(cell.folder))


def _curve(looks: list[list[Any]]) -> list[tuple[int, float]]:
    """Quality, of what all workers saw at the same steps."""
    points = []
    for same in zip(*looks, strict=True):
        wrong, rows = np.sum([part for _, part in same], axis=0)
        points.append((int(same[0][0]), float(wrong / rows)))
    return points
