"""Counts of rows by what they were and what they were taken for: whole numbers, and exact sums where rows have weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fatwood.errors import UserError
from fatwood.evaluation.report import UNCHANGED
from fatwood.evaluation.sums import ExactSum

__all__ = ["Cells", "checked_names", "text_table"]

_LONGEST_NAME = 32


@dataclass
class Cells:
    """Rows by cell number; only cells that occurred, so memory follows the rows and not the possible cells.

    Args:
        ones: Rows without a weight, by cell.
        sums: What rows with one weigh, by cell; no cell whose rows weigh nothing.
    """

    ones: Counter[int] = field(default_factory=Counter)
    sums: dict[int, ExactSum] = field(default_factory=dict)

    def add(self, cells: NDArray[np.int64], weights: NDArray[np.float64] | None) -> None:
        """Count rows, in place.

        Args:
            cells: (N,) the cell of each row.
            weights: (N,) of at least 0; None where each weighs 1.
        """
        if weights is None:
            found, rows = np.unique(cells, return_counts=True)
            self.ones.update(dict(zip(found.tolist(), rows.tolist(), strict=True)))
            return
        cells, weights = cells[weights > 0], weights[weights > 0]
        order = np.argsort(cells, kind="stable")
        found, starts = np.unique(cells[order], return_index=True)
        for cell, terms in zip(found.tolist(), np.split(weights[order], starts[1:]), strict=False):
            self.sums[cell] = self.sums.get(cell, ExactSum()).plus(terms.tolist())

    def plus(self, other: Cells) -> Cells:
        """The counts of both, which share nothing with either."""
        sums = dict(self.sums)
        for cell, part in other.sums.items():
            sums[cell] = sums.get(cell, ExactSum()).plus(part.parts)
        return Cells(self.ones + other.ones, sums)

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """(M,) int64 cells in ascending order, and what the rows in each weigh: int64, or float64 where any has a weight."""
        if not self.sums:
            pairs = sorted(self.ones.items())
            return np.array([cell for cell, _ in pairs], np.int64), np.array([n for _, n in pairs], np.int64)
        cells = sorted({*self.ones, *self.sums})
        weights = [self.sums.get(cell, ExactSum()).plus([float(self.ones[cell])]).value for cell in cells]
        return np.array(cells, np.int64), np.array(weights, np.float64)

    def listed(self, base: int) -> list[list[int]]:
        """``[cell // base, cell % base, rows]`` of every cell of rows without weights."""
        return [[*divmod(cell, base), rows] for cell, rows in sorted(self.ones.items())]

    def listed_sums(self, base: int) -> list[list[Any]]:
        """``[cell // base, cell % base, parts of the sum]`` of every cell of rows with weights."""
        return [[*divmod(cell, base), part.to_json()] for cell, part in sorted(self.sums.items())]

    @classmethod
    def read(cls, ones: Iterable[Any], sums: Iterable[Any], *, rows: int, base: int, kind: str) -> Cells:
        """The inverse of :meth:`listed` and :meth:`listed_sums`.

        Args:
            ones: Of one.
            sums: Of the other.
            rows: How many first numbers there are.
            base: How many second ones.
            kind: Of the report, for errors.

        Raises:
            UserError: A cell that cannot be.
        """
        found = cls()
        for first, second, count in ones:
            if type(count) is not int or count < 1:
                raise _no_cell(kind, [first, second, count])
            found.ones[_cell(kind, first, second, rows, base)] += count
        for first, second, parts in sums:
            total = ExactSum.from_json(parts)
            if not total.value > 0:
                raise _no_cell(kind, [first, second, parts])
            found.sums[_cell(kind, first, second, rows, base)] = total
        return found


def _cell(kind: str, first: Any, second: Any, rows: int, base: int) -> int:
    if type(first) is int and type(second) is int and 0 <= first < rows and 0 <= second < base:
        return first * base + second
    raise _no_cell(kind, [first, second])


def _no_cell(kind: str, received: object) -> UserError:
    message = f"{kind} report: expected [row, column, count] within its matrix, received {received!r}"
    return UserError(message, hint=UNCHANGED)


def checked_names(title: str, names: Sequence[str] | None) -> list[str] | None:
    """Names of classes or columns.

    Raises:
        UserError: They are no texts, or one is there twice.
    """
    if names is None:
        return None
    found = list(names)
    if (
        isinstance(names, str)
        or not found
        or not all(isinstance(name, str) for name in found)
        or len(set(found)) < len(found)
    ):
        message = f"{title}: expected names that differ, as texts, received {names!r:.200}"
        raise UserError(message, hint='names=["cat", "dog"], in the order of the outputs')
    return found


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table for a terminal, columns set to the right.

    Args:
        head: A name for each column.
        rows: A text for each column.
    """
    lines = [[" ".join(cell.split())[:_LONGEST_NAME] for cell in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
