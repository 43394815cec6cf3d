"""What a user can give as loss: one function, or one for each output with its weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from fatwood.errors import OptionError
from fatwood.train.criterion import LossFunction, takes_batch
from fatwood.train.forward import Key, Keys

__all__ = ["AnyLoss", "Losses", "hint_of_losses", "losses_of", "require_labels", "require_loss"]


@dataclass(frozen=True)
class Losses:
    """A loss for each of several outputs: together ``sum_k weight_k * mean_k``.

    ``mean_k`` is the mean over the minibatch's rows, or over output k's real steps in it. Workers' minibatches are
    averaged by rows (or by the sum of their sample weights). With masks, class weights or ignored labels on several
    outputs that is not exactly the mean that one process would take, as the outputs then weigh differently.

    Args:
        losses: By name, or by position, as the labels are: ``loss(output, label)``, each a mean over the rows.
        weights: In the same form, at least 0; by name some can be left out. Not given, they are 1.

    Raises:
        OptionError: A loss cannot be called or gives no mean, or a weight is no finite number of at least 0.

    Example:
        >>> both = Losses({"digit": torch.nn.CrossEntropyLoss(), "angle": torch.nn.MSELoss()}, weights={"angle": 0.1})
        >>> both.weight("digit"), both.weight("angle")
        (1.0, 0.1)
    """

    losses: Mapping[str, LossFunction] | Sequence[LossFunction]
    weights: Mapping[str, float] | Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, given in (("losses", self.losses), ("weights", self.weights)):
            if given is not None and (not isinstance(given, Mapping | Sequence) or isinstance(given, str)):
                text = f"{name}: expected a dict by the names of the outputs, or a list, received {given!r}"
                raise OptionError(text, hint='Losses({"a": ..., "b": ...}, weights={"a": 1.0, "b": 0.1})')
            if isinstance(given, Mapping):
                object.__setattr__(self, name, dict(given))
            elif given is not None:
                object.__setattr__(self, name, tuple(given))
        if not self.losses:
            text = "losses: expected at least one, received none"
            raise OptionError(text)
        for key, loss in self.parts.items():
            _require_function(f"loss {key!r}", loss)
            if takes_batch(loss):
                text = f"loss {key!r}: expected loss(output, label), received loss(network, batch)"
                raise OptionError(
                    text, hint="a loss of the whole minibatch is the model's only one: loss=function"
                )
        self._require_weights()

    def _require_weights(self) -> None:
        if self.weights is None:
            return
        if isinstance(self.weights, Mapping) != isinstance(self.losses, Mapping):
            text = f"weights: expected the form of the losses (a dict by name, or a list), received {self.weights!r}"
            raise OptionError(text)
        if isinstance(self.weights, Mapping):
            unknown = [name for name in self.weights if name not in self.losses]
            if unknown:
                named = ", ".join(map(repr, self.losses))
                text = (
                    f"weights: expected names of losses ({named}), received {', '.join(map(repr, unknown))}"
                )
                raise OptionError(text)
        elif len(self.weights) != len(self.losses):
            text = f"weights: expected {len(self.losses)}, one for each loss, received {len(self.weights)}"
            raise OptionError(text)
        for key, value in _by_key(self.weights).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                text = f"weight of loss {key!r}: expected a finite number of at least 0, received {value!r}"
                raise OptionError(text)

    @property
    def parts(self) -> dict[Key, LossFunction]:
        """The losses by name or position."""
        return _by_key(self.losses)

    def weight(self, key: Key) -> float:
        """What the loss of this name or position is multiplied by."""
        return 1.0 if self.weights is None else float(_by_key(self.weights).get(key, 1.0))


AnyLoss: TypeAlias = LossFunction | Losses | Mapping[str, LossFunction] | Sequence[LossFunction]
"""One loss, or one for each output."""


def losses_of(loss: AnyLoss) -> Losses | None:
    """The losses of several outputs; None for a single function.

    Raises:
        OptionError: They are none, as `Losses` says.
    """
    if isinstance(loss, Losses):
        return loss
    if isinstance(loss, torch.nn.ModuleDict):
        return Losses(dict(loss.items()))
    if isinstance(loss, torch.nn.ModuleList):
        return Losses(list(loss))
    return Losses(loss) if isinstance(loss, Mapping | list | tuple) else None


def require_loss(loss: object) -> None:
    """Refuse what is no loss, or one that gives no mean.

    Raises:
        OptionError: It is so.
    """
    if losses_of(loss) is None:  # type: ignore[arg-type]
        _require_function("loss", loss)


def require_labels(loss: AnyLoss, keys: Keys) -> None:
    """Refuse losses that do not belong to the labels.

    Args:
        loss: Of the model.
        keys: Of the labels.

    Raises:
        OptionError: There is not a loss for each label, or one too many.
    """
    losses = losses_of(loss)
    if losses is None:
        return
    expected: list[Key] = [None]
    if keys is not None:
        expected = list(range(keys)) if isinstance(keys, int) else list(keys)
    if sorted(map(repr, losses.parts)) == sorted(map(repr, expected)):
        return
    received = ", ".join(map(repr, losses.parts))
    if keys is None:
        text = f"loss: expected one loss for one label, received losses for {received}"
        raise OptionError(text, hint="name as many labels, label={...} or label=[...]; or give a single loss")
    text = f"loss: expected a loss for each of the labels {', '.join(map(repr, expected))}, received losses for {received}"
    raise OptionError(text, hint=hint_of_losses(keys))


def hint_of_losses(keys: Keys) -> str:
    """How losses for these labels are given."""
    if isinstance(keys, tuple):
        return f"give each label its loss: loss={{{', '.join(f'{name!r}: ...' for name in keys)}}}".replace(
            "'", '"'
        )
    return f"give each label its loss: loss=[{', '.join(['...'] * (keys or 1))}]"


def _by_key(given: Any) -> dict[Key, Any]:
    return dict(given) if isinstance(given, Mapping) else dict(enumerate(given))


def _require_function(where: str, loss: object) -> None:
    if not callable(loss) or isinstance(loss, type):
        text = f"{where}: expected a callable loss(output, label), received {loss!r}"
        raise OptionError(text, hint="pass an instance such as torch.nn.CrossEntropyLoss()")
    reduction = getattr(loss, "reduction", "mean")
    if reduction != "mean":
        text = f"{where}: expected reduction='mean', received {reduction!r}"
        raise OptionError(text, hint="workers' minibatches are averaged by rows, so each must give a mean")
