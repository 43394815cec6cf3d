"""The executors' side of evaluation: one partition through the network, minibatch by minibatch."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fatwood.data import Batch
from fatwood.spark.evaluation_groups import Groups
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
from fatwood.spark.reports import Found, Metrics, packed_reports, read_packed_reports
from fatwood.spark.tally import Counted, Tally

__all__ = ["evaluate_partition", "read_answer"]

_BATCHES_READ_AFTER_FAILURE = 4
_GROUPS_AT_ONCE = 64


def evaluate_partition(batches: Iterator[pa.RecordBatch], order: InferenceOrder) -> Iterator[pa.RecordBatch]:
    """A partition's reports, a row for each group; or why there are none. Runs on an executor, inside ``mapInArrow``.

    The task ends normally either way: one that fails would only be started again by Spark, with the same error.

    Args:
        batches: Columns of groups, then those of the layout.
        order: What to do; its keys are the columns of groups.
    """
    kinds = order.key_types or ()
    try:
        task = _Evaluation(order)
        for arrow in rows_of_task(batches, order):
            task.add(arrow)
        answers = list(task.answers())
    except (Exception, SystemExit) as error:
        body = json.dumps({**describe_failure(error), "host": socket.gethostname()})
        answers = [_answer(order, [pa.nulls(1, kind) for kind in kinds], ["failed"], [body], [0])]
        # Spark throws away a Python process that leaves input unread, and the next one has to import torch again.
        for _ in islice(batches, _BATCHES_READ_AFTER_FAILURE):
            pass
    yield from answers


def read_answer(answer: Any, metrics: Metrics | None) -> Found | None:
    """What :func:`evaluate_partition` returned, on the driver.

    Args:
        answer: A row.
        metrics: What the task was asked to count.

    Returns:
        The reports of a group; None where it has no usable row in the partition.

    Raises:
        FatwoodError: The partition failed.
    """
    if answer.kind == "failed":
        failure = json.loads(answer.body)
        raise rebuild_failure(failure, f"partition {answer.partition} on host {failure.get('host')}")
    return None if answer.kind == "empty" else read_packed_reports(answer.body, metrics)


class _Evaluation:
    """Of one partition."""

    def __init__(self, order: InferenceOrder) -> None:
        parts = load(order)
        self._order = order
        self._feed = Minibatches(order, parts.decoders)
        self._tally = Tally(
            parts.network,
            parts.loss,
            parts.others.get("metrics"),
            parts.others.get("activation"),
            weighted=order.layout.weight is not None,
            device=parts.device,
        )
        self._groups = Groups(order.key_types or ())
        self._skipped: dict[int, int] = {}

    def add(self, arrow: pa.RecordBatch) -> None:
        """Count the rows of an Arrow batch."""
        columns = key_columns(arrow, self._order) if self._order.keys else []
        groups = self._groups(columns, len(arrow))
        minibatches, kept = self._feed(arrow)
        self._skip(groups[~kept])
        left = groups[kept]

        def work(batch: Batch) -> tuple[list[Counted], NDArray[np.int64]]:
            nonlocal left
            own, dropped = left[: len(batch)], [np.zeros(0, np.int64)]

            def drop(row_ids: NDArray[np.int64], message: str) -> None:
                dropping(self._order)(row_ids, message)
                dropped.append(row_ids)

            with torch.no_grad():
                counted = self._tally.measured(batch, own, drop)
            left = left[len(batch) :]
            assert batch.row_ids is not None  # noqa: S101  set by Batch itself
            return counted, own[np.isin(batch.row_ids, np.concatenate(dropped))]

        for batch in minibatches:
            for counted, skipped in self._feed.halving(batch, work):
                self._tally.add(counted)
                self._skip(skipped)

    def _skip(self, groups: NDArray[np.int64]) -> None:
        for group, count in zip(*np.unique(groups, return_counts=True), strict=True):
            self._skipped[int(group)] = self._skipped.get(int(group), 0) + int(count)

    def answers(self) -> Iterator[pa.RecordBatch]:
        """A row for each group."""
        with torch.no_grad():
            reports = self._tally.reports()
        for start in range(0, len(self._groups), _GROUPS_AT_ONCE):
            numbers = range(start, min(start + _GROUPS_AT_ONCE, len(self._groups)))
            yield _answer(
                self._order,
                self._groups.columns(numbers),
                ["reports" if number in reports else "empty" for number in numbers],
                [packed_reports(reports.get(number, {})) for number in numbers],
                [self._skipped.get(number, 0) for number in numbers],
            )


def _answer(
    order: InferenceOrder,
    groups: list[pa.Array],
    kinds: Sequence[str],
    bodies: Sequence[str],
    skipped: Sequence[int],
) -> pa.RecordBatch:
    columns = [
        *groups,
        pa.array([partition_id()] * len(kinds), pa.int32()),
        pa.array(kinds, pa.string()),
        pa.array(bodies, pa.string()),
        pa.array(skipped, pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(columns, names=list(order.names))
