"""What a way of training together is: local steps x codec x outer step.

Every strategy runs in the same loop (:mod:`fatwood.train.replica`)::

    repeat:  run `every` local steps on own minibatches
             vector = what is shared: the update since the last agreement, or the gradient
             agree on the mean of all workers' vectors, weighted by the rows behind each
             parameters = parameters at the last agreement + mean update   (or one optimizer step on the mean gradient)

so a new strategy is a new combination of the three properties below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from fatwood.train.reduce import Reducer

__all__ = ["Strategy"]


class Strategy(ABC):
    """A frozen description; the state lives in the :class:`~fatwood.train.reduce.Reducer` that it makes."""

    every: int
    """Local minibatches between two agreements; at least 1."""

    @property
    @abstractmethod
    def shares(self) -> Literal["updates", "gradients"]:
        """Whether workers step by themselves and share updates, or share gradients and step together."""

    @abstractmethod
    def reducer(self, size: int) -> Reducer:
        """A fresh reducer for ``size`` parameters."""
