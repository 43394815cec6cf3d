"""Rows of a table by their number."""

from __future__ import annotations

import torch
from torch import nn

from fatwood.migrate.configuration import LayerConf
from fatwood.migrate.dense import function_of, named
from fatwood.migrate.fields import Fields
from fatwood.migrate.parameters import LayerPlan, ParameterSpec, row

__all__ = ["Lookup", "embedding"]


class Lookup(nn.Module):
    """Rows of a table by their number, with a bias.

    Args:
        entries: Of the table.
        features: Of an entry.
        bias: Whether one vector is added to all.
        sequence: Whether each row of the input is a sequence of numbers.
        features_first: Whether a sequence comes out as ``[rows, features, steps]``.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        entries: int,
        features: int,
        *,
        bias: bool = True,
        sequence: bool = False,
        features_first: bool = True,
    ) -> None:
        super().__init__()
        self.entries = entries
        self.features = features
        self.sequence = sequence
        self.features_first = features_first
        self.table = nn.Embedding(entries, features)
        self.register_parameter("bias", nn.Parameter(torch.zeros(features)) if bias else None)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """The entries.

        Args:
            numbers: ``[rows, 1]`` or ``[rows]``; of sequences ``[rows, steps]`` or ``[rows, 1, steps]``. Any type of number.

        Returns:
            ``[rows, features]``; of sequences with steps, too.
        """
        index = numbers.long()
        if self.sequence:
            index = index.squeeze(1) if index.ndim == 3 else index
        elif index.ndim == 2:
            index = index.squeeze(1)
        entries: torch.Tensor = self.table(index)
        if self.bias is not None:
            entries = entries + self.bias
        return entries.transpose(1, 2) if self.sequence and self.features_first else entries

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"bias={self.bias is not None}, sequence={self.sequence}, features_first={self.features_first}"


def embedding(conf: LayerConf) -> LayerPlan:
    """``EmbeddingLayer`` and ``EmbeddingSequenceLayer``.

    Args:
        conf: Of the layer.

    Raises:
        UserError: An option that is not known here.
    """
    fields = Fields(conf)
    sequence = conf.kind == "EmbeddingSequenceLayer"
    entries, features = fields.whole("nIn", least=1), fields.whole("nOut", least=1)
    bias = fields.flag("hasBias", default=not sequence)
    first = not fields.channels_last("outputFormat", "outputDataFormat")
    module = Lookup(entries, features, bias=bias, sequence=sequence, features_first=first)
    specs = [ParameterSpec("W", (entries, features))] + [ParameterSpec("b", (features,))] * bias
    core = LayerPlan(module, tuple(specs), {"W": named("table.weight"), "b": named("bias")})
    return row([("embedding", core), ("activation", function_of(conf))])
