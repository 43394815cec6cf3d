"""Golomb-Rice coding of sorted positions and their signs, vectorised both ways.

The gaps of a random mask are geometric, and Golomb codes are the optimal prefix codes for them (Golomb 1966; Rice
and Plaunt 1971; Strom 2015 proposed entropy coding of threshold messages). With a parameter ``k`` a gap ``g`` is
written as its quotient ``g >> k`` in unary (that many zeros, then a one) and its ``k`` low bits. The three kinds
of bits are three streams, one after another, each padded with zero bits to a whole byte::

    signs        count bits       1 = negative
    remainders   count * k bits   lowest bit first
    quotients    the rest         unary; at most 7 zero bits follow the last one

Bits fill each byte from the lowest up. With ``k = 0`` there are no remainders and the quotients are the plain
bitmap of the mask up to its last position, so this coder never needs more than a bitmap and its signs.

Positions and gaps are int64 throughout; nothing overflows below 2**58 parameters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fatwood.errors import ProtocolError

__all__ = ["choose_parameter", "gaps_between", "pack", "packed_bytes", "unpack"]


def gaps_between(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many positions are skipped before each one.

    Args:
        positions: (count,) ascending, unique, not negative.

    Returns:
        (count,) gaps, each at least 0.

    >>> gaps_between(np.array([2, 3, 9])).tolist()
    [2, 0, 5]
    """
    return np.diff(positions, prepend=-1) - 1


def choose_parameter(gaps: NDArray[np.int64]) -> int:
    """The ``k`` with the fewest bits, found exactly.

    The size is convex in ``k``, so walking downhill from a good guess ends at the minimum.

    Args:
        gaps: (count,) gaps, see `gaps_between`.

    >>> choose_parameter(np.full(100, 1000))
    9
    """
    if not gaps.size:
        return 0
    k = max(0, (int(gaps.sum()) // gaps.size).bit_length() - 1)
    bits = _code_bits(gaps, k)
    for direction in (-1, 1):
        while k + direction >= 0 and (neighbour := _code_bits(gaps, k + direction)) < bits:
            k, bits = k + direction, neighbour
    return k


def packed_bytes(gaps: NDArray[np.int64], k: int) -> int:
    """The exact length of what `pack` returns, without packing."""
    quotient_bits = gaps.size + int((gaps >> k).sum())
    return _bytes_for(gaps.size) + _bytes_for(gaps.size * k) + _bytes_for(quotient_bits)


def pack(gaps: NDArray[np.int64], negative: NDArray[np.bool_], k: int) -> bytes:
    """Writes gaps and signs as the three streams.

    Args:
        gaps: (count,) gaps, see `gaps_between`.
        negative: (count,) signs.
        k: The Rice parameter.
    """
    if not gaps.size:
        return b""
    ends = np.cumsum((gaps >> k) + 1)  # (count,) the unary codes end before these bits
    unary = np.zeros(int(ends[-1]), np.uint8)
    unary[ends - 1] = 1
    return b"".join(
        np.packbits(bits, bitorder="little").tobytes()
        for bits in (negative, _low_bits(gaps, k).reshape(-1), unary)
    )


def unpack(payload: memoryview, count: int, k: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Reads what `pack` wrote; no length or value is trusted.

    Args:
        payload: The three streams and nothing else.
        count: How many positions are claimed.
        k: The Rice parameter.
        n: How many parameters there are.

    Returns:
        Positions (count,), ascending and unique in ``range(n)``, and signs (count,).

    Raises:
        ProtocolError: The payload is not a packing of ``count`` positions below ``n``.
    """
    if not 0 <= k <= n.bit_length() or not 0 <= count <= n:
        msg = f"Rice payload: expected count and parameter to fit {n} parameters, received {count} and {k}"
        raise ProtocolError(msg)
    sign_bytes, remainder_bytes = _bytes_for(count), _bytes_for(count * k)
    unary_bytes = len(payload) - sign_bytes - remainder_bytes
    most = _bytes_for(count + ((n - count) >> k)) if count else 0
    if not _bytes_for(count) <= unary_bytes <= most:
        msg = (
            f"Rice payload of {count} positions with parameter {k}: expected {sign_bytes + remainder_bytes} bytes and "
            f"{_bytes_for(count)} to {most} of quotients, received {len(payload)} bytes"
        )
        raise ProtocolError(msg)
    negative = _bits(payload[:sign_bytes], count).view(np.bool_)
    remainders = _from_low_bits(
        _bits(payload[sign_bytes : sign_bytes + remainder_bytes], count * k), count, k
    )
    ones = np.flatnonzero(_bits(payload[sign_bytes + remainder_bytes :], unary_bytes * 8))
    if ones.size != count or (count and int(ones[-1]) < unary_bytes * 8 - 8):
        msg = f"Rice payload: expected quotients of {count} positions, received {ones.size} and padding"
        raise ProtocolError(msg)
    # By the two bounds checked first no step is longer than 17 n, so the shift cannot overflow, and the first sum that
    # leaves range(n) is seen as such by max(), even if later sums wrapped around.
    positions = np.cumsum((gaps_between(ones) << k) + remainders + 1) - 1
    if count and not 0 <= int(positions.max()) < n:
        msg = f"Rice payload: expected positions below {n}, received {int(positions.max())}"
        raise ProtocolError(msg)
    return positions, negative


def _code_bits(gaps: NDArray[np.int64], k: int) -> int:
    return gaps.size * k + int((gaps >> k).sum())


def _bytes_for(bits: int) -> int:
    return -(-bits // 8)


def _low_bits(values: NDArray[np.int64], k: int) -> NDArray[np.uint8]:
    """The ``k`` low bits of each value, (count, k), lowest first."""
    octets = values.astype("<i8").view(np.uint8).reshape(values.size, 8)
    used = np.ascontiguousarray(octets[:, : _bytes_for(k)])
    return np.unpackbits(used.reshape(-1), bitorder="little").reshape(values.size, 8 * _bytes_for(k))[:, :k]


def _from_low_bits(bits: NDArray[np.uint8], count: int, k: int) -> NDArray[np.int64]:
    """(count,) values from their ``k`` low bits; the inverse of `_low_bits`."""
    # Padding each value to whole bytes and packing in one row is over twice as fast as packing along an axis.
    padded = np.zeros((count, 8 * _bytes_for(k)), np.uint8)
    padded[:, :k] = bits.reshape(count, k)
    octets = np.zeros((count, 8), np.uint8)
    packed = np.packbits(padded.reshape(-1), bitorder="little")
    octets[:, : _bytes_for(k)] = packed.reshape(count, _bytes_for(k))
    return octets.view("<i8").reshape(count).astype(np.int64, copy=False)


def _bits(stream: memoryview, bits: int) -> NDArray[np.uint8]:
    """The first ``bits`` bits of a stream; what pads it must be zero."""
    unpacked = np.unpackbits(np.frombuffer(stream, np.uint8), bitorder="little")
    if unpacked[bits:].any():
        msg = f"Rice payload: expected zero bits after bit {bits} of a stream, received a one"
        raise ProtocolError(msg)
    return unpacked[:bits]
