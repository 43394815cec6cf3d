"""What every worker tells every other at an agreement, in front of the strategy's payload.

::

    byte  0  u32  rows       rows trained since the last agreement: the weight of this worker's message, unless bit 3 is set
          4  u32  consumed   rows of the partition read since the last agreement; more than `rows` where some were skipped
          8  u64  position   rows of the partition read before them in this epoch
         16  f64  loss_sum   sum of (mean loss x weight) over the minibatches
         24  u8   flags      bit 0: this worker has more batches in this epoch
                             bit 1: a digest follows
                             bit 2: this worker asks for a checkpoint after this agreement
                             bit 3: a weight follows
                             bit 4: this worker asks all to stop after this agreement
                             bit 5: this worker's loss or update was not finite; it sent nothing of it
         25  u64  digest     64-bit digest of the parameters after the last agreement; only with bit 1
              f64  weight    of this worker's message, where rows weigh differently; only with bit 3
              payload        the strategy's message, possibly empty

All numbers are little-endian.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from fatwood.errors import ProtocolError
from fatwood.exchange import Buffer

__all__ = ["HEADER_BYTES", "MAX_ROWS", "Header", "join", "split"]

_LAYOUT = struct.Struct("<IIQdB")
_DIGEST = struct.Struct("<Q")
_WEIGHT = struct.Struct("<d")
_MORE, _WITH_DIGEST, _CHECKPOINT, _WITH_WEIGHT, _STOP, _NOT_FINITE = (1 << bit for bit in range(6))

HEADER_BYTES = _LAYOUT.size
"""Of a header without digest and weight."""

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
    weight: float | None = None
    """Sum of the rows' weights; None where each row weighs 1."""
    stop: bool = False
    not_finite: bool = False

    @property
    def share(self) -> float:
        """The weight of this worker's message; 0 where it has none."""
        return float(self.rows) if self.weight is None else self.weight

    def payload_in(self, message: Buffer) -> memoryview:
        """The payload of the message that this header was split from, where it lies."""
        optional = _DIGEST.size * (self.digest is not None) + _WEIGHT.size * (self.weight is not None)
        return memoryview(message)[_LAYOUT.size + optional :]


def join(header: Header, payload: Buffer) -> bytes:
    """The bytes of a header followed by its payload."""
    flags = (
        _MORE * header.more
        + _WITH_DIGEST * (header.digest is not None)
        + _CHECKPOINT * header.checkpoint
        + _WITH_WEIGHT * (header.weight is not None)
        + _STOP * header.stop
        + _NOT_FINITE * header.not_finite
    )
    fixed = _LAYOUT.pack(header.rows, header.consumed, header.position, header.loss_sum, flags)
    digest = b"" if header.digest is None else _DIGEST.pack(header.digest)
    weight = b"" if header.weight is None else _WEIGHT.pack(header.weight)
    return b"".join((fixed, digest, weight, payload))


def split(rank: int, message: Buffer) -> tuple[Header, memoryview]:
    """Take a peer's message apart.

    Args:
        rank: Who sent it, for the error.
        message: A header and a payload.

    Returns:
        The header, and the payload where it lies in the message.

    Raises:
        ProtocolError: The message is too short, its flags are unknown, or its weight is none.
    """
    flags = message[_LAYOUT.size - 1] if len(message) >= _LAYOUT.size else 0
    weight_at = _LAYOUT.size + _DIGEST.size * bool(flags & _WITH_DIGEST)
    size = weight_at + _WEIGHT.size * bool(flags & _WITH_WEIGHT)
    if len(message) < size:
        text = f"message of rank {rank}: expected at least {size} bytes, received {len(message)}"
        raise ProtocolError(text)
    if flags >= 2 * _NOT_FINITE:
        text = f"message of rank {rank}: expected flags below {2 * _NOT_FINITE}, received {flags}"
        raise ProtocolError(text, hint="all workers must run the same version of fatwood")
    rows, consumed, position, loss_sum, _ = _LAYOUT.unpack_from(message)
    digest = _DIGEST.unpack_from(message, _LAYOUT.size)[0] if flags & _WITH_DIGEST else None
    weight = _WEIGHT.unpack_from(message, weight_at)[0] if flags & _WITH_WEIGHT else None
    if weight is not None and not 0 <= weight < math.inf:
        text = f"message of rank {rank}: expected a finite weight of at least 0, received {weight}"
        raise ProtocolError(text)
    header = Header(
        rows=rows,
        loss_sum=loss_sum,
        more=bool(flags & _MORE),
        position=position,
        consumed=consumed,
        digest=digest,
        checkpoint=bool(flags & _CHECKPOINT),
        weight=weight,
        stop=bool(flags & _STOP),
        not_finite=bool(flags & _NOT_FINITE),
    )
    return header, memoryview(message)[size:]
