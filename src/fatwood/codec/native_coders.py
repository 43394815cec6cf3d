"""The two packings in C, ``src/kernel/rice_*.c`` and ``ternary.c``: the calls, and words for what C finds wrong.

C checks every byte of a payload that it reads, but trusts the sizes of the arrays it is given; those are checked here,
before memory is taken. `fatwood.codec.native` opens the library and declares its functions.

Shapes: ``count`` positions of ``n`` parameters.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from fatwood.codec import ternary
from fatwood.codec.kernel import Positions, RicePlan, Signs
from fatwood.errors import ProtocolError

__all__ = [
    "rice_pack",
    "rice_plan",
    "rice_unpack",
    "ternary_histogram",
    "ternary_pack",
    "ternary_unpack",
]

_BLOCK = 32  # gaps with a Rice parameter of their own
_SEGMENT = 8 * 8192  # parameters

# By the numbers of src/kernel/bits.h: the field, what was expected of it, what was received. Formatted with count, n and
# length (of the payload).
_WRONG = {
    1: ("arguments", "count at most n = {n}, and frequencies with a sum of 65536", "count {count}"),
    2: ("length", "all streams of {count} positions", "{length} bytes, which end too soon"),
    3: ("length", "nothing after {count} positions", "{length} bytes, which go on"),
    4: ("padding", "zero bits", "a one"),
    5: ("positions", "all below {n}", "one beyond"),
    6: ("k", "0 to 57", "another"),
    7: ("form", "one block for {count} positions", "many"),
    8: ("form of the flips", "bit 6 zero", "a one"),
    9: ("varint of the flips", "at most 10 bytes in the shortest form", "another form"),
    10: ("flips", "all between {count} signs", "one beyond"),
    11: ("lengths", "{length} bytes in all segments", "another sum"),
    12: ("segments", "none that ends with a zero byte", "one"),
    13: ("segment", "no bytes left unread", "some"),
    14: ("segment", "a number in its range", "one beyond"),
    15: ("segment", "signs in their range", "one beyond"),
    16: ("positions", "{count}", "another number"),
}


def rice_plan(library: ctypes.CDLL, positions: Positions, negative: Signs) -> RicePlan:
    """See `fatwood.codec.rice.plan`.

    Args:
        library: The compiled kernel.
        positions: (count,) ascending and unique; at least one.
        negative: (count,) signs.
    """
    positions, negative = _sources(positions, negative)
    k = np.empty(-(-positions.size // _BLOCK), np.uint8)
    out = np.empty(4, np.int64)
    library.fw_rice_plan(
        positions.ctypes.data, negative.ctypes.data, positions.size, k.ctypes.data, out.ctypes.data
    )
    length, flips, flips_k, blocks = out.tolist()
    return RicePlan(k[:blocks], flips, flips_k, length)


def rice_pack(library: ctypes.CDLL, positions: Positions, negative: Signs, plan: RicePlan) -> bytes:
    """See `fatwood.codec.rice.pack`.

    Args:
        library: The compiled kernel.
        positions: (count,) ascending and unique; at least one.
        negative: (count,) signs.
        plan: Of these positions and signs.

    Raises:
        ValueError: The plan is that of others.
    """
    positions, negative = _sources(positions, negative)
    k = np.require(plan.k, np.uint8, "C")
    out = np.empty(plan.bytes, np.uint8)
    length = library.fw_rice_pack(
        positions.ctypes.data,
        negative.ctypes.data,
        positions.size,
        k.ctypes.data,
        k.size,
        plan.flips,
        plan.flips_k,
        out.ctypes.data,
        out.size,
    )
    if length != plan.bytes:
        msg = f"plan: expected that of {positions.size} ascending positions, received another, of {plan.bytes} bytes"
        raise ValueError(msg)
    return out.tobytes()


def rice_unpack(library: ctypes.CDLL, payload: memoryview, count: int, n: int) -> tuple[Positions, Signs]:
    """See `fatwood.codec.rice.unpack`.

    Args:
        library: The compiled kernel.
        payload: The streams and nothing else.
        count: How many positions are claimed.
        n: How many parameters there are, below 2**63.

    Raises:
        ProtocolError: The payload is not a packing of ``count`` positions below ``n``.
    """
    most = min(n, 8 * len(payload))
    if not 0 <= count <= most:
        msg = f"Rice payload, count: expected at most {most}, for {n} parameters and {len(payload)} bytes, received {count}"
        raise ProtocolError(msg)
    octets = np.frombuffer(payload, np.uint8)
    positions, negative = np.empty(count, np.int64), np.empty(count, np.bool_)
    wrong = library.fw_rice_unpack(
        octets.ctypes.data, octets.size, count, n, positions.ctypes.data, negative.ctypes.data
    )
    _require_nothing("Rice", wrong, count, n, octets.size)
    return positions, negative


def ternary_histogram(library: ctypes.CDLL, positions: Positions, n: int) -> NDArray[np.int64]:
    """See `fatwood.codec.ternary.histogram`.

    Args:
        library: The compiled kernel.
        positions: (count,) ascending and unique.
        n: How many parameters there are.
    """
    positions = _source(positions, np.int64)
    of_hits = np.empty(9, np.int64)
    library.fw_ternary_histogram(positions.ctypes.data, positions.size, n, of_hits.ctypes.data)
    return of_hits


def ternary_pack(library: ctypes.CDLL, positions: Positions, negative: Signs, n: int) -> bytes:
    """See `fatwood.codec.ternary.pack`.

    Args:
        library: The compiled kernel.
        positions: (count,) ascending and unique, in ``range(n)``.
        negative: (count,) signs.
        n: How many parameters there are.

    Raises:
        ValueError: The positions are not ascending in ``range(n)``.
    """
    if not n:
        return b""
    positions, negative = _sources(positions, negative)
    table = ternary.frequencies(positions.size, n).astype(np.uint32)
    # 16 bits for a byte of the mask, one for a sign, and in each segment two bytes of length and one number of seven.
    out = np.empty(2 * -(-n // 8) + positions.size // 8 + 16 * -(-n // _SEGMENT), np.uint8)
    length = library.fw_ternary_pack(
        positions.ctypes.data,
        negative.ctypes.data,
        positions.size,
        n,
        table.ctypes.data,
        out.ctypes.data,
        out.size,
    )
    if length < 0:
        msg = f"positions: expected ascending numbers in range({n}), received others"
        raise ValueError(msg)
    return out[:length].tobytes()


def ternary_unpack(library: ctypes.CDLL, payload: memoryview, count: int, n: int) -> tuple[Positions, Signs]:
    """See `fatwood.codec.ternary.unpack`.

    Args:
        library: The compiled kernel.
        payload: Lengths and segments and nothing else.
        count: How many positions are claimed.
        n: How many parameters there are, below 2**63.

    Raises:
        ProtocolError: The payload is not a packing of ``count`` positions below ``n``.
    """
    if not 0 <= count <= n:
        msg = f"ternary payload, count: expected at most {n} parameters, received {count}"
        raise ProtocolError(msg)
    octets = np.frombuffer(payload, np.uint8)
    table = ternary.frequencies(count, max(n, 1)).astype(np.uint32)
    positions, negative = np.empty(count, np.int64), np.empty(count, np.bool_)
    wrong = library.fw_ternary_unpack(
        octets.ctypes.data,
        octets.size,
        count,
        n,
        table.ctypes.data,
        positions.ctypes.data,
        negative.ctypes.data,
    )
    _require_nothing("ternary", wrong, count, n, octets.size)
    return positions, negative


def _require_nothing(coder: str, wrong: int, count: int, n: int, length: int) -> None:
    if wrong:
        field, expected, received = (part.format(count=count, n=n, length=length) for part in _WRONG[wrong])
        msg = f"{coder} payload, {field}: expected {expected}, received {received}"
        raise ProtocolError(msg)


def _sources(positions: Positions, negative: Signs) -> tuple[Positions, Signs]:
    """Positions and signs as C reads them, one of these for each of those."""
    positions, negative = _source(positions, np.int64), _source(negative, np.bool_)
    if negative.shape != positions.shape:
        msg = f"negative: expected shape {positions.shape} as the positions, received {negative.shape}"
        raise ValueError(msg)
    return positions, negative


def _source(array: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """An array as C reads it: contiguous and aligned; copied only when it is not."""
    if array.dtype != dtype or array.ndim != 1:
        msg = f"array: expected {np.dtype(dtype)} of one dimension, received {array.dtype} of shape {array.shape}"
        raise ValueError(msg)
    return np.require(array, requirements=("C", "A"))
