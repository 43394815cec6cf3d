"""From outputs to the predicted class: the largest, after costs, or a threshold.

Shapes: B rows of a batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fatwood.errors import DataError, OptionError, UserError
from fatwood.evaluation.cells import checked_names

__all__ = ["Decision", "require_classes"]

_ROUNDING = 1e-3  # a softmax in half precision


@dataclass(frozen=True)
class Decision:
    """The options of :class:`Classification`, checked, and what follows from them for a batch.

    Raises:
        OptionError: One that cannot be.
    """

    top_n: int = 1
    names: Sequence[str] | None = None
    cost: Any = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        title = "Classification"
        object.__setattr__(self, "names", checked_names(title, self.names))
        object.__setattr__(self, "cost", _checked_cost(self.cost))
        if type(self.top_n) is not int or self.top_n < 1:
            message = f"{title}: expected top_n of at least 1, received {self.top_n!r}"
            hint = "top_n=5 counts a row as right when its class is among the five largest outputs"
            raise OptionError(message, hint=hint)
        threshold = self.threshold
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if threshold is not None and not (number and math.isfinite(threshold)):
            message = f"{title}: expected a number as threshold, received {threshold!r}"
            raise OptionError(
                message, hint="threshold=0.3 predicts class 1 where its probability is above 0.3"
            )
        if threshold is not None and self.cost is not None:
            message = f"{title}: expected threshold or cost, received both"
            raise OptionError(message, hint="cost=[t, 1 - t] moves the threshold of two classes to t")

    def classes(self) -> int | None:
        """How many classes the options are made for; None for any number."""
        if self.names is not None:
            return len(self.names)
        if self.cost is not None:
            return len(self.cost)
        return None if self.threshold is None else 2

    def require(self, classes: int) -> None:
        """Check them against the number of classes.

        Raises:
            UserError: They do not fit.
        """
        for name, part in (("names", self.names), ("cost", self.cost)):
            if part is not None and len(part) != classes:
                message = f"Classification: expected {name} of {classes} classes, received {len(part)}"
                raise UserError(message, hint="the network's last layer has one output per class")
        if self.threshold is not None and classes != 2:
            message = f"Classification: expected two classes with threshold=, received {classes}"
            raise UserError(message, hint="weigh the classes with cost= where there are others")

    def worth(self, outputs: Tensor) -> Tensor:
        """(B, C) what the predicted class has most of.

        Raises:
            UserError: They must be probabilities, and are not.
        """
        if self.cost is None and self.threshold is None:
            return outputs
        if len(outputs) and not 0 <= float(outputs.min()) <= float(outputs.max()) <= 1 + _ROUNDING:
            message = "Classification: expected probabilities from 0 to 1 with cost= or threshold=, received "
            message += f"outputs from {float(outputs.min()):.6g} to {float(outputs.max()):.6g}"
            raise UserError(
                message, hint='evaluate(..., activation="softmax") turns logits into probabilities'
            )
        if self.cost is None:
            return outputs
        cost = torch.tensor(self.cost, dtype=torch.float64)
        return outputs.double() * cost if cost.ndim == 1 else outputs.double() @ cost

    def predicted(self, worth: Tensor) -> Tensor:
        """(B,) int64 classes; the first of equals."""
        return worth.argmax(dim=1) if self.threshold is None else (worth[:, 1] > self.threshold).long()

    def in_top(self, worth: Tensor, labels: Tensor) -> Tensor:
        """(B,) whether the true class is among the ``top_n`` of most worth; of equals the first comes first."""
        own = worth.gather(1, labels[:, None])
        before = torch.arange(worth.shape[1]) < labels[:, None]
        return ((worth > own) | ((worth == own) & before)).sum(dim=1) < self.top_n

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values, by name."""
        return {"top_n": self.top_n, "names": self.names, "cost": self.cost, "threshold": self.threshold}


def require_classes(outputs: Tensor, labels: Tensor, classes: int | None) -> None:
    """Check a batch.

    Args:
        outputs: (B, C).
        labels: (B,) whole numbers from 0 to C - 1.
        classes: C where it is known.

    Raises:
        UserError: Another shape or type, or NaN in the outputs.
        DataError: A label that is not a class.
    """
    if outputs.ndim != 2 or not outputs.shape[1] or outputs.shape[1] != (classes or outputs.shape[1]):
        wanted = "classes" if classes is None else classes
        message = (
            f"Classification: expected outputs of shape (rows, {wanted}), received {tuple(outputs.shape)}"
        )
        raise UserError(message, hint="the network must return one score per class for every row")
    if labels.shape != outputs.shape[:1] or labels.is_floating_point() or labels.is_complex():
        expected, received = (
            f"int64 labels of shape ({len(outputs)},)",
            f"{labels.dtype} {tuple(labels.shape)}",
        )
        message = f"Classification: expected {expected}, received {received}"
        hint = "pass class numbers, not one-hot vectors; BinaryClassification takes 0/1 per output, Regression numbers"
        raise UserError(message, hint=hint)
    if bool(outputs.isnan().any()):
        row = int(outputs.isnan().any(dim=1).nonzero()[0])
        message = f"Classification: expected numbers as outputs, received NaN in row {row} of a batch"
        raise UserError(
            message, hint="the training diverged (lower the learning rate) or the features hold NaN"
        )
    wrong = ((labels < 0) | (labels >= outputs.shape[1])).nonzero()
    if len(wrong):
        row = int(wrong[0])
        message = (
            f"Classification: row {row} of a batch: expected a label from 0 to {outputs.shape[1] - 1}, "
            f"received {int(labels[row])}"
        )
        raise DataError(message, hint="give the network one output per class, numbered from 0")


def _checked_cost(cost: Any) -> list[Any] | None:
    """(C,) or (C, C) as lists."""
    if cost is None:
        return None
    try:
        found = np.array(cost.detach().cpu().numpy() if isinstance(cost, Tensor) else cost, np.float64)
    except (TypeError, ValueError):
        found = np.full(1, np.nan)
    square = found.ndim == 2 and found.shape[0] == found.shape[1]
    if not found.size or not (found.ndim == 1 or square) or not np.isfinite(found).all():
        message = (
            f"Classification: expected cost of shape (classes,) or (classes, classes), received {cost!r:.200}"
        )
        raise OptionError(message, hint="cost=[1, 5] makes class 1 five times as likely to be predicted")
    numbers: list[Any] = found.tolist()
    return numbers
