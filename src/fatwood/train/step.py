"""One minibatch through the user's code: forward, loss, backward; what fails there is named as the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.data import SKIP_HINT, Batch, OnBadRow, describe_row
from fatwood.errors import DataError, FatwoodError, UserCodeError
from fatwood.train.job import LossFunction

__all__ = ["Forward", "Step", "forward", "forward_and_loss", "user_code"]


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


class Step:
    """Runs minibatches through one network and loss.

    Args:
        network: In training mode; its parameters collect the gradients.
        loss: ``loss(output, label)``, a scalar mean.
        on_bad_row: What a label outside the network's classes means.
    """

    def __init__(self, network: torch.nn.Module, loss: LossFunction, on_bad_row: OnBadRow) -> None:
        self._network = network
        self._loss = loss
        self._skip = on_bad_row == "skip"

    def backward(self, batch: Batch) -> tuple[int, float]:
        """Forward and backward of one minibatch.

        Returns:
            Rows trained and the mean loss over them; ``(0, 0.0)`` when no row could be used.

        Raises:
            UserCodeError: The network or the loss raised.
            DataError: A label is out of range and ``on_bad_row="error"``.
        """
        result = forward_and_loss(self._network, self._loss, batch, self._drop)
        rows = len(result.label)
        if not rows:
            return 0, 0.0
        with user_code("backward pass", features=batch.features):
            result.loss.backward()  # type: ignore[no-untyped-call]
        return rows, float(result.loss.detach())

    def _drop(self, _row_ids: NDArray[np.int64], message: str) -> None:
        if not self._skip:
            raise DataError(message, hint=SKIP_HINT)


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
    loss: LossFunction | None,
    batch: Batch,
    drop: Callable[[NDArray[np.int64], str], None],
) -> Forward:
    """Output and loss of a minibatch without the rows whose label is out of range.

    Where the network returns one number for every number of the label, the label is a number and no class: it then
    has the output's shape and type. A loss would broadcast ``(B,)`` against ``(B, 1)`` to ``(B, B)``.

    Args:
        network: Called with the features.
        loss: Called with output and label, if given.
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
    usable = _usable_rows(output, label, getattr(loss, "ignore_index", None))
    if not bool(usable.all()):
        drop(batch.row_ids[(~usable).numpy()], _out_of_range(batch.row_ids, label, usable, output.shape[1]))
        output, label = output[usable], label[usable]
    if loss is None or not len(label):
        return Forward(output, label, torch.tensor(float("nan")))
    hint = None
    if label.is_floating_point() and label.dim() == 1 < output.dim():
        hint = "the label column is no integer; cast it to int if it holds classes"
    with user_code("loss", hint, output=output, label=label):
        value = loss(output, label)
    if not isinstance(value, torch.Tensor) or value.dim() != 0:
        found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        text = f"TypeError: the loss must return a scalar tensor, received {found}"
        raise UserCodeError(text, hint="a loss with reduction='mean' does")
    return Forward(output, label, value)


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
