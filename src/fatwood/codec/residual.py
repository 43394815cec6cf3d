"""What is done to the residual besides keeping it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fatwood.errors import OptionError

__all__ = ["ResidualClipping"]


@dataclass(frozen=True, kw_only=True)
class ResidualClipping:
    """Clips the residual to ``max_multiple * tau``, every few steps (Deeplearning4j's residual post-processor).

    A residual of many tau would take as many steps to be sent and be stale by then. The clipped mass is counted
    and reported. No clipping at all is written as ``None`` where a `ResidualClipping` is expected.

    >>> rule = ResidualClipping(max_multiple=5, every=5)
    >>> [step for step in range(12) if rule.due(step)]
    [5, 10]
    """

    max_multiple: float = 5.0
    """The bound in units of tau, at least 1."""

    every: int = 5
    """Clip at the steps above 0 that this divides."""

    def __post_init__(self) -> None:
        if not 1.0 <= self.max_multiple < math.inf:
            msg = f"ResidualClipping.max_multiple: expected a number of at least 1, received {self.max_multiple!r}"
            raise OptionError(msg, hint="pass clipping=None for no clipping")
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1:
            msg = f"ResidualClipping.every: expected a whole number of at least 1, received {self.every!r}"
            raise OptionError(msg, hint="pass clipping=None for no clipping")

    def due(self, step: int) -> bool:
        """Whether the residual is clipped at this step."""
        return step > 0 and step % self.every == 0
