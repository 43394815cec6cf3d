"""Scores of one yes-or-no question with the truth: kept one by one, or counted between thresholds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fatwood.evaluation.exact_sums import ExactSums
from fatwood.evaluation.steps import Steps
from fatwood.evaluation.sums import pack_array, unpack_array

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BinnedScores", "ExactScores", "Scores", "new_scores", "thresholds_of"]

_AT_ONCE: Final = 1 << 14
"""Scores that wait to be sorted in, at least."""

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


class Scores(ABC):
    """Scores and truths, mergeable without rounding."""

    @abstractmethod
    def add(self, scores: Floats, truths: NDArray[np.bool_], weights: Floats | None) -> None:
        """Count rows.

        Args:
            scores: ``(N,)``, no NaN; for thresholds 0 to 1.
            truths: ``(N,)``.
            weights: ``(N,)`` of at least 0; None where each is 1.
        """

    @abstractmethod
    def plus(self, other: Self) -> Self:
        """Both together; neither is changed."""

    @abstractmethod
    def steps(self) -> Steps:
        """All of it, by falling score."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """JSON values; equal ones for equal rows."""


class ExactScores(Scores):
    """Every distinct pair of score and weight, with the number of positives and negatives."""

    def __init__(self) -> None:
        self._scores = np.empty(0)
        self._weights = np.empty(0)
        self._counts = np.empty((0, 2), dtype=np.int64)
        self._waiting: list[tuple[Floats, Floats, Whole]] = []
        self._waits = 0

    def add(self, scores: Floats, truths: NDArray[np.bool_], weights: Floats | None) -> None:
        """Count rows; those that weigh nothing are left out."""
        counts = np.stack([~truths, truths], axis=1).astype(np.int64)
        if weights is None:
            weights = np.ones_like(scores)
        elif not weights.all():
            there = weights > 0
            scores, weights, counts = scores[there], weights[there], counts[there]
        # + 0.0: there are two zeros, which are one score
        self._wait(scores + 0.0, weights, counts)

    def _wait(self, scores: Floats, weights: Floats, counts: Whole) -> None:
        if len(scores):
            self._waiting.append((scores, weights, counts))
            self._waits += len(scores)
            if self._waits > max(_AT_ONCE, len(self._scores)):
                self._settle()

    def _settle(self) -> None:
        if not self._waiting:
            return
        parts = [(self._scores, self._weights, self._counts), *self._waiting]
        scores, weights, counts = (np.concatenate(each) for each in zip(*parts, strict=True))
        alike = bool((weights == weights[:1]).all())
        order = np.argsort(scores) if alike else np.lexsort((weights, scores))
        scores, weights, counts = scores[order], weights[order], counts[order]
        new = np.ones(len(scores), dtype=bool)
        new[1:] = (scores[1:] != scores[:-1]) | (weights[1:] != weights[:-1])
        first = new.nonzero()[0]
        self._scores, self._weights = scores[first], weights[first]
        self._counts = np.add.reduceat(counts, first, axis=0)
        self._waiting, self._waits = [], 0

    def plus(self, other: ExactScores) -> ExactScores:
        """Both together."""
        both = ExactScores()
        for each in (self, other):
            each._settle()
            both._waiting.append((each._scores, each._weights, each._counts))
        both._settle()
        return both

    def steps(self) -> Steps:
        """One step for each distinct score."""
        self._settle()
        if not len(self._scores):
            return Steps(np.empty(0), np.empty(0), np.empty(0))
        new = np.ones(len(self._scores), dtype=bool)
        new[1:] = self._scores[1:] != self._scores[:-1]
        first = new.nonzero()[0]
        negatives, positives = np.add.reduceat(self._counts * self._weights[:, None], first, axis=0).T
        return Steps(self._scores[first][::-1], positives[::-1], negatives[::-1])

    def to_json(self) -> dict[str, Any]:
        """Sorted by score and weight; weights only where one is not 1."""
        self._settle()
        weighted = bool((self._weights != 1).any())
        return {
            "scores": pack_array(_smaller(self._scores)),
            "positives": pack_array(_smaller(self._counts[:, 1])),
            "negatives": pack_array(_smaller(self._counts[:, 0])),
            "weights": pack_array(_smaller(self._weights)) if weighted else None,
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> ExactScores:
        """The inverse of :meth:`to_json`."""
        scores = unpack_array(state["scores"], np.float64)
        counts = np.stack(
            [unpack_array(state[name], np.int64) for name in ("negatives", "positives")], axis=-1
        )
        packed = state["weights"]
        weights = np.ones_like(scores) if packed is None else unpack_array(packed, np.float64)
        if scores.ndim != 1 or counts.shape != (len(scores), 2) or weights.shape != scores.shape:
            text = f"expected as many counts and weights as scores ({scores.shape})"
            raise ValueError(text)
        right = (
            np.isfinite(weights) & (weights > 0) & ~np.isnan(scores) & (counts >= 0).all(1) & counts.any(1)
        )
        if not right.all():
            text = "expected scores that are numbers, with counts and weights above 0"
            raise ValueError(text)
        report = cls()
        report._wait(scores + 0.0, weights, counts)
        report._settle()
        return report


class BinnedScores(Scores):
    """What lies between thresholds.

    Args:
        bins: Their number less one: 0, 1/bins, ..., 1.
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self._sums = ExactSums(2 * (bins + 1))

    def add(self, scores: Floats, truths: NDArray[np.bool_], weights: Floats | None) -> None:
        """Count rows."""
        places = np.searchsorted(thresholds_of(self.bins), scores, side="right") - 1
        self._sums.add(2 * places + truths, weights)

    def plus(self, other: BinnedScores) -> BinnedScores:
        """Both together."""
        both = BinnedScores(self.bins)
        both._sums = self._sums.plus(other._sums)
        return both

    def steps(self) -> Steps:
        """One step for each threshold, also where nothing lies."""
        negatives, positives = self._sums.values.reshape(-1, 2).T
        return Steps(thresholds_of(self.bins)[::-1], positives[::-1], negatives[::-1])

    def to_json(self) -> dict[str, Any]:
        """What lies at or above each threshold and below the next."""
        return self._sums.to_json()

    @classmethod
    def from_json(cls, state: Mapping[str, Any], bins: int) -> BinnedScores:
        """The inverse of :meth:`to_json`."""
        scores = cls(bins)
        scores._sums = ExactSums.from_json(state, 2 * (bins + 1))
        return scores

    @classmethod
    def from_counts(cls, positives: Whole, negatives: Whole) -> BinnedScores:
        """Of counts by rising threshold.

        Args:
            positives: ``(bins + 1,)``.
            negatives: ``(bins + 1,)``.
        """
        scores = cls(len(positives) - 1)
        counts = np.stack([negatives, positives], axis=1).astype(np.float64).ravel()
        scores._sums.add(np.arange(len(counts)), counts)
        return scores


def new_scores(bins: int | None) -> Scores:
    """None yet; exact without ``bins``."""
    return ExactScores() if bins is None else BinnedScores(bins)


def thresholds_of(bins: int) -> Floats:
    """``(bins + 1,)`` from 0 to 1."""
    return np.arange(bins + 1) / bins


def _smaller(values: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in the smallest type that holds them all."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore", under="ignore"):
            single = values.astype(np.float32)
        return single if (single == values).all() else values
    most = int(values.max(initial=0))
    return values.astype(np.min_scalar_type(most))
