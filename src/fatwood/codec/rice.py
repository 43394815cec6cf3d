"""Golomb-Rice coding of sorted positions and their signs, vectorised both ways.

The gaps of a random mask are geometric, and Golomb codes are the optimal prefix codes for them (Golomb, "Run-length
encodings", 1966; with powers of two: Rice and Plaunt, "Adaptive variable-length coding", 1971; Strom, "Scalable
distributed DNN training", 2015, proposed entropy coding of threshold messages). With ``position[-1] = -1``::

    gap[i] = position[i] - position[i - 1] - 1

"Rice with k" writes a gap as its quotient ``gap >> k`` in unary (that many zeros, then a one) and its ``k`` low bits.
Bits fill each byte from the lowest up. Every stream is padded with zero bits to a whole byte. The payload::

    form         1 byte     bits 0-5: k of the first block
                            bit 6: blocks of 32 gaps have a k each (the last may be shorter); only with more than 32
                            bit 7: signs are written as flips
    flips        1 byte     bits 0-5: flips_k; bit 6: zero; bit 7: the first sign, 1 = negative  } only when bit 7
                 varint     F, how many flips                                                    } of form is set
    table        a stream   for every block but the first zigzag(k - k of the block before), in unary, only when
                            bit 6 of form is set; zigzag maps 0, -1, +1, -2, +2 to 0, 1, 2, 3, 4
    signs        a stream   count bits, 1 = negative; or, when bit 7 of form is set, two:
                            F * flips_k remainder bits of the flips, and
                            the quotients of the flips in unary
    remainders   a stream   the k low bits of every gap
    quotients    a stream   of every gap, in unary; it ends with the byte of the last one

Element ``i >= 1`` is a flip when its sign is not that of element ``i - 1``; flips are the positions ``i - 1`` in
``range(count - 1)`` and have gaps like all positions. No positions, no payload. `fatwood.codec.varint` says what a varint is.

The writer has no choice, so that all kernels write the same bytes: ``k`` is the smallest of those with the fewest
bits, one for all unless blocks need fewer bytes in the whole payload; signs are plain unless flips need fewer bytes;
``flips_k`` is 0 without flips.

Shapes: ``count`` positions in ``blocks`` of 32. Where blocks are columns (32, blocks) and not rows, NumPy's inner
loops run over all blocks and not over 32 numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fatwood.codec.kernel import Positions, RicePlan, Signs
from fatwood.codec.varint import read_varint, varint
from fatwood.errors import ProtocolError

__all__ = ["pack", "plan", "unpack"]

Gaps = NDArray[Any]  # of np.uint32 or np.uint64

_BLOCK = 32  # gaps; k of them are k words of 32 bits
_BLOCKS_FLAG = 0x40
_FLIPS_FLAG = 0x80
_K_MASK = 0x3F
_MAX_K = 57

_POWERS = 1 << np.arange(63, dtype=np.int64)
_ONES = np.array([bin(octet).count("1") for octet in range(256)], np.uint8)


def plan(positions: Positions, negative: Signs) -> RicePlan:
    """Finds the form with the fewest bytes, and their exact number.

    Args:
        positions: (count,) ascending and unique; at least one.
        negative: (count,) signs.

    >>> plan(np.array([1, 4, 5, 17]), np.array([False, True, False, True])).bytes
    5
    """
    gaps = _gaps(positions)
    k, length = _best_k(gaps[:, None], np.array([gaps.size]))
    if gaps.size > _BLOCK:
        block_k, block_length = _best_k(np.ascontiguousarray(_rows(gaps).T), _block_sizes(gaps.size))
        block_length += _bytes_for(block_k.size - 1 + int(_zigzag(np.diff(block_k)).sum()))
        if block_length < length:
            k, length = block_k, block_length
    flips, flips_k, signs = _plan_signs(negative)
    return RicePlan(k.astype(np.uint8), flips, flips_k, 1 + signs + length)


def pack(positions: Positions, negative: Signs, plan: RicePlan) -> bytes:
    """Writes positions and signs as planned.

    Args:
        positions: (count,) ascending and unique; at least one.
        negative: (count,) signs.
        plan: Of these positions and signs.
    """
    gaps = _gaps(positions)
    k = plan.k.astype(np.int64)
    blocked, flipped = k.size > 1, plan.flips >= 0
    parts = [bytes([int(k[0]) | _BLOCKS_FLAG * blocked | _FLIPS_FLAG * flipped])]
    if flipped:
        parts += [bytes([plan.flips_k | 0x80 * bool(negative[0])]), varint(plan.flips)]
    if blocked:
        parts.append(_unary(_zigzag(np.diff(k))))
    if flipped:
        parts += _rice(_flip_gaps(negative), np.array([plan.flips_k]))
    else:
        parts.append(np.packbits(negative, bitorder="little").tobytes())
    return b"".join((*parts, *_rice(gaps, k)))


def unpack(payload: memoryview, count: int, n: int) -> tuple[Positions, Signs]:
    """Reads what `pack` wrote; no length or value is trusted, and memory is taken for what the bytes can hold.

    Args:
        payload: The streams and nothing else.
        count: How many positions are claimed.
        n: How many parameters there are, below 2**63.

    Returns:
        Positions (count,), ascending and unique in ``range(n)``, and signs (count,).

    Raises:
        ProtocolError: The payload is not a packing of ``count`` positions below ``n``.
    """
    most = min(n, 8 * len(payload))
    _require(
        "count", f"at most {most}, for {n} parameters and {len(payload)} bytes", count, 0 <= count <= most
    )
    streams = _Streams(payload)
    if not count:
        streams.end()
        return np.empty(0, np.int64), np.empty(0, np.bool_)
    form = streams.octet()
    k_of_blocks, flips_form, flips = np.array([form & _K_MASK]), 0, -1
    if form & _FLIPS_FLAG:
        flips_form, flips = streams.octet(), streams.varint()
        _require("flips", f"at most {count - 1}", flips, flips < count)
        _require("form of the flips", "bit 6 zero", flips_form, not flips_form & _BLOCKS_FLAG)
    if form & _BLOCKS_FLAG:
        _require("form", f"one block for {count} positions", form, count > _BLOCK)
        steps = _unzigzag(streams.unary(_block_sizes(count).size - 1))
        k_of_blocks = np.cumsum(np.concatenate((k_of_blocks, steps)))
    _check_parameters(k_of_blocks)
    if flips < 0:
        negative = streams.bits(count).view(np.bool_)
    else:
        negative = _read_flips(streams, flips_form, flips, count)
    positions = streams.rice(count, k_of_blocks, n)
    streams.end()
    return positions, negative


def _gaps(positions: Positions) -> Gaps:
    """(count,) in 32 bits where those hold even the sum of all gaps."""
    narrow = not positions.size or int(positions[-1]) < 2**32
    short: Gaps = positions.astype(np.uint32 if narrow else np.uint64)
    gaps = short.copy()
    gaps[1:] -= short[:-1]
    gaps[1:] -= gaps.dtype.type(1)
    return gaps


def _flip_gaps(negative: Signs) -> Gaps:
    return _gaps(np.flatnonzero(negative[1:] != negative[:-1]))


def _rows(gaps: Gaps) -> Gaps:
    """(blocks, 32); the last block is filled up with zeros."""
    padded = np.zeros(-(-gaps.size // _BLOCK) * _BLOCK, gaps.dtype)
    padded[: gaps.size] = gaps
    return padded.reshape(-1, _BLOCK)


def _block_sizes(count: int) -> NDArray[np.int64]:
    return np.minimum(_BLOCK, count - np.arange(0, count, _BLOCK))


def _best_k(columns: Gaps, sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """The smallest ``k`` with the fewest bits for every column, and the bytes of all remainders and quotients.

    The bits of ``m`` gaps of sum S are convex in ``k``: one more costs m and saves the sum of ``ceil((gap >> k) / 2)``.
    That is at most m where ``S <= m 2**k``, and above m where ``S > 3 m 2**k``. So with the smallest K of
    ``S <= m 2**K`` only K - 2, K - 1 and K can be the best.
    """
    total = _sums(columns)
    means = (total + (_BLOCK - 1)) >> 5  # of 32 gaps, rounded up
    means[-1] = -(-total[-1] // sizes[-1])
    smallest = np.clip(np.searchsorted(_POWERS, means) - 2, 0, _MAX_K)
    quotients = columns >> smallest.astype(columns.dtype)
    sums = [_sums(quotients)]
    for _ in range(2):
        quotients >>= columns.dtype.type(1)
        sums.append(_sums(quotients))
    more = (sums[0] - sums[1] > sizes).astype(np.int64) + (sums[1] - sums[2] > sizes)
    more = np.minimum(more, _MAX_K - smallest)
    k = smallest + more
    return k, _bytes_for(int((sizes * k).sum())) + _bytes_for(int((sizes + np.choose(more, sums)).sum()))


def _sums(columns: Gaps) -> NDArray[np.int64]:
    sums: NDArray[np.int64] = columns.sum(axis=0, dtype=columns.dtype).astype(np.int64)
    return sums


def _plan_signs(negative: Signs) -> tuple[int, int, int]:
    """The number of flips or -1 for plain signs, their parameter, and the bytes of the signs."""
    plain = _bytes_for(negative.size)
    flipped = negative[1:] != negative[:-1]
    flips = int(np.count_nonzero(flipped))
    head = 1 + len(varint(flips))
    # With k = 0 they take one bit for each place up to the last, with a larger one at least two for each flip.
    last = flipped.size - int(np.argmax(flipped[::-1])) if flips else 0
    if head + _bytes_for(min(last, 2 * flips)) >= plain:
        return -1, 0, plain
    gaps = _gaps(np.flatnonzero(flipped))
    k, length = _best_k(gaps[:, None], np.array([gaps.size])) if gaps.size else (np.zeros(1), 0)
    length += head
    return (flips, int(k[0]), length) if length < plain else (-1, 0, plain)


def _zigzag(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(steps < 0, -2 * steps - 1, 2 * steps)


def _unzigzag(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(numbers & 1, -(numbers >> 1) - 1, numbers >> 1)


def _bytes_for(bits: int) -> int:
    return -(-bits // 8)


def _rice(gaps: Gaps, k: NDArray[np.int64]) -> list[bytes]:
    """Remainders and quotients, with one ``k`` for all or one for every block."""
    each = np.repeat(k, _BLOCK)[: gaps.size] if k.size > 1 else k
    return [_remainders(gaps, k), _unary(gaps >> each.astype(gaps.dtype))]


def _unary(numbers: NDArray[np.integer]) -> bytes:
    ends = np.cumsum(numbers, dtype=np.int64) + np.arange(numbers.size)
    bits = np.zeros(int(ends[-1]) + 1 if ends.size else 0, np.bool_)
    bits[ends] = True
    return np.packbits(bits, bitorder="little").tobytes()


def _remainders(gaps: Gaps, k: NDArray[np.int64]) -> bytes:
    if not k.any():
        return b""
    rows = _rows(gaps)
    if k.size == 1:
        return _low_bits(rows, int(k[0])).tobytes()[: _bytes_for(gaps.size * int(k[0]))]
    starts = np.cumsum(k) - k  # in words: every block but the last is k of them
    words = np.zeros(int(k.sum()), "<u4")
    for value in np.unique(k[k > 0]):
        blocks = np.flatnonzero(k == value)
        words[starts[blocks, None] + np.arange(value)] = _low_bits(rows[blocks], int(value))
    bits = int((_block_sizes(gaps.size) * k).sum())
    return words.view(np.uint8)[: _bytes_for(bits)].tobytes()


def _pieces(k: int) -> list[tuple[int, int, int]]:
    """Which row's ``k`` bits lie in which 32-bit word of a block, and how far to the left they are shifted."""
    return [
        (row, word, row * k - 32 * word)
        for row in range(_BLOCK)
        for word in range(row * k // 32, (row * k + k - 1) // 32 + 1)
    ]


def _low_bits(rows: Gaps, k: int) -> NDArray[np.uint32]:
    """(blocks, k) words of the ``k`` low bits of every gap in rows (blocks, 32)."""
    number = rows.dtype.type
    low = np.ascontiguousarray(rows.T)
    low &= number((1 << k) - 1)
    words = np.zeros((k, rows.shape[0]), rows.dtype)
    for row, word, left in _pieces(k):
        words[word] |= low[row] << number(left) if left >= 0 else low[row] >> number(-left)
    return words.astype("<u4", copy=False).T


def _from_low_bits(words: NDArray[np.uint32], k: int) -> Gaps:
    """Rows (blocks, 32) of ``k``-bit numbers from (blocks, k) words; the inverse of `_low_bits`."""
    number = np.uint32 if k < 32 else np.uint64
    turned = np.ascontiguousarray(words.T).astype(number, copy=False)
    low = np.zeros((_BLOCK, words.shape[0]), number)
    for row, word, left in _pieces(k):
        low[row] |= turned[word] >> number(left) if left >= 0 else turned[word] << number(-left)
    low &= number((1 << k) - 1)
    return low.T


def _read_flips(streams: _Streams, form: int, flips: int, count: int) -> Signs:
    k = np.array([form & _K_MASK])
    _check_parameters(k)
    changes = np.zeros(count, np.bool_)
    changes[0] = bool(form & 0x80)
    changes[streams.rice(flips, k, count - 1) + 1] = True
    return np.logical_xor.accumulate(changes)


def _check_parameters(k: NDArray[np.int64]) -> None:
    _require("k", f"0 to {_MAX_K}", f"{k.min()} to {k.max()}", 0 <= k.min() <= k.max() <= _MAX_K)


def _require(field: str, expected: str, received: object, holds: bool) -> None:  # noqa: FBT001 - the condition itself
    if not holds:
        msg = f"Rice payload, {field}: expected {expected}, received {received}"
        raise ProtocolError(msg)


class _Streams:
    """A payload read from its start, stream by stream; nothing is read past its end."""

    def __init__(self, payload: memoryview) -> None:
        self._octets = np.frombuffer(payload, np.uint8)
        self._at = 0

    def octet(self) -> int:
        return int(self._take(1)[0])

    def varint(self) -> int:
        number, self._at = read_varint(self._octets.data, self._at)
        return number

    def bits(self, count: int) -> NDArray[np.uint8]:
        """(count,) zeros and ones."""
        bits = np.unpackbits(self._take(_bytes_for(count)), bitorder="little")
        _require("padding", "zero bits", "a one", not bits[count:].any())
        return bits[:count]

    def unary(self, count: int) -> NDArray[np.int64]:
        """(count,) numbers, each so many zeros before a one."""
        if not count:
            return np.empty(0, np.int64)
        rest = self._octets[self._at :]
        ones = np.cumsum(_ONES[rest], dtype=np.int64)
        last = int(np.searchsorted(ones, count))
        _require("unary stream", f"{count} ones", f"{int(ones[-1]) if ones.size else 0}", last < rest.size)
        ends = np.flatnonzero(np.unpackbits(self._take(last + 1), bitorder="little").view(np.bool_))
        _require("padding", "zero bits", "a one", ends.size == count)
        numbers = ends.copy()
        numbers[1:] -= ends[:-1] + 1
        return numbers

    def rice(self, count: int, k: NDArray[np.int64], n: int) -> Positions:
        """(count,) ascending positions in ``range(n)`` from their remainders and quotients."""
        remainders = self._remainders(count, k)
        quotients = self.unary(count)
        each = np.repeat(k, _BLOCK)[:count] if k.size > 1 else k
        # A quotient within its bound cannot overflow when shifted, and the first sum to leave range(n) is above n or,
        # wrapped around, negative: as an unsigned number it is too large either way.
        fits = not np.any(quotients > (max(n - 1, 0) >> each))
        gaps = (quotients << each) | remainders if fits else quotients
        positions = np.cumsum(gaps + 1) - 1
        fits = fits and not np.any(gaps >= n) and not np.any(positions.view(np.uint64) >= n)
        _require("positions", f"all in range({n})", "one beyond", fits)
        return positions

    def _remainders(self, count: int, k: NDArray[np.int64]) -> NDArray[np.int64]:
        if not k.any():
            return np.zeros(1, np.int64)
        sizes = _block_sizes(count)
        each = np.broadcast_to(k, sizes.size)
        bits = int((sizes * each).sum())
        stream = self._take(_bytes_for(bits))
        _require("padding", "zero bits", "a one", not bits % 8 or not int(stream[-1]) >> bits % 8)
        words = np.zeros(int(each.sum()), "<u4")
        words.view(np.uint8)[: stream.size] = stream
        starts = np.cumsum(each) - each
        rows = np.zeros((sizes.size, _BLOCK), np.int64)
        for value in np.unique(k[k > 0]):
            blocks = np.flatnonzero(each == value)
            rows[blocks] = _from_low_bits(words[starts[blocks, None] + np.arange(value)], int(value))
        return rows.reshape(-1)[:count]

    def end(self) -> None:
        left = self._octets.size - self._at
        _require("length", "nothing after the last stream", f"{left} bytes", not left)

    def _take(self, length: int) -> NDArray[np.uint8]:
        left = self._octets.size - self._at
        _require("length", f"{length} more bytes", left, length <= left)
        self._at += length
        return self._octets[self._at - length : self._at]
