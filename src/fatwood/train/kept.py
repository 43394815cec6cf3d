"""The best parameters until now, as one worker keeps them; equal on all workers, as the parameters are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fatwood.codec import FlatBuffers

__all__ = ["Best"]


class Best:
    """A copy of parameters and float buffers, if one was kept.

    Args:
        parameters: ``(n,)``, the network's own memory.
        buffers: Of the network.
    """

    def __init__(self, parameters: NDArray[np.float32], buffers: FlatBuffers) -> None:
        self._parameters = parameters
        self._buffers = buffers
        self._kept: dict[str, Any] | None = None

    def keep(self) -> None:
        """Copy what the network has now."""
        self._kept = {"parameters": self._parameters.copy(), "buffers": self._buffers.read()}

    def put_back(self) -> None:
        """Give the network what was kept, if anything was."""
        if self._kept is not None:
            np.copyto(self._parameters, self._kept["parameters"])
            self._buffers.write(self._kept["buffers"])

    def state(self) -> dict[str, Any]:
        """What was kept."""
        return self._kept or {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what another :meth:`state` gave."""
        self._kept = dict(state) or None
