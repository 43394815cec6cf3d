"""Convolutions of sequences and images.

The flat vector has a convolution's bias before its weight; the weight is outputs by inputs by kernel, rows first, as torch's.
The mode ``Same`` pads as TensorFlow does: an odd pixel goes below and to the right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.dense import function_of, named
from fatwood.migrate.dropout import dropout_of
from fatwood.migrate.fields import Fields
from fatwood.migrate.layouts import images
from fatwood.migrate.parameters import LayerPlan, ParameterSpec, Placement, row

__all__ = [
    "CausalPad",
    "SamePad",
    "convolution",
    "depthwise",
    "mode_of",
    "same_padding",
    "separable",
]

_MODES = ("Truncate", "Strict", "Same", "Causal")


def mode_of(fields: Fields) -> str:
    """The ``ConvolutionMode`` of a layer; ``Strict`` is as ``Truncate``, but for the sizes that it refuses.

    Args:
        fields: Of the layer.

    Raises:
        UserError: Another mode.
    """
    return fields.choice("convolutionMode", _MODES, "Truncate")


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """The padding before and after an axis with which the output has ``ceil(size / stride)`` places.

    Args:
        size: Of the axis.
        kernel: Its places.
        stride: Of the kernel.
        dilation: Of the kernel.
    """
    outputs = -(-size // stride)
    total = max(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return total // 2, total - total // 2


class SamePad(nn.Module):
    """Pads with zeros for the mode ``Same``.

    Args:
        kernel: Places along each axis behind the channels.
        stride: Likewise.
        dilation: Likewise.
    """

    def __init__(self, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.dilation = dilation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The padded input.

        Args:
            x: ``[rows, channels, ...]``.
        """
        amounts: list[int] = []
        for axis, facts in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True), start=2):
            amounts = [*same_padding(x.shape[axis], *facts), *amounts]
        return F.pad(x, amounts)

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"kernel={self.kernel}, stride={self.stride}, dilation={self.dilation}"


