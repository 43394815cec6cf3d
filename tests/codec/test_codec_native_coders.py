"""The compiled packings: the bytes of the NumPy ones for any mask, and the same refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.codec import native_coders, rice, ternary
from fatwood.codec.native import native_kernels
from fatwood.errors import ProtocolError

KERNELS = native_kernels()
pytestmark = pytest.mark.skipif(
    not KERNELS, reason="no compiled kernel; tests/house/test_build.py says whether there should be"
)
KERNEL = KERNELS[-1] if KERNELS else None  # all instruction sets share these functions
SEGMENT = 65_536  # parameters


def gaps_of(kind, count, scale, rng):
    if kind == "even":
        return rng.geometric(1.0 / scale, count) - 1
    if kind == "clustered":
        return np.where(rng.random(count) < 0.1, rng.integers(0, 50 * scale, count), 0)
    if kind == "runs":
        return np.repeat(rng.integers(0, scale, count), 40)[:count]
    if kind == "dense, then sparse":
        return np.where(np.arange(count) < count // 2, 0, rng.integers(0, 2 * scale, count))
    return {"all": np.zeros(count, np.int64), "last": np.r_[np.zeros(count - 1, np.int64), 3 * scale]}[kind]


def signs_of(kind, count, rng):
    if kind == "runs":
        return (np.cumsum(rng.random(count) < rng.random() / 3) & 1).astype(np.bool_)
    if kind == "alternating":
        return np.arange(count) % 2 == 1
    return rng.random(count) < {"plus": 0.0, "fair": 0.5, "minus": 1.0}[kind]


@st.composite
def updates(draw, largest_scale):
    """(n, positions, negative) with at least one position, of any density and order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.sampled_from([1, 31, 32, 33, 64, 65]) | st.integers(1, 700))
    scale = draw(st.sampled_from([1, 2, 5, 30, 100, largest_scale]) | st.integers(1, largest_scale))
    kinds = ["even", "clustered", "runs", "dense, then sparse", "all", "last"]
    gaps = gaps_of(draw(st.sampled_from(kinds)), count, scale, rng).astype(np.int64)
    positions = np.cumsum(gaps + 1) - 1
    negative = signs_of(draw(st.sampled_from(["plus", "fair", "minus", "runs", "alternating"])), count, rng)
    return int(positions[-1]) + 1 + draw(st.integers(0, 9)), positions, negative


def outcome(unpack, payload, count, n):
    """Positions and signs, or None where they are refused."""
    try:
        positions, negative = unpack(memoryview(payload), count, n)
    except ProtocolError:
        return None
    assert (positions.dtype, negative.dtype) == (np.int64, np.bool_)
    assert (positions.shape, negative.shape) == ((count,), (count,))
    return positions.tolist(), negative.tolist()


@settings(max_examples=80, deadline=None)
@given(updates(largest_scale=2**40))
def test_rice_has_the_bytes_of_numpy(update):
    n, positions, negative = update
    expected = rice.plan(positions, negative)
    plan = KERNEL.rice_plan(positions, negative)
    assert (plan.k.tolist(), *plan[1:]) == (expected.k.tolist(), *expected[1:])
    assert plan.k.dtype == np.uint8
    payload = KERNEL.rice_pack(positions, negative, plan)
    assert payload == rice.pack(positions, negative, expected)
    assert outcome(KERNEL.rice_unpack, payload, positions.size, n) == (positions.tolist(), negative.tolist())
    assert outcome(KERNEL.rice_unpack, payload, positions.size, int(positions[-1])) is None


def test_rice_holds_the_last_positions_of_int64():
    n = 2**63 - 1
    positions = np.array([0, 2**24 + 1, 2**31, 2**33 + 1, 2**62, n - 1])
    negative = np.array([True, False] * 3)
    plan = KERNEL.rice_plan(positions, negative)
    payload = KERNEL.rice_pack(positions, negative, plan)
    assert payload == rice.pack(positions, negative, rice.plan(positions, negative))
    assert outcome(KERNEL.rice_unpack, payload, 6, n) == (positions.tolist(), negative.tolist())
    assert outcome(KERNEL.rice_unpack, payload, 6, n - 1) is None


