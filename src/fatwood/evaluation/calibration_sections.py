"""Calibration on a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fatwood.evaluation.charts import MOST_LINES, Line, bars, lines_chart
from fatwood.evaluation.page import summary_table
from fatwood.report.html import Markup, element, table

if TYPE_CHECKING:
    from fatwood.evaluation.calibration import Calibration, Reliability

__all__ = ["sections"]


def sections(report: Calibration) -> list[Markup]:
    """Reliability diagrams and histograms.

    Args:
        report: Any.
    """
    found: list[Markup] = [summary_table(report.summary())]
    names = report.column_names
    if not names:
        return found
    errors = report.calibration_errors()
    worst = sorted(np.argsort(-np.nan_to_num(errors, nan=-1.0), kind="stable")[:MOST_LINES].tolist())
    diagrams = {names[k] if len(names) > 1 else "all rows": report.reliability(k) for k in worst}
    if len(names) > MOST_LINES:
        text = f"Of {len(names):,} columns the {MOST_LINES} with the largest error are drawn."
        found.append(element("p", text, klass="note"))
    top = report.top_reliability()
    charts = [] if top is None else [_diagram("Reliability of the largest probability", {"all rows": top})]
    charts.append(_diagram("Reliability of each column" if len(names) > 1 else "Reliability", diagrams))
    every, true = report.histogram(), report.histogram(positives=True)
    charts.append(bars("Probabilities", "probability", every, over=true, over_name="where the label is true"))
    charts.append(bars("Residuals", "distance of probability from label", report.residual_histogram()))
    return [*found, element("div", *charts, klass="charts")]


def _diagram(title: str, diagrams: dict[str, Reliability]) -> Markup:
    lines = [
        Line(name, each.probability, each.positives, f"error {each.error():.4f}", dots=True)
        for name, each in diagrams.items()
    ]
    rows = [
        [name, f"{i / len(each.counts):.4g} to {(i + 1) / len(each.counts):.4g}", f"{each.counts[i]:,.6g}",
         f"{each.probability[i]:.4f}", f"{each.positives[i]:.4f}"]
        for name, each in diagrams.items()
        for i in np.flatnonzero(each.counts)
    ]  # fmt: skip
    head = ["column", "bin", "rows", "mean probability", "share of positives"]
    shown = table(title, head, rows, text_columns=(0, 1))
    axes = ("mean probability", "share of positives")
    return lines_chart(title, axes, lines, diagonal=True, values=shown)
