"""One minibatch through the user's code: forward, loss, backward; what fails there is named as the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.data import SKIP_HINT, Batch, OnBadRow, describe_row
from fatwood.errors import DataError, FatwoodError, UserCodeError
from fatwood.train.criterion import Criterion, LossFunction, takes_batch

__all__ = ["Forward", "Step", "Trained", "forward", "forward_and_loss", "user_code"]


@contextmanager
def user_code(part: str, hint: str | None = None, **given: torch.Tensor) -> Iterator[None]:
    """Re-raise what the user's code raises as :class:`UserCodeError`, with the user's own error first.

    Args:
        part: Of the user's code, for example ``"loss"``.
        hint: What the reader can do about it.
        given: What it was called with; shapes and types are told, and spelled only when they must be.
    """
    try:
        yield
    except FatwoodError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}\nraised by the {part}"
        spelled = ", ".join(
            f"{name} of shape {tuple(tensor.shape)} and type {tensor.dtype}" for name, tensor in given.items()
        )
        raise UserCodeError(f"{text}, given {spelled}" if spelled else text, hint=hint) from error


class Forward(NamedTuple):
    """A minibatch after the network, without the rows that could not be used."""

    output: torch.Tensor
    """``(rows, ...)``"""
    label: torch.Tensor
    """``(rows,)`` or ``(rows, k)``, or the shape of the output where that has as many numbers"""
    loss: torch.Tensor
    """Scalar mean over the rows; NaN when there are none, or no loss function."""
    weight: torch.Tensor | None = None
    """``(rows,)`` sample weights, if the minibatch has any"""


class Trained(NamedTuple):
    """What came of some rows."""

    rows: int = 0
    share: float | None = None
    """What they weigh; None where each row weighs 1."""
    loss_sum: float = 0.0
    """Sum of (mean loss x weight) over the minibatches."""
    correct: float | None = None
    """Weight of the rows whose class has the largest output; None where labels are no classes."""

    @property
    def weight(self) -> float:
        """What the rows weigh."""
        return float(self.rows) if self.share is None else self.share

    def plus(self, other: Trained) -> Trained:
        """Both together; where one is empty, the other."""
        if not other.rows:
            return self
        if not self.rows:
            return other
        alike = self.share is None and other.share is None
        return Trained(
            self.rows + other.rows,
            None if alike else self.weight + other.weight,
            self.loss_sum + other.loss_sum,
            None if self.correct is None or other.correct is None else self.correct + other.correct,
        )


class Step:
    """Runs minibatches through one network and loss.

    Args:
        network: Its parameters collect the gradients; compiled or not.
        loss: ``loss(output, label)`` or ``loss(network, batch)``, a scalar mean.
        on_bad_row: What a label outside the network's classes means.
        weighted: Whether minibatches have sample weights.
        autocast: Makes the context of forward and loss, for mixed precision.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss: LossFunction,
        on_bad_row: OnBadRow,
        *,
        weighted: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._network = network
        self._loss = loss
        self._criterion = Criterion(loss, weighted=weighted)
        self._whole = takes_batch(loss)
        self._skip = on_bad_row == "skip"
        self._autocast = autocast

    def backward(
        self, batch: Batch, scaled: Callable[[torch.Tensor, float], torch.Tensor] = lambda loss, _: loss
    ) -> Trained:
        """Forward and backward of one minibatch.

        Args:
            batch: Rows.
            scaled: Given the mean loss and the minibatch's weight, makes what is differentiated.

        Returns:
            What was trained; nothing when no row could be used or all weigh 0.

        Raises:
            UserCodeError: The network or the loss raised.
            DataError: A label is out of range and ``on_bad_row="error"``.
        """
        loss, trained = self._run(batch)
        if trained.rows and trained.weight:
            with user_code("backward pass", features=batch.features):
                scaled(loss, trained.weight).backward()  # type: ignore[no-untyped-call]
        return trained

    def measure(self, batch: Batch) -> Trained:
        """Forward of one minibatch without gradients, in evaluation mode."""
        training = self._network.training
        self._network.eval()
        try:
            with torch.no_grad():
                return self._run(batch)[1]
        finally:
            self._network.train(training)

    def _run(self, batch: Batch) -> tuple[torch.Tensor, Trained]:
        if self._whole:
            with self._autocast(), user_code("loss", features=batch.features):
                loss = _scalar(self._loss(self._network, batch))
            share = None if batch.weight is None else float(batch.weight.sum(dtype=torch.float64))
            return loss, _trained(len(batch), share, loss, None)
        with self._autocast():
            result = forward_and_loss(self._network, self._criterion, batch, self._drop)
        share = self._criterion.share(result.label, result.weight)
        correct = None
        if result.label.dtype == torch.int64 and result.output.dim() == 2:
            hits = (result.output.argmax(1) == result.label).float()
            of_rows = self._criterion.weights(result.label, result.weight)
            correct = float((hits if of_rows is None else hits * of_rows).sum(dtype=torch.float64))
        return result.loss, _trained(len(result.label), share, result.loss, correct)

    def _drop(self, _row_ids: NDArray[np.int64], message: str) -> None:
        if not self._skip:
            raise DataError(message, hint=SKIP_HINT)


