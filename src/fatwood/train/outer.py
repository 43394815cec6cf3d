"""The outer step: what becomes of the agreed parameters with the mean of all workers' updates.

References:
    Arthur Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023 (:class:`Nesterov`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fatwood.codec.vectors import Vector, host, put, zeros

__all__ = ["Nesterov", "OuterStep"]


class OuterStep(ABC):
    """Applies a mean update; its state is the same on all workers, since all give it the same updates."""

    @abstractmethod
    def apply(self, agreed: Vector, update: Vector) -> None:
        """Change the agreed parameters.

        Args:
            agreed: ``(n,)``, changed in place.
            update: ``(n,)``, the mean of all workers' updates; may be changed.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What must survive: nested dicts of scalars and arrays."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state that :meth:`state` gave."""


class Nesterov(OuterStep):
    """Momentum over agreements, as ``torch.optim.SGD(nesterov=True)`` has it with minus the update for a gradient.

    ::

        velocity <- momentum x velocity + update
        agreed   <- agreed + lr x (update + momentum x velocity)

    Args:
        size: ``n``, the parameters.
        lr: The outer learning rate.
        momentum: 0 leaves plain averaging with the outer learning rate.
        device: Where the parameters are; None for arrays.
    """

    def __init__(self, size: int, lr: float, momentum: float, device: torch.device | None = None) -> None:
        self._lr, self._momentum = float(np.float32(lr)), float(np.float32(momentum))
        self._velocity = zeros(size, device)

    def apply(self, agreed: Vector, update: Vector) -> None:
        """See :meth:`OuterStep.apply`."""
        self._velocity *= self._momentum
        self._velocity += update
        update += self._momentum * self._velocity
        update *= self._lr
        agreed += update

    def state(self) -> dict[str, Any]:
        """The velocity."""
        return {"velocity": host(self._velocity).copy()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a velocity."""
        put(self._velocity, state["velocity"])
