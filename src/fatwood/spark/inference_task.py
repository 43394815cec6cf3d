"""The executors' side of prediction and scoring: one partition through the network, minibatch by minibatch.

Memory is bounded by one Arrow batch of Spark's (``spark.sql.execution.arrow.maxRecordsPerBatch``) and its results.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fatwood.spark.failures import describe_failure, rebuild_failure
from fatwood.spark.inference_rows import (
    InferenceOrder,
    Minibatches,
    dropping,
    key_columns,
    load,
    partition_id,
    rows_of_task,
)
from fatwood.train import Caller, RowLosses, Trimmer, outputs_of, takes_batch

__all__ = ["predict_partition", "score_partition"]


def predict_partition(batches: Iterator[pa.RecordBatch], order: InferenceOrder) -> Iterator[pa.RecordBatch]:
    """The keys and the network's outputs for every row of a partition. Runs on an executor, inside ``mapInArrow``.

    Args:
        batches: Key columns, then those of the layout.
        order: What to do.
    """
    with named_failures():
        parts = load(order)
        feed, call = Minibatches(order, parts.decoders), Caller(parts.network)
        trimmer = Trimmer(call, order.outputs)
        for arrow in rows_of_task(batches, order):
            minibatches, kept = feed(arrow)
            lists = [_Lists() for _ in order.names[order.keys :]]
            for batch in minibatches:
                with torch.no_grad():
                    outputs = outputs_of(call(batch), order.outputs, len(batch))
                    masks = trimmer.masks(batch, outputs)
                for column, (key, output) in zip(lists, outputs.items(), strict=True):
                    column.add(output, masks.get(key))
            columns = [*key_columns(arrow, order), *(column.arrow(kept) for column in lists)]
            yield pa.RecordBatch.from_arrays(columns, names=list(order.names))


def score_partition(batches: Iterator[pa.RecordBatch], order: InferenceOrder) -> Iterator[pa.RecordBatch]:
    """The keys and the loss of every row of a partition; null where it has none. Runs on an executor.

    Args:
        batches: Key columns, then those of the layout.
        order: What to do.
    """
    with named_failures():
        parts = load(order)
        assert parts.loss is not None  # noqa: S101  the driver looked
        losses = RowLosses(parts.network, parts.loss)
        feed = Minibatches(order, parts.decoders, 1 if takes_batch(parts.loss) else None)
        for arrow in rows_of_task(batches, order):
            minibatches, kept = feed(arrow)
            found, there = [np.zeros(0)], [np.zeros(0, np.bool_)]
            for batch in minibatches:
                with torch.no_grad():
                    values, own = losses(batch, dropping(order))
                found.append(values)
                there.append(own)
            scores = np.zeros(len(kept), np.float32)
            scores[kept] = np.concatenate(found)
            scored = kept.copy()
            scored[kept] = np.concatenate(there)
            columns = [*key_columns(arrow, order), pa.array(scores, mask=~scored)]
            yield pa.RecordBatch.from_arrays(columns, names=list(order.names))


@contextmanager
def named_failures() -> Iterator[None]:
    """Raise what happens as Spark shows it: the text of this error, without those that it is chained to."""
    try:
        yield
    except (Exception, SystemExit) as error:
        where = f"partition {partition_id()} on host {socket.gethostname()}"
        raise rebuild_failure(describe_failure(error), where) from None


class _Lists:
    """A column of one output: a list of floats for every row."""

    def __init__(self) -> None:
        self._values: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
        self._lengths: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]

    def add(self, output: torch.Tensor, mask: torch.Tensor | None) -> None:
        """The rows of a minibatch.

        Args:
            output: ``(B, ...)``, each row flattened.
            mask: ``(B, T)`` for an output of steps, of which the real ones alone are taken.
        """
        steps = torch.ones(len(output), dtype=torch.int64) if mask is None else mask.sum(1)
        output = output.detach() if mask is None else output.detach()[mask]
        width = int(np.prod(output.shape[1:]))
        self._values.append(output.reshape(-1).to("cpu", torch.float32).numpy())
        self._lengths.append(steps.cpu().numpy() * width)

    def arrow(self, kept: NDArray[np.bool_]) -> pa.Array:
        """One list per row of the Arrow batch, null where a row was not kept."""
        lengths = np.zeros(len(kept), np.int64)
        lengths[kept] = np.concatenate(self._lengths)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        values = pa.array(np.concatenate(self._values))
        return pa.ListArray.from_arrays(offsets, values, mask=pa.array(~kept))
