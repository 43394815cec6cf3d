"""A whole training job in one process: a thread per worker, no Spark, no sockets unless they are asked for."""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fatwood.data import Layout
from fatwood.exchange import Exchange, FixedTeam, in_process_group
from fatwood.train import EpochRecord, Recipe, Replica, Trace, TrainingJob, ValidationRecord, WorkerStats
from fatwood.train.device import Place

__all__ = ["Outcome", "shard", "train_in_threads", "training_job"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one worker ended with."""

    network: torch.nn.Module
    history: list[EpochRecord]
    validations: list[ValidationRecord]
    stopped: str | None
    stats: WorkerStats
    state: dict[str, Any]


def training_job(**options: Any) -> TrainingJob:
    """A job of options that lie side by side, as in :meth:`fatwood.SparkModel.fit`.

    Args:
        options: Fields of :class:`fatwood.train.TrainingJob`, and of its recipe.
    """
    recipe = {f.name: options.pop(f.name) for f in fields(Recipe) if f.name in options}
    return TrainingJob(recipe=Recipe(**recipe), **options)


def shard(
    features: NDArray[Any],
    labels: NDArray[Any] | None,
    row_ids: NDArray[np.int64],
    *,
    weights: NDArray[np.float32] | None = None,
    validation: bool = False,
) -> list[pa.RecordBatch]:
    """One worker's rows as Spark would send them, in one record batch.

    Args:
        features: All rows, ``(rows, width)`` float32 or int64.
        labels: All rows, ``(rows,)`` int64 or float32, or None.
        row_ids: Which of the rows, in which order ``(n,)``.
        weights: All rows, ``(rows,)``, or None.
        validation: Whether they are rows of the validation DataFrame: a worker gets these before all others.

    Returns:
        No batch when there are no rows.
    """
    if not len(row_ids):
        return []
    offsets = pa.array(np.arange(len(row_ids) + 1, dtype=np.int32) * features.shape[1])
    lists = pa.ListArray.from_arrays(offsets, pa.array(features[row_ids].ravel()))
    ids = row_ids.astype(np.int64)
    columns = {"row_id": pa.array(~ids if validation else ids), "features": lists}
    for name, values in (("label", labels), ("weight", weights)):
        if values is not None:
            columns[name] = pa.array(values[row_ids])
    return [pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))]


def train_in_threads(
    job: TrainingJob,
    shards: Sequence[Sequence[pa.RecordBatch]],
    layout: Layout,
    *,
    group: Callable[[int], list[Exchange]] = in_process_group,
    states: Mapping[int, Any] | None = None,
    prefetch: int = 0,
    traced: bool = False,
    place: Place | None = None,
    timeout_seconds: float = 60.0,
) -> list[Outcome]:
    """Train on one shard of record batches per worker.

    Args:
        job: Its network is copied for every worker and stays as it is.
        shards: For each worker the batches that Spark would send it: ``row_id``, ``features``, ``label``.
        layout: Of the rows.
        group: Makes the workers' exchanges.
        states: Each worker's state of an earlier run, by rank.
        prefetch: Minibatches that a thread of each worker reads ahead.
        traced: Whether the statistics have a trace.
        place: Where all of them compute; None for the CPU.
        timeout_seconds: After this a worker that has not ended is an error.

    Returns:
        The workers' outcomes, by rank.

    Raises:
        Exception: The first error that a worker raised, in order of time.
    """
    outcomes: list[Outcome | None] = [None] * len(shards)
    errors: list[BaseException] = []
    exchanges = group(len(shards))

    def work(rank: int) -> None:
        own = replace(job, network=copy.deepcopy(job.network))
        with exchanges[rank] as exchange:
            try:
                outcomes[rank] = train(own, rank, exchange)
            except BaseException as error:
                errors.append(error)  # before the others notice that this worker is gone

    def train(own: TrainingJob, rank: int, exchange: Exchange) -> Outcome:
        with tempfile.TemporaryDirectory() as directory:
            data = own.partition(shards[rank], layout, rank, Path(directory), prefetch=prefetch)
            with data:
                team, state = FixedTeam(exchange), (states or {}).get(rank)
                trace = Trace() if traced else None
                replica = Replica(own, team, workers=len(shards), state=state, trace=trace, place=place)
                history = replica.train(data, lambda *_: None)
                stats = replica.stats(data)
                if trace is not None:
                    stats = replace(stats, trace=trace.to_json())
                return Outcome(
                    network=own.network,
                    history=history,
                    validations=replica.ledger.validations,
                    stopped=replica.ledger.stopped,
                    stats=stats,
                    state=replica.state(),
                )

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_seconds)
    if errors:
        raise errors[0]
    done = [outcome for outcome in outcomes if outcome is not None]
    if len(done) < len(shards):
        text = f"expected {len(shards)} workers to end within {timeout_seconds} s, {len(done)} did"
        raise TimeoutError(text)
    return done
