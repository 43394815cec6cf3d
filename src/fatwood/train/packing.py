"""Nested Python values with tensors in them, to bytes and back, without pickle.

The bytes are a safetensors file: every tensor is a member named ``t0``, ``t1``, ...; the structure is one JSON
text in the file's metadata, where ``{"t": 0}`` stands for a tensor, ``{"a": 0}`` for a NumPy array,
``{"u": [...]}`` for a tuple and ``{"d": [[key, value], ...]}`` for a dict (JSON itself knows only text keys).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fatwood.errors import ProtocolError

__all__ = ["pack", "unpack"]


def pack(value: Any) -> bytes:
    """Turn a value into bytes.

    Args:
        value: ``None``, bool, int, float, str, tensors and arrays, nested in dicts, lists and tuples.

    Raises:
        TypeError: There is something else in it; the message names its place.

    Example:
        >>> unpack(pack({"step": 3, 0: (1.5, torch.ones(2))}))
        {'step': 3, 0: (1.5, tensor([1., 1.]))}
    """
    tensors: list[torch.Tensor] = []
    structure = _flatten(value, tensors, "value")
    named = {f"t{i}": tensor for i, tensor in enumerate(tensors)}
    return save(named, metadata={"structure": json.dumps(structure)})


def unpack(data: bytes) -> Any:
    """Turn the bytes of :func:`pack` back into the value.

    Raises:
        ProtocolError: The bytes are not what :func:`pack` wrote.
    """
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        structure = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["structure"])
        return _nest(structure, tensors)
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        text = f"packed state: expected bytes made by fatwood, received something else ({error})"
        raise ProtocolError(text) from error


def _flatten(value: Any, tensors: list[torch.Tensor], place: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor | np.ndarray):
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        tensors.append(tensor.detach().cpu().clone(memory_format=torch.contiguous_format))
        return {"t" if isinstance(value, torch.Tensor) else "a": len(tensors) - 1}
    if isinstance(value, dict):
        pairs = [
            [_flatten(k, tensors, place), _flatten(v, tensors, f"{place}[{k!r}]")] for k, v in value.items()
        ]
        return {"d": pairs}
    if isinstance(value, list | tuple):
        items = [_flatten(item, tensors, f"{place}[{i}]") for i, item in enumerate(value)]
        return {"u": items} if isinstance(value, tuple) else items
    text = (
        f"{place}: expected numbers, text, tensors, dicts, lists or tuples, received {type(value).__name__}"
    )
    raise TypeError(text)


def _nest(structure: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(structure, list):
        return [_nest(item, tensors) for item in structure]
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    if kind == "t":
        return tensors[f"t{content}"]
    if kind == "a":
        return tensors[f"t{content}"].numpy()
    if kind == "u":
        return tuple(_nest(item, tensors) for item in content)
    if kind == "d":
        return {_nest(key, tensors): _nest(item, tensors) for key, item in content}
    text = f"unknown mark {kind!r}"
    raise ValueError(text)
