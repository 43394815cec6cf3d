"""Prediction and evaluation: the network in every task, minibatch by minibatch, over the DataFrame's own partitions.

Memory is bounded by one Arrow batch of Spark's (``spark.sql.execution.arrow.maxRecordsPerBatch``) and its results.
"""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType

from fatwood.data import SKIP_HINT, Batch, Layout, OnBadRow, tensors_of
from fatwood.errors import DataError, OptionError, UserCodeError
from fatwood.evaluation import Classification, Loss
from fatwood.spark.columns import Columns, find_field, named_column, resolve_columns
from fatwood.spark.failures import describe_failure, failure_of_spark, rebuild_failure
from fatwood.spark.session import require_spark
from fatwood.spark.shipping import ship
from fatwood.train import Forward, forward_and_loss, user_code

__all__ = ["InferenceOrder", "evaluate", "predict"]

Report = Classification | Loss


@dataclass(frozen=True, kw_only=True)
class InferenceOrder:
    """All that an evaluation or prediction task is told."""

    shipped: bytes
    """Network and loss, from :func:`fatwood.spark.shipping.ship`."""
    layout: Layout
    """Of the rows; its widths are replaced by those of the partition's first row."""
    batch_size: int
    on_bad_row: OnBadRow


def predict(
    df: DataFrame,
    network: torch.nn.Module,
    *,
    key: str | Sequence[str],
    features: str | Sequence[str],
    output: str,
    batch_size: int,
    on_bad_row: OnBadRow,
) -> DataFrame:
    """The network's output for every row; see :meth:`fatwood.SparkModel.predict`."""
    spark = require_spark(df)
    columns = resolve_columns(df, features, None)
    keys = [key] if isinstance(key, str) else list(key)
    key_fields = [find_field(df, name) for name in keys]
    if output in keys or not keys or len(set(keys)) < len(keys):
        text = f"predict: expected different names for key and output columns, received key={keys} and output={output!r}"
        raise OptionError(text)
    order = _order(columns, {"network": network}, batch_size, on_bad_row)
    broadcast = spark.sparkContext.broadcast(order)
    schema = StructType([*key_fields, StructField(output, ArrayType(FloatType(), containsNull=False))])
    names = [field.name for field in schema]

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return _predict_batches(batches, broadcast.value, names)

    aliases = [f"key_{i}" for i in range(len(keys))]  # a key may be called "features"
    selected = [named_column(field).alias(alias) for field, alias in zip(key_fields, aliases, strict=True)]
    rows = df.select(*selected, *columns.packed)
    return rows.mapInArrow(task, schema)


def evaluate(
    df: DataFrame,
    parts: dict[str, Any],
    *,
    features: str | Sequence[str],
    label: str,
    batch_size: int,
    on_bad_row: OnBadRow,
) -> Report:
    """Evaluate on all rows and merge the partitions' reports, in their order; see :meth:`fatwood.SparkModel.evaluate`.

    Args:
        df: The rows.
        parts: ``network``, and ``loss`` or ``None``.
        features: Column or columns.
        label: Column.
        batch_size: Rows per forward pass.
        on_bad_row: What to do with bad rows.
    """
    spark = require_spark(df)
    columns = resolve_columns(df, features, label)
    order = _order(columns, parts, batch_size, on_bad_row)
    broadcast = spark.sparkContext.broadcast(order)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return _evaluate_batches(batches, broadcast.value)

    rows = df.select(*columns.packed)
    try:
        answers = rows.mapInArrow(task, "partition int, kind string, body string").collect()
    except Exception as error:
        raise failure_of_spark(error) from error
    finally:
        broadcast.destroy()
    reports: list[Report] = []
    for answer in sorted(answers, key=lambda answer: int(answer.partition)):
        if answer.kind == "failed":
            failure = json.loads(answer.body)
            raise rebuild_failure(failure, f"partition {answer.partition} on host {failure.get('host')}")
        if answer.kind != "empty":
            reports.append(_REPORTS[answer.kind].from_json(answer.body))
    if not reports:
        text = "evaluate: expected at least one usable row, the DataFrame has none"
        raise DataError(text, hint="look at its filters")
    return functools.reduce(lambda a, b: a.merge(b), reports)  # type: ignore[arg-type]


def _order(columns: Columns, parts: dict[str, Any], batch_size: int, on_bad_row: OnBadRow) -> InferenceOrder:
    if not isinstance(batch_size, int) or batch_size < 1:
        text = f"batch_size: expected a whole number of at least 1, received {batch_size!r}"
        raise OptionError(text)
    if on_bad_row not in ("error", "skip"):
        text = f"on_bad_row: expected 'error' or 'skip', received {on_bad_row!r}"
        raise OptionError(text)
    list_label = columns.label_name is not None and columns.label_name in columns.size_exprs
    layout = columns.layout(feature_width=1, label_width=1 if list_label else None)
    return InferenceOrder(shipped=ship(parts), layout=layout, batch_size=batch_size, on_bad_row=on_bad_row)


