"""Accuracy, mean loss and confusion matrix of a classifier.

Shapes: B rows of a batch, C classes.

Only the cells of the confusion matrix that occurred are kept, so a report of 50 000 classes costs memory
by the rows seen and not by the square of the classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fatwood.errors import DataError, UserError
from fatwood.evaluation.report import UNCHANGED, Report
from fatwood.evaluation.sums import ExactSum, checked_count

__all__ = ["Classification"]

_MATRIX_CLASSES = 12  # more classes than this do not fit a terminal as a matrix
_WORST_SHOWN = 10


@dataclass(eq=False)
class Classification(Report):
    """What a classifier got right, what it took for what, and its mean loss; mergeable without any rounding.

    Example:
        >>> import torch
        >>> report = Classification.empty(classes=2)
        >>> scores = torch.tensor([[2.0, 1.0], [0.0, 3.0], [0.5, 0.1]])
        >>> report.update(scores, torch.tensor([0, 1, 1]), loss_sum=1.5).accuracy
        0.6666666666666666
        >>> report.confusion.tolist()
        [[1, 0], [1, 1]]
    """

    KIND: ClassVar[str] = "classification"

    classes: int
    """C, the number of classes."""

    loss_sum: ExactSum = field(default_factory=ExactSum)
    """Sum of the loss over the rows."""

    cells: Counter[int] = field(default_factory=Counter)
    """Rows by ``true class * C + predicted class``; only cells that occurred."""

    skipped: int = 0
    """Bad rows that were left out, in no other number of this report."""

    def __post_init__(self) -> None:
        if type(self.classes) is not int or self.classes < 1:
            message = f"Classification: expected at least 1 class, received {self.classes!r}"
            raise UserError(message, hint="pass the number of outputs of the network's last layer")

    @classmethod
    def empty(cls, classes: int) -> Classification:
        """A report of no rows.

        Args:
            classes: C, the number of classes.

        Returns:
            The neutral element of :meth:`merge`.

        Raises:
            UserError: ``classes`` is not a positive whole number.
        """
        return cls(classes=classes)

    def update(
        self,
        outputs: Tensor,
        labels: Tensor | None,
        loss_sum: float = math.nan,
        *,
        weights: Tensor | None = None,
    ) -> Classification:
        """Count one batch, in place. The predicted class is the one with the largest output, the first of equals.

        Args:
            outputs: (B, C) scores, logits or probabilities.
            labels: (B,) int64 true classes.
            loss_sum: Sum of the loss over the B rows; ignored when B is 0.
            weights: None: every row weighs 1.

        Returns:
            This same report.

        Raises:
            UserError: A shape or type that is none of the above, or NaN in the outputs.
            DataError: A label that is not a class.
        """
        if labels is None or weights is not None:
            message = "Classification: expected labels without weights"
            raise UserError(message)
        outputs, labels = outputs.detach().cpu(), labels.detach().cpu()
        self._check(outputs, labels)
        if len(labels):
            predicted = outputs.argmax(dim=1)
            self.cells.update((labels.to(torch.int64) * self.classes + predicted).tolist())
            self.loss_sum = self.loss_sum.plus([float(loss_sum)])
        return self

    def _check(self, outputs: Tensor, labels: Tensor) -> None:
        if outputs.ndim != 2 or outputs.shape[1] != self.classes:
            message = f"Classification: expected outputs of shape (rows, {self.classes}), received {tuple(outputs.shape)}"
            raise UserError(message, hint="the network must return one score per class for every row")
        if labels.shape != outputs.shape[:1] or labels.is_floating_point() or labels.is_complex():
            expected, received = (
                f"int64 labels of shape ({len(outputs)},)",
                f"{labels.dtype} {tuple(labels.shape)}",
            )
            message = f"Classification: expected {expected}, received {received}"
            raise UserError(message, hint="pass class numbers, not one-hot vectors; use Loss for regression")
        if bool(outputs.isnan().any()):
            row = int(outputs.isnan().any(dim=1).nonzero()[0])
            message = f"Classification: expected numbers as outputs, received NaN in row {row} of a batch"
            raise UserError(
                message, hint="the training diverged (lower the learning rate) or the features hold NaN"
            )
        wrong = ((labels < 0) | (labels >= self.classes)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            message = (
                f"Classification: row {row} of a batch: expected a label from 0 to {self.classes - 1}, "
                f"received {int(labels[row])}"
            )
            raise DataError(message, hint="give the network one output per class, numbered from 0")

    def merge(self, other: Classification) -> Classification:
        """The report of both reports' rows; neither is changed.

        Args:
            other: Another report of the same classes.

        Returns:
            A new report.

        Raises:
            UserError: The other report has another number of classes.
        """
        if other.classes != self.classes:
            message = (
                f"Classification.merge: expected a report of {self.classes} classes, received {other.classes}"
            )
            raise UserError(message, hint="merge reports of the same network only")
        loss_sum = self.loss_sum.plus(other.loss_sum.parts)
        skipped = self.skipped + other.skipped
        return Classification(
            self.classes, loss_sum=loss_sum, cells=self.cells + other.cells, skipped=skipped
        )

    @property
    def rows(self) -> int:
        """Rows seen."""
        return self.cells.total()

    @property
    def loss(self) -> float:
        """Mean loss per row; NaN when there are no rows."""
        return self.loss_sum.value / self.rows if self.rows else math.nan

    @property
    def accuracy(self) -> float:
        """Part of the rows whose predicted class is the true one, 0 to 1; NaN when there are no rows."""
        right = sum(
            count for cell, count in self.cells.items() if cell // self.classes == cell % self.classes
        )
        return right / self.rows if self.rows else math.nan

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(C, C) int64 rows by true class (first axis) and predicted class (second axis)."""
        matrix = np.zeros(self.classes * self.classes, dtype=np.int64)
        matrix[list(self.cells.keys())] = list(self.cells.values())
        return matrix.reshape(self.classes, self.classes)

    def fresh(self) -> Classification:
        """An empty report of as many classes."""
        return Classification(self.classes)

    def summary(self) -> dict[str, float]:
        """Accuracy, loss and rows."""
        return {"accuracy": self.accuracy, "loss": self.loss, "rows": self.rows}

    def state(self) -> dict[str, Any]:
        """``confusion`` lists ``[true class, predicted class, rows]`` for every cell that occurred."""
        return {
            "classes": self.classes,
            "loss_sum": self.loss_sum.to_json(),
            "skipped": self.skipped,
            "confusion": [[*divmod(cell, self.classes), rows] for cell, rows in sorted(self.cells.items())],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Classification:
        """The inverse of :meth:`state`."""
        loss_sum = ExactSum.from_json(state["loss_sum"])
        report = cls(classes=state["classes"], loss_sum=loss_sum, skipped=checked_count(state["skipped"]))
        for true, predicted, rows in state["confusion"]:
            report.cells[report._cell(true, predicted, rows)] += rows
        return report

    def _cell(self, true: Any, predicted: Any, rows: Any) -> int:
        classes = range(self.classes)
        if (
            {type(true), type(predicted), type(rows)} == {int}
            and true in classes
            and predicted in classes
            and rows > 0
        ):
            return int(true * self.classes + predicted)
        message = (
            f"{self.KIND} report: expected [true, predicted, rows], received {[true, predicted, rows]!r}"
        )
        raise UserError(message, hint=UNCHANGED)

    def __str__(self) -> str:
        skipped = f" ({self.skipped:,} skipped)" if self.skipped else ""
        head = (
            f"accuracy  {self.accuracy:.4f}\nloss      {self.loss:.6g}\nrows      {self.rows:,}{skipped}\n\n"
        )
        return head + (self._matrix() if self.classes <= _MATRIX_CLASSES else self._worst())

    def _matrix(self) -> str:
        confusion = self.confusion
        body = np.column_stack([confusion, confusion.sum(axis=1)])
        body = np.vstack([body, body.sum(axis=0)])
        names = [*map(str, range(self.classes)), "total"]
        width = max(len(f"{body[-1, -1]:,}"), len("total")) + 2
        lines = ["confusion (down: true class, across: predicted class)"]
        lines.append(" " * 5 + "".join(f"{name:>{width}}" for name in names))
        for name, counts in zip(names, body, strict=True):
            lines.append(f"{name:>5}" + "".join(f"{count:>{width},}" for count in counts))
        return "\n".join(lines)

    def _worst(self) -> str:
        wrong = [
            (cell, rows) for cell, rows in self.cells.items() if cell // self.classes != cell % self.classes
        ]
        worst = sorted(wrong, key=lambda item: (-item[1], item[0]))[:_WORST_SHOWN]
        if not worst:
            return f"no confusions among {self.classes:,} classes"
        lines = [f"most frequent confusions ({len(worst)} of {len(wrong):,}; {self.classes:,} classes)"]
        lines.append(f"{'true':>8}{'predicted':>12}{'rows':>12}")
        for cell, rows in worst:
            true, predicted = divmod(cell, self.classes)
            lines.append(f"{true:>8}{predicted:>12}{rows:>12,}")
        return "\n".join(lines)
