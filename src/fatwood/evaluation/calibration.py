"""Whether probabilities mean what they say.

Shapes: K columns (classes, or binary outputs), b bins, h bins of the histograms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fatwood.errors import OptionError, UserError
from fatwood.evaluation.columns import Waiting, class_columns, probabilities, question_columns, weight_column
from fatwood.evaluation.exact_sums import ExactSums
from fatwood.evaluation.report import Report
from fatwood.evaluation.sums import checked_count

if TYPE_CHECKING:
    from fatwood.report.html import Markup

__all__ = ["Calibration", "Reliability"]

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
_MOST_BINS: Final = 10_000
_SHOWN: Final = 12
_DIAGRAM: Final = ("counts", "positives", "probability")


class Reliability(NamedTuple):
    """A reliability diagram; all of shape (b,)."""

    counts: Floats
    """Rows in each bin, by weight."""
    probability: Floats
    """Their mean probability; NaN where there are none."""
    positives: Floats
    """The share of them that is positive; NaN where there are none."""

    def error(self) -> float:
        """The mean over rows of how far their bin's probability is from its share of positives; NaN without rows."""
        total = self.counts.sum()
        return (
            float(np.nansum(self.counts * np.abs(self.probability - self.positives)) / total)
            if total
            else math.nan
        )


