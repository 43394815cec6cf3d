"""Evaluation over the data's own partitions: the driver's side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from pyspark import RDD
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import (
    ArrayType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructField,
    StructType,
    UserDefinedType,
)

from fatwood.data import OnBadRow
from fatwood.data.inputs import InputSpec
from fatwood.data.preprocessing import Transform
from fatwood.errors import DataError, OptionError, SchemaError
from fatwood.evaluation import Loss, Report, Reports, TorchMetric
from fatwood.evaluation.reports import metrics_by_output
from fatwood.files import Files
from fatwood.spark.delivery import hand_to_tasks
from fatwood.spark.evaluation_groups import MOST_GROUPS, plain_value, too_many_groups
from fatwood.spark.evaluation_task import evaluate_partition, read_answer
from fatwood.spark.failures import spark_errors
from fatwood.spark.given import Selection
from fatwood.spark.inference_data import InferenceData
from fatwood.spark.inference_order import NO_TRANSFORMS, order_of, require_label, rows_of
from fatwood.spark.reports import FITTING, TOGETHER, Found, Metrics, merged_reports
from fatwood.train import AnyLoss, Key, Objective, losses_of
from fatwood.train.activation import activation_of
from fatwood.train.device import Asked

__all__ = ["evaluate", "mean_score"]

# what an evaluation task returns behind the values of a group: reports or a failure as JSON, and the bad rows left out
_ANSWER = (
    StructField("partition", IntegerType()),
    StructField("kind", StringType()),
    StructField("body", StringType()),
    StructField("skipped", LongType()),
)


def evaluate(
    data: object,
    parts: Mapping[str, Any],
    metrics: object = None,
    *,
    features: InputSpec | None,
    label: InputSpec | None,
    weight: str | None = None,
    by: str | Sequence[str] | None = None,
    activation: str | Callable[[torch.Tensor], torch.Tensor] | None = "auto",
    transforms: Mapping[str, Transform] = NO_TRANSFORMS,
    batch_size: int,
    workers_per_node: int | None = None,
    device: Asked = "auto",
    on_bad_row: OnBadRow,
) -> Any:
    """Evaluate on all rows and merge the partitions' reports, in their order; see :meth:`fatwood.SparkModel.evaluate`.

    Args:
        data: The rows, of any form.
        parts: ``network``, and ``loss`` or ``None``.
        metrics: What to count; None for the report that fits the labels.
        features: What the network is called with.
        label: What its outputs are compared with; None as in :func:`score`.
        weight: A column that says how much each row counts.
        by: Column or columns of groups that are evaluated each by itself.
        activation: What makes probabilities of outputs, before metrics.
        transforms: As in :func:`predict`.
        batch_size: Rows per forward pass.
        workers_per_node: How many tasks of a host may be computing at a time.
        device: Where the network is called.
        on_bad_row: What to do with bad rows.
    """
    groups = _group_names(by, data)
    selection = Selection(features=features, label=label, weight=weight)
    rows = rows_of(data, selection, transforms, list(groups) or None, keyed=bool(groups))
    wanted = _wanted(metrics, rows, parts["loss"], activation)
    schema = _schema(rows)
    rows = replace(rows, key_types=tuple(to_arrow_schema(StructType(list(rows.keys))).types))
    more = {} if wanted is None else {"metrics": wanted, "activation": activation}
    order = order_of(
        rows,
        {**parts, **more},
        batch_size,
        on_bad_row,
        names=schema.names,
        workers_per_node=workers_per_node,
        device=device,
    )
    handed = hand_to_tasks(rows.spark, order)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return evaluate_partition(batches, handed.value)

    try:
        with spark_errors():
            answers = rows.frame.mapInArrow(task, schema).collect()
    finally:
        handed.destroy()
    found = _by_group(answers, len(groups), wanted)
    if not found:
        text = "evaluate: expected at least one usable row, the DataFrame has none"
        raise DataError(text, hint="look at its filters, and for rows that were skipped as bad")
    if not groups:
        return _returned(found[()], wanted)
    single = isinstance(by, str)
    return {group[0] if single else group: _returned(reports, wanted) for group, reports in found.items()}


def mean_score(data: object, parts: Mapping[str, Any], **options: Any) -> float:
    """The mean loss over all rows; see :meth:`fatwood.SparkModel.mean_score`.

    Args:
        data: The rows, of any form.
        parts: ``network`` and ``loss``.
        options: Of :func:`evaluate`.
    """
    loss: AnyLoss | None = parts["loss"]
    if loss is None:
        text = "mean_score: expected a model with loss, received none"
        raise OptionError(text, hint="SparkModel(network, loss=...)")
    found = evaluate(data, parts, {"loss": Loss()}, **options)
    if isinstance(found, Reports):
        return float(found["loss"].loss)  # type: ignore[attr-defined]
    losses = losses_of(loss)
    if losses is None:
        return float(found[TOGETHER]["loss"].loss)
    means = {key: float(reports["loss"].loss) for key, reports in found.items() if reports["loss"].rows}
    return sum(losses.weight(key) * mean for key, mean in means.items() if losses.weight(key))


def _group_names(by: Any, data: object) -> tuple[str, ...]:
    if by is None:
        return ()
    names = [by] if isinstance(by, str) else by
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        text = f"by: expected the name of a column or a list of names, received {by!r}"
        raise OptionError(text)
    if isinstance(data, RDD | Files):
        text = (
            f"by: expected None for {type(data).__name__}, whose minibatches have no columns, received {by!r}"
        )
        raise OptionError(text, hint="by= works with DataFrames, tables and Parquet")
    return tuple(names)


def _wanted(metrics: object, rows: InferenceData, loss: AnyLoss | None, activation: Any) -> Metrics | None:
    """What the tasks are to count, found to fit the data and the model."""
    if rows.frame.isStreaming:
        text = "evaluate: expected data that ends, received a streaming DataFrame"
        raise OptionError(text, hint="evaluate what the stream has written; predict and score take streams")
    weighted = rows.layout.weight is not None
    if loss is not None:
        Objective(loss, weighted=weighted)
    activation_of(None, activation)
    if metrics is None or loss is not None or rows.layout.label is None:
        require_label("evaluate", rows, loss)
    if metrics is None:
        return None
    keys: Any = None if rows.layout.label is None else rows.layout.label.keys
    listed: list[Key] = [None] if keys is None else list(range(keys) if isinstance(keys, int) else keys)
    wanted = metrics_by_output(metrics, listed)
    for name, report in (pair for of_output in wanted.values() for pair in of_output.items()):
        if isinstance(report, Loss) and loss is None:
            text = f"metrics: expected a model with loss for the report {name!r}, received none"
            raise OptionError(text, hint="SparkModel(network, loss=...)")
        if isinstance(report, TorchMetric) and weighted:
            text = f"weight: expected None for {name!r}, a metric of torchmetrics, which weighs all rows alike, received weights"
            raise OptionError(text, hint="use reports of fatwood, or leave weight out")
    return wanted


def _schema(rows: InferenceData) -> StructType:
    """Of the answers: values of groups, and what a task says of them."""
    for field in rows.keys:
        kind = field.dataType
        if (
            isinstance(kind, ArrayType | MapType | StructType | UserDefinedType)
            or kind.typeName() == "variant"
        ):
            text = f"by: expected a column of single values, received {field.name!r} of type {kind.simpleString()}"
            raise SchemaError(text, hint="name a field of it, or to_json() it first")
    groups = [StructField(f"group_{i}", field.dataType) for i, field in enumerate(rows.keys)]
    return StructType([*groups, *_ANSWER])


def _by_group(answers: Sequence[Any], columns: int, wanted: Metrics | None) -> dict[tuple[Any, ...], Found]:
    """The merged reports of each group that has any rows, in the order of their values."""
    of_group: dict[tuple[Any, ...], list[Found]] = {}
    skipped: dict[tuple[Any, ...], int] = {}
    for answer in sorted(answers, key=lambda answer: int(answer.partition)):
        reports = read_answer(answer, wanted)
        group = tuple(plain_value(value) for value in answer[:columns])
        skipped[group] = skipped.get(group, 0) + answer.skipped
        if reports is not None:
            of_group.setdefault(group, []).append(reports)
        if len(skipped) > MOST_GROUPS:
            raise too_many_groups()
    return {group: merged_reports(of_group[group], wanted, skipped[group]) for group in _in_order(of_group)}


def _in_order(groups: Mapping[tuple[Any, ...], object]) -> list[tuple[Any, ...]]:
    try:
        # null first, NaN last
        return sorted(
            groups, key=lambda group: [(value is not None, value != value, value) for value in group]
        )
    except TypeError:
        return list(groups)


def _returned(found: Found, wanted: Metrics | None) -> Any:
    """One output's reports, or a dict of several's; a single report where no metrics were asked for."""
    formed: dict[Key, Report | Reports] = {
        key: of_output[FITTING] if wanted is None else Reports(_renamed(of_output))
        for key, of_output in found.items()
    }
    return formed.get(None, formed)


def _renamed(of_output: Mapping[str, Report]) -> dict[str, Report]:
    """The loss of all outputs together is a report without a name."""
    return {name or "loss": report for name, report in of_output.items()}
