"""The wire format: golden bytes, round trips, and every damaged byte refused."""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.codec import HEADER_BYTES, Coder, decode, encode
from fatwood.errors import ProtocolError
from fatwood.testing.strategies import sparse_vectors

POSITIONS = np.array([1, 4, 5, 17])
NEGATIVE = np.array([False, True, False, True])
HEADER = (
    "4657544d 01 {coder} 00 {k}"  # magic, version, coder, flags, k
    "0700000000000000 1400000000000000 0400000000000000"  # step 7, n 20, count 4
    "0000003f 0400000000000000 {crc32}"  # tau 0.5, payload length, checksum
)
GOLDEN = {
    # signs 0101; remainders 1,0,0,1; quotients 0,1,0,5 as 1 01 1 000001
    Coder.RICE: bytes.fromhex(HEADER.format(coder="01", k="01", crc32="397c6237") + "0a 09 0d02"),
    # 3 + 2 * 81; 1; 0; 2 * 9
    Coder.TERNARY: bytes.fromhex(HEADER.format(coder="02", k="00", crc32="57c143a5") + "a5 01 00 12"),
}
EMPTY = encode(3, 10, 0.25, POSITIONS[:0], NEGATIVE[:0])


def sealed(message: bytes, offset: int, value: bytes) -> bytes:
    """The message with some bytes replaced and the checksum made right again."""
    changed = message[:offset] + value + message[offset + len(value) :]
    crc = zlib.crc32(changed[48:], zlib.crc32(changed[:44]))
    return changed[:44] + struct.pack("<I", crc) + changed[48:]


@pytest.mark.parametrize("coder", list(Coder))
def test_golden_bytes(coder):
    assert encode(7, 20, 0.5, POSITIONS, NEGATIVE, coder=coder) == GOLDEN[coder]
    message = decode(GOLDEN[coder], 20, 7)
    assert (message.step, message.n, message.tau) == (7, 20, 0.5)
    assert message.positions.tolist() == POSITIONS.tolist()
    assert message.negative.tolist() == NEGATIVE.tolist()


@settings(max_examples=60, deadline=None)
@given(
    sparse_vectors(),
    st.sampled_from([None, *Coder]),
    st.integers(0, 2**64 - 1),
    st.floats(2.0**-100, 2.0**100, width=32),
)
def test_round_trip_at_any_density_with_any_coder(sparse, coder, step, tau):
    wire = encode(step, sparse.n, tau, sparse.positions, sparse.negative, coder=coder)
    message = decode(wire, sparse.n, step)
    assert (message.step, message.n, message.tau) == (step, sparse.n, tau)
    assert np.array_equal(message.positions, sparse.positions)
    assert np.array_equal(message.negative, sparse.negative)


@settings(max_examples=40, deadline=None)
@given(sparse_vectors())
def test_the_smaller_coder_is_sent(sparse):
    arguments = (0, sparse.n, 1.0, sparse.positions, sparse.negative)
    assert len(encode(*arguments)) == min(len(encode(*arguments, coder=coder)) for coder in Coder)


