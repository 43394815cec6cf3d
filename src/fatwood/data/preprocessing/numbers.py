"""Numbers in JSON, bit for bit: an array's shape, and its bytes (little-endian) in base64."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.errors import UserError

__all__ = ["Numbers", "checked_shape", "damaged", "entries", "packed", "unpacked"]

_MAX_DIMENSIONS = 16


@dataclass(frozen=True)
class Numbers:
    """Finite float64 numbers as a value: compared by their bits, hashable, never changed.

    Example:
        >>> Numbers.of([1.0, 2.5]).array
        array([1. , 2.5])
    """

    shape: tuple[int, ...]
    content: bytes = field(repr=False)
    """Of little-endian float64, in row order."""

    @classmethod
    def of(cls, values: Any) -> Numbers:
        """Of anything that NumPy makes an array of."""
        array = np.asarray(values, "<f8")
        return cls(array.shape, array.tobytes())

    @property
    def array(self) -> NDArray[np.float64]:
        """``shape``, read-only."""
        return np.frombuffer(self.content, "<f8").reshape(self.shape)

    @cached_property
    def tensor(self) -> torch.Tensor:
        """``shape`` float64; not to be changed."""
        return torch.from_numpy(self.array.astype(np.float64))

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"shape": list(self.shape), "float64": packed(self.array)}

    @classmethod
    def from_json(cls, state: Any, where: str) -> Numbers:
        """The inverse of `to_json`.

        Args:
            state: JSON of anyone.
            where: Its place, for messages.

        Raises:
            UserError: It is something else, or a number is not finite.
        """
        found = entries(state, where, {"shape": list, "float64": str})
        shape = checked_shape(found["shape"], where)
        array = unpacked(found["float64"], "<f8", math.prod(shape), where)
        if not np.isfinite(array).all():
            raise damaged(where, "finite numbers", "NaN or an infinity")
        return cls(shape, array.tobytes())


def packed(array: NDArray[Any]) -> str:
    """An array's bytes, little-endian, as text."""
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return base64.b64encode(content.tobytes()).decode("ascii")


def unpacked(text: str, dtype: str, count: int, where: str) -> NDArray[Any]:
    """The inverse of `packed`.

    Args:
        text: Of anyone.
        dtype: A little-endian type of NumPy's.
        count: How many numbers there must be; looked at before memory is taken.
        where: The text's place, for messages.

    Returns:
        ``(count,)``, read-only.

    Raises:
        UserError: It is no such text.
    """
    wanted = count * np.dtype(dtype).itemsize
    if len(text) != 4 * -(-wanted // 3):
        raise damaged(
            where, f"{wanted} bytes in base64", f"{len(text)} characters instead of {4 * -(-wanted // 3)}"
        )
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise damaged(where, f"{wanted} bytes in base64", str(error)) from error
    if len(content) != wanted:
        raise damaged(where, f"{wanted} bytes in base64", f"{len(content)} bytes")
    return np.frombuffer(content, dtype)


def entries(state: Any, where: str, kinds: Mapping[str, type | tuple[type, ...]]) -> Mapping[str, Any]:
    """A JSON object that has exactly the entries it must have.

    Args:
        state: JSON of anyone.
        where: Its place, for messages.
        kinds: The type or types of each entry. True is no whole number here, a whole number is a float.

    Raises:
        UserError: It is something else.
    """
    if not isinstance(state, dict) or set(state) != set(kinds):
        received = ", ".join(sorted(map(str, state))) if isinstance(state, dict) else type(state).__name__
        raise damaged(where, f"an object of {', '.join(sorted(kinds))}", received)
    for name, kind in kinds.items():
        allowed = kind if isinstance(kind, tuple) else (kind,)
        value = state[name]
        fits = type(value) in allowed or (float in allowed and type(value) is int)
        if not fits or (type(value) is float and not math.isfinite(value)):
            names = " or ".join(kind.__name__ for kind in allowed)
            place = f"{where}, {name!r}"
            raise damaged(place, names, f"{value!r:.60}")
    return state


def checked_shape(sizes: Sequence[Any], where: str) -> tuple[int, ...]:
    """A shape out of JSON.

    Raises:
        UserError: It is none.
    """
    if len(sizes) > _MAX_DIMENSIONS or any(type(size) is not int or size < 1 for size in sizes):
        raise damaged(where, "a shape of sizes of at least 1", f"{sizes!r:.60}")
    return tuple(sizes)


def damaged(where: str, expected: str, received: str) -> UserError:
    """The error for JSON that makes no sense."""
    message = f"{where}: expected {expected}, received {received}"
    hint = (
        "pass what to_json() returned, unchanged; a newer version of Fatwood may have written something else"
    )
    return UserError(message, hint=hint)
