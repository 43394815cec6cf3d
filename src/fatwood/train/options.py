"""What a fit was given, as JSON values, for callbacks and trackers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

__all__ = ["json_value"]


def json_value(value: Any) -> Any:
    """A value as JSON has it; what JSON does not have as it is written in code, or by its name.

    >>> import functools
    >>> json_value({"optimizer": functools.partial(dict, lr=0.1), "every": 3})
    {'optimizer': 'dict(lr=0.1)', 'every': 3}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): json_value(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(part) for part in value]
    return _written(value)


def _written(value: Any) -> str:
    if isinstance(value, functools.partial):
        given = [_argument(part) for part in value.args]
        given += [f"{name}={_argument(part)}" for name, part in value.keywords.items()]
        return f"{_written(value.func)}({', '.join(given)})"
    name = getattr(value, "__qualname__", None)
    if isinstance(name, str) and not is_dataclass(value):
        return name
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text


def _argument(value: Any) -> str:
    found = json_value(value)
    return found if isinstance(found, str) and not isinstance(value, str) else repr(found)
