"""One minibatch through the user's code: forward, loss, backward; and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.data import SKIP_HINT, Batch, OnBadRow
from fatwood.errors import DataError
from fatwood.train.criterion import takes_batch
from fatwood.train.forward import Caller, user_code
from fatwood.train.losses import AnyLoss
from fatwood.train.objective import Forward, Objective, forward_and_loss, scalar
from fatwood.train.placing import moved

__all__ = ["Step", "Trained"]


class Trained(NamedTuple):
    """What came of some rows."""

    rows: int = 0
    share: float | None = None
    """What they weigh, for example their real steps; None where each row weighs 1."""
    loss_sum: float = 0.0
    """Sum of (mean loss x weight) over the minibatches."""
    correct: float | None = None
    """Weight of the rows (or steps) whose class has the largest output; None where labels are no classes or there are several."""

    @property
    def weight(self) -> float:
        """What the rows weigh."""
        return float(self.rows) if self.share is None else self.share

    def plus(self, other: Trained) -> Trained:
        """Both together; where one is empty, the other."""
        if not other.rows:
            return self
        if not self.rows:
            return other
        alike = self.share is None and other.share is None
        return Trained(
            self.rows + other.rows,
            None if alike else self.weight + other.weight,
            self.loss_sum + other.loss_sum,
            None if self.correct is None or other.correct is None else self.correct + other.correct,
        )


class Step:
    """Runs minibatches through one network and loss.

    Args:
        network: Its parameters collect the gradients; compiled or not.
        loss: ``loss(output, label)`` or ``loss(network, batch)``, a scalar mean; or one for each of several outputs.
        on_bad_row: What a label outside the network's classes means.
        weighted: Whether minibatches have sample weights.
        autocast: Makes the context of forward and loss, for mixed precision.
        device: Where minibatches are brought; None leaves them in the host's memory.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss: AnyLoss,
        on_bad_row: OnBadRow,
        *,
        weighted: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        device: torch.device | None = None,
    ) -> None:
        self._network = network
        self._call = Caller(network)
        self._objective = Objective(loss, weighted=weighted)
        self._whole: Any = loss if takes_batch(loss) else None
        self._skip = on_bad_row == "skip"
        self._autocast = autocast
        self._device = device

    def backward(
        self, batch: Batch, scaled: Callable[[torch.Tensor, float], torch.Tensor] = lambda loss, _: loss
    ) -> Trained:
        """Forward and backward of one minibatch.

        Args:
            batch: Rows.
            scaled: Given the mean loss and the minibatch's weight, makes what is differentiated.

        Returns:
            What was trained; nothing when no row could be used or all weigh 0.

        Raises:
            UserCodeError: The network or the loss raised.
            DataError: A label is out of range and ``on_bad_row="error"``.
        """
        loss, trained = self._run(batch)
        if trained.rows and trained.weight:
            with user_code("backward pass", features=batch.features):
                scaled(loss, trained.weight).backward()  # type: ignore[no-untyped-call]
        return trained

    def measure(self, batch: Batch) -> Trained:
        """Forward of one minibatch without gradients, in evaluation mode."""
        training = self._network.training
        self._network.eval()
        try:
            with torch.no_grad():
                return self._run(batch)[1]
        finally:
            self._network.train(training)

    def _run(self, batch: Batch) -> tuple[torch.Tensor, Trained]:
        batch = moved(batch, self._device)
        if self._whole is not None:
            with self._autocast(), user_code("loss", features=batch.features):
                loss = scalar(self._whole(self._network, batch))
            share = None if batch.weight is None else float(batch.weight.sum(dtype=torch.float64))
            return loss, _trained(len(batch), share, loss, None)
        with self._autocast():
            result = forward_and_loss(self._call, self._objective, batch, self._drop)
        return result.loss, _trained(result.rows, result.share, result.loss, _correct(result))

    def _drop(self, _row_ids: NDArray[np.int64], message: str) -> None:
        if not self._skip:
            raise DataError(message, hint=SKIP_HINT)


def _trained(rows: int, share: float | None, loss: torch.Tensor, correct: float | None) -> Trained:
    weight = rows if share is None else share
    return Trained(rows, share, float(loss.detach()) * weight if weight else 0.0, correct)


def _correct(result: Forward) -> float | None:
    """The weight of what is classified correctly, where there is a single output and its label is a class."""
    target = result.targets.get(None)
    if target is None or not target.classes:
        return None
    hits = (target.output.argmax(1) == target.label).float()
    return float((hits if target.weights is None else hits * target.weights).sum(dtype=torch.float64))
