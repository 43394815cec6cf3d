"""The kernel's pass over parameters for tensors on any device: the same arguments, the same bits.

Sum, threshold, subtraction, clipping and the search for positions run where the tensors are. What crosses to the host
is one int64 per position, in one transfer at the end. Everything is float32 arithmetic, one rounding per operation
(no fused multiply-add), and int64 indices, so the result equals the kernel's bit for bit; nothing depends on the order
in which a device's threads run.

Temporary memory on the device: at most 5 bytes per parameter of a chunk of 32 Mi parameters (160 MiB; with a base 128 MiB more), and about 60
bytes per position.

Shapes: ``n`` parameters, ``count`` positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fatwood.codec.kernel import Extracted, Signed, checked_threshold
from fatwood.errors import NotFiniteError

__all__ = ["add_signed", "extract"]

_CHUNK = 1 << 25

# A position travels as (position << 3 | bits).
_NEGATIVE, _INFINITE, _NAN = 1, 2, 4
_BITS = 3


def extract(
    residual: Tensor,
    delta: Tensor,
    tau: float,
    clip: float | None = None,
    *,
    base: Tensor | None = None,
    put_back: bool = False,
) -> Extracted:
    """`fatwood.codec.kernel.Kernel.extract` on a device.

    The host waits for the device once per chunk of 32 Mi parameters (how many positions are there?) and once for the
    transfer at the end.

    Args:
        residual: (n,) float32, changed in place.
        delta: (n,) float32 on the same device, left alone, unless it is put back.
        tau: The threshold; it is rounded to float32 first.
        clip: Bound on the residual after the subtraction, at least ``tau``, or None for no clipping.
        base: (n,) what the update is counted from, left alone, or None.
        put_back: With a base, copy it into ``delta``.

    Returns:
        Positions, signs and clipped mass, on the host.

    Raises:
        NotFiniteError: A sum is NaN or infinite. The residual is then updated all the same and must not be used again.
        ValueError: Shapes, dtypes, devices, tau or clip cannot work.
    """
    _check_vectors(residual, delta, *(() if base is None else (base,)))
    quantum, bound = checked_threshold(tau, clip)
    chunks: list[Tensor] = []
    clipped_mass = torch.zeros(1, dtype=torch.float64, device=residual.device)
    with torch.no_grad():
        for start in range(0, residual.numel(), _CHUNK):
            sums = residual[start : start + _CHUNK]
            added = delta[start : start + _CHUNK]
            if base is None:
                sums.add_(added)
            else:
                before = base[start : start + _CHUNK]
                sums.add_(added - before)
                if put_back:
                    added.copy_(before)
            # "Not below" and not "at least", so that a NaN is reached.
            reached = sums.abs().lt(quantum).logical_not_().nonzero().squeeze(1)
            values = sums[reached]
            chunks.append(_pack(values, reached + start))
            values -= torch.copysign(torch.full_like(values, quantum), values)
            if bound < np.inf:  # what was not reached is below tau, so below the bound
                clipped_mass += (values.abs().double() - bound).clamp_(min=0.0).sum()
                values.clamp_(-bound, bound)
            sums[reached] = values
        host = torch.cat([*chunks, clipped_mass.view(torch.int64)]).cpu().numpy()
    return _unpack(host[:-1], float(host[-1:].view(np.float64)[0]), residual.numel())


def add_signed(target: Tensor, updates: Sequence[Signed]) -> None:
    """`fatwood.codec.kernel.Kernel.add_signed` on a device: one transfer per update, and no wait for the result.

    Args:
        target: (n,) float32, changed in place.
        updates: As for the kernel, on the host; they are added in the order given.

    Raises:
        ValueError: The target is not a contiguous float32 vector.
    """
    _check_vectors(target)
    with torch.no_grad():
        for positions, negative, value in updates:
            with np.errstate(over="ignore"):
                signed = torch.from_numpy(np.array([value, -value]).astype(np.float32)).to(target.device)
            for start in range(0, positions.size, _CHUNK):
                packed = positions[start : start + _CHUNK] << 1 | negative[start : start + _CHUNK]
                device = torch.from_numpy(packed).to(target.device)
                # Not index_add_: where that is an atomic float32 addition, a GPU takes subnormal numbers for zero.
                target[device >> 1] += signed[device & 1]


def _pack(values: Tensor, positions: Tensor) -> Tensor:
    return positions << _BITS | (
        values.lt(0) * _NEGATIVE | values.isinf() * _INFINITE | values.isnan() * _NAN
    )


def _unpack(packed: NDArray[np.int64], clipped_mass: float, n: int) -> Extracted:
    negative = (packed & _NEGATIVE).astype(np.bool_)
    bad = np.flatnonzero(packed & (_INFINITE | _NAN))
    if bad.size:
        first = bad[0]
        value = np.nan if packed[first] & _NAN else -np.inf if negative[first] else np.inf
        raise NotFiniteError(int(packed[first] >> _BITS), n, value)
    return Extracted(packed >> _BITS, negative, clipped_mass)


def _check_vectors(*vectors: Tensor) -> None:
    for vector in vectors:
        if vector.ndim != 1 or vector.dtype != torch.float32 or not vector.is_contiguous():
            msg = (
                f"vector: expected contiguous float32 of one dimension, received {vector.dtype} of shape "
                f"{tuple(vector.shape)}"
            )
            raise ValueError(msg)
    for one, other in pairwise(vectors):
        if one.shape != other.shape or one.device != other.device:
            msg = (
                f"delta: expected {one.numel()} numbers on {one.device} as in the residual, received {other.numel()} "
                f"on {other.device}"
            )
            raise ValueError(msg)
