"""Positives and negatives by falling score: curves, and the areas under them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["PrecisionRecallCurve", "ROCCurve", "Steps"]

Floats = NDArray[np.float64]


class ROCCurve(NamedTuple):
    """From nothing to everything taken for positive; all of shape (points,)."""

    fpr: Floats
    tpr: Floats
    thresholds: Floats
    """Falling, infinity first."""


class PrecisionRecallCurve(NamedTuple):
    """By rising threshold, and at the end precision 1 and recall 0."""

    precision: Floats
    recall: Floats
    thresholds: Floats
    """One fewer than the others."""


class Steps(NamedTuple):
    """What each distinct score holds, in falling order."""

    scores: Floats
    positives: Floats
    negatives: Floats

    @property
    def true_positives(self) -> Floats:
        """What is positive and scores at least this."""
        return np.cumsum(self.positives)

    @property
    def false_positives(self) -> Floats:
        """What is negative and scores at least this."""
        return np.cumsum(self.negatives)

    def auroc(self) -> float:
        """The area under the curve of true over false positives; NaN where one of the two is missing."""
        hits, misses = self.true_positives, float(self.negatives.sum())
        if not len(hits) or not hits[-1] or not misses:
            return float("nan")
        return float(np.sum(self.negatives * (hits - self.positives / 2)) / hits[-1] / misses)

    def auprc(self) -> float:
        """The average precision: over the steps, each precision by its gain of recall; NaN where there is no positive."""
        hits = self.true_positives
        if not len(hits) or not hits[-1]:
            return float("nan")
        seen = hits + self.false_positives
        precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
        return float(np.sum(self.positives * precision) / hits[-1])

    def roc_curve(self) -> ROCCurve:
        """Rates of false and true positives; NaN where there are no negatives or positives."""
        with np.errstate(divide="ignore", invalid="ignore"):
            fpr, tpr = self.false_positives / self.negatives.sum(), self.true_positives / self.positives.sum()
        rates = [np.concatenate([np.zeros(1), rate]) for rate in (fpr, tpr)]
        return ROCCurve(rates[0], rates[1], np.concatenate([[np.inf], self.scores]))

    def precision_recall_curve(self) -> PrecisionRecallCurve:
        """Precision, which is 1 where nothing scores so high, and recall, which is NaN where there are no positives."""
        hits = self.true_positives
        seen = hits + self.false_positives
        precision = np.divide(hits, seen, out=np.ones_like(hits), where=seen > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = hits / self.positives.sum()
        ends = [np.concatenate([values[::-1], [end]]) for values, end in ((precision, 1.0), (recall, 0.0))]
        return PrecisionRecallCurve(ends[0], ends[1], self.scores[::-1])