class CausalPad(nn.Module):
    """Pads the beginning of a sequence, so that no step sees a later one.

    Args:
        amount: Zeros.
    """

    def __init__(self, amount: int) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The padded input.

        Args:
            x: ``[rows, channels, steps]``.
        """
        return F.pad(x, (self.amount, 0))

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"amount={self.amount}"


def _kernel(conf: LayerConf, axes: int) -> tuple[tuple[int, ...], ...]:
    """Kernel, stride, dilation and padding of a layer."""
    fields = Fields(conf)
    ones, zeros = (1,) * axes, (0,) * axes
    return (
        fields.sizes("kernelSize", axes, least=1),
        fields.sizes("stride", axes, ones, least=1),
        fields.sizes("dilation", axes, ones, least=1),
        fields.sizes("padding", axes, zeros),
    )


def _sizes(conf: LayerConf) -> tuple[int, int, bool]:
    fields = Fields(conf)
    bias = fields.flag("hasBias", default=True)
    return fields.whole("nIn", least=1), fields.whole("nOut", least=1), bias


def _pad(conf: LayerConf, axes: int) -> tuple[nn.Module | None, tuple[int, ...]]:
    """The module before a convolution, and the convolution's own padding."""
    kernel, stride, dilation, padding = _kernel(conf, axes)
    mode = mode_of(Fields(conf))
    if mode == "Causal":
        return CausalPad((kernel[0] - 1) * dilation[0]), (0,) * axes
    if mode != "Same":
        return None, padding
    totals = [(size - 1) * gap for size, gap in zip(kernel, dilation, strict=True)]
    if set(stride) == {1} and all(total % 2 == 0 for total in totals):
        return None, tuple(total // 2 for total in totals)
    return SamePad(kernel, stride, dilation), (0,) * axes


def _around(conf: LayerConf, parts: list[tuple[str, nn.Module | LayerPlan | None]], axes: int) -> LayerPlan:
    """A layer in its layout, behind its dropout and before its activation."""
    return row(
        [
            ("dropout", dropout_of(conf, axes + 1)),
            ("convolution", images(conf, row(parts))),
            ("activation", function_of(conf)),
        ]
    )


def convolution(conf: LayerConf) -> LayerPlan:
    """``ConvolutionLayer`` and ``Convolution1DLayer``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    axes = 1 if "1D" in conf.kind else 2
    (inputs, outputs, bias), (kernel, stride, dilation, _) = _sizes(conf), _kernel(conf, axes)
    pad, padding = _pad(conf, axes)
    make: Callable[..., nn.Module] = nn.Conv1d if axes == 1 else nn.Conv2d
    module = make(inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, bias=bias)
    specs = [ParameterSpec("b", (outputs,))] * bias + [ParameterSpec("W", (outputs, inputs, *kernel), "c")]
    core = LayerPlan(module, tuple(specs), {"W": named("weight"), "b": named("bias")})
    return _around(conf, [("pad", pad), ("convolution", core)], axes)


def _depthwise_module(conf: LayerConf, outputs: int, *, bias: bool) -> LayerPlan:
    """One kernel or more for each channel."""
    inputs = Fields(conf).whole("nIn", least=1)
    kernel, stride, dilation, _ = _kernel(conf, 2)
    pad, padding = _pad(conf, 2)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": inputs, "bias": bias}
    make: Callable[..., nn.Module] = nn.Conv2d
    module = make(inputs, outputs, kernel, **options)
    return row([("pad", pad), ("depthwise", module)])


def _grouped(name: str, axes: tuple[int, int, int, int]) -> Placement:
    """The placement of a weight of channels and multipliers as the grouped weight of torch.

    Args:
        name: Of the tensor.
        axes: Of the array: those of channels, multipliers, kernel height and width.
    """

    def place(array: NDArray[Any]) -> dict[str, NDArray[Any]]:
        moved = np.transpose(array, axes)
        return {name: moved.reshape(-1, 1, *moved.shape[2:])}

    return place


def depthwise(conf: LayerConf) -> LayerPlan:
    """``DepthwiseConvolution2D``, whose weight is kernel by channels by multipliers.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    inputs, _, bias = _sizes(conf)
    multiplier = Fields(conf).whole("depthMultiplier", 1, least=1)
    outputs = inputs * multiplier
    plan = _depthwise_module(conf, outputs, bias=bias)
    prefix = "depthwise." if isinstance(plan.module, nn.Sequential) else ""
    kernel = _kernel(conf, 2)[0]
    specs = [ParameterSpec("b", (outputs,))] * bias
    specs.append(ParameterSpec("W", (*kernel, inputs, multiplier), "c"))
    placements = {"W": _grouped(prefix + "weight", (2, 3, 0, 1)), "b": named(prefix + "bias")}
    return _around(conf, [("convolution", LayerPlan(plan.module, tuple(specs), placements))], 2)


def separable(conf: LayerConf) -> LayerPlan:
    """``SeparableConvolution2D``: a depthwise convolution, then one of single pixels.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    inputs, outputs, bias = _sizes(conf)
    multiplier = Fields(conf).whole("depthMultiplier", 1, least=1)
    between = inputs * multiplier
    plan = _depthwise_module(conf, between, bias=False)
    prefix = "depthwise.depthwise." if isinstance(plan.module, nn.Sequential) else "depthwise."
    module = nn.Sequential()
    module.add_module("depthwise", plan.module)
    module.add_module("pointwise", nn.Conv2d(between, outputs, 1, bias=bias))
    kernel = _kernel(conf, 2)[0]
    specs = [ParameterSpec("b", (outputs,))] * bias
    specs.append(ParameterSpec("W", (multiplier, inputs, *kernel), "c"))
    specs.append(ParameterSpec("pW", (outputs, between, 1, 1), "c"))
    placements: dict[str, Placement] = {
        "W": _grouped(prefix + "weight", (1, 0, 2, 3)),
        "pW": named("pointwise.weight"),
        "b": named("pointwise.bias"),
    }
    return _around(conf, [("convolution", LayerPlan(module, tuple(specs), placements))], 2)
