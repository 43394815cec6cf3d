"""Evaluation over the data's own partitions: the driver's side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from fatwood.data import OnBadRow
from fatwood.data.inputs import InputSpec
from fatwood.data.preprocessing import Transform
from fatwood.errors import DataError
from fatwood.spark.evaluation_task import EVALUATION_SCHEMA, evaluate_partition, read_report
from fatwood.spark.failures import spark_errors
from fatwood.spark.given import Selection
from fatwood.spark.inference_order import NO_TRANSFORMS, order_of, require_label, rows_of
from fatwood.spark.reports import Report, merged_reports

__all__ = ["evaluate"]


def evaluate(
    data: object,
    parts: Mapping[str, Any],
    *,
    features: InputSpec | None,
    label: InputSpec | None,
    transforms: Mapping[str, Transform] = NO_TRANSFORMS,
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
    rows = rows_of(data, Selection(features=features, label=label), transforms, keyed=False)
    rows = replace(rows, layout=replace(rows.layout, weight=None))
    require_label("evaluate", rows, parts["loss"])
    order = order_of(rows, parts, batch_size, on_bad_row)
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
