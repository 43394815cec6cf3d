"""What an evaluation counts in a task: reports by group of rows, by output, and by name.

Shapes: ``B`` rows of a minibatch; ``N`` rows of an output, or real steps, that can be used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fatwood.data import Batch
from fatwood.errors import OptionError, UserCodeError
from fatwood.evaluation import Classification, Loss, Report
from fatwood.spark.reports import FITTING, TOGETHER, Found, Metrics
from fatwood.train import (
    AnyLoss,
    Caller,
    Key,
    Objective,
    Target,
    losses_of,
    outputs_of,
    takes_batch,
    user_code,
)
from fatwood.train.activation import Activation, activation_of
from fatwood.train.objective import Drop, Targets, scalar, targets_of
from fatwood.train.placing import moved

__all__ = ["Counted", "Tally"]

_MOST_NUMBERS: Final = 1 << 20
_MOST_ROWS: Final = 1 << 13
"""Of outputs that wait: metrics take many rows in hardly more time than a few."""


class Counted(NamedTuple):
    """One output of a minibatch, on its way to the reports."""

    key: Key
    output: Tensor
    """``(N, ...)`` as the network returned it."""
    label: Tensor | None
    weight: Tensor | None
    """``(N,)`` of the samples."""
    losses: Tensor
    """``(N,)`` float64 that add up to the loss times what it weighs; NaN without a loss."""
    shares: Tensor | None
    """``(N,)`` what each weighs in the loss; None where each weighs 1."""
    groups: Tensor
    """``(N,)`` int64"""


class Tally:
    """Counts one minibatch after the other.

    Args:
        network: In evaluation mode.
        loss: Of the model, if it has one.
        metrics: What to count; None for the one report that fits the labels.
        activation: As :func:`fatwood.train.activation.activation_of` takes it.
        weighted: Whether rows have weights.
        device: Where the network is; None for the CPU.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss: AnyLoss | None,
        metrics: Metrics | None = None,
        activation: Any = "auto",
        *,
        weighted: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self._network, self._call, self._device = network, Caller(network, device), device
        self._whole: Any = loss if loss is not None and takes_batch(loss) else None
        self._objective = None if loss is None else Objective(loss, weighted=weighted)
        self._metrics = metrics
        self._loss, self._activation = loss, activation
        self._waiting: dict[Key, list[Counted]] = {}
        self._rows: dict[Key, int] = {}
        self._reports: dict[int, Found] = {}

    def measured(self, batch: Batch, groups: NDArray[np.int64], drop: Drop) -> list[Counted]:
        """A minibatch after network and loss; changes nothing.

        Args:
            batch: Its labels may be missing where the loss is called with the minibatch.
            groups: ``(B,)`` which group each row is of.
            drop: What to do with rows that have a label out of range.
        """
        of_row = torch.from_numpy(np.ascontiguousarray(groups))
        if batch.label is None:
            return self._without_label(batch, of_row)
        objective = None if self._whole is not None else self._objective
        found = targets_of(self._call, objective, batch, drop)
        without_loss = self._whole is None and self._objective is None
        alone = without_loss or not len(groups) or bool((of_row == of_row[0]).all())
        counted = []
        for part in [found] if alone else _parts(found, of_row):
            if part.rows:
                counted += self._of_part(part, batch, of_row)
        return counted

    def _without_label(self, batch: Batch, of_row: Tensor) -> list[Counted]:
        output = torch.empty(len(batch), 0)
        if self._metrics is not None and any(not isinstance(of, Loss) for of in self._metrics[None].values()):
            output = outputs_of(self._call(batch), None, len(batch))[None]
        counted = []
        for group in _numbers(of_row):
            own = of_row == group
            part = batch if bool(own.all()) else batch.rows(own)
            losses = _spread(self._of_whole(part), part.weight, len(part))
            counted.append(Counted(None, output[own], None, part.weight, losses, part.weight, of_row[own]))
        return counted

    def _of_part(self, found: Targets, batch: Batch, of_row: Tensor) -> list[Counted]:
        """The rows of one group: each output, and the loss of all outputs together where that is one function."""
        several = found.keys is not None
        together = several and self._objective is not None and self._objective.together
        value: Tensor | None = None
        if self._whole is not None:
            value = self._of_whole(batch if found.kept is None else batch.rows(found.kept))
        elif self._objective is not None:
            result = self._objective.measured(found, batch.weight)
            found, value = found._replace(targets=result.targets), result.loss
        counted = []
        if together:
            weight, groups = (
                _kept(batch.weight, found.kept),
                of_row if found.kept is None else of_row[found.kept],
            )
            losses = _spread(value, weight, found.rows)
            counted.append(
                Counted(TOGETHER, torch.empty(found.rows, 0), None, weight, losses, weight, groups)
            )
        for key, target in found.targets.items():
            if together and self._metrics is None and not target.classes:
                continue
            loss = value if self._whole is not None and not several else target.loss
            counted.append(self._of_output(key, target, loss, batch.weight, of_row))
        return counted

    def _of_output(
        self, key: Key, target: Target, loss: Tensor | None, weight: Tensor | None, of_row: Tensor
    ) -> Counted:
        """One output; rows whose label the loss ignores are no part of its mean, nor of the reports."""
        if self._metrics is None and not target.classes and self._objective is None:
            text = "evaluate: expected a model with loss, or a network that returns one output per class, "
            text += f"received no loss and output of shape {tuple(target.output.shape)}"
            raise OptionError(
                text, hint="SparkModel(network, loss=...), or metrics=[...] that fit the output"
            )
        weight, groups = _kept(weight, target.row), of_row if target.row is None else of_row[target.row]
        shares = weight if target.weights is None else target.weights
        losses = _spread(loss, shares, len(target.label))
        counted = Counted(key, target.output, target.label, weight, losses, shares, groups)
        ignored = None if self._objective is None else self._objective.ignore_index(key)
        if not target.classes or ignored is None or not bool((target.label == ignored).any()):
            return counted
        return _chosen(counted, target.label != ignored)

    def _of_whole(self, batch: Batch) -> Tensor:
        with user_code("loss", features=batch.features):
            return scalar(self._whole(self._network, moved(batch, self._device)))

    def add(self, counted: Sequence[Counted]) -> None:
        """Count what :meth:`measured` returned."""
        for part in counted:
            waiting = self._waiting.setdefault(part.key, [])
            if waiting and not _alike(waiting[0], part):
                self._flush(part.key)
            if len(part.output):
                waiting.append(part)
                self._rows[part.key] = self._rows.get(part.key, 0) + len(part.output)
            rows, numbers = self._rows.get(part.key, 0), math.prod(part.output.shape[1:])
            if rows >= _MOST_ROWS or rows * numbers >= _MOST_NUMBERS:
                self._flush(part.key)

    def reports(self) -> dict[int, Found]:
        """Of all that was counted, by group; those that have any rows."""
        for key in tuple(self._waiting):
            self._flush(key)
        return self._reports

    def _flush(self, key: Key) -> None:
        waiting = self._waiting[key]
        if not waiting:
            return
        rows = _joined(waiting)
        waiting.clear()
        self._rows[key] = 0
        if self._metrics is not None and key in self._metrics:
            rows = rows._replace(output=self._activated(key, rows.output))
        for group, part in _by_group(rows):
            self._count(group, part)

    def _activated(self, key: Key, output: Tensor) -> Tensor:
        losses = None if self._loss is None else losses_of(self._loss)
        loss = self._loss if losses is None else losses.parts.get(key)
        function: Activation = activation_of(loss, self._activation)
        with user_code("activation", output=output):
            found: Any = function(output)
        if isinstance(found, Tensor) and found.dim() and len(found) == len(output):
            return found
        received = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        text = f"TypeError: activation must return a tensor with a row for each of {len(output)} rows, received {received}"
        raise UserCodeError(text)

    def _count(self, group: int, rows: Counted) -> None:
        of_output = self._reports.setdefault(group, {})
        if rows.key not in of_output:
            of_output[rows.key] = self._fresh(rows)
        given: dict[str, Any] = {"output": rows.output}
        if rows.label is not None:
            given["label"] = rows.label
        for name, report in of_output[rows.key].items():
            with user_code(f"metric {name!r}" if name else "report", **given):
                _update(report, rows)

    def _fresh(self, rows: Counted) -> dict[str, Report]:
        if self._metrics is not None and rows.key in self._metrics:
            return {name: report.fresh() for name, report in self._metrics[rows.key].items()}
        if rows.label is None or not Target(rows.output, rows.label).classes:
            return {FITTING: Loss.empty()}
        return {FITTING: Classification.empty(rows.output.shape[1])}


