"""A minibatch's outputs beside its labels, its loss, and what it weighs.

Shapes: ``B`` rows, ``T`` steps of the longest sequence among them; ``N`` is B for a label of one value a row, and the
number of all rows' real steps for a label of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.data import Batch, describe_row, each
from fatwood.errors import UserCodeError
from fatwood.train.criterion import Criterion
from fatwood.train.forward import Caller, Key, Keys, keys_of, outputs_of, user_code
from fatwood.train.losses import AnyLoss, hint_of_losses, losses_of, require_labels

__all__ = [
    "Drop",
    "Forward",
    "Objective",
    "Target",
    "Targets",
    "formed",
    "forward_and_loss",
    "scalar",
    "targets_of",
]

Drop: TypeAlias = Callable[[NDArray[np.int64], str], None]
"""Told ids and a message when rows cannot be used; may raise."""


class Target(NamedTuple):
    """What the network returned beside what it should have, without padding and without the rows that cannot be used."""

    output: torch.Tensor
    """``(N, ...)``"""
    label: torch.Tensor
    """``(N,)`` or ``(N, k)``, or the shape of the output where that has as many numbers"""
    row: torch.Tensor | None = None
    """``(N,)`` which row of the minibatch each is of, in order; None where i is of row i"""
    loss: torch.Tensor | None = None
    """Scalar mean over the N; None when there are none, or no loss of this output alone."""
    weights: torch.Tensor | None = None
    """``(N,)`` what each weighs in it; None where all weigh 1."""

    @property
    def classes(self) -> bool:
        """Whether the label is a class, with an output for each class."""
        return self.label.dtype == torch.int64 and self.label.dim() == 1 and self.output.dim() == 2

    @property
    def share(self) -> float:
        """What the N weigh together."""
        return len(self.label) if self.weights is None else float(self.weights.sum(dtype=torch.float64))

    def of_rows(self, kept: torch.Tensor) -> Target:
        """Without the rows that are not kept.

        Args:
            kept: ``(B,)`` booleans.
        """
        if self.row is None:
            return Target(self.output[kept], self.label[kept], kept.nonzero()[:, 0])
        own = kept[self.row]
        return Target(self.output[own], self.label[own], self.row[own])


class Forward(NamedTuple):
    """A minibatch after network and loss."""

    rows: int
    """That could be used."""
    targets: Mapping[Key, Target]
    """By the labels' positions or names; a single one by None."""
    loss: torch.Tensor
    """Scalar; NaN when there is nothing to train on, or no loss."""
    share: float | None
    """What the minibatch weighs; None where each row weighs 1."""


