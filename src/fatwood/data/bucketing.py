"""Minibatches of rows of similar length, so that little of them is padding.

The idea is torchtext's BucketIterator: sort a stretch of the epoch's order that is many minibatches long, cut it, and put
the minibatches in a random order. A row stays within its stretch, so the epoch's order decides most of who meets whom.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fatwood.data.order import Permutation

__all__ = ["STRETCH_MINIBATCHES", "bucketed"]

STRETCH_MINIBATCHES = 100
"""Minibatches that are sorted together."""


def bucketed(
    indices: NDArray[np.int64], lengths: NDArray[np.int64], step: int, key: int | None
) -> NDArray[np.int64]:
    """The same rows in another order, which is then to be cut every `step` rows.

    Args:
        indices: (m,) rows of one stretch.
        lengths: (m,) steps of each.
        step: Rows per minibatch.
        key: Selects the order of the minibatches; None for the shortest first. A smaller one at the end stays there.
    """
    by_length = indices[np.argsort(lengths, kind="stable")]
    whole = len(indices) // step
    if key is None or whole < 2:
        return by_length
    begin = int(indices[0])  # stretches of one epoch begin with different rows, so their orders differ
    digest = hashlib.blake2b(f"{key}:{begin}".encode(), digest_size=8).digest()
    order = Permutation(whole, int.from_bytes(digest, "little"))[0:whole]
    minibatches = by_length[: whole * step].reshape(whole, step)[order]
    return np.concatenate([minibatches.reshape(-1), by_length[whole * step :]])
