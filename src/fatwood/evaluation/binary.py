"""Yes-or-no outputs, each against its own threshold.

Shapes: N rows of a batch, K outputs (columns).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fatwood.errors import OptionError, UserError
from fatwood.evaluation.averages import Averaged, Counts
from fatwood.evaluation.cells import Cells, checked_names, text_table
from fatwood.evaluation.columns import question_columns, weight_column
from fatwood.evaluation.report import Report
from fatwood.evaluation.sums import checked_count

if TYPE_CHECKING:
    from fatwood.report.html import Markup

__all__ = ["BinaryClassification"]

_SHOWN = 20
_SHOWN_ON_PAGE = 200
_KINDS = 4  # 2 * truth + prediction: tn, fp, fn, tp


class BinaryClassification(Averaged, Report):
    """True and false positives and negatives of each of K yes-or-no outputs; mergeable without any rounding.

    Figures are methods with ``average=``, see :class:`Averaged`: a column is to them what a class is to a classifier. The loss is not kept:
    add a :class:`Loss` report for it.

    Args:
        threshold: An output above it is a yes; one number, or one for each column.
        names: Of the columns, for tables, JSON and pages.

    Raises:
        UserError: An option that cannot be.

    Example:
        >>> import torch
        >>> report = BinaryClassification(names=["cat", "dog"])
        >>> outputs = torch.tensor([[0.9, 0.2], [0.6, 0.7], [0.1, 0.8]])
        >>> report.update(outputs, torch.tensor([[1, 0], [0, 1], [0, 1]])).precision(average=None).tolist()
        [0.5, 1.0]
        >>> report.recall(positive="dog")
        1.0
    """

    KIND: ClassVar[str] = "binary_classification"

    def __init__(
        self, threshold: float | Sequence[float] = 0.5, *, names: Sequence[str] | None = None
    ) -> None:
        self.names = checked_names("BinaryClassification", names)
        """Of the columns."""
        self.threshold = _checked_threshold(threshold)
        """One number, or one for each column."""
        self.columns: int | None = None
        """K; None as long as it is not known."""
        if self.names is not None:
            self._require(len(self.names))
            self.columns = len(self.names)
        elif isinstance(self.threshold, list):
            self.columns = len(self.threshold)
        self.rows = 0
        """Rows seen."""
        self.skipped = 0
        self._cells = Cells()

    def _require(self, columns: int) -> None:
        for name, part in (("threshold", self.threshold), ("names", self.names)):
            if isinstance(part, list) and len(part) != columns:
                message = f"BinaryClassification: expected {name} for {columns} columns, received {len(part)}"
                raise UserError(message, hint="pass one for each output of the network")
        if self.columns not in (None, columns):
            message = f"BinaryClassification: expected outputs of {self.columns} columns, received {columns}"
            raise UserError(message, hint="use a report of its own for each network")

    def update(
        self,
        outputs: Tensor,
        labels: Tensor | None,
        loss_sum: float = math.nan,  # noqa: ARG002
        *,
        weights: Tensor | None = None,
    ) -> BinaryClassification:
        """Count one batch, in place.

        Args:
            outputs: (N,) or (N, K) probabilities, or logits with a threshold for them; or (N, 2) of a classifier of two classes, whose
                second column is the one output.
            labels: 0 or 1, of the same shape; (N,) for a classifier.
            loss_sum: Not used.
            weights: (N,) of at least 0; None where each weighs 1.

        Returns:
            This same report.

        Raises:
            UserError: A shape or type that is none of the above, or NaN in the outputs.
            DataError: A label that is neither 0 nor 1, or a weight below 0.
        """
        if not len(outputs):
            return self
        scores, truth = question_columns("BinaryClassification", outputs, labels)
        rows, columns = scores.shape
        weighed = weight_column("BinaryClassification", weights, rows)
        self._require(columns)
        dtype = outputs.dtype if outputs.is_floating_point() else torch.float64
        # 0.3 as the outputs know it: 0.3 of float32 is more than 0.3
        least = torch.tensor(self.threshold, dtype=dtype).double().numpy()
        kinds = 2 * truth + (scores > least) + _KINDS * np.arange(columns)
        self._cells.add(kinds.ravel(), None if weighed is None else np.repeat(weighed, columns))
        self.columns = columns
        self.rows += rows
        return self

    def merge(self, other: BinaryClassification) -> BinaryClassification:
        """The report of both reports' rows; neither is changed.

        Args:
            other: Another report of the same columns and options.

        Returns:
            A new report.

        Raises:
            UserError: The other report has another number of columns, or other options.
        """
        if (self.threshold, self.names) != (other.threshold, other.names):
            message = (
                f"BinaryClassification.merge: expected threshold {self.threshold} and names {self.names}, "
            )
            message += f"received {other.threshold} and {other.names}"
            raise UserError(message, hint="make all parts with the same options")
        if other.columns is not None:
            self._require(other.columns)
        merged = self.fresh() if self.columns is not None else other.fresh()
        merged.rows, merged.skipped = self.rows + other.rows, self.skipped + other.skipped
        merged._cells = self._cells.plus(other._cells)
        return merged

    def fresh(self) -> BinaryClassification:
        """An empty report of as many columns with the same options."""
        report = BinaryClassification(self.threshold, names=self.names)
        report.columns = self.columns
        return report

    def counts(self) -> Counts:
        """Rows of each column."""
        cells, rows = self._cells.arrays()
        found = np.zeros(_KINDS * (self.columns or 0))
        found[cells] = rows
        tn, fp, fn, tp = found.reshape(-1, _KINDS).T
        return Counts(tp, fp, fn, tn)

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """(K,) part of the rows that each column answers rightly, 0 to 1; NaN without rows."""
        counts = self.counts()
        whole = counts.tp + counts.fp + counts.fn + counts.tn
        found = np.full(whole.shape, np.nan)
        return np.asarray(np.divide(counts.tp + counts.tn, whole, out=found, where=whole > 0))

    @property
    def accuracy(self) -> float:
        """Part of all answers that are right, 0 to 1; NaN without rows."""
        found = self.accuracies
        return math.fsum(found) / len(found) if len(found) else math.nan

    def _position(self, positive: int | str) -> int:
        if positive in (self.names or []):
            return list(self.names or []).index(str(positive))
        if type(positive) is int and 0 <= positive < (self.columns or 0):
            return positive
        message = f"BinaryClassification: expected one of {self.columns} columns, received {positive!r}"
        raise OptionError(message, hint="pass its number, from 0, or its name")

    def summary(self) -> dict[str, float]:
        """Accuracy, means over the columns, and rows."""
        return {
            "accuracy": self.accuracy,
            "precision": self.precision(),
            "recall": self.recall(),
            "f1": self.f1(),
            "mcc": self.mcc(),
            "rows": self.rows,
        }

    def state(self) -> dict[str, Any]:
        """``counts`` lists ``[column, 2 * truth + answer, rows]`` for all that occurred, ``weighed`` those of rows with weights."""
        return {
            "threshold": self.threshold,
            "names": self.names,
            "columns": self.columns,
            "rows": self.rows,
            "skipped": self.skipped,
            "counts": self._cells.listed(_KINDS),
            "weighed": self._cells.listed_sums(_KINDS),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> BinaryClassification:
        """The inverse of :meth:`state`."""
        report = cls(state["threshold"], names=state["names"])
        if state["columns"] is not None:
            report._require(checked_count(state["columns"]))
            report.columns = state["columns"]
        report.rows, report.skipped = checked_count(state["rows"]), checked_count(state["skipped"])
        size = report.columns or 0
        report._cells = Cells.read(state["counts"], state["weighed"], rows=size, base=_KINDS, kind=cls.KIND)
        return report

    def _table(self, most: int) -> tuple[list[str], list[list[str]]]:
        counts = self.counts()
        figures = [self.accuracies, self.precision(None), self.recall(None), self.f1(None), self.mcc(None)]
        kinds = [counts.tp, counts.fp, counts.fn, counts.tn]
        rows = [
            [
                self.names[i] if self.names else str(i),
                *(f"{figure[i]:.4f}" for figure in figures),
                *(f"{kind[i]:,.10g}" for kind in kinds),
            ]
            for i in range(min(self.columns or 0, most))
        ]
        return ["output", "accuracy", "precision", "recall", "f1", "mcc", "tp", "fp", "fn", "tn"], rows

    def sections(self) -> list[Markup]:
        """Figures, and a table of the columns."""
        from fatwood.report.html import table

        head, rows = self._table(_SHOWN_ON_PAGE)
        many = (
            f" (the first {len(rows)} of {self.columns:,})"
            if self.columns and self.columns > len(rows)
            else ""
        )
        return [*super().sections(), table(f"Outputs{many}", head, rows)]

    def __str__(self) -> str:
        head, rows = self._table(_SHOWN)
        means = [f"{self.summary()[name]:.4f}" for name in ("accuracy", "precision", "recall", "f1", "mcc")]
        lines = text_table(head, [*rows, ["mean", *means, "", "", "", ""]])
        if self.columns and self.columns > _SHOWN:
            lines.insert(-1, f"... and {self.columns - _SHOWN:,} more")
        skipped = f" ({self.skipped:,} skipped)" if self.skipped else ""
        threshold = self.threshold if isinstance(self.threshold, float) else "one each"
        return "\n".join([*lines, "", f"rows {self.rows:,}{skipped}, threshold {threshold}"])


def _checked_threshold(threshold: Any) -> float | list[float]:
    try:
        found: Any = np.asarray(threshold, np.float64)
    except (TypeError, ValueError):
        found = np.full(1, np.nan)
    if found.ndim > 1 or not found.size or not np.isfinite(found).all():
        message = f"BinaryClassification: expected a number as threshold, or one for each column, received {threshold!r:.200}"
        raise OptionError(message, hint="threshold=0.5, or threshold=[0.5, 0.2]")
    numbers: float | list[float] = found.tolist()
    return numbers
