"""The user's network, called with the inputs of a minibatch in their form, and the outputs that came of it.

Shapes: ``B`` rows, ``T`` steps of the longest sequence among them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

from fatwood.data import Batch, Tensors, each
from fatwood.errors import FatwoodError, UserCodeError
from fatwood.train.placing import brought, moved

__all__ = ["Caller", "Key", "Keys", "keys_of", "outputs_of", "user_code"]

Key: TypeAlias = "int | str | None"
"""Of one tensor among several: its position or its name; None for the only one."""

Keys: TypeAlias = "int | tuple[str, ...] | None"
"""Of several: how many there are by position, or their names; None for a single tensor."""


@contextmanager
def user_code(part: str, hint: str | None = None, **given: Tensors) -> Iterator[None]:
    """Re-raise what the user's code raises as :class:`UserCodeError`, with the user's own error first.

    Args:
        part: Of the user's code, for example ``"loss"``.
        hint: What the reader can do about it.
        given: What it was called with; shapes and types are told, and spelled only when they must be.
    """
    try:
        yield
    except FatwoodError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}\nraised by the {part}"
        spelled = ", ".join(
            f"{name if key is None else f'{name}[{key!r}]'} of shape {tuple(tensor.shape)} and type {tensor.dtype}"
            for name, tensors in given.items()
            for key, tensor in each(tensors)
        )
        raise UserCodeError(f"{text}, given {spelled}" if spelled else text, hint=hint) from error


class Caller:
    """Calls a network with minibatches.

    Several inputs by position are its positional arguments, inputs by name its keywords. A mask ``(B, T)`` of an input
    is passed too where ``forward`` has a parameter for it: called as the input's parameter with ``_mask`` behind it,
    or ``mask`` where only one input has a mask.

    Args:
        network: Its signature is looked at once, here; compiled or not.
        device: Where the network is, when minibatches and outputs are to be in the host's memory; None to copy neither.
    """

    def __init__(self, network: torch.nn.Module, device: torch.device | None = None) -> None:
        self._network = network
        self._device = device
        self._positional, self._named = _parameters(network)

    def __call__(self, batch: Batch) -> Any:
        """What the network returns for a minibatch.

        Args:
            batch: Its labels, if any, are not looked at.

        Raises:
            UserCodeError: The network raised.
        """
        batch = moved(batch, self._device, ("features", "feature_mask"))
        features, hint = batch.features, None
        if any(tensor.dtype == torch.int64 for _, tensor in each(features)):
            hint = "integer columns arrive as int64; cast the column to float if the network expects floats"
        masks = self._masks(batch)
        with user_code("network's forward", hint, features=features):
            if isinstance(features, Mapping):
                found = self._network(**features, **masks)
            elif isinstance(features, tuple | list):
                found = self._network(*features, **masks)
            else:
                found = self._network(features, **masks)
            return found if self._device is None else brought(found)

    def _masks(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The masks that the network asks for, by the names of its parameters."""
        given = dict(each(batch.feature_mask))
        if not given:
            return {}
        names: dict[Key, str] = dict(enumerate(self._positional[: len(list(each(batch.features)))]))
        if isinstance(batch.features, Mapping):
            names = {name: name for name in batch.features}
        elif not isinstance(batch.features, tuple | list):
            names = {None: names.get(0, "")}
        free, found = self._named - set(names.values()), {}
        for key, mask in given.items():
            wanted = (f"{names.get(key)}_mask", "mask")[: 2 if len(given) == 1 else 1]
            name = next((name for name in wanted if name in free), None)
            if name is not None:
                found[name] = mask
        return found


def _parameters(network: torch.nn.Module) -> tuple[list[str], frozenset[str]]:
    """The names of ``forward``'s parameters by position, and of those that can be given by name."""
    module = getattr(network, "_orig_mod", network)  # of torch.compile
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a scripted module has no signature
        return [], frozenset()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return positional, named


def keys_of(tensors: Tensors) -> Keys:
    """The form of some tensors.

    >>> keys_of({"digit": torch.zeros(1), "side": torch.zeros(1)}), keys_of((torch.zeros(1),)), keys_of(torch.zeros(1))
    (('digit', 'side'), 1, None)
    """
    if isinstance(tensors, Mapping):
        return tuple(tensors)
    return len(tensors) if isinstance(tensors, tuple | list) else None


def outputs_of(found: Any, keys: Keys, rows: int) -> dict[Key, torch.Tensor]:
    """The outputs that are asked for of what a network returned.

    Args:
        found: A tensor; for several by position a tuple or list of as many; for several by name a dict with at
            least these names.
        keys: Which.
        rows: B, which each must have.

    Returns:
        ``(B, ...)`` tensors by position or name; a single one by None.

    Raises:
        UserCodeError: It is something else.
    """
    outputs: dict[Key, Any] = {None: found}
    if keys is not None:
        outputs = {}
        if isinstance(keys, int) and isinstance(found, tuple | list) and len(found) == keys:
            outputs = dict(enumerate(found))
        elif isinstance(keys, tuple) and isinstance(found, Mapping) and all(name in found for name in keys):
            outputs = {name: found[name] for name in keys}
    if outputs and all(_has_rows(output, rows) for output in outputs.values()):
        return outputs
    hint = None
    if keys is None:
        wanted = f"one tensor with a row for each of {rows} rows"
        if isinstance(found, tuple | list | Mapping):
            hint = "a network of several outputs has a label for each: label=[...] or label={...}; or outputs= to predict"
    else:
        each_of = (
            f"a tuple of {keys}" if isinstance(keys, int) else f"a dict with {', '.join(map(repr, keys))}"
        )
        wanted = f"{each_of}, each a tensor with a row for each of {rows} rows"
    text = f"TypeError: the network must return {wanted}, received {_spelled(found)}"
    raise UserCodeError(text, hint=hint)


def _has_rows(output: Any, rows: int) -> bool:
    return isinstance(output, torch.Tensor) and output.dim() > 0 and len(output) == rows


def _spelled(found: Any) -> str:
    """A tensor by its shape, several by their shapes, anything else by its type."""
    if isinstance(found, torch.Tensor):
        return str(tuple(found.shape))
    name = type(found).__name__
    if isinstance(found, Mapping):
        return f"{name} with {', '.join(f'{key!r}: {_spelled(value)}' for key, value in found.items()) or 'nothing'}"
    if isinstance(found, tuple | list):
        return f"{name} of {', '.join(map(_spelled, found)) or 'nothing'}"
    return name
