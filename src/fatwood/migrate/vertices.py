"""Vertices of a graph that are no layers."""

from __future__ import annotations

import torch
from torch import nn

from fatwood.migrate.configuration import VertexConf
from fatwood.migrate.fields import Fields, refused
from fatwood.migrate.preprocessors import preprocessor_module
from fatwood.migrate.step_vertices import DuplicateToSteps, LastStepOf, ReverseSteps

__all__ = [
    "ElementWise",
    "L2Distance",
    "L2Normalize",
    "Merge",
    "Scale",
    "Shift",
    "StackRows",
    "Subset",
    "UnstackRows",
    "vertex_module",
]


class Merge(nn.Module):
    """All inputs side by side.

    Args:
        axis: Along which; 1 is that of the features.
    """

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """One tensor.

        Args:
            inputs: Equal but for the axis.
        """
        return torch.cat(inputs, self.axis)


class ElementWise(nn.Module):
    """All inputs element by element.

    Args:
        op: ``Add``, ``Subtract``, ``Product``, ``Average`` or ``Max``.
    """

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """One tensor.

        Args:
            inputs: That broadcast; two of them for ``Subtract``.
        """
        if self.op == "Subtract":
            first, second = inputs
            return first - second
        result = inputs[0]
        for other in inputs[1:]:
            if self.op == "Product":
                result = result * other
            elif self.op == "Max":
                result = torch.maximum(result, other)
            else:
                result = result + other
        return result / len(inputs) if self.op == "Average" else result

    def extra_repr(self) -> str:
        """Its operation."""
        return self.op


class Subset(nn.Module):
    """Some features.

    Args:
        first: The first of them.
        last: The last of them, which is in it.
    """

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first = first
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[rows, last - first + 1, ...]``.

        Args:
            x: ``[rows, features, ...]``.
        """
        return x[:, self.first : self.last + 1]

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"first={self.first}, last={self.last}"


class StackRows(nn.Module):
    """All inputs' rows below each other; shorter sequences are filled up with zeros."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """``[all rows, ...]``.

        Args:
            inputs: Of equal features.
        """
        if inputs[0].ndim != 3:
            return torch.cat(inputs)
        longest = max(x.shape[2] for x in inputs)
        return torch.cat([nn.functional.pad(x, (0, longest - x.shape[2])) for x in inputs])


class UnstackRows(nn.Module):
    """One of equal shares of the rows.

    Args:
        index: Which share.
        shares: How many there are.
    """

    def __init__(self, index: int, shares: int) -> None:
        super().__init__()
        self.index = index
        self.shares = shares

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[rows / shares, ...]``.

        Args:
            x: ``[rows, ...]``.
        """
        rows = x.shape[0] // self.shares
        return x[self.index * rows : (self.index + 1) * rows]

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"index={self.index}, shares={self.shares}"


class Scale(nn.Module):
    """Times a number.

    Args:
        factor: The number.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element.

        Args:
            x: Any shape.
        """
        return x * self.factor

    def extra_repr(self) -> str:
        """Its factor."""
        return f"{self.factor}"


class Shift(nn.Module):
    """Plus a number.

    Args:
        amount: The number.
    """

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element.

        Args:
            x: Any shape.
        """
        return x + self.amount

    def extra_repr(self) -> str:
        """Its amount."""
        return f"{self.amount}"


class L2Distance(nn.Module):
    """The Euclidean distance of two inputs, row by row."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """``[rows, 1]``.

        Args:
            first: ``[rows, ...]``.
            second: Likewise.
        """
        distance: torch.Tensor = torch.linalg.vector_norm((first - second).flatten(1), dim=1, keepdim=True)
        return distance


class L2Normalize(nn.Module):
    """An input by its Euclidean norm.

    Args:
        axes: Of the norm; None for all but the rows.
        eps: The least norm to divide by.
    """

    def __init__(self, axes: tuple[int, ...] | None = None, eps: float = 1e-8) -> None:
        super().__init__()
        self.axes = axes
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the same shape.

        Args:
            x: ``[rows, ...]``.
        """
        axes = self.axes or tuple(range(1, x.ndim))
        norm: torch.Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
        return x / norm.clamp(min=self.eps)

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"axes={self.axes}, eps={self.eps}"


_OPS = ("Add", "Subtract", "Product", "Average", "Max")


def vertex_module(conf: VertexConf) -> nn.Module:
    """The module of a vertex that is no layer.

    Args:
        conf: Of the vertex.

    Raises:
        UserError: A vertex or an option that is not known here.
    """
    fields = Fields(conf)
    match conf.kind:
        case "MergeVertex":
            return Merge(fields.whole("mergeAxis", 1, least=1))
        case "ElementWiseVertex":
            return ElementWise(fields.choice("op", _OPS))
        case "SubsetVertex":
            return Subset(fields.whole("from"), fields.whole("to"))
        case "StackVertex":
            return StackRows()
        case "UnstackVertex":
            return UnstackRows(fields.whole("from"), fields.whole("stackSize", least=1))
        case "ScaleVertex":
            return Scale(fields.number("scaleFactor", 1.0))
        case "ShiftVertex":
            return Shift(fields.number("shiftFactor", 0.0))
        case "L2Vertex":
            return L2Distance()
        case "L2NormalizeVertex":
            given = fields.get("dimension") or []
            axes = (
                fields.sizes("dimension", len(given), least=1) if isinstance(given, list) and given else None
            )
            return L2Normalize(axes, fields.number("eps", 1e-8))
        case "LastTimeStepVertex":
            return LastStepOf(str(fields.get("maskArrayInputName") or ""))
        case "DuplicateToTimeSeriesVertex":
            return DuplicateToSteps(str(fields.get("inputName") or ""))
        case "ReverseTimeSeriesVertex":
            return ReverseSteps(str(fields.get("maskArrayInputName") or ""))
        case "PreprocessorVertex":
            if conf.preprocessor is not None:
                return preprocessor_module(conf.name, conf.preprocessor)
    raise refused(conf, "a vertex that can be migrated", conf.kind)
