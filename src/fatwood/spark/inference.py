"""Prediction, scoring and evaluation over the data's own partitions: the driver's side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import torch
from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, DataType, FloatType, StructField, StructType

from fatwood.data import OnBadRow
from fatwood.data.inputs import InputSpec
from fatwood.data.preprocessing import Transform
from fatwood.errors import DataError, OptionError
from fatwood.spark.failures import spark_errors
from fatwood.spark.given import Selection, texts_of
from fatwood.spark.inference_data import InferenceData, inference_data
from fatwood.spark.inference_rows import InferenceOrder
from fatwood.spark.inference_task import (
    EVALUATION_SCHEMA,
    evaluate_partition,
    predict_partition,
    read_report,
    score_partition,
)
from fatwood.spark.reports import TOGETHER, Report, merged_reports
from fatwood.spark.shipping import ship
from fatwood.train import AnyLoss, Keys, losses_of, require_labels, takes_batch

__all__ = ["evaluate", "predict", "score"]


_NONE: Mapping[str, Transform] = MappingProxyType({})


def predict(
    data: object,
    network: torch.nn.Module,
    *,
    key: str | Sequence[str] | None,
    features: InputSpec | None,
    transforms: Mapping[str, Transform] = _NONE,
    output: str,
    outputs: Sequence[str] | int | None = None,
    batch_size: int,
    on_bad_row: OnBadRow,
) -> DataFrame:
    """The network's output for every row, lazily; see :meth:`fatwood.SparkModel.predict`.

    Args:
        data: The rows, of any form.
        network: As it is now.
        key: Column or columns; None for minibatches, whose rows are then told by ``partition`` or ``file``, and ``row``.
        features: What the network is called with; None for minibatches.
        transforms: Preprocessing by the names of fields, fitted.
        output: Name of the new column; of several outputs each is called ``{output}_{its name or position}``.
        outputs: Names of the outputs of a network that returns a dict, or how many one has that returns a tuple.
        batch_size: Rows per forward pass.
        on_bad_row: What to do with bad rows.
    """
    keys = _output_keys(outputs)
    _require_name(output)
    names = [output] if keys is None else [f"{output}_{part}" for part in _listed(keys)]
    rows = _data(data, Selection(features=features), transforms, key)
    rows = replace(rows, layout=rows.layout.without_label())
    given = f"key={key!r} and output={output!r}"
    schema = _schema("predict", rows, names, ArrayType(FloatType(), containsNull=False), given)
    order = _order(rows, {"network": network}, batch_size, on_bad_row, names=schema.names, outputs=keys)
    broadcast = rows.spark.sparkContext.broadcast(order)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return predict_partition(batches, broadcast.value)

    return rows.frame.mapInArrow(task, schema)


def score(
    data: object,
    parts: Mapping[str, Any],
    *,
    key: str | Sequence[str] | None,
    features: InputSpec | None,
    label: InputSpec | None,
    weight: str | None = None,
    transforms: Mapping[str, Transform] = _NONE,
    output: str = "score",
    batch_size: int,
    on_bad_row: OnBadRow,
) -> DataFrame:
    """The loss of every row, lazily; see :meth:`fatwood.SparkModel.score`.

    Args:
        data: The rows, of any form.
        parts: ``network`` and ``loss``.
        key: As in :func:`predict`.
        features: What the network is called with.
        label: What the loss is given; None for minibatches, and for a loss that is called with them and needs no label.
        weight: A column that each row's loss is multiplied by.
        transforms: As in :func:`predict`.
        output: Name of the new column.
        batch_size: Rows per forward pass.
        on_bad_row: What to do with bad rows.
    """
    if parts["loss"] is None:
        text = "score: expected a model with loss, received none"
        raise OptionError(text, hint="SparkModel(network, loss=...)")
    _require_name(output)
    rows = _data(data, Selection(features=features, label=label, weight=weight), transforms, key)
    _require_label("score", rows, parts["loss"])
    given = f"key={key!r} and output={output!r}"
    schema = _schema("score", rows, [output], FloatType(), given)
    order = _order(rows, parts, batch_size, on_bad_row, names=schema.names)
    broadcast = rows.spark.sparkContext.broadcast(order)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return score_partition(batches, broadcast.value)

    return rows.frame.mapInArrow(task, schema)


def evaluate(
    data: object,
    parts: Mapping[str, Any],
    *,
    features: InputSpec | None,
    label: InputSpec | None,
    transforms: Mapping[str, Transform] = _NONE,
    batch_size: int,
    on_bad_row: OnBadRow,
) -> Report:
    """Evaluate on all rows and merge the partitions' reports, in their order; see :meth:`fatwood.SparkModel.evaluate`.

    Args:
        data: The rows, of any form.
        parts: ``network``, and ``loss`` or ``None``.
        features: What the network is called with.
        label: What its outputs are compared with; None as in :func:`score`.
        transforms: As in :func:`predict`.
        batch_size: Rows per forward pass.
        on_bad_row: What to do with bad rows.
    """
    rows = _data(data, Selection(features=features, label=label), transforms, keyed=False)
    rows = replace(rows, layout=replace(rows.layout, weight=None))
    _require_label("evaluate", rows, parts["loss"])
    order = _order(rows, parts, batch_size, on_bad_row)
    broadcast = rows.spark.sparkContext.broadcast(order)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return evaluate_partition(batches, broadcast.value)

    try:
        with spark_errors():
            answers = rows.frame.mapInArrow(task, EVALUATION_SCHEMA).collect()
    finally:
        broadcast.destroy()
    answers.sort(key=lambda answer: int(answer.partition))
    found = [read_report(answer.partition, answer.kind, answer.body) for answer in answers]
    reports = [report for report in found if report is not None]
    if not reports:
        text = "evaluate: expected at least one usable row, the DataFrame has none"
        raise DataError(text, hint="look at its filters, and for rows that were skipped as bad")
    return merged_reports(reports, sum(answer.skipped for answer in answers))


def _require_label(where: str, rows: InferenceData, loss: AnyLoss | None) -> None:
    """Refuse labels and a loss that do not belong together."""
    group = rows.layout.label
    if group is None:
        if loss is None or not takes_batch(loss):
            text = f"{where}: expected a label, received None"
            hint = "only a loss(network, batch), whose second parameter is called batch, does without labels"
            raise OptionError(text, hint=hint)
        return
    if loss is None:
        numbers = [field.title for field in group.fields if field.dtype == "float32"]
        if numbers:
            text = (
                f"{where}: expected a model with loss, as the label {numbers[0]!r} is no class, received none"
            )
            hint = "SparkModel(network, loss=...); or cast the label to int if it is a class"
            raise OptionError(text, hint=hint)
        return
    require_labels(loss, group.keys)
    if losses_of(loss) is None and isinstance(group.keys, tuple) and TOGETHER in group.keys:
        text = f"{where}: expected other names of labels than {TOGETHER!r}, which is the report of the loss of all outputs"
        raise OptionError(
            text, hint=f"rename the label, or give each output a loss: loss={{{TOGETHER!r}: ..., ...}}"
        )


def _output_keys(outputs: Any) -> Keys:
    if outputs is None or (isinstance(outputs, int) and not isinstance(outputs, bool) and outputs > 0):
        return outputs
    if isinstance(outputs, Sequence) and outputs and not isinstance(outputs, str):
        words = all(isinstance(name, str) and name for name in outputs)
        if words and len(set(outputs)) == len(outputs):
            return tuple(outputs)
    text = f"outputs: expected different names of the network's outputs, how many there are, or None, received {outputs!r}"
    raise OptionError(
        text, hint='outputs=["a", "b"] for a network that returns a dict, outputs=2 for a tuple'
    )


def _listed(keys: tuple[str, ...] | int) -> Sequence[str | int]:
    return range(keys) if isinstance(keys, int) else keys


def _require_name(output: object) -> None:
    if not isinstance(output, str) or not output:
        text = f"output: expected a name for the new column, received {output!r}"
        raise OptionError(text)


def _schema(where: str, rows: InferenceData, new: Sequence[str], kind: DataType, given: str) -> StructType:
    """Of the result; the names of keys and new columns are found to differ."""
    columns = [*(field.name for field in rows.keys), *new]
    if rows.spark.conf.get("spark.sql.caseSensitive") != "true":
        columns = [name.lower() for name in columns]
    if len(set(columns)) < len(columns):
        text = f"{where}: expected different names for key and output columns, received {given}"
        raise OptionError(
            text, hint="name every key once, and pass output=... to call the new column otherwise"
        )
    return StructType([*rows.keys, *(StructField(name, kind) for name in new)])


def _data(
    data: object,
    selection: Selection,
    transforms: Mapping[str, Transform],
    key: object = None,
    *,
    keyed: bool = True,
) -> InferenceData:
    unfitted = [name for name, transform in transforms.items() if not transform.fitted]
    if unfitted:
        text = f"preprocessing: expected transforms that are fitted, received none for {', '.join(unfitted)}"
        raise OptionError(text, hint="call model.fit first, or load a model that was saved after it")
    rows = inference_data(data, replace(selection, text=texts_of(transforms)), key, keyed=keyed)
    return replace(rows, layout=replace(rows.layout, transforms=dict(transforms)))


def _order(
    rows: InferenceData,
    parts: Mapping[str, Any],
    batch_size: int,
    on_bad_row: OnBadRow,
    *,
    names: Sequence[str] = (),
    outputs: Keys = None,
) -> InferenceOrder:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        text = f"batch_size: expected a whole number of at least 1, received {batch_size!r}"
        raise OptionError(text)
    if on_bad_row not in ("error", "skip"):
        text = f"on_bad_row: expected 'error' or 'skip', received {on_bad_row!r}"
        raise OptionError(text)
    return InferenceOrder(
        shipped=ship({**parts, "decoders": rows.decoders}),
        reading=None if rows.reader is None else ship({"reader": rows.reader}),
        columns=rows.names,
        layout=rows.layout,
        measured=rows.measured,
        keys=len(rows.keys),
        key_types=rows.key_types,
        numbered=rows.numbered,
        names=tuple(names),
        batch_size=batch_size,
        on_bad_row=on_bad_row,
        outputs=outputs,
    )
