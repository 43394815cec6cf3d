"""Pooling over windows and over everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.context import Context, Contextual, mask_for
from fatwood.migrate.convolution import mode_of, same_padding
from fatwood.migrate.fields import Fields, refused
from fatwood.migrate.layouts import images
from fatwood.migrate.parameters import LayerPlan

__all__ = ["GlobalPooling", "WindowPooling", "global_pooling", "subsampling"]


class WindowPooling(nn.Module):
    """Pools windows where torch has no such layer: padding of the mode ``Same``, a p-norm, averages with dilation.

    Args:
        kind: ``MAX``, ``AVG`` or ``PNORM``, which is the p-th root of the sum of p-th powers.
        kernel: Places along each axis behind the channels.
        stride: Likewise.
        padding: Places before and after each axis; None for the mode ``Same``.
        dilation: As `kernel`.
        count_padding: Whether an average's divisor is that of a whole window at the edges, too.
        power: Of the p-norm.
    """

    def __init__(
        self,
        kind: str,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...] | None,
        dilation: tuple[int, ...],
        *,
        count_padding: bool = False,
        power: int = 2,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.kernel = kernel
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.count_padding = count_padding
        self.power = power

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One number for each window.

        Args:
            x: ``[rows, channels, ...]``.
        """
        over = tuple(range(-len(self.kernel), 0))
        if self.kind == "MAX":
            return self._windows(x, float("-inf")).amax(over)
        if self.kind == "PNORM":
            return self._windows(x.abs() ** self.power, 0.0).sum(over) ** (1 / self.power)
        total = self._windows(x, 0.0).sum(over)
        if self.count_padding:
            return total / torch.Size(self.kernel).numel()
        return total / self._windows(torch.ones_like(x[:1, :1]), 0.0).sum(over)

    def _windows(self, x: torch.Tensor, value: float) -> torch.Tensor:
        """``[rows, channels, places of the output ..., places of the window ...]``."""
        amounts: list[int] = []
        for i, facts in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            sides = same_padding(x.shape[2 + i], *facts) if self.padding is None else (self.padding[i],) * 2
            amounts = [*sides, *amounts]
        x = F.pad(x, amounts, value=value)
        for i, (size, step, gap) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + i, (size - 1) * gap + 1, step)[..., ::gap]
        return x

    def extra_repr(self) -> str:
        """Its arguments."""
        padding = "same" if self.padding is None else self.padding
        return f"{self.kind}, kernel={self.kernel}, stride={self.stride}, padding={padding}, dilation={self.dilation}"


def subsampling(conf: LayerConf) -> LayerPlan:
    """``SubsamplingLayer`` and ``Subsampling1DLayer``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    fields = Fields(conf)
    axes = 1 if "1D" in conf.kind else 2
    kind = fields.choice("poolingType", ("MAX", "AVG", "PNORM"), "MAX")
    kernel = fields.sizes("kernelSize", axes, least=1)
    stride = fields.sizes("stride", axes, (1,) * axes, least=1)
    dilation = fields.sizes("dilation", axes, (1,) * axes, least=1)
    padding = fields.sizes("padding", axes, (0,) * axes)
    mode = mode_of(fields)
    if mode == "Causal":
        raise refused(conf, "Truncate, Strict or Same as convolutionMode", mode)
    count = fields.flag("avgPoolIncludePadInDivisor", default=True)
    plain = mode != "Same" and all(2 * pad <= size for pad, size in zip(padding, kernel, strict=True))
    module: nn.Module
    size, step, edge, gap = (_one(sizes) for sizes in (kernel, stride, padding, dilation))
    make: Callable[..., nn.Module]
    if plain and kind == "MAX":
        make = nn.MaxPool1d if axes == 1 else nn.MaxPool2d
        module = make(size, step, edge, gap)
    elif plain and kind == "AVG" and set(dilation) == {1}:
        make = nn.AvgPool1d if axes == 1 else nn.AvgPool2d
        module = make(size, step, edge, count_include_pad=count)
    else:
        around = None if mode == "Same" else padding
        power = fields.whole("pnorm", 2, least=1) if kind == "PNORM" else 2
        module = WindowPooling(kind, kernel, stride, around, dilation, count_padding=count, power=power)
    return images(conf, LayerPlan(module))


def _one(sizes: tuple[int, ...]) -> Any:  # an int or a pair, as torch's layers of one or two axes take
    return sizes[0] if len(sizes) == 1 else sizes


class GlobalPooling(Contextual):
    """Pools all steps or pixels; of sequences, the real steps only where there is a mask.

    Args:
        kind: ``MAX``, ``AVG``, ``SUM`` or ``PNORM``.
        axes: Over which; None for all behind the features.
        power: Of the p-norm.
        collapse: Whether the pooled axes go; else they have one place.
    """

    def __init__(
        self, kind: str, axes: tuple[int, ...] | None = None, *, power: int = 2, collapse: bool = True
    ) -> None:
        super().__init__()
        self.kind = kind
        self.axes = axes
        self.power = power
        self.collapse = collapse

    def mask_after(self, context: Context) -> torch.Tensor | None:  # noqa: ARG002
        """None: there are no steps any more.

        Args:
            context: That it was called with.
        """
        return None

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """The pooled features.

        Args:
            x: ``[rows, features, steps]`` or ``[rows, channels, height, width]``.
            context: Of the network's call.

        Returns:
            ``[rows, features]``; with all axes where they are not collapsed.
        """
        over = self.axes or tuple(range(2, x.ndim))
        real = None
        if x.ndim == 3 and len(over) == 1:
            mask = mask_for(context, x.shape[0], x.shape[over[0]])
            real = None if mask is None else mask.to(x.dtype).unsqueeze(3 - over[0])
        pooled = self._pool(x, over, real)
        if self.collapse:
            return pooled
        for axis in sorted(over):
            pooled = pooled.unsqueeze(axis)
        return pooled

    def _pool(self, x: torch.Tensor, over: tuple[int, ...], real: torch.Tensor | None) -> torch.Tensor:
        if self.kind == "MAX":
            return (x if real is None else x.masked_fill(real == 0, float("-inf"))).amax(over)
        x = x if real is None else x * real
        if self.kind == "SUM":
            return x.sum(over)
        if self.kind == "AVG":
            return x.mean(over) if real is None else x.sum(over) / real.sum(over)
        return (x.abs() ** self.power).sum(over) ** (1 / self.power)

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"{self.kind}, axes={self.axes}, power={self.power}, collapse={self.collapse}"


def global_pooling(conf: LayerConf) -> LayerPlan:
    """``GlobalPoolingLayer``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    fields = Fields(conf)
    given = fields.get("poolingDimensions")
    axes = None
    if given:
        if not isinstance(given, list):
            raise refused(conf, "a list as poolingDimensions", given)
        axes = fields.sizes("poolingDimensions", len(given), least=1)
    module = GlobalPooling(
        fields.choice("poolingType", ("MAX", "AVG", "SUM", "PNORM")),
        axes,
        power=fields.whole("pnorm", 2, least=1) if fields.get("poolingType") == "PNORM" else 2,
        collapse=fields.flag("collapseDimensions", default=True),
    )
    return LayerPlan(module)
