"""Range coding of mask and signs for dense steps, where Golomb-Rice codes leave bits on the table.

Each parameter is nothing, ``+tau`` or ``-tau``. The mask is written as ``ceil(n / 8)`` bytes, bit ``i % 8`` of byte
``i // 8`` for parameter ``i``, each followed by the signs of its hits, with a range coder (Martin, "Range encoding: an
algorithm for removing redundancy from a digitised message", 1979). Segments of 8192 mask bytes (65536 parameters) are
coded one by one::

    lengths      2 bytes, little-endian, for every segment but the last: how long it is
    segments     one after another, the last takes the rest

All segments share one model, which is never sent: a mask byte has each bit set with the probability ``a`` of a hit.
In IEEE doubles and in this order, for ``c`` hits in the byte::

    P = (count * 65536 + n // 2) // n, at least 1 and at most 65535;  a = P / 65536;  b = 1 - a
    w = 1, times a c times, times b 8 - c times;  frequency = max(1, int(w * 65280))

What the 256 frequencies leave of 65536 goes on top to byte 0x00 (P <= 32768) or else 0xFF. ``cum[x]`` is the sum of
the frequencies of bytes smaller than x. A segment starts with ``low = 0, range = 2**56`` and has for every mask byte::

    byte x:          r = range >> 16;  low += cum[x] * r;  range = frequency[x] * r;  carry;  renorm
    its c > 0 signs: r = range >> c;   low += s * r;       range = r;                 carry;  renorm
                     as a number s, the first hit in the lowest bit, 1 = negative

    carry:   while low >= 2**56: subtract 2**56 and add one to the bytes written so far
    renorm:  while range < 2**48: write byte low >> 48;  low = (low << 8) mod 2**56;  range <<= 8
    end:     for the smallest m in 0 ... 7 with v = (low rounded up to a multiple of 2**(56 - 8 m)) < low + range:
             carry, write the top m bytes of v, then drop the zero bytes that end the segment

The reader has ``code``, the first 7 bytes big-endian, in place of low (zeros follow a segment): ``code // r`` lies
among the ``cum`` of x, ``code -= cum[x] * r``, and ``code`` takes another byte wherever the writer wrote one.

Python integers code one segment; for many, NumPy takes a step in all of them at once. Both keep a pending carry as
bit 56 of ``low``, so that "bytes" written may be up to 511 until the end of the segment adds them up.

Shapes: ``m`` mask bytes in ``lanes`` whole segments and a last one of any length.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from fatwood.codec.kernel import Positions, Signs
from fatwood.errors import ProtocolError

__all__ = ["estimate_bytes", "frequencies", "histogram", "pack", "unpack"]

_SEGMENT = 8192  # mask bytes
_MANY = 96  # segments from which NumPy is faster than Python integers
_TOTAL = 1 << 16
_WHOLE = 1 << 56
_SMALL = 1 << 48
_LONGEST = 7 + 3 * _SEGMENT  # bytes of a segment: no mask byte with its signs takes more than three

_HITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(
    axis=1, dtype=np.uint8
)  # in a byte


def frequencies(count: int, n: int) -> NDArray[np.int64]:
    """The model: how much of 65536 each value of a mask byte has, (256,), at least 1.

    Args:
        count: How many parameters move.
        n: How many there are; at least 1.

    >>> frequencies(1, 8)[[0, 1, 3, 255]].tolist()
    [22745, 3204, 457, 1]
    """
    p = min(max((count * _TOTAL + n // 2) // n, 1), _TOTAL - 1)
    hit = p / 65536.0
    miss = 1.0 - hit
    of_hits = []
    for hits in range(9):
        weight = 1.0
        for factor in (*[hit] * hits, *[miss] * (8 - hits)):
            weight *= factor
        of_hits.append(max(1, int(weight * 65280.0)))
    table: NDArray[np.int64] = np.array(of_hits, np.int64)[_HITS]
    table[0 if p <= _TOTAL // 2 else 255] += _TOTAL - int(table.sum())
    return table


def histogram(positions: Positions, n: int) -> NDArray[np.int64]:
    """How many of the mask's bytes have 0, 1, ... 8 hits: (9,).

    Args:
        positions: (count,) ascending and unique.
        n: How many parameters there are.

    >>> histogram(np.array([0, 7, 9]), 30).tolist()
    [2, 1, 1, 0, 0, 0, 0, 0, 0]
    """
    starts = _byte_starts(positions)
    of_hits = np.bincount(np.diff(starts, append=positions.size), minlength=9)
    of_hits[0] = -(-n // 8) - starts.size
    return of_hits


def estimate_bytes(histogram: NDArray[np.int64], count: int, n: int) -> int:
    """About how long the payload will be: the model's ideal code length and what the segments add.

    Args:
        histogram: (9,) of `histogram`.
        count: How many parameters move.
        n: How many there are; at least 1.
    """
    table = frequencies(count, n)
    of_hits = table[[0, 1, 3, 7, 15, 31, 63, 127, 255]].tolist()
    bits = float(count)
    for bytes_with, frequency in zip(histogram.tolist(), of_hits, strict=True):
        bits += bytes_with * (16.0 - math.log2(frequency))
    return math.ceil(bits / 8.0) + 1 + 3 * (_segments(n) - 1)


def pack(positions: Positions, negative: Signs, n: int) -> bytes:
    """Writes mask and signs.

    Args:
        positions: (count,) ascending and unique, in ``range(n)``.
        negative: (count,) signs.
        n: How many parameters there are.
    """
    if not n:
        return b""
    mask, signs = _mask_bytes(positions, negative, n)
    table = frequencies(positions.size, n)
    segments: list[bytes] = []
    whole = mask.size // _SEGMENT
    if whole >= _MANY:
        lanes = (whole, _SEGMENT)
        done = whole * _SEGMENT
        segments += _write_lanes(mask[:done].reshape(lanes), signs[:done].reshape(lanes), table)
    for start in range(len(segments) * _SEGMENT, mask.size, _SEGMENT):
        part = slice(start, start + _SEGMENT)
        segments.append(_write_segment(mask[part].tobytes(), signs[part].tobytes(), table))
    lengths = np.array([len(segment) for segment in segments[:-1]], "<u2")
    return b"".join((lengths.tobytes(), *segments))


def unpack(payload: memoryview, count: int, n: int) -> tuple[Positions, Signs]:
    """Reads what `pack` wrote; no length or value is trusted.

    It takes a few bytes of memory for every mask byte, that is by ``n`` and never by what the payload says.

    Args:
        payload: Lengths and segments and nothing else.
        count: How many positions are claimed.
        n: How many parameters there are.

    Returns:
        Positions (count,), ascending and unique in ``range(n)``, and signs (count,).

    Raises:
        ProtocolError: The payload is not a packing of ``count`` positions below ``n``.
    """
    _require("count", f"at most {n} parameters", count, 0 <= count <= n)
    if not n:
        _require("length", "nothing for no parameters", f"{len(payload)} bytes", not len(payload))
        return np.empty(0, np.int64), np.empty(0, np.bool_)
    segments = _split(payload, _segments(n))
    size = -(-n // 8)
    table = frequencies(count, n)
    mask = np.empty(size, np.uint8)
    signs = np.empty(size, np.uint8)
    done, whole = 0, size // _SEGMENT
    if whole >= _MANY:
        done = whole * _SEGMENT
        lanes = (whole, _SEGMENT)
        _read_lanes(segments[:whole], table, mask[:done].reshape(lanes), signs[:done].reshape(lanes))
    for start in range(done, size, _SEGMENT):
        part = slice(start, min(start + _SEGMENT, size))
        _read_segment(segments[start // _SEGMENT], table, mask[part], signs[part])
    positions = np.flatnonzero(np.unpackbits(mask, bitorder="little").view(np.bool_))
    _require("positions", str(count), positions.size, positions.size == count)
    _require("positions", f"all below {n}", "one beyond", not count or int(positions[-1]) < n)
    byte = positions >> 3
    rank = np.arange(count) - (np.cumsum(_HITS[mask], dtype=np.int64) - _HITS[mask])[byte]
    return positions, (signs[byte] >> rank.astype(np.uint8) & np.uint8(1)).view(np.bool_)


def _segments(n: int) -> int:
    return -(-n // (8 * _SEGMENT))


def _byte_starts(positions: Positions) -> NDArray[np.int64]:
    """The indices of those positions that are the first of their mask byte."""
    return np.flatnonzero(np.diff(positions >> 3, prepend=-1))


def _mask_bytes(positions: Positions, negative: Signs, n: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The mask (m,) and the signs of every byte's hits (m,), the first hit in the lowest bit."""
    bits = np.zeros(-(-n // 8) * 8, np.bool_)
    bits[positions] = True
    signs = np.zeros(bits.size // 8, np.uint8)
    starts = _byte_starts(positions)
    if starts.size:
        rank = np.arange(positions.size) - np.repeat(starts, np.diff(starts, append=positions.size))
        placed = negative.view(np.uint8) << rank.astype(np.uint8)
        signs[positions[starts] >> 3] = np.add.reduceat(placed, starts, dtype=np.uint8)
    return np.packbits(bits, bitorder="little"), signs


def _cumulate(table: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(table) - table


def _write_segment(mask: bytes, signs: bytes, table: NDArray[np.int64]) -> bytes:
    frequency, below, hits = table.tolist(), _cumulate(table).tolist(), _HITS.tolist()
    low, span, digits = 0, _WHOLE, []
    for x, s in zip(mask, signs, strict=True):
        r = span >> 16
        low += below[x] * r
        span = frequency[x] * r
        while span < _SMALL:
            digits.append(low >> 48)
            low = (low & (_SMALL - 1)) << 8
            span <<= 8
        if x:
            span >>= hits[x]
            low += s * span
            if span < _SMALL:
                digits.append(low >> 48)
                low = (low & (_SMALL - 1)) << 8
                span <<= 8
    return _finish(np.array(digits, np.uint16), low, span)


def _write_lanes(mask: NDArray[np.uint8], signs: NDArray[np.uint8], table: NDArray[np.int64]) -> list[bytes]:
    """`_write_segment` for each row of (lanes, 8192)."""
    steps, lanes = mask.T.shape
    frequency, below = table.astype(np.uint64), _cumulate(table).astype(np.uint64)
    low, span = np.zeros(lanes, np.uint64), np.full(lanes, _WHOLE, np.uint64)
    digits = np.empty((steps, 3, lanes), np.uint16)  # what each step would write, and whether it did
    written = np.zeros((steps, 3, lanes), np.bool_)
    limit, rest, forty_eight, sixteen, eight = _constants(_SMALL, _SMALL - 1, 48, 16, 8)

    def renorm(digit: NDArray[np.uint16], small: NDArray[np.bool_]) -> None:
        if np.less(span, limit, out=small).any():
            np.right_shift(low, forty_eight, out=digit, casting="unsafe")
            np.bitwise_and(low, rest, out=low, where=small)
            np.left_shift(low, eight, out=low, where=small)
            np.left_shift(span, eight, out=span, where=small)

    turned = np.ascontiguousarray(mask.T), np.ascontiguousarray(signs.T)
    for x, s, digit, small in zip(*turned, digits, written, strict=True):
        np.right_shift(span, sixteen, out=span)
        np.add(low, below.take(x) * span, out=low)
        np.multiply(span, frequency.take(x), out=span)
        renorm(digit[0], small[0])
        renorm(digit[1], small[1])
        np.right_shift(span, _HITS.take(x), out=span)
        np.add(low, s * span, out=low)
        renorm(digit[2], small[2])
    by_lane = zip(np.moveaxis(digits, 2, 0), np.moveaxis(written, 2, 0), low, span, strict=True)
    return [_finish(row[kept], int(last), int(left)) for row, kept, last, left in by_lane]


def _finish(digits: NDArray[np.uint16], low: int, span: int) -> bytes:
    """The bytes of a segment: carries added, and the shortest number in the last interval."""
    for tail in range(8):
        unit = _WHOLE >> (8 * tail)
        value = -(-low // unit)
        if value * unit < low + span:
            break
    high = (digits >> np.uint16(8)).astype(np.uint8).tobytes()
    number = int.from_bytes(digits.astype(np.uint8).tobytes(), "big") + (int.from_bytes(high, "big") << 8)
    return ((number << 8 * tail) + value).to_bytes(digits.size + tail, "big").rstrip(b"\0")


def _split(payload: memoryview, segments: int) -> list[memoryview]:
    """The payload's segments, their lengths checked."""
    start = 2 * (segments - 1)
    _require("length", f"at least {start} bytes for {segments} segments", len(payload), start <= len(payload))
    lengths = np.frombuffer(payload[:start], "<u2").astype(np.int64)
    ends = start + np.cumsum(lengths)
    last = len(payload) - (int(ends[-1]) if ends.size else start)
    _require("lengths", f"{len(payload)} bytes in all", f"{last} left for the last segment", last >= 0)
    bounds = [start, *ends.tolist(), len(payload)]
    parts = [payload[a:b] for a, b in itertools.pairwise(bounds)]
    longest = max(len(part) for part in parts)
    _require("lengths", f"at most {_LONGEST} bytes a segment", longest, longest <= _LONGEST)
    _require(
        "segments", "none that ends with a zero byte", "one", all(not part or part[-1] for part in parts)
    )
    return parts


def _read_segment(
    octets: memoryview, table: NDArray[np.int64], mask: NDArray[np.uint8], signs: NDArray[np.uint8]
) -> None:
    """Reads as many mask bytes (m,) and signs (m,) as there is room for."""
    frequency, below, hits = table.tolist(), _cumulate(table).tolist(), _HITS.tolist()
    symbols = _symbols(table).tobytes()
    stream = iter(bytes(octets) + bytes(_LONGEST + 1 - len(octets)))
    span, code, read = _WHOLE, 0, 7
    for _ in range(7):
        code = code << 8 | next(stream)
    xs, ss = bytearray(), bytearray()
    for _ in range(mask.size):
        span >>= 16
        target = code // span
        _require("segment", "a number in its range", "one beyond", target < _TOTAL)
        x, s = symbols[target], 0
        code -= below[x] * span
        span *= frequency[x]
        while span < _SMALL:
            code = code << 8 | next(stream)
            span <<= 8
            read += 1
        if x:
            span >>= hits[x]
            s = code // span
            _require("segment", "signs in their range", "one beyond", not s >> hits[x])
            code -= s * span
            if span < _SMALL:
                code = code << 8 | next(stream)
                span <<= 8
                read += 1
        xs.append(x)
        ss.append(s)
    _require("segment", f"at most {read} bytes", len(octets), len(octets) <= read)
    mask[:] = np.frombuffer(xs, np.uint8)
    signs[:] = np.frombuffer(ss, np.uint8)


def _read_lanes(
    parts: list[memoryview], table: NDArray[np.int64], mask: NDArray[np.uint8], signs: NDArray[np.uint8]
) -> None:
    """`_read_segment` for each row of (lanes, 8192)."""
    lanes = len(parts)
    frequency, below = table.astype(np.uint64), _cumulate(table).astype(np.uint64)
    symbols = _symbols(table)
    octets = np.zeros((lanes, _LONGEST + 1), np.uint8)
    for row, part in zip(octets, parts, strict=True):
        row[: len(part)] = np.frombuffer(part, np.uint8)
    stream = octets.reshape(-1)
    starts = np.arange(lanes) * octets.shape[1]
    at = starts + 7
    code, span = np.zeros(lanes, np.uint64), np.full(lanes, _WHOLE, np.uint64)
    for column in octets[:, :7].T:
        code = code << np.uint64(8) | column
    wrong = np.zeros(lanes, np.bool_)  # a lane that went wrong reads on, harmlessly

    limit, sixteen, eight, total = _constants(_SMALL, 16, 8, _TOTAL)

    def renorm() -> None:
        small = span < limit
        if small.any():
            np.left_shift(code, eight, out=code, where=small)
            np.bitwise_or(code, stream[at], out=code, where=small)
            np.left_shift(span, eight, out=span, where=small)
            np.add(at, small, out=at)

    turned = np.empty((2, _SEGMENT, lanes), np.uint8)
    for x, s in zip(*turned, strict=True):
        np.right_shift(span, sixteen, out=span)
        target = code // span
        wrong |= target >= total
        np.take(symbols, target.view(np.int64), out=x, mode="clip")
        np.subtract(code, below.take(x) * span, out=code)
        np.multiply(span, frequency.take(x), out=span)
        renorm()
        renorm()
        hits = _HITS.take(x)
        np.right_shift(span, hits, out=span)
        number = code // span
        wrong |= number >> hits != 0
        s[:] = number
        np.subtract(code, number * span, out=code)
        renorm()
    _require("segment", "numbers in their ranges", "one beyond", not wrong.any())
    lengths = np.array([len(part) for part in parts])
    _require("segment", "no bytes left unread", "some", not np.any(lengths > at - starts))
    mask[:], signs[:] = np.moveaxis(turned, 1, 2)


def _constants(*numbers: int) -> list[NDArray[np.uint64]]:
    """Arrays without a dimension: with short vectors NumPy takes half as long over these as over its scalars."""
    return [np.array(number, np.uint64) for number in numbers]


def _symbols(table: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(65536,) the mask byte whose share of the range a number lies in."""
    return np.repeat(np.arange(256, dtype=np.uint8), table)


def _require(field: str, expected: str, received: object, holds: bool) -> None:  # noqa: FBT001 - the condition itself
    if not holds:
        msg = f"ternary payload, {field}: expected {expected}, received {received}"
        raise ProtocolError(msg)