def _update(report: Report, rows: Counted) -> None:
    loss_sum = float(rows.losses.sum())
    if isinstance(report, Loss):
        report.update(rows.output, rows.label, loss_sum, weights=rows.shares)
    elif isinstance(report, Classification):
        share = None if rows.shares is None else float(rows.shares.sum(dtype=torch.float64))
        report.update(rows.output, rows.label, loss_sum, weights=rows.weight, loss_weight=share)
    else:
        report.update(rows.output, rows.label, loss_sum, weights=rows.weight)


def _parts(found: Targets, of_row: Tensor) -> list[Targets]:
    """The rows of each group by themselves."""
    kept = torch.ones(len(of_row), dtype=torch.bool) if found.kept is None else found.kept
    parts = []
    for group in _numbers(of_row):
        own = kept & (of_row == group)
        targets = {key: target.of_rows(own) for key, target in found.targets.items()}
        parts.append(Targets(found.keys, targets, int(own.sum()), own))
    return parts


def _spread(loss: Tensor | None, shares: Tensor | None, rows: int) -> Tensor:
    """A mean over rows, as one number for each of them; 0 for those that weigh nothing."""
    if loss is None:
        return torch.full((rows,), float("nan"), dtype=torch.float64)
    value = loss.detach().double().cpu()
    if shares is None:
        return value.expand(rows)
    return torch.where(shares > 0, value * shares.double(), 0.0)


