"""How large a change must be before it is sent: rules for the threshold tau.

A rule is a frozen value with pure functions over a small state, so there is nothing to clone and nothing hidden:
the encoder keeps the state, saves it and hands it back. The sparsity that rules look at is exactly
``count / n`` of the message sent last.

Source of the idea: N. Strom, "Scalable distributed DNN training using commodity GPU cloud computing",
Interspeech 2015. The adaptive rule is Deeplearning4j's ``AdaptiveThresholdAlgorithm``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from fatwood.errors import OptionError

__all__ = ["AdaptiveThreshold", "FixedThreshold", "Sent", "Threshold", "ThresholdState"]

_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


class ThresholdState(NamedTuple):
    """What a rule remembers from one step to the next."""

    tau: float


@dataclass(frozen=True)
class Sent:
    """What became of the threshold that was chosen last."""

    count: int  # elements in the message
    n: int  # parameters

    @property
    def sparsity(self) -> float:
        """The share of the parameters that was sent."""
        return self.count / self.n


class Threshold(Protocol):
    """A rule for tau; implementations are frozen and every function is pure."""

    def init(self) -> ThresholdState:
        """The state before the first step."""
        ...

    def next(self, state: ThresholdState, last: Sent | None) -> tuple[float, ThresholdState]:
        """Chooses tau for the coming step.

        Args:
            state: From `init` or from the step before.
            last: What was sent in the step before, or None before the first.

        Returns:
            Tau, and the state to hand in next time.
        """
        ...

    def merge(self, states: Sequence[ThresholdState]) -> ThresholdState:
        """One state for several workers' states, in any order; at least one."""
        ...


@dataclass(frozen=True, kw_only=True)
class FixedThreshold:
    """The same tau at every step.

    >>> rule = FixedThreshold(tau=0.5)
    >>> rule.next(rule.init(), None)
    (0.5, ThresholdState(tau=0.5))
    """

    tau: float = 1e-3
    """The threshold, in the units of the parameters."""

    def __post_init__(self) -> None:
        _check_tau("FixedThreshold.tau", self.tau)

    def init(self) -> ThresholdState:
        """The state before the first step."""
        return ThresholdState(self.tau)

    def next(self, state: ThresholdState, last: Sent | None) -> tuple[float, ThresholdState]:
        """Returns the fixed tau, whatever was sent."""
        del state, last
        return self.tau, ThresholdState(self.tau)

    def merge(self, states: Sequence[ThresholdState]) -> ThresholdState:
        """Returns the state of `init`; the others cannot differ."""
        del states
        return self.init()


@dataclass(frozen=True, kw_only=True)
class AdaptiveThreshold:
    """Moves tau so that the sparsity stays in a band (Deeplearning4j's rule).

    With ``s`` the sparsity of the last message and ``d`` the decay::

        first step             tau = initial
        s < min_sparsity       tau = d * tau
        s > max_sparsity       tau = tau / d
        otherwise              tau = tau

    The default decay moves tau by a factor of two in 20 steps. Tau never leaves the normal float32 numbers, so a
    network that has stopped changing does not drive it to zero.

    >>> rule = AdaptiveThreshold(initial=1.0, decay=0.5)
    >>> tau, state = rule.next(rule.init(), None)
    >>> tau, rule.next(state, Sent(count=0, n=100))[0], rule.next(state, Sent(count=2, n=100))[0]
    (1.0, 0.5, 2.0)
    """

    initial: float = 1e-3
    """Tau of the first step, in the units of the parameters."""

    min_sparsity: float = 1e-4
    """Below this share of sent parameters tau falls."""

    max_sparsity: float = 1e-2
    """Above this share of sent parameters tau rises."""

    decay: float = 0.5 ** (1 / 20)
    """The factor of one move, at least 0.5 and below 1."""

    def __post_init__(self) -> None:
        _check_tau("AdaptiveThreshold.initial", self.initial)
        if not 0.0 < self.min_sparsity <= self.max_sparsity <= 1.0:
            msg = (
                "AdaptiveThreshold: expected 0 < min_sparsity <= max_sparsity <= 1, "
                f"received min_sparsity={self.min_sparsity!r} and max_sparsity={self.max_sparsity!r}"
            )
            raise OptionError(
                msg, hint="sparsity is the share of parameters sent per step, for example 1e-4 to 1e-2"
            )
        if not 0.5 <= self.decay < 1.0:
            msg = f"AdaptiveThreshold.decay: expected at least 0.5 and below 1, received {self.decay!r}"
            raise OptionError(msg, hint="0.5 ** (1 / 20) moves tau by a factor of two in 20 steps")

    def init(self) -> ThresholdState:
        """The state before the first step."""
        return ThresholdState(self.initial)

    def next(self, state: ThresholdState, last: Sent | None) -> tuple[float, ThresholdState]:
        """Moves tau by one factor of the decay, or leaves it; see the class."""
        tau = state.tau
        if last is not None and last.sparsity < self.min_sparsity:
            tau *= self.decay
        elif last is not None and last.sparsity > self.max_sparsity:
            tau /= self.decay
        tau = min(max(tau, _SMALLEST), _LARGEST)
        return tau, ThresholdState(tau)

    def merge(self, states: Sequence[ThresholdState]) -> ThresholdState:
        """The arithmetic mean of tau, the same for any order of the states.

        Raises:
            ValueError: There are no states.
        """
        if not states:
            msg = "states: expected at least one, received none"
            raise ValueError(msg)
        taus = [state.tau for state in states]
        mean = math.fsum(taus) / len(taus)
        return ThresholdState(
            min(max(mean, min(taus)), max(taus))
        )  # rounding may leave the range of equal values


def _check_tau(name: str, tau: float) -> None:
    if not _SMALLEST <= tau <= _LARGEST:
        msg = f"{name}: expected a positive number that float32 can hold, received {tau!r}"
        raise OptionError(msg, hint="a threshold is in the units of the parameters, for example 1e-3")
