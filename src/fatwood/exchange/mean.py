"""The arithmetic of an exchange's weighted mean: the same bits on every worker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fatwood.errors import OptionError

__all__ = ["checked_vector", "checked_weight", "weighted_mean"]

_CHUNK_ELEMENTS: Final = 65_536  # float64 temporaries stay in the cache


def checked_vector(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector, if it is float32 of shape (n,); `OptionError` else."""
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        received = (
            f"{vector.dtype} of shape {vector.shape}"
            if isinstance(vector, np.ndarray)
            else type(vector).__name__
        )
        message = f"Exchange.mean: expected a float32 array of shape (n,), received {received}"
        raise OptionError(message)
    return vector


def checked_weight(weight: float) -> float:
    """The weight, if it is finite and not negative; `OptionError` else."""
    if not (math.isfinite(weight) and weight >= 0):
        message = f"Exchange.mean: expected a finite weight >= 0, received {weight}"
        raise OptionError(message, hint="the weight is a number of rows; 0 leaves this worker out")
    return float(weight)


def weighted_mean(terms: Sequence[tuple[float, NDArray[np.float32]]], n: int) -> NDArray[np.float32]:
    """sum_i(w_i v_i) / sum_i(w_i) in float64 in the given order, rounded once.

    The weights are first scaled by a common power of two, which is exact, so that neither huge nor tiny weights
    overflow.
    """
    heaviest = max(weight for weight, _ in terms)
    if heaviest == 0:
        return np.zeros(n, np.float32)
    exponent = math.frexp(heaviest)[1]
    scaled = [(math.ldexp(weight, -exponent), vector) for weight, vector in terms if weight > 0]
    total = math.fsum(weight for weight, _ in scaled)
    result = np.empty(n, np.float32)
    with np.errstate(all="ignore"):  # a network that diverged holds inf and NaN; they pass through
        for start in range(0, n, _CHUNK_ELEMENTS):
            piece = slice(start, min(start + _CHUNK_ELEMENTS, n))
            sums = np.zeros(piece.stop - piece.start)
            for weight, vector in scaled:
                sums += np.multiply(vector[piece], weight, dtype=np.float64)
            result[piece] = sums / total
    return result
