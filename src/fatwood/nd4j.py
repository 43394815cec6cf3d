"""Arrays as ND4J, the array library of Deeplearning4j, writes them in files.

``Nd4j.write`` writes two buffers one after another: of the shape, and of the elements. All numbers have the highest byte first::

    buffer               text     how the buffer was held, such as MIXED_DATA_TYPES
                         length   int32 or int64, by that text
                         text     type of the elements, such as FLOAT
                         elements
    text                 uint16 of its bytes, then the bytes
    buffer of the shape  INT or LONG: rank, sizes, strides, flags, spacing of elements, order ("c" or "f")

Nothing is believed of a length before it is compared with the bytes that are there. What a buffer of the shape says of strides
is not used: ``Nd4j.write`` writes arrays that lie dense in their order.
"""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from fatwood.errors import DamagedError, StorageError

__all__ = ["read_array", "read_text"]

_TYPES = {
    "DOUBLE": ">f8",
    "FLOAT": ">f4",
    "HALF": ">f2",
    "BFLOAT16": ">u2",
    "LONG": ">i8",
    "UINT64": ">u8",
    "INT": ">i4",
    "UINT32": ">u4",
    "SHORT": ">i2",
    "UINT16": ">u2",
    "BYTE": "i1",
    "UBYTE": "u1",
    "BOOL": "?",
}
_SHAPE_TYPES = ("INT", "LONG")
_LENGTHS = {"DIRECT": ">i", "HEAP": ">i", "JAVACPP": ">i", "LONG_SHAPE": ">q", "MIXED_DATA_TYPES": ">q"}
"""The form of a buffer's length, by how it was held: before 1.0.0-beta it had four bytes."""
_MAX_RANK = 32
_MAX_SHAPE_NUMBERS = 2 * _MAX_RANK + 4


def read_array(data: bytes | memoryview, at: int = 0) -> tuple[NDArray[np.generic], int]:
    """The array that begins at a place.

    Args:
        data: Of a file, all of it.
        at: Where the array begins.

    Returns:
        A view of `data`, read-only, in its byte order and the order of its elements, and where it ends. BFLOAT16 comes as float32,
        in memory of its own.

    Raises:
        DamagedError: There is none, or it is not whole.
        StorageError: An array in a form that is not read, such as a compressed one.
    """
    information, kind, at = _buffer(data, at, _MAX_SHAPE_NUMBERS)
    if kind not in _SHAPE_TYPES:
        problem = f"expected a shape of INT or LONG, received {kind}"
        raise _damaged(problem)
    rank = int(information[0]) if information.size else -1
    if not 0 <= rank <= _MAX_RANK or information.size < 2 * rank + 4:
        problem = f"expected a shape, received {rank} axes in {information.size} numbers"
        raise _damaged(problem)
    shape = tuple(int(length) for length in information[1 : 1 + rank])
    order = {ord("c"): "C", ord("f"): "F"}.get(int(information[-1]))
    if order is None or any(length < 0 for length in shape):
        problem = f"expected a shape in order c or f, received {shape} in {int(information[-1])}"
        raise _damaged(problem)
    elements, kind, at = _buffer(data, at, None)
    if elements.size != math.prod(shape):
        problem = f"expected {math.prod(shape)} elements of the shape {shape}, received {elements.size}"
        raise _damaged(problem)
    if kind == "BFLOAT16":
        elements = (elements.astype(np.uint32) << 16).view(np.float32)
    return elements.reshape(shape, order=order), at  # type: ignore[call-overload]


def read_text(data: bytes | memoryview, at: int = 0) -> tuple[str, int]:
    """The text that begins at a place, and where it ends.

    Raises:
        DamagedError: There is none.
    """
    if at + 2 > len(data):
        problem = f"expected a text at byte {at}, received the end after {len(data)}"
        raise _damaged(problem)
    (length,) = struct.unpack_from(">H", data, at)
    content = bytes(data[at + 2 : at + 2 + length])
    if len(content) != length or not content.isascii():
        problem = f"expected a text of {length} bytes at byte {at}, received {content[:40]!r}"
        raise _damaged(problem)
    return content.decode("ascii"), at + 2 + length


def _buffer(data: bytes | memoryview, at: int, most: int | None) -> tuple[NDArray[np.generic], str, int]:
    """The elements of the buffer that begins there, the name of their type, and where it ends."""
    mode, at = read_text(data, at)
    form = _LENGTHS.get(mode)
    if form is None:
        problem = f"expected the mode of a buffer, such as MIXED_DATA_TYPES, received {mode!r:.40}"
        raise _damaged(problem)
    size = struct.calcsize(form)
    if at + size > len(data):
        problem = f"expected the length of a buffer at byte {at}, received the end after {len(data)}"
        raise _damaged(problem)
    (length,) = struct.unpack_from(form, data, at)
    kind, at = read_text(data, at + size)
    return _elements(data, at, length, kind, most)


def _elements(
    data: bytes | memoryview, at: int, length: int, kind: str, most: int | None
) -> tuple[NDArray[np.generic], str, int]:
    if kind not in _TYPES:
        if kind in ("COMPRESSED", "UTF8"):
            text = f"array of ND4J: expected numbers, received {kind} elements"
            raise StorageError(
                text, hint="save it again without compression (Nd4j.getCompressor().decompress)"
            )
        problem = f"expected the type of elements, such as FLOAT, received {kind!r:.40}"
        raise _damaged(problem)
    dtype = np.dtype(_TYPES[kind])
    there = len(data) - at
    if not 0 <= length <= there // dtype.itemsize or (most is not None and length > most):
        problem = f"expected at most {there} bytes, received {length} elements of {kind}"
        raise _damaged(problem)
    return np.frombuffer(data, dtype, length, at), kind, at + length * dtype.itemsize


def _damaged(problem: str) -> DamagedError:
    return DamagedError(f"array of ND4J: {problem}", hint="the file is damaged or incomplete: copy it again")
