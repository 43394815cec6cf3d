"""Reports as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fatwood.report.html import Markup, element, table

if TYPE_CHECKING:
    from fatwood.evaluation.report import Report

__all__ = ["fragment", "page", "summary_table"]


def page(reports: Mapping[str, Report], title: str = "Evaluation") -> str:
    """One page of some reports that needs no network.

    Args:
        reports: By what they are called on it.
        title: Of the page.
    """
    return f"<!doctype html><title>{title}</title>{fragment(reports)}"


def fragment(reports: Mapping[str, Report]) -> str:
    """The same without head, for a notebook's cell."""
    parts = [element("section", element("h2", name), *report.sections()) for name, report in reports.items()]
    return "".join(parts)


def summary_table(figures: Mapping[str, float]) -> Markup:
    """Figures by name."""
    return table("Figures", ["figure", "value"], [[name, f"{value:.6g}"] for name, value in figures.items()])
