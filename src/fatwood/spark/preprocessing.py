"""Preprocessing is fitted over a DataFrame's own partitions: each task counts its rows, the driver adds the counts up.

A task returns one row of JSON. What is counted is exact, so neither the partitions nor their order can be seen in the result.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator, Mapping
from itertools import islice

import pyarrow as pa
from pyspark import TaskContext

from fatwood.data import Layout, OnBadRow
from fatwood.data.fitting import Fitting, all_fitted
from fatwood.data.preprocessing import Transform
from fatwood.spark.delivery import hand_to_tasks
from fatwood.spark.failures import describe_failure, rebuild_failure, spark_errors
from fatwood.spark.feeds import Shares
from fatwood.spark.shipping import ship, unship

__all__ = ["fit_transforms"]

_SCHEMA = "partition int, body string, failed boolean, skipped long"
_BATCHES_READ_AFTER_FAILURE = 4

_log = logging.getLogger("fatwood.preprocessing")


def fit_transforms(
    rows: Shares, layout: Layout, transforms: Mapping[str, Transform], on_bad_row: OnBadRow
) -> dict[str, Transform]:
    """Fit what is not fitted, in one pass over the rows; a `Chain` takes one for each of its members that must be fitted.

    Args:
        rows: Of `OpenFeed.spread`; columns of texts as they are.
        layout: Of the rows; its own transforms do not matter.
        transforms: By the name of the field.
        on_bad_row: What to do with bad rows; those that are left out are not counted.

    Returns:
        All transforms, fitted; no job is run where all are.

    Raises:
        DataError: A row is bad and `on_bad_row` is ``"error"``; or there are no good rows, or too many different texts.
        OptionError: A transform is for no field of the layout.
        SchemaError: One that is fitted was fitted with rows of another shape, or does not take its column.
    """
    found = dict(transforms)
    while not all_fitted(found):
        found = _one_pass(rows, layout, found, on_bad_row)
    Fitting(layout, found)  # finds those that were fitted with other rows
    return found


def _one_pass(
    rows: Shares, layout: Layout, transforms: Mapping[str, Transform], on_bad_row: OnBadRow
) -> dict[str, Transform]:
    fitting = Fitting(layout, transforms)
    shipped = ship({"layout": layout, "transforms": dict(transforms), "reader": rows.reader})
    handed = hand_to_tasks(rows.frame.sparkSession, shipped)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return _count_partition(batches, handed.value, on_bad_row)

    try:
        with spark_errors():
            answers = rows.frame.mapInArrow(task, _SCHEMA).collect()
    finally:
        handed.destroy()
    answers.sort(key=lambda answer: int(answer.partition))
    for answer in answers:
        if answer.failed:
            failure = json.loads(answer.body)
            raise rebuild_failure(failure, f"partition {answer.partition} on host {failure.get('host')}")
    for answer in answers:
        fitting.merge_json(answer.body)
    skipped = sum(answer.skipped for answer in answers)
    if skipped:
        _log.warning("preprocessing was fitted without %d bad rows", skipped)
    return fitting.fitted()


def _count_partition(
    batches: Iterator[pa.RecordBatch], shipped: bytes, on_bad_row: OnBadRow
) -> Iterator[pa.RecordBatch]:
    """A partition's tallies, or why there are none. Runs on an executor, inside ``mapInArrow``.

    The task ends normally either way: one that fails would only be started again by Spark, with the same error.
    """
    context = TaskContext.get()
    partition = 0 if context is None else context.partitionId()
    skipped, failed = 0, False
    try:
        parts = unship(shipped)
        fitting = Fitting(parts["layout"], parts["transforms"])
        reader = parts["reader"]
        for batch in batches if reader is None else reader.batches(partition):
            skipped += fitting.update(batch, on_bad_row=on_bad_row)
        body = fitting.to_json()
    except (Exception, SystemExit) as error:
        failed, body = True, json.dumps({**describe_failure(error), "host": socket.gethostname()})
        # Spark throws away a Python process that leaves input unread, and the next one has to import torch again.
        for _ in islice(batches, _BATCHES_READ_AFTER_FAILURE):
            pass
    yield pa.RecordBatch.from_pydict(
        {
            "partition": pa.array([partition], pa.int32()),
            "body": [body],
            "failed": [failed],
            "skipped": [skipped],
        }
    )