class Calibration(Report):
    """Reliability diagrams, calibration error and histograms of probabilities and residuals.

    Outputs are probabilities: ``(N, C)`` of a classifier with class numbers ``(N,)``, or ``(N,)`` or ``(N, K)`` of binary outputs
    with labels of 0 and 1 of the same shape. A bin holds its lower edge, and the last one 1, too.

    Args:
        bins: b, of a reliability diagram.
        histogram_bins: h, of the histograms.
        names: Of the K columns, in print, JSON and HTML; None for numbers.

    Raises:
        OptionError: An option that cannot be.

    Example:
        >>> import torch
        >>> report = Calibration(bins=2).update(torch.tensor([0.25, 0.25, 0.75, 0.75]), torch.tensor([0, 1, 1, 1]))
        >>> report.expected_calibration_error()
        0.25
    """

    KIND: ClassVar[str] = "calibration"

    def __init__(
        self, bins: int = 10, histogram_bins: int = 50, *, names: Sequence[str] | None = None
    ) -> None:
        for name, value in (("bins", bins), ("histogram_bins", histogram_bins)):
            if type(value) is not int or not 1 <= value <= _MOST_BINS:
                message = f"calibration: expected {name} from 1 to {_MOST_BINS}, received {value!r}"
                raise OptionError(message, hint="10 bins and 50 for histograms are usual")
        if isinstance(names, str) or any(not isinstance(name, str) for name in names or ()):
            message = f"calibration: expected names as a list of texts, received {names!r:.60}"
            raise OptionError(message, hint="give each column one name")
        self.bins = bins
        self.histogram_bins = histogram_bins
        self.names = None if names is None else list(names)
        self.columns: int | None = None
        """K; None before the first batch."""
        self.classifier = False
        """Whether the columns are classes, of which each row has one."""
        self.rows = 0
        self.skipped = 0
        self._counted: dict[str, ExactSums] = {}
        self._waiting = Waiting()

    def _sizes(self) -> dict[str, int]:
        k = self.columns or 0
        sizes = dict.fromkeys(_DIAGRAM, k * self.bins)
        sizes |= dict.fromkeys(
            ("histogram", "histogram_positives", "residuals_positives"), k * self.histogram_bins
        )
        sizes |= {"residuals": self.histogram_bins, "predicted": k}
        if self.classifier:
            sizes |= {f"top_{name}": self.bins for name in _DIAGRAM}
        return sizes

    def _learn(self, columns: int, *, classifier: bool) -> None:
        if self.columns is None:
            if self.names is not None and len(self.names) != columns:
                message = (
                    f"calibration: expected {len(self.names)} columns, as many as names, received {columns}"
                )
                raise UserError(message, hint="give each column one name")
            self.columns, self.classifier = columns, classifier
            self._counted = {name: ExactSums(size) for name, size in self._sizes().items()}
        if (self.columns, self.classifier) != (columns, classifier):
            what = "classes" if self.classifier else "binary outputs"
            message = f"calibration: expected {self.columns} {what}, received {columns} {'classes' if classifier else 'binary outputs'}"
            raise UserError(message, hint="a report is of one output of one network")

    def update(
        self,
        outputs: Tensor,
        labels: Tensor | None,
        loss_sum: float = math.nan,
        *,
        weights: Tensor | None = None,
    ) -> Calibration:
        """Count one batch, in place.

        Args:
            outputs: ``(N, C)``, ``(N,)`` or ``(N, K)`` probabilities.
            labels: ``(N,)`` class numbers, or 0 and 1 in the shape of the outputs.
            loss_sum: Not used.
            weights: ``(N,)`` of at least 0; None where each weighs 1.

        Returns:
            This same report.

        Raises:
            UserError: Another shape or type, NaN, or no probabilities.
            DataError: A label or weight that cannot be right.
        """
        del loss_sum
        if not len(outputs):
            return self
        classifier = outputs.ndim == 2 and outputs.shape[1] > 2 and labels is not None and labels.ndim == 1
        if classifier:
            scores, classes = class_columns(self.KIND, outputs, labels)
            truths = classes[:, None] == np.arange(scores.shape[1])
        else:
            scores, truths = question_columns(self.KIND, outputs, labels)
        scores = probabilities(self.KIND, scores)
        weight = weight_column(self.KIND, weights, len(scores))
        self._learn(scores.shape[1], classifier=classifier)
        self.rows += len(scores)
        if self._waiting.add(scores, truths, weight):
            self._count()
        return self

    @property
    def _sums(self) -> dict[str, ExactSums]:
        self._count()
        return self._counted

    def _count(self) -> None:
        batch = self._waiting.take()
        if batch is None:
            return
        scores, truths, weight = batch
        column = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        weights = None if weight is None else np.broadcast_to(weight[:, None], scores.shape)
        places = column * self.bins + _bin(scores, self.bins)
        self._add("counts", places, weights)
        self._add("positives", places, weights, truths)
        self._add("probability", places, scores if weights is None else scores * weights)
        places = column * self.histogram_bins + _bin(scores, self.histogram_bins)
        self._add("histogram", places, weights)
        self._add("histogram_positives", places, weights, truths)
        residual = _bin(np.abs(truths - scores), self.histogram_bins)
        self._add("residuals", residual, weights)
        self._add("residuals_positives", column * self.histogram_bins + residual, weights, truths)
        if not self.classifier:
            self._add("predicted", column, weights, scores > 0.5)
            return
        rows, chosen = np.arange(len(scores)), scores.argmax(axis=1)
        self._add("predicted", chosen, weight)
        top, right = scores[rows, chosen], truths[rows, chosen]
        places = _bin(top, self.bins)
        self._add("top_counts", places, weight)
        self._add("top_positives", places, weight, right)
        self._add("top_probability", places, top if weight is None else top * weight)

    def _add(
        self, name: str, places: Whole, terms: Floats | None, which: NDArray[np.bool_] | None = None
    ) -> None:
        chosen = slice(None) if which is None else which
        self._counted[name].add(places[chosen].ravel(), None if terms is None else terms[chosen].ravel())

    def merge(self, other: Calibration) -> Calibration:
        """The report of both reports' rows; neither is changed.

        Raises:
            UserError: The other has other options or columns.
        """
        mine, its = ((each.bins, each.histogram_bins, each.names) for each in (self, other))
        if mine != its:
            message = f"calibration.merge: expected bins, histogram_bins and names {mine}, received {its}"
            raise UserError(message, hint="merge reports with the same options")
        both = self.fresh()
        both.rows, both.skipped = self.rows + other.rows, self.skipped + other.skipped
        for each in (self, other):
            if each.columns is not None:
                both._learn(each.columns, classifier=each.classifier)
                both._counted = {name: sums.plus(each._sums[name]) for name, sums in both._sums.items()}
        return both

    def fresh(self) -> Calibration:
        """An empty report with the same options."""
        return Calibration(self.bins, self.histogram_bins, names=self.names)

    def state(self) -> dict[str, Any]:
        """Options, and the sums by name."""
        return {
            "bins": self.bins,
            "histogram_bins": self.histogram_bins,
            "names": self.names,
            "columns": self.columns,
            "classifier": self.classifier,
            "rows": self.rows,
            "skipped": self.skipped,
            "sums": {name: sums.to_json() for name, sums in self._sums.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Calibration:
        """The inverse of :meth:`state`."""
        report = cls(state["bins"], state["histogram_bins"], names=state["names"])
        report.rows, report.skipped = checked_count(state["rows"]), checked_count(state["skipped"])
        if state["columns"] is not None:
            report._learn(checked_count(state["columns"]), classifier=bool(state["classifier"]))
            report._counted = {
                name: ExactSums.from_json(state["sums"][name], size) for name, size in report._sizes().items()
            }
        return report

    def _values(self, name: str) -> Floats:
        """``(K, bins)``."""
        k = self.columns or 0
        return self._sums[name].values.reshape(k, -1) if k else np.zeros((0, self.histogram_bins))

    def reliability(self, column: int | str = 0) -> Reliability:
        """Of one class against all others, or of one binary output.

        Args:
            column: Its number or name.

        Raises:
            OptionError: There is no such column.
        """
        names = self.column_names
        index = names.index(column) if column in names else column
        if not isinstance(index, int) or not 0 <= index < len(names):
            message = f"calibration: expected one of the columns {names!r:.200}, received {column!r}"
            raise OptionError(message, hint="pass its number or its name")
        return _diagram(*(self._values(name)[index] for name in _DIAGRAM))

    def top_reliability(self) -> Reliability | None:
        """Of the largest probability of each row and whether it is right; None for binary outputs."""
        if not self.classifier:
            return None
        return _diagram(*(self._sums[f"top_{name}"].values for name in _DIAGRAM))

    def calibration_errors(self) -> Floats:
        """``(K,)`` expected calibration error of each column."""
        counts, positives, probability = map(self._values, _DIAGRAM)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.abs(probability - positives).sum(axis=1) / counts.sum(axis=1))

    def expected_calibration_error(self) -> float:
        """For classes that of the largest probability, else the mean over the columns; NaN without rows."""
        top = self.top_reliability()
        if top is not None:
            return top.error()
        errors = self.calibration_errors()
        return float(errors.mean()) if len(errors) else math.nan

    def histogram(self, column: int | None = None, *, positives: bool = False) -> Floats:
        """``(h,)`` rows by probability.

        Args:
            column: None for all together.
            positives: Only where the column is true.
        """
        return _of(self._values("histogram_positives" if positives else "histogram"), column)

    def residual_histogram(self, column: int | None = None) -> Floats:
        """``(h,)`` rows by how far the probability is from the label.

        Args:
            column: None for all together; a number for where this column is true.
        """
        if column is not None:
            return _of(self._values("residuals_positives"), column)
        return self._sums["residuals"].values if self._sums else np.zeros(self.histogram_bins)

    @property
    def label_counts(self) -> Floats:
        """``(K,)`` rows where the column is true."""
        return np.asarray(self._values("positives").sum(axis=1))

    @property
    def predicted_counts(self) -> Floats:
        """``(K,)`` rows where the column has the largest probability, or for binary outputs one above 0.5."""
        return self._values("predicted")[:, 0] if self.columns else np.zeros(0)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns; numbers where none were given."""
        return (
            self.names
            if self.names is not None and self.columns
            else [str(k) for k in range(self.columns or 0)]
        )

    def summary(self) -> dict[str, float]:
        """Expected calibration error and rows."""
        return {"expected_calibration_error": self.expected_calibration_error(), "rows": self.rows}

    def sections(self) -> list[Markup]:
        """Reliability diagrams and histograms."""
        from fatwood.evaluation.calibration_sections import sections

        return sections(self)

    def __str__(self) -> str:
        skipped = f" ({self.skipped:,} skipped)" if self.skipped else ""
        what = " (of the largest probability)" if self.classifier else ""
        lines = [
            f"expected calibration error  {self.expected_calibration_error():.4f}{what}",
            f"rows  {self.rows:,}{skipped}",
        ]
        names = self.column_names[:_SHOWN]
        width = max(len("column"), *map(len, names), 0) + 2
        if names:
            lines += ["", f"{'column':<{width}}{'error':>8}{'true':>13}{'predicted':>13}"]
        found = zip(names, self.calibration_errors(), self.label_counts, self.predicted_counts, strict=False)
        for name, error, true, predicted in found:
            lines.append(f"{name:<{width}}{error:>8.4f}{true:>13,.6g}{predicted:>13,.6g}")
        if len(self.column_names) > _SHOWN:
            lines.append(f"... {len(self.column_names) - _SHOWN:,} more")
        return "\n".join(lines)


def _bin(values: Floats, bins: int) -> Whole:
    """The bin of each value of 0 to 1; an edge belongs to the bin above it, 1 to the last."""
    edges = np.arange(1, bins) / bins
    return np.searchsorted(edges, values, side="right")


def _diagram(counts: Floats, positives: Floats, probability: Floats) -> Reliability:
    with np.errstate(divide="ignore", invalid="ignore"):
        return Reliability(counts, probability / counts, positives / counts)


def _of(values: Floats, column: int | None) -> Floats:
    whole: Floats = values.sum(axis=0) if column is None else values[column]
    return whole
