"""Receiver operating characteristic and precision-recall curves, and the areas under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
from torch import Tensor

from fatwood.errors import UserError
from fatwood.evaluation.columns import Columns, class_columns, question_columns
from fatwood.evaluation.curve_report import Average, Curves, Floats
from fatwood.evaluation.steps import PrecisionRecallCurve, ROCCurve, Steps

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ROC", "PrecisionRecallCurve", "ROCBinary", "ROCCurve", "ROCMultiClass", "roc_from_dl4j"]


class ROC(Curves):
    """Curves of one binary output.

    Outputs are ``(N,)`` or ``(N, 1)`` with labels of 0 and 1, or ``(N, 2)`` of a classifier with class numbers ``(N,)``, whose
    class 1 is the positive one. Scores need not be probabilities unless there are bins.

    Args:
        bins: None keeps every distinct score; a number counts between ``bins + 1`` thresholds from 0 to 1.

    Example:
        >>> import torch
        >>> report = ROC().update(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
        >>> report.auroc()
        0.75
    """

    KIND: ClassVar[str] = "roc"

    def __init__(self, bins: int | None = None) -> None:
        super().__init__(bins)

    @classmethod
    def _empty(cls, bins: int | None, names: Sequence[str] | None) -> Self:
        if names is not None:
            text = f"expected no names, received {names!r:.60}"
            raise ValueError(text)
        return cls(bins)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`state`."""
        report = super().from_state(state)
        if len(report._scores) > 1:
            text = f"expected one column, received {len(report._scores)}"
            raise ValueError(text)
        return report

    def _columns(self, outputs: Tensor, labels: Tensor | None) -> Columns:
        scores, truths = question_columns(self.KIND, outputs, labels)
        if scores.shape[1] != 1:
            message = f"roc: expected one output, received {scores.shape[1]} columns"
            raise UserError(message, hint="use ROCBinary for several questions, ROCMultiClass for classes")
        return scores, truths

    def auroc(self) -> float:
        """Area under the curve of true over false positives; NaN without positives or without negatives."""
        return float(self._area(Steps.auroc, "macro"))

    def auprc(self) -> float:
        """Average precision, step by step; NaN without positives."""
        return float(self._area(Steps.auprc, "macro"))

    def curve(self) -> ROCCurve:
        """Rates of false and true positives by falling threshold."""
        return self._column(0).roc_curve()

    def precision_recall_curve(self) -> PrecisionRecallCurve:
        """Precision and recall by rising threshold."""
        return self._column(0).precision_recall_curve()


class _ManyCurves(Curves):
    @overload
    def auroc(self, average: Average = "macro") -> float: ...
    @overload
    def auroc(self, average: None) -> Floats: ...
    def auroc(self, average: Average | None = "macro") -> float | Floats:
        """Area under the curve of true over false positives.

        Args:
            average: ``macro`` is the mean of the columns, ``weighted`` by their positives, without those where it is not
                defined; ``micro`` takes all columns for one; None gives ``(K,)``.
        """
        return self._area(Steps.auroc, average)

    @overload
    def auprc(self, average: Average = "macro") -> float: ...
    @overload
    def auprc(self, average: None) -> Floats: ...
    def auprc(self, average: Average | None = "macro") -> float | Floats:
        """Average precision, step by step.

        Args:
            average: As in :meth:`auroc`.
        """
        return self._area(Steps.auprc, average)

    def curve(self, column: int | str) -> ROCCurve:
        """Rates of false and true positives by falling threshold.

        Args:
            column: Its number or name.
        """
        return self._column(column).roc_curve()

    def precision_recall_curve(self, column: int | str) -> PrecisionRecallCurve:
        """Precision and recall by rising threshold.

        Args:
            column: Its number or name.
        """
        return self._column(column).precision_recall_curve()


class ROCBinary(_ManyCurves):
    """Curves for each of several binary outputs: outputs and labels ``(N, K)``, or ``(N,)`` for one.

    Args:
        bins: None keeps every distinct score; a number counts between ``bins + 1`` thresholds from 0 to 1.
        names: Of the K columns.
    """

    KIND: ClassVar[str] = "roc_binary"

    def _columns(self, outputs: Tensor, labels: Tensor | None) -> Columns:
        return question_columns(self.KIND, outputs, labels)


class ROCMultiClass(_ManyCurves):
    """Curves of each class against all others: outputs ``(N, C)`` and class numbers ``(N,)``.

    Args:
        bins: None keeps every distinct score; a number counts between ``bins + 1`` thresholds from 0 to 1.
        names: Of the C classes.
    """

    KIND: ClassVar[str] = "roc_multi_class"

    def _columns(self, outputs: Tensor, labels: Tensor | None) -> Columns:
        scores, classes = class_columns(self.KIND, outputs, labels)
        return scores, classes[:, None] == np.arange(scores.shape[1])


def roc_from_dl4j(state: Mapping[str, Any]) -> Curves:
    """A report of the JSON that Deeplearning4j's ``ROC``, ``ROCBinary`` or ``ROCMultiClass`` wrote.

    Args:
        state: The parsed JSON.

    Returns:
        With thresholds: a report that can be merged. Exact ones come without rows; what their curve holds is read, and only where
        it has a point for every row can the report be merged (``complete``).

    Raises:
        UserError: It is something else.
    """
    from fatwood.evaluation.dl4j_curves import read

    return read(state)
