"""How large a change must be before it is sent: rules for the threshold tau.

A rule is a frozen value with pure functions over a small state, so there is nothing to clone and nothing hidden:
the encoder keeps the state, saves it and hands it back. A rule sees how much was sent, never what; positive and
negative changes are therefore treated alike. The sparsity that rules look at is exactly ``count / n`` of the message
sent last, whatever its coder (Deeplearning4j adds four header words to the count, and takes 1/16 for a bitmap).

Source of the idea: N. Strom, "Scalable distributed DNN training using commodity GPU cloud computing",
Interspeech 2015. The three rules, their parameters and defaults are Deeplearning4j's ``FixedThresholdAlgorithm``,
``AdaptiveThresholdAlgorithm`` and ``TargetSparsityThresholdAlgorithm``.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from fatwood.errors import OptionError

__all__ = [
    "AdaptiveThreshold",
    "FixedThreshold",
    "Sent",
    "TargetSparsityThreshold",
    "Threshold",
    "ThresholdMean",
    "ThresholdState",
]

_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)
_DECAY = 0.5 ** (1 / 20)


class ThresholdState(NamedTuple):
    """What a rule remembers from one step to the next."""

    tau: float
    sparsity: float | None = None  # that tau was last moved by; None before the first message


@dataclass(frozen=True)
class Sent:
    """What became of the threshold that was chosen last."""

    count: int  # elements in the message
    n: int  # parameters, at least 1

    @property
    def sparsity(self) -> float:
        """The share of the parameters that was sent."""
        return self.count / self.n


@runtime_checkable
class Threshold(Protocol):
    """A rule for tau; implementations are frozen and every function is pure."""

    @property
    def start_density(self) -> float | None:
        """The share of the parameters that the first tau shall send; None when the first tau is a given number."""
        ...

    def init(self, tau: float | None = None) -> ThresholdState:
        """The state before the first step.

        Args:
            tau: A start measured on the first update, or where a warm-up ended; None takes the rule's own.
        """
        ...

    def next(self, state: ThresholdState, last: Sent | None) -> tuple[float, ThresholdState]:
        """Chooses tau for the coming step.

        Args:
            state: From `init`, from the step before, or from `merge`.
            last: What was sent in the step before; None when that is unknown, as at the first step.

        Returns:
            Tau, and the state to hand in next time.
        """
        ...

    def merge(self, states: Sequence[ThresholdState]) -> ThresholdState:
        """One state for several workers' states, in any order; at least one."""
        ...


@dataclass(frozen=True)
class ThresholdMean:
    """The mean of several workers' states, exact until it is read, so that any order and grouping gives equal bits.

    Tau and sparsity are averaged arithmetically; a worker that has no sparsity yet counts for tau alone.

    >>> parts = [ThresholdState(0.25, 0.5), ThresholdState(0.5), ThresholdState(0.75, 0.25)]
    >>> a, b, c = map(ThresholdMean.of, parts)
    >>> (a + b + c).state()
    ThresholdState(tau=0.5, sparsity=0.375)
    >>> a + (b + c) == (c + a) + b
    True
    """

    tau_sum: Fraction
    tau_count: int
    sparsity_sum: Fraction
    sparsity_count: int

    @classmethod
    def of(cls, state: ThresholdState) -> ThresholdMean:
        """The mean of one state."""
        known = state.sparsity is not None
        return cls(Fraction(state.tau), 1, Fraction(state.sparsity or 0), int(known))

    def __add__(self, other: object) -> ThresholdMean:
        """The mean over the states of both."""
        if not isinstance(other, ThresholdMean):
            return NotImplemented
        return ThresholdMean(
            self.tau_sum + other.tau_sum,
            self.tau_count + other.tau_count,
            self.sparsity_sum + other.sparsity_sum,
            self.sparsity_count + other.sparsity_count,
        )

    def state(self) -> ThresholdState:
        """The mean, rounded once."""
        known = self.sparsity_count
        return ThresholdState(
            float(self.tau_sum / self.tau_count), float(self.sparsity_sum / known) if known else None
        )


@dataclass(frozen=True, kw_only=True)
class FixedThreshold:
    """The same tau at every step.

    >>> rule = FixedThreshold(tau=0.5)
    >>> rule.next(rule.init(), None)
    (0.5, ThresholdState(tau=0.5, sparsity=None))
    """

    tau: float = 1e-3
    """The threshold, in the units of the parameters."""

    def __post_init__(self) -> None:
        _check_tau("FixedThreshold.tau", self.tau)

    @property
    def start_density(self) -> float | None:
        """None: there is nothing to measure."""
        return None

    def init(self, tau: float | None = None) -> ThresholdState:
        """The state before the first step; a measured tau does not move a fixed one."""
        del tau
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

    initial: float | Literal["quantile"] = 1e-4
    """Tau of the first step, in the units of the parameters. ``"quantile"`` measures it on the first update, so
    that the geometric middle of the band is sent at once and there is nothing to guess."""

    min_sparsity: float = 1e-4
    """Below this share of sent parameters tau falls."""

    max_sparsity: float = 1e-2
    """Above this share of sent parameters tau rises."""

    decay: float = _DECAY
    """The factor of one move, at least 0.5 and below 1."""

    def __post_init__(self) -> None:
        _check_initial("AdaptiveThreshold.initial", self.initial)
        if not 0.0 < self.min_sparsity <= self.max_sparsity <= 1.0:
            msg = (
                "AdaptiveThreshold: expected 0 < min_sparsity <= max_sparsity <= 1, "
                f"received min_sparsity={self.min_sparsity!r} and max_sparsity={self.max_sparsity!r}"
            )
            raise OptionError(
                msg, hint="sparsity is the share of parameters sent per step, for example 1e-4 to 1e-2"
            )
        _check_decay("AdaptiveThreshold.decay", self.decay)

    @property
    def start_density(self) -> float | None:
        """The geometric middle of the band with ``initial="quantile"``, else None."""
        return math.sqrt(self.min_sparsity * self.max_sparsity) if self.initial == "quantile" else None

    def init(self, tau: float | None = None) -> ThresholdState:
        """The state before the first step, with ``initial`` or a measured tau.

        Raises:
            ValueError: ``initial="quantile"`` and no measured tau.
        """
        return _start(self.initial, tau)

    def next(self, state: ThresholdState, last: Sent | None) -> tuple[float, ThresholdState]:
        """Moves tau by one factor of the decay, or leaves it; see the class."""
        return _move(state, last, self.min_sparsity, self.max_sparsity, self.decay)

    def merge(self, states: Sequence[ThresholdState]) -> ThresholdState:
        """The arithmetic means, see `ThresholdMean`.

        Raises:
            ValueError: There are no states.
        """
        return _merge(states)


