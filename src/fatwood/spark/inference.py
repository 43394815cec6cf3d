"""Prediction and evaluation over a DataFrame's own partitions: the driver's side."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch
from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType

from fatwood.data import OnBadRow
from fatwood.errors import DataError, OptionError
from fatwood.spark.columns import Columns, find_field, named_column, resolve_columns
from fatwood.spark.failures import spark_errors
from fatwood.spark.inference_task import (
    EVALUATION_SCHEMA,
    InferenceOrder,
    Report,
    evaluate_partition,
    predict_partition,
    read_report,
)
from fatwood.spark.session import require_spark
from fatwood.spark.shipping import ship

__all__ = ["evaluate", "predict"]


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
    """The network's output for every row, lazily; see :meth:`fatwood.SparkModel.predict`."""
    spark = require_spark(df)
    columns = resolve_columns(df, features, None)
    keys = _key_fields(df, key, output)
    order = _order(columns, {"network": network}, batch_size, on_bad_row)
    broadcast = spark.sparkContext.broadcast(order)
    schema = StructType([*keys, StructField(output, ArrayType(FloatType(), containsNull=False))])
    names = [field.name for field in schema]

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return predict_partition(batches, broadcast.value, names)

    # A key may itself be called "features" or "row_id".
    selected = [named_column(field).alias(f"key_{i}") for i, field in enumerate(keys)]
    return df.select(*selected, *columns.packed).mapInArrow(task, schema)


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
    if columns.label_dtype == "float32" and parts["loss"] is None:
        text = f"evaluate: expected a model with loss, as the label {label!r} is no class, received none"
        hint = "SparkModel(network, loss=...); or cast the label to int if it is a class"
        raise OptionError(text, hint=hint)
    order = _order(columns, parts, batch_size, on_bad_row)
    broadcast = spark.sparkContext.broadcast(order)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return evaluate_partition(batches, broadcast.value)

    try:
        with spark_errors():
            answers = df.select(*columns.packed).mapInArrow(task, EVALUATION_SCHEMA).collect()
    finally:
        broadcast.destroy()
    answers.sort(key=lambda answer: int(answer.partition))
    found = [read_report(answer.partition, answer.kind, answer.body) for answer in answers]
    reports = [report for report in found if report is not None]
    if not reports:
        text = "evaluate: expected at least one usable row, the DataFrame has none"
        raise DataError(text, hint="look at its filters, and for rows that were skipped as bad")
    merged = functools.reduce(lambda a, b: a.merge(b), reports)  # type: ignore[arg-type]
    merged.skipped = sum(answer.skipped for answer in answers)
    return merged


def _key_fields(df: DataFrame, key: str | Sequence[str], output: str) -> list[StructField]:
    """The fields of the key columns, their names found to differ from each other and from the output's."""
    names = [key] if isinstance(key, str) else key
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        text = f"key: expected the name of a column or a list of names, received {key!r}"
        hint = "name the columns that tell rows apart; df.withColumn('id', F.monotonically_increasing_id()) makes one"
        raise OptionError(text, hint=hint)
    if not isinstance(output, str) or not output:
        text = f"output: expected a name for the new column, received {output!r}"
        raise OptionError(text)
    fields = [find_field(df, name) for name in names]
    columns = [*(field.name for field in fields), output]
    if df.sparkSession.conf.get("spark.sql.caseSensitive") != "true":
        columns = [name.lower() for name in columns]
    if len(set(columns)) < len(columns):
        text = f"predict: expected different names for key and output columns, received key={key!r} and output={output!r}"
        raise OptionError(
            text, hint="name every key once, and pass output=... to call the new column otherwise"
        )
    return fields


def _order(columns: Columns, parts: dict[str, Any], batch_size: int, on_bad_row: OnBadRow) -> InferenceOrder:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        text = f"batch_size: expected a whole number of at least 1, received {batch_size!r}"
        raise OptionError(text)
    if on_bad_row not in ("error", "skip"):
        text = f"on_bad_row: expected 'error' or 'skip', received {on_bad_row!r}"
        raise OptionError(text)
    lists = columns.size_exprs.keys()
    of_features = not lists.isdisjoint(columns.feature_names)
    of_label = columns.label_name in lists
    layout = columns.layout(
        feature_width=1 if of_features else len(columns.feature_names), label_width=1 if of_label else None
    )
    measured = ["features"] * of_features + ["label"] * of_label
    return InferenceOrder(
        shipped=ship(parts),
        layout=layout,
        measured=tuple(measured),
        batch_size=batch_size,
        on_bad_row=on_bad_row,
    )