def _kept(values: Tensor | None, kept: Tensor | None) -> Tensor | None:
    return values if values is None or kept is None else values[kept]


def _numbers(groups: Tensor) -> list[int]:
    """Those that occur."""
    found: list[int] = np.unique(groups.numpy()).tolist()
    return found


def _by_group(rows: Counted) -> Iterator[tuple[int, Counted]]:
    """The rows of each group, in their order."""
    if bool((rows.groups == rows.groups[0]).all()):
        yield int(rows.groups[0]), rows
        return
    rows = _chosen(rows, rows.groups.argsort(stable=True))
    groups, counts = torch.unique_consecutive(rows.groups, return_counts=True)
    start = 0
    for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
        yield group, _chosen(rows, slice(start, start + count))
        start += count


def _chosen(rows: Counted, own: Tensor | slice) -> Counted:
    columns: list[Any] = [part if part is None else part[own] for part in rows[1:]]
    return Counted(rows.key, *columns)


def _joined(parts: Sequence[Counted]) -> Counted:
    if len(parts) == 1:
        return parts[0]
    columns: list[Any] = list(zip(*(part[1:] for part in parts), strict=True))
    joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
    return Counted(parts[0].key, *joined)


def _alike(a: Counted, b: Counted) -> bool:
    """Whether two minibatches of one output can be counted as one."""

    def form(rows: Counted) -> list[Any]:
        return [None if part is None else (part.dtype, part.shape[1:]) for part in rows[1:]]

    return form(a) == form(b)
