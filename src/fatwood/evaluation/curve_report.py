"""What the reports of curves have in common.

Without ``bins`` every distinct score is kept, so curves and areas are exact; equal scores are one step. A report then costs
memory by rows and columns. With ``bins`` it keeps counts between ``bins + 1`` thresholds from 0 to 1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fatwood.errors import OptionError, UserError
from fatwood.evaluation.columns import Columns, Waiting, probabilities, weight_column
from fatwood.evaluation.report import Report
from fatwood.evaluation.scores import BinnedScores, ExactScores, Scores, new_scores
from fatwood.evaluation.steps import Steps
from fatwood.evaluation.sums import checked_count

if TYPE_CHECKING:
    from typing_extensions import Self

    from fatwood.report.html import Markup

__all__ = ["Average", "Curves"]

Floats = NDArray[np.float64]
Average = Literal["macro", "micro", "weighted"]
_SHOWN: Final = 20
_MOST_BINS: Final = 1 << 20


class Curves(Report):
    """What :class:`ROC`, :class:`ROCBinary` and :class:`ROCMultiClass` have in common: scores for each column.

    Args:
        bins: None keeps every distinct score; a number counts between so many more one thresholds from 0 to 1.
        names: Of the columns, in print, JSON and HTML; None for numbers.

    Raises:
        OptionError: An option that cannot be.
    """

    complete: bool
    """Whether scores are there for all rows; not so where only a curve was read. Then it cannot be updated or merged."""

    def __init__(self, bins: int | None = None, *, names: Sequence[str] | None = None) -> None:
        if bins is not None and (type(bins) is not int or not 1 <= bins <= _MOST_BINS):
            message = f"{self.KIND}: expected bins from 1 to {_MOST_BINS} or None, received {bins!r}"
            raise OptionError(message, hint="None is exact; 200 bins suffice for most pictures")
        if isinstance(names, str) or any(not isinstance(name, str) for name in names or ()):
            message = f"{self.KIND}: expected names as a list of texts, received {names!r:.60}"
            raise OptionError(message, hint="give each column one name")
        self.bins = bins
        self.names = None if names is None else list(names)
        self.rows = 0
        self.skipped = 0
        self.complete = True
        self._counted: list[Scores] = []
        self._waiting = Waiting()

    @abstractmethod
    def _columns(self, outputs: Tensor, labels: Tensor | None) -> Columns:
        """Scores and truths ``(N, K)`` of a batch."""

    def update(
        self,
        outputs: Tensor,
        labels: Tensor | None,
        loss_sum: float = math.nan,
        *,
        weights: Tensor | None = None,
    ) -> Self:
        """Count one batch, in place.

        Args:
            outputs: As the class says; from 0 to 1 where there are bins.
            labels: As the class says.
            loss_sum: Not used.
            weights: ``(N,)`` of at least 0; None where each weighs 1.

        Returns:
            This same report.

        Raises:
            UserError: Another shape or type, NaN, or scores outside the bins.
            DataError: A label or weight that cannot be right.
        """
        del loss_sum
        if not len(outputs):
            return self
        scores, truths = self._columns(outputs, labels)
        if self.bins is not None:
            scores = probabilities(self.KIND, scores)
        weight = weight_column(self.KIND, weights, len(scores))
        self._require_complete("update")
        if not self._counted:
            self._learn(scores.shape[1])
        if scores.shape[1] != len(self._counted):
            message = f"{self.KIND}: expected {len(self._counted)} columns, received {scores.shape[1]}"
            raise UserError(message, hint="update a report with one network's outputs only")
        if self._waiting.add(scores, truths, weight):
            self._count()
        self.rows += len(scores)
        return self

    def _count(self) -> None:
        batch = self._waiting.take()
        if batch is not None:
            scores, truths, weights = batch
            for k, column in enumerate(self._counted):
                column.add(scores[:, k], truths[:, k], weights)

    @property
    def _scores(self) -> list[Scores]:
        """Of each column; empty before the first batch."""
        self._count()
        return self._counted

    def _learn(self, columns: int) -> None:
        if self.names is not None and len(self.names) != columns:
            message = f"{self.KIND}: expected {len(self.names)} columns, as many as names, received {columns}"
            raise UserError(message, hint="give each column one name")
        self._counted = [new_scores(self.bins) for _ in range(columns)]

    def load(self, scores: Sequence[Scores], rows: int, *, complete: bool) -> None:
        """Take what another program counted, in place of all that is there.

        Args:
            scores: Of each column.
            rows: How many these are.
            complete: Whether scores are there for all of them.
        """
        self._learn(len(scores))
        self._counted, self.rows, self.complete = list(scores), rows, complete

    def _require_complete(self, what: str) -> None:
        if not self.complete:
            message = f"{self.KIND}.{what}: expected the scores of all rows, received a report that holds curves only"
            raise UserError(
                message, hint="Deeplearning4j left them out; evaluate again, or export with thresholds"
            )

    def merge(self, other: Self) -> Self:
        """The report of both reports' rows; neither is changed.

        Raises:
            UserError: The other has other options or columns.
        """
        mine, its = (self.bins, self.names), (other.bins, other.names)
        if mine != its:
            message = f"{self.KIND}.merge: expected bins and names {mine}, received {its}"
            raise UserError(message, hint="merge reports with the same options")
        columns = {len(each._scores) for each in (self, other)} - {0}
        if len(columns) > 1:
            message = f"{self.KIND}.merge: expected {len(self._scores)} columns, received {len(other._scores)} columns"
            raise UserError(message, hint="merge reports of the same network")
        if self.rows and other.rows:
            self._require_complete("merge")
            other._require_complete("merge")
        both = self.fresh()
        both.rows, both.skipped = self.rows + other.rows, self.skipped + other.skipped
        both.complete = self.complete and other.complete
        if columns:
            both._learn(columns.pop())
        for each in (self, other):
            if each._scores:
                both._counted = [a.plus(b) for a, b in zip(both._scores, each._scores, strict=True)]
        return both

    def fresh(self) -> Self:
        """An empty report with the same options."""
        return self._empty(self.bins, self.names)

    @classmethod
    def _empty(cls, bins: int | None, names: Sequence[str] | None) -> Self:
        return cls(bins, names=names)

    def state(self) -> dict[str, Any]:
        """Options, and the scores of each column."""
        return {
            "bins": self.bins,
            "names": self.names,
            "rows": self.rows,
            "skipped": self.skipped,
            "complete": self.complete,
            "columns": [scores.to_json() for scores in self._scores],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`state`."""
        report = cls._empty(state["bins"], state["names"])
        report.rows, report.skipped = checked_count(state["rows"]), checked_count(state["skipped"])
        report.complete = bool(state["complete"])
        columns = state["columns"]
        report._learn(len(columns) if columns else len(report.names or ()))
        bins = report.bins
        report._counted = [
            ExactScores.from_json(column) if bins is None else BinnedScores.from_json(column, bins)
            for column in columns
        ]
        return report

    def _steps(self) -> list[Steps]:
        return [scores.steps() for scores in self._scores]

    def _pooled(self) -> Steps:
        return reduce(lambda a, b: a.plus(b), self._scores, new_scores(self.bins)).steps()

    def _area(self, area: Callable[[Steps], float], average: Average | None) -> float | Floats:
        if average not in ("macro", "micro", "weighted", None):
            message = (
                f'{self.KIND}: expected average "macro", "micro", "weighted" or None, received {average!r}'
            )
            raise OptionError(message, hint="None gives one area for each column")
        if average == "micro":
            return area(self._pooled())
        steps = self._steps()
        areas = np.array([area(each) for each in steps])
        if average is None:
            return areas
        weights = np.array([each.positives.sum() if average == "weighted" else 1.0 for each in steps])
        there = ~np.isnan(areas)
        total = weights[there].sum()
        return float((areas[there] * weights[there]).sum() / total) if total else math.nan

    def _column(self, column: int | str) -> Steps:
        names = self.column_names
        index = names.index(column) if column in names else column
        if not isinstance(index, int) or not 0 <= index < max(1, len(names)):
            message = f"{self.KIND}: expected one of the columns {names!r:.200}, received {column!r}"
            raise OptionError(message, hint="pass its number or its name")
        return self._scores[index].steps() if self._scores else new_scores(self.bins).steps()

    @property
    def column_names(self) -> list[str]:
        """Names of the columns; numbers where none were given, empty before the first batch."""
        return self.names if self.names is not None else [str(k) for k in range(len(self._scores))]

    def summary(self) -> dict[str, float]:
        """Both areas, the mean over the columns where there are several, and rows."""
        return {
            "auroc": float(self._area(Steps.auroc, "macro")),
            "auprc": float(self._area(Steps.auprc, "macro")),
            "rows": self.rows,
        }

    def sections(self) -> list[Markup]:
        """Areas, both curves, and a table of columns."""
        from fatwood.evaluation.curve_sections import sections

        return sections(
            self.summary(), dict(zip(self.column_names, self._steps(), strict=False)), self._notes()
        )

    def _notes(self) -> list[str]:
        """Why figures are missing."""
        steps = self._steps()
        found = [] if self.complete else ["Read from a curve: scores of single rows are not there."]
        for what, part in (
            ("positives", [s.positives for s in steps]),
            ("negatives", [s.negatives for s in steps]),
        ):
            none = [name for name, values in zip(self.column_names, part, strict=False) if not values.any()]
            if none and len(steps) == 1:
                found.append(f"There are no {what}: not all areas are defined.")
            elif none:
                found.append(f"Columns without {what} are left out of means: {', '.join(none[:_SHOWN])}.")
        return found

    def __str__(self) -> str:
        figures = self.summary()
        skipped = f" ({self.skipped:,} skipped)" if self.skipped else ""
        lines = [
            f"auroc  {figures['auroc']:.4f}",
            f"auprc  {figures['auprc']:.4f}",
            f"rows   {self.rows:,}{skipped}",
        ]
        if len(self._scores) > 1:
            lines[0] += "  mean of the columns"
            lines += ["", *self._table()]
        return "\n".join([*lines, *(f"note: {note}" for note in self._notes())])

    def _table(self) -> list[str]:
        names = self.column_names
        width = max(len("column"), *(len(name) for name in names[:_SHOWN])) + 2
        lines = [f"{'column':<{width}}{'auroc':>8}{'auprc':>8}{'positives':>13}"]
        for name, scores in zip(names[:_SHOWN], self._scores, strict=False):
            steps = scores.steps()
            positives = float(steps.positives.sum())
            lines.append(f"{name:<{width}}{steps.auroc():>8.4f}{steps.auprc():>8.4f}{positives:>13,.6g}")
        return lines if len(names) <= _SHOWN else [*lines, f"... {len(names) - _SHOWN:,} more"]
