"""Errors and correlation of numbers, from sums without rounding.

Shapes: N rows of a batch, K outputs (columns).

The sums are whole numbers of a tiny unit, and figures are fractions of them until the last step. So it does not matter how the rows
are split, and labels around a million that differ by one keep their digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fatwood.errors import DataError, OptionError, UserError
from fatwood.evaluation.cells import checked_names, text_table
from fatwood.evaluation.columns import weight_column
from fatwood.evaluation.exact_sums import ExactSums
from fatwood.evaluation.products import product
from fatwood.evaluation.report import Report
from fatwood.evaluation.sums import checked_count, unpack_array

if TYPE_CHECKING:
    from fatwood.report.html import Markup

__all__ = ["SUMS", "Regression"]

SUMS = ("weight", "label", "output", "label2", "output2", "both", "absolute", "squared")
"""What is summed for each column: weight, weight * label, weight * output, their squares and product, ``|output - label|``, ``(output - label)**2``."""

_SHOWN = 20
_SHOWN_ON_PAGE = 200
_UNIT = 1152  # a limb of ExactSums counts units of 2**-1152

Floats = NDArray[np.float64]
_Figure = Callable[[dict[str, Fraction]], float]


class Regression(Report):
    """How far numbers are from the truth: MSE, MAE, RMSE, RSE, Pearson's correlation and R2; mergeable without any rounding.

    Each figure is a method with ``average``: ``"macro"``, the mean over the columns without those for which it is not defined, or None, a (K,)
    float64 array. Relative figures (RSE, R2, correlation) of a column whose labels are all equal are not defined: NaN. The loss is not kept:
    add a :class:`Loss` report for it.

    Args:
        names: Of the columns, for tables, JSON and pages.

    Raises:
        UserError: Names that cannot be.

    Example:
        >>> import torch
        >>> report = Regression().update(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
        >>> report.mae(), report.r2()
        (0.3333333333333333, 0.5)
    """

    KIND: ClassVar[str] = "regression"

    def __init__(self, *, names: Sequence[str] | None = None) -> None:
        self.names = checked_names("Regression", names)
        """Of the columns."""
        self.columns: int | None = None
        """K; None as long as it is not known."""
        self.rows = 0
        """Rows seen."""
        self.skipped = 0
        self._sums = ExactSums(0)
        if self.names is not None:
            self._learn(len(self.names))

    def _learn(self, columns: int) -> None:
        """Check the number of columns, and make room for it.

        Raises:
            UserError: Another number is known already.
        """
        known = self.columns if self.names is None else len(self.names)
        if known not in (None, columns):
            message = f"Regression: expected outputs of {known} columns, received {columns}"
            raise UserError(
                message, hint="use a report of its own for each network, with a name for each output"
            )
        if self.columns is None:
            self.columns, self._sums = columns, ExactSums(2 * len(SUMS) * columns)

    def update(
        self,
        outputs: Tensor,
        labels: Tensor | None,
        loss_sum: float = math.nan,  # noqa: ARG002
        *,
        weights: Tensor | None = None,
    ) -> Regression:
        """Count one batch, in place.

        Args:
            outputs: (N,) or (N, K) numbers; more axes are K numbers together.
            labels: Of the same shape.
            loss_sum: Not used.
            weights: (N,) of at least 0; None where each weighs 1.

        Returns:
            This same report.

        Raises:
            UserError: Shapes that differ, or NaN or infinity in the outputs.
            DataError: NaN or infinity in the labels, or a weight below 0.
        """
        label, output = _checked(outputs, labels)
        rows, columns = label.shape
        weighed = weight_column("Regression", weights, rows)
        if not rows:
            return self
        error = output - label
        factors = {
            "weight": [np.ones_like(label)],
            "label": [label],
            "output": [output],
            "label2": [label, label],
            "output2": [output, output],
            "both": [label, output],
            "absolute": [np.abs(error)],
            "squared": [error, error],
        }
        share = [] if weighed is None else [np.repeat(weighed[:, None], columns, axis=1)]
        terms = [(name, part) for name, parts in factors.items() for part in product(*share, *parts)]
        if not all(np.isfinite(part).all() for _, part in terms):
            message = (
                "Regression: expected outputs and labels whose squares can be added, received larger ones"
            )
            raise UserError(message, hint="divide them by a constant first; 1e150 squared is the limit")
        self._learn(columns)
        self._add(terms)
        self.rows += rows
        return self

    def _add(self, terms: Sequence[tuple[str, Floats]]) -> None:
        """Add (N, K) terms to the sum of each column that is named with them; what is negative has a sum of its own."""
        columns = np.arange(self.columns or 0)
        places = [len(columns) * (2 * SUMS.index(name) + (part < 0)) + columns for name, part in terms]
        self._sums.add(
            np.concatenate(places, axis=None), np.abs(np.concatenate([part for _, part in terms], axis=None))
        )

    def merge(self, other: Regression) -> Regression:
        """The report of both reports' rows; neither is changed.

        Args:
            other: Another report of the same columns.

        Returns:
            A new report.

        Raises:
            UserError: The other report has other columns.
        """
        if self.names != other.names or len({self.columns, other.columns} - {None}) > 1:
            ours, theirs = self.names or self.columns, other.names or other.columns
            message = f"Regression.merge: expected a report of the columns {ours}, received {theirs}"
            raise UserError(message, hint="make all parts with the same options, for the same network")
        merged = self.fresh() if self.columns is not None else other.fresh()
        merged.rows, merged.skipped = self.rows + other.rows, self.skipped + other.skipped
        for part in (self, other):
            if part.columns is not None:
                merged._sums = merged._sums.plus(part._sums)
        return merged

    def fresh(self) -> Regression:
        """An empty report of as many columns."""
        report = Regression(names=self.names)
        if self.columns is not None:
            report._learn(self.columns)
        return report

    def mse(self, average: Literal["macro"] | None = "macro") -> Any:
        """Mean squared error."""
        return self._figure(lambda sums: float(sums["squared"] / sums["weight"]), average)

    def mae(self, average: Literal["macro"] | None = "macro") -> Any:
        """Mean absolute error."""
        return self._figure(lambda sums: float(sums["absolute"] / sums["weight"]), average)

    def rmse(self, average: Literal["macro"] | None = "macro") -> Any:
        """Root of the mean squared error; its mean over columns is a mean of roots."""
        return self._figure(lambda sums: math.sqrt(sums["squared"] / sums["weight"]), average)

    def rse(self, average: Literal["macro"] | None = "macro") -> Any:
        """Relative squared error: squared errors over those of always answering the mean label."""
        return self._figure(lambda sums: float(sums["squared"] / _spread(sums, "label")), average)

    def r2(self, average: Literal["macro"] | None = "macro") -> Any:
        """Coefficient of determination: 1 - :meth:`rse`."""
        return self._figure(lambda sums: float(1 - sums["squared"] / _spread(sums, "label")), average)

    def pearson(self, average: Literal["macro"] | None = "macro") -> Any:
        """Pearson's correlation of outputs and labels, -1 to 1; not defined either where all outputs are equal."""
        return self._figure(_pearson, average)

    def _figure(self, figure: _Figure, average: Literal["macro"] | None) -> Any:
        if average not in ("macro", None):
            message = f"Regression: expected average 'macro' or None, received {average!r}"
            raise OptionError(message, hint="None gives a figure for each column")
        values = []
        for sums in self._columns():
            try:
                values.append(figure(sums))
            except ZeroDivisionError:
                values.append(math.nan)
        if average is None:
            return np.array(values, np.float64)
        known = [value for value in values if not math.isnan(value)]
        return math.fsum(known) / len(known) if known else math.nan

    def _columns(self) -> list[dict[str, Fraction]]:
        """The sums of each column."""
        packed, columns = self._sums.to_json(), self.columns or 0
        limbs = unpack_array(packed["limbs"], np.uint32).astype("<u4")
        unit = Fraction(2) ** (32 * packed["low"] - _UNIT)
        whole = [int.from_bytes(line.tobytes(), "little") for line in limbs]
        signed = [
            [
                (whole[2 * columns * i + k] - whole[2 * columns * i + columns + k]) * unit
                for k in range(columns)
            ]
            for i in range(len(SUMS))
        ]
        return [dict(zip(SUMS, sums, strict=True)) for sums in zip(*signed, strict=True)]

    def summary(self) -> dict[str, float]:
        """Means over the columns, and rows."""
        return {
            "mse": self.mse(),
            "mae": self.mae(),
            "rmse": self.rmse(),
            "rse": self.rse(),
            "pearson": self.pearson(),
            "r2": self.r2(),
            "rows": self.rows,
        }

    def state(self) -> dict[str, Any]:
        """``sums`` are those of :data:`SUMS`, each of all columns, positive terms before negative ones."""
        return {
            "names": self.names,
            "columns": self.columns,
            "rows": self.rows,
            "skipped": self.skipped,
            "sums": self._sums.to_json(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Regression:
        """The inverse of :meth:`state`."""
        report = cls(names=state["names"])
        if state["columns"] is not None:
            report._learn(checked_count(state["columns"]))
        report.rows, report.skipped = checked_count(state["rows"]), checked_count(state["skipped"])
        report._sums = ExactSums.from_json(state["sums"], report._sums.size)
        return report

    @classmethod
    def from_sums(
        cls, sums: Mapping[str, Floats], rows: int, names: Sequence[str] | None = None
    ) -> Regression:
        """A report of sums that another program made.

        Args:
            sums: (K,) each of :data:`SUMS`.
            rows: How many rows they are of.
            names: Of the columns.

        Raises:
            UserError: A sum is not finite.
        """
        report = cls(names=names)
        report._learn(len(sums["weight"]))
        for name in SUMS:
            if not np.isfinite(sums[name]).all():
                message = f"Regression: expected finite sums, received {name} {sums[name].tolist()!r:.200}"
                raise UserError(message, hint="the outputs or labels held NaN or infinity")
        report._add([(name, sums[name][None, :]) for name in SUMS])
        report.rows = rows
        return report

    def _table(self, most: int) -> tuple[list[str], list[list[str]]]:
        head = ["column", "mse", "mae", "rmse", "rse", "pearson", "r2"]
        figures = [getattr(self, name)(None) for name in head[1:]]
        shown = range(min(self.columns or 0, most))
        names = [self.names[i] if self.names else str(i) for i in shown]
        return head, [[names[i], *(f"{figure[i]:.6g}" for figure in figures)] for i in shown]

    def sections(self) -> list[Markup]:
        """Figures, and a table of the columns."""
        from fatwood.report.html import table

        head, rows = self._table(_SHOWN_ON_PAGE)
        many = (
            f" (the first {len(rows)} of {self.columns:,})"
            if self.columns and self.columns > len(rows)
            else ""
        )
        return [*super().sections(), table(f"Columns{many}", head, rows)]

    def __str__(self) -> str:
        head, rows = self._table(_SHOWN)
        summary = self.summary()
        lines = text_table(head, [*rows, ["mean", *(f"{summary[name]:.6g}" for name in head[1:])]])
        if self.columns and self.columns > _SHOWN:
            lines.insert(-1, f"... and {self.columns - _SHOWN:,} more")
        skipped = f" ({self.skipped:,} skipped)" if self.skipped else ""
        return "\n".join([*lines, "", f"rows {self.rows:,}{skipped}"])


def _checked(outputs: Tensor, labels: Tensor | None) -> tuple[Floats, Floats]:
    """(N, K) labels and outputs."""
    received = "None" if labels is None else str(tuple(labels.shape))
    if labels is not None and outputs.numel() == labels.numel() == len(outputs) == len(labels):
        labels = labels.reshape(outputs.shape)  # (N, 1) and (N,)
    if labels is None or outputs.shape != labels.shape or not outputs.ndim or labels.is_complex():
        message = f"Regression: expected outputs and labels of one shape (rows, ...), received {tuple(outputs.shape)} and {received}"
        raise UserError(
            message, hint="make the label a column of as many numbers as the network returns for a row"
        )
    rows = len(outputs)
    columns = max(1, math.prod(outputs.shape[1:]))
    output, label = (
        part.detach().cpu().double().reshape(rows, columns).numpy() for part in (outputs, labels)
    )
    for name, part, error in (("outputs", output, UserError), ("labels", label, DataError)):
        wrong = np.flatnonzero(~np.isfinite(part).all(axis=1))
        if len(wrong):
            message = (
                f"Regression: row {wrong[0]} of a batch: expected finite {name}, received NaN or infinity"
            )
            raise error(
                message, hint="lower the learning rate where the training diverged, or filter the rows"
            )
    return label, output


def _spread(sums: Mapping[str, Fraction], name: str) -> Fraction:
    """Sum of the squared differences to the mean."""
    return sums[f"{name}2"] - sums[name] ** 2 / sums["weight"]


def _pearson(sums: Mapping[str, Fraction]) -> float:
    both = sums["both"] - sums["label"] * sums["output"] / sums["weight"]
    square = both**2 / (_spread(sums, "label") * _spread(sums, "output"))
    return math.copysign(math.sqrt(min(square, Fraction(1))), both)
