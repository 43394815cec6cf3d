"""Arguments and outputs of operators as JSON, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

__all__ = ["decode", "encode"]

_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        str(dtype): dtype
        for dtype in (
            torch.float64,
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.bool,
            torch.complex64,
        )
    }
)
_MEMORY: Mapping[str, torch.memory_format] = MappingProxyType(
    {
        str(form): form
        for form in (
            torch.contiguous_format,
            torch.preserve_format,
            torch.channels_last,
            torch.channels_last_3d,
        )
    }
)
_FLOATS: Mapping[str, float] = MappingProxyType({"inf": math.inf, "-inf": -math.inf, "nan": math.nan})


def encode(value: Any, name_of: Callable[[Any], str | None]) -> Any:
    """A value as JSON.

    Args:
        value: A scalar, a dtype and the like, or lists, tuples and dicts of them.
        name_of: The name of what is computed by an operator; None for anything else.

    Raises:
        TypeError: It cannot be said.
    """
    name = name_of(value)
    if name is not None:
        return {"v": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"f": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {"t": [encode(item, name_of) for item in value]}
    if isinstance(value, list):
        return [encode(item, name_of) for item in value]
    if isinstance(value, Mapping):
        return {"d": [[str(key), encode(item, name_of)] for key, item in value.items()]}
    if isinstance(value, torch.device):
        return {"device": None}
    if isinstance(value, torch.layout) and value == torch.strided:
        return {"layout": None}
    for kind, known in (("dtype", _DTYPES), ("memory", _MEMORY)):
        if known.get(str(value)) is value:
            return {kind: str(value)}
    message = f"expected numbers, names, dtypes, lists, tuples or dicts, received {value!r:.100}"
    raise TypeError(message)


def decode(value: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    """The inverse of `encode`.

    Args:
        value: What it returned; it may come from a stranger's file.
        values: What was computed, by name.
        device: Of the inputs.

    Raises:
        ValueError: It is something else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [decode(item, values, device) for item in value]
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, content),) = value.items()
        if kind == "v" and isinstance(content, str) and content in values:
            return values[content]
        if kind == "t" and isinstance(content, list):
            return tuple(decode(item, values, device) for item in content)
        if kind == "d" and isinstance(content, list):
            return {str(key): decode(item, values, device) for key, item in content}
        if kind == "device":
            return device
        if kind == "layout":
            return torch.strided
        known: Mapping[str, Any] = {"dtype": _DTYPES, "memory": _MEMORY, "f": _FLOATS}.get(kind, {})
        if isinstance(content, str) and content in known:
            return known[content]
    message = f"expected a value of a known kind, received {value!r:.100}"
    raise ValueError(message)
