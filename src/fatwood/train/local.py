"""A worker's own side of training: its network, optimizer and schedule, and one optimizer step after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from fatwood.codec import FlatParameters
from fatwood.data import Batch, OnBadRow
from fatwood.train.forward import user_code
from fatwood.train.losses import AnyLoss, losses_of
from fatwood.train.recipe import Recipe, made_optimizer
from fatwood.train.records import EpochRecord
from fatwood.train.step import Step, Trained

__all__ = ["LocalTrainer"]

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class LocalTrainer:
    """Makes gradients of minibatches, and steps.

    Args:
        network: In training mode; its parameters are changed.
        loss: A scalar mean, or one for each of several outputs.
        recipe: How.
        on_bad_row: What a label outside the network's classes means.
        weighted: Whether minibatches have sample weights.
        device: Where network, loss and minibatches are brought; None for the CPU.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss: AnyLoss,
        recipe: Recipe,
        *,
        on_bad_row: OnBadRow,
        weighted: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.network = network
        if device is not None:
            _bring(network, loss, device)
        self.flat = FlatParameters(network, device)
        self._recipe = recipe
        with user_code("optimizer"):
            self.optimizer = made_optimizer(recipe.optimizer, network)
            self._scheduler = None if recipe.scheduler is None else recipe.scheduler(self.optimizer)
        # a worker without rows follows the schedule and makes no step; torch would warn of the wrong order
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        self._scheduled = 0
        self._device = "cpu" if device is None else device.type
        self._scaler = torch.amp.GradScaler(self._device) if recipe.precision == "float16" else None
        callee: Any = network
        if recipe.compile is not False:
            arguments = recipe.compile if isinstance(recipe.compile, Mapping) else {}
            with user_code("compilation"):
                callee = torch.compile(network, **arguments)
        self.step = Step(callee, loss, on_bad_row, weighted=weighted, autocast=self._autocast, device=device)

    def gradient(self, batches: Sequence[Batch]) -> Trained:
        """Put the mean gradient of some minibatches into the parameters.

        Args:
            batches: For one optimizer step.

        Returns:
            What was trained. With float16 a gradient that overflowed is left out: its weight is 0.
        """
        self.optimizer.zero_grad(set_to_none=True)
        several, total = len(batches) > 1, Trained()
        for batch in batches:
            total = total.plus(self.step.backward(batch, partial(self._scaled, several)))
        if several and total.weight:
            self._divide(total.weight)
        if self._scaler is not None and total.weight and not self._unscaled():
            return total._replace(share=0.0, loss_sum=0.0)
        return total

    def descend(self) -> None:
        """One optimizer step with the gradients that the parameters have, clipped."""
        parameters, recipe = [p for p in self.network.parameters() if p.grad is not None], self._recipe
        if recipe.clip_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, recipe.clip_value)
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        with user_code("optimizer"):
            self.optimizer.step()

    def follow_schedule(self, steps: int) -> None:
        """Bring the schedule to a number of optimizer steps; it never goes back.

        Args:
            steps: Over the model's life.
        """
        while self._scheduled < steps:
            self._scheduled += 1
            if self._scheduler is not None and self._recipe.schedule == "step":
                with user_code("scheduler"):
                    self._scheduler.step()

    def end_epoch(self, record: EpochRecord) -> None:
        """Step a schedule of epochs."""
        if self._scheduler is None or self._recipe.schedule != "epoch":
            return
        with user_code("scheduler"):
            if isinstance(self._scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                self._scheduler.step(record.loss if record.validation is None else record.validation.loss)
            else:
                self._scheduler.step()

    @property
    def learning_rate(self) -> float:
        """Of the optimizer's first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def scheduled(self) -> int:
        """Optimizer steps that the schedule has counted."""
        return self._scheduled

    def state(self) -> dict[str, Any]:
        """Optimizer, schedule and loss scale."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {} if self._scheduler is None else _plain(self._scheduler.state_dict()),
            "scaler": {} if self._scaler is None else self._scaler.state_dict(),
            "scheduled": self._scheduled,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state that :meth:`state` gave."""
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        if self._scheduler is not None:
            self._scheduler.load_state_dict(dict(state["scheduler"]))
        if self._scaler is not None:
            self._scaler.load_state_dict(dict(state["scaler"]))
        self._scheduled = int(state["scheduled"])

    def _scaled(self, several: bool, loss: torch.Tensor, weight: float) -> torch.Tensor:  # noqa: FBT001
        loss = loss * weight if several else loss
        return loss if self._scaler is None else self._scaler.scale(loss)

    def _divide(self, weight: float) -> None:
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad /= weight

    def _unscaled(self) -> bool:
        """Whether the gradients are finite without the loss scale, which is then adapted."""
        assert self._scaler is not None  # noqa: S101
        self._scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self.network.parameters() if p.grad is not None]
        finite = all(bool(torch.isfinite(grad.sum())) for grad in grads)
        self._scaler.update()
        return finite

    def _autocast(self) -> AbstractContextManager[Any]:
        kind = _TYPES.get(self._recipe.precision)
        return nullcontext() if kind is None else torch.autocast(self._device, dtype=kind)


def _bring(network: torch.nn.Module, loss: AnyLoss, device: torch.device) -> None:
    """The network, and what of the loss has tensors (class weights)."""
    network.to(device)
    losses = losses_of(loss)
    for part in [loss] if losses is None else losses.parts.values():
        if isinstance(part, torch.nn.Module):
            part.to(device)


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's state without what cannot be written, such as functions; those come with the scheduler itself."""
    return {name: value for name, value in state.items() if _writable(value)}


def _writable(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and _writable(entry) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return all(_writable(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str | torch.Tensor)
