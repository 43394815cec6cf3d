"""What a batch says about yes-or-no questions: a column of scores and of truths for each.

Shapes: N rows, K questions, C classes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fatwood.errors import DataError, UserError

__all__ = ["Columns", "Waiting", "class_columns", "probabilities", "question_columns", "weight_column"]

Floats = NDArray[np.float64]
Columns = tuple[Floats, NDArray[np.bool_]]
"""``(N, K)`` scores and ``(N, K)`` truths."""

_ROUNDING: Final = 1e-6
"""How far beyond 0 and 1 a probability may lie by rounding alone."""
_AT_ONCE: Final = 1 << 20
"""Scores that are counted together: a call for each small batch would cost more than the counting."""


class Waiting:
    """Batches that are not counted yet."""

    def __init__(self) -> None:
        self._batches: list[tuple[Floats, NDArray[np.bool_], Floats | None]] = []
        self._scores = 0

    def add(self, scores: Floats, truths: NDArray[np.bool_], weights: Floats | None) -> bool:
        """Keep a batch.

        Args:
            scores: ``(N, K)``.
            truths: ``(N, K)``.
            weights: ``(N,)``, or None.

        Returns:
            Whether it is time to :meth:`take` them.
        """
        self._batches.append((scores, truths, weights))
        self._scores += scores.size
        return self._scores >= _AT_ONCE

    def take(self) -> tuple[Floats, NDArray[np.bool_], Floats | None] | None:
        """All of them as one, which then wait no longer; None where there are none."""
        if not self._batches:
            return None
        scores, truths, weights = zip(*self._batches, strict=True)
        self._batches, self._scores = [], 0
        found = None
        if any(each is not None for each in weights):
            filled = [np.ones(len(s)) if w is None else w for s, w in zip(scores, weights, strict=True)]
            found = np.concatenate(filled)
        return np.concatenate(scores), np.concatenate(truths), found


def question_columns(where: str, outputs: Tensor, labels: Tensor | None) -> Columns:
    """Columns of binary outputs.

    Args:
        where: Begins the message of an error.
        outputs: ``(N,)`` or ``(N, K)``; or ``(N, 2)`` of a classifier, which is one question, answered by the second.
        labels: 0 or 1, of the same shape; ``(N,)`` for a classifier.

    Raises:
        UserError: Another shape or type, or NaN as an output.
        DataError: A label that is neither 0 nor 1.
    """
    if labels is None:
        message = f"{where}: expected labels, received None"
        raise UserError(message, hint="name the label's column")
    outputs, labels = outputs.detach().cpu(), labels.detach().cpu()
    if outputs.ndim == 2 and outputs.shape[1] == 2 and labels.shape == outputs.shape[:1]:
        outputs = outputs[:, 1]
    shape = tuple(outputs.shape)
    if labels.shape != outputs.shape:
        labels = labels.reshape(shape) if labels.numel() == len(labels) == outputs.numel() else labels
    if outputs.ndim not in (1, 2) or labels.shape != outputs.shape or labels.is_complex():
        message = f"{where}: expected outputs (rows,) or (rows, columns) and labels of the same shape, received {shape} and {tuple(labels.shape)}"
        raise UserError(
            message, hint="for class numbers use the report of a classifier, for example ROCMultiClass"
        )
    _refuse_nan(where, outputs)
    wrong = ((labels != 0) & (labels != 1)).nonzero()
    if len(wrong):
        received = labels[tuple(wrong[0])].item()
        message = (
            f"{where}: row {int(wrong[0][0])} of a batch: expected a label of 0 or 1, received {received}"
        )
        raise DataError(message, hint="make it 0 or 1 before the evaluation")
    rows = len(outputs)
    return _own(outputs.reshape(rows, -1)), (labels.reshape(rows, -1) != 0).numpy()


def class_columns(where: str, outputs: Tensor, labels: Tensor | None) -> tuple[Floats, NDArray[np.int64]]:
    """Scores and classes of a classifier.

    Args:
        where: Begins the message of an error.
        outputs: ``(N, C)``.
        labels: ``(N,)`` integers, 0 to C - 1.

    Returns:
        ``(N, C)`` scores and ``(N,)`` classes.

    Raises:
        UserError: Another shape or type, or NaN as an output.
        DataError: A label that is no class.
    """
    received = "None" if labels is None else f"{labels.dtype} {tuple(labels.shape)}"
    if labels is None or outputs.ndim != 2 or labels.shape != outputs.shape[:1] or _is_inexact(labels):
        message = f"{where}: expected outputs (rows, classes) and int64 labels (rows,), received {tuple(outputs.shape)} and {received}"
        raise UserError(
            message, hint="for labels of 0 and 1 in several columns use the report of binary outputs"
        )
    outputs, labels = outputs.detach().cpu(), labels.detach().cpu().to(torch.int64)
    _refuse_nan(where, outputs)
    classes = outputs.shape[1]
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        message = f"{where}: row {row} of a batch: expected a label from 0 to {classes - 1}, received {int(labels[row])}"
        raise DataError(message, hint="give the network one output per class, numbered from 0")
    return _own(outputs), labels.numpy()


def probabilities(where: str, scores: Floats) -> Floats:
    """Scores that must lie between 0 and 1.

    Args:
        where: Begins the message of an error.
        scores: ``(N, K)``.

    Raises:
        UserError: They do not, by more than rounding.
    """
    wrong = ((scores < -_ROUNDING) | (scores > 1 + _ROUNDING)).nonzero()[0]
    if len(wrong):
        row = int(wrong[0])
        received = scores[row][(scores[row] < 0) | (scores[row] > 1)][0]
        message = (
            f"{where}: row {row} of a batch: expected probabilities from 0 to 1, received {received:.6g}"
        )
        hint = (
            'turn the outputs into probabilities: activation="softmax" or "sigmoid", or a loss that says so'
        )
        raise UserError(message, hint=hint)
    return scores.clip(0.0, 1.0)


def weight_column(where: str, weights: Tensor | None, rows: int) -> Floats | None:
    """Weights of rows.

    Args:
        where: Begins the message of an error.
        weights: ``(N,)``, finite and at least 0; or None.
        rows: N.

    Raises:
        UserError: Another shape.
        DataError: A weight that cannot be right.
    """
    if weights is None:
        return None
    column = _own(weights.detach().cpu())
    if column.shape != (rows,):
        message = f"{where}: expected weights of shape ({rows},), received {column.shape}"
        raise UserError(message, hint="give each row one weight")
    wrong = (~(np.isfinite(column) & (column >= 0))).nonzero()[0]
    if len(wrong):
        row = int(wrong[0])
        message = f"{where}: row {row} of a batch: expected a weight of at least 0, received {column[row]}"
        raise DataError(message, hint="weights are finite and not negative")
    return column


def _own(values: Tensor) -> Floats:
    """A copy: the caller may write into its tensor before the values are counted."""
    copy: Floats = values.to(torch.float64, copy=True).numpy()
    return copy


def _is_inexact(labels: Tensor) -> bool:
    return labels.is_floating_point() or labels.is_complex()


def _refuse_nan(where: str, outputs: Tensor) -> None:
    wrong = outputs.isnan().nonzero()
    if len(wrong):
        row = int(wrong[0][0])
        message = f"{where}: expected numbers as outputs, received NaN in row {row} of a batch"
        raise UserError(
            message, hint="the training diverged (lower the learning rate) or the features hold NaN"
        )
