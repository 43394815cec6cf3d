"""What every worker tells every other at an agreement, in front of the strategy's payload.

::

    byte  0  u32  rows       rows trained since the last agreement: the weight of this worker's message
          4  u32  consumed   rows of the partition read since the last agreement; more than `rows` where some were skipped
          8  u64  position   rows of the partition read before them in this epoch
         16  f64  loss_sum   sum of (mean loss x rows) over the rows trained
         24  u8   flags      bit 0: this worker has more batches in this epoch
                             bit 1: a digest follows
                             bit 2: this worker asks for a checkpoint after this agreement
         25  u64  digest     64-bit digest of the parameters after the last agreement; only with bit 1
              payload        the strategy's message, possibly empty

All numbers are little-endian.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from fatwood.errors import ProtocolError
from fatwood.exchange import Buffer

__all__ = ["HEADER_BYTES", "MAX_ROWS", "Header", "join", "split"]

_LAYOUT = struct.Struct("<IIQdB")
_DIGEST = struct.Struct("<Q")
_MORE, _WITH_DIGEST, _CHECKPOINT = 1, 2, 4

HEADER_BYTES = _LAYOUT.size
"""Of a header without a digest."""

MAX_ROWS = 2**32 - 1
"""Rows that one worker may train between two agreements."""


class Header(NamedTuple):
    """One worker's part of an agreement, without its payload."""

    rows: int
    loss_sum: float
    more: bool
    position: int = 0
    consumed: int = 0
    digest: int | None = None
    checkpoint: bool = False


def join(header: Header, payload: Buffer) -> bytes:
    """The bytes of a header followed by its payload."""
    flags = _MORE * header.more + _WITH_DIGEST * (header.digest is not None) + _CHECKPOINT * header.checkpoint
    fixed = _LAYOUT.pack(header.rows, header.consumed, header.position, header.loss_sum, flags)
    digest = b"" if header.digest is None else _DIGEST.pack(header.digest)
    return b"".join((fixed, digest, payload))


def split(rank: int, message: Buffer) -> tuple[Header, memoryview]:
    """Take a peer's message apart.

    Args:
        rank: Who sent it, for the error.
        message: A header and a payload.

    Returns:
        The header, and the payload where it lies in the message.

    Raises:
        ProtocolError: The message is too short or its flags are unknown.
    """
    flags = message[_LAYOUT.size - 1] if len(message) >= _LAYOUT.size else 0
    size = _LAYOUT.size + (_DIGEST.size if flags & _WITH_DIGEST else 0)
    if len(message) < size:
        text = f"message of rank {rank}: expected at least {size} bytes, received {len(message)}"
        raise ProtocolError(text)
    if flags & ~(_MORE | _WITH_DIGEST | _CHECKPOINT):
        text = f"message of rank {rank}: expected flags below 8, received {flags}"
        raise ProtocolError(text, hint="all workers must run the same version of fatwood")
    rows, consumed, position, loss_sum, _ = _LAYOUT.unpack_from(message)
    digest = _DIGEST.unpack_from(message, _LAYOUT.size)[0] if flags & _WITH_DIGEST else None
    header = Header(
        rows=rows,
        loss_sum=loss_sum,
        more=bool(flags & _MORE),
        position=position,
        consumed=consumed,
        digest=digest,
        checkpoint=bool(flags & _CHECKPOINT),
    )
    return header, memoryview(message)[size:]
