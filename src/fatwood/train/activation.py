"""What makes probabilities of a network's outputs: by the loss that it is trained with, or as the user says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from fatwood.errors import OptionError, UserError

__all__ = ["Activation", "activation_of"]

Activation = Callable[[Tensor], Tensor]
"""Of outputs ``(B, ...)``, each row by itself."""


def activation_of(loss: Any, activation: Any = "auto") -> Activation:
    """The function that makes probabilities of outputs ``(B, ...)``.

    Those that have a name here compute in float64, where two logits beyond 17 still give two probabilities.

    Args:
        loss: Of this output; None without one.
        activation: ``"softmax"`` over the second dimension, ``"sigmoid"``, ``"exp"``, None for outputs as they are, or a function.
            ``"auto"`` goes by the loss: softmax for ``CrossEntropyLoss``, sigmoid for ``BCEWithLogitsLoss``, exp for
            ``NLLLoss``, else None.

    Raises:
        OptionError: It is something else.
    """
    if isinstance(activation, str) and activation == "auto":
        activation = next((name for kind, name in _BY_LOSS.items() if isinstance(loss, kind)), None)
    if activation is None:
        return _as_it_is
    if isinstance(activation, str) and activation in _NAMED:
        return _NAMED[activation]
    if callable(activation) and not isinstance(activation, type):
        return activation  # type: ignore[no-any-return]
    text = "activation: expected 'auto', 'softmax', 'sigmoid', 'exp', None or a function, "
    text += f"received {activation!r}"
    raise OptionError(text, hint="a function is given the outputs of a minibatch, and returns as many rows")


def _softmax(output: Tensor) -> Tensor:
    if output.dim() < 2:
        text = f"activation: expected outputs (rows, classes) for a softmax, received {tuple(output.shape)}"
        raise UserError(text, hint="activation='sigmoid' is for one number a row")
    return output.double().softmax(1)


def _sigmoid(output: Tensor) -> Tensor:
    return output.double().sigmoid()


def _exp(output: Tensor) -> Tensor:
    return output.double().exp()


def _as_it_is(output: Tensor) -> Tensor:
    return output


_NAMED: Final[Mapping[str, Activation]] = {"softmax": _softmax, "sigmoid": _sigmoid, "exp": _exp}
_BY_LOSS: Final[Mapping[type[torch.nn.Module], str]] = {
    torch.nn.CrossEntropyLoss: "softmax",
    torch.nn.BCEWithLogitsLoss: "sigmoid",
    torch.nn.NLLLoss: "exp",
}
