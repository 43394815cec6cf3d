"""The groups of a by= in a task: a number for each set of values, in the order in which they come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fatwood.errors import OptionError

__all__ = ["MOST_GROUPS", "Groups", "plain_value", "too_many_groups"]

MOST_GROUPS: Final = 10_000


class Groups:
    """Numbers the groups of a task's rows.

    Args:
        kinds: Of the columns in Arrow; none for one group of all rows.
    """

    def __init__(self, kinds: Sequence[pa.DataType]) -> None:
        self._kinds = kinds
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._values: list[list[pa.Array]] = []
        if not kinds:
            self._values.append([])

    def __len__(self) -> int:
        return len(self._values)

    def __call__(self, columns: Sequence[pa.Array], rows: int) -> NDArray[np.int64]:
        """The group of each row.

        Args:
            columns: Of `rows` values each.
            rows: n.

        Returns:
            ``(n,)``

        Raises:
            OptionError: There are too many.
        """
        if not columns or not rows:
            return np.zeros(rows, np.int64)
        codes = [column.dictionary_encode(null_encoding="encode").indices.to_numpy() for column in columns]
        _, first, inverse = np.unique(np.stack(codes, 1), axis=0, return_index=True, return_inverse=True)
        numbers = np.array([self._number(columns, int(row)) for row in first], np.int64)
        return numbers[inverse.reshape(-1)]

    def _number(self, columns: Sequence[pa.Array], row: int) -> int:
        value = tuple(plain_value(column[row].as_py()) for column in columns)
        if value not in self._numbers:
            if len(self._numbers) >= MOST_GROUPS:
                raise too_many_groups()
            self._numbers[value] = len(self._numbers)
            self._values.append(
                [column.take(pa.array([row])) for column in columns]
            )  # a slice would keep all rows
        return self._numbers[value]

    def columns(self, numbers: Sequence[int]) -> list[pa.Array]:
        """The values of some groups.

        Args:
            numbers: Which.
        """
        return [
            pa.concat_arrays([self._values[number][i].cast(kind) for number in numbers])
            for i, kind in enumerate(self._kinds)
        ]


def plain_value(value: Any) -> Any:
    """A value as a key of a dict, equal ones as equal: all NaN are one, bytes are `bytes`."""
    if isinstance(value, float) and math.isnan(value):
        return math.nan
    return bytes(value) if isinstance(value, bytearray) else value


def too_many_groups() -> OptionError:
    """What a by= with too many values is told."""
    text = f"by: expected at most {MOST_GROUPS:,} groups, received more"
    return OptionError(text, hint="model.score gives each row's loss, which Spark can group by anything")
