"""Precision, recall and their kin from counts of true and false positives and negatives, for one class or averaged.

A figure that is 0/0 for a class is NaN for it, and averages leave that class out (scikit-learn: ``zero_division=nan``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fatwood.errors import OptionError

__all__ = ["Average", "Averaged", "Counts", "multiclass_mcc", "one_against_all"]

Average: TypeAlias = Literal["macro", "micro", "weighted", "binary"] | None
"""How a figure of several classes (or output columns) becomes one number:

- ``"macro"``: the mean over the classes, also where there are two of them.
- ``"micro"``: the figure of the counts of all classes together.
- ``"weighted"``: the mean over the classes, each with the weight of its true rows.
- ``"binary"``: the figure of class 1 alone, where there are two; another one is taken with ``positive=``.
- None: no average, a (C,) float64 array.
"""

_Figure: TypeAlias = "Callable[[Counts], NDArray[np.float64]]"


@dataclass(frozen=True)
class Counts:
    """(C,) float64 weights of rows by class, each class against all others."""

    tp: NDArray[np.float64]
    fp: NDArray[np.float64]
    fn: NDArray[np.float64]
    tn: NDArray[np.float64]

    def together(self) -> Counts:
        """(1,) the sums over the classes."""
        return Counts(*(np.array([math.fsum(part)]) for part in (self.tp, self.fp, self.fn, self.tn)))


def one_against_all(
    true: NDArray[np.int64], predicted: NDArray[np.int64], rows: NDArray[Any], classes: int
) -> Counts:
    """Counts of each class from the cells of a confusion matrix.

    Args:
        true: (M,) the cells' true classes.
        predicted: (M,) their predicted ones.
        rows: (M,) what their rows weigh.
        classes: C.
    """
    right = true == predicted
    found, missed, false = (
        np.bincount(of, rows[which], classes).astype(np.float64)
        for of, which in ((true[right], right), (true[~right], ~right), (predicted[~right], ~right))
    )
    touched = np.bincount(true, minlength=classes) + np.bincount(predicted[~right], minlength=classes)
    others = math.fsum(rows) - found - missed - false
    others[touched == len(rows)] = 0.0  # not a rest of rounding: it decides what is 0/0
    return Counts(found, false, missed, np.maximum(others, 0.0))


def multiclass_mcc(true: NDArray[np.int64], predicted: NDArray[np.int64], rows: NDArray[Any]) -> float:
    """Gorodkin's R_K of a confusion matrix's cells; see :func:`one_against_all`. NaN without rows."""
    if not len(rows):
        return math.nan
    actual: dict[int, Any] = {}
    taken: dict[int, Any] = {}
    right: Any = 0
    for of, to, count in zip(true.tolist(), predicted.tolist(), rows.tolist(), strict=True):
        actual[of], taken[to] = actual.get(of, 0) + count, taken.get(to, 0) + count
        right += count if of == to else 0
    whole = sum(actual.values())
    both = right * whole - sum(count * taken.get(of, 0) for of, count in actual.items())
    spread = [whole * whole - sum(count * count for count in part.values()) for part in (actual, taken)]
    constant = min(len(actual), len(taken)) == 1
    return 0.0 if constant else float(both / (math.sqrt(spread[0]) * math.sqrt(spread[1])))


def _over(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN for 0/0."""
    found: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return found


def _g_measure(counts: Counts) -> NDArray[np.float64]:
    tp, fp, fn = counts.tp, counts.fp, counts.fn
    root = np.sqrt(tp + fp) * np.sqrt(tp + fn)
    found = np.divide(tp, root, out=np.zeros_like(tp), where=root > 0)
    return np.where(tp + fp + fn > 0, found, np.nan)


def _mcc(counts: Counts) -> NDArray[np.float64]:
    tp, fp, fn, tn = counts.tp, counts.fp, counts.fn, counts.tn
    root = np.sqrt((tp + fp) * (tn + fn)) * np.sqrt((tp + fn) * (tn + fp))
    found = np.divide(tp * tn - fp * fn, root, out=np.zeros_like(tp), where=root > 0)
    return np.where(tp + fp + fn > 0, found, np.nan)


