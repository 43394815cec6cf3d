"""The losses of output layers, as the original scores them: summed over the outputs, a mean over the rows.

A loss takes what the network returns, behind the output layer's activation, and labels of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import nn

from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.fields import Fields, simple_name

__all__ = ["RowLoss", "loss_of"]

_TINY = 1e-5  # Nd4j.EPS_THRESHOLD

Element = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def _cross_entropy(y: torch.Tensor, label: torch.Tensor, clip: float) -> torch.Tensor:
    return -label * y.clamp(clip, 1 - clip).log()


def _binary(y: torch.Tensor, label: torch.Tensor, clip: float) -> torch.Tensor:
    y = y.clamp(clip, 1 - clip)
    return -(label * y.log() + (1 - label) * (1 - y).log())


def _divergence(y: torch.Tensor, label: torch.Tensor, clip: float) -> torch.Tensor:  # noqa: ARG001
    y, label = y.clamp(_TINY, 1), label.clamp(_TINY, 1)
    return label * (label / y).log()


_ELEMENTS: Mapping[str, Element] = MappingProxyType(
    {
        "MCXENT": _cross_entropy,
        "BinaryXENT": _binary,
        "KLD": _divergence,
        "L1": lambda y, label, _: (y - label).abs(),
        "MAE": lambda y, label, _: (y - label).abs(),
        "L2": lambda y, label, _: (y - label) ** 2,
        "MSE": lambda y, label, _: (y - label) ** 2,
        "MSLE": lambda y, label, _: ((y + 1) / (label + 1)).log() ** 2,
        "MAPE": lambda y, label, _: 100 * ((label - y) / label).abs(),
        "Poisson": lambda y, label, _: y - label * y.log(),
        "Hinge": lambda y, label, _: (1 - y * label).clamp(min=0),
        "SquaredHinge": lambda y, label, _: (1 - y * label).clamp(min=0) ** 2,
    }
)
_MEANS = ("MAE", "MSE", "MSLE", "MAPE")  # by the number of outputs
_SAME = {"NegativeLogLikelihood": "MCXENT"}


class RowLoss(nn.Module):
    """One of the original's losses.

    Args:
        kind: Its name there, without "Loss".
        clip: How near to 0 and 1 a probability may come.
        weights: Of the outputs; None for equal ones.
    """

    def __init__(self, kind: str, clip: float = 0.0, weights: list[float] | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.clip = clip
        self.weights = weights

    def forward(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            output: ``[rows, outputs, ...]``; losses of steps or pixels are summed.
            label: Of the same shape.
        """
        each = _ELEMENTS[self.kind](output, label, self.clip)
        if self.weights is not None:
            weights = torch.tensor(self.weights, dtype=each.dtype, device=each.device)
            each = each * weights.reshape(-1, *[1] * (each.ndim - 2))
        outputs = output.shape[1] if self.kind in _MEANS else 1
        return each.sum() / output.shape[0] / outputs

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"{self.kind!r}, clip={self.clip}, weights={self.weights}"


def loss_of(conf: LayerConf) -> nn.Module | None:
    """The loss of an output or loss layer.

    Args:
        conf: Of the layer.

    Returns:
        A loss for what the network returns; None for a layer without one, or with one that is not known here.
    """
    value = conf.fields.get("lossFn")
    kind = simple_name(value).removeprefix("Loss")
    kind = _SAME.get(kind, kind)
    if kind not in _ELEMENTS or not isinstance(value, Mapping):
        return None
    if Fields(conf).channels_last("rnnDataFormat", "dataFormat", "format"):
        return None
    weights = value.get("weights")
    if weights is not None and not (
        isinstance(weights, list) and all(isinstance(w, int | float) for w in weights)
    ):
        return None
    clip = 0.0
    if kind == "BinaryXENT":
        clip = float(value.get("clipEps", 1e-5))
    elif kind == "MCXENT" and simple_name(conf.fields.get("activationFn")) == "ActivationSoftmax":
        clip = float(value.get("softmaxClipEps", 1e-10))
    return RowLoss(kind, clip, weights)
