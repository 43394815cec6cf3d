"""The mean loss over rows, for regression and for every network without classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from fatwood.errors import UserError
from fatwood.evaluation.report import Report
from fatwood.evaluation.sums import ExactSum, checked_count

__all__ = ["Loss"]


@dataclass(eq=False)
class Loss(Report):
    """Mean loss and number of rows; mergeable without any rounding.

    Example:
        >>> import torch
        >>> report = Loss.empty().update(torch.zeros(4, 1), torch.ones(4, 1), loss_sum=4.0)
        >>> merged = report.merge(Loss.empty().update(torch.zeros(1, 1), torch.zeros(1, 1), loss_sum=0.0))
        >>> merged.rows, merged.loss
        (5, 0.8)
    """

    KIND: ClassVar[str] = "loss"
    VERSION: ClassVar[int] = 2

    rows: int = 0
    """Rows seen."""

    loss_sum: ExactSum = field(default_factory=ExactSum)
    """Sum over the rows of weight times loss."""

    weight: ExactSum = field(default_factory=ExactSum)
    """What the rows weigh together: their number, where there are no weights."""

    skipped: int = 0
    """Bad rows that were left out, in no other number of this report."""

    @classmethod
    def empty(cls) -> Loss:
        """A report of no rows.

        Returns:
            The neutral element of :meth:`merge`.
        """
        return cls()

    def update(
        self,
        outputs: Tensor,
        labels: Tensor | None,
        loss_sum: float = math.nan,
        *,
        weights: Tensor | None = None,
    ) -> Loss:
        """Count one batch, in place.

        Args:
            outputs: ``(N, ...)`` what the network returned; only its length is used.
            labels: ``(N, ...)`` the true values, or None where the loss needs none; only its length is used.
            loss_sum: Sum over the N of weight times loss; ignored when N is 0.
            weights: ``(N,)``; None where each weighs 1.

        Returns:
            This same report.

        Raises:
            UserError: Outputs and labels differ in length.
        """
        rows = len(outputs)
        if labels is not None and len(labels) != rows:
            message = f"Loss.update: expected as many labels as outputs ({rows}), received {len(labels)}"
            raise UserError(message, hint="the network must return one output per row")
        if rows:
            self.rows += rows
            self.loss_sum = self.loss_sum.plus([float(loss_sum)])
            self.weight = self.weight.plus([float(rows)] if weights is None else weights.double().tolist())
        return self

    def fresh(self) -> Loss:
        """An empty report."""
        return Loss()

    def merge(self, other: Loss) -> Loss:
        """The report of both reports' rows; neither is changed.

        Args:
            other: Another report.

        Returns:
            A new report.
        """
        return Loss(
            rows=self.rows + other.rows,
            loss_sum=self.loss_sum.plus(other.loss_sum.parts),
            weight=self.weight.plus(other.weight.parts),
            skipped=self.skipped + other.skipped,
        )

    @property
    def loss(self) -> float:
        """Mean loss per row, by weight; NaN when there are no rows."""
        return self.loss_sum.value / self.weight.value if self.weight.value else math.nan

    def summary(self) -> dict[str, float]:
        """Loss and rows."""
        return {"loss": self.loss, "rows": self.rows}

    def state(self) -> dict[str, Any]:
        """All of it."""
        return {
            "rows": self.rows,
            "skipped": self.skipped,
            "loss_sum": self.loss_sum.to_json(),
            "weight": self.weight.to_json(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Loss:
        """The inverse of :meth:`state`; in version 1 every row weighed 1."""
        rows = checked_count(state["rows"])
        weight = [float(rows)] if state["version"] == 1 else state["weight"]
        return cls(
            rows=rows,
            loss_sum=ExactSum.from_json(state["loss_sum"]),
            weight=ExactSum.from_json(weight),
            skipped=checked_count(state["skipped"]),
        )

    def __str__(self) -> str:
        skipped = f" ({self.skipped:,} skipped)" if self.skipped else ""
        return f"loss  {self.loss:.6g}\nrows  {self.rows:,}{skipped}"
