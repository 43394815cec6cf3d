"""Where a worker computes when what it and the others have not sent yet is on its way.

Compressed updates arrive late: what lies in residuals comes many steps after it was computed, and a worker that computes at
the agreed parameters computes for a point that nobody will stay at. So it looks ahead::

    velocity <- momentum x velocity + mean of the messages      the same on all workers
    point     = agreed + residual_share x own residual + velocity_share x velocity
    update    = parameters after the local steps - point        encoded as ever

Messages, agreed parameters and their bitwise equality are as without. At an agreement, a validation and the end the network
has the agreed parameters.

References:
    An Xu, Zhouyuan Huo, Heng Huang, "Step-Ahead Error Feedback for Distributed Training with Compressed Gradient",
    AAAI 2021 (the own residual). Yurii Nesterov, 1983 (the point ahead of a velocity).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fatwood.codec import kernel
from fatwood.codec.vectors import Vector, as_tensor, host, put, zeros
from fatwood.errors import OptionError
from fatwood.train.checks import require_number

__all__ = ["LookAhead", "Velocity"]


@dataclass(frozen=True, kw_only=True)
class LookAhead:
    """How far a worker of a sparse strategy looks ahead; it costs three more passes over the parameters a step."""

    residual: float = 0.5
    """Share of the worker's own residual, 0 to 1."""
    velocity: float = 4.0
    """How much of the velocity; with momentum m, 1 / (1 - m) times the mean message is what it tends to."""
    momentum: float = 0.8
    """How much of the velocity stays from one agreement to the next, at least 0 and below 1."""

    def __post_init__(self) -> None:
        for name, below in (("residual", None), ("velocity", None), ("momentum", 1)):
            value = getattr(self, name)
            if value != 0:
                require_number(f"LookAhead({name}=...)", value, above=0, below=below)
        if self.residual > 1:
            text = f"LookAhead(residual=...): expected at most 1, received {self.residual!r}"
            raise OptionError(text)


class Velocity:
    """The state of a :class:`LookAhead` on one worker.

    Args:
        rule: How far.
        size: ``n``, the parameters.
        device: Where they are; None for arrays.
    """

    def __init__(self, rule: LookAhead, size: int, device: torch.device | None = None) -> None:
        self._rule = rule
        self.point: Vector = zeros(size, device)
        """``(n,)``, where :meth:`go_ahead` went."""
        self.array: Vector = zeros(size, device)
        """``(n,)``, the velocity; the same on all workers."""

    def decay(self) -> None:
        """Before the mean of the messages is added."""
        self.array *= float(np.float32(self._rule.momentum))

    def go_ahead(self, agreed: Vector, residual: Vector, parameters: Vector) -> None:
        """Put the point into the parameters.

        Args:
            agreed: ``(n,)``
            residual: ``(n,)``, the worker's own.
            parameters: ``(n,)``, the network's own memory.
        """
        share, velocity = self._rule.residual, self._rule.velocity
        if isinstance(parameters, np.ndarray):
            terms = (share, host(residual)), (velocity, host(self.array))
            kernel.active().weighted(host(agreed), terms, host(self.point), parameters)
            return
        point = as_tensor(self.point)
        torch.add(as_tensor(agreed), as_tensor(residual), alpha=share, out=point)
        point.add_(as_tensor(self.array), alpha=velocity)
        put(parameters, self.point)

    def state(self) -> dict[str, Any]:
        """The velocity."""
        return {"velocity": host(self.array).copy()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a velocity."""
        put(self.array, state["velocity"])
