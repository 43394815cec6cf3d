"""What a way of training together is: local steps x codec x outer step.

Every strategy runs in the same loop (:mod:`fatwood.train.replica`)::

    repeat:  run `every` local steps on own minibatches
             vector = what is shared: the update since the last agreement, or the gradient
             agree on the mean of all workers' vectors, weighted by the rows behind each
             parameters = outer(parameters at the last agreement, mean update)   (or one optimizer step on the mean gradient)

so a new strategy is a new combination of the properties below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from fatwood.errors import OptionError
from fatwood.train.outer import OuterStep
from fatwood.train.reduce import Reducer

__all__ = ["Shares", "Strategy", "require_number", "require_whole"]

Shares = Literal["updates", "gradients"]


class Strategy(ABC):
    """A frozen description; the state lives in what it makes."""

    every: int
    """Local optimizer steps between two agreements; at least 1."""
    staleness: Literal[0, 1] = 0
    """With 1 an agreement is exchanged while the next step computes, on parameters that are one agreement old."""
    train_ahead: bool = False
    """Whether a worker computes on the agreed parameters plus its own residual."""
    average_optimizer: bool = False
    """Whether the optimizers' states are averaged with the parameters."""

    @property
    @abstractmethod
    def shares(self) -> Shares:
        """Whether workers step by themselves and share updates, or share gradients and step together."""

    @abstractmethod
    def reducer(self, size: int) -> Reducer:
        """A fresh reducer for ``size`` numbers: the parameters, and the optimizer's state where it is averaged."""

    def outer(self, size: int) -> OuterStep | None:
        """A fresh outer step for ``size`` parameters; None adds the mean update as it is."""
        del size
        return None


def require_whole(where: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        OptionError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        text = f"{where}: expected a whole number of at least {least}, received {value!r}"
        raise OptionError(text)


def require_number(where: str, value: Any, *, above: float | None = None, below: float | None = None) -> None:
    """Refuse what is no number between two bounds: ``above < value`` and ``value < below``.

    Raises:
        OptionError: It is not.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (above is None or value > above) and (below is None or value < below):
        return
    bounds = [
        f"{word} {bound:g}" for word, bound in (("above", above), ("below", below)) if bound is not None
    ]
    text = f"{where}: expected a number{' ' * bool(bounds)}{' and '.join(bounds)}, received {value!r}"
    raise OptionError(text)
