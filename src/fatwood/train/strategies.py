"""The ways of training together.

References:
    Nikko Strom, "Scalable Distributed DNN Training Using Commodity GPU Cloud Computing", Interspeech 2015
    (:class:`GradientSharing`; Deeplearning4j calls it ``SharedTrainingMaster``).
    Yujun Lin et al., "Deep Gradient Compression", ICLR 2018 (``GradientSharing.warmup``).
    Sebastian U. Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019
    (:class:`ParameterAveraging`; Deeplearning4j: ``ParameterAveragingTrainingMaster``).
    Arthur Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023
    (:class:`DiLoCo`); Amir Sarfi et al., "Communication Efficient LLM Pre-training with SparseLoCo", 2025 (with a threshold).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from fatwood.codec import AdaptiveThreshold, DensityWarmup, ResidualClipping, Threshold, ThresholdEncoder
from fatwood.errors import OptionError
from fatwood.train.checks import require_number, require_whole
from fatwood.train.lookahead import LookAhead
from fatwood.train.outer import Nesterov, OuterStep
from fatwood.train.reduce import DenseReducer, Reducer, Reduction, ThresholdReducer
from fatwood.train.strategy import Shares, Strategy

__all__ = ["AllReduce", "DiLoCo", "GradientSharing", "ParameterAveraging"]


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
    exchange: Shares = "updates"
    """What is encoded: the update that each worker's own optimizer made, or the gradient. With ``"gradients"`` all
    optimizers take the same step on the decoded mean; moments of adaptive optimizers then see sparse gradients only."""
    reduction: Reduction = "mean"
    """How workers' messages become one: their mean, weighted by rows, or their ``"sum"``, Deeplearning4j's way, where
    the effective learning rate grows with the number of workers."""
    staleness: Literal[0, 1] = 0
    """With 1 a message is exchanged while the next minibatch computes, on parameters that lack it. Replicas stay bitwise
    equal; a step takes the longer of computing and exchanging, and learns from parameters that are one step old."""
    ahead: LookAhead | None = None
    """Compute ahead of the agreed parameters, where what is still in residuals will have brought them; None computes at
    them. It makes up for most of what sparse updates cost transformers and recurrent networks early in training."""
    encoding_debug: bool = False
    """Measure every message: thresholds, densities, bytes, and how far the residuals lie above their thresholds."""

    every: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        _require_codec(self.threshold, self.clipping, self.warmup)
        if self.exchange not in get_args(Shares):
            text = f"exchange: expected 'updates' or 'gradients', received {self.exchange!r}"
            raise OptionError(text)
        if self.reduction not in get_args(Reduction):
            text = f"reduction: expected 'mean' or 'sum', received {self.reduction!r}"
            raise OptionError(text)
        _require_staleness(self.staleness)
        _require_ahead(self.ahead, possible=self.exchange == "updates")
        if not isinstance(self.encoding_debug, bool):
            text = f"encoding_debug: expected True or False, received {self.encoding_debug!r}"
            raise OptionError(text)

    @property
    def shares(self) -> Shares:
        """As ``exchange`` says."""
        return self.exchange

    def reducer(self, size: int, device: torch.device | None = None) -> Reducer:
        """A residual of ``size`` zeros and a fresh threshold."""
        encoder = ThresholdEncoder(
            size,
            self.threshold,
            self.clipping,
            warmup=self.warmup,
            debug=self.encoding_debug,
            threads=torch.get_num_threads(),
            device=device,
        )
        return ThresholdReducer(encoder, self.reduction)


@dataclass(frozen=True, kw_only=True)
class ParameterAveraging(Strategy):
    """Workers train alone for ``every`` optimizer steps, then average their parameters, weighted by rows."""

    every: int = 5
    """Optimizer steps between two averagings. What is left at an epoch's end is averaged too."""
    average_optimizer: bool = True
    """Average the optimizers' tensors (momentum and the like), too; it costs as many bytes again for each of them.
    Otherwise every worker keeps its own."""

    def __post_init__(self) -> None:
        require_whole("ParameterAveraging(every=...)", self.every)
        if not isinstance(self.average_optimizer, bool):
            text = f"average_optimizer: expected True or False, received {self.average_optimizer!r}"
            raise OptionError(text)

    @property
    def shares(self) -> Shares:
        """Updates: the mean update added to the old parameters is the mean of the new ones."""
        return "updates"

    def reducer(self, size: int, device: torch.device | None = None) -> Reducer:
        """Dense float32."""
        del size, device  # nothing is kept between agreements
        return DenseReducer()