def test_rice_forms_are_all_written():
    rng = np.random.default_rng(0)
    positions = {0: 100 * np.arange(1000), 0x40: np.r_[np.arange(500), 500 + 1000 * np.arange(1, 501)]}
    negative = {0: rng.random(1000) < 0.5, 0x80: np.arange(1000) % 190 >= 95}
    for blocks, where in positions.items():
        for flips, signs in negative.items():
            payload = KERNEL.rice_pack(where, signs, KERNEL.rice_plan(where, signs))
            assert payload[0] & 0xC0 == blocks | flips
            assert outcome(KERNEL.rice_unpack, payload, 1000, 10**6) == (where.tolist(), signs.tolist())


@settings(max_examples=50, deadline=None)
@given(updates(largest_scale=60))
def test_ternary_has_the_bytes_of_numpy(update):
    n, positions, negative = update
    assert KERNEL.ternary_histogram(positions, n).tolist() == ternary.histogram(positions, n).tolist()
    payload = KERNEL.ternary_pack(positions, negative, n)
    assert payload == ternary.pack(positions, negative, n)
    received = outcome(KERNEL.ternary_unpack, payload, positions.size, n)
    assert received == (positions.tolist(), negative.tolist())


@pytest.mark.parametrize("n", [SEGMENT, SEGMENT + 1, 4 * SEGMENT, 7 * SEGMENT + 777])
@pytest.mark.parametrize("density", [0.0, 0.04, 0.5, 0.99])
def test_ternary_joins_segments(n, density):
    rng = np.random.default_rng(n)
    # Not the same in all segments, so that none can be taken for another.
    positions = (
        np.flatnonzero(rng.random(n) < density ** np.linspace(0.5, 2.0, n)) if density else np.arange(0)
    )
    negative = rng.random(positions.size) < 0.3
    payload = KERNEL.ternary_pack(positions, negative, n)
    if n <= 4 * SEGMENT:  # NumPy takes its time
        assert payload == ternary.pack(positions, negative, n)
    decoded, decoded_signs = KERNEL.ternary_unpack(memoryview(payload), positions.size, n)
    assert np.array_equal(decoded, positions)
    assert np.array_equal(decoded_signs, negative)
    assert KERNEL.ternary_histogram(positions, n).tolist() == ternary.histogram(positions, n).tolist()


def test_no_positions_and_no_parameters():
    nothing, no_signs = np.empty(0, np.int64), np.empty(0, np.bool_)
    assert KERNEL.ternary_pack(nothing, no_signs, 0) == KERNEL.ternary_pack(nothing, no_signs, 20) == b""
    assert KERNEL.ternary_histogram(nothing, 20).tolist() == [3] + 8 * [0]
    for unpack in (KERNEL.rice_unpack, KERNEL.ternary_unpack):
        assert outcome(unpack, b"", 0, 0) == outcome(unpack, b"", 0, 20) == ([], [])


