"""Between the original's layouts and those in which torch's layers work."""

from __future__ import annotations

import torch
from torch import nn

from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.context import Context, Contextual, run
from fatwood.migrate.fields import Fields
from fatwood.migrate.parameters import LayerPlan

__all__ = ["ChannelsLast", "FeaturesFirst", "images"]

_FORMATS = ("cnn2dDataFormat", "cnn2DFormat", "rnnDataFormat", "dataFormat", "format")


class FeaturesFirst(Contextual):
    """Applies a layer of vectors along axis 1 of ``[rows, features, ...]``, at every step or pixel.

    Args:
        layer: Takes and gives ``[..., features]``.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """The layer's output, its features on axis 1.

        Args:
            x: ``[rows, features, ...]``.
            context: Of the network's call.
        """
        return run(self.layer, x.movedim(1, -1), context=context).movedim(-1, 1)


class ChannelsLast(nn.Module):
    """Applies a layer that takes channels on axis 1 to ``[rows, ..., channels]``.

    Args:
        layer: Takes and gives ``[rows, channels, ...]``.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, its channels at the end.

        Args:
            x: ``[rows, ..., channels]``.
        """
        output: torch.Tensor = self.layer(x.movedim(-1, 1))
        return output.movedim(1, -1)


def images(conf: LayerConf, plan: LayerPlan) -> LayerPlan:
    """A plan for the layout that the layer's configuration names.

    Args:
        conf: Of the layer.
        plan: For channels on axis 1.

    Raises:
        UserError: A layout that is not known.
    """
    last = Fields(conf).channels_last(*_FORMATS)
    return plan.within(ChannelsLast, "layer") if last else plan
