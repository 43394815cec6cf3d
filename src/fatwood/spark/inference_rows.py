"""What the tasks of prediction, evaluation and scoring are told, and how they read their rows.

Lengths of arrays are in no schema. A training job counts its rows anyway and measures them then; an inference task takes
the most frequent length of the first Arrow batch that has any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pyspark import TaskContext

from fatwood.data import ROW_BITS, SKIP_HINT, Batch, Decoder, Field, Group, Layout, OnBadRow, Rows
from fatwood.data.layout import row_ids_of
from fatwood.errors import DataError
from fatwood.spark.delivery import Delivered, rebuilt
from fatwood.spark.gpus import task_gpus
from fatwood.spark.memory import Halving
from fatwood.spark.shipping import unship
from fatwood.spark.turns import Turns
from fatwood.train import AnyLoss, Keys, losses_of, takes_batch
from fatwood.train.device import DeviceOrder, taken_device

__all__ = [
    "SIZE",
    "InferenceOrder",
    "Minibatches",
    "Parts",
    "dropping",
    "key_columns",
    "load",
    "partition_id",
    "rows_of_task",
]

SIZE = "size"
"""The columns ``size/<field>/<i>`` hold the i-th length of each row's nested arrays, where no list in Arrow tells it."""


@dataclass(frozen=True, kw_only=True)
class InferenceOrder:
    """All that a task is told."""

    delivered: Delivered
    """Network, loss, decoders, and what else the task needs of the user's, from :func:`fatwood.spark.delivery.deliver`."""
    layout: Layout
    """Of the rows, without decoders."""
    measured: Mapping[str, int]
    """By the name of each field whose shape the task has to find: 0 where the lists in Arrow tell it, else the number of
    its columns of lengths."""
    batch_size: int
    on_bad_row: OnBadRow
    columns: tuple[str, ...] = ()
    """The names of what Spark sends."""
    reading: bytes | None = None
    """The reader of the rows, where Spark sends none, from the same."""
    keys: int = 0
    """Key columns, in front of the others or to be made."""
    key_types: tuple[pa.DataType, ...] | None = None
    """What Spark expects them to be in Arrow, where they do not come from it."""
    numbered: Literal["partition", "file"] | None = None
    """What they are made of, with the row's number, where rows have no columns."""
    names: tuple[str, ...] = ()
    """Of the columns of the result: keys, and outputs in the order of their keys."""
    outputs: Keys = None
    """Of the network, to predict."""
    returns: tuple[str, ...] = ("output",)
    """What of each output, in the order of its columns."""
    scalar: bool = False
    """Whether an output is one number a row, and its column no array."""
    turns: Turns | None = None
    """For the minibatches of all tasks on a host; None for as many as there are tasks."""
    device: DeviceOrder = field(default_factory=DeviceOrder)
    """Where the network is called."""
    numbering: bool = False
    """Whether the task numbers its rows, as Spark numbers none of a stream."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The user's own, rebuilt in the task."""

    network: torch.nn.Module
    """In evaluation mode, as the loss is where it is a module."""
    loss: AnyLoss | None
    decoders: Mapping[str, Decoder]
    device: torch.device | None = None
    """Where the network is; None for the CPU. Losses are where the network is if they are called with it, else on the CPU."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """By name, what belongs to one kind of task alone."""


def load(order: InferenceOrder) -> Parts:
    """What was shipped, with as many threads as the task has cores, on the device that it computes on."""
    context = TaskContext.get()
    torch.set_num_threads(max(1, context.cpus() if context is not None else 1))
    found = {"loss": None, "decoders": {}, **rebuilt(order.delivered)}
    named = {name: found.pop(name) for name in ("network", "loss", "decoders")}
    device = taken_device(order.device, task_gpus(), partition_id()).device
    parts = Parts(**named, device=device, others=found)
    if device is not None:
        parts.network.to(device)
        if parts.loss is not None and takes_batch(parts.loss) and isinstance(parts.loss, torch.nn.Module):
            parts.loss.to(device)
    losses = None if parts.loss is None else losses_of(parts.loss)
    for part in (parts.network, parts.loss, *(() if losses is None else losses.parts.values())):
        if isinstance(part, torch.nn.Module):
            part.eval()
    return parts


def rows_of_task(batches: Iterator[pa.RecordBatch], order: InferenceOrder) -> Iterator[pa.RecordBatch]:
    """The rows that Spark sent, or that the tasks of the numbers that it sent have to read."""
    if order.reading is None:
        first = partition_id() << ROW_BITS
        for batch in batches:
            named = batch.rename_columns(list(order.columns))
            if order.numbering:
                ids = pa.array(np.arange(first, first + len(named)))
                named = named.set_column(order.keys, order.columns[order.keys], ids)
                first += len(named)
            yield named
        return
    reader = unship(order.reading)["reader"]
    for batch in batches:
        for task in batch.column(0).to_pylist():
            yield from reader.batches(task)


def key_columns(arrow: pa.RecordBatch, order: InferenceOrder) -> list[Any]:
    """What stays beside each row of an Arrow batch."""
    if order.numbered is None:
        columns = arrow.columns[: order.keys]
        if order.key_types is None:
            return list(columns)
        return [column.cast(kind) for column, kind in zip(columns, order.key_types, strict=True)]
    ids = row_ids_of(arrow)
    numbers, rows = ids >> ROW_BITS, ids & ((1 << ROW_BITS) - 1)
    if order.numbered == "file":
        return [pa.array([order.layout.places[i] for i in numbers], pa.string()), pa.array(rows)]
    return [pa.array(numbers.astype(np.int32)), pa.array(rows)]


def partition_id() -> int:
    """Of the DataFrame; 0 outside of a task."""
    context = TaskContext.get()
    return context.partitionId() if context is not None else 0


class Minibatches:
    """Makes minibatches of a task's Arrow batches.

    Args:
        order: What to do.
        decoders: From the parts.
        batch_size: Rows of a minibatch; the order's by default.
    """

    def __init__(
        self, order: InferenceOrder, decoders: Mapping[str, Decoder], batch_size: int | None = None
    ) -> None:
        self._layout = replace(order.layout, decoders=decoders)
        self._unknown = dict(order.measured)
        self._nested = {name: count for name, count in order.measured.items() if count}
        self._on_bad_row = order.on_bad_row
        self._turns = order.turns
        self.halving = Halving(batch_size or order.batch_size)
        """For what does not fit into memory."""

    def __call__(self, arrow: pa.RecordBatch) -> tuple[Iterator[Batch], NDArray[np.bool_]]:
        """An Arrow batch of n rows.

        Args:
            arrow: With the columns of the layout, and those of lengths.

        Returns:
            Its good rows as minibatches, each padded by itself, and which rows ``(n,)`` these are. A minibatch is there when
            it is its turn, which it has until the next one is asked for.

        Raises:
            DataError: A row is bad, and that is an error.
        """
        for name, count in tuple(self._unknown.items()):
            shape = _shape(arrow, name, count)
            if shape is not None:
                del self._unknown[name]
                self._layout = _with_shape(self._layout, name, shape)
        layout = self._layout
        shapes = {field.name: field.shape for field in layout.fields if field.name in self._nested}
        for name, shape in shapes.items():
            arrow = _without_other_shapes(arrow, name, shape)
        rows, kept = layout.check(arrow, on_bad_row=self._on_bad_row)
        return self._minibatches(rows, layout), kept

    def _minibatches(self, rows: Rows, layout: Layout) -> Iterator[Batch]:
        start = 0
        while start < len(rows):
            stop = min(start + self.halving.rows, len(rows))
            with nullcontext() if self._turns is None else self._turns.taken():
                yield layout.batch(rows.part(start, stop).copy())
            start = stop


def _shape(arrow: pa.RecordBatch, name: str, count: int) -> tuple[int, ...] | None:
    """The shape that most rows of a field have; None if none has any."""
    if count:
        sizes = [_usual(arrow.column(f"{SIZE}/{name}/{i}")) for i in range(count)]
    else:
        column = arrow.column(name)
        of_bytes = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
        sizes = [_usual(pc.binary_length(column) if of_bytes else pc.list_value_length(column))]
    known = tuple(size for size in sizes if size is not None)
    return known if len(known) == len(sizes) else None


def _without_other_shapes(arrow: pa.RecordBatch, name: str, shape: tuple[int, ...]) -> pa.RecordBatch:
    """The same with null for a row whose nested arrays are of another shape, which as one list may be as long."""
    fits = [
        pc.equal(arrow.column(f"{SIZE}/{name}/{i}"), size).fill_null(False) for i, size in enumerate(shape)
    ]
    right = reduce(pc.and_, fits)
    if pc.all(right, min_count=0).as_py():
        return arrow
    column = arrow.column(name)
    index = arrow.schema.get_field_index(name)
    return arrow.set_column(index, name, pc.if_else(right, column, pa.scalar(None, column.type)))


def _usual(lengths: Any) -> int | None:
    """The most frequent length above 0, the first of equals; None if there is none."""
    counts = pc.value_counts(lengths.filter(pc.greater(lengths, 0)))
    if not len(counts):
        return None
    return int(counts.field("values")[int(np.argmax(counts.field("counts")))].as_py())


def _with_shape(layout: Layout, name: str, shape: tuple[int, ...]) -> Layout:
    def changed(field: Field) -> Field:
        return replace(field, shape=shape) if field.name == name else field

    def group(of: Group) -> Group:
        return replace(of, fields=tuple(changed(field) for field in of.fields))

    return replace(
        layout, features=group(layout.features), label=None if layout.label is None else group(layout.label)
    )


def dropping(order: InferenceOrder) -> Any:
    """What to do with rows that have a label out of range."""

    def drop(_row_ids: NDArray[np.int64], message: str) -> None:
        if order.on_bad_row == "error":
            raise DataError(message, hint=SKIP_HINT)

    return drop