def test_dense_messages_are_ternary_and_sparse_ones_rice():
    n = 10_000
    all_of_them = np.arange(n)
    dense = encode(0, n, 1.0, all_of_them, np.zeros(n, np.bool_))
    sparse = encode(0, n, 1.0, all_of_them[::100], np.zeros(100, np.bool_))
    assert (dense[5], len(dense)) == (Coder.TERNARY, HEADER_BYTES + n // 5)
    assert sparse[5] == Coder.RICE


@pytest.mark.parametrize("wire", [*GOLDEN.values(), EMPTY], ids=["rice", "ternary", "empty"])
def test_any_flipped_bit_is_refused(wire):
    n, step = (10, 3) if wire is EMPTY else (20, 7)
    decode(wire, n, step)
    for position in range(len(wire)):
        for bit in range(8):
            damaged = bytearray(wire)
            damaged[position] ^= 1 << bit
            with pytest.raises(ProtocolError):
                decode(damaged, n, step)


@settings(max_examples=60, deadline=None)
@given(sparse_vectors(max_n=2000), st.data())
def test_any_replaced_byte_cut_or_addition_is_refused(sparse, data):
    wire = encode(5, sparse.n, 1.0, sparse.positions, sparse.negative)
    at = data.draw(st.integers(0, len(wire) - 1))
    damaged = bytearray(wire)
    damaged[at] ^= data.draw(st.integers(1, 255))
    for wrong in (bytes(damaged), wire[:at], wire + b"\0"):
        with pytest.raises(ProtocolError):
            decode(wrong, sparse.n, 5)


@pytest.mark.parametrize(
    ("offset", "value", "says"),
    [
        (0, b"GIF8", "magic: expected b'FWTM', received b'GIF8'"),
        (4, b"\2", "version: expected 1, received 2"),
        (5, b"\3", "coder 3"),
        (5, b"\2", "coder 2 with k = 1"),
        (6, b"\1", "flags: expected 0, received 1"),
        (7, b"\xff", "Rice payload"),
        (8, b"\6", "step: expected 7, received 6"),
        (16, b"\x15", "number of parameters: expected 20, received 21"),
        (24, b"\x15", "count 21"),
        (24, b"\xff" * 8, f"count {2**64 - 1}"),
        (32, struct.pack("<f", 0.0), "tau 0.0"),
        (32, struct.pack("<f", -1.0), "tau -1.0"),
        (32, struct.pack("<f", math.nan), "tau nan"),
        (32, struct.pack("<f", math.inf), "tau inf"),
        (36, b"\xff" * 8, f"payload length: expected 4, received {2**64 - 1}"),
    ],
)
def test_a_wrong_field_with_a_right_checksum_is_named(offset, value, says):
    with pytest.raises(ProtocolError) as caught:
        decode(sealed(GOLDEN[Coder.RICE], offset, value), 20, 7)
    assert says in str(caught.value)


def test_without_an_expected_step_any_step_will_do():
    assert decode(GOLDEN[Coder.RICE], 20).step == 7


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_like_object_is_read(kind):
    assert decode(kind(GOLDEN[Coder.RICE]), 20).positions.tolist() == POSITIONS.tolist()


def entropy_bits(n: int, count: int) -> float:
    """The bound for an even mask with fair signs: n H(p) + count."""
    p = count / n
    return n * -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) + count


@pytest.mark.parametrize("density", [1e-2, 1e-3, 1e-4])
def test_payload_is_within_three_percent_of_the_entropy_bound(density):
    n = 2**20
    # A hundred positions are a small sample: the mean of several masks is what the bound speaks of.
    payload = bound = 0.0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        positions = np.flatnonzero(rng.random(n) < density)
        wire = encode(0, n, 1.0, positions, rng.random(positions.size) < 0.5)
        payload += 8 * (len(wire) - HEADER_BYTES)
        bound += entropy_bits(n, positions.size)
    assert 1.0 - 0.01 < payload / bound < 1.03


def test_a_message_of_ten_thousand_is_within_one_and_a_half_percent_header_included():
    rng = np.random.default_rng(0)
    positions = np.flatnonzero(rng.random(2**20) < 1e-2)
    wire = encode(0, 2**20, 1.0, positions, rng.random(positions.size) < 0.5)
    assert 8 * len(wire) < 1.015 * entropy_bits(2**20, positions.size)


@pytest.mark.parametrize(
    ("step", "tau", "positions", "negative"),
    [
        (0, 1.0, [3, 3], [True, True]),
        (0, 1.0, [3, 2], [True, True]),
        (0, 1.0, [-1, 2], [True, True]),
        (0, 1.0, [0, 10], [True, True]),
        (0, 1.0, [0, 1], [True]),
        (0, 1.0, [0, 1], [1, 0]),
        (-1, 1.0, [0], [True]),
        (2**64, 1.0, [0], [True]),
        (0, 0.0, [0], [True]),
        (0, 1e-60, [0], [True]),
        (0, 1e60, [0], [True]),
        (0, math.nan, [0], [True]),
    ],
)
def test_what_cannot_be_written_is_refused(step, tau, positions, negative):
    with pytest.raises(ValueError, match="expected"):
        encode(step, 10, tau, np.array(positions), np.array(negative))
