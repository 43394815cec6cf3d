"""Reports on their way from the tasks of an evaluation: by output, and by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from fatwood.evaluation import Report
from fatwood.evaluation.reports import read_like
from fatwood.train import Key

__all__ = [
    "FITTING",
    "TOGETHER",
    "Found",
    "Metrics",
    "merged_reports",
    "packed_reports",
    "read_packed_reports",
]

TOGETHER = "loss"
"""The report of the loss itself, among those of several outputs that have no losses of their own."""

FITTING = ""
"""The name of an output's only report where the caller asks for no metrics."""

Metrics: TypeAlias = "Mapping[Key, Mapping[str, Report]]"
"""Empty reports by output and name, as the caller asks for them."""

Found: TypeAlias = "dict[Key, dict[str, Report]]"
"""Reports with rows, by output and name."""


def packed_reports(found: Found) -> str:
    """Reports as text; :func:`read_packed_reports` is the way back."""
    return json.dumps(
        [[key, name, report.to_json()] for key, of in found.items() for name, report in of.items()]
    )


def read_packed_reports(body: str, metrics: Metrics | None) -> Found:
    """The inverse of :func:`packed_reports`.

    Args:
        body: What it returned.
        metrics: What the task was asked to count.
    """
    found: Found = {}
    for key, name, text in json.loads(body):
        like = None if metrics is None else metrics.get(key, {}).get(name)
        found.setdefault(key, {})[name] = Report.from_json(text) if like is None else read_like(like, text)
    return found


def merged_reports(parts: Sequence[Found], metrics: Metrics | None, skipped: int) -> Found:
    """The reports of all rows.

    Args:
        parts: Of the partitions, in their order; an output may be missing where none of its steps was real.
        metrics: What was asked for: an output that is missing everywhere has empty reports.
        skipped: Bad rows that were left out.
    """
    keys = dict.fromkeys(key for part in parts for key in part)
    merged: Found = {}
    for key in [*(metrics or {}), *(key for key in keys if key not in (metrics or {}))]:
        found = [part[key] for part in parts if key in part]
        if not found and metrics is not None:
            found = [{name: report.fresh() for name, report in metrics[key].items()}]
        merged[key] = {name: _merged([reports[name] for reports in found]) for name in found[0]}
        for report in merged[key].values():
            report.skipped = skipped
    return merged


def _merged(reports: list[Any]) -> Report:
    """Neighbours first, so that large reports are copied a few times only."""
    while len(reports) > 1:
        pairs = [reports[i : i + 2] for i in range(0, len(reports), 2)]
        reports = [pair[0].merge(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
    report: Report = reports[0]
    return report
