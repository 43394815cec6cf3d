"""What stands between layers of different shapes.

The original lays a sequence's steps out as rows with the steps outside: row ``step * rows + row``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fatwood.errors import UserError
from fatwood.migrate.context import Context, Contextual
from fatwood.migrate.fields import Fields, refused, simple_name

__all__ = [
    "CnnToRnn",
    "FeedForwardToCnn",
    "FeedForwardToRnn",
    "RnnToCnn",
    "RnnToFeedForward",
    "preprocessor_module",
]


def _as_rows(x: torch.Tensor, *, features_first: bool) -> torch.Tensor:
    """``[rows, features, steps]`` to ``[steps * rows, features]``."""
    return x.permute(2, 0, 1).flatten(0, 1) if features_first else x.transpose(0, 1).flatten(0, 1)


def _as_steps(x: torch.Tensor, context: Context | None, *, features_first: bool) -> torch.Tensor:
    """``[steps * rows, features]`` to sequences of as many rows as the network got."""
    if context is None or x.shape[0] % context.rows:
        rows = "unknown" if context is None else context.rows
        problem = f"steps as rows: expected a multiple of the network's rows ({rows}), received {x.shape[0]}"
        raise UserError(problem)
    steps = x.reshape(-1, context.rows, x.shape[1])
    return steps.permute(1, 2, 0) if features_first else steps.transpose(0, 1)


class RnnToFeedForward(nn.Module):
    """Every step of every sequence as a row.

    Args:
        features_first: Whether sequences are ``[rows, features, steps]``.
    """

    def __init__(self, *, features_first: bool = True) -> None:
        super().__init__()
        self.features_first = features_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[steps * rows, features]``.

        Args:
            x: Sequences; vectors stay as they are.
        """
        return x if x.ndim == 2 else _as_rows(x, features_first=self.features_first)


class FeedForwardToRnn(Contextual):
    """Rows back to sequences.

    Args:
        features_first: Whether sequences are ``[rows, features, steps]``.
    """

    def __init__(self, *, features_first: bool = True) -> None:
        super().__init__()
        self.features_first = features_first

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """The sequences.

        Args:
            x: ``[steps * rows, features]``.
            context: Of the network's call, which knows the rows.

        Raises:
            UserError: The rows are unknown or no divisor.
        """
        return _as_steps(x, context, features_first=self.features_first)


class FeedForwardToCnn(nn.Module):
    """Vectors to images ``[rows, channels, height, width]``.

    Args:
        channels: Of an image.
        height: Of an image.
        width: Of an image.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.height = height
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The images.

        Args:
            x: ``[rows, channels * height * width]``; images stay as they are.
        """
        return x if x.ndim == 4 else x.reshape(-1, self.channels, self.height, self.width)

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"channels={self.channels}, height={self.height}, width={self.width}"


class RnnToCnn(nn.Module):
    """Every step of every sequence as an image.

    Args:
        channels: Of an image.
        height: Of an image.
        width: Of an image.
        features_first: Whether sequences are ``[rows, features, steps]``.
    """

    def __init__(self, channels: int, height: int, width: int, *, features_first: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.height = height
        self.width = width
        self.features_first = features_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[steps * rows, channels, height, width]``.

        Args:
            x: Sequences.
        """
        rows = _as_rows(x, features_first=self.features_first)
        return rows.reshape(-1, self.channels, self.height, self.width)


class CnnToRnn(Contextual):
    """Images back to steps of sequences.

    Args:
        features_first: Whether sequences are ``[rows, features, steps]``.
    """

    def __init__(self, *, features_first: bool = True) -> None:
        super().__init__()
        self.features_first = features_first

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """The sequences.

        Args:
            x: ``[steps * rows, channels, height, width]``.
            context: Of the network's call, which knows the rows.

        Raises:
            UserError: The rows are unknown or no divisor.
        """
        return _as_steps(x.flatten(1), context, features_first=self.features_first)


class _Nested:
    """A preprocessor's JSON, named as the layer behind it."""

    def __init__(self, owner: str, value: Mapping[str, Any]) -> None:
        self.name = owner
        self.kind = simple_name(value)
        self.source = self.kind
        self.fields = value


def preprocessor_module(owner: str, value: Mapping[str, Any]) -> nn.Module:
    """The module of an ``InputPreProcessor``.

    Args:
        owner: The name of the layer behind it, for messages.
        value: Its JSON.

    Raises:
        UserError: A preprocessor that is not known here.
    """
    conf = _Nested(owner, value)
    fields = Fields(conf)
    first = not fields.channels_last("rnnDataFormat")
    match conf.kind.removesuffix("PreProcessor"):
        case "CnnToFeedForward":
            return nn.Flatten(1)
        case "RnnToFeedForward":
            return RnnToFeedForward(features_first=first)
        case "FeedForwardToRnn":
            return FeedForwardToRnn(features_first=first)
        case "CnnToRnn":
            return CnnToRnn(features_first=first)
        case "FeedForwardToCnn":
            return FeedForwardToCnn(*_image(fields))
        case "RnnToCnn":
            return RnnToCnn(*_image(fields), features_first=first)
        case "ComposableInput":
            parts = value.get("inputPreProcessors")
            if isinstance(parts, list) and all(isinstance(part, Mapping) for part in parts):
                return nn.Sequential(*(preprocessor_module(owner, part) for part in parts))
    raise refused(conf, "a preprocessor between images, sequences and vectors", conf.kind or value)


def _image(fields: Fields) -> tuple[int, int, int]:
    return (
        fields.whole("numChannels", least=1),
        fields.whole("inputHeight", least=1),
        fields.whole("inputWidth", least=1),
    )
