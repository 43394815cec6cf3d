"""What every worker tells every other at an agreement, in front of the strategy's payload.

::

    byte  0  u64  rows       rows trained since the last agreement: the weight of this worker's message
          8  f64  loss_sum   sum of (mean loss x rows) over those rows
         16  u64  digest     64-bit digest of the parameters after the last agreement; 0 when not taken
         24  u8   flags      bit 0: this worker has more batches in this epoch
         25       payload    the strategy's message, possibly empty

All numbers are little-endian.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from fatwood.errors import ProtocolError

__all__ = ["HEADER_BYTES", "Header", "join", "split"]

_LAYOUT = struct.Struct("<QdQB")
_MORE = 1

HEADER_BYTES = _LAYOUT.size


class Header(NamedTuple):
    """One worker's part of an agreement, without its payload."""

    rows: int
    loss_sum: float
    digest: int
    more: bool


def join(header: Header, payload: bytes) -> bytes:
    """The bytes of a header followed by its payload."""
    return _LAYOUT.pack(header.rows, header.loss_sum, header.digest, _MORE * header.more) + payload


def split(rank: int, message: bytes) -> tuple[Header, memoryview]:
    """Take a peer's message apart.

    Args:
        rank: Who sent it, for the error.
        message: A header and a payload.

    Returns:
        The header, and the payload where it lies in the message.

    Raises:
        ProtocolError: The message is too short or its flags are unknown.
    """
    if len(message) < HEADER_BYTES:
        text = f"message of rank {rank}: expected at least {HEADER_BYTES} bytes, received {len(message)}"
        raise ProtocolError(text)
    rows, loss_sum, digest, flags = _LAYOUT.unpack_from(message)
    if flags & ~_MORE:
        text = f"message of rank {rank}: expected flags 0 or {_MORE}, received {flags}"
        raise ProtocolError(text, hint="all workers must run the same version of fatwood")
    return Header(rows, loss_sum, digest, bool(flags & _MORE)), memoryview(message)[HEADER_BYTES:]
