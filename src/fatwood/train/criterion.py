"""The user's loss, and what a minibatch weighs by it.

A mean over a minibatch is ``sum(w_i l_i) / sum(w_i)``: ``w_i`` is 1, a sample weight, the weight of the row's class, or 0
where the loss ignores the label. Workers' minibatches are averaged by their ``sum(w_i)``, so that the mean over all is
the mean that one process would take of all rows. Where labels have steps, each real step counts as a row does here,
with the sample weight of its row.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch

from fatwood.errors import OptionError

__all__ = ["Criterion", "LossFunction", "of_rows", "takes_batch"]

LossFunction = Callable[[Any, Any], torch.Tensor]
"""``loss(output, label)``, or ``loss(network, batch)`` where the second parameter is called ``batch``; a scalar mean."""


def takes_batch(loss: Any) -> bool:
    """Whether a loss is called with network and minibatch, and does the forward pass itself.

    Args:
        loss: Its second positional parameter is called ``batch`` if so.
    """
    try:
        parameters = list(
            inspect.signature(loss.forward if isinstance(loss, torch.nn.Module) else loss).parameters.values()
        )
    except (TypeError, ValueError):  # some builtins have no signature
        return False
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 and positional[1] == "batch"


def of_rows(loss: LossFunction) -> LossFunction | None:
    """The same loss, giving each row's own: ``(B,)`` or ``(B, ...)`` instead of the mean.

    Args:
        loss: Left as it is.

    Returns:
        None where it has no ``reduction="mean"`` to be changed, or is called with a minibatch.
    """
    if getattr(loss, "reduction", None) != "mean" or takes_batch(loss):
        return None
    rows = copy.deepcopy(loss)
    rows.reduction = "none"  # type: ignore[attr-defined]
    return rows


class Criterion:
    """A loss that can be weighted by rows.

    Args:
        loss: A mean.
        weighted: Whether there are sample weights.

    Raises:
        OptionError: There are, and the loss cannot tell the rows' own losses.
    """

    def __init__(self, loss: LossFunction, *, weighted: bool) -> None:
        self._mean = loss
        self._rows: LossFunction | None = None
        if weighted and not takes_batch(loss):
            self._rows = of_rows(loss)
            if self._rows is None:
                text = f"weight: expected a loss with reduction='mean', which can give each row's loss, received {loss!r}"
                hint = (
                    "use a loss of torch.nn, or a loss(network, batch) that multiplies by batch.weight itself"
                )
                raise OptionError(text, hint=hint)

    @property
    def mean(self) -> LossFunction:
        """The loss as it was given."""
        return self._mean

    @property
    def ignore_index(self) -> int | None:
        """The label that the loss leaves out."""
        found = getattr(self._mean, "ignore_index", None)
        return found if isinstance(found, int) else None

    def __call__(
        self, output: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None
    ) -> torch.Tensor:
        """The weighted mean over the rows, a scalar.

        Args:
            output: ``(B, ...)``
            label: ``(B,)`` or ``(B, k)`` or as the output.
            weight: ``(B,)``, or None.
        """
        if weight is None or self._rows is None:
            return self._mean(output, label)
        losses = self._rows(output, label)
        if losses.dim() > 1:
            losses = losses.flatten(1).mean(1)
        weights = self.weights(label, weight)
        return (losses * weight).sum() / (weight if weights is None else weights).sum()

    def share(self, label: torch.Tensor, weight: torch.Tensor | None) -> float | None:
        """What a minibatch weighs; None where each row weighs 1."""
        weights = self.weights(label, weight)
        return None if weights is None else float(weights.sum(dtype=torch.float64))

    def weights(self, label: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor | None:
        """``(B,)`` what each row weighs; None where all weigh 1."""
        of_class = self._weights(label)
        if weight is None or of_class is None:
            return of_class if weight is None else weight
        return of_class * weight

    def _weights(self, label: Any) -> torch.Tensor | None:
        """``(B,)`` by class, as ``CrossEntropyLoss`` and ``NLLLoss`` weigh; None where all are 1."""
        if not isinstance(label, torch.Tensor):  # a loss of several outputs together
            return None
        if label.dtype != torch.int64 or label.dim() != 1:
            return None
        if not isinstance(self._mean, torch.nn.CrossEntropyLoss | torch.nn.NLLLoss):
            return None
        classes, ignored = self._mean.weight, label.new_tensor(self._mean.ignore_index)
        left_out = torch.eq(label, ignored)
        if classes is None:
            return (~left_out).float() if bool(left_out.any()) else None
        known = classes[torch.where(left_out, label.new_zeros(()), label)]
        return torch.where(left_out, known.new_zeros(()), known)
