"""Curves on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from fatwood.evaluation.charts import MOST_CLASSES, MOST_LINES, Line, lines_chart
from fatwood.evaluation.page import summary_table
from fatwood.evaluation.steps import Steps
from fatwood.report.html import Markup, element, table

__all__ = ["sections"]

_POINTS: Final = 21


def sections(
    summary: Mapping[str, float], columns: Mapping[str, Steps], notes: Sequence[str]
) -> list[Markup]:
    """Areas, both curves, and a table of columns.

    Args:
        summary: Figures by name.
        columns: What each column holds, by its name.
        notes: Sentences on what is missing.
    """
    areas = {name: (steps.auroc(), steps.auprc()) for name, steps in columns.items()}
    # the lowest areas first: they are what one looks for
    drawn = sorted(areas, key=lambda name: np.nan_to_num(areas[name][0], nan=2.0))[:MOST_LINES]
    drawn = [name for name in columns if name in drawn]
    found: list[Markup] = [summary_table(summary)]
    found += [element("p", note, klass="note") for note in notes]
    if len(columns) > MOST_LINES:
        text = f"Of {len(columns):,} columns the {MOST_LINES} with the smallest area are drawn."
        found.append(element("p", text, klass="note"))
    if drawn:
        charts = (
            _roc({name: columns[name] for name in drawn}, areas),
            _pr({n: columns[n] for n in drawn}, areas),
        )
        found.append(element("div", *charts, klass="charts"))
    return [*found, *_table(columns, areas)] if len(columns) > 1 else found


def _roc(columns: Mapping[str, Steps], areas: Mapping[str, tuple[float, float]]) -> Markup:
    curves = {name: steps.roc_curve() for name, steps in columns.items()}
    lines = [
        Line(_name(name, columns), c.fpr, c.tpr, f"area {areas[name][0]:.4f}") for name, c in curves.items()
    ]
    grid = np.linspace(0, 1, _POINTS)
    values = [np.interp(grid, c.fpr, c.tpr) if len(c.fpr) > 1 else grid * np.nan for c in curves.values()]
    rows = [[f"{at:.2f}", *(f"{each[i]:.4f}" for each in values)] for i, at in enumerate(grid)]
    shown = table("True positive rate by false positive rate", ["false positive rate", *columns], rows)
    axes = ("false positive rate", "true positive rate")
    return lines_chart("ROC curve", axes, lines, diagonal=True, values=shown)


def _pr(columns: Mapping[str, Steps], areas: Mapping[str, tuple[float, float]]) -> Markup:
    curves = {name: steps.precision_recall_curve() for name, steps in columns.items()}
    lines = [
        Line(
            _name(name, columns), c.recall[::-1], c.precision[::-1], f"average precision {areas[name][1]:.4f}"
        )
        for name, c in curves.items()
    ]
    grid = np.linspace(0, 1, _POINTS)
    # the precision of the highest threshold whose recall is at least this
    values = [c.precision[np.searchsorted(-c.recall, -grid, side="right") - 1] for c in curves.values()]
    rows = [[f"{at:.2f}", *(f"{each[i]:.4f}" for each in values)] for i, at in enumerate(grid)]
    shown = table("Precision by recall", ["recall", *columns], rows)
    return lines_chart("Precision and recall", ("recall", "precision"), lines, steps=True, values=shown)


def _name(name: str, columns: Mapping[str, Steps]) -> str:
    return name if len(columns) > 1 else "all rows"


def _table(columns: Mapping[str, Steps], areas: Mapping[str, tuple[float, float]]) -> list[Markup]:
    rows = [
        [name, *(f"{area:.4f}" for area in areas[name]), f"{columns[name].positives.sum():,.6g}"]
        for name in sorted(columns, key=lambda name: np.nan_to_num(areas[name][0], nan=2.0))[:MOST_CLASSES]
    ]
    title = "Areas by column, the smallest first"
    text = element("p", title, klass="caption", aria_hidden="true")
    return [text, table(title, ["column", "ROC", "average precision", "positives"], rows)]
