"""A fit from a DataFrame to trained parameters, on the driver: check, count, balance, train."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from fatwood.codec import trainable_parameters
from fatwood.errors import ClusterError, OptionError
from fatwood.exchange import new_identity
from fatwood.spark.balance import balanced, inspect
from fatwood.spark.checkpointing import CheckpointWriter, Resumed, require_usable, resume
from fatwood.spark.columns import resolve_columns
from fatwood.spark.elasticity import Elasticity
from fatwood.spark.failures import spark_errors
from fatwood.spark.job import JobOptions, run_training
from fatwood.spark.progress import ProgressBar
from fatwood.spark.session import require_slots, require_spark
from fatwood.spark.shipping import ship
from fatwood.spark.task import TaskOrder
from fatwood.spark.watch import ENCODING_LOG, TrainingResult
from fatwood.train import FitStats, History, Ledger, Rendezvous, TrainingJob, WorkOrder, unpack

__all__ = ["FitOutcome", "FitState", "fit"]

_SHIPPED = ("network", "loss", "optimizer", "strategy")


@dataclass(frozen=True, kw_only=True)
class FitState:
    """What a further fit needs to go on where one ended."""

    workers: int
    epochs: int
    """Of the model's life until now."""
    states: Mapping[int, Path]
    """Each worker's optimizer, residual and threshold, as files; a worker that was lost at the end has none."""


@dataclass(frozen=True, kw_only=True)
class FitOutcome:
    """What a fit gives back to the driver."""

    state_dict: dict[str, Any]
    """Trained parameters and buffers of the network."""
    state: FitState
    history: History
    stats: FitStats


def fit(
    df: DataFrame,
    job: TrainingJob,
    *,
    features: str | Sequence[str],
    label: str,
    workers: int | None,
    directory: Path,
    before: FitState | None,
    elasticity: Elasticity,
    resume_from: str | None,
    encrypt: bool,
    progress: bool,
) -> FitOutcome:
    """Train on a DataFrame.

    Everything that can be known to be wrong without a Spark job is an error before the first one; what takes a
    count to know (ragged arrays, no rows) is an error before the training job.

    Args:
        df: The user's frame; it is read twice, once to count and once to train.
        job: What to train.
        features: Column or columns, assembled side by side.
        label: Column.
        workers: Spark tasks that train together; ``None`` takes all slots of the cluster.
        directory: An empty local directory for what comes back.
        before: What the last fit left, to go on from.
        elasticity: How the fit goes on when workers are lost.
        resume_from: A checkpoint, or a folder of them, to go on from.
        encrypt: Whether the workers' connections are encrypted.
        progress: Whether to show a progress bar on a terminal.
    """
    start = time.perf_counter()
    spark = require_spark(df)
    columns = resolve_columns(df, features, label)
    parameters = sum(p.numel() for _, p in trainable_parameters(job.network))
    identity = new_identity() if encrypt else None
    resumed = None if resume_from is None else resume(resume_from, directory / "resumed")
    if elasticity.checkpoints is not None:
        require_usable(elasticity.checkpoints, resumed)
    if resumed is not None:
        job, before = _resumed_job(job, resumed), _resumed_state(resumed)
    shipped = ship({name: getattr(job, name) for name in _SHIPPED})
    workers = _slots(spark, _worker_count(workers, before, resumed), elasticity.min_workers)
    about = _about(job, workers)
    _require_same(resumed, about)
    with spark_errors():
        inspection = inspect(df, columns)
    about["rows"] = inspection.rows
    _require_same(resumed, about)
    rows = balanced(df, columns, inspection, workers=workers, seed=job.seed, shuffle=job.shuffle)
    tensor_bytes = sum(t.nbytes for t in job.network.state_dict().values())
    states = {} if before is None else before.states
    options = JobOptions(
        workers=workers,
        directory=directory,
        states=states,
        max_result_bytes=8 * tensor_bytes + 2**24,  # optimizers keep a few numbers per parameter
        elasticity=elasticity,
        identity=identity,
    )

    def order(rendezvous: Rendezvous) -> TaskOrder:
        work = WorkOrder(
            workers=workers,
            layout=columns.layout(inspection.feature_width, inspection.label_width),
            rendezvous=rendezvous,
            checkpoints=elasticity.checkpoints,
            stateless=tuple(rank for rank in range(workers) if states and rank not in states),
            ledger=None if resumed is None else resumed.ledger.to_json(),
        )
        job_options = {f.name: getattr(job, f.name) for f in fields(job) if f.name not in _SHIPPED}
        return TaskOrder(shipped=shipped, options=job_options, work=work)

    with ExitStack() as stack:
        bar = stack.enter_context(_bar(job, inspection.rows, shown=progress))
        policy = elasticity.checkpoints
        writer = None if policy is None else stack.enter_context(CheckpointWriter(policy, about))
        result = run_training(rows, order, options, bar.update, writer)
        state_dict, ledger = _read_shared(result)
        for record in ledger.records[-1:]:  # the last report on the way was not quite the end
            bar.update(record.epoch, record.rows, record.loss)
    stats = _stats(
        result,
        ledger,
        rows_expected=inspection.rows * job.epochs,
        epochs=job.epochs,
        parameters=parameters,
        seconds=time.perf_counter() - start,
        checkpoints=0 if writer is None else writer.written,
    )
    for finding in stats.findings:
        ENCODING_LOG.warning("%s", finding)
    return FitOutcome(
        state_dict=state_dict,
        state=FitState(workers=workers, epochs=job.first_epoch + job.epochs, states=result.states),
        history=History(ledger.records),
        stats=stats,
    )


