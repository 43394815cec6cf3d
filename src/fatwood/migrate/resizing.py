"""What changes the size of an image or a sequence: upsampling, cropping, zeros around it."""

from __future__ import annotations

import torch
from torch import nn

from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.fields import Fields
from fatwood.migrate.layouts import images
from fatwood.migrate.parameters import LayerPlan

__all__ = ["Cropping", "Upsampling", "cropping", "upsampling", "zero_padding"]


class Upsampling(nn.Module):
    """Repeats every step or pixel.

    Args:
        factors: For each axis behind the channels.
    """

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The larger image.

        Args:
            x: ``[rows, channels, ...]``.
        """
        for axis, factor in enumerate(self.factors, start=2):
            x = x.repeat_interleave(factor, axis)
        return x

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"factors={self.factors}"


def upsampling(conf: LayerConf) -> LayerPlan:
    """``Upsampling1D`` and ``Upsampling2D``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    axes = 1 if conf.kind == "Upsampling1D" else 2
    return images(conf, LayerPlan(Upsampling(Fields(conf).sizes("size", axes, least=1))))


class Cropping(nn.Module):
    """Cuts an image's or a sequence's edges.

    Args:
        amounts: Before and after, for each axis behind the channels.
    """

    def __init__(self, amounts: tuple[int, ...]) -> None:
        super().__init__()
        self.amounts = amounts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The inner part.

        Args:
            x: ``[rows, channels, ...]``.
        """
        for axis in range(2, x.ndim):
            before, after = self.amounts[2 * axis - 4 : 2 * axis - 2]
            x = x.narrow(axis, before, x.shape[axis] - before - after)
        return x

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"amounts={self.amounts}"


def _sides(conf: LayerConf, name: str) -> tuple[int, ...]:
    """Amounts before and after each axis, where the JSON may have one number for each axis."""
    axes = 1 if "1D" in conf.kind else 2
    value = conf.fields.get(name)
    if axes == 2 and isinstance(value, list) and len(value) == 2:
        high, wide = Fields(conf).sizes(name, 2)
        return high, high, wide, wide
    return Fields(conf).sizes(name, 2 * axes)


def cropping(conf: LayerConf) -> LayerPlan:
    """``Cropping1D`` and ``Cropping2D``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    return images(conf, LayerPlan(Cropping(_sides(conf, "cropping"))))


def zero_padding(conf: LayerConf) -> LayerPlan:
    """``ZeroPadding1DLayer`` and ``ZeroPaddingLayer``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    sides = _sides(conf, "padding")
    if len(sides) == 2:
        return images(conf, LayerPlan(nn.ZeroPad1d((sides[0], sides[1]))))
    top, bottom, left, right = sides
    return images(conf, LayerPlan(nn.ZeroPad2d((left, right, top, bottom))))