@dataclass(frozen=True, kw_only=True)
class DiLoCo(Strategy):
    """Workers train alone for ``every`` optimizer steps; the mean of their updates goes through an outer Nesterov momentum.

    With a threshold the updates travel as in :class:`GradientSharing`: fewer rounds, and a small message in each.
    """

    every: int = 100
    """Optimizer steps between two agreements. What is left at an epoch's end is agreed on too."""
    outer_lr: float = 0.7
    """Learning rate of the outer step; 1 with ``outer_momentum=0`` is averaging."""
    outer_momentum: float = 0.9
    """Nesterov momentum over agreements; 0 has none."""
    threshold: Threshold | None = None
    """How the threshold of the codec is chosen; None sends every value."""
    clipping: ResidualClipping | None = None
    """As in :class:`GradientSharing`; an update of many steps is left whole by default."""
    warmup: DensityWarmup | None = None
    """As in :class:`GradientSharing`, counted in agreements."""
    ahead: LookAhead | None = None
    """As in :class:`GradientSharing`."""

    def __post_init__(self) -> None:
        require_whole("DiLoCo(every=...)", self.every)
        require_number("DiLoCo(outer_lr=...)", self.outer_lr, above=0)
        if self.outer_momentum != 0:
            require_number("DiLoCo(outer_momentum=...)", self.outer_momentum, above=0, below=1)
        if self.threshold is not None:
            _require_codec(self.threshold, self.clipping, self.warmup)
        elif self.clipping is not None or self.warmup is not None:
            text = "DiLoCo: expected a threshold beside clipping or warmup, received None"
            raise OptionError(text, hint="for example threshold=TargetSparsityThreshold(target=0.05)")
        _require_ahead(self.ahead, possible=self.threshold is not None)

    @property
    def shares(self) -> Shares:
        """Updates."""
        return "updates"

    def reducer(self, size: int, device: torch.device | None = None) -> Reducer:
        """Dense float32, or a residual of ``size`` zeros and a fresh threshold."""
        if self.threshold is None:
            return DenseReducer()
        threads = torch.get_num_threads()
        return ThresholdReducer(
            ThresholdEncoder(
                size, self.threshold, self.clipping, warmup=self.warmup, threads=threads, device=device
            )
        )

    def outer(self, size: int, device: torch.device | None = None) -> OuterStep:
        """A velocity of ``size`` zeros."""
        return Nesterov(size, self.outer_lr, self.outer_momentum, device)


@dataclass(frozen=True, kw_only=True)
class AllReduce(Strategy):
    """Synchronous data parallelism: one optimizer step on the mean gradient of all workers' minibatches."""

    staleness: Literal[0, 1] = 0
    """As in :class:`GradientSharing`."""
    every: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        _require_staleness(self.staleness)

    @property
    def shares(self) -> Shares:
        """Gradients, so every worker's optimizer takes the same step."""
        return "gradients"

    def reducer(self, size: int, device: torch.device | None = None) -> Reducer:
        """Dense float32."""
        del size, device  # nothing is kept between agreements
        return DenseReducer()


def _require_codec(threshold: object, clipping: object, warmup: object) -> None:
    # A class has the functions of its instances, so it must be told apart.
    if isinstance(threshold, type) or not isinstance(threshold, Threshold):
        text = (
            "threshold: expected AdaptiveThreshold, FixedThreshold, TargetSparsityThreshold or another rule with "
            f"start_density, init, next and merge, received {threshold!r}"
        )
        raise OptionError(
            text, hint="pass an instance; for a constant threshold write threshold=FixedThreshold(tau=1e-3)"
        )
    if not isinstance(clipping, ResidualClipping | None):
        text = f"clipping: expected ResidualClipping or None, received {clipping!r}"
        raise OptionError(text)
    if not isinstance(warmup, DensityWarmup | None):
        text = f"warmup: expected DensityWarmup or None, received {warmup!r}"
        raise OptionError(text, hint="for example warmup=DensityWarmup(steps=100)")


def _require_ahead(ahead: object, *, possible: bool) -> None:
    if not isinstance(ahead, LookAhead | None):
        text = f"ahead: expected LookAhead or None, received {ahead!r}"
        raise OptionError(text, hint="for example ahead=LookAhead()")
    if ahead is not None and not possible:
        text = f"ahead: expected a residual of updates (a threshold, exchange='updates'), received {ahead} without one"
        raise OptionError(text)


def _require_staleness(staleness: object) -> None:
    if isinstance(staleness, bool) or staleness not in (0, 1):
        text = f"staleness: expected 0 or 1, received {staleness!r}"
        raise OptionError(text)
