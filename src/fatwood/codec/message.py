"""The wire format of a threshold-encoded update: which parameters move, and which way.

All integers and the float are little-endian; the header is 48 bytes::

    offset  size  field
         0     4  magic        "FWTM"
         4     1  version      1
         5     1  coder        1 = Golomb-Rice, 2 = ternary
         6     1  flags        0, reserved
         7     1  k            the Rice parameter; 0 with the ternary coder
         8     8  step         the training step this update belongs to
        16     8  n            how many parameters there are
        24     8  count        how many of them move
        32     4  tau          float32, by how much they move; positive
        36     8  length       of the payload in bytes
        44     4  crc32        of bytes 0 to 43 and the payload
        48        payload      see `fatwood.codec.rice` and `fatwood.codec.ternary`

The sender counts the bytes of both coders exactly and uses the smaller. An empty message is 48 bytes: Golomb-Rice,
k = 0, no payload.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fatwood.codec import rice, ternary
from fatwood.errors import ProtocolError

__all__ = ["HEADER_BYTES", "Coder", "Message", "decode", "encode"]

_MAGIC = b"FWTM"
_VERSION = 1
_HEADER = struct.Struct("<4sBBBBQQQfQ")  # all but the checksum
_CHECKSUM = struct.Struct("<I")

_SMALLEST_TAU = float(np.finfo(np.float32).smallest_subnormal)
_LARGEST_TAU = float(np.finfo(np.float32).max)

HEADER_BYTES = _HEADER.size + _CHECKSUM.size
"""The bytes before the payload."""


class Coder(enum.IntEnum):
    """How the payload is written."""

    RICE = 1
    TERNARY = 2


class Message(NamedTuple):
    """A decoded message."""

    step: int
    n: int
    tau: float  # exactly a float32
    positions: NDArray[np.int64]  # (count,) ascending, unique, in range(n)
    negative: NDArray[np.bool_]  # (count,)


def encode(
    step: int,
    n: int,
    tau: float,
    positions: NDArray[np.int64],
    negative: NDArray[np.bool_],
    *,
    coder: Coder | None = None,
) -> bytes:
    """Writes a message.

    Args:
        step: The training step, 0 to 2**64 - 1.
        n: How many parameters there are.
        tau: By how much the parameters move; rounded to float32.
        positions: (count,) ascending, unique, in ``range(n)``.
        negative: (count,) True where a parameter moves by ``-tau``.
        coder: None takes the one that needs fewer bytes.

    Raises:
        ValueError: A step or tau that does not fit, positions that are not ascending in ``range(n)``, or not one sign
            per position.
    """
    if not 0 <= step < 2**64 or not _SMALLEST_TAU <= tau <= _LARGEST_TAU:
        msg = f"message: expected step in range(2**64) and tau a positive float32, received {step} and {tau}"
        raise ValueError(msg)
    gaps = rice.gaps_between(positions)
    if gaps.size and (int(gaps.min()) < 0 or int(positions[-1]) >= n):
        msg = f"positions: expected them ascending and unique in range({n})"
        raise ValueError(msg)
    if negative.shape != positions.shape or negative.dtype != np.bool_:
        msg = f"negative: expected {positions.size} booleans, received {negative.dtype} of shape {negative.shape}"
        raise ValueError(msg)
    k = rice.choose_parameter(gaps)
    if coder is None:
        coder = Coder.RICE if rice.packed_bytes(gaps, k) <= ternary.packed_bytes(n) else Coder.TERNARY
    if coder is Coder.RICE:
        payload = rice.pack(gaps, negative, k)
    else:
        k, payload = 0, ternary.pack(positions, negative, n)
    header = _HEADER.pack(_MAGIC, _VERSION, coder, 0, k, step, n, positions.size, tau, len(payload))
    return b"".join((header, _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(header))), payload))


def decode(
    message: bytes | bytearray | memoryview, expected_n: int, expected_step: int | None = None
) -> Message:
    """Reads a message and refuses anything that is not exactly one.

    Args:
        message: The bytes as received.
        expected_n: How many parameters this worker has.
        expected_step: The step this worker is at, or None for any.

    Raises:
        ProtocolError: Damaged, cut short or overlong bytes, another version, another number of parameters or
            another step.
    """
    view = memoryview(message).cast("B")
    if len(view) < HEADER_BYTES:
        msg = f"codec message: expected at least {HEADER_BYTES} bytes, received {len(view)}"
        raise ProtocolError(msg)
    header, payload = view[: _HEADER.size], view[HEADER_BYTES:]
    magic, version, coder, flags, k, step, n, count, tau, length = _HEADER.unpack(header)
    _require("magic", _MAGIC, magic)
    _require("version", _VERSION, version, hint="install the same version of fatwood on all workers")
    _require("payload length", len(payload), length)
    _require(
        "checksum",
        zlib.crc32(payload, zlib.crc32(header)),
        *_CHECKSUM.unpack(view[_HEADER.size : HEADER_BYTES]),
    )
    _require("flags", 0, flags)
    _require("number of parameters", expected_n, n, hint="all workers must train the same network")
    _require("step", step if expected_step is None else expected_step, step)
    if count > n or not 0.0 < tau < np.inf:
        msg = f"codec message: expected count <= {n} and a positive finite tau, received count {count} and tau {tau}"
        raise ProtocolError(msg)
    if coder == Coder.RICE:
        positions, negative = rice.unpack(payload, count, k, n)
    elif coder == Coder.TERNARY and k == 0:
        positions, negative = ternary.unpack(payload, count, n)
    else:
        msg = f"codec message: expected coder 1 or 2 (with k = 0), received coder {coder} with k = {k}"
        raise ProtocolError(msg)
    return Message(step, n, tau, positions, negative)


def _require(field: str, expected: object, received: object, *, hint: str | None = None) -> None:
    if expected != received:
        msg = f"codec message, {field}: expected {expected!r}, received {received!r}"
        raise ProtocolError(msg, hint=hint)
