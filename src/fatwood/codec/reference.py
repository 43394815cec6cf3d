"""The codec's loops in NumPy: the reference in the tests, and what serves where nothing was compiled.

Shapes: ``n`` parameters, ``count`` positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fatwood.codec import rice, ternary
from fatwood.codec.kernel import (
    Added,
    Extracted,
    Floats,
    Kernel,
    Positions,
    RicePlan,
    Signed,
    Signs,
    Term,
)
from fatwood.errors import NotFiniteError

__all__ = ["NumpyKernel"]

_Number = TypeVar("_Number", np.int64, np.bool_)

# Measured: a chunk of 512 KiB is still in a near cache when the next call reads it, and makes a call's fixed cost of about
# a microsecond vanish. The elements that are reached are so few that they are worked on for several chunks at once.
_CHUNK = 1 << 17
_GROUP = 1 << 19
_SCATTER = 1 << 14
_ALL_BELOW = np.uint64(0x0101010101010101)  # eight bools


class NumpyKernel(Kernel):
    """Chunked NumPy.

    `extract` gives each thread a range of the parameters, of at least half a million; NumPy lets go of the interpreter
    lock in every loop. All other methods work in the calling thread alone. Beside its result, which lies in at most
    twice the memory that it needs or in what was expected, `extract` takes 1.1 MiB and, per position in half a million
    parameters, 60 bytes for each thread.
    """

    name = "numpy"
    ternary_limit = 1 << 20  # at about 50 ns for each parameter

    def _extract(
        self, residual: Floats, update: Added, tau: float, clip: float, threads: int, expected: int
    ) -> Extracted:
        parts = max(1, min(threads, residual.size // _GROUP))
        if parts == 1:
            return _extract_range(residual, update, tau, clip, 0, residual.size, expected)
        bounds = [residual.size * part // parts for part in range(parts + 1)]
        with ThreadPoolExecutor(parts) as pool:
            futures = [
                pool.submit(_extract_range, residual, update, tau, clip, start, stop, expected // parts)
                for start, stop in pairwise(bounds)
            ]
        found = [future.result() for future in futures]  # the first error is that of the first range
        return Extracted(
            np.concatenate([part.positions for part in found]),
            np.concatenate([part.negative for part in found]),
            sum(part.clipped_mass for part in found),
        )

    def _weighted(self, first: Floats, terms: tuple[Term, Term], out: Floats, also: Floats) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, out.size, _CHUNK):
                part = slice(start, start + _CHUNK)
                total = first[part]
                for factor, vector in terms:
                    total = total + np.float32(factor) * vector[part]
                out[part] = also[part] = total

    def _gather(self, vector: Floats, places: Positions) -> Floats:
        if places.size and not 0 <= places.min() <= places.max() < vector.size:
            msg = (
                f"places: expected numbers in range({vector.size}), received {places.min()} to {places.max()}"
            )
            raise ValueError(msg)
        return vector[places]

    def _add_signed(self, target: Floats, updates: Sequence[Signed], threads: int) -> None:
        # One message after the other: sweeping the target once, piece by piece, was measured to be no faster.
        del threads
        with np.errstate(over="ignore", invalid="ignore"):
            for positions, negative, value in updates:
                signed = np.array([value, -value]).astype(np.float32)
                for start in range(0, positions.size, _SCATTER):
                    where = positions[start : start + _SCATTER]
                    target[where] += signed[negative[start : start + _SCATTER].view(np.uint8)]

    def rice_plan(self, positions: Positions, negative: Signs) -> RicePlan:
        """See `rice.plan`."""
        return rice.plan(positions, negative)

    def rice_pack(self, positions: Positions, negative: Signs, plan: RicePlan) -> bytes:
        """See `rice.pack`."""
        return rice.pack(positions, negative, plan)

    def rice_unpack(self, payload: memoryview, count: int, n: int) -> tuple[Positions, Signs]:
        """See `rice.unpack`."""
        return rice.unpack(payload, count, n)

    def ternary_histogram(self, positions: Positions, n: int) -> NDArray[np.int64]:
        """See `ternary.histogram`."""
        return ternary.histogram(positions, n)

    def ternary_pack(self, positions: Positions, negative: Signs, n: int) -> bytes:
        """See `ternary.pack`."""
        return ternary.pack(positions, negative, n)

    def ternary_unpack(self, payload: memoryview, count: int, n: int) -> tuple[Positions, Signs]:
        """See `ternary.unpack`."""
        return ternary.unpack(payload, count, n)


def _extract_range(
    residual: Floats,
    update: Added,
    tau: float,
    clip: float,
    start: int,
    stop: int,
    expected: int,
) -> Extracted:
    """`Kernel.extract` on parameters ``start`` to ``stop``; positions count from the whole vector's first."""
    quantum, bound = np.float32(tau), np.float32(clip)
    search = _Search(min(_GROUP, stop - start), quantum)
    positions = np.empty(min(expected, stop - start), np.int64)
    negative = np.empty(positions.size, np.bool_)
    count, clipped_mass = 0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found below, and named
        for first in range(start, stop, _GROUP):
            reached = search.add_and_find(residual, update, first, min(first + _GROUP, stop))
            values = residual.take(reached)
            if not math.isfinite(np.add.reduce(values)):
                _refuse_not_finite(values, reached, residual.size)
            # Growing two arrays was measured to be faster than joining many: most of their memory is the last call's.
            begin, count = count, count + reached.size
            if count > positions.size:
                positions, negative = _grown(positions, 2 * count), _grown(negative, 2 * count)
            positions[begin:count] = reached
            np.less(values, 0, out=negative[begin:count])
            values -= np.copysign(quantum, values)
            if bound < np.inf:  # what was not reached is below tau, so below the bound
                clipped_mass += float(np.maximum(np.abs(values).astype(np.float64) - bound, 0.0).sum())
                np.clip(values, -bound, bound, out=values)
            residual[reached] = values
    return Extracted(positions[:count], negative[:count], clipped_mass)


