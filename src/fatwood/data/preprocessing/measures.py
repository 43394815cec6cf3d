"""What is measured of rows of numbers: their moments, and their extremes. Both exact."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fatwood.data.preprocessing.exact import ExactSums
from fatwood.data.preprocessing.numbers import Numbers, checked_shape, damaged, entries
from fatwood.data.preprocessing.transform import Tally, named_tally
from fatwood.errors import DataError, SchemaError

__all__ = ["Extremes", "Moments", "Per", "float_rows"]

Per = Literal["feature", "all"]
"""Whether each feature is measured, or all numbers together."""

_Shape = tuple[int, ...] | None
_BLOCK_NUMBERS = 1 << 15  # as float64 they stay in the cache through all passes over them
_BLOCK_ROWS = 8  # at least, since a block costs as much as some rows
_JSON: dict[str, type | tuple[type, ...]] = {
    "per": str,
    "shape": (list, type(None)),
    "count": int,
    "measured": (list, type(None)),
}


@named_tally("moments")
class Moments(Tally):
    """Sums of the numbers and of their squares, as float32, without rounding.

    Args:
        per: Of each feature, or of all numbers together.
        shape: Of a row, ``()`` with ``per="all"``; None to take that of the first.
    """

    def __init__(self, per: Per, shape: _Shape = None) -> None:
        self.per = per
        self.shape = shape
        self.count = 0
        """Rows; numbers with ``per="all"``."""
        self._sums, self._squares = ExactSums(_width(shape)), ExactSums(_width(shape))

    def update(self, values: Any) -> None:
        """Count rows of numbers; see `Tally.update`."""
        rows, shape = _flat(values, self)
        if self.shape is None:
            self.shape = shape
            self._sums, self._squares = ExactSums(_width(shape)), ExactSums(_width(shape))
        step = max(_BLOCK_ROWS, _BLOCK_NUMBERS // rows.shape[1])
        for start in range(0, len(rows), step):
            block = rows[start : start + step].astype(np.float64)
            self._sums.add(block)
            self._squares.add(block * block)  # exact: 24 bits times 24 bits
        self.count += len(rows)

    def merge(self, other: Tally) -> Moments:
        """See `Tally.merge`."""
        shape = _common(self, other)
        assert isinstance(other, Moments)  # noqa: S101  found by _common
        merged = Moments(self.per, shape)
        for tally in (self, other):
            if tally.shape is not None:
                merged.count += tally.count
                merged._sums = merged._sums.merge(tally._sums)
                merged._squares = merged._squares.merge(tally._squares)
        return merged

    def mean_and_std(self) -> tuple[Numbers, Numbers]:
        """Mean and population standard deviation ``sqrt(sum((x - mean)**2) / n)``, of the shape of a row.

        The mean is the exact one, rounded once; the standard deviation is the root of the exact variance, rounded once.

        Raises:
            DataError: Nothing was counted.
        """
        if self.shape is None or not self.count:
            raise _no_rows(self)
        (sums, power), (squares, power2) = self._sums.totals(), self._squares.totals()
        n, low = self.count, min(2 * power, power2)
        means, stds = [], []
        for total, square in zip(sums, squares, strict=True):
            means.append(_quotient(total, n, power))
            spread = n * (square << (power2 - low)) - ((total * total) << (2 * power - low))
            stds.append(math.sqrt(_quotient(spread, n * n, low)))
        return Numbers.of(np.reshape(means, self.shape)), Numbers.of(np.reshape(stds, self.shape))

    def state(self) -> dict[str, Any]:
        """See `Tally.state`."""
        measured = [self._sums.to_json(), self._squares.to_json()] if self.count else None
        return _json(self.per, self.shape, self.count, measured)

    @classmethod
    def from_state(cls, state: dict[str, Any], where: str) -> Moments:
        """See `Tally.from_state`."""
        per, shape, count, measured = _from_json(state, where)
        tally = cls(per)
        if shape is not None:
            tally.shape, tally.count = shape, count
            tally._sums, tally._squares = (
                ExactSums.from_json(part, _width(shape), where) for part in measured
            )
        return tally


@named_tally("extremes")
class Extremes(Tally):
    """The least and the greatest number, as float32.

    Args:
        per: Of each feature, or of all numbers together.
        shape: Of a row, ``()`` with ``per="all"``; None to take that of the first.
    """

    def __init__(self, per: Per, shape: _Shape = None) -> None:
        self.per = per
        self.shape = shape
        self.count = 0
        """Rows; numbers with ``per="all"``."""
        self._least, self._greatest = _nothing(shape)

    def update(self, values: Any) -> None:
        """Count rows of numbers; see `Tally.update`."""
        rows, shape = _flat(values, self)
        if self.shape is None:
            self.shape = shape
            self._least, self._greatest = _nothing(shape)
        if len(rows):
            self._take(len(rows), rows.min(axis=0), rows.max(axis=0))

    def merge(self, other: Tally) -> Extremes:
        """See `Tally.merge`."""
        shape = _common(self, other)
        assert isinstance(other, Extremes)  # noqa: S101  found by _common
        merged = Extremes(self.per, shape)
        for tally in (self, other):
            if tally.count:
                merged._take(tally.count, tally._least, tally._greatest)
        return merged

    def least_and_greatest(self) -> tuple[Numbers, Numbers]:
        """Both, of the shape of a row.

        Raises:
            DataError: Nothing was counted.
        """
        if self.shape is None or not self.count:
            raise _no_rows(self)
        return Numbers.of(self._least.reshape(self.shape)), Numbers.of(self._greatest.reshape(self.shape))

    def state(self) -> dict[str, Any]:
        """See `Tally.state`."""
        measured = [numbers.to_json() for numbers in self.least_and_greatest()] if self.count else None
        return _json(self.per, self.shape, self.count, measured)

    @classmethod
    def from_state(cls, state: dict[str, Any], where: str) -> Extremes:
        """See `Tally.from_state`."""
        per, shape, count, measured = _from_json(state, where)
        if shape is None:
            return cls(per)
        least, greatest = (Numbers.from_json(part, where) for part in measured)
        if least.shape != shape or greatest.shape != shape:
            raise damaged(where, f"numbers of shape {shape}", f"{least.shape} and {greatest.shape}")
        both = np.stack([least.array.reshape(-1), greatest.array.reshape(-1)])
        if (both[0] > both[1]).any() or np.abs(both).max() > np.finfo(np.float32).max:
            raise damaged(where, "the least and the greatest number, of float32", f"{both!r:.60}")
        tally = cls(per, shape)
        tally._take(count, *both.astype(np.float32))
        return tally

    def _take(self, count: int, least: NDArray[np.float32], greatest: NDArray[np.float32]) -> None:
        # + 0.0: -0.0 and 0.0 are equal, and which of them is kept would depend on the order.
        self._least = np.minimum(self._least, least + np.float32(0.0))
        self._greatest = np.maximum(self._greatest, greatest + np.float32(0.0))
        self.count += count


def float_rows(values: Any, where: str) -> NDArray[np.float32]:
    """Rows of numbers as float32, which is what a transform is applied to.

    Raises:
        SchemaError: They are no NumPy array of numbers.
    """
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf" or values.ndim < 1:
        received = getattr(values, "dtype", getattr(values, "type", type(values).__name__))
        message = f"{where}: expected a column of numbers, received {received}"
        raise SchemaError(message, hint="OneHot and Vocabulary take texts")
    return values.astype(np.float32, copy=False)


def _flat(values: Any, tally: Moments | Extremes) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Rows as ``(n, width)``, and the shape of what is measured, which is the tally's if it has one."""
    rows = float_rows(values, tally.kind)
    shape = () if tally.per == "all" else rows.shape[1:]
    if tally.shape not in (None, shape):
        message = f"{tally.kind}: expected rows of shape {tally.shape} as before, received {shape}"
        raise SchemaError(message)
    if not np.isfinite(rows).all():
        message = f"{tally.kind}: expected finite numbers, received NaN or an infinity"
        raise DataError(message, hint="check rows before they are counted")
    return rows.reshape(-1, 1) if tally.per == "all" else rows.reshape(len(rows), _width(shape)), shape


