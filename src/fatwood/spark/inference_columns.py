"""The columns of predictions: what the network returns, the class that it means, and how probable that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fatwood.errors import UserCodeError
from fatwood.spark.inference_rows import InferenceOrder

__all__ = ["OutputColumns"]

_SLACK = 1e-6
"""By which probabilities may leave 0 to 1: they were computed in floats."""


class OutputColumns:
    """The columns of one output, for the rows of one Arrow batch.

    Args:
        order: Which columns.
        activate: Makes probabilities of the output.
    """

    def __init__(self, order: InferenceOrder, activate: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._activate = activate
        self._returns = order.returns
        self._values = _Numbers() if order.scalar else _Lists()
        self._classes: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
        self._probabilities: list[NDArray[np.float64]] = [np.zeros(0)]

    def add(self, output: torch.Tensor, mask: torch.Tensor | None) -> None:
        """The rows of a minibatch.

        Args:
            output: ``(B, ...)``, each row flattened.
            mask: ``(B, T)`` for an output of steps, of which the real ones alone are taken.

        Raises:
            UserCodeError: The output has no classes, or is not one number a row, and that is asked for.
        """
        if output.requires_grad or not output.is_cpu:
            output = output.detach().cpu()
        if "output" in self._returns:
            self._values.add(output, mask)
        if "class" in self._returns or "probability" in self._returns:
            classes, probabilities = _most_probable(output, self._activate)
            self._classes.append(classes.to(torch.int32).numpy())
            self._probabilities.append(probabilities.numpy())

    def arrow(self, kept: NDArray[np.bool_]) -> Iterator[pa.Array]:
        """The columns in their order, null in a row of the Arrow batch that was not kept."""
        for name in self._returns:
            if name == "output":
                yield self._values.arrow(kept)
            else:
                parts: Sequence[NDArray[Any]] = self._classes if name == "class" else self._probabilities
                yield with_nulls(parts, kept)


def with_nulls(parts: Sequence[NDArray[Any]], kept: NDArray[np.bool_]) -> pa.Array:
    """Numbers of the rows kept, in parts, and null for the others."""
    found = np.concatenate(parts)
    if kept.all():
        return pa.array(found)
    values = np.zeros(len(kept), found.dtype)
    values[kept] = found
    return pa.array(values, mask=~kept)


class _Numbers:
    """A column of one number a row."""

    def __init__(self) -> None:
        self._values: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]

    def add(self, output: torch.Tensor, mask: torch.Tensor | None) -> None:
        if mask is not None or output.numel() != len(output):
            text = f"TypeError: with scalar=True an output must be one number a row, received {tuple(output.shape)}"
            raise UserCodeError(text, hint="leave scalar=True out, or reduce the output with function=")
        self._values.append(output.reshape(-1).to(torch.float32).numpy())

    def arrow(self, kept: NDArray[np.bool_]) -> pa.Array:
        return with_nulls(self._values, kept)


class _Lists:
    """A column of one list of floats a row."""

    def __init__(self) -> None:
        self._values: list[torch.Tensor] = [torch.zeros(0)]
        self._lengths: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]

    def add(self, output: torch.Tensor, mask: torch.Tensor | None) -> None:
        if mask is None:
            rows = len(output)
            self._lengths.append(np.full(rows, output.numel() // rows if rows else 0))
        else:
            output = output[mask.cpu()]
            self._lengths.append(mask.sum(1).cpu().numpy() * math.prod(output.shape[1:]))
        self._values.append(output.reshape(-1).to(torch.float32))

    def arrow(self, kept: NDArray[np.bool_]) -> pa.Array:
        lengths = np.zeros(len(kept), np.int64)
        lengths[kept] = np.concatenate(self._lengths)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        values = pa.array(torch.cat(self._values).numpy())
        mask = None if kept.all() else pa.array(~kept)
        return pa.ListArray.from_arrays(offsets, values, mask=mask)


def _most_probable(
    output: torch.Tensor, activate: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's most probable class, the first of equals, and its probability in float64.

    Args:
        output: ``(B, C)`` with C > 1; or one number a row, of which the probability of class 1 is made.
        activate: Makes the probabilities.
    """
    if output.dim() == 0 or output.dim() > 2 or 0 in output.shape[1:]:
        text = f"TypeError: for a class an output must be (B, classes) or one number a row, received {tuple(output.shape)}"
        raise UserCodeError(text, hint="returns='output', or choose classes with function=")
    probabilities = activate(output.to(torch.float64))
    low, high = _bounds(probabilities)
    if low < -_SLACK or high > 1 + _SLACK:
        text = f"ValueError: for a class an output must become probabilities, received numbers from {low:g} to {high:g}"
        hint = "activation='softmax' for (B, classes), 'sigmoid' for one number a row, if the network returns logits"
        raise UserCodeError(text, hint=hint)
    if output.dim() == 2 and output.shape[1] > 1:
        classes = probabilities.argmax(1)
        return classes, probabilities.gather(1, classes[:, None])[:, 0]
    ones = probabilities.reshape(len(output))
    classes = (ones >= 0.5).to(torch.int64)
    return classes, torch.where(classes == 1, ones, 1 - ones)


def _bounds(values: torch.Tensor) -> tuple[float, float]:
    finite = values[~values.isnan()]
    return (float(finite.min()), float(finite.max())) if len(finite.reshape(-1)) else (0.0, 1.0)
