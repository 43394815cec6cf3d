"""A pseudo-random order of n rows that needs no memory.

A Feistel network over the next power of two is a bijection for any round function; values beyond n are fed through
again until they fall inside (cycle walking), which keeps it a bijection of ``range(n)``. Less than half of the domain
is outside, so a value needs fewer than two passes on average.

After M. Luby and C. Rackoff, "How to construct pseudorandom permutations from pseudorandom functions", SIAM J.
Comput. 17(2), 1988, and J. Black and P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002. The round
function is SplitMix64's finalizer (G. Steele, D. Lea, C. Flood, OOPSLA 2014). It shuffles rows; it is no cipher.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fatwood.errors import OptionError

_ROUNDS = 8
_ROUND_BITS = 64  # short halves mix slowly: a domain of b bits gets at least 64 / b rounds


def permutation_key(seed: int, rank: int, epoch: int) -> int:
    """The key of one worker's order in one epoch: 64 bits of BLAKE2b, equal on every machine.

    Args:
        seed: The user's seed; any integer.
        rank: The worker.
        epoch: The epoch, counted over the model's whole life.

    Returns:
        An integer in ``range(2**64)``.
    """
    digest = hashlib.blake2b(f"order:{seed}:{rank}:{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Permutation:
    """A permutation of ``range(n)``, evaluated where it is asked: ``Permutation(n, key)[0:64]``.

    Args:
        n: How many values; 0 is fine, at most 2**62.
        key: Selects the permutation; the low 64 bits count.
    """

    def __init__(self, n: int, key: int) -> None:
        if not 0 <= n <= 1 << 62:
            message = f"Permutation: expected n between 0 and 2**62, received {n}"
            raise OptionError(message)
        bits = max(n - 1, 0).bit_length()
        self._n = n
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << bits // 2) - 1)
        self._high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        rounds = max(_ROUNDS, _ROUND_BITS // max(bits, 1))
        spread = [(key + number * 0x9E3779B97F4A7C15) % (1 << 64) for number in range(1, rounds + 1)]
        self._round_keys = _mixed(np.array(spread, dtype=np.uint64))

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: slice | NDArray[Any]) -> NDArray[np.int64]:
        """The values at a slice or at an integer array of positions.

        Args:
            index: A slice, or a one-dimensional integer array with values in ``range(n)``.

        Returns:
            int64, one value per position.

        Raises:
            IndexError: A position is not in ``range(n)``, or the index is of another kind.
        """
        if isinstance(index, slice):
            positions = np.arange(*index.indices(self._n), dtype=np.int64)
        else:
            positions = np.asarray(index)
            if positions.ndim != 1 or (positions.size and positions.dtype.kind not in "iu"):
                message = f"Permutation: expected a slice or a 1-d integer array, received {index!r}"
                raise IndexError(message)
            if positions.size and not (positions.min() >= 0 and positions.max() < self._n):
                message = f"Permutation: expected positions in range({self._n}), received {positions}"
                raise IndexError(message)
        values = self._shuffled(positions.astype(np.uint64))
        outside = np.flatnonzero(values >= np.uint64(self._n))
        while outside.size:
            walked = self._shuffled(values[outside])
            values[outside] = walked
            outside = outside[walked >= np.uint64(self._n)]
        return values.astype(np.int64)

    def _shuffled(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """One pass through the network, a bijection of ``range(2**bits)``."""
        low = values & self._low_mask
        high = values >> self._low_bits
        for number, key in enumerate(self._round_keys):
            if number % 2:
                low ^= _mixed(high + key) & self._low_mask
            else:
                high ^= _mixed(low + key) & self._high_mask
        mixed: NDArray[np.uint64] = (high << self._low_bits) | low
        return mixed


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer, in place."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
