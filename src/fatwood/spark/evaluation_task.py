"""The executors' side of evaluation: one partition through the network, minibatch by minibatch."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fatwood.spark.failures import describe_failure, rebuild_failure
from fatwood.spark.inference_rows import (
    InferenceOrder,
    Minibatches,
    dropping,
    load,
    partition_id,
    rows_of_task,
)
from fatwood.spark.reports import Report, Tally, packed_report, read_packed_report

__all__ = ["EVALUATION_SCHEMA", "evaluate_partition", "read_report"]

EVALUATION_SCHEMA = "partition int, kind string, body string, skipped long"
"""What an evaluation task returns: one row, a report or a failure as JSON, and the bad rows left out."""

_BATCHES_READ_AFTER_FAILURE = 4


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
        kind, body = packed_report(report)
    except (Exception, SystemExit) as error:
        kind, body = "failed", json.dumps({**describe_failure(error), "host": socket.gethostname()})
        # Spark throws away a Python process that leaves input unread, and the next one has to import torch again.
        for _ in islice(batches, _BATCHES_READ_AFTER_FAILURE):
            pass
    yield pa.RecordBatch.from_pydict(
        {
            "partition": pa.array([partition_id()], pa.int32()),
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
    return read_packed_report(kind, body)


def _evaluate(batches: Iterator[pa.RecordBatch], order: InferenceOrder) -> tuple[Report | None, int]:
    """A report of the usable rows, None if there are none, and how many bad ones were left out."""
    parts = load(order)
    feed, tally = Minibatches(order, parts.decoders), Tally(parts.network, parts.loss)
    skipped = 0

    def drop(row_ids: NDArray[np.int64], message: str) -> None:
        nonlocal skipped
        dropping(order)(row_ids, message)
        skipped += len(row_ids)

    for arrow in rows_of_task(batches, order):
        minibatches, kept = feed(arrow)
        skipped += int((~kept).sum())
        for batch in minibatches:
            with torch.no_grad():
                tally.add(batch, drop)
    return tally.report, skipped
