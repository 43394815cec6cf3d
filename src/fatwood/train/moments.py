"""The tensors that an optimizer keeps for each parameter, as one vector: what parameter averaging averages, too."""

from __future__ import annotations

import copy

import torch

from fatwood.codec.vectors import Vector, as_tensor
from fatwood.train.recipe import OptimizerFactory, in_order, made_optimizer

__all__ = ["Moments"]


class Moments:
    """An optimizer's float tensors, those of one element (Adam's step count) included.

    What an optimizer keeps comes with its first step, and a worker without rows has made none; so the names and shapes
    are found with a copy that makes one step with gradients of zero. Numbers that are no tensors stay each worker's own.

    Args:
        factory: Made the optimizer.
        optimizer: Of a network.
        network: Copied once, for a moment.
    """

    def __init__(
        self, factory: OptimizerFactory, optimizer: torch.optim.Optimizer, network: torch.nn.Module
    ) -> None:
        self._optimizer = optimizer
        scratch = made_optimizer(factory, copy.deepcopy(network))
        for parameter in in_order(scratch):
            parameter.grad = torch.zeros_like(parameter)
        scratch.step()
        self._first = [dict(scratch.state.get(parameter, {})) for parameter in in_order(scratch)]
        self._names = [
            sorted(
                name for name, value in first.items() if torch.is_tensor(value) and value.is_floating_point()
            )
            for first in self._first
        ]
        self.size = sum(
            first[name].numel()
            for first, names in zip(self._first, self._names, strict=True)
            for name in names
        )
        """``m``: how many numbers they are."""

    def read(self, into: Vector) -> None:
        """Copy all values.

        Args:
            into: ``(m,)``; zeros for tensors that are not there yet.
        """
        target, start = as_tensor(into), 0
        for parameter, first, names in zip(in_order(self._optimizer), self._first, self._names, strict=True):
            own = self._optimizer.state.get(parameter, {})
            for name in names:
                part = target[start : start + first[name].numel()]
                value = own.get(name)
                part.zero_() if value is None else part.copy_(value.reshape(-1))
                start += len(part)

    def write(self, values: Vector) -> None:
        """Copy values back; what is not there yet is made.

        Args:
            values: ``(m,)``
        """
        source, start = as_tensor(values), 0
        for parameter, first, names in zip(in_order(self._optimizer), self._first, self._names, strict=True):
            own = self._optimizer.state[parameter]
            for name, value in first.items():
                own.setdefault(name, value.clone() if torch.is_tensor(value) else value)
            for name in names:
                if own[name] is None:
                    own[name] = torch.zeros_like(first[name])
                part = source[start : start + first[name].numel()]
                own[name].copy_(part.view(own[name].shape))
                start += len(part)
