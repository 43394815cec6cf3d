"""The options of a fit that goes on when workers are lost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fatwood.errors import OptionError
from fatwood.snapshots import Checkpoints

__all__ = ["Elasticity"]

_ALLOCATION_SECONDS = 300.0
"""How long an executor may take that dynamic allocation asks for: a queue, an archive to fetch and to unpack, a JVM."""


@dataclass(frozen=True, kw_only=True)
class Elasticity:
    """How a fit goes on when workers are lost; see :meth:`fatwood.SparkModel.fit`."""

    min_workers: int | None = None
    start_timeout_seconds: float = 120.0
    """How long the last worker may start after the first."""
    heartbeat_timeout_seconds: float = 10.0
    rejoin_timeout_seconds: float = 120.0
    exchange_timeout_seconds: float = 600.0
    """How long workers wait for a minibatch of the slowest; a dead worker is noticed at once."""
    checkpoints: Checkpoints | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not name.endswith("_seconds"):
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and 0 < value < math.inf):
                text = f"{name}: expected a finite number of seconds above 0, received {value!r}"
                raise OptionError(text)

    def with_allocation(self) -> Elasticity:
        """With more time to start, as executors need that are started for the workers; not if fewer workers would do."""
        if self.min_workers is not None:
            return self
        return replace(self, start_timeout_seconds=max(_ALLOCATION_SECONDS, self.start_timeout_seconds))
