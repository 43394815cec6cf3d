"""Which elements of a long vector stand for all of them when quantiles are wanted."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

__all__ = ["SAMPLE", "sample_places"]

SAMPLE = 1 << 18
"""The largest sample; 262 of its elements lie above the 99.9 % quantile."""

_GOLDEN = 2654435769  # 2**32 divided by the golden ratio: its multiples modulo 2**32 spread evenly
_RUN = 8
"""Elements taken side by side: fetching one of a long vector costs as much as fetching its cache line."""


@functools.lru_cache(maxsize=2)
def sample_places(n: int) -> NDArray[np.int64] | None:
    """One run of eight neighbours of each of ``SAMPLE / 8`` equal stretches, ascending, always the same for an n.

    Returns:
        ``(SAMPLE,)``, read-only; None when ``n`` is at most ``SAMPLE``: then all elements are the sample.

    >>> sample_places(SAMPLE) is None, sample_places(SAMPLE + 1)[:3].tolist()
    (True, [0, 1, 2])
    """
    if n <= SAMPLE:
        return None
    stretches, runs = SAMPLE // _RUN, n // _RUN
    index = np.arange(stretches, dtype=np.int64)
    starts, ends = index * runs // stretches, (index + 1) * runs // stretches
    # A fixed place in every stretch would meet the same few columns of a matrix again and again.
    chosen = starts + (index * _GOLDEN % 2**32 * (ends - starts) >> 32)
    places = (_RUN * chosen[:, np.newaxis] + np.arange(_RUN)).reshape(-1)
    places.flags.writeable = False  # it is kept for the next call
    return places
