"""The executors' side of prediction and evaluation: one partition through the network, minibatch by minibatch.

Memory is bounded by one Arrow batch of Spark's (``spark.sql.execution.arrow.maxRecordsPerBatch``) and its results.
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pyspark import TaskContext

from fatwood.data import SKIP_HINT, Batch, Layout, OnBadRow, tensors_of
from fatwood.errors import DataError, OptionError
from fatwood.evaluation import Classification, Loss
from fatwood.spark.failures import describe_failure, rebuild_failure
from fatwood.spark.shipping import unship
from fatwood.train import Criterion, Forward, LossFunction, forward, forward_and_loss, takes_batch, user_code

__all__ = [
    "EVALUATION_SCHEMA",
    "InferenceOrder",
    "Report",
    "evaluate_partition",
    "predict_partition",
    "read_report",
]

Report = Classification | Loss

EVALUATION_SCHEMA = "partition int, kind string, body string, skipped long"
"""What an evaluation task returns: one row, a report or a failure as JSON, and the bad rows left out."""

_KINDS: Mapping[str, Any] = {"classification": Classification, "loss": Loss}
_BATCHES_READ_AFTER_FAILURE = 4


@dataclass(frozen=True, kw_only=True)
class InferenceOrder:
    """All that an evaluation or prediction task is told."""

    shipped: bytes
    """Network and loss, from :func:`fatwood.spark.shipping.ship`."""
    layout: Layout
    """Of the rows."""
    measured: tuple[str, ...]
    """Which of the columns ``features`` and ``label`` are lists whose length no schema tells."""
    batch_size: int
    on_bad_row: OnBadRow


def predict_partition(
    batches: Iterator[pa.RecordBatch], order: InferenceOrder, names: list[str]
) -> Iterator[pa.RecordBatch]:
    """The keys and the network's output for every row of a partition. Runs on an executor, inside ``mapInArrow``.

    Args:
        batches: Key columns, then those of the layout.
        order: What to do.
        names: Of the key columns, and of the output.
    """
    keys = len(names) - 1
    try:
        network = _load(order)["network"]
        layout_for = _LayoutFinder(order)
        for arrow in batches:
            rows = arrow.select(range(keys, arrow.num_columns))
            batch, kept = tensors_of(rows, layout_for(rows), on_bad_row=order.on_bad_row)
            with torch.no_grad():
                outputs = [_flat(forward(network, part)) for part in _parts(batch, order.batch_size)]
            yield pa.RecordBatch.from_arrays([*arrow.columns[:keys], _lists(outputs, kept)], names=names)
    except (Exception, SystemExit) as error:
        # Spark shows the text of this error and leaves out those that it is chained to.
        where = f"partition {_partition()} on host {socket.gethostname()}"
        raise rebuild_failure(describe_failure(error), where) from None


def evaluate_partition(batches: Iterator[pa.RecordBatch], order: InferenceOrder) -> Iterator[pa.RecordBatch]:
    """A partition's report, or why there is none. Runs on an executor, inside ``mapInArrow``.

    The task ends normally either way: one that fails would only be started again by Spark, with the same error.

    Args:
        batches: The columns of the layout.
        order: What to do.
    """
    skipped = 0
    try:
        report, skipped = _evaluate(batches, order)
        kind = "empty" if report is None else type(report).__name__.lower()
        body = "" if report is None else report.to_json()
    except (Exception, SystemExit) as error:
        kind, body = "failed", json.dumps({**describe_failure(error), "host": socket.gethostname()})
        # Spark throws away a Python process that leaves input unread, and the next one has to import torch again.
        for _ in islice(batches, _BATCHES_READ_AFTER_FAILURE):
            pass
    yield pa.RecordBatch.from_pydict(
        {
            "partition": pa.array([_partition()], pa.int32()),
            "kind": [kind],
            "body": [body],
            "skipped": [skipped],
        }
    )


def read_report(partition: int, kind: str, body: str) -> Report | None:
    """What :func:`evaluate_partition` returned, on the driver.

    Returns:
        The report, or None for a partition without usable rows.

    Raises:
        FatwoodError: The partition failed.
    """
    if kind == "failed":
        failure = json.loads(body)
        raise rebuild_failure(failure, f"partition {partition} on host {failure.get('host')}")
    report: Report | None = None if kind == "empty" else _KINDS[kind].from_json(body)
    return report


def _evaluate(batches: Iterator[pa.RecordBatch], order: InferenceOrder) -> tuple[Report | None, int]:
    """A report of the usable rows, None if there are none, and how many bad ones were left out."""
    parts = _load(order)
    network, loss = parts["network"], parts["loss"]
    whole = loss if loss is not None and takes_batch(loss) else None
    criterion = None if loss is None or whole is not None else Criterion(loss, weighted=False)
    layout_for = _LayoutFinder(order)
    report: Report | None = None
    skipped = 0

    def drop(row_ids: NDArray[np.int64], message: str) -> None:
        nonlocal skipped
        if order.on_bad_row == "error":
            raise DataError(message, hint=SKIP_HINT)
        skipped += len(row_ids)

    for arrow in batches:
        batch, kept = tensors_of(arrow, layout_for(arrow), on_bad_row=order.on_bad_row)
        skipped += int((~kept).sum())
        for part in _parts(batch, order.batch_size):
            with torch.no_grad():
                result = forward_and_loss(network, criterion, part, drop)
                if whole is not None:
                    with user_code("loss", features=part.features):
                        result = result._replace(loss=whole(network, part))
            report = _count(report, result, loss)
    return report, skipped


def _count(report: Report | None, result: Forward, loss: LossFunction | None) -> Report | None:
    """The report with one more minibatch; rows whose label the loss ignores are no part of its mean, nor of the report."""
    output, label = result.output, result.label
    classes = label.dtype == torch.int64 and label.dim() == 1 and output.dim() == 2
    if not classes and loss is None:
        text = "evaluate: expected a model with loss, or a network that returns one output per class, "
        text += f"received no loss and output of shape {tuple(output.shape)}"
        raise OptionError(text, hint="SparkModel(network, loss=...)")
    ignored = getattr(loss, "ignore_index", None)
    if classes and ignored is not None:
        output, label = output[label != ignored], label[label != ignored]
    if not len(label):
        return report
    if report is None:
        report = Classification.empty(output.shape[1]) if classes else Loss.empty()
    return report.update(output, label, float(result.loss) * len(label))


def _load(order: InferenceOrder) -> dict[str, Any]:
    context = TaskContext.get()
    torch.set_num_threads(max(1, context.cpus() if context is not None else 1))
    parts = unship(order.shipped)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return parts


def _partition() -> int:
    context = TaskContext.get()
    return context.partitionId() if context is not None else 0


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        label = None if batch.label is None else batch.label[rows]
        yield Batch(features=batch.features[rows], label=label, row_ids=batch.row_ids[rows])


def _flat(output: torch.Tensor) -> NDArray[np.float32]:
    """``(B, ...)`` as ``(B, values)``."""
    flat = output.detach().reshape(len(output), math.prod(output.shape[1:]))
    array: NDArray[np.float32] = flat.to("cpu", torch.float32).numpy()
    return array


def _lists(outputs: list[NDArray[np.float32]], kept: NDArray[np.bool_]) -> pa.Array:
    """One list per row of the Arrow batch, null where a row was not kept."""
    lengths = np.zeros(len(kept), np.int64)
    if outputs:
        lengths[kept] = np.concatenate([np.full(len(output), output.shape[1]) for output in outputs])
    values = np.concatenate([output.ravel() for output in outputs]) if outputs else np.zeros(0, np.float32)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values), mask=pa.array(~kept))


class _LayoutFinder:
    """The layout of a partition's rows, where lists have the length that most of the first ones have."""

    def __init__(self, order: InferenceOrder) -> None:
        self._layout = order.layout
        self._unknown = set(order.measured)

    def __call__(self, arrow: pa.RecordBatch) -> Layout:
        for column in sorted(self._unknown):
            length = _usual_length(arrow.column(column))
            if length is not None:
                self._unknown.remove(column)
                width = {"features": "feature_width", "label": "label_width"}[column]
                self._layout = replace(self._layout, **{width: length})  # type: ignore[arg-type]
        return self._layout


def _usual_length(column: pa.Array) -> int | None:
    """The most frequent length of the lists that are not empty, the first of equals; None if there are none."""
    lengths = pc.list_value_length(column)
    counts = pc.value_counts(lengths.filter(pc.greater(lengths, 0)))
    if not len(counts):
        return None
    return int(counts.field("values")[int(np.argmax(counts.field("counts")))].as_py())
