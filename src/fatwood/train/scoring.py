"""The loss of each row alone, as if it were the only one of its minibatch.

Shapes: ``B`` rows; ``N`` as in :mod:`fatwood.train.objective`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.data import Batch
from fatwood.errors import UserCodeError
from fatwood.train.criterion import of_rows, takes_batch
from fatwood.train.forward import Caller, Key, user_code
from fatwood.train.losses import AnyLoss
from fatwood.train.objective import Drop, Objective, Target, Targets, formed, scalar, targets_of
from fatwood.train.placing import moved

__all__ = ["RowLosses"]


class RowLosses:
    """Each row's own loss: the mean over its real steps, and of several outputs the weighted sum.

    Args:
        network: In evaluation mode.
        loss: A loss of torch.nn is asked for all rows' losses at once (``reduction="none"``), any other function for one
            row after another; ``loss(network, batch)`` is called with minibatches of one row.
        device: Where the network is; None for the CPU.
    """

    def __init__(self, network: torch.nn.Module, loss: AnyLoss, device: torch.device | None = None) -> None:
        self._network, self._device = network, device
        self._whole: Any = loss if takes_batch(loss) else None
        self._call, self._objective = Caller(network, device), Objective(loss, weighted=False)

    def __call__(self, batch: Batch, drop: Drop) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The rows' losses, times their weights where the minibatch has any.

        Args:
            batch: B rows; with labels, but for a loss that is called with the minibatch. Such a loss uses weights itself.
            drop: What to do with rows that have a label out of range; it may raise.

        Returns:
            ``(B,)`` losses, and which rows have one: not those that were dropped, and not those of which the loss ignores
            every label.

        Raises:
            UserCodeError: The network or the loss raised, or returned something that does not fit.
        """
        if self._whole is not None:
            whole = [self._of_one(batch.rows(slice(i, i + 1))) for i in range(len(batch))]
            return np.array(whole, np.float64), np.ones(len(batch), np.bool_)
        found = targets_of(self._call, self._objective, batch, drop)
        total, there = torch.zeros(len(batch), dtype=torch.float64), torch.zeros(len(batch), dtype=torch.bool)
        if found.keys is not None and self._objective.together:
            parts = [(1.0, *self._of_all(found, len(batch)))]
        else:
            parts = [
                (self._objective.weight(key), *self._of_output(key, target, len(batch)))
                for key, target in found.targets.items()
                if self._objective.weight(key)
            ]
        for factor, values, own in parts:
            total[own] += factor * values[own]
            there |= own
        if batch.weight is not None:
            total *= batch.weight
        return total.numpy(), there.numpy()

    def _of_one(self, batch: Batch) -> float:
        with user_code("loss", features=batch.features):
            return float(scalar(self._whole(self._network, moved(batch, self._device))))

    def _of_output(self, key: Key, target: Target, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B,)`` the mean over what each row has of one output, and which rows have anything."""
        criterion, (output, label) = self._objective.criterion(key), target[:2]
        each, part = of_rows(criterion.mean), "loss" if key is None else f"loss {key!r}"
        values = torch.zeros(rows, dtype=torch.float64)
        if each is None or _many_classes(criterion.mean, label):
            own = torch.zeros(rows, dtype=torch.bool)
            for i, start, stop in _runs(target, rows):
                with user_code(part, output=output[start:stop], label=label[start:stop]):
                    values[i] = float(scalar(criterion.mean(output[start:stop], label[start:stop])))
                own[i] = True
            return values, own
        if not len(label):
            return values, torch.zeros(rows, dtype=torch.bool)
        with user_code(part, output=output, label=label):
            losses = each(output, label)
        if not losses.dim() or len(losses) != len(label):
            text = f"TypeError: the {part} with reduction='none' must return a loss for each of {len(label)} rows, "
            text += f"received {tuple(losses.shape)}"
            raise UserCodeError(text)
        losses = losses.flatten(1).mean(1) if losses.dim() > 1 else losses
        weights = criterion.weights(label, None)
        weights = torch.ones(len(label)) if weights is None else weights
        row = torch.arange(rows) if target.row is None else target.row
        shares = torch.zeros(rows, dtype=torch.float64).index_add(0, row, weights.double())
        values = values.index_add(0, row, losses.double())
        return torch.where(shares > 0, values / shares, 0.0), shares > 0

    def _of_all(self, found: Targets, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B,)`` the loss of all outputs of each row together, and which rows have anything."""
        values, own = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.bool)
        function = self._objective.criterion(None).mean
        bounds = [{row: (a, b) for row, a, b in _runs(target, rows)} for target in found.targets.values()]
        for row in range(rows):
            cuts = [slice(*of.get(row, (0, 0))) for of in bounds]
            if all(cut.stop == 0 for cut in cuts):
                continue
            targets = list(zip(found.targets.values(), cuts, strict=True))
            outputs = formed(found.keys, [target.output[cut] for target, cut in targets])
            labels = formed(found.keys, [target.label[cut] for target, cut in targets])
            with user_code("loss", output=outputs, label=labels):
                values[row] = float(scalar(function(outputs, labels)))
            own[row] = True
        return values, own


def _many_classes(loss: Any, label: torch.Tensor) -> bool:
    """Whether a row has several classes, whose weights in the mean only the loss itself knows."""
    return isinstance(loss, torch.nn.CrossEntropyLoss | torch.nn.NLLLoss) and (
        label.dtype == torch.int64 and label.dim() != 1
    )


def _runs(target: Target, rows: int) -> Iterator[tuple[int, int, int]]:
    """Each row that has anything, with where that begins and ends among the N."""
    if target.row is None:
        yield from ((row, row, row + 1) for row in range(rows))
        return
    counts = torch.bincount(target.row, minlength=rows).tolist()
    start = 0
    for row, count in enumerate(counts):
        if count:
            yield row, start, start + count
        start += count
