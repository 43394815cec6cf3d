"""The executors' side of prediction and scoring: one partition through the network, minibatch by minibatch.

Memory is bounded by one Arrow batch of Spark's (``spark.sql.execution.arrow.maxRecordsPerBatch``) and its results.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fatwood.data import Batch
from fatwood.errors import UserCodeError
from fatwood.spark.failures import describe_failure, rebuild_failure
from fatwood.spark.inference_columns import OutputColumns
from fatwood.spark.inference_rows import (
    InferenceOrder,
    Minibatches,
    Parts,
    dropping,
    key_columns,
    load,
    partition_id,
    rows_of_task,
)
from fatwood.train import Caller, Key, RowLosses, Trimmer, losses_of, outputs_of, takes_batch, user_code
from fatwood.train.activation import activation_of

__all__ = ["Predictor", "named_failures", "predict_partition", "score_partition"]


def predict_partition(batches: Iterator[pa.RecordBatch], order: InferenceOrder) -> Iterator[pa.RecordBatch]:
    """The keys and the network's outputs for every row of a partition. Runs on an executor, inside ``mapInArrow``.

    Args:
        batches: Key columns, then those of the layout.
        order: What to do.
    """
    with named_failures():
        predict = Predictor(order)
        for arrow in rows_of_task(batches, order):
            columns = [*key_columns(arrow, order), *predict(arrow)]
            yield pa.RecordBatch.from_arrays(columns, names=list(order.names))


class Predictor:
    """The network in a task.

    Args:
        order: What to do.
    """

    def __init__(self, order: InferenceOrder) -> None:
        parts = load(order)
        self._order = order
        self._feed = Minibatches(order, parts.decoders)
        self._call = _Applied(parts.network, parts.others.get("function"), parts.device)
        self._trimmer = Trimmer(self._call, order.outputs)
        self._activations: dict[Key, Callable[[torch.Tensor], torch.Tensor]] = {}
        for key in _keys(order):
            self._activations[key] = _activation(parts, key)

    def __call__(self, arrow: pa.RecordBatch) -> list[pa.Array]:
        """The columns of the outputs for the rows of an Arrow batch.

        Args:
            arrow: With the columns of the layout.
        """
        minibatches, kept = self._feed(arrow)
        columns = {key: OutputColumns(self._order, activate) for key, activate in self._activations.items()}
        for batch in minibatches:
            for outputs, masks in self._feed.halving(batch, self._outputs):
                for key, output in outputs.items():
                    columns[key].add(output, masks.get(key))
        return [array for column in columns.values() for array in column.arrow(kept)]

    def _outputs(self, batch: Batch) -> tuple[dict[Key, torch.Tensor], dict[Key, torch.Tensor]]:
        with torch.no_grad():
            found = self._call(batch)
            try:
                outputs = outputs_of(found, self._order.outputs, len(batch))
            except UserCodeError as error:
                message = error.message.replace("the network must", f"{self._call.name} must", 1)
                raise UserCodeError(message, hint=error.hint) from None
            return outputs, self._trimmer.masks(batch, outputs)


class _Applied(Caller):
    """A network, and a function of what it returns and the minibatch."""

    def __init__(
        self,
        network: torch.nn.Module,
        function: Callable[[Any, Batch], Any] | None,
        device: torch.device | None,
    ) -> None:
        super().__init__(network, device)
        self._function = function
        self.name = "the network" if function is None else "function"

    def __call__(self, batch: Batch) -> Any:
        output = super().__call__(batch)
        if self._function is None:
            return output
        with user_code("function that predict was given", features=batch.features):
            return self._function(output, batch)


def _keys(order: InferenceOrder) -> tuple[Key, ...]:
    if order.outputs is None:
        return (None,)
    return tuple(range(order.outputs)) if isinstance(order.outputs, int) else order.outputs


def _activation(parts: Parts, key: Key) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes probabilities of an output, by the loss that it has or by what the user says."""
    losses = None if parts.loss is None else losses_of(parts.loss)
    loss = parts.loss if losses is None else losses.parts.get(key)
    return activation_of(loss, parts.others.get("activation"))


def score_partition(batches: Iterator[pa.RecordBatch], order: InferenceOrder) -> Iterator[pa.RecordBatch]:
    """The keys and the loss of every row of a partition; null where it has none. Runs on an executor.

    Args:
        batches: Key columns, then those of the layout.
        order: What to do.
    """
    with named_failures():
        parts = load(order)
        assert parts.loss is not None  # noqa: S101  the driver looked
        losses = RowLosses(parts.network, parts.loss, parts.device)
        feed = Minibatches(order, parts.decoders, 1 if takes_batch(parts.loss) else None)
        more = _regularization(parts)

        def work(batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
            with torch.no_grad():
                return losses(batch, dropping(order))

        for arrow in rows_of_task(batches, order):
            minibatches, kept = feed(arrow)
            found, there = [np.zeros(0)], [np.zeros(0, np.bool_)]
            for batch in minibatches:
                for values, own in feed.halving(batch, work):
                    found.append(values)
                    there.append(own)
            scores = np.zeros(len(kept), np.float32)
            scores[kept] = np.concatenate(found) + more
            scored = kept.copy()
            scored[kept] = np.concatenate(there)
            columns = [*key_columns(arrow, order), pa.array(scores, mask=~scored)]
            yield pa.RecordBatch.from_arrays(columns, names=list(order.names))


def _regularization(parts: Parts) -> float:
    """What every row's score has more than its loss."""
    function = parts.others.get("regularization")
    if function is None:
        return 0.0
    with user_code("regularization"), torch.no_grad():
        found = torch.as_tensor(function(parts.network)).detach()
        if found.numel() != 1:
            text = f"TypeError: regularization must return one number, received {tuple(found.shape)}"
            raise UserCodeError(text, hint="return a sum over all parameters")
        return float(found)


@contextmanager
def named_failures() -> Iterator[None]:
    """Raise what happens as Spark shows it: the text of this error, without those that it is chained to."""
    try:
        yield
    except (Exception, SystemExit) as error:
        where = f"partition {partition_id()} on host {socket.gethostname()}"
        raise rebuild_failure(describe_failure(error), where) from None