def segment_beyond(x, n, count, *, signs):
    """Mask bytes x, all their signs plus, up to a number just beyond a range: rounding down leaves room for one."""
    table = ternary.frequencies(count, n).tolist()
    low, span, written, hits = 0, 2**56, 0, bin(x).count("1")
    for _ in range(n // 8):
        steps = [(16, sum(table[:x]), table[x]), (hits, 0, 1)]
        for bits, below, frequency in steps:
            if span % 2**bits and signs == (bits != 16):
                return (low + (span >> bits << bits)).to_bytes(7 + written, "big").rstrip(b"\0")
            unit = span >> bits
            low, span = low + below * unit, frequency * unit
            while span < 2**48:
                low, span, written = low << 8, span << 8, written + 1
    raise AssertionError


RICE, TERNARY = "rice_unpack", "ternary_unpack"
REFUSED = [  # the number of what is wrong, the reader, payload, count, n, the field
    (2, RICE, b"\0\0", 8, 100, "length"),
    (2, RICE, b"\0\0\0", 8, 100, "length"),
    (2, RICE, b"\x80\0", 2, 100, "length"),
    (2, RICE, b"\x05\0\1", 8, 100, "length"),
    (2, RICE, b"\x40" + bytes(20), 40, 100, "length"),
    (3, RICE, b"\0", 0, 100, "length"),
    (3, RICE, b"\0\0\1\0", 1, 100, "length"),
    (3, RICE, b"\0\0\1\1", 1, 100, "length"),
    (4, RICE, b"\0\2\1", 1, 100, "padding"),  # signs
    (4, RICE, b"\0\0\3", 1, 100, "padding"),  # quotients
    (4, RICE, b"\1\0\2\1", 1, 100, "padding"),  # remainders
    (4, RICE, b"\x80\0\1\3\3", 2, 100, "padding"),  # quotients of the flips
    (4, RICE, b"\x80\1\1\2\1\3", 2, 100, "padding"),  # remainders of the flips
    (4, RICE, b"\x40\3" + bytes(5) + b"\xff" * 4 + b"\1", 33, 100, "padding"),  # table
    (5, RICE, b"\0\0\2", 1, 1, "positions"),
    (5, RICE, b"\x39\0" + b"\xff" * 7 + b"\1\1", 1, 2**57 - 1, "positions"),
    (5, RICE, b"\x39\0" + b"\xff" * 7 + b"\1" + bytes(9) + b"\1", 1, 2**62, "positions"),  # 72 << 57
    (5, RICE, b"\x39\0" + bytes(8) + bytes(9) + b"\1", 1, 2**63 - 1, "positions"),  # 72 << 57, nothing else
    (6, RICE, b"\x3a\0\1", 1, 100, "k"),
    (6, RICE, b"\x80\x3a\0\1", 1, 100, "k"),
    (6, RICE, b"\x40\2" + bytes(5) + b"\xff" * 5, 33, 100, "k"),  # -1
    (6, RICE, b"\x79\4" + bytes(300), 33, 100, "k"),  # 58
    (7, RICE, b"\x40\1\0\0\0\0\xff\xff\xff\xff", 32, 100, "form"),
    (8, RICE, b"\x80\x40\0\1", 1, 100, "form of the flips"),
    (9, RICE, b"\x80\0\x81\0\1\3", 2, 100, "varint"),
    (9, RICE, b"\x80\0" + b"\xff" * 20, 2, 100, "varint"),
    (9, RICE, b"\x80\0" + b"\x80" * 9 + b"\2\0", 2, 100, "varint"),
    (10, RICE, b"\x80\0\2\3\3", 2, 100, "flips"),
    (10, RICE, b"\x80\0\1\2\3", 2, 100, "flips"),
    (None, RICE, b"", 1, 100, "count"),
    (None, RICE, b"\0" * 10, 21, 20, "count"),
    (None, RICE, b"\0" * 10, 81, 100, "count"),
    (None, RICE, b"\0" * 10, 2**62, 2**63 - 1, "count"),  # no memory for it
    (None, RICE, b"\0" * 10, -1, 100, "count"),
    (5, TERNARY, b"\0\2", 1, 1, "positions"),
    (11, TERNARY, b"\1", 0, 0, "lengths"),
    (11, TERNARY, b"\1", 1, SEGMENT + 1, "lengths"),
    (11, TERNARY, b"\2\0\1", 1, SEGMENT + 1, "lengths"),
    (11, TERNARY, b"\1\0\1\0\0\1\1\1", 1, 4 * SEGMENT, "lengths"),
    (12, TERNARY, b"\0", 0, 20, "segments"),
    (12, TERNARY, b"\2\0\1\0\1", 1, SEGMENT + 1, "segments"),
    (13, TERNARY, b"\1" * 20, 0, 8, "segment"),
    (14, TERNARY, segment_beyond(0xFF, 40, 36, signs=False), 36, 40, "segment"),
    (15, TERNARY, segment_beyond(0xFF, 40, 36, signs=True), 36, 40, "segment"),
    (16, TERNARY, b"", 1, 20, "positions"),
    (16, TERNARY, b"\xff", 1, 1, "positions"),
    (None, TERNARY, b"", 21, 20, "count"),
    (None, TERNARY, b"", -1, 20, "count"),
]


@pytest.mark.parametrize(("number", "unpack", "payload", "count", "n", "field"), REFUSED)
def test_what_breaks_a_rule_is_refused(number, unpack, payload, count, n, field):
    with pytest.raises(ProtocolError, match=f"payload, {field}.*: expected .*, received ") as refusal:
        getattr(KERNEL, unpack)(memoryview(payload), count, n)
    if number is not None:
        parts = [part.format(count=count, n=n, length=len(payload)) for part in native_coders._WRONG[number]]
        assert refusal.value.message.endswith("payload, {}: expected {}, received {}".format(*parts))
    with pytest.raises(ProtocolError):
        (rice.unpack if unpack == RICE else ternary.unpack)(memoryview(payload), count, n)


def test_every_refusal_has_a_case():
    assert {case[0] for case in REFUSED} - {None} == set(native_coders._WRONG) - {1}


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 80), st.sampled_from([0, 1, 40, 80, 10**6, 2**63 - 1]))
def test_any_bytes_mean_what_they_mean_to_numpy(payload, count, n):
    assert outcome(KERNEL.rice_unpack, payload, count, n) == outcome(rice.unpack, payload, count, n)
    if n < 1000:
        assert outcome(KERNEL.ternary_unpack, payload, count, n) == outcome(ternary.unpack, payload, count, n)


