"""What reports are made of on a page: pictures that can be read without eyes, colours or JavaScript."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fatwood.report.html import Markup, element, raw, table

__all__ = ["MOST_CLASSES", "MOST_LINES", "Line", "bars", "heatmap", "lines_chart"]

MOST_CLASSES: Final = 50
"""With more rows or columns a heat map is a list of its largest cells."""
MOST_LINES: Final = 10
"""So many lines have a colour and a dash pattern of their own."""
_MOST_CONFUSIONS: Final = 50
_MOST_POINTS: Final = 600
_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _BOTTOM = 468, 320, 54, 12, 10, 42

Cells = Mapping[tuple[int, int], float]
Floats = NDArray[np.float64]


class Line(NamedTuple):
    """A line of a chart; both axes go from 0 to 1."""

    name: str
    x: Floats
    y: Floats
    note: str
    """A figure for the legend, for example the area."""
    dots: bool = False


def heatmap(caption: str, rows: Sequence[str], columns: Sequence[str], counts: ArrayLike | Cells) -> Markup:
    """A table of counts whose cells are shaded by their share of the row.

    Where rows and columns have the same names, the diagonal has a colour of its own. With more than 50 names only the 50
    largest cells are listed, and of the same names only those off the diagonal.

    Args:
        caption: What it shows, for example ``Confusion (down: true class, across: predicted class)``.
        rows: A name for each row.
        columns: A name for each column.
        counts: ``(rows, columns)``, or only the cells that are not 0, by ``(row, column)``.
    """
    names, across = list(map(str, rows)), list(map(str, columns))
    square = names == across
    if max(len(names), len(across)) > MOST_CLASSES:
        return _largest(caption, names, across, _cells(counts), square=square)
    matrix = _matrix(counts, len(names), len(across))
    totals = matrix.sum(axis=1)
    lines = []
    for i, name in enumerate(names):
        cells = [_cell(matrix[i, j], totals[i], hit=square and i == j) for j in range(len(across))]
        lines.append([_head(name), *cells, _count(totals[i])])
    sums = [*matrix.sum(axis=0), matrix.sum()]
    lines.append([_head("total"), *(element("td", _count(total), klass="number total") for total in sums)])
    text = element("p", caption, klass="caption", aria_hidden="true")
    return element("div", text, table(caption, ["", *across, "total"], lines), klass="heatmap")


def _largest(
    caption: str, rows: Sequence[str], columns: Sequence[str], cells: Cells, *, square: bool
) -> Markup:
    wrong = [(at, count) for at, count in cells.items() if count and not (square and at[0] == at[1])]
    largest = sorted(wrong, key=lambda item: (-item[1], item[0]))[:_MOST_CONFUSIONS]
    most = largest[0][1] if largest else 0
    lines = [[rows[i], columns[j], _cell(count, most, hit=False)] for (i, j), count in largest]
    what = "confusions" if square else "cells"
    title = f"{caption}: the {len(largest):,} most frequent of {len(wrong):,} {what}; {len(rows):,} classes"
    text = element("p", title, klass="caption", aria_hidden="true")
    shown = table(title, ["true", "predicted", "count"], lines, text_columns=(0, 1))
    return element("div", text, shown, klass="heatmap")


def _cells(counts: ArrayLike | Cells) -> Cells:
    if isinstance(counts, Mapping):
        return counts
    matrix = np.asarray(counts)
    return {(int(i), int(j)): matrix[i, j].item() for i, j in zip(*matrix.nonzero(), strict=True)}


def _matrix(counts: ArrayLike | Cells, rows: int, columns: int) -> NDArray[Any]:
    if not isinstance(counts, Mapping):
        return np.asarray(counts)
    whole = all(float(count).is_integer() for count in counts.values())
    matrix = np.zeros((rows, columns), dtype=np.int64 if whole else np.float64)
    for at, count in counts.items():
        matrix[at] = count
    return matrix


def _head(name: str) -> Markup:
    # `table` keeps a whole cell only where it is a td
    return element("td", name, klass="text name")


def _cell(count: float, total: float, *, hit: bool) -> Markup:
    share = float(count / total) if total else 0.0
    kind = "hit" if hit else "miss"
    return element("td", _count(count), klass=f"number {kind}", style=f"--heat:{share:.3f}")


def _count(count: float) -> str:
    return f"{int(count):,}" if float(count).is_integer() else f"{count:,.4g}"


def lines_chart(
    title: str,
    axes: tuple[str, str],
    lines: Sequence[Line],
    *,
    diagonal: bool = False,
    steps: bool = False,
    values: Markup | None = None,
) -> Markup:
    """Lines over a unit square.

    Args:
        title: Of the chart.
        axes: What is across, and what is up.
        lines: At most `MOST_LINES`.
        diagonal: Draw the line of equal values.
        steps: Between points the line keeps the height of the later one.
        values: The same as a table.
    """
    x, y = _scales()
    parts = [_frame(axes, [i / 5 for i in range(6)], [f"{i / 5:g}" for i in range(6)])]
    if diagonal:
        parts.append(element("line", klass="diagonal", x1=x(0), y1=y(0), x2=x(1), y2=y(1)))
    for i, line in enumerate(lines):
        keep = _thin(line.x, line.y)
        points = list(zip(line.x[keep].tolist(), line.y[keep].tolist(), strict=True))
        parts.append(element("path", klass=f"line series-{i}", d=_path(points, x, y, steps=steps)))
        if line.dots:
            parts += [
                element("circle", klass=f"dot series-{i}", cx=x(a), cy=y(b), r="3.2") for a, b in points
            ]
    spoken = "; ".join(f"{line.name}: {line.note}" for line in lines) or "no data"
    legend = [
        element("li", _swatch(i), element("span", line.name, klass="who"), " ", element("small", line.note))
        for i, line in enumerate(lines)
    ]
    return element(
        "figure",
        element("figcaption", title),
        _svg(title, spoken, parts),
        element("ul", *legend, klass="keys"),
        _details(values),
    )


def bars(
    title: str, axis: str, heights: Floats, *, over: Floats | None = None, over_name: str = ""
) -> Markup:
    """A histogram of values from 0 to 1.

    Args:
        title: Of the chart.
        axis: What is across.
        heights: ``(h,)`` counts of equal parts.
        over: ``(h,)`` a part of each, drawn over it.
        over_name: What that part is.
    """
    most = float(heights.max(initial=0)) or 1.0
    ticks = _round_ticks(most)
    parts = [_frame((axis, "rows"), [tick / most for tick in ticks], [_short(tick) for tick in ticks])]
    wide = (_WIDE - _LEFT - _RIGHT) / max(1, len(heights))
    gap = min(1.5, wide / 6)
    shown = [("bar", heights)] if over is None else [("bar", heights), ("bar over", over)]
    for klass, values in shown:
        for i, value in enumerate(values):
            if value:
                high = value / most * (_HIGH - _TOP - _BOTTOM)
                at = (f"{_LEFT + i * wide + gap / 2:.1f}", f"{_HIGH - _BOTTOM - high:.1f}")
                size = (f"{wide - gap:.1f}", f"{max(high, 0.8):.1f}")
                parts.append(element("rect", klass=klass, x=at[0], y=at[1], width=size[0], height=size[1]))
    h = len(heights)
    ranges = [f"{i / h:.4g} to {(i + 1) / h:.4g}" for i in range(h)]
    head = [axis, "rows", *([over_name] if over is not None else [])]
    rows = [
        [name, _count(heights[i]), *([_count(over[i])] if over is not None else [])]
        for i, name in enumerate(ranges)
        if heights[i]
    ]
    most_at = ranges[int(heights.argmax())] if heights.any() else "nowhere"
    spoken = f"{_count(heights.sum())} values, most of them in {most_at}"
    keys = [
        element("li", element("i", klass=klass), name) for klass, name in (("", "all"), ("over", over_name))
    ]
    return element(
        "figure",
        element("figcaption", title),
        _svg(title, spoken, parts),
        element("ul", *keys, klass="keys") if over is not None else None,
        _details(table(title, head, rows)),
    )


def _scales() -> tuple[Callable[[float], str], Callable[[float], str]]:
    wide, high = _WIDE - _LEFT - _RIGHT, _HIGH - _TOP - _BOTTOM
    return (lambda value: f"{_LEFT + value * wide:.1f}"), (lambda value: f"{_TOP + (1 - value) * high:.1f}")


def _frame(axes: tuple[str, str], ticks: Sequence[float], labels: Sequence[str]) -> Markup:
    """Grid, numbers and names of the axes."""
    x, y = _scales()
    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        parts.append(element("line", klass="grid", x1=x(0), x2=x(1), y1=y(tick), y2=y(tick)))
        parts.append(
            element("text", label, x=f"{_LEFT - 6}", y=f"{float(y(tick)) + 4:.1f}", text_anchor="end")
        )
    for i in range(6):
        parts.append(
            element("text", f"{i / 5:g}", x=x(i / 5), y=f"{_HIGH - _BOTTOM + 16}", text_anchor="middle")
        )
    middle = (_TOP + _HIGH - _BOTTOM) / 2
    parts.append(element("text", axes[0], x=x(0.5), y=f"{_HIGH - 6}", text_anchor="middle", klass="axis"))
    turned = {"transform": f"rotate(-90 11 {middle:.0f})"}
    parts.append(
        element("text", axes[1], x="11", y=f"{middle:.0f}", text_anchor="middle", klass="axis", **turned)
    )
    return raw("".join(parts))


def _svg(title: str, spoken: str, parts: Sequence[Markup]) -> Markup:
    inside = [element("title", title), element("desc", spoken), *parts]
    label = {"viewBox": f"0 0 {_WIDE} {_HIGH}", "role": "img", "aria_label": f"{title}. {spoken}"}
    return element("svg", *inside, **label)


def _swatch(i: int) -> Markup:
    line = element("line", klass=f"line series-{i}", x1="0", x2="26", y1="5", y2="5")
    return element("svg", line, klass="swatch", viewBox="0 0 26 10", aria_hidden="true")


def _details(values: Markup | None) -> Markup | None:
    return None if values is None else element("details", element("summary", "Values"), values)


def _path(
    points: Sequence[tuple[float, float]],
    x: Callable[[float], str],
    y: Callable[[float], str],
    *,
    steps: bool,
) -> str:
    if not points:
        return ""
    text = f"M{x(points[0][0])},{y(points[0][1])}"
    for across, up in points[1:]:
        text += f"V{y(up)}H{x(across)}" if steps else f"L{x(across)},{y(up)}"
    return text


def _thin(x: Floats, y: Floats) -> NDArray[np.int64]:
    """Points that look like all of them: of each slice of the way the first, the lowest, the highest and the last."""
    there = (np.isfinite(x) & np.isfinite(y)).nonzero()[0]
    if len(there) <= _MOST_POINTS:
        return there
    x, y = x[there], y[there]
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)).clip(max=1e-2))])
    slices = np.floor(way / (way[-1] or 1.0) * (_MOST_POINTS // 4)).astype(np.int64)
    first = np.concatenate([[0], np.diff(slices).nonzero()[0] + 1])
    keep = [first, np.concatenate([first[1:], [len(x)]]) - 1]
    for order in (np.lexsort((y, slices)), np.lexsort((-y, slices))):
        keep.append(order[first])
    kept: NDArray[np.int64] = there[np.unique(np.concatenate(keep))]
    return kept


def _round_ticks(most: float) -> list[float]:
    """From 0 in steps of 1, 2 or 5 times a power of ten, four to ten of them."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = power * max(factor for factor in (1, 2, 5) if factor * power <= most / 4)
    return [i * step for i in range(int(most / step) + 1)]


def _short(value: float) -> str:
    for limit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{name}"
    return f"{value:.3g}"
