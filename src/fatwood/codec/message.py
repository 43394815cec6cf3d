"""The wire format of an update: which parameters move by ``+-tau``, or what all of them are.

The header comes first; all numbers are little-endian, `fatwood.codec.varint` says what a varint is::

    offset    size     field
         0    1        0xB0 | version: bits 4-7 are 1011, bits 0-3 the version, 2
         1    1 to 10  step: varint, the training step this update belongs to, below 2**64
         .    1 to 10  varint of 8 * count + coder: how many parameters move, and how they are written
         .    4        tau: float32, by how much they move
         .    4        crc32 (that of zlib) of: n in 8 bytes, all header bytes before this field, the payload
         .             payload: the rest

    coder        count  tau                                       payload
    0 RICE       any    positive                                  see `fatwood.codec.rice`
    1 TERNARY    any    positive                                  see `fatwood.codec.ternary`
    2 DENSE32    n      positive if the values are 0 and +-tau,   n float32 values
    3 DENSE16    n      otherwise 0                               n float16 values

``n``, the number of parameters, is not sent: both sides know it, and a message for another n has another checksum.
An empty message is 11 bytes at step 0.

The sender counts the bytes of Golomb-Rice exactly. Where at least one parameter in 32 moves (one in 64 in messages of
fewer than 8,192, whose header leaves less room) it also works out those of the range coder, and takes that one when it
is smaller. Below, the range coder would save less than 1.2 % and take time for every parameter, not for every one that
moves; the NumPy kernel, whose range coder is slow, does without it beyond 2**20 parameters. Values that are not ``+-tau`` go as float16 when all of them are finite there, and the sender keeps what
rounding took.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fatwood.codec import kernel, ternary
from fatwood.codec.varint import read_varint, varint
from fatwood.errors import NotFiniteError, ProtocolError

__all__ = ["Coder", "Message", "decode", "encode", "encode_values"]

_MAGIC = 0xB
_VERSION = 2
_MAX_N = 2**63 - 1
_SMALL = 8192  # positions
_TAU = struct.Struct("<f")
_CRC32 = struct.Struct("<I")
_N = struct.Struct("<Q")
_SHORTEST = 3 + _TAU.size + _CRC32.size

_SMALLEST_TAU = float(np.finfo(np.float32).smallest_subnormal)
_LARGEST_TAU = float(np.finfo(np.float32).max)
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


class Coder(enum.IntEnum):
    """How the payload is written."""

    RICE = 0
    TERNARY = 1
    DENSE32 = 2
    DENSE16 = 3


_DENSE_TYPES: dict[Coder, np.dtype[Any]] = {Coder.DENSE32: np.dtype("<f4"), Coder.DENSE16: np.dtype("<f2")}


class Message(NamedTuple):
    """A decoded message: signed positions, or with a dense coder the values of all parameters."""

    step: int
    n: int
    tau: float  # exactly a float32; 0.0 where the values are any
    coder: Coder
    positions: NDArray[np.int64]  # (count,) ascending, unique, in range(n); (0,) with a dense coder
    negative: NDArray[np.bool_]  # (count,)
    values: NDArray[np.float32] | None  # (n,) finite, only with a dense coder

    def dense(self) -> NDArray[np.float32]:
        """The whole update (n,); with a dense coder it is `values` and not a copy."""
        if self.values is not None:
            return self.values
        return _signed_values(self.n, self.tau, self.positions, self.negative)


def encode(
    step: int,
    n: int,
    tau: float,
    positions: NDArray[np.int64],
    negative: NDArray[np.bool_],
    *,
    coder: Coder | None = None,
) -> bytes:
    """Writes a message of parameters that move by ``+-tau``.

    Args:
        step: The training step, 0 to 2**64 - 1.
        n: How many parameters there are, below 2**63.
        tau: By how much the parameters move; rounded to float32.
        positions: (count,) ascending, unique, in ``range(n)``.
        negative: (count,) True where a parameter moves by ``-tau``.
        coder: None takes Golomb-Rice or the range coder, whichever needs fewer bytes.

    Raises:
        ValueError: A step, n or tau that does not fit, positions that are not ascending in ``range(n)``, not one sign
            per position, or DENSE16 and a tau that is not a float16.
    """
    _check_step(step)
    if not 0 <= n <= _MAX_N or not _SMALLEST_TAU <= tau <= _LARGEST_TAU:
        msg = f"message: expected n in range(2**63) and tau a positive float32, received {n} and {tau}"
        raise ValueError(msg)
    _check_positions(positions, negative, n)
    tau = float(np.float32(tau))
    if coder is Coder.DENSE32 or coder is Coder.DENSE16:
        if coder is Coder.DENSE16 and float(np.float16(min(tau, _LARGEST_FLOAT16))) != tau:
            msg = f"tau: expected a float16 for DENSE16, received {tau}"
            raise ValueError(msg)
        values = _signed_values(n, tau, positions, negative)
        return _seal(step, n, n, coder, tau, values.astype(_DENSE_TYPES[coder]).tobytes())
    coder, payload = _sparse_payload(positions, negative, n, coder)
    return _seal(step, n, positions.size, coder, tau, payload)


def encode_values(step: int, values: NDArray[np.float32]) -> tuple[bytes, NDArray[np.float32]]:
    """Writes a message of values of any size: float16 where all are finite as such, otherwise float32.

    Args:
        step: The training step, 0 to 2**64 - 1.
        values: (n,) left alone.

    Returns:
        The message, and the values (n,) that a reader will see. ``values`` less these is what was not sent; it is
        exact in float32, so a sender that keeps it loses nothing.

    Raises:
        NotFiniteError: A value is NaN or infinite.
        ValueError: A step that does not fit, or values that are not float32 of one dimension.
    """
    _check_step(step)
    if values.ndim != 1 or values.dtype != np.float32:
        msg = f"values: expected float32 of one dimension, received {values.dtype} of shape {values.shape}"
        raise ValueError(msg)
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        raise NotFiniteError(first, values.size, float(values[first]))
    with np.errstate(over="ignore", under="ignore"):
        half = values.astype(_DENSE_TYPES[Coder.DENSE16])
    if np.isfinite(half).all():
        message = _seal(step, values.size, values.size, Coder.DENSE16, 0.0, half.tobytes())
        return message, half.astype(np.float32)
    payload = values.astype(_DENSE_TYPES[Coder.DENSE32], copy=False).tobytes()
    return _seal(step, values.size, values.size, Coder.DENSE32, 0.0, payload), values.copy()


def decode(
    message: bytes | bytearray | memoryview, expected_n: int, expected_step: int | None = None
) -> Message:
    """Reads a message and refuses anything that is not exactly one.

    Args:
        message: The bytes as received.
        expected_n: How many parameters this worker has, below 2**63.
        expected_step: The step this worker is at, or None for any.

    Raises:
        ProtocolError: Damaged, cut short or overlong bytes, another version, another number of parameters or
            another step.
    """
    view = memoryview(message).cast("B")
    _require("length", f"at least {_SHORTEST} bytes", len(view), len(view) >= _SHORTEST)
    _require("magic", f"{_MAGIC:#x}", f"{view[0] >> 4:#x}", view[0] >> 4 == _MAGIC)
    received = view[0] & 0xF
    same = "install the same version of fatwood everywhere"
    _require("version", f"version {_VERSION}", f"version {received}", received == _VERSION, hint=same)
    step, at = read_varint(view, 1)
    count_and_coder, at = read_varint(view, at)
    start = at + _TAU.size + _CRC32.size
    _require("length", f"at least {start} bytes", len(view), len(view) >= start)
    (tau,), (crc,) = _TAU.unpack_from(view, at), _CRC32.unpack_from(view, at + _TAU.size)
    crc_here = _checksum(expected_n, view[: at + _TAU.size], view[start:])
    damaged = f"it was damaged, or made for another number of parameters than {expected_n}"
    _require("checksum", f"{crc_here:#010x}", f"{crc:#010x}", crc == crc_here, hint=damaged)
    expected = "below 2**64" if expected_step is None else expected_step
    _require("step", expected, step, step < 2**64 and expected_step in (None, step))
    count, code = divmod(count_and_coder, 8)
    _require("coder", "0 to 3", code, code <= max(Coder))
    _require("count", f"at most {expected_n} parameters", count, count <= expected_n)
    coder = Coder(code)
    dense = coder in _DENSE_TYPES
    fits = 0.0 <= tau <= _LARGEST_TAU and (dense or tau > 0.0)
    _require("tau", "a finite float32, " + ("not negative" if dense else "positive"), tau, fits)
    return _read_payload(step, expected_n, tau, coder, count, view[start:])


def _read_payload(step: int, n: int, tau: float, coder: Coder, count: int, payload: memoryview) -> Message:
    if coder in _DENSE_TYPES:
        kind = _DENSE_TYPES[coder]
        _require("count", f"{n} for all parameters", count, count == n)
        _require("payload", f"{n * kind.itemsize} bytes", len(payload), len(payload) == n * kind.itemsize)
        values = np.frombuffer(payload, kind).astype(np.float32)
        _require("values", "finite numbers", "NaN or an infinity", bool(np.isfinite(values).all()))
        return Message(step, n, tau, coder, np.empty(0, np.int64), np.empty(0, np.bool_), values)
    unpack = kernel.active().rice_unpack if coder is Coder.RICE else kernel.active().ternary_unpack
    return Message(step, n, tau, coder, *unpack(payload, count, n), None)


def _sparse_payload(
    positions: NDArray[np.int64], negative: NDArray[np.bool_], n: int, coder: Coder | None
) -> tuple[Coder, bytes]:
    """What the coder writes; None takes Golomb-Rice, or the range coder where it is smaller."""
    loops = kernel.active()
    if coder is Coder.TERNARY:
        return coder, loops.ternary_pack(positions, negative, n)
    if not positions.size:
        return Coder.RICE, b""
    plan = loops.rice_plan(positions, negative)
    dense = n <= loops.ternary_limit and (64 if positions.size < _SMALL else 32) * positions.size >= n
    if coder is None and dense:
        estimate = ternary.estimate_bytes(loops.ternary_histogram(positions, n), positions.size, n)
        if estimate < plan.bytes:
            return Coder.TERNARY, loops.ternary_pack(positions, negative, n)
    return Coder.RICE, loops.rice_pack(positions, negative, plan)


def _seal(step: int, n: int, count: int, coder: Coder, tau: float, payload: bytes) -> bytes:
    header = bytes([_MAGIC << 4 | _VERSION]) + varint(step) + varint(8 * count + coder) + _TAU.pack(tau)
    return b"".join((header, _CRC32.pack(_checksum(n, header, payload)), payload))


def _checksum(n: int, header: bytes | memoryview, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(header, zlib.crc32(_N.pack(n))))


def _signed_values(
    n: int, tau: float, positions: NDArray[np.int64], negative: NDArray[np.bool_]
) -> NDArray[np.float32]:
    values = np.zeros(n, np.float32)
    values[positions] = np.where(negative, np.float32(-tau), np.float32(tau))
    return values


def _check_step(step: int) -> None:
    if not 0 <= step < 2**64:
        msg = f"step: expected 0 to 2**64 - 1, received {step}"
        raise ValueError(msg)


def _check_positions(positions: NDArray[np.int64], negative: NDArray[np.bool_], n: int) -> None:
    if positions.ndim != 1 or positions.dtype != np.int64:
        msg = f"positions: expected int64 of one dimension, received {positions.dtype} of shape {positions.shape}"
        raise ValueError(msg)
    if positions.size:
        ends = int(positions[0]), int(positions[-1])
        if not 0 <= ends[0] <= ends[1] < n or not np.all(positions[1:] > positions[:-1]):
            msg = f"positions: expected them ascending and unique in range({n}), received {ends[0]} to {ends[1]}"
            raise ValueError(msg)
    if negative.shape != positions.shape or negative.dtype != np.bool_:
        msg = f"negative: expected {positions.size} booleans, received {negative.dtype} of shape {negative.shape}"
        raise ValueError(msg)


def _require(field: str, expected: object, received: object, holds: bool, *, hint: str | None = None) -> None:  # noqa: FBT001
    if not holds:
        msg = f"codec message, {field}: expected {expected}, received {received}"
        raise ProtocolError(msg, hint=hint)
