"""A fit from a DataFrame to trained parameters, on the driver: plan, train, and what came of it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fatwood.data.preprocessing import Transform
from fatwood.errors import ClusterError, ProtocolError
from fatwood.spark.barrier import run_barrier_training
from fatwood.spark.checkpointing import CheckpointWriter
from fatwood.spark.connect import is_connect
from fatwood.spark.job import run_training
from fatwood.spark.plan import FitOptions, FitPlan, plan_fit
from fatwood.spark.run_state import FitState, RunState, schema_of
from fatwood.spark.watch import ENCODING_LOG, LOG, TrainingResult
from fatwood.train import (
    Callbacks,
    Fit,
    FitStats,
    History,
    Ledger,
    TrainingJob,
    WorkerStats,
    read_trace,
    unpack,
)

__all__ = ["FitOutcome", "fit", "fit_and_keep"]


@dataclass(frozen=True, kw_only=True)
class FitOutcome:
    """What a fit gives back to the driver."""

    state_dict: dict[str, Any]
    """Trained parameters and buffers of the network."""
    state: FitState
    fit: Fit
    transforms: Mapping[str, Transform]
    """Preprocessing, fitted."""


def fit_and_keep(
    data: object, job: TrainingJob, options: FitOptions, *, run: RunState, callbacks: Callbacks
) -> tuple[Fit, RunState, Mapping[str, Transform]]:
    """Train on some data, and give the job's network what came of it.

    Args:
        data: The rows.
        job: What to train; its network is changed after success only.
        options: How.
        run: What the last fit left.
        callbacks: Told of everything but the end.

    Returns:
        The fit, what the next one needs, and the fitted preprocessing.
    """
    before = None if options.resume_from is not None else run.state_for(job.strategy)
    directory = Path(tempfile.mkdtemp(prefix="fatwood-run-"))
    try:
        outcome = fit(data, job, options, directory=directory, before=before, callbacks=callbacks)
        job.network.load_state_dict(outcome.state_dict)
    except BaseException as error:
        shutil.rmtree(directory, ignore_errors=True)
        callbacks.error(error)
        raise
    return outcome.fit, RunState(outcome.state, job.strategy, directory), outcome.transforms


def fit(
    data: object,
    job: TrainingJob,
    options: FitOptions,
    *,
    directory: Path,
    before: FitState | None,
    callbacks: Callbacks,
) -> FitOutcome:
    """Train on some data.

    Args:
        data: The rows, of any form; they are read twice, once to count and once to train.
        job: What to train.
        options: How.
        directory: An empty local directory for what comes back.
        before: What the last fit left, to go on from.
        callbacks: Told of everything but the end, or an error.
    """
    start = time.perf_counter()
    plan = plan_fit(data, job, options, directory=directory, before=before)
    callbacks.start(plan.info(job.network))
    result, checkpoints = _trained(plan, callbacks)
    state_dict, ledger = _read_shared(result)
    callbacks.tell(ledger.validations, ledger.records)  # the last report on the way was not quite the end
    stats = _stats(
        result,
        ledger,
        rows_expected=_rows_expected(ledger, plan.rows),
        parameters=plan.parameters,
        seconds=time.perf_counter() - start,
        checkpoints=checkpoints,
    )
    for finding in stats.findings:
        ENCODING_LOG.warning("%s", finding)
    fitted = Fit(
        history=History(ledger.records),
        stats=stats,
        validations=tuple(ledger.validations),
        stopped=ledger.stopped,
    )
    state = FitState(
        workers=plan.workers,
        epochs=ledger.epoch,
        states=result.states,
        schema=schema_of(plan.layout),
    )
    return FitOutcome(state_dict=state_dict, state=state, fit=fitted, transforms=plan.layout.transforms)


def _trained(plan: FitPlan, callbacks: Callbacks) -> tuple[TrainingResult, int]:
    """What came back of the job, and how many checkpoints were written."""
    if is_connect(plan.frame):
        agreements = -1 if plan.resumed is None else plan.resumed.agreements
        return run_barrier_training(
            plan.frame, plan.order, plan.options, callbacks.tell, about=plan.about, agreements=agreements
        )
    policy = plan.options.elasticity.checkpoints
    with nullcontext() if policy is None else CheckpointWriter(policy, plan.about) as writer:
        result = run_training(plan.frame, plan.order, plan.options, callbacks.tell, writer)
    return result, 0 if writer is None else writer.written


def _read_shared(result: TrainingResult) -> tuple[dict[str, Any], Ledger]:
    if result.shared is None:
        text = "the training job ended without sending its parameters"
        raise ClusterError(text, hint="driver and executors must run the same version of fatwood")
    shared = unpack(result.shared.read_bytes())
    return shared["network"], Ledger.from_json(shared["ledger"])


def _stats(result: TrainingResult, ledger: Ledger, *, rows_expected: int, **others: Any) -> FitStats:
    workers = tuple(_with_trace(result, rank) for rank in sorted(result.workers))
    trained = sum(record.rows for record in ledger.records)
    skipped = sum(worker.rows_skipped for worker in workers) * len(ledger.records)
    return FitStats(
        workers=workers,
        rows_trained=trained,
        rows_expected=rows_expected,
        rows_lost=max(rows_expected - trained - skipped, ledger.rows_passed_over),
        rows_trained_twice=ledger.rows_twice,
        incidents=tuple(result.incidents),
        started=result.started,
        history=History(ledger.records),
        validations=tuple(ledger.validations),
        **others,
    )


def _with_trace(result: TrainingResult, rank: int) -> WorkerStats:
    stats, path = result.workers[rank], result.traces.get(rank)
    if path is None:
        return stats
    try:
        return replace(stats, trace=read_trace(path, f"worker {rank} on host {stats.host}"))
    except ProtocolError as error:  # a trained network is worth more than a picture of it
        LOG.warning("%s", error)
        return stats


def _rows_expected(ledger: Ledger, rows: int) -> int:
    """Rows that were to be trained; an epoch that was broken off ends where it was."""
    epochs = ledger.records
    if ledger.stopped is None or not epochs:
        return rows * len(epochs)
    return rows * (len(epochs) - 1) + epochs[-1].rows
