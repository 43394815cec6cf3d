"""Vectors of float32 where they are worked on: arrays in the host's memory, or tensors on a device.

A worker on the CPU has arrays, for which the kernel and NumPy are fastest; one on a GPU has tensors, of which only messages
cross to the host. Sums and products of both are written alike (``a += b``); this module has what is not. Both round each
operation to float32 once, so both give the same bits.

Shapes: ``n`` numbers.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = [
    "Difference",
    "Update",
    "Vector",
    "add",
    "as_tensor",
    "computed",
    "copy",
    "host",
    "put",
    "subtract",
    "zeros",
]

Vector: TypeAlias = "NDArray[np.float32] | torch.Tensor"
"""``(n,)`` float32"""


class Difference(NamedTuple):
    """``after - before``, both ``(n,)``, computed in the pass that uses it; neither may change until then."""

    after: Vector
    before: Vector
    put_back: bool = False
    """Whoever encodes it copies ``before`` into ``after`` in that pass."""


Update: TypeAlias = "Vector | Difference"


def computed(update: Update) -> Vector:
    """An update as a vector; a difference in memory of its own."""
    if not isinstance(update, Difference):
        return update
    out = zeros(
        update.after.shape[0], update.after.device if isinstance(update.after, torch.Tensor) else None
    )
    subtract(update.after, update.before, out)
    return out


def zeros(n: int, device: torch.device | None) -> Vector:
    """A vector of ``n`` zeros: an array, or a tensor where a device is named."""
    return np.zeros(n, np.float32) if device is None else torch.zeros(n, dtype=torch.float32, device=device)


def host(vector: Vector) -> NDArray[np.float32]:
    """The numbers as an array: the same memory where that is the host's, else a copy."""
    return vector.detach().cpu().numpy() if isinstance(vector, torch.Tensor) else vector


def as_tensor(vector: Vector) -> torch.Tensor:
    """The numbers as a tensor of the same memory; those of a read-only array are copied first."""
    if isinstance(vector, torch.Tensor):
        return vector.detach()
    return torch.from_numpy(vector if vector.flags.writeable else vector.copy())


def copy(vector: Vector) -> Vector:
    """The same numbers in memory of their own, where these are."""
    return vector.detach().clone() if isinstance(vector, torch.Tensor) else vector.copy()


def put(into: Vector, values: Vector) -> None:
    """Copies numbers into a vector.

    Args:
        into: (n,)
        values: (n,), of either kind, wherever they are.
    """
    if isinstance(into, torch.Tensor):
        into.copy_(as_tensor(values))
    else:
        np.copyto(into, host(values))


def add(into: Vector, values: Vector) -> None:
    """Adds numbers to a vector.

    Args:
        into: (n,)
        values: (n,), of either kind, wherever they are.
    """
    if isinstance(into, torch.Tensor):
        into += as_tensor(values).to(into.device)
    else:
        into += host(values)


def subtract(one: Vector, other: Vector, out: Vector) -> None:
    """``out = one - other``, all of one kind, on one device."""
    if isinstance(out, torch.Tensor):
        torch.sub(as_tensor(one), as_tensor(other), out=out)
    else:
        np.subtract(host(one), host(other), out=out)
