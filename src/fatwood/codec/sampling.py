"""Which elements of a long vector stand for all of them when quantiles are wanted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["SAMPLE", "sample_places"]

SAMPLE = 1 << 18
"""The largest sample; 262 of its elements lie above the 99.9 % quantile."""

_GOLDEN = 2654435769  # 2**32 divided by the golden ratio: its multiples modulo 2**32 spread evenly


def sample_places(n: int) -> NDArray[np.int64] | None:
    """One place in each of ``SAMPLE`` equal stretches of ``range(n)``, ascending, and the same ones for the same n.

    Returns:
        None when ``n`` is at most ``SAMPLE``: then all elements are the sample.

    >>> sample_places(SAMPLE) is None, sample_places(SAMPLE + 1)[:3].tolist()
    (True, [0, 1, 2])
    """
    if n <= SAMPLE:
        return None
    index = np.arange(SAMPLE, dtype=np.int64)
    starts, ends = index * n // SAMPLE, (index + 1) * n // SAMPLE
    # A fixed place in every stretch would meet the same few columns of a matrix again and again.
    return starts + (index * _GOLDEN % 2**32 * (ends - starts) >> 32)
