"""What an evaluation counts, and how it comes back: a report, or one for each of several outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

import torch

from fatwood.data import Batch
from fatwood.errors import OptionError
from fatwood.evaluation import Classification, Loss
from fatwood.train import (
    AnyLoss,
    Caller,
    Key,
    Objective,
    Target,
    forward_and_loss,
    keys_of,
    takes_batch,
    user_code,
)
from fatwood.train.objective import Drop, scalar

__all__ = ["TOGETHER", "Report", "Tally", "merged_reports", "packed_report", "read_packed_report"]

Report: TypeAlias = "Classification | Loss | dict[str | int, Classification | Loss]"
"""Of one output; or of several, by their names or positions."""

TOGETHER = "loss"
"""The report of the loss itself, among those of several outputs that have no losses of their own."""

_KINDS: Mapping[str, Any] = {"classification": Classification, "loss": Loss}


class Tally:
    """Counts one minibatch after the other.

    Args:
        network: In evaluation mode.
        loss: Of the model, if it has one.
    """

    def __init__(self, network: torch.nn.Module, loss: AnyLoss | None) -> None:
        self._network, self._call = network, Caller(network)
        self._whole: Any = loss if loss is not None and takes_batch(loss) else None
        self._objective = None if loss is None else Objective(loss, weighted=False)
        self._reports: dict[Key, Classification | Loss] = {}

    @property
    def report(self) -> Report | None:
        """Of all that was counted; None for nothing."""
        if None in self._reports:
            return self._reports[None]
        return {key: report for key, report in self._reports.items() if key is not None} or None

    def add(self, batch: Batch, drop: Drop) -> None:
        """Count a minibatch.

        Args:
            batch: Its labels may be missing where the loss is called with the minibatch.
            drop: What to do with rows that have a label out of range.
        """
        if batch.label is None:
            self._count_loss(None, len(batch), self._of_whole(batch))
            return
        objective = None if self._whole is not None else self._objective
        result = forward_and_loss(self._call, objective, batch, drop)
        value = float(result.loss) if self._whole is None or not result.rows else self._of_whole(batch)
        several = keys_of(batch.label) is not None
        together = several and self._objective is not None and self._objective.together
        if together and result.rows:
            self._count_loss(TOGETHER, result.rows, value)
        for key, target in result.targets.items():
            if not several and self._whole is not None:
                self._count(key, target, value)
            elif not together or target.classes:
                self._count(key, target, float("nan") if target.loss is None else float(target.loss))

    def _of_whole(self, batch: Batch) -> float:
        with user_code("loss", features=batch.features):
            return float(scalar(self._whole(self._network, batch)))

    def _count_loss(self, key: Key, rows: int, loss: float) -> None:
        report = self._reports.setdefault(key, Loss.empty())
        report.update(torch.empty(rows, 0), torch.empty(rows, 0), loss * rows)

    def _count(self, key: Key, target: Target, loss: float) -> None:
        """One output; rows whose label the loss ignores are no part of its mean, nor of the report."""
        output, label = target.output, target.label
        if not target.classes and self._objective is None:
            text = "evaluate: expected a model with loss, or a network that returns one output per class, "
            text += f"received no loss and output of shape {tuple(output.shape)}"
            raise OptionError(text, hint="SparkModel(network, loss=...)")
        ignored = None if self._objective is None else self._objective.ignore_index(key)
        if target.classes and ignored is not None:
            output, label = output[label != ignored], label[label != ignored]
        if not len(label):
            return
        if key not in self._reports:
            self._reports[key] = Classification.empty(output.shape[1]) if target.classes else Loss.empty()
        self._reports[key].update(output, label, loss * len(label))


def packed_report(report: Report | None) -> tuple[str, str]:
    """A report as its kind and JSON; `read_packed_report` is the way back."""
    if report is None:
        return "empty", ""
    if isinstance(report, dict):
        return "several", json.dumps([[key, *packed_report(part)] for key, part in report.items()])
    return type(report).__name__.lower(), report.to_json()


def read_packed_report(kind: str, body: str) -> Report | None:
    """The inverse of :func:`packed_report`."""
    if kind == "empty":
        return None
    if kind == "several":
        return {key: _KINDS[of].from_json(part) for key, of, part in json.loads(body)}
    report: Report = _KINDS[kind].from_json(body)
    return report


def merged_reports(reports: Sequence[Report], skipped: int) -> Report:
    """The report of all rows.

    Args:
        reports: At least one, of the same outputs; an output may be missing where none of its steps was real.
        skipped: Bad rows that were left out.
    """
    if all(isinstance(report, dict) for report in reports):
        keys = list(dict.fromkeys(key for report in reports for key in report))  # type: ignore[union-attr]
        parts = {key: [report[key] for report in reports if key in report] for key in keys}  # type: ignore[index,operator]
        return {key: _merged(part, skipped) for key, part in parts.items()}
    merged: Report = _merged(reports, skipped)
    return merged


def _merged(reports: Sequence[Any], skipped: int) -> Any:
    merged = reduce(lambda a, b: a.merge(b), reports)
    merged.skipped = skipped
    return merged
