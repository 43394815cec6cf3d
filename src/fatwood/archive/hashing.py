"""The checksums of parts, made of pieces of 1 MiB, so that several cores share the work.

A part's checksum is its CRC-32, that of zip; the CRC-32 of the whole follows from those of its pieces. Version 2 of the archives
has ``SHA-256( SHA-256(piece 0) || SHA-256(piece 1) || ... )``, where the last piece may be shorter and an empty part has none;
version 1 has the plain SHA-256 of all bytes.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeAlias, TypeVar

from fatwood.archive.kind import PIECE_BYTES

__all__ = ["Piece", "crc_of", "digest_of", "plain_digest_of", "slices"]

Piece: TypeAlias = bytes | memoryview

T = TypeVar("T")

_MOST_THREADS = 4


def slices(content: bytes | memoryview) -> Iterator[memoryview]:
    """The pieces of bytes that are in memory."""
    view = memoryview(content)
    for start in range(0, len(view), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]


def digest_of(pieces: Iterable[Piece], use: Callable[[Piece], object] | None = None) -> str:
    """The checksum of a part in version 2.

    Args:
        pieces: All of `PIECE_BYTES` but the last. None may change until this returns.
        use: Called with each in turn, in this thread, while others hash: what writes them, say.

    Returns:
        In hexadecimal.
    """
    total = hashlib.sha256()
    for digest in _in_threads(pieces, _digest, use):
        total.update(digest)
    return total.hexdigest()


def crc_of(pieces: Iterable[Piece], use: Callable[[Piece], object] | None = None) -> tuple[int, int]:
    """The CRC-32 of a part, and its size.

    Args:
        pieces: As in `digest_of`.
        use: As in `digest_of`.
    """
    crc, size = 0, 0
    for own_crc, length in _in_threads(pieces, _crc, use):
        crc = _joined(crc, own_crc, length)
        size += length
    return crc, size


def plain_digest_of(pieces: Iterable[Piece], use: Callable[[Piece], object] | None = None) -> str:
    """The checksum of a part in version 1; args as in `digest_of`."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
        if use is not None:
            use(piece)
    return total.hexdigest()


def _in_threads(
    pieces: Iterable[Piece], work: Callable[[Piece], T], use: Callable[[Piece], object] | None
) -> Iterator[T]:
    """What is made of each piece, in order; some pieces are on their way at a time."""
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="fatwood-hash") as pool:
        for piece in pieces:
            if len(waiting) == 2 * threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, piece))
            if use is not None:
                use(piece)
        for future in waiting:
            yield future.result()


def _digest(piece: Piece) -> bytes:
    return hashlib.sha256(piece).digest()


def _crc(piece: Piece) -> tuple[int, int]:
    return zlib.crc32(piece), len(piece)


def _joined(before: int, after: int, length: int) -> int:
    """The CRC-32 of bytes whose two halves have these, the second of so many bytes.

    A CRC is linear: that of the whole is that of the second half, plus what the first one's bits become behind as many zeros.
    """
    zeros = _zeros(length)
    for bit in range(32):
        if before >> bit & 1:
            after ^= zeros[bit]
    return after


@lru_cache(maxsize=2)  # of whole pieces, and of the last one
def _zeros(length: int) -> list[int]:
    """What each bit of a CRC-32 becomes behind so many bytes of zeros."""
    content = bytes(length)
    nothing = zlib.crc32(content)
    return [zlib.crc32(content, 1 << bit) ^ nothing for bit in range(32)]
