"""Many sums of floats at once, each without rounding, so that the order and grouping of the terms cannot be seen.

A sum is a whole number of units of 2**-1152, kept as limbs of 32 bits. Limbs may overflow between two calls; reading carries first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fatwood.evaluation.sums import checked_count, pack_array, unpack_array

__all__ = ["ExactSums"]

_BITS: Final = 32
_MASK: Final = (1 << _BITS) - 1
_ONE: Final = 36
"""The limb whose unit is 1; the smallest float is a part of limb 0, whose unit is 2**-1152."""
_MOST_LIMBS: Final = 72
_MOST_TERMS: Final = 1 << 28
"""Terms of up to 2**33 that a limb of 63 bits can take before it must be carried."""

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


class ExactSums:
    """The exact sums of finite floats of at least 0, by number.

    Args:
        size: How many sums.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._low = _ONE
        self._limbs = np.zeros((size, 0), dtype=np.int64)
        self._terms = 0

    def add(self, places: Whole, terms: Floats | None = None) -> None:
        """Add terms.

        Args:
            places: ``(n,)`` the sum of each, 0 to size - 1.
            terms: ``(n,)`` finite and at least 0; None where each is 1.
        """
        for begin in range(0, len(places), _MOST_TERMS):
            part = slice(begin, begin + _MOST_TERMS)
            self._make_room_for_terms(len(places[part]))
            self._add(places[part], None if terms is None else terms[part])

    def _make_room_for_terms(self, count: int) -> None:
        if self._terms + count > _MOST_TERMS:
            self._carry()
        self._terms += count

    def _add(self, places: Whole, terms: Floats | None) -> None:
        if terms is None:
            if len(places):
                self._grow(_ONE, _ONE + 1)
                self._limbs[:, _ONE - self._low] += np.bincount(places, minlength=self.size)
            return
        seen = terms != 0
        places, (fraction, exponent) = places[seen], np.frexp(terms[seen])
        if not len(places):
            return
        mantissa = np.ldexp(fraction, 53).astype(np.int64)  # below 2**53
        limb, shift = np.divmod(exponent.astype(np.int64) - 53 + _ONE * _BITS, _BITS)
        self._grow(int(limb.min()), int(limb.max()) + 3)
        limb -= self._low
        lower, upper = (mantissa & _MASK) << shift, (mantissa >> _BITS) << shift  # below 2**63 and 2**52
        np.add.at(self._limbs, (places, limb), lower & _MASK)
        np.add.at(self._limbs, (places, limb + 1), (lower >> _BITS) + (upper & _MASK))
        np.add.at(self._limbs, (places, limb + 2), upper >> _BITS)

    def _grow(self, low: int, high: int) -> None:
        """Make the limbs from low to before high exist."""
        width = self._limbs.shape[1]
        before = max(0, self._low - low) if width else 0
        after = max(0, high - self._low - width) if width else high - low
        if not width:
            self._low = low
        if before or after:
            self._limbs = np.pad(self._limbs, ((0, 0), (before, after)))
            self._low -= before

    def _carry(self) -> None:
        """Bring every limb below 2**32, and cut empty ones off: then equal sums have equal limbs."""
        limbs, width = self._limbs, self._limbs.shape[1]
        if width:
            limbs = np.pad(limbs, ((0, 0), (0, 2)))
            for i in range(width + 1):
                limbs[:, i + 1] += limbs[:, i] >> _BITS
                limbs[:, i] &= _MASK
        used = np.flatnonzero(limbs.any(axis=0))
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
        self._limbs = limbs[:, first:last].copy()
        self._low = self._low + first if len(used) else _ONE
        self._terms = 0

    def plus(self, other: ExactSums) -> ExactSums:
        """The sums of both; neither is changed.

        Args:
            other: As many sums.
        """
        total = ExactSums(self.size)
        for each in (self, other):
            each._carry()
            if each._limbs.shape[1]:
                total._grow(each._low, each._low + each._limbs.shape[1])
                begin = each._low - total._low
                total._limbs[:, begin : begin + each._limbs.shape[1]] += each._limbs
        total._terms = 2
        total._carry()
        return total

    @property
    def values(self) -> Floats:
        """``(size,)`` the sums, to the last bit but one."""
        self._carry()
        total = np.zeros(self.size)
        with np.errstate(over="ignore"):  # a sum beyond the floats is infinite
            for i in range(self._limbs.shape[1]):
                total += np.ldexp(self._limbs[:, i].astype(np.float64), _BITS * (self._low + i - _ONE))
        return total

    def to_json(self) -> dict[str, Any]:
        """JSON values; equal sums give equal ones."""
        self._carry()
        return {"low": self._low, "limbs": pack_array(self._limbs.astype(np.uint32))}

    @classmethod
    def from_json(cls, state: Mapping[str, Any], size: int) -> ExactSums:
        """The inverse of :meth:`to_json`.

        Args:
            state: What it returned.
            size: How many sums there must be.

        Raises:
            ValueError, KeyError, TypeError: It is something else.
        """
        limbs = unpack_array(state["limbs"], np.uint32).astype(np.int64)
        low = checked_count(state["low"])
        if limbs.ndim != 2 or len(limbs) != size or low + limbs.shape[1] > _MOST_LIMBS:
            text = f"expected {size} sums, received limbs of shape {limbs.shape} from {low}"
            raise ValueError(text)
        sums = cls(size)
        sums._low, sums._limbs = low, limbs
        return sums
