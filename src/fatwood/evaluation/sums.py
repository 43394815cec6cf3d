"""A sum of floats without rounding, so that the order and grouping of its terms cannot be seen in it.

J. R. Shewchuk, "Adaptive Precision Floating-Point Arithmetic and Fast Robust Geometric Predicates", 1997:
the exact sum of floats is itself a short sum of floats. Here its parts are found greedily with `math.fsum`,
which rounds once, so equal sums have equal parts.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fatwood.errors import UserError

__all__ = ["ExactSum", "checked_count", "pack_array", "read_report", "unpack_array"]


@dataclass(frozen=True)
class ExactSum:
    """The exact sum of the floats added so far; a value, `plus` gives a new one.

    Infinities and NaN are carried as ordinary float addition carries them.

    Args:
        parts: Floats whose exact sum it is, each the rounded rest after those before it; empty for zero.
    """

    parts: tuple[float, ...] = ()

    def plus(self, terms: Iterable[float]) -> ExactSum:
        """This sum and the terms together.

        Args:
            terms: Floats to add; another sum's ``parts`` to join two sums.

        Returns:
            The exact sum.
        """
        rest = [*self.parts, *terms]
        parts = []
        try:
            while (top := math.fsum(rest)) != 0.0:
                if not math.isfinite(top):
                    return ExactSum((sum(rest),))
                parts.append(top)
                rest.append(-top)
        except (OverflowError, ValueError):  # beyond the float range, or inf - inf
            return ExactSum((sum(rest),))
        return ExactSum(tuple(parts))

    @property
    def value(self) -> float:
        """The sum, rounded once."""
        return self.parts[0] if self.parts else 0.0

    def to_json(self) -> list[float | str]:
        """The parts as a JSON list; values JSON has no number for are written as text."""
        return [part if math.isfinite(part) else repr(part) for part in self.parts]

    @classmethod
    def from_json(cls, parts: Iterable[float | str]) -> ExactSum:
        """The inverse of :meth:`to_json`.

        Args:
            parts: What :meth:`to_json` returned.

        Returns:
            The same sum.
        """
        return cls().plus(float(part) for part in parts)


def read_report(text: str, report: str | None, versions: Mapping[str, int]) -> Mapping[str, Any]:
    """Parse a report's JSON and check that it is of the expected kind and version.

    Args:
        text: What a report's ``to_json`` returned.
        report: The expected kind; None for any.
        versions: The newest version that can be read, by kind.

    Returns:
        The JSON object.

    Raises:
        UserError: Not JSON, another kind of report, or a newer version.
    """
    title = "report" if report is None else f"{report} report"
    try:
        state = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        message = f"{title}: expected JSON text, received {text!r:.60}: {error}"
        raise UserError(message, hint="pass the text that to_json() returned, unchanged") from error
    received = state.get("report") if isinstance(state, dict) else type(state).__name__
    known = [report] if report is not None else sorted(versions)
    if not isinstance(state, dict) or received not in known:
        message = f"{title}: expected JSON of a {' or '.join(map(repr, known))} report, received {received!r}"
        raise UserError(message, hint="read it with from_json of the class that wrote it")
    newest, received = versions[received], state.get("version")
    if type(received) is not int or not 1 <= received <= newest:
        message = f"{title}: expected version 1 to {newest}, received {received!r}"
        raise UserError(message, hint="read it with the version of Fatwood that wrote it, or a newer one")
    return state


def checked_count(value: object) -> int:
    """A number of rows out of JSON.

    Raises:
        ValueError: It is none.
    """
    if type(value) is not int or value < 0:
        text = f"expected a number of rows, received {value!r}"
        raise ValueError(text)
    return value


def pack_array(array: NDArray[Any]) -> dict[str, Any]:
    """An array of numbers as JSON values; equal arrays of one type give equal ones.

    Args:
        array: Of booleans, integers or floats, of any shape.

    Returns:
        ``dtype`` as NumPy writes it, ``shape``, and the little-endian bytes as base64.
    """
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return {
        "dtype": little.dtype.str,
        "shape": list(array.shape),
        "base64": base64.b64encode(little.tobytes()).decode("ascii"),
    }


def unpack_array(packed: Mapping[str, Any], dtype: DTypeLike) -> NDArray[Any]:
    """The inverse of :func:`pack_array`.

    Args:
        packed: What it returned.
        dtype: What the array is to be; one of a smaller type of the same kind may be stored.

    Returns:
        A new array of this type and the stored shape.

    Raises:
        ValueError: Another type, or not as many bytes as type and shape say.
        KeyError, TypeError: A part is missing or of the wrong type.
    """
    wanted, stored = np.dtype(dtype), _number_type(packed["dtype"])
    kinds = {wanted.kind, stored.kind}
    if not (len(kinds) == 1 or kinds == {"i", "u"}) or not np.can_cast(stored, wanted, "safe"):
        text = f"expected an array of {wanted.name}, received {stored.name}"
        raise ValueError(text)
    shape = [checked_count(length) for length in packed["shape"]]
    data = base64.b64decode(packed["base64"], validate=True)
    if len(data) != math.prod(shape) * stored.itemsize:
        text = (
            f"expected {math.prod(shape) * stored.itemsize} bytes of an array {shape}, received {len(data)}"
        )
        raise ValueError(text)
    return np.frombuffer(data, dtype=stored).reshape(shape).astype(wanted)


def _number_type(name: object) -> np.dtype[Any]:
    stored = np.dtype(name) if isinstance(name, str) else None
    if stored is None or stored.kind not in "biuf" or stored.str != name or stored.str[0] == ">":
        text = f"expected the type of an array of numbers, received {name!r}"
        raise ValueError(text)
    return stored
