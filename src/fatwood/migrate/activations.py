"""The original's activation functions as modules; formulas are those of its operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.fields import refused, simple_name

__all__ = [
    "BoundedReLU",
    "Cube",
    "HardSigmoid",
    "PreciseGELU",
    "QuickGELU",
    "RationalTanh",
    "RectifiedTanh",
    "activation_of",
]


class Cube(nn.Module):
    """The third power."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x ** 3``, element by element.

        Args:
            x: Any shape.
        """
        return x * x * x


class HardSigmoid(nn.Module):
    """``0.2 x + 0.5`` between 0 and 1; torch's has a slope of one sixth."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element.

        Args:
            x: Any shape.
        """
        return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)


class RationalTanh(nn.Module):
    """``1.7159 tanh(2 x / 3)`` with a rational approximation of tanh."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element.

        Args:
            x: Any shape.
        """
        y = (2.0 / 3.0) * x
        return 1.7159 * torch.sign(y) * (1 - 1 / (1 + y.abs() + y**2 + 1.41645 * y**4))


class RectifiedTanh(nn.Module):
    """``max(0, tanh(x))``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element.

        Args:
            x: Any shape.
        """
        return torch.relu(torch.tanh(x))


class QuickGELU(nn.Module):
    """``x sigmoid(1.702 x)``, the original's GELU unless ``precise`` is set."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element.

        Args:
            x: Any shape.
        """
        return x * torch.sigmoid(1.702 * x)


class PreciseGELU(nn.Module):
    """The original's GELU with ``precise``: the tanh form, in which it takes the constant 0.044715 to the third power, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element.

        Args:
            x: Any shape.
        """
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + (0.044715 * x) ** 3)))


class BoundedReLU(nn.Module):
    """A ReLU with a threshold, a slope below it, and a maximum.

    Args:
        threshold: From here on the output is the input.
        slope: Below, the output is ``slope * (x - threshold)``.
        maximum: Of the output; None for no bound.
    """

    def __init__(self, threshold: float = 0.0, slope: float = 0.0, maximum: float | None = None) -> None:
        super().__init__()
        self.threshold = threshold
        self.slope = slope
        self.maximum = maximum

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element.

        Args:
            x: Any shape.
        """
        output = torch.where(x >= self.threshold, x, self.slope * (x - self.threshold))
        return output if self.maximum is None else output.clamp(max=self.maximum)

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"threshold={self.threshold}, slope={self.slope}, maximum={self.maximum}"


def _relu(fields: Mapping[str, Any]) -> nn.Module:
    threshold = float(fields.get("threshold") or 0.0)
    slope = float(fields.get("negativeSlope") or 0.0)
    maximum = fields.get("max")
    if threshold == 0.0 and maximum is None:
        return nn.LeakyReLU(slope) if slope else nn.ReLU()
    return BoundedReLU(threshold, slope, None if maximum is None else float(maximum))


_MAKERS: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]] = MappingProxyType(
    {
        "cube": lambda _: Cube(),
        "elu": lambda fields: nn.ELU(float(fields.get("alpha", 1.0))),
        "gelu": lambda fields: PreciseGELU() if fields.get("precise") else QuickGELU(),
        "hardsigmoid": lambda _: HardSigmoid(),
        "hardtanh": lambda _: nn.Hardtanh(),
        "identity": lambda _: nn.Identity(),
        "lrelu": lambda fields: nn.LeakyReLU(float(fields.get("alpha", 0.01))),
        "mish": lambda _: nn.Mish(),
        "rationaltanh": lambda _: RationalTanh(),
        "rectifiedtanh": lambda _: RectifiedTanh(),
        "relu": _relu,
        "relu6": lambda _: nn.ReLU6(),
        "selu": lambda _: nn.SELU(),
        "sigmoid": lambda _: nn.Sigmoid(),
        "softmax": lambda _: nn.Softmax(dim=-1),
        "softplus": lambda _: nn.Softplus(),
        "softsign": lambda _: nn.Softsign(),
        "swish": lambda _: nn.SiLU(),
        "tanh": lambda _: nn.Tanh(),
        "thresholdedrelu": lambda fields: nn.Threshold(float(fields.get("theta", 1.0)), 0.0),
    }
)


def activation_of(conf: LayerConf, field: str = "activationFn") -> nn.Module:
    """The activation function of a layer.

    Args:
        conf: Of the layer.
        field: In which it is, such as ``gateActivationFn``.

    Returns:
        A module for tensors of any shape; ``nn.Identity`` where the layer has none. A softmax is over the last axis.

    Raises:
        UserError: A function that is not known here.
    """
    value = conf.fields.get(field)
    if value is None:
        return nn.Identity()
    name = simple_name(value).removeprefix("Activation").lower()
    if name not in _MAKERS:
        raise refused(conf, f"one of {', '.join(_MAKERS)} as {field}", simple_name(value) or value)
    try:
        return _MAKERS[name](value)
    except (TypeError, ValueError) as error:
        raise refused(conf, f"numbers as the arguments of {field}", value) from error