class Objective:
    """The user's loss, of one output or of several.

    Args:
        loss: A function, or one for each output.
        weighted: Whether there are sample weights.

    Raises:
        OptionError: There are, and a loss cannot tell the rows' own losses.
    """

    def __init__(self, loss: AnyLoss, *, weighted: bool) -> None:
        self._losses = losses_of(loss)
        self.loss = loss if self._losses is None else self._losses
        parts: Mapping[Key, Any] = {None: loss} if self._losses is None else self._losses.parts
        self._criteria = {key: Criterion(part, weighted=weighted) for key, part in parts.items()}

    @property
    def together(self) -> bool:
        """Whether one function is the loss of all outputs, however many there are."""
        return self._losses is None

    def criterion(self, key: Key) -> Criterion:
        """The loss of one output."""
        return self._criteria[None if self._losses is None else key]

    def ignore_index(self, key: Key) -> int | None:
        """The label that the loss of an output leaves out."""
        return self.criterion(key).ignore_index

    def weight(self, key: Key) -> float:
        """What the loss of an output is multiplied by."""
        return 1.0 if self._losses is None else self._losses.weight(key)

    def measured(self, found: Targets, weight: torch.Tensor | None) -> Forward:
        """The loss of a minibatch, and what it weighs.

        A single output weighs by its rows or real steps, and by their classes; several by rows alone.

        Args:
            found: Without losses.
            weight: ``(B,)`` sample weights, of all rows.
        """
        keys, targets, rows, kept = found
        if keys is None:
            target = self._with_loss(None, targets[None], weight)
            alike = target.weights is None and len(target.label) == rows
            return Forward(rows, {None: target}, _or_nan(target.loss), None if alike else target.share)
        of_kept = weight if weight is None or kept is None else weight[kept]
        if self._losses is None:
            loss = self._together(keys, targets, of_kept)
        else:
            targets = {key: self._with_loss(key, target, weight) for key, target in targets.items()}
            loss = self._sum(targets)
        if loss is None:
            return Forward(rows, targets, _or_nan(None), 0.0)
        share = None if of_kept is None else float(of_kept.sum(dtype=torch.float64))
        return Forward(rows, targets, loss, share)

    def _with_loss(self, key: Key, target: Target, weight: torch.Tensor | None) -> Target:
        output, label = target.output, target.label
        if not len(label):
            return target
        criterion, hint = self._criteria[key], None
        own = weight if weight is None or target.row is None else weight[target.row]
        if label.is_floating_point() and label.dim() == 1 < output.dim():
            hint = "the label column is no integer; cast it to int if it holds classes"
        with user_code("loss" if key is None else f"loss {key!r}", hint, output=output, label=label):
            value = criterion(output, label, own)
        return target._replace(loss=scalar(value), weights=criterion.weights(label, own))

    def _sum(self, targets: Mapping[Key, Target]) -> torch.Tensor | None:
        """The weighted sum of the outputs that have anything to learn from; None if none has."""
        total = None
        for key, target in targets.items():
            if target.loss is not None and self.weight(key) and target.share:
                part = self.weight(key) * target.loss
                total = part if total is None else total + part
        return total

    def _together(
        self, keys: Keys, targets: Mapping[Key, Target], weight: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The loss of a function that is given all outputs and all labels; None if there are none."""
        if not any(len(target.label) for target in targets.values()):
            return None
        outputs = formed(keys, [target.output for target in targets.values()])
        labels = formed(keys, [target.label for target in targets.values()])
        with user_code("loss", hint_of_losses(keys), output=outputs, label=labels):
            return scalar(self._criteria[None](outputs, labels, weight), hint_of_losses(keys))


def formed(keys: Keys, tensors: list[torch.Tensor]) -> Any:
    """Several tensors in the form of their keys: a dict, or a tuple."""
    return dict(zip(keys, tensors, strict=True)) if isinstance(keys, tuple) else tuple(tensors)


def _or_nan(loss: torch.Tensor | None) -> torch.Tensor:
    return torch.tensor(float("nan")) if loss is None else loss


def scalar(value: Any, hint: str | None = None) -> torch.Tensor:
    """What a loss returned, if it is a scalar tensor.

    Raises:
        UserCodeError: It is something else.
    """
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        return value
    found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    text = f"TypeError: the loss must return a scalar tensor, received {found}"
    raise UserCodeError(text, hint=hint or "a loss with reduction='mean' does")


class Targets(NamedTuple):
    """A minibatch after the network."""

    keys: Keys
    targets: Mapping[Key, Target]
    rows: int
    """That can be used."""
    kept: torch.Tensor | None
    """``(B,)`` booleans, which; None for all."""


def targets_of(call: Caller, objective: Objective | None, batch: Batch, drop: Drop) -> Targets:
    """Outputs beside labels, without padding, and without the rows that have a label out of range.

    Where the network returns one number for every number of the label, the label is a number and no class: it then
    has the output's shape and type. A loss would broadcast ``(B,)`` against ``(B, 1)`` to ``(B, B)``.

    Args:
        call: The network.
        objective: Says which labels are ignored; not called.
        batch: With labels.
        drop: What to do with rows that cannot be used; it may raise.

    Raises:
        UserCodeError: The network raised, or returned something that does not fit the labels.
        OptionError: Losses are given for other outputs than there are labels.
    """
    if batch.label is None:
        text = "targets_of: expected a batch with labels, received one without"
        raise ValueError(text)
    keys = keys_of(batch.label)
    if objective is not None:
        require_labels(objective.loss, keys)
    outputs, masks = outputs_of(call(batch), keys, len(batch)), dict(each(batch.label_mask))
    targets: dict[Key, Target] = {
        key: _target(key, outputs[key], label, masks.get(key)) for key, label in each(batch.label)
    }
    kept = _usable_rows(targets, objective, batch, drop)
    if kept is None:
        return Targets(keys, targets, len(batch), None)
    return Targets(
        keys, {key: target.of_rows(kept) for key, target in targets.items()}, int(kept.sum()), kept
    )


def forward_and_loss(call: Caller, objective: Objective | None, batch: Batch, drop: Drop) -> Forward:
    """The targets of a minibatch, and their loss.

    Args:
        call: The network.
        objective: The loss, if there is one to be measured.
        batch: With labels.
        drop: What to do with rows that cannot be used; it may raise.

    Raises:
        UserCodeError: The network or the loss raised, or returned something that does not fit the labels.
        OptionError: Losses are given for other outputs than there are labels.
    """
    found = targets_of(call, objective, batch, drop)
    if objective is None:
        return Forward(found.rows, found.targets, _or_nan(None), None)
    return objective.measured(found, batch.weight)


def _target(key: Key, output: torch.Tensor, label: torch.Tensor, mask: torch.Tensor | None) -> Target:
    """An output beside its label, both without padding."""
    row = None
    if mask is not None:
        if not output.shape[:2] == label.shape[:2] == mask.shape:
            name = "" if key is None else f" {key!r}"
            text = f"TypeError: the output{name} must have the steps of its label, {tuple(mask.shape)} rows and steps, "
            text += (
                f"received an output of shape {tuple(output.shape)} and a label of shape {tuple(label.shape)}"
            )
            hint = "for labels of steps the network returns (B, T, ...); give a label of one value a row otherwise"
            raise UserCodeError(text, hint=hint)
        row, output, label = mask.nonzero()[:, 0], output[mask], label[mask]
    if len(label) and output.is_floating_point() and label.numel() == output.numel():
        label = label.reshape(output.shape).to(output.dtype)
    return Target(output, label, row)


def _usable_rows(
    targets: Mapping[Key, Target], objective: Objective | None, batch: Batch, drop: Drop
) -> torch.Tensor | None:
    """Which rows ``(B,)`` have only labels that the network can output, where they are classes; None for all."""
    kept, message = None, ""
    for key, target in targets.items():
        output, label, row = target[:3]
        if not target.classes or not output.is_floating_point():
            continue
        usable = (label >= 0) & (label < output.shape[1])
        ignored = None if objective is None else objective.ignore_index(key)
        if ignored is not None:
            usable |= label == ignored
        if bool(usable.all()):
            continue
        bad = (~usable).nonzero()[:, 0]
        kept = torch.ones(len(batch), dtype=torch.bool, device=label.device) if kept is None else kept
        kept[bad if row is None else row[bad]] = False
        message = message or _out_of_range(key, target, int(bad[0]), batch)
    if kept is not None:
        assert batch.row_ids is not None  # noqa: S101  set by Batch itself
        drop(batch.row_ids[(~kept).cpu().numpy()], message)
    return kept


def _out_of_range(key: Key, target: Target, first: int, batch: Batch) -> str:
    assert batch.row_ids is not None  # noqa: S101  set by Batch itself
    row, step, classes = first, "", target.output.shape[1]
    if target.row is not None:
        row = int(target.row[first])
        step = f" at step {int((target.row[:first] == row).sum())}"
    name = "label" if key is None else f"label {key!r}"
    return (
        f"{describe_row(int(batch.row_ids[row]), batch.places)}: {name} out of range{step}: expected 0 to {classes - 1} "
        f"(the network has {classes} outputs), received {int(target.label[first])}"
    )