def _trained(rows: int, share: float | None, loss: torch.Tensor, correct: float | None) -> Trained:
    weight = rows if share is None else share
    return Trained(rows, share, float(loss.detach()) * weight if weight else 0.0, correct)


def _scalar(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        return value
    found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    text = f"TypeError: the loss must return a scalar tensor, received {found}"
    raise UserCodeError(text, hint="a loss with reduction='mean' does")


def forward(network: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The network's output ``(B, ...)`` for a minibatch.

    Args:
        network: Called with the features.
        batch: Its labels, if any, are not looked at.

    Raises:
        UserCodeError: The network raised, or returned something else than a tensor with a row for each of the batch.
    """
    hint = None
    if batch.features.dtype == torch.int64:
        hint = "integer columns arrive as int64; cast the column to float if the network expects floats"
    with user_code("network's forward", hint, features=batch.features):
        output = network(batch.features)
    if isinstance(output, torch.Tensor) and output.dim() and len(output) == len(batch):
        return output
    found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    text = f"TypeError: the network must return one tensor with a row for each of {len(batch)} rows, received {found}"
    raise UserCodeError(text)


def forward_and_loss(
    network: torch.nn.Module,
    criterion: Criterion | None,
    batch: Batch,
    drop: Callable[[NDArray[np.int64], str], None],
) -> Forward:
    """Output and loss of a minibatch without the rows whose label is out of range.

    Where the network returns one number for every number of the label, the label is a number and no class: it then
    has the output's shape and type. A loss would broadcast ``(B,)`` against ``(B, 1)`` to ``(B, B)``.

    Args:
        network: Called with the features.
        criterion: Called with output, label and weight, if given.
        batch: With labels.
        drop: Told ids and a message when rows cannot be used; may raise.

    Raises:
        UserCodeError: The network or the loss raised, or returned something else than a tensor.
    """
    output, label = forward(network, batch), batch.label
    if label is None:
        text = "forward_and_loss: expected a batch with labels, received one without"
        raise ValueError(text)
    if output.is_floating_point() and label.numel() == output.numel():
        label = label.reshape(output.shape).to(output.dtype)
    weight = batch.weight
    ignored = None if criterion is None else criterion.ignore_index
    usable = _usable_rows(output, label, ignored)
    if not bool(usable.all()):
        drop(batch.row_ids[(~usable).numpy()], _out_of_range(batch.row_ids, label, usable, output.shape[1]))
        output, label = output[usable], label[usable]
        weight = None if weight is None else weight[usable]
    if criterion is None or not len(label):
        return Forward(output, label, torch.tensor(float("nan")), weight)
    hint = None
    if label.is_floating_point() and label.dim() == 1 < output.dim():
        hint = "the label column is no integer; cast it to int if it holds classes"
    with user_code("loss", hint, output=output, label=label):
        value = criterion(output, label, weight)
    return Forward(output, label, _scalar(value), weight)


def _usable_rows(output: torch.Tensor, label: torch.Tensor, ignore_index: int | None) -> torch.Tensor:
    """A mask ``(B,)`` of rows whose label, if it is a class, is one that the network can output."""
    if label.dtype != torch.int64 or label.dim() != 1 or output.dim() != 2 or not output.is_floating_point():
        return torch.ones(len(label), dtype=torch.bool)
    usable = (label >= 0) & (label < output.shape[1])
    return usable if ignore_index is None else usable | (label == ignore_index)


def _out_of_range(row_ids: NDArray[np.int64], label: torch.Tensor, usable: torch.Tensor, classes: int) -> str:
    first = int(torch.nonzero(~usable)[0])
    return (
        f"{describe_row(int(row_ids[first]))}: label out of range: expected 0 to {classes - 1} "
        f"(the network has {classes} outputs), received {int(label[first])}"
    )
