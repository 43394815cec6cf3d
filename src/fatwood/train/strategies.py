"""The ways of training together.

References:
    Nikko Strom, "Scalable Distributed DNN Training Using Commodity GPU Cloud Computing", Interspeech 2015
    (:class:`GradientSharing`; Deeplearning4j calls it ``SharedTrainingMaster``).
    Yujun Lin et al., "Deep Gradient Compression", ICLR 2018 (``GradientSharing.warmup``).
    Sebastian U. Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019
    (:class:`ParameterAveraging`; Deeplearning4j: ``ParameterAveragingTrainingMaster``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from fatwood.codec import AdaptiveThreshold, DensityWarmup, ResidualClipping, Threshold, ThresholdEncoder
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

    threshold: Threshold = field(default_factory=AdaptiveThreshold)
    """How the threshold is chosen, by every worker for itself: `AdaptiveThreshold`, `FixedThreshold`,
    `TargetSparsityThreshold`, or a rule of your own with the same functions."""
    clipping: ResidualClipping | None = field(default_factory=ResidualClipping)
    """How far a residual may grow, in thresholds; ``None`` leaves it alone."""
    warmup: DensityWarmup | None = None
    """The shares of the parameters to send in the first steps of the model's life; ``None`` begins with the
    threshold's rule."""
    encoding_debug: bool = False
    """Measure every message: thresholds, densities, bytes, and how far the residuals lie above their thresholds."""

    every: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        # A class has the functions of its instances, so it must be told apart.
        if isinstance(self.threshold, type) or not isinstance(self.threshold, Threshold):
            text = (
                "threshold: expected AdaptiveThreshold, FixedThreshold, TargetSparsityThreshold or another rule with "
                f"start_density, init, next and merge, received {self.threshold!r}"
            )
            raise OptionError(
                text,
                hint="pass an instance; for a constant threshold write threshold=FixedThreshold(tau=1e-3)",
            )
        if not isinstance(self.clipping, ResidualClipping | None):
            text = f"clipping: expected ResidualClipping or None, received {self.clipping!r}"
            raise OptionError(text)
        if not isinstance(self.warmup, DensityWarmup | None):
            text = f"warmup: expected DensityWarmup or None, received {self.warmup!r}"
            raise OptionError(text, hint="for example warmup=DensityWarmup(steps=100)")
        if not isinstance(self.encoding_debug, bool):
            text = f"encoding_debug: expected True or False, received {self.encoding_debug!r}"
            raise OptionError(text)

    @property
    def shares(self) -> Literal["updates", "gradients"]:
        """Updates: what the worker's own optimizer made of its gradients."""
        return "updates"

    def reducer(self, size: int) -> Reducer:
        """A residual of ``size`` zeros and a fresh threshold."""
        encoder = ThresholdEncoder(
            size,
            self.threshold,
            self.clipping,
            warmup=self.warmup,
            debug=self.encoding_debug,
            threads=torch.get_num_threads(),
        )
        return ThresholdReducer(encoder)


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
