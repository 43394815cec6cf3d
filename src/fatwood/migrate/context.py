"""What some modules must know besides their input: how many rows the network got, and which steps are real.

A sequence is ``[rows, features, steps]`` unless the layer's configuration says ``NWC``; a mask is ``[rows, steps]``, 1 where a step is real.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from fatwood.errors import UserError

__all__ = ["Context", "Contextual", "flipped", "mask_after", "mask_for", "run"]


@dataclass(frozen=True)
class Context:
    """The facts of one call of a network."""

    rows: int
    """How many rows it was called with."""
    mask: torch.Tensor | None = None
    """Of the steps of the present module's input."""
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Of a graph, by name."""
    masks: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Of a graph's inputs, by name."""


class Contextual(nn.Module):
    """A module whose ``forward`` takes ``context=``; without one it sees no masks."""

    def mask_after(self, context: Context) -> torch.Tensor | None:
        """The mask of its output: that of its input, unless it says otherwise.

        Args:
            context: That it was called with.
        """
        return context.mask


def run(module: nn.Module, *inputs: torch.Tensor, context: Context | None) -> torch.Tensor:
    """Call a module, with the context where it takes one.

    Args:
        module: Any; the parts of an ``nn.Sequential`` are called one by one.
        inputs: What it takes.
        context: Of the network's call.
    """
    if isinstance(module, nn.Sequential):
        (output,) = inputs
        for part in module:
            output = run(part, output, context=context)
        return output
    result: torch.Tensor = (
        module(*inputs, context=context) if isinstance(module, Contextual) else module(*inputs)
    )
    return result


def mask_after(module: nn.Module, context: Context) -> torch.Tensor | None:
    """The mask of a module's output.

    Args:
        module: Any.
        context: That it was called with.
    """
    if isinstance(module, nn.Sequential):
        for part in module:
            context = replace(context, mask=mask_after(part, context))
    return module.mask_after(context) if isinstance(module, Contextual) else context.mask


def mask_for(context: Context | None, rows: int, steps: int) -> torch.Tensor | None:
    """The mask of a sequence, checked.

    Args:
        context: Of the call.
        rows: Of the sequence.
        steps: Of the sequence.

    Raises:
        UserError: The mask is of another size: a layer between has changed the number of steps.
    """
    if context is None or context.mask is None:
        return None
    if context.mask.shape != (rows, steps):
        problem = f"mask of a sequence: expected shape {(rows, steps)}, received {tuple(context.mask.shape)}"
        raise UserError(
            problem,
            hint="masks are not carried over layers that change the number of steps",
        )
    return context.mask


def flipped(context: Context | None) -> Context | None:
    """The context of the sequence in reverse.

    Args:
        context: Of the sequence.
    """
    if context is None or context.mask is None:
        return context
    return replace(context, mask=context.mask.flip(1))
