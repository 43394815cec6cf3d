"""Arrays in the JSON of Deeplearning4j's reports.

Three forms: a list of numbers; ``{"dataType", "shape", "data"}``; and ``{"array": base64}`` of what ``Nd4j.write`` writes: a buffer of
the shape (rank, sizes, strides, flags, spacing, order) and one of the elements, each a text, a length, the name of a type, and the elements
with the highest byte first.
"""

from __future__ import annotations

import base64
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_array"]

_TYPES = {"DOUBLE": ">f8", "FLOAT": ">f4", "HALF": ">f2", "LONG": ">i8", "INT": ">i4", "SHORT": ">i2"}
_LONG_LENGTHS = ("LONG_SHAPE", "MIXED_DATA_TYPES")
"""Since the first of these, lengths have eight bytes."""


def read_array(packed: Any) -> NDArray[np.float64]:
    """An array as float64.

    Args:
        packed: What the JSON has in its place.

    Raises:
        ValueError, KeyError, TypeError: It is none.
    """
    if isinstance(packed, dict) and "array" in packed:
        return _binary(base64.b64decode(packed["array"], validate=True))
    if isinstance(packed, dict):
        shape = [int(length) for length in packed["shape"]]
        return np.array([float(value) for value in packed["data"]], np.float64).reshape(shape)
    return np.array([float(value) for value in packed], np.float64)


def _binary(data: bytes) -> NDArray[np.float64]:
    information, at = _buffer(data, 0)
    elements, _ = _buffer(data, at)
    rank = int(information[0])
    if not 0 <= rank <= 32 or len(information) < 2 * rank + 4:
        text = f"a shape of {rank} axes in {len(information)} numbers"
        raise ValueError(text)
    shape = information[1 : 1 + rank].astype(np.int64).tolist()
    order = {ord("c"): "C", ord("f"): "F"}[int(information[-1])]
    return elements.reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]


def _buffer(data: bytes, at: int) -> tuple[NDArray[np.float64], int]:
    """The elements of the buffer that begins there, and where it ends."""
    mode, at = _text(data, at)
    form = ">q" if mode in _LONG_LENGTHS else ">i"
    (length,) = struct.unpack_from(form, data, at)
    kind, at = _text(data, at + struct.calcsize(form))
    size = np.dtype(_TYPES[kind]).itemsize
    if not 0 <= length * size <= len(data) - at:
        text = f"{length} elements of {kind} in {len(data) - at} bytes"
        raise ValueError(text)
    return np.frombuffer(data, _TYPES[kind], length, at).astype(np.float64), at + length * size


def _text(data: bytes, at: int) -> tuple[str, int]:
    try:
        (length,) = struct.unpack_from(">H", data, at)
    except struct.error as error:
        text = "an array that ends too early"
        raise ValueError(text) from error
    return data[at + 2 : at + 2 + length].decode("ascii"), at + 2 + length
