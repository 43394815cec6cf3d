"""The file of a fit's statistics: one JSON object.

Its keys are those of ``FitStats.to_json``; ``format`` and ``version`` say what it is. A number that JSON does not have is
the text ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from fatwood.errors import OptionError

__all__ = ["decode", "encode", "require_stamp", "stamp"]

_FORMAT: Final = "fatwood-stats"
_VERSION: Final = 1
_STRANGE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def stamp() -> dict[str, Any]:
    """What the values of this version begin with."""
    return {"format": _FORMAT, "version": _VERSION}


def require_stamp(values: Mapping[str, Any]) -> None:
    """Refuse values that are something else.

    Raises:
        OptionError: They are of another format or a newer version.
    """
    found = values.get("format") if isinstance(values, Mapping) else None
    if found != _FORMAT:
        text = f"expected statistics of a fit (format {_FORMAT!r}), received format {found!r:.100}"
        raise OptionError(text, hint="they are written by fit.stats.save(...)")
    version = values.get("version")
    if type(version) is not int or not 1 <= version <= _VERSION:
        text = f"expected statistics of version 1 to {_VERSION}, received version {version!r:.100}"
        raise OptionError(text, hint="a newer fatwood wrote them: install it here")


def encode(values: Mapping[str, Any]) -> bytes:
    """The file of these values."""
    return json.dumps(_plain(values), separators=(",", ":"), allow_nan=False).encode()


def decode(content: bytes) -> dict[str, Any]:
    """The values of a file.

    Raises:
        OptionError: It is something else.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        text = f"expected statistics of a fit as JSON, received {len(content)} bytes that are none ({error!s:.200})"
        raise OptionError(text, hint="they are written by fit.stats.save(...)") from error
    require_stamp(values)
    found: dict[str, Any] = _restored(values)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, str):
        return _STRANGE.get(value, value)
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return value
