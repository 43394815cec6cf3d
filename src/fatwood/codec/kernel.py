"""The codec's two loops over parameters, in chunked NumPy.

This is the one place where a compiled kernel may later stand beside the reference: it would offer these two
functions with the same arguments and the same bits in the result.

Shapes: ``n`` parameters, ``count`` positions in a message.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fatwood.errors import UserError

__all__ = ["Extracted", "add_signed", "extract"]

# 64 Ki float32 are 256 KiB: the residual's chunk, the update's chunk and the temporaries stay in the second-level cache.
_CHUNK = 1 << 16


class Extracted(NamedTuple):
    """What one pass took out of a residual."""

    positions: NDArray[np.int64]  # (count,) ascending, unique
    negative: NDArray[np.bool_]  # (count,) True where -tau was taken, False where +tau
    clipped_mass: float  # sum of the absolute values that clipping threw away


def extract(
    residual: NDArray[np.float32], delta: NDArray[np.float32], tau: float, clip: float | None
) -> Extracted:
    """Adds an update to the residual and takes one ``+-tau`` out of every element that reaches it.

    With ``r`` the residual, ``d`` the update and all arithmetic in float32::

        r <- r + d
        for each |r[i]| >= tau:  emit (i, sign r[i]);  r[i] <- r[i] - tau * sign r[i]
        with a clip c >= tau:    r[i] <- min(max(r[i], -c), c)

    The subtraction is exact when ``tau <= |r[i]| <= 2 tau`` (Sterbenz) and, for ``|r[i]| < 2**24 tau``, when tau is
    a power of two; otherwise it rounds once, by at most half a unit in the last place of ``r[i]``.

    Args:
        residual: (n,) changed in place.
        delta: (n,) left alone.
        tau: The threshold; it is rounded to float32 first, as it will be in the message.
        clip: Bound on the residual after the subtraction, at least ``tau``, or None for no clipping.

    Returns:
        The positions in ascending order, their signs and the mass lost to clipping.

    Raises:
        UserError: A sum is NaN or infinite. The residual is then partly updated and must not be used again.
        ValueError: Shapes, dtypes, tau or clip cannot work.
    """
    _check_vectors(residual, delta)
    quantum = np.float32(tau)
    if not 0.0 < quantum < np.inf:
        msg = f"tau: expected a positive finite float32, received {tau!r}"
        raise ValueError(msg)
    bound = None if clip is None else np.float32(clip)
    if bound is not None and not bound >= quantum:
        msg = f"clip: expected at least tau = {quantum}, received {clip!r}"
        raise ValueError(msg)

    size = min(_CHUNK, residual.size)
    magnitude, reached = np.empty(size, np.float32), np.empty(size, np.bool_)
    positions: list[NDArray[np.int64]] = []
    negative: list[NDArray[np.bool_]] = []
    clipped_mass = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # found below, and named
        for start in range(0, residual.size, _CHUNK):
            chunk = residual[start : start + _CHUNK]
            np.add(chunk, delta[start : start + _CHUNK], out=chunk)
            mask = reached[: chunk.size]
            # "not below" and not "at least": a NaN then counts as reached, and is found among the few.
            np.less(np.abs(chunk, out=magnitude[: chunk.size]), quantum, out=mask)
            hits = np.logical_not(mask, out=mask).nonzero()[0]
            values = chunk[hits]
            if not np.isfinite(values).all():
                raise _not_finite(values, hits + start, residual.size)
            negative.append(values < 0)
            positions.append(hits + start)
            values -= np.copysign(quantum, values)
            if bound is not None:  # what was not reached is below tau, so below the bound
                clipped_mass += float(np.maximum(np.abs(values).astype(np.float64) - bound, 0.0).sum())
                np.clip(values, -bound, bound, out=values)
            chunk[hits] = values
    if not positions:
        return Extracted(np.empty(0, np.int64), np.empty(0, np.bool_), 0.0)
    return Extracted(np.concatenate(positions), np.concatenate(negative), clipped_mass)


def add_signed(
    target: NDArray[np.float32], positions: NDArray[np.int64], negative: NDArray[np.bool_], value: float
) -> None:
    """Adds ``+value`` or ``-value`` at the positions of a message, in float32.

    Args:
        target: (n,) changed in place.
        positions: (count,) unique, each in ``range(n)``.
        negative: (count,) True where ``-value`` is to be added.
        value: Rounded to float32 first.
    """
    signed = np.array([value, -value], np.float32)
    for start in range(0, positions.size, _CHUNK):
        where = positions[start : start + _CHUNK]
        target[where] += signed[negative[start : start + _CHUNK].view(np.uint8)]


def _check_vectors(residual: NDArray[np.float32], delta: NDArray[np.float32]) -> None:
    for name, vector in (("residual", residual), ("delta", delta)):
        if vector.ndim != 1 or vector.dtype != np.float32:
            msg = f"{name}: expected a float32 vector, received {vector.dtype} of shape {vector.shape}"
            raise ValueError(msg)
    if residual.shape != delta.shape:
        msg = f"delta: expected {residual.size} numbers as in the residual, received {delta.size}"
        raise ValueError(msg)


def _not_finite(values: NDArray[np.float32], positions: NDArray[np.int64], n: int) -> UserError:
    first = int(np.flatnonzero(~np.isfinite(values))[0])
    return UserError(
        f"the update of parameter {positions[first]} (of {n}): expected a finite number, received {values[first]}",
        hint="lower the learning rate, clip the gradients, or look for a division by zero or a log of zero in the loss",
    )
