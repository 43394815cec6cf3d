"""The ways of training together.

References:
    Nikko Strom, "Scalable Distributed DNN Training Using Commodity GPU Cloud Computing", Interspeech 2015
    (:class:`GradientSharing`; Deeplearning4j calls it ``SharedTrainingMaster``).
    Sebastian U. Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019
    (:class:`ParameterAveraging`; Deeplearning4j: ``ParameterAveragingTrainingMaster``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fatwood.codec import AdaptiveThreshold, FixedThreshold, ResidualClipping, ThresholdEncoder
from fatwood.errors import OptionError
from fatwood.train.reduce import DenseReducer, Reducer, ThresholdReducer
from fatwood.train.strategy import Strategy

__all__ = ["AllReduce", "GradientSharing", "ParameterAveraging"]


@dataclass(frozen=True, kw_only=True)
class GradientSharing(Strategy):
    """Threshold-encoded sharing of updates after every minibatch.

    Each worker steps its own optimizer, adds the update to its residual, sends one signed threshold for every
    residual that reached it, and keeps the rest. All workers apply the mean of all messages, their own
    included, so their parameters stay bitwise equal.
    """

    threshold: AdaptiveThreshold | FixedThreshold = field(default_factory=AdaptiveThreshold)
    """How the threshold is chosen, by every worker for itself."""
    clipping: ResidualClipping | None = field(default_factory=ResidualClipping)
    """How far a residual may grow, in thresholds; ``None`` leaves it alone."""

    every: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, AdaptiveThreshold | FixedThreshold):
            text = f"threshold: expected AdaptiveThreshold or FixedThreshold, received {self.threshold!r}"
            raise OptionError(text, hint="for a constant threshold write threshold=FixedThreshold(tau=1e-3)")
        if not isinstance(self.clipping, ResidualClipping | None):
            text = f"clipping: expected ResidualClipping or None, received {self.clipping!r}"
            raise OptionError(text)

    @property
    def shares(self) -> Literal["updates", "gradients"]:
        """Updates: what the worker's own optimizer made of its gradients."""
        return "updates"

    def reducer(self, size: int) -> Reducer:
        """A residual of ``size`` zeros and a fresh threshold."""
        return ThresholdReducer(ThresholdEncoder(size, self.threshold, self.clipping))


@dataclass(frozen=True, kw_only=True)
class ParameterAveraging(Strategy):
    """Workers train alone for ``every`` minibatches, then average their parameters, weighted by rows."""

    every: int = 5
    """Minibatches between two averagings. What is left at an epoch's end is averaged too."""

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1:
            text = f"ParameterAveraging(every=...): expected a whole number of at least 1, received {self.every!r}"
            raise OptionError(text)

    @property
    def shares(self) -> Literal["updates", "gradients"]:
        """Updates: the mean update added to the old parameters is the mean of the new ones."""
        return "updates"

    def reducer(self, size: int) -> Reducer:
        """Dense float32."""
        del size  # nothing is kept between agreements
        return DenseReducer()


@dataclass(frozen=True, kw_only=True)
class AllReduce(Strategy):
    """Synchronous data parallelism: one optimizer step on the mean gradient of all workers' minibatches."""

    every: int = field(default=1, init=False)

    @property
    def shares(self) -> Literal["updates", "gradients"]:
        """Gradients, so every worker's optimizer takes the same step."""
        return "gradients"

    def reducer(self, size: int) -> Reducer:
        """Dense float32."""
        del size  # nothing is kept between agreements
        return DenseReducer()
