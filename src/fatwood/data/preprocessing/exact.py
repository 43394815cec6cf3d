r"""Sums of many floats without any rounding: whatever the order and grouping of the terms, the bits are the same.

A sum is a whole number in units of ``2**(32 * low)``, for each feature one, kept in digits to the base 2**32 (U. Kulisch
and W. L. Miranker, "Computer Arithmetic in Theory and Practice", 1981: a long accumulator)::

    limbs (L + 1, width) int64     digits[0]  digits[1]  ...  digits[L-1]  sign
                         weight    2**(32 low)                             2**(32 (low + L)), 0 or -1

Terms are cut where double precision adds them exactly (S. M. Rump, T. Ogita and S. Oishi, "Accurate Floating-Point
Summation", 2008: error-free extraction). With n terms below ``2**e`` and ``unit = e + log2(n) - 53``, every multiple of
``2**unit`` among them, and every partial sum, is a float. ``(x + a) - a`` with ``a = 1.5 * 2**(unit + 52)`` rounds x
to such a multiple; the rest is cut again until it is zero. Numbers of like magnitude need one or two cuts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fatwood.data.preprocessing.numbers import damaged, entries, packed, unpacked

__all__ = ["ExactSums"]

_BITS = 32
_MASK = (1 << _BITS) - 1
_MAX_ADDS = 1 << 28  # each adds less than 2**34 to a limb of 63 bits
_MAX_LIMBS, _MAX_LOW = 64, 64  # squares of float32 are between 2**-298 and 2**256


class ExactSums:
    """The exact sum of every column of all that was added.

    Args:
        width: Columns.

    Example:
        >>> sums = ExactSums(1)
        >>> for term in (1e30, 1.0, -1e30):
        ...     sums.add(np.array([[term]]))
        >>> sums.totals()
        ([1], 0)
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._low = 0
        self._limbs = np.zeros((1, width), np.int64)
        self._adds = 0

    def add(self, values: NDArray[np.float64]) -> None:
        """Add rows, in place.

        Args:
            values: ``(n, width)`` finite numbers, between squares of float32 in magnitude; not changed.
        """
        bits = max(2, len(values).bit_length())
        rest, near = values.copy(), np.empty_like(values)
        while rest.any():
            unit = math.frexp(max(rest.max(), -rest.min()))[1] + bits - 53
            anchor = math.ldexp(1.5, unit + 52)
            np.add(rest, anchor, out=near)
            near -= anchor
            rest -= near
            self._add(np.ldexp(near.sum(axis=0), -unit).astype(np.int64), unit)

    def merge(self, other: ExactSums) -> ExactSums:
        """The sums of both; neither is changed.

        Args:
            other: Of as many columns.
        """
        merged = ExactSums(self._width)
        for sums in (self, other):
            sums._carry()
            merged._reach(sums._low, sums._low + len(sums._limbs))
            at = sums._low - merged._low
            merged._limbs[at : at + len(sums._limbs)] += sums._limbs
        merged._carry()
        return merged

    def totals(self) -> tuple[list[int], int]:
        """The sum of each column as a whole number, and of which power of two: ``sum = number * 2**power``."""
        self._carry()
        numbers = np.zeros(self._width, object)
        for limb in self._limbs[::-1]:
            numbers = (numbers << _BITS) + limb.astype(object)
        return [int(number) for number in numbers], _BITS * self._low

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExactSums) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def to_json(self) -> dict[str, Any]:
        """A JSON object; the same one for the same sums."""
        self._carry()
        digits, sign = self._limbs[:-1].astype(np.uint32), self._limbs[-1].astype(np.int8)
        return {"low": self._low, "count": len(digits), "digits": packed(digits), "sign": packed(sign)}

    @classmethod
    def from_json(cls, state: Any, width: int, where: str) -> ExactSums:
        """The inverse of `to_json`.

        Args:
            state: JSON of anyone.
            width: Columns.
            where: Its place, for messages.

        Raises:
            UserError: It is something else.
        """
        found = entries(state, where, {"low": int, "count": int, "digits": str, "sign": str})
        low, count = found["low"], found["count"]
        if abs(low) > _MAX_LOW or not 0 <= count <= _MAX_LIMBS:
            raise damaged(
                where, f"at most {_MAX_LIMBS} digits near those of a float", f"{count} from {low} on"
            )
        digits = unpacked(found["digits"], "<u4", count * width, where).reshape(count, width)
        sign = unpacked(found["sign"], "<i1", width, where)
        if not np.isin(sign, (0, -1)).all():
            raise damaged(where, "signs of 0 or -1", f"{sign.min()} to {sign.max()}")
        sums = cls(width)
        sums._low, sums._limbs = low, np.vstack([digits.astype(np.int64), sign.astype(np.int64)[None]])
        sums._carry()
        return sums

    def _add(self, units: NDArray[np.int64], unit: int) -> None:
        """Add whole numbers of up to 53 bits of ``2**unit`` each."""
        place, shift = divmod(unit, _BITS)
        self._reach(place, place + 4)
        low, high = (units & _MASK) << shift, (units >> _BITS) << shift
        at = place - self._low
        self._limbs[at] += low & _MASK
        self._limbs[at + 1] += (low >> _BITS) + (high & _MASK)
        self._limbs[at + 2] += high >> _BITS
        self._adds += 1
        if self._adds >= _MAX_ADDS:
            self._carry()

    def _reach(self, begin: int, end: int) -> None:
        """Have limbs for the digits ``begin <= i < end``."""
        if not self._limbs.any():
            self._low, self._limbs = begin, np.zeros((end - begin, self._width), np.int64)
            return
        below, above = max(0, self._low - begin), max(0, end - self._low - len(self._limbs))
        if below or above:
            self._limbs = np.pad(self._limbs, ((below, above), (0, 0)))
            self._low -= below

    def _carry(self) -> None:
        """Bring the limbs to the one form drawn above, with as few digits as can be."""
        digits = list(self._limbs)
        carry = np.zeros(self._width, np.int64)
        i = 0
        while i < len(digits) or not np.isin(carry, (0, -1)).all():
            total = carry + (digits[i] if i < len(digits) else 0)
            carry = total >> _BITS
            digits[i : i + 1] = [total & _MASK]
            i += 1
        while digits and np.array_equal(digits[-1], carry & _MASK):
            digits.pop()
        first = next((i for i, digit in enumerate(digits) if digit.any()), len(digits))
        self._low = self._low + first if digits or carry.any() else 0
        self._limbs = np.vstack([*digits[first:], carry])
        self._adds = 0