def _bar(job: TrainingJob, rows: int, *, shown: bool) -> ProgressBar:
    return ProgressBar(epochs=job.epochs, first_epoch=job.first_epoch, rows=rows, shown=shown)


def _read_shared(result: TrainingResult) -> tuple[dict[str, Any], Ledger]:
    if result.shared is None:
        text = "the training job ended without sending its parameters"
        raise ClusterError(text, hint="driver and executors must run the same version of fatwood")
    shared = unpack(result.shared.read_bytes())
    return shared["network"], Ledger.from_json(shared["ledger"])


def _stats(
    result: TrainingResult, ledger: Ledger, *, rows_expected: int, epochs: int, **others: Any
) -> FitStats:
    workers = tuple(result.workers[rank] for rank in sorted(result.workers))
    trained = sum(record.rows for record in ledger.records)
    skipped = sum(worker.rows_skipped for worker in workers) * epochs
    return FitStats(
        workers=workers,
        rows_trained=trained,
        rows_expected=rows_expected,
        rows_lost=max(rows_expected - trained - skipped, ledger.rows_passed_over),
        rows_trained_twice=ledger.rows_twice,
        incidents=tuple(result.incidents),
        **others,
    )


def _about(job: TrainingJob, workers: int) -> dict[str, Any]:
    """What a run and one that goes on from its checkpoint must have in common beside the rows, as JSON values."""
    named = ("batch_size", "seed", "shuffle", "first_epoch", "epochs", "on_bad_row")
    return {
        "workers": workers,
        **{name: getattr(job, name) for name in named},
        "strategy": repr(job.strategy),
        "parameters": [[name, list(p.shape)] for name, p in trainable_parameters(job.network)],
    }


def _require_same(resumed: Resumed | None, about: Mapping[str, Any]) -> None:
    if resumed is not None:
        resumed.require(about)


def _resumed_job(job: TrainingJob, resumed: Resumed) -> TrainingJob:
    network = copy.deepcopy(job.network)
    try:
        network.load_state_dict(dict(resumed.network))
    except RuntimeError as error:
        text = f"resume_from: the tensors of {resumed.uri} do not fit the network: {error}"
        raise OptionError(text, hint="build the network with the arguments of the run") from error
    return replace(job, network=network, first_epoch=int(resumed.about["first_epoch"]))


def _resumed_state(resumed: Resumed) -> FitState:
    workers, epochs = int(resumed.about["workers"]), int(resumed.about["first_epoch"])
    return FitState(workers=workers, epochs=epochs, states=resumed.states)


def _slots(spark: SparkSession, workers: int | None, min_workers: int | None) -> int:
    """The number of workers; as many slots as must be there at the start are there."""
    if min_workers is None or workers is None:
        workers = require_slots(spark, workers)
    if min_workers is None:
        return workers
    if not isinstance(min_workers, int) or isinstance(min_workers, bool) or not 1 <= min_workers <= workers:
        text = f"min_workers: expected a whole number from 1 to workers={workers}, received {min_workers!r}"
        raise OptionError(text)
    require_slots(spark, min_workers)
    return workers


def _worker_count(workers: int | None, before: FitState | None, resumed: Resumed | None) -> int | None:
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        text = f"workers: expected a whole number of at least 1, or None, received {workers!r}"
        raise OptionError(text)
    if before is None:
        return workers
    if resumed is not None and workers is not None:
        resumed.require({"workers": workers})
    if workers not in (None, before.workers):
        text = f"workers: expected {before.workers} as in the last fit, whose optimizers and residuals go on, received {workers}"
        raise OptionError(text, hint="call model.reset() to begin with fresh ones")
    return before.workers