_REPORTS: dict[str, Any] = {"classification": Classification, "loss": Loss}


def _predict_batches(
    batches: Iterator[pa.RecordBatch], order: InferenceOrder, names: list[str]
) -> Iterator[pa.RecordBatch]:
    network = _load(order)["network"]
    layout_for = _LayoutFinder(order.layout)
    keys = len(names) - 1
    for arrow in batches:
        rows = arrow.select(range(keys, arrow.num_columns))
        batch, kept = tensors_of(rows, layout_for(rows), on_bad_row=order.on_bad_row)
        outputs = [_output(network, part) for part in _parts(batch, order.batch_size)]
        yield pa.RecordBatch.from_arrays([*arrow.columns[:keys], _lists(outputs, kept)], names=names)


def _evaluate_batches(batches: Iterator[pa.RecordBatch], order: InferenceOrder) -> Iterator[pa.RecordBatch]:
    context = TaskContext.get()
    partition = context.partitionId() if context is not None else 0
    try:
        report = _evaluate(batches, order)
        kind = "empty" if report is None else type(report).__name__.lower()
        body = "" if report is None else report.to_json()
    except (Exception, SystemExit) as error:
        kind, body = "failed", json.dumps({**describe_failure(error), "host": socket.gethostname()})
    yield pa.RecordBatch.from_pydict(
        {"partition": pa.array([partition], pa.int32()), "kind": [kind], "body": [body]}
    )


def _evaluate(batches: Iterator[pa.RecordBatch], order: InferenceOrder) -> Report | None:
    shipped = _load(order)
    layout_for = _LayoutFinder(order.layout)
    report: Report | None = None

    def drop(_row_ids: Any, message: str) -> None:
        if order.on_bad_row == "error":
            raise DataError(message, hint=SKIP_HINT)

    for arrow in batches:
        batch, _ = tensors_of(arrow, layout_for(arrow), on_bad_row=order.on_bad_row)
        for part in _parts(batch, order.batch_size):
            with torch.inference_mode():
                result = forward_and_loss(shipped["network"], shipped["loss"], part, drop)
            if len(result.label):
                report = _count(report, result)
    return report


def _count(report: Report | None, result: Forward) -> Report:
    rows = len(result.label)
    loss_sum = float(result.loss) * rows
    if result.label.dtype == torch.int64 and result.label.dim() == 1 and result.output.dim() == 2:
        classified = (
            report if isinstance(report, Classification) else Classification.empty(result.output.shape[1])
        )
        classified.update(result.output, result.label, loss_sum)
        return classified
    measured = report if isinstance(report, Loss) else Loss.empty()
    measured.update(result.output, result.label, loss_sum)
    return measured


def _load(order: InferenceOrder) -> dict[str, Any]:
    context = TaskContext.get()
    torch.set_num_threads(max(1, context.cpus() if context is not None else 1))
    parts: dict[str, Any] = cloudpickle.loads(order.shipped)
    parts["network"].eval()
    return parts


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        label = None if batch.label is None else batch.label[rows]
        yield Batch(features=batch.features[rows], label=label, row_ids=batch.row_ids[rows])


def _output(network: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The network's output, ``(B, values)`` float32."""
    with torch.inference_mode(), user_code("network's forward", batch):
        output = network(batch.features)
    if not isinstance(output, torch.Tensor) or len(output) != len(batch):
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        text = f"TypeError: the network must return one tensor with a row for each of {len(batch)} rows, received {found}"
        raise UserCodeError(text)
    return output.reshape(len(batch), -1).to(torch.float32)


def _lists(outputs: list[torch.Tensor], kept: NDArray[np.bool_]) -> pa.Array:
    """One list per row of the Arrow batch, null where a row was not kept."""
    width = outputs[0].shape[1] if outputs else 0
    values = torch.cat(outputs).numpy().ravel() if outputs else np.zeros(0, np.float32)
    ends = np.cumsum(kept) * width
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values), mask=pa.array(~kept))


class _LayoutFinder:
    """The layout of rows whose widths may not be known before the first of them is seen."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known = False

    def __call__(self, arrow: pa.RecordBatch) -> Layout:
        if not self._known:
            width = _first_length(arrow.column("features"))
            label_width = self._layout.label_width and _first_length(arrow.column("label"))
            self._known = width > 0
            self._layout = replace(self._layout, feature_width=max(1, width), label_width=label_width)
        return self._layout


def _first_length(column: pa.Array) -> int:
    lengths = pc.list_value_length(column).drop_null()
    return int(lengths[0].as_py()) if len(lengths) else 0
