"""Reports as HTML: one page, or a part of a notebook; no script, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from fatwood.report.html import Markup, element, raw

if TYPE_CHECKING:
    from fatwood.evaluation.report import Report

__all__ = ["fragment", "page", "summary_table"]

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(reports: Mapping[str, Report], title: str = "Evaluation") -> str:
    """One page of some reports that needs no network.

    Args:
        reports: By what they are called on it.
        title: Of the page.
    """
    head = element(
        "head",
        raw('<meta charset="utf-8">'),
        raw('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        raw(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", title),
        element("style", raw(_style())),
    )
    links = [element("a", name, href=f"#report-{i}") for i, name in enumerate(reports)]
    menu = element("nav", *links, aria_label="Reports") if len(links) > 1 else None
    body = element("main", element("h1", title), menu, *_sections(reports, linked=True), klass="evaluation")
    return f'<!doctype html>\n<html lang="en">{head}{element("body", body)}</html>\n'


def fragment(reports: Mapping[str, Report]) -> str:
    """The same without head, for a notebook's cell; its style holds for itself only.

    Args:
        reports: By what they are called.
    """
    style = _style().replace(":root", "&").replace("body {", "& {")
    inside = element("style", raw(f".fatwood-reports {{ {style} }}"))
    return element("div", inside, *_sections(reports), klass="fatwood-reports evaluation")


def summary_table(figures: Mapping[str, float]) -> Markup:
    """Figures by name.

    Args:
        figures: Such as ``Report.summary()``.
    """
    tiles = [
        element("div", element("dt", name.replace("_", " ")), element("dd", _figure(value), klass="value"))
        for name, value in figures.items()
    ]
    return element("dl", *tiles, klass="tiles")


def _sections(reports: Mapping[str, Report], *, linked: bool = False) -> list[Markup]:
    shown = []
    for i, (name, report) in enumerate(reports.items()):
        skipped = (
            element("p", f"{report.skipped:,} bad rows were skipped.", klass="note")
            if report.skipped
            else None
        )
        # cells of a notebook share one name space of ids
        names = {"id": f"report-{i}"} if linked else {}
        shown.append(element("section", element("h2", name), *report.sections(), skipped, **names))
    return shown


def _figure(value: float) -> str:
    number = float(value)
    return f"{int(value):,}" if number.is_integer() and abs(number) >= 2 else f"{value:.6g}"


@cache
def _style() -> str:
    common = files("fatwood.report").joinpath("page.css").read_text(encoding="utf-8")
    return common + files("fatwood.evaluation").joinpath("page.css").read_text(encoding="utf-8")
