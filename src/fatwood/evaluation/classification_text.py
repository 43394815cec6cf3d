"""A `Classification` as text for a terminal, and as parts of a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fatwood.evaluation.cells import text_table

if TYPE_CHECKING:
    from fatwood.evaluation.classification import Classification
    from fatwood.report.html import Markup

__all__ = ["sections", "text"]

_MATRIX_CLASSES = 12  # more classes than this do not fit a terminal as a matrix
_PAGE_CLASSES = 50
_WORST_SHOWN = 10


def text(report: Classification) -> str:
    """Figures, a table of the classes and the confusion matrix; where there are many, the most frequent confusions."""
    figures = report.summary()
    rows = figures.pop("rows")
    lines = [f"{name.replace('_', ' '):<9} {value:.4f}" for name, value in figures.items() if name != "loss"]
    lines.insert(len(lines) - 4, f"{'loss':<9} {report.loss:.6g}")
    skipped = f" ({report.skipped:,} skipped)" if report.skipped else ""
    lines += [f"{'rows':<9} {rows:,}{skipped}", "(precision, recall and f1: mean over the classes)"]
    if not report.classes:
        return "\n".join(lines)
    if report.classes <= _MATRIX_CLASSES:
        return "\n".join([*lines, "", *_classes(report), "", *_matrix(report)])
    return "\n".join([*lines, "", *_worst(report)])


def _classes(report: Classification) -> list[str]:
    head, rows = _class_rows(report, range(report.classes or 0))
    return text_table(head, rows)


def _class_rows(report: Classification, shown: range | list[int]) -> tuple[list[str], list[list[str]]]:
    counts = report.counts()
    figures = [report.precision(None), report.recall(None), report.f1(None)]
    rows = [
        [
            report.name(number),
            *(f"{figure[number]:.4f}" for figure in figures),
            _count(counts.tp[number] + counts.fn[number]),
            _count(counts.tp[number] + counts.fp[number]),
        ]
        for number in shown
    ]
    return ["class", "precision", "recall", "f1", "true", "predicted"], rows


def _count(rows: float) -> str:
    return f"{rows:,.0f}" if float(rows).is_integer() else f"{rows:,.4g}"


def _matrix(report: Classification) -> list[str]:
    confusion = report.confusion
    body = np.column_stack([confusion, confusion.sum(axis=1)])
    body = np.vstack([body, body.sum(axis=0)])
    names = [*map(report.name, range(report.classes or 0)), "total"]
    rows = [[name, *map(_count, counts)] for name, counts in zip(names, body, strict=True)]
    return ["confusion (down: true class, across: predicted class)", *text_table(["", *names], rows)]


def _worst(report: Classification) -> list[str]:
    true, predicted, rows = report.occurred()
    wrong = np.flatnonzero(true != predicted)
    worst = wrong[np.argsort(-rows[wrong], kind="stable")][:_WORST_SHOWN]
    shown = [[report.name(int(true[i])), report.name(int(predicted[i])), _count(rows[i])] for i in worst]
    if not shown:
        return [f"no confusions among {report.classes:,} classes"]
    head = f"most frequent confusions ({len(shown)} of {len(wrong):,}; {report.classes:,} classes)"
    return [head, *text_table(["true", "predicted", "rows"], shown)]


def sections(report: Classification) -> list[Markup]:
    """A table of the classes, the most frequent ones where there are many, and the confusion matrix or the most frequent confusions."""
    from fatwood.evaluation.charts import heatmap
    from fatwood.report.html import table

    if not report.classes:
        return []
    classes = list(range(report.classes))
    if report.classes > _PAGE_CLASSES:
        counts = report.counts()
        classes = np.argsort(-(counts.tp + counts.fn), kind="stable")[:_PAGE_CLASSES].tolist()
    head, rows = _class_rows(report, classes)
    many = f" (the {len(rows)} most frequent of {report.classes:,})" if len(rows) < report.classes else ""
    true, predicted, counts_of = report.occurred()
    cells = zip(zip(true.tolist(), predicted.tolist(), strict=True), counts_of.tolist(), strict=True)
    names = [report.name(number) for number in range(report.classes)]
    caption = "Confusion matrix (down: true class, across: predicted class)"
    return [table(f"Classes{many}", head, rows), heatmap(caption, names, names, dict(cells))]
