"""The best parameters until now, as one worker keeps them; equal on all workers, as the parameters are."""

from __future__ import annotations

from typing import Any

from fatwood.codec import FlatBuffers
from fatwood.codec.vectors import Vector, copy, host, put

__all__ = ["Best"]


class Best:
    """A copy of parameters and float buffers, if one was kept.

    Args:
        parameters: ``(n,)``, the network's own memory.
        buffers: Of the network.
    """

    def __init__(self, parameters: Vector, buffers: FlatBuffers) -> None:
        self._parameters = parameters
        self._buffers = buffers
        self._kept: dict[str, Any] | None = None

    def keep(self) -> None:
        """Copy what the network has now."""
        self._kept = {"parameters": copy(self._parameters), "buffers": self._buffers.read()}

    def put_back(self) -> None:
        """Give the network what was kept, if anything was."""
        if self._kept is not None:
            put(self._parameters, self._kept["parameters"])
            self._buffers.write(self._kept["buffers"])

    def state(self) -> dict[str, Any]:
        """What was kept."""
        if self._kept is None:
            return {}
        return {**self._kept, "parameters": host(self._kept["parameters"])}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what another :meth:`state` gave."""
        self._kept = dict(state) or None