class Averaged(ABC):
    """The figures of a report that counts true and false positives and negatives.

    Each takes ``average``, one of :data:`Average`, and ``positive``: the number or name of one class (or output column),
    whose figure alone is returned, in place of an average. Each returns a float, or a (C,) float64 array for
    ``average=None``, and raises an OptionError for an average or class that is none.
    """

    @abstractmethod
    def counts(self) -> Counts:
        """Rows by class (or output column), each against all others; of length 0 while the classes are not known."""

    @abstractmethod
    def _position(self, positive: int | str) -> int:
        """Which of them is meant.

        Raises:
            OptionError: None is.
        """

    def precision(self, average: Average = "macro", *, positive: int | str | None = None) -> Any:
        """Part of the rows taken for the class that are of it: ``tp / (tp + fp)``. See :class:`Averaged`."""
        return self._figure(lambda counts: _over(counts.tp, counts.tp + counts.fp), average, positive)

    def recall(self, average: Average = "macro", *, positive: int | str | None = None) -> Any:
        """Part of the rows of the class that are taken for it: ``tp / (tp + fn)``. See :class:`Averaged`."""
        return self._figure(lambda counts: _over(counts.tp, counts.tp + counts.fn), average, positive)

    def f_beta(self, beta: float, average: Average = "macro", *, positive: int | str | None = None) -> Any:
        """The harmonic mean of precision and recall, recall being ``beta`` times as important. See :class:`Averaged`.

        0 where no row of the class was found, and NaN where none is of it nor taken for it.

        Raises:
            OptionError: ``beta`` is not above 0.
        """
        if not (math.isfinite(beta) and beta > 0):
            message = f"f_beta: expected beta above 0, received {beta!r}"
            raise OptionError(message, hint="1 weighs precision and recall alike")
        square = beta * beta

        def figure(counts: Counts) -> NDArray[np.float64]:
            part = (1 + square) * counts.tp
            return _over(part, part + square * counts.fn + counts.fp)

        return self._figure(figure, average, positive)

    def f1(self, average: Average = "macro", *, positive: int | str | None = None) -> Any:
        """:meth:`f_beta` with ``beta`` 1. See :class:`Averaged`."""
        return self.f_beta(1.0, average, positive=positive)

    def g_measure(self, average: Average = "macro", *, positive: int | str | None = None) -> Any:
        """The geometric mean of precision and recall; 0 and NaN as in :meth:`f_beta`. See :class:`Averaged`."""
        return self._figure(_g_measure, average, positive)

    def mcc(self, average: Average = "macro", *, positive: int | str | None = None) -> Any:
        """Matthews' correlation of truth and prediction, -1 to 1, 0 where either is constant. See :class:`Averaged`."""
        return self._figure(_mcc, average, positive)

    def false_positive_rate(self, average: Average = "macro", *, positive: int | str | None = None) -> Any:
        """Part of the rows of other classes that are taken for the class: ``fp / (fp + tn)``. See :class:`Averaged`."""
        return self._figure(lambda counts: _over(counts.fp, counts.fp + counts.tn), average, positive)

    def false_negative_rate(self, average: Average = "macro", *, positive: int | str | None = None) -> Any:
        """Part of the rows of the class that are taken for others: ``fn / (fn + tp)``. See :class:`Averaged`."""
        return self._figure(lambda counts: _over(counts.fn, counts.fn + counts.tp), average, positive)

    def _figure(self, figure: _Figure, average: Average, positive: int | str | None) -> Any:
        counts = self.counts()
        if average not in ("macro", "micro", "weighted", "binary", None):
            message = f"{type(self).__name__}: expected average 'macro', 'micro', 'weighted', 'binary' or None, received {average!r}"
            raise OptionError(message, hint="None gives a figure for each class")
        if not len(counts.tp):
            return np.zeros(0) if average is None and positive is None else math.nan
        if positive is None and average == "binary":
            if len(counts.tp) > 2:
                message = f"{type(self).__name__}: expected two classes for average='binary', there are {len(counts.tp)}"
                raise OptionError(message, hint='average="macro", or positive= one class')
            positive = len(counts.tp) - 1
        if positive is not None:
            return float(figure(counts)[self._position(positive)])
        if average is None:
            return figure(counts)
        if average == "micro":
            return float(figure(counts.together())[0])
        values = figure(counts)
        known = ~np.isnan(values)
        weights = np.ones_like(values) if average == "macro" else counts.tp + counts.fn
        whole = math.fsum(weights[known])
        return math.fsum((values * weights)[known]) / whole if whole else math.nan