@settings(max_examples=50, deadline=None)
@given(updates(largest_scale=60), st.data())
def test_mutated_payloads_mean_what_they_mean_to_numpy(update, data):
    n, positions, negative = update
    payloads = (
        (KERNEL.rice_unpack, rice.unpack, rice.pack(positions, negative, rice.plan(positions, negative))),
        (KERNEL.ternary_unpack, ternary.unpack, KERNEL.ternary_pack(positions, negative, n)),
    )
    for unpack, reference, written in payloads:
        payload = bytearray(written or b"\1")
        for _ in range(data.draw(st.integers(1, 3))):
            payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        del payload[len(payload) - data.draw(st.sampled_from([0, 0, 0, 1, 2])) :]
        assert outcome(unpack, payload, positions.size, n) == outcome(reference, payload, positions.size, n)


def test_arguments_that_cannot_be_packed_are_refused():
    positions, negative = np.arange(0, 700, 7), np.arange(100) % 3 == 0
    plan = KERNEL.rice_plan(positions, negative)
    for wrong in (
        plan._replace(bytes=plan.bytes - 1),
        plan._replace(bytes=plan.bytes + 1),
        plan._replace(k=plan.k + 64),
        plan._replace(k=np.full(3, 2, np.uint8)),
        plan._replace(flips=3),
        plan._replace(flips=100),
    ):
        with pytest.raises(ValueError, match="plan: expected"):
            KERNEL.rice_pack(positions, negative, wrong)
    with pytest.raises(ValueError, match="plan: expected"):
        KERNEL.rice_pack(1000 * positions, negative, plan)
    for where in (positions[::-1], positions // 8, positions + 7, positions - 1):
        with pytest.raises(ValueError, match=r"positions: expected ascending numbers in range\(700\)"):
            KERNEL.ternary_pack(where, negative, 700)
    with pytest.raises(
        ValueError, match=r"negative: expected shape \(100,\) as the positions, received \(99,\)"
    ):
        KERNEL.rice_plan(positions, negative[1:])
    with pytest.raises(ValueError, match="expected int64 of one dimension, received int32"):
        KERNEL.ternary_histogram(positions.astype(np.int32), 700)


def test_arrays_with_strides_are_read_as_they_are():
    positions, negative = np.arange(0, 900, 3)[::3], (np.arange(300) % 7 < 3)[::3]
    plan = KERNEL.rice_plan(positions, negative)
    payload = KERNEL.rice_pack(positions, negative, plan)
    assert payload == rice.pack(positions, negative, rice.plan(positions, negative))
    assert KERNEL.ternary_pack(positions, negative, 900) == ternary.pack(positions, negative, 900)
