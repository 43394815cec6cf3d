"""Outputs of steps without the padding: which outputs have the steps of which input.

Shapes: ``B`` rows, ``T`` steps of the longest sequence among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fatwood.data import Batch, each
from fatwood.errors import UserCodeError
from fatwood.train.forward import Caller, Key, Keys, outputs_of

__all__ = ["Trimmer"]


class Trimmer:
    """Finds the masks of a network's outputs.

    An output ``(B, T, ...)`` may have the steps of an input, or T classes by chance. So the network is called once more, with
    one row of another length: an output of steps is then of that length, too.

    Args:
        call: The network, in evaluation mode.
        keys: Of its outputs.
    """

    def __init__(self, call: Caller, keys: Keys) -> None:
        self._call, self._keys = call, keys
        self._followed: dict[Key, Key] | None = None

    def masks(self, batch: Batch, outputs: Mapping[Key, torch.Tensor]) -> dict[Key, torch.Tensor]:
        """``(B, T)`` which steps of an output are real, for the outputs of steps alone.

        Args:
            batch: What the network was called with.
            outputs: What it returned.
        """
        given = dict(each(batch.feature_mask))
        if not given:
            return {}
        if self._followed is None:
            self._followed = self._found(batch, outputs, given)
        return {key: given[source] for key, source in self._followed.items()}

    def _found(
        self, batch: Batch, outputs: Mapping[Key, torch.Tensor], given: Mapping[Key, torch.Tensor]
    ) -> dict[Key, Key]:
        """By each output of steps the input that it follows."""
        found: dict[Key, Key] = {}
        for source, mask in given.items():
            alike = [
                key
                for key, output in outputs.items()
                if key not in found and output.shape[1:2] == mask.shape[1:]
            ]
            if not alike:
                continue
            length = mask.shape[1] - 1 or 2
            together = {key for key, other in given.items() if torch.equal(mask, other)}
            probe = _lengthened(batch.rows(slice(0, 1)), together, length)
            try:
                with torch.no_grad():
                    others = outputs_of(self._call(probe), self._keys, 1)
            except UserCodeError:  # it takes no other length, so its outputs do not follow it
                continue
            found |= {key: source for key in alike if others[key].shape[1:2] == (length,)}
        return found


def _lengthened(batch: Batch, keys: set[Key], length: int) -> Batch:
    """One row whose inputs of these keys have so many steps."""

    def changed(tensors: object) -> object:
        parts = {key: _cut(part, length) if key in keys else part for key, part in each(tensors)}
        if isinstance(tensors, Mapping):
            return parts
        if isinstance(tensors, tuple | list):
            return tuple(parts.get(i) for i in range(len(tensors)))
        return parts[None]

    return replace(
        batch,
        features=changed(batch.features),  # type: ignore[arg-type]
        feature_mask=changed(batch.feature_mask),  # type: ignore[arg-type]
    )


def _cut(tensor: torch.Tensor, length: int) -> torch.Tensor:
    return tensor[:, :length] if tensor.shape[1] >= length else torch.cat([tensor, tensor], 1)[:, :length]
