"""Products of floats without rounding, as sums of floats.

T. J. Dekker, "A floating-point technique for extending the available precision", 1971. What underflows is lost.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["product"]

_SPLITTER = 2.0**27 + 1.0

Floats = NDArray[np.float64]


def product(*factors: Floats) -> list[Floats]:
    """Arrays whose sum is the product of the factors, element by element; not finite where it is beyond the range.

    Args:
        factors: At least one, of one shape.
    """
    parts = [factors[0]]
    for factor in factors[1:]:
        parts = [half for part in parts for half in _times(part, factor)]
    return parts


def _times(left: Floats, right: Floats) -> list[Floats]:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        high = left * right
        left_high, left_low = _split(left)
        right_high, right_low = _split(right)
        low = left_high * right_high - high
        low += left_high * right_low
        low += left_low * right_high
        low += left_low * right_low
    return [high, low] if low.any() else [high]


def _split(value: Floats) -> tuple[Floats, Floats]:
    scaled = _SPLITTER * value
    high = scaled - (scaled - value)
    return high, value - high
