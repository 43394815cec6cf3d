"""A whole training job in one process: a thread per worker, no Spark, no sockets unless they are asked for."""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fatwood.data import Layout
from fatwood.exchange import Exchange, FixedTeam, in_process_group
from fatwood.train import EpochRecord, Replica, TrainingJob, WorkerStats

__all__ = ["Outcome", "shard", "train_in_threads"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one worker ended with."""

    network: torch.nn.Module
    history: list[EpochRecord]
    stats: WorkerStats
    state: dict[str, Any]


def shard(features: NDArray[Any], labels: NDArray[Any], row_ids: NDArray[np.int64]) -> list[pa.RecordBatch]:
    """One worker's rows as Spark would send them, in one record batch.

    Args:
        features: All rows, ``(rows, width)`` float32 or int64.
        labels: All rows, ``(rows,)`` int64 or float32.
        row_ids: Which of the rows, in which order ``(n,)``.

    Returns:
        No batch when there are no rows.
    """
    if not len(row_ids):
        return []
    offsets = pa.array(np.arange(len(row_ids) + 1, dtype=np.int32) * features.shape[1])
    lists = pa.ListArray.from_arrays(offsets, pa.array(features[row_ids].ravel()))
    columns = [pa.array(row_ids.astype(np.int64)), lists, pa.array(labels[row_ids])]
    return [pa.RecordBatch.from_arrays(columns, names=["row_id", "features", "label"])]


def train_in_threads(
    job: TrainingJob,
    shards: Sequence[Sequence[pa.RecordBatch]],
    layout: Layout,
    *,
    group: Callable[[int], list[Exchange]] = in_process_group,
    states: Mapping[int, Any] | None = None,
    timeout_seconds: float = 60.0,
) -> list[Outcome]:
    """Train on one shard of record batches per worker.

    Args:
        job: Its network is copied for every worker and stays as it is.
        shards: For each worker the batches that Spark would send it: ``row_id``, ``features``, ``label``.
        layout: Of the rows.
        group: Makes the workers' exchanges.
        states: Each worker's state of an earlier run, by rank.
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
        try:
            with tempfile.TemporaryDirectory() as directory, exchanges[rank] as exchange:
                data = own.partition(shards[rank], layout, rank, Path(directory))
                with data:
                    team, state = FixedTeam(exchange), (states or {}).get(rank)
                    replica = Replica(own, team, workers=len(shards), state=state)
                    history = replica.train(data, lambda *_: None)
                    stats = replica.stats(data)
                    outcomes[rank] = Outcome(
                        network=own.network, history=history, stats=stats, state=replica.state()
                    )
        except BaseException as error:
            errors.append(error)

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
