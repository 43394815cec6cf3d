"""The two coders: round trips, exact sizes, and nothing trusted on the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.codec import rice, ternary
from fatwood.errors import ProtocolError
from fatwood.testing.strategies import sparse_vectors


@settings(max_examples=60, deadline=None)
@given(sparse_vectors(max_n=3000), st.integers(0, 12))
def test_rice_round_trip_and_exact_size(sparse, k):
    gaps = rice.gaps_between(sparse.positions)
    k = min(k, sparse.n.bit_length())
    payload = rice.pack(gaps, sparse.negative, k)
    assert len(payload) == rice.packed_bytes(gaps, k)
    positions, negative = rice.unpack(memoryview(payload), gaps.size, k, sparse.n)
    assert np.array_equal(positions, sparse.positions)
    assert np.array_equal(negative, sparse.negative)
    assert (positions.dtype, negative.dtype) == (np.int64, np.bool_)


@settings(max_examples=60, deadline=None)
@given(sparse_vectors(max_n=3000))
def test_ternary_round_trip_and_exact_size(sparse):
    payload = ternary.pack(sparse.positions, sparse.negative, sparse.n)
    assert len(payload) == ternary.packed_bytes(sparse.n)
    positions, negative = ternary.unpack(memoryview(payload), sparse.positions.size, sparse.n)
    assert np.array_equal(positions, sparse.positions)
    assert np.array_equal(negative, sparse.negative)


@settings(max_examples=60, deadline=None)
@given(sparse_vectors(max_n=3000))
def test_the_chosen_parameter_is_the_best_of_all(sparse):
    gaps = rice.gaps_between(sparse.positions)
    chosen = rice.choose_parameter(gaps)

    def bits(k):
        return gaps.size * k + int((gaps >> k).sum())

    assert bits(chosen) == min(bits(k) for k in range(20))


def test_rice_is_never_larger_than_a_bitmap_with_signs():
    rng = np.random.default_rng(0)
    for density in (0.01, 0.3, 0.5, 0.9, 1.0):
        n = 8000
        positions = np.flatnonzero(rng.random(n) < density)
        gaps = rice.gaps_between(positions)
        size = rice.packed_bytes(gaps, rice.choose_parameter(gaps))
        assert size <= n // 8 + -(-positions.size // 8) + 1


def test_positions_beyond_32_bits_survive():
    n = 2**57
    positions = np.array([0, 2**24 + 1, 2**31, 2**33 + 1, 2**56, n - 1])
    negative = np.array([True, False] * 3)
    gaps = rice.gaps_between(positions)
    k = rice.choose_parameter(gaps)
    payload = rice.pack(gaps, negative, k)
    assert len(payload) < 100
    decoded, signs = rice.unpack(memoryview(payload), 6, k, n)
    assert decoded.tolist() == positions.tolist()
    assert signs.tolist() == negative.tolist()


def rice_payload(positions, k):
    positions = np.array(positions)
    return rice.pack(rice.gaps_between(positions), np.zeros(positions.size, np.bool_), k)


@pytest.mark.parametrize(
    ("payload", "count", "k", "n"),
    [
        (rice_payload([3, 9], 2), 2, 2, 9),  # the last position is n
        (rice_payload([3, 9], 2), 1, 2, 20),  # another count
        (rice_payload([3, 9], 2), 3, 2, 20),
        (rice_payload([3, 9], 2) + b"\0", 2, 2, 20),  # too long
        (rice_payload([3, 9], 2) + b"\1", 2, 2, 20),
        (rice_payload([3, 9], 2)[:-1], 2, 2, 20),  # cut short
        (b"", 1, 0, 20),
        (b"\0", 0, 0, 20),  # nothing claimed, something there
        (b"\x02\x01", 1, 0, 20),  # a one in the padding of the signs
        (b"\0\0", 1, 0, 20),  # no quotient ends
        (rice_payload([3, 9], 2) + b"\0", 2, 2, 200),  # a byte of padding too many
        (b"\0" * 10, 1, 200, 20),  # a parameter no gap needs
        (b"\0\5" + b"\0" * 7 + b"\1", 1, 64, 20),
        (b"\0" * 10, 21, 0, 20),  # more positions than parameters
        (b"\0" * 10, 2**62, 0, 20),
        (b"\0\xff\xff\xff\xff\xff\xff\xff\x01", 1, 57, 2**57 - 1),  # a huge remainder
    ],
)
def test_rice_refuses_what_it_did_not_write(payload, count, k, n):
    with pytest.raises(ProtocolError, match="Rice payload"):
        rice.unpack(memoryview(payload), count, k, n)


def test_rice_allocates_nothing_for_a_count_that_the_bytes_cannot_hold():
    with pytest.raises(ProtocolError, match="expected"):
        rice.unpack(memoryview(b"\0" * 64), 2**50, 0, 2**51)


@pytest.mark.parametrize(
    ("payload", "count", "n"),
    [
        (b"\x01", 1, 6),  # too short for n
        (b"\x01\x00", 1, 5),
        (b"\xf3", 0, 5),  # 243 is no five digits
        (b"\xf4", 1, 5),
        (b"\x01", 2, 5),  # another count
        (b"\x01", 0, 5),
        (b"\x51", 1, 4),  # the fifth digit is padding
    ],
)
def test_ternary_refuses_what_it_did_not_write(payload, count, n):
    with pytest.raises(ProtocolError, match="ternary payload"):
        ternary.unpack(memoryview(payload), count, n)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 70), st.integers(0, 12), st.integers(0, 60))
def test_any_bytes_give_a_valid_result_or_a_protocol_error(payload, count, k, n):
    for unpack in (
        lambda: rice.unpack(memoryview(payload), count, k, n),
        lambda: ternary.unpack(memoryview(payload), count, n),
    ):
        try:
            positions, negative = unpack()
        except ProtocolError:
            continue
        assert positions.size == negative.size == count
        assert np.all(np.diff(positions) > 0)
        assert count == 0 or 0 <= positions[0] <= positions[-1] < n