@dataclass(frozen=True, kw_only=True)
class TargetSparsityThreshold:
    """Moves tau at every step towards one sparsity (Deeplearning4j's rule).

    With ``s`` the sparsity of the last message and ``d`` the decay::

        first step        tau = initial
        s < target        tau = d * tau
        s > target        tau = tau / d
        s = target        tau = tau

    There is no dead band: tau swings by one factor of the decay around the value that it looks for.

    >>> rule = TargetSparsityThreshold(initial=1.0, target=0.01, decay=0.5)
    >>> tau, state = rule.next(rule.init(), None)
    >>> [rule.next(state, Sent(count, n=100))[0] for count in (0, 1, 2)]
    [0.5, 1.0, 2.0]
    """

    initial: float | Literal["quantile"] = 1e-4
    """Tau of the first step, in the units of the parameters. ``"quantile"`` measures it on the first update, so
    that the target is met at once and there is nothing to guess."""

    target: float = 1e-3
    """The share of sent parameters to keep, above 0 and below 1/16."""

    decay: float = _DECAY
    """The factor of one move, at least 0.5 and below 1."""

    def __post_init__(self) -> None:
        _check_initial("TargetSparsityThreshold.initial", self.initial)
        if not 0.0 < self.target < 1 / 16:
            msg = f"TargetSparsityThreshold.target: expected more than 0 and less than 1/16, received {self.target!r}"
            raise OptionError(
                msg, hint="the target is the share of parameters sent per step, for example 1e-3"
            )
        _check_decay("TargetSparsityThreshold.decay", self.decay)

    @property
    def start_density(self) -> float | None:
        """The target with ``initial="quantile"``, else None."""
        return self.target if self.initial == "quantile" else None

    def init(self, tau: float | None = None) -> ThresholdState:
        """The state before the first step, with ``initial`` or a measured tau.

        Raises:
            ValueError: ``initial="quantile"`` and no measured tau.
        """
        return _start(self.initial, tau)

    def next(self, state: ThresholdState, last: Sent | None) -> tuple[float, ThresholdState]:
        """Moves tau by one factor of the decay; see the class."""
        return _move(state, last, self.target, self.target, self.decay)

    def merge(self, states: Sequence[ThresholdState]) -> ThresholdState:
        """The arithmetic means, see `ThresholdMean`.

        Raises:
            ValueError: There are no states.
        """
        return _merge(states)


def _start(initial: float | Literal["quantile"], tau: float | None) -> ThresholdState:
    start = initial if tau is None else tau
    if isinstance(start, str):
        msg = 'init: expected a tau measured on the first update (initial="quantile"), received none'
        raise ValueError(msg)
    return ThresholdState(_normal(start))


def _move(
    state: ThresholdState, last: Sent | None, low: float, high: float, decay: float
) -> tuple[float, ThresholdState]:
    tau, sparsity = state.tau, state.sparsity if last is None else last.sparsity
    if sparsity is not None and sparsity < low:
        tau *= decay
    elif sparsity is not None and sparsity > high:
        tau /= decay
    tau = _normal(tau)
    return tau, ThresholdState(tau, sparsity)


def _merge(states: Sequence[ThresholdState]) -> ThresholdState:
    if not states:
        msg = "states: expected at least one, received none"
        raise ValueError(msg)
    return functools.reduce(operator.add, map(ThresholdMean.of, states)).state()


def _normal(tau: float) -> float:
    return min(max(tau, _SMALLEST), _LARGEST)


def _check_initial(name: str, initial: object) -> None:
    if initial != "quantile":
        _check_tau(name, initial, or_else='"quantile" or ')


def _check_tau(name: str, tau: object, or_else: str = "") -> None:
    number = isinstance(tau, int | float) and not isinstance(tau, bool)
    if not number or not _SMALLEST <= tau <= _LARGEST:  # type: ignore[operator]
        msg = f"{name}: expected {or_else}a positive number that float32 can hold, received {tau!r}"
        raise OptionError(msg, hint="a threshold is in the units of the parameters, for example 1e-3")


def _check_decay(name: str, decay: float) -> None:
    if not 0.5 <= decay < 1.0:
        msg = f"{name}: expected at least 0.5 and below 1, received {decay!r}"
        raise OptionError(msg, hint="0.5 ** (1 / 20) moves tau by a factor of two in 20 steps")
