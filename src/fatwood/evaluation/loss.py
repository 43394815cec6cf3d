"""The mean loss over rows, for regression and for every network without classes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from torch import Tensor

from fatwood.errors import UserError
from fatwood.evaluation.sums import ExactSum, checked_count, read_report

__all__ = ["Loss"]

_KIND = "loss"
_VERSION = 1


@dataclass(eq=False)
class Loss:
    """Mean loss and number of rows; mergeable without any rounding.

    Example:
        >>> import torch
        >>> report = Loss.empty().update(torch.zeros(4, 1), torch.ones(4, 1), loss_sum=4.0)
        >>> merged = report.merge(Loss.empty().update(torch.zeros(1, 1), torch.zeros(1, 1), loss_sum=0.0))
        >>> merged.rows, merged.loss
        (5, 0.8)
    """

    rows: int = 0
    """Rows seen."""

    loss_sum: ExactSum = field(default_factory=ExactSum)
    """Sum of the loss over the rows."""

    skipped: int = 0
    """Bad rows that were left out, in no other number of this report."""

    @classmethod
    def empty(cls) -> Loss:
        """A report of no rows.

        Returns:
            The neutral element of :meth:`merge`.
        """
        return cls()

    def update(self, outputs: Tensor, labels: Tensor | None, loss_sum: float) -> Loss:
        """Count one batch, in place.

        Args:
            outputs: (B, ...) what the network returned; only its length is used.
            labels: (B, ...) the true values, or None where the loss needs none; only its length is used.
            loss_sum: Sum of the loss over the B rows; ignored when B is 0.

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
        return self

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
            skipped=self.skipped + other.skipped,
        )

    @property
    def loss(self) -> float:
        """Mean loss per row; NaN when there are no rows."""
        return self.loss_sum.value / self.rows if self.rows else math.nan

    def to_json(self) -> str:
        """The whole state as JSON text; equal reports give equal text.

        Returns:
            Text for :meth:`from_json`.
        """
        counts = {"rows": self.rows, "skipped": self.skipped}
        return json.dumps(
            {"report": _KIND, "version": _VERSION, **counts, "loss_sum": self.loss_sum.to_json()}
        )

    @classmethod
    def from_json(cls, text: str) -> Loss:
        """The inverse of :meth:`to_json`; the result can be merged and updated like the original.

        Args:
            text: What :meth:`to_json` returned.

        Returns:
            An equal report.

        Raises:
            UserError: The text is not such a report, or of a newer version.
        """
        state = read_report(text, _KIND, _VERSION)
        try:
            return cls(
                rows=checked_count(state["rows"]),
                loss_sum=ExactSum.from_json(state["loss_sum"]),
                skipped=checked_count(state["skipped"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            message = f"{_KIND} report: expected 'rows', 'loss_sum' and 'skipped', received {error!r}"
            raise UserError(message, hint="pass the text that to_json() returned, unchanged") from error

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Loss) else NotImplemented

    def __str__(self) -> str:
        skipped = f" ({self.skipped:,} skipped)" if self.skipped else ""
        return f"loss  {self.loss:.6g}\nrows  {self.rows:,}{skipped}"
