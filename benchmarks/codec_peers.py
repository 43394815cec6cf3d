"""What `codec.py` compares with: Deeplearning4j's two encodings, naive torch, top-k, zstd.

Each function takes the residual after or before the addition, as it says, and does all that its method needs to end
with the bytes of a message and the residual that is left.

**Deeplearning4j.** The messages are those of its native code, int for int (little-endian int32), re-implemented here
from their description; the loops are our vectorised NumPy, in chunks that fit the cache, and not their C++: the sizes
are Deeplearning4j's, the times are what its formats cost in NumPy. Their order of entries depends on the threads; here
it is that of one thread, ascending. The flexible encoding::

    int 0     count of entries
    int 1     n
    int 2     bits of the float32 tau
    int 3     0
    int 4...  i + 1 where r[i] >= tau, -(i + 1) where r[i] <= -tau

and the bitmap, ``n // 16 + 5`` ints whatever n is, so one zero word too many where 16 divides n::

    int 0, 1  n
    int 2     bits of the float32 tau
    int 3     1
    int 4...  16 parameters each: bit k "moves", bit k + 16 "downwards";
              only bit k + 16 set: half a step down, for -tau < r <= -tau/2 (there is no half step up)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Positions = NDArray[np.int64]
Signs = NDArray[np.bool_]

CHUNK = 65_536
"""Parameters that are worked on at a time, a multiple of 16; 256 KiB of float32."""

DL4J_HEADER_INTS = 4
_FLEXIBLE, _BITMAP = 0, 1


def dl4j_flexible(residual: Floats, tau: float, limit: int | None = None) -> Ints | None:
    """Deeplearning4j's sparse message; takes what it sends out of the residual.

    As in the original a counting pass comes first, and one lone hit is not sent.

    Args:
        residual: (n,) the sum of the old residual and the update, changed in place.
        tau: The threshold.
        limit: Most entries; ``n // 16`` in the original, which then throws the message away for a bitmap.

    Returns:
        The message, or None (and an unchanged residual) when fewer than two elements reach tau.

    Raises:
        ValueError: More parameters than an int32 can number.
    """
    _check_ints(residual.size)
    quantum = np.float32(tau)
    parts = [residual[start : start + CHUNK] for start in range(0, residual.size, CHUNK)]
    count = sum(int(np.count_nonzero(np.abs(part) >= quantum)) for part in parts)
    if count < 2:
        return None
    count = count if limit is None else min(count, limit)
    message = np.empty(DL4J_HEADER_INTS + count, "<i4")
    message[:4] = count, residual.size, quantum.view(np.int32), _FLEXIBLE
    filled = DL4J_HEADER_INTS
    for index, part in enumerate(parts):
        hits = np.flatnonzero(np.abs(part) >= quantum)[: message.size - filled]
        values = part[hits]
        upwards = values > 0
        part[hits] = values - np.where(upwards, quantum, -quantum)
        numbers = hits + (index * CHUNK + 1)
        message[filled : filled + hits.size] = np.where(upwards, numbers, -numbers)
        filled += hits.size
    return message


def dl4j_bitmap(residual: Floats, tau: float) -> tuple[Ints, int]:
    """Deeplearning4j's dense message; takes what it sends, half steps too, out of the residual.

    Args:
        residual: (n,) the sum of the old residual and the update, changed in place.
        tau: The threshold.

    Returns:
        The message, and how many elements it moves.

    Raises:
        ValueError: More parameters than an int32 can number.
    """
    n = residual.size
    _check_ints(n)
    quantum = np.float32(tau)
    half = quantum / np.float32(2)
    words = n // 16 + 1
    moves, downwards = np.zeros(2 * words, np.uint8), np.zeros(2 * words, np.uint8)
    count = 0
    for start in range(0, n, CHUNK):
        part = residual[start : start + CHUNK]
        size = np.abs(part)
        whole = size >= quantum
        negative = part < 0
        down = negative & (size >= half)
        half_down = down & ~whole
        part -= quantum * (whole & ~negative) - quantum * (whole & negative) - half * half_down
        count += int(np.count_nonzero(whole)) + int(np.count_nonzero(half_down))
        span = slice(start // 8, start // 8 + -(-part.size // 8))
        moves[span] = np.packbits(whole, bitorder="little")
        downwards[span] = np.packbits(down, bitorder="little")
    message = np.empty(DL4J_HEADER_INTS + words, "<i4")
    message[:4] = n, n, quantum.view(np.int32), _BITMAP
    body = message[DL4J_HEADER_INTS:].view("<u2").reshape(words, 2)
    body[:, 0], body[:, 1] = moves.view("<u2"), downwards.view("<u2")
    return message, count


def dl4j_apply(message: Ints, target: Floats) -> None:
    """Adds a message of either encoding to a vector.

    Args:
        message: From `dl4j_flexible` or `dl4j_bitmap`; not checked, as the original does not check.
        target: (n,) changed in place.
    """
    quantum = message[2:3].view("<f4")[0]
    body = message[DL4J_HEADER_INTS:]
    if message[3] == _FLEXIBLE:
        target[np.abs(body) - 1] += np.where(body > 0, quantum, -quantum)
        return
    bits = np.unpackbits(body.view(np.uint8).reshape(-1, 4), axis=1, bitorder="little").astype(bool)
    moves, down = bits[:, :16].reshape(-1)[: target.size], bits[:, 16:].reshape(-1)[: target.size]
    target += quantum * (moves & ~down) - quantum * (moves & down) - quantum / np.float32(2) * (down & ~moves)


def dl4j_bytes(n: int, count: int) -> int:
    """Bytes that Deeplearning4j's handler sends for ``count`` of ``n`` elements, in the mode that fits the density."""
    flexible = DL4J_HEADER_INTS + count
    return 4 * (flexible if flexible < n // 16 else n // 16 + 1 + DL4J_HEADER_INTS)


def naive_torch(residual: torch.Tensor, delta: torch.Tensor, tau: float) -> bytes:
    """The scheme as one writes it in torch: add, abs, compare, nonzero, gather, sign, index_add, cast.

    Positions stay int64 until the sign is in: ``index * sign`` with a float sign is wrong above 2**24.

    Args:
        residual: (n,) float32, changed in place.
        delta: (n,) float32.
        tau: The threshold, a float32 number.

    Returns:
        Deeplearning4j's entries, without a header.
    """
    residual.add_(delta)
    positions = (residual.abs() >= tau).nonzero().squeeze(1)
    signs = residual[positions].sign()
    residual.index_add_(0, positions, signs, alpha=-tau)
    return ((positions + 1) * signs.to(torch.int64)).to(torch.int32).numpy().tobytes()


def topk_torch(residual: torch.Tensor, delta: torch.Tensor, k: int) -> bytes:
    """Top-k with error feedback: the k largest of the sum go out whole and leave a zero.

    Args:
        residual: (n,) float32, changed in place.
        delta: (n,) float32.
        k: How many.

    Returns:
        k int32 positions, unsorted, and k float32 values.
    """
    residual.add_(delta)
    positions = torch.topk(residual.abs(), k, sorted=False).indices
    values = residual[positions]
    residual.index_fill_(0, positions, 0.0)
    return positions.to(torch.int32).numpy().tobytes() + values.numpy().tobytes()


def zstd_compressor(level: int = 3) -> Any | None:
    """A compressor of the module zstandard, or None where it is not installed (``pip install zstandard``)."""
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard.ZstdCompressor(level=level)


def int32_entries(positions: Positions, negative: Signs) -> bytes:
    """Deeplearning4j's entries: ``+-(i + 1)`` as int32."""
    return np.where(negative, -1 - positions, positions + 1).astype("<i4").tobytes()


def delta_entries(positions: Positions, negative: Signs, *, shuffled: bool) -> bytes:
    """Gaps and signs as uint32 ``2 * gap + sign``; ``shuffled`` puts equal bytes of all words side by side."""
    gaps = np.diff(positions, prepend=-1) - 1
    words = (2 * gaps + negative).astype("<u4")
    return words.view(np.uint8).reshape(-1, 4).T.tobytes() if shuffled else words.tobytes()


def _check_ints(n: int) -> None:
    if n > np.iinfo(np.int32).max:
        msg = f"residual: expected at most 2**31 - 1 parameters as Deeplearning4j does, received {n}"
        raise ValueError(msg)
