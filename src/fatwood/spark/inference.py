"""Prediction and scoring over the data's own partitions: the driver's side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, DataType, FloatType, StructField, StructType

from fatwood.data import OnBadRow
from fatwood.data.inputs import InputSpec
from fatwood.data.preprocessing import Transform
from fatwood.errors import OptionError
from fatwood.spark.given import Selection
from fatwood.spark.inference_data import InferenceData
from fatwood.spark.inference_order import NO_TRANSFORMS, order_of, require_label, rows_of
from fatwood.spark.inference_task import predict_partition, score_partition
from fatwood.train import Keys

__all__ = ["predict", "score"]


def predict(
    data: object,
    network: torch.nn.Module,
    *,
    key: str | Sequence[str] | None,
    features: InputSpec | None,
    transforms: Mapping[str, Transform] = NO_TRANSFORMS,
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
    rows = rows_of(data, Selection(features=features), transforms, key)
    rows = replace(rows, layout=rows.layout.without_label())
    given = f"key={key!r} and output={output!r}"
    schema = _schema("predict", rows, names, ArrayType(FloatType(), containsNull=False), given)
    order = order_of(rows, {"network": network}, batch_size, on_bad_row, names=schema.names, outputs=keys)
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
    transforms: Mapping[str, Transform] = NO_TRANSFORMS,
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
    rows = rows_of(data, Selection(features=features, label=label, weight=weight), transforms, key)
    require_label("score", rows, parts["loss"])
    given = f"key={key!r} and output={output!r}"
    schema = _schema("score", rows, [output], FloatType(), given)
    order = order_of(rows, parts, batch_size, on_bad_row, names=schema.names)
    broadcast = rows.spark.sparkContext.broadcast(order)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return score_partition(batches, broadcast.value)

    return rows.frame.mapInArrow(task, schema)


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
