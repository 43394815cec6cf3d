"""Vertices of sequences: they name an input of the graph, whose mask or length counts."""

from __future__ import annotations

import torch

from fatwood.migrate.context import Context, Contextual, mask_for
from fatwood.migrate.wrappers import last_step

__all__ = ["DuplicateToSteps", "LastStepOf", "ReverseSteps"]


class LastStepOf(Contextual):
    """The last real step of each sequence.

    Args:
        mask_input: The input of the graph whose mask says which steps are real.
    """

    def __init__(self, mask_input: str) -> None:
        super().__init__()
        self.mask_input = mask_input

    def mask_after(self, context: Context) -> torch.Tensor | None:  # noqa: ARG002
        """None: there are no steps any more.

        Args:
            context: That it was called with.
        """
        return None

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """``[rows, features]``.

        Args:
            x: ``[rows, features, steps]``.
            context: Of the graph's call.
        """
        given = None if context is None else context.masks.get(self.mask_input)
        known = None if given is None or context is None else Context(context.rows, given)
        return last_step(x, mask_for(known, x.shape[0], x.shape[2]))

    def extra_repr(self) -> str:
        """The input."""
        return f"mask_input={self.mask_input!r}"


class DuplicateToSteps(Contextual):
    """Each row as a sequence of equal steps, as many as an input of the graph has.

    Args:
        length_of: That input.
    """

    def __init__(self, length_of: str) -> None:
        super().__init__()
        self.length_of = length_of

    def mask_after(self, context: Context) -> torch.Tensor | None:
        """That of the input that it is as long as.

        Args:
            context: That it was called with.
        """
        return context.masks.get(self.length_of)

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """``[rows, features, steps]``.

        Args:
            x: ``[rows, features]``.
            context: Of the graph's call, which knows its inputs.
        """
        like = (context or Context(0)).inputs[self.length_of]
        return x.unsqueeze(2).expand(-1, -1, like.shape[2])

    def extra_repr(self) -> str:
        """The input."""
        return f"length_of={self.length_of!r}"


class ReverseSteps(Contextual):
    """Sequences in reverse; of the real steps only where there is a mask.

    Args:
        mask_input: The input of the graph whose mask says which steps are real; "" for none.
    """

    def __init__(self, mask_input: str = "") -> None:
        super().__init__()
        self.mask_input = mask_input

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """``[rows, features, steps]``.

        Args:
            x: Likewise.
            context: Of the graph's call.
        """
        mask = None if context is None else context.masks.get(self.mask_input)
        if mask is None:
            return x.flip(2)
        lengths = (mask != 0).sum(1, keepdim=True)
        place = torch.arange(x.shape[2], device=x.device).expand(x.shape[0], -1)
        source = torch.where(place < lengths, lengths - 1 - place, place)
        return x.gather(2, source[:, None].expand_as(x)) * (place < lengths)[:, None]
