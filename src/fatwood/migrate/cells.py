"""Recurrent layers that torch has not: an LSTM of any functions, with peepholes, and a plain recurrence of any function.

Both take ``[rows, steps, features]`` and a state, and give the outputs of all steps and the last state, as torch's with ``batch_first``.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["GatedLSTM", "SimpleRecurrence"]


class GatedLSTM(nn.Module):
    """An LSTM, by Graves' formulas.

    ::

        candidate = activation(x W + h R + b)                   blocks of W, R, b: candidate, forget, output, input
        forget    = gate(x W + h R + b + p0 * cell before)
        input     = gate(x W + h R + b + p2 * cell before)
        cell      = forget * cell before + input * candidate
        output    = gate(x W + h R + b + p1 * cell)
        h         = output * activation(cell)

    Args:
        inputs: Features of a step.
        units: Of the layer.
        activation: Of candidate and cell.
        gate: Of the gates.
        peepholes: Whether the gates see the cell (p0, p1, p2).
    """

    def __init__(
        self, inputs: int, units: int, activation: nn.Module, gate: nn.Module, *, peepholes: bool = False
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.units = units
        self.activation = activation
        self.gate = gate
        self.peepholes = peepholes
        self.input = nn.Linear(inputs, 4 * units)
        self.recurrent = nn.Linear(units, 4 * units, bias=False)
        self.peephole = nn.Parameter(torch.zeros(3, units)) if peepholes else None

    def forward(
        self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """The outputs of all steps, and the last state.

        Args:
            x: ``[rows, steps, inputs]``.
            state: Output and cell of the step before, ``[rows, units]`` each; zeros where there is none.
        """
        zeros = x.new_zeros(x.shape[0], self.units)
        h, cell = (zeros, zeros) if state is None else state
        peephole = zeros.new_zeros(3, 1) if self.peephole is None else self.peephole
        outputs = []
        for driven in self.input(x).unbind(1):
            candidate, forget, output, enter = (driven + self.recurrent(h)).chunk(4, -1)
            kept = self.gate(forget + peephole[0] * cell) * cell
            cell = kept + self.gate(enter + peephole[2] * cell) * self.activation(candidate)
            h = self.gate(output + peephole[1] * cell) * self.activation(cell)
            outputs.append(h)
        return torch.stack(outputs, 1), (h, cell)


class SimpleRecurrence(nn.Module):
    """``h = activation(x W + h R + b)``.

    Args:
        inputs: Features of a step.
        units: Of the layer.
        activation: Any function of ``[rows, units]``.
        bias: Whether there is a b.
    """

    def __init__(self, inputs: int, units: int, activation: nn.Module, *, bias: bool = True) -> None:
        super().__init__()
        self.inputs = inputs
        self.units = units
        self.activation = activation
        self.input = nn.Linear(inputs, units, bias=bias)
        self.recurrent = nn.Linear(units, units, bias=False)
        self.bias = bias

    def forward(
        self, x: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs of all steps, and the last.

        Args:
            x: ``[rows, steps, inputs]``.
            state: The output of the step before, ``[rows, units]``; zeros where there is none.
        """
        h = x.new_zeros(x.shape[0], self.units) if state is None else state
        outputs = []
        for driven in self.input(x).unbind(1):
            h = self.activation(driven + self.recurrent(h))
            outputs.append(h)
        return torch.stack(outputs, 1), h
