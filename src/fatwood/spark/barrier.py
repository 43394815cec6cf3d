"""Training from a client of Spark Connect: one barrier stage, whose first task is what the driver is elsewhere.

The client is not there for the workers to call, so all it does is to send the job and to read what it returns. Against a classic
session that means: lost workers are not replaced one by one, but Spark runs all of them again, from the newest checkpoint; and
callbacks on the driver hear of the epochs when the fit is over; and what workers have logged comes then, too, unless a machine
failed.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame

from fatwood.errors import ClusterError, OptionError, ProtocolError
from fatwood.spark.barrier_task import (
    ANSWER,
    RESULT_SCHEMA,
    BarrierOrder,
    bytes_as_tensor,
    run_barrier_worker,
)
from fatwood.spark.causes import explained
from fatwood.spark.delivery import deliver
from fatwood.spark.elasticity import Elasticity
from fatwood.spark.failures import rebuild_failure, spark_errors
from fatwood.spark.job import JobOptions, rendezvous_of
from fatwood.spark.task import TaskOrder
from fatwood.spark.watch import TrainingResult
from fatwood.spark.worker_logs import KeptLogs
from fatwood.spark.workers import small_arrow_batches
from fatwood.train import Incident, Record, Rendezvous, WorkerStats, record_from_json

__all__ = ["require_barrier_options", "run_barrier_training"]

_NOWHERE = ("", 0)


def require_barrier_options(elasticity: Elasticity) -> None:
    """Check that nothing is asked for that only a classic session can do.

    Raises:
        OptionError: ``min_workers`` is given.
    """
    if elasticity.min_workers is not None:
        text = f"min_workers: expected None in Spark Connect, where all workers run or none, received {elasticity.min_workers!r}"
        raise OptionError(text, hint="use a classic session to go on with fewer workers")


def run_barrier_training(
    rows: DataFrame,
    order: Callable[[Rendezvous], TaskOrder],
    options: JobOptions,
    on_progress: Callable[[Sequence[Record]], None],
    *,
    about: Mapping[str, Any],
    agreements: int,
) -> tuple[TrainingResult, int]:
    """Train on a balanced DataFrame of Spark Connect.

    Args:
        rows: As for :func:`fatwood.spark.job.run_training`.
        order: Likewise.
        options: Likewise.
        on_progress: Called with all records, at the end.
        about: What a run that goes on from a checkpoint of this one must have in common with it.
        agreements: Those before the fit, if it goes on from a checkpoint; -1 otherwise.

    Returns:
        What came back, and how many checkpoints were written.

    Raises:
        UserError: A worker raised it.
        WorldError: The cluster failed.
    """
    spark = rows.sparkSession
    told = order(rendezvous_of(options, _NOWHERE, secrets.token_bytes(32)))
    parts = {
        "order": BarrierOrder(
            task=replace(told, shipped=b"", reading=None),
            elasticity=options.elasticity,
            about=about,
            agreements=agreements,
        ),
        "shipped": bytes_as_tensor(told.shipped),
        "reading": None if told.reading is None else bytes_as_tensor(told.reading),
        "states": {rank: bytes_as_tensor(path.read_bytes()) for rank, path in options.states.items()},
    }
    delivered = deliver(spark, parts)

    def task(batches: Any) -> Any:
        return run_barrier_worker(batches, delivered)

    # Spark runs a barrier stage again only if another stage follows it.
    frame = rows.mapInArrow(task, RESULT_SCHEMA, barrier=True).repartition(1)
    tag = f"fatwood.fit-{secrets.token_hex(4)}"
    spark.addTag(tag)
    try:
        with spark_errors(), small_arrow_batches(spark):
            known = _received(frame, options.directory)
    except BaseException:
        with suppress(Exception):  # the session may be gone, and the job with it
            spark.interruptTag(tag)
        raise
    finally:
        with suppress(Exception):
            spark.removeTag(tag)
    result = _result(known, options.directory)
    on_progress([record_from_json(values) for values in known["records"]])
    return result, int(known["checkpoints"])


def _received(frame: DataFrame, directory: Path) -> dict[str, Any]:
    """The answer; files are put into the directory, piece by piece."""
    answer = None
    begun: set[Path] = set()
    for row in frame.toLocalIterator():
        if row["name"] == ANSWER:
            answer = json.loads(bytes(row["data"]))
        else:
            path = _path(directory, row["name"], row["rank"])
            with path.open("r+b" if path in begun else "xb") as file:
                file.seek(row["start"])
                file.write(row["data"])
            begun.add(path)
    if answer is None:
        text = "the training job ended without an answer"
        raise ClusterError(text, hint="driver and executors must run the same version of fatwood")
    KeptLogs.tell(answer.get("logs", ()))
    if "failure" in answer:
        raise explained(rebuild_failure(answer["failure"], "the cluster"))
    return dict(answer)


def _result(known: Mapping[str, Any], directory: Path) -> TrainingResult:
    try:
        workers = {int(rank): WorkerStats.from_json(stats) for rank, stats in known["workers"].items()}
        incidents = [Incident(**values) for values in known["incidents"]]
        return TrainingResult(
            workers=workers,
            shared=_path(directory, "shared", -1),
            states=_there(directory, "state", workers),
            traces=_there(directory, "trace", workers),
            incidents=incidents,
            started=float(known["started"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        text = f"the answer of the training job: expected the statistics of its workers, received {error!r}"
        raise ProtocolError(text, hint="driver and executors must run the same version of fatwood") from error


def _there(directory: Path, name: str, ranks: Mapping[int, object]) -> dict[int, Path]:
    paths = {rank: _path(directory, name, rank) for rank in ranks}
    return {rank: path for rank, path in paths.items() if path.exists()}


def _path(directory: Path, name: str, rank: int) -> Path:
    return directory / f"{name}-{rank}"