def _grown(vector: NDArray[_Number], size: int) -> NDArray[_Number]:
    grown = np.empty(size, vector.dtype)
    grown[: vector.size] = vector
    return grown


def _refuse_not_finite(values: Floats, positions: Positions, n: int) -> None:
    """Raises for the first value that is not finite; finite ones whose sum overflows are let through."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise NotFiniteError(int(positions[bad[0]]), n, float(values[bad[0]]))


class _Search:
    """Adds an update and finds what is not below tau, a group of chunks at a time.

    Args:
        size: The most parameters in a group.
        tau: The threshold.
    """

    def __init__(self, size: int, tau: np.float32) -> None:
        words = -(-size // 8)
        self._tau = tau
        self._magnitude = np.empty(min(_CHUNK, size), np.float32)
        self._below = np.ones(8 * words, np.bool_)
        self._words = self._below.view(np.uint64)
        self._padding = words // 8
        self._touched = np.ones(words + self._padding, np.bool_)
        self._touched_before = 0

    def add_and_find(self, residual: Floats, update: Added, start: int, stop: int) -> Positions:
        """Adds on ``start`` to ``stop`` and returns the positions there that tau does not exceed; NaN is among them."""
        for first in range(start, stop, _CHUNK):
            last = min(first + _CHUNK, stop)
            chunk = residual[first:last]
            added = update.delta[first:last]
            if update.base is not None:
                base = update.base[first:last]
                difference = np.subtract(added, base, out=self._magnitude[: last - first])
                if update.put_back:
                    np.copyto(added, base)
                added = difference
            np.add(chunk, added, out=chunk)
            magnitude = np.abs(chunk, out=self._magnitude[: last - first])
            # "Not below" and not "at least", so that a NaN is reached.
            np.less(magnitude, self._tau, out=self._below[first - start : last - start])
        self._below[stop - start :] = True

        # First the words of eight that are not all below, then the bytes of those words.
        touched = self._touched_words()
        flat = (self._words.take(touched) ^ _ALL_BELOW).view(np.bool_).nonzero()[0]
        touched <<= 3
        touched += start
        positions = touched.take(flat >> 3)
        flat &= 7
        positions += flat
        return positions

    def _touched_words(self) -> Positions:
        """Which words have an element that is not below tau."""
        words = self._words.size
        np.not_equal(self._words, _ALL_BELOW, out=self._touched[:words])
        # Where less than a tenth is true, NumPy searches with a branch that is mispredicted at every hit; from about 3 %
        # up its search without branches is twice as fast, and ones at the end make it choose that one.
        padding = self._padding if 32 * self._touched_before > words else 0
        touched = self._touched[: words + padding].nonzero()[0]
        self._touched_before = touched.size - padding
        return touched[: touched.size - padding]
