"""A fit from a DataFrame to trained parameters, on the driver: check, count, balance, train."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from fatwood.codec import trainable_parameters
from fatwood.errors import ClusterError, OptionError
from fatwood.spark.balance import balanced, inspect
from fatwood.spark.columns import resolve_columns
from fatwood.spark.failures import spark_errors
from fatwood.spark.job import ENCODING_LOG, JobOptions, run_training
from fatwood.spark.progress import ProgressBar
from fatwood.spark.session import require_slots, require_spark
from fatwood.spark.shipping import ship
from fatwood.train import FitStats, History, TrainingJob, unpack

__all__ = ["FitOutcome", "fit"]

_SHIPPED = ("network", "loss", "optimizer", "strategy")


@dataclass(frozen=True, kw_only=True)
class FitOutcome:
    """What a fit gives back to the driver."""

    state_dict: dict[str, Any]
    """Trained parameters and buffers of the network."""
    states: dict[int, Path]
    """Each worker's optimizer, residual and threshold, as files."""
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
    states: Mapping[int, Path],
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
        states: Each worker's state of an earlier fit.
        progress: Whether to show a progress bar on a terminal.
    """
    start = time.perf_counter()
    spark = require_spark(df)
    columns = resolve_columns(df, features, label)
    parameters = sum(p.numel() for _, p in trainable_parameters(job.network))
    shipped = ship({name: getattr(job, name) for name in _SHIPPED})
    _require_no_speculation(spark)
    workers = require_slots(spark, _worker_count(workers, states))
    with spark_errors():
        inspection = inspect(df, columns)
    rows = balanced(df, columns, inspection, workers=workers, seed=job.seed, shuffle=job.shuffle)
    layout = columns.layout(inspection.feature_width, inspection.label_width)
    tensor_bytes = sum(t.nbytes for t in job.network.state_dict().values())
    options = JobOptions(
        workers=workers,
        directory=directory,
        states=states,
        max_result_bytes=8 * tensor_bytes + 2**24,  # optimizers keep a few numbers per parameter
    )
    job_options = {f.name: getattr(job, f.name) for f in fields(job) if f.name not in _SHIPPED}
    with ProgressBar(
        epochs=job.epochs, first_epoch=job.first_epoch, rows=inspection.rows, shown=progress
    ) as bar:
        result = run_training(rows, shipped, job_options, layout, options, bar.update)
        for record in result.history[-1:]:  # the last report on the way was not quite the end
            bar.update(record.epoch, record.rows, record.loss)
    if result.parameters is None or len(result.states) != workers:
        text = "the training job ended without sending its parameters"
        raise ClusterError(text, hint="driver and executors must run the same version of fatwood")
    stats = FitStats(
        workers=tuple(result.workers),
        rows_expected=inspection.rows * job.epochs,
        parameters=parameters,
        seconds=time.perf_counter() - start,
    )
    for finding in stats.findings:
        ENCODING_LOG.warning("%s", finding)
    return FitOutcome(
        state_dict=unpack(result.parameters.read_bytes()),
        states=result.states,
        history=History(result.history),
        stats=stats,
    )


def _worker_count(workers: int | None, states: Mapping[int, Path]) -> int | None:
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        text = f"workers: expected a whole number of at least 1, or None, received {workers!r}"
        raise OptionError(text)
    if states and workers not in (None, len(states)):
        text = f"workers: expected {len(states)} as in the last fit, whose optimizers and residuals go on, received {workers}"
        raise OptionError(text, hint="call model.reset() to begin with fresh ones")
    return len(states) or workers


def _require_no_speculation(spark: SparkSession) -> None:
    if spark.sparkContext.getConf().get("spark.speculation", "false").lower() == "true":
        text = "spark.speculation: expected false, received true: Spark would start a second copy of a slow worker"
        raise ClusterError(text, hint="start the session with spark.speculation=false")
