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
from typing import Literal

import torch

from fatwood.train.lookahead import LookAhead
from fatwood.train.outer import OuterStep
from fatwood.train.reduce import Reducer

__all__ = ["Shares", "Strategy"]

Shares = Literal["updates", "gradients"]


class Strategy(ABC):
    """A frozen description; the state lives in what it makes."""

    every: int
    """Local optimizer steps between two agreements; at least 1."""
    staleness: Literal[0, 1] = 0
    """With 1 an agreement is exchanged while the next step computes, on parameters that are one agreement old."""
    ahead: LookAhead | None = None
    """How far ahead of the agreed parameters a worker computes; None at them."""
    average_optimizer: bool = False
    """Whether the optimizers' states are averaged with the parameters."""

    @property
    @abstractmethod
    def shares(self) -> Shares:
        """Whether workers step by themselves and share updates, or share gradients and step together."""

    @abstractmethod
    def reducer(self, size: int, device: torch.device | None = None) -> Reducer:
        """A fresh reducer for ``size`` numbers: the parameters, and the optimizer's state where it is averaged.

        Args:
            size: Of the vectors.
            device: Where they are tensors; None for arrays.
        """

    def outer(self, size: int, device: torch.device | None = None) -> OuterStep | None:
        """A fresh outer step for ``size`` parameters, there; None adds the mean update as it is."""
        del size, device
        return None