def _common(mine: Moments | Extremes, other: Tally) -> _Shape:
    """The shape of both."""
    if not isinstance(other, type(mine)) or other.per != mine.per:
        message = f"{mine.kind}: expected another tally of {mine.kind} per {mine.per}, received {other.kind}"
        raise SchemaError(message)
    if None not in (mine.shape, other.shape) and mine.shape != other.shape:
        message = f"{mine.kind}: expected rows of shape {mine.shape} in both, received {other.shape}"
        raise SchemaError(message)
    return other.shape if mine.shape is None else mine.shape


def _width(shape: _Shape) -> int:
    return 0 if shape is None else math.prod(shape)


def _nothing(shape: _Shape) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The extremes of no rows."""
    return np.full(_width(shape), np.inf, np.float32), np.full(_width(shape), -np.inf, np.float32)


def _quotient(numerator: int, denominator: int, power: int) -> float:
    """``numerator * 2**power / denominator``, rounded once."""
    if power < 0:
        return numerator / (denominator << -power)
    return (numerator << power) / denominator


def _json(per: Per, shape: _Shape, count: int, measured: list[Any] | None) -> dict[str, Any]:
    sizes = None if shape is None or not count else list(shape)
    return {"per": per, "shape": sizes, "count": count, "measured": measured}


def _from_json(state: Any, where: str) -> tuple[Per, _Shape, int, list[Any]]:
    """The inverse of `_json`: a shape and two things measured where something was counted, and neither else."""
    found = entries(state, where, _JSON)
    per, count, measured = found["per"], found["count"], found["measured"]
    if per not in ("feature", "all"):
        raise damaged(where, "'feature' or 'all'", f"{per!r:.60}")
    shape = None if found["shape"] is None else checked_shape(found["shape"], where)
    if count < 0 or (count > 0) is not (shape is not None) or (count > 0) is not (measured is not None):
        raise damaged(where, "shape and measures of what was counted", f"a count of {count}")
    if measured is not None and len(measured) != 2:
        raise damaged(where, "two measures", f"{len(measured)}")
    return per, shape, count, measured or []


def _no_rows(tally: Tally) -> DataError:
    message = f"{tally.kind}: expected at least one row, received none"
    return DataError(
        message, hint="look at the filters of the DataFrame, and for rows that were skipped as bad"
    )
