"""The two packings: every bit as the format says, exact sizes, and nothing trusted on the way back.

`write_rice` and `write_ternary` are second writers, a bit or a byte at a time and straight from the format's text.
"""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fatwood.codec import rice, ternary
from fatwood.codec.varint import read_varint, varint
from fatwood.errors import ProtocolError

KINDS = ("even", "clustered", "runs", "all", "none", "first and last")


def mask(n, kind, density, rng):
    """Ascending positions in range(n)."""
    if kind == "even":
        return np.flatnonzero(rng.random(n) < density)
    if kind == "clustered":
        return np.flatnonzero(rng.random(n) < density ** np.linspace(0.3, 4.0, n))
    if kind == "runs":
        return np.flatnonzero(np.cumsum(rng.random(n) < density) & 1)
    return {"all": np.arange(n), "none": np.arange(0), "first and last": np.unique([0, n - 1])}[kind]


def signs(count, kind, rng):
    if kind == "runs":
        return (np.cumsum(rng.random(count) < 0.03) & 1).astype(np.bool_)
    return rng.random(count) < {"plus": 0.0, "fair": 0.5, "minus": 1.0}[kind]


@st.composite
def updates(draw, max_n=3000):
    """(n, positions, negative) of any density and order."""
    n = draw(st.integers(1, 20) | st.integers(1, max_n))
    density = draw(st.sampled_from([1e-3, 0.01, 0.1, 0.5, 0.95]) | st.floats(0.0, 1.0))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    positions = mask(n, draw(st.sampled_from(KINDS)), density, rng)
    return n, positions, signs(positions.size, draw(st.sampled_from(["plus", "fair", "minus", "runs"])), rng)


def stream(bits):
    """Bytes from bits, the lowest first."""
    bits = bits + [0] * (-len(bits) % 8)
    return bytes(sum(bits[at + i] << i for i in range(8)) for at in range(0, len(bits), 8))


def unary(number):
    return [0] * number + [1]


def low_bits(number, k):
    return [number >> i & 1 for i in range(k)]


def gaps_between(positions):
    return [b - a - 1 for a, b in zip([-1, *positions], positions, strict=False)]


def best_k(gaps):
    return min(range(58), key=lambda k: (sum(gap >> k for gap in gaps) + len(gaps) * k, k)) if gaps else 0


def rice_codes(gaps, parameters):
    remainders = [bit for gap, k in zip(gaps, parameters, strict=True) for bit in low_bits(gap, k)]
    quotients = [bit for gap, k in zip(gaps, parameters, strict=True) for bit in unary(gap >> k)]
    return stream(remainders) + stream(quotients)


def write_rice(positions, negative, *, blocked, flipped):
    gaps, count = gaps_between(positions), len(positions)
    parameters = [best_k(gaps[at : at + 32]) for at in range(0, count, 32)] if blocked else [best_k(gaps)]
    steps = [b - a for a, b in itertools.pairwise(parameters)]
    table = stream([bit for step in steps for bit in unary(2 * step if step >= 0 else -2 * step - 1)])
    head, sign_streams = b"", stream([int(sign) for sign in negative])
    if flipped:
        flips = gaps_between([i - 1 for i in range(1, count) if negative[i] != negative[i - 1]])
        k = best_k(flips)
        head = bytes([k | 128 * bool(negative[0])]) + varint(len(flips))
        sign_streams = rice_codes(flips, [k] * len(flips))
    each = [k for k in parameters for _ in range(32)][:count] if blocked else parameters * count
    form = bytes([parameters[0] | 64 * blocked | 128 * flipped])
    return form + head + table + sign_streams + rice_codes(gaps, each)


def smallest_rice(positions, negative):
    forms = [
        (flipped, blocked)
        for flipped in (False, True)
        for blocked in (False, True)[: 1 + (len(positions) > 32)]
    ]
    written = [write_rice(positions, negative, blocked=b, flipped=f) for f, b in forms]
    return min(written, key=len)  # the first of equals: plain before flips, one block before many


def write_segment(mask_bytes, sign_numbers, frequency):
    low, span, out = 0, 2**56, bytearray()

    def carry():
        nonlocal low
        if low >= 2**56:
            low -= 2**56
            at = len(out) - 1
            while out[at] == 255:
                out[at] = 0
                at -= 1
            out[at] += 1

    def renorm():
        nonlocal low, span
        while span < 2**48:
            out.append(low >> 48)
            low, span = (low << 8) % 2**56, span << 8

    for x, s in zip(mask_bytes, sign_numbers, strict=True):
        r = span >> 16
        low, span = low + sum(frequency[:x]) * r, frequency[x] * r
        carry()
        renorm()
        if x:
            r = span >> x.bit_count() if hasattr(x, "bit_count") else span >> bin(x).count("1")
            low, span = low + s * r, r
            carry()
            renorm()
    for m in range(8):
        unit = 2 ** (56 - 8 * m)
        v = -(-low // unit) * unit
        if v < low + span:
            low = v
            carry()
            out += low.to_bytes(7, "big")[:m]
            return bytes(out).rstrip(b"\0")
    raise AssertionError


def write_ternary(positions, negative, n, *, count=None, mask_bits=None):
    """`count` and `mask_bits` let the model speak of another message than the one that is written."""
    frequency = ternary.frequencies(len(positions) if count is None else count, n).tolist()
    size = -(-(mask_bits or n) // 8)
    mask_bytes, sign_numbers, hits = [0] * size, [0] * size, [0] * size
    for position, sign in zip(positions, negative, strict=True):
        byte = position // 8
        mask_bytes[byte] |= 1 << position % 8
        sign_numbers[byte] |= int(sign) << hits[byte]
        hits[byte] += 1
    parts = [slice(at, at + 8192) for at in range(0, size, 8192)]
    segments = [write_segment(mask_bytes[part], sign_numbers[part], frequency) for part in parts]
    return b"".join([len(s).to_bytes(2, "little") for s in segments[:-1]] + segments)


def test_varints_are_leb128_and_only_the_shortest_form_is_read():
    for number in (0, 1, 127, 128, 300, 2**63, 2**70 - 1):
        octets = varint(number)
        assert len(octets) == max(1, -(-number.bit_length() // 7))
        assert read_varint(memoryview(b"x" + octets + b"\x85"), 1) == (number, 1 + len(octets))
    for wrong in (b"", b"\x80", b"\x80\x00", b"\x85\x80\x00", b"\xff" * 10, b"\x80" * 10 + b"\x01"):
        with pytest.raises(ProtocolError, match="shortest form"):
            read_varint(memoryview(wrong), 0)


@settings(max_examples=50, deadline=None)
@given(updates(max_n=1000))
def test_rice_writes_the_bits_of_the_format_in_its_smallest_form(update):
    _, positions, negative = update
    if positions.size:
        plan = rice.plan(positions, negative)
        payload = rice.pack(positions, negative, plan)
        assert payload == smallest_rice(positions.tolist(), negative.tolist())
        assert len(payload) == plan.bytes
        assert plan.k.size in (1, -(-positions.size // 32))


@settings(max_examples=60, deadline=None)
@given(updates())
def test_rice_round_trip(update):
    n, positions, negative = update
    payload = rice.pack(positions, negative, rice.plan(positions, negative)) if positions.size else b""
    decoded, decoded_signs = rice.unpack(memoryview(payload), positions.size, n)
    assert np.array_equal(decoded, positions)
    assert np.array_equal(decoded_signs, negative)
    assert (decoded.dtype, decoded_signs.dtype) == (np.int64, np.bool_)


CLUSTERED = np.concatenate([np.arange(40), 40 + 1000 * np.arange(1, 41), 41_000 + np.arange(300)])
EVEN = np.arange(0, 38_000, 100)
FAIR = np.array([int(digit) for digit in f"{3**240:0380b}"], np.bool_)[:380]
RUNS = np.arange(380) % 190 >= 95


@pytest.mark.parametrize(
    ("positions", "negative", "form"),
    [(EVEN, FAIR, 0), (CLUSTERED, FAIR, 0x40), (EVEN, RUNS, 0x80), (CLUSTERED, RUNS, 0xC0)],
    ids=["plain", "blocks", "flips", "blocks and flips"],
)
def test_every_form_of_rice_is_used_and_read(positions, negative, form):
    negative = negative[: positions.size]
    plan = rice.plan(positions, negative)
    payload = rice.pack(positions, negative, plan)
    assert payload[0] & 0xC0 == form
    assert payload == smallest_rice(positions.tolist(), negative.tolist())
    decoded, decoded_signs = rice.unpack(memoryview(payload), positions.size, 10**6)
    assert np.array_equal(decoded, positions)
    assert np.array_equal(decoded_signs, negative)


@pytest.mark.parametrize("scale", [2**20, 2**31, 2**33, 2**50])
def test_rice_holds_positions_beyond_24_and_32_bits(scale):
    rng = np.random.default_rng(scale)
    positions = np.unique(rng.integers(0, scale, 100)) * 8 + rng.integers(0, 8)
    positions = np.concatenate([positions[:50], positions[50:] * 64])  # other parameters in other blocks
    negative = rng.random(positions.size) < 0.5
    payload = rice.pack(positions, negative, rice.plan(positions, negative))
    assert payload == smallest_rice(positions.tolist(), negative.tolist())
    decoded, decoded_signs = rice.unpack(memoryview(payload), positions.size, int(positions[-1]) + 1)
    assert decoded.tolist() == positions.tolist()
    assert decoded_signs.tolist() == negative.tolist()


def test_rice_holds_the_last_positions_of_int64():
    n = 2**63 - 1
    positions = np.array([0, 2**24 + 1, 2**31, 2**33 + 1, 2**62, n - 1])
    negative = np.array([True, False] * 3)
    payload = rice.pack(positions, negative, rice.plan(positions, negative))
    assert len(payload) < 100
    assert rice.unpack(memoryview(payload), 6, n)[0].tolist() == positions.tolist()


def rice_payload(positions, k, *, sign_bytes=None, table=None, form=0):
    """A payload with plain signs whose writer follows no rule."""
    gaps = gaps_between(positions)
    head = bytes([k | form]) + (table or b"")
    return head + (sign_bytes or bytes(-(-len(gaps) // 8))) + rice_codes(gaps, [k] * len(gaps))


MANY = list(range(0, 330, 10))  # 33 positions: two blocks
NO_STEP = stream(unary(0))


@pytest.mark.parametrize(
    ("payload", "count", "n", "says"),
    [
        (rice_payload([3, 9], 2), 2, 9, "positions"),  # the last position is n
        (rice_payload([3, 9], 2), 1, 20, "padding"),  # another count
        (rice_payload([3, 9], 2), 3, 20, "unary stream"),
        (rice_payload([3, 9], 2) + b"\0", 2, 20, "length"),
        (rice_payload([3, 9], 2) + b"\1", 2, 20, "length"),
        (rice_payload([3, 9], 2)[:-1], 2, 20, "unary stream"),
        (rice_payload([3, 9], 2)[:1], 2, 20, "length"),
        (b"", 1, 20, "count"),
        (b"\0", 0, 20, "length"),  # nothing claimed, something there
        (b"\0" * 10, 21, 20, "count"),
        (b"\0" * 10, 81, 100, "count"),  # more positions than bits
        (b"\0" * 10, 2**62, 2**63 - 1, "count"),
        (b"\0" * 10, 8, 100, "unary stream"),  # no quotient ends
        (rice_payload([3, 9], 2, sign_bytes=b"\4"), 2, 20, "padding"),
        (b"\2\0\x0f\3", 2, 20, None),  # two gaps of 3: four bits and no more may be set
        (b"\2\0\x1f\3", 2, 20, "padding"),
        (b"\0\0\7", 2, 20, "padding"),  # a third quotient
        (rice_payload([3], 58), 1, 20, "k"),
        (rice_payload([3], 63), 1, 20, "k"),
        (rice_payload([3], 57), 1, 20, None),
        (b"\x39\0\xff\xff\xff\xff\xff\xff\xff\1\1", 1, 2**57 - 1, "positions"),  # a huge remainder
        (b"\x39\0\xff\xff\xff\xff\xff\xff\xff\1\0\0\0\0\0\0\0\0\0\1", 1, 2**62, "positions"),  # 72 << 57
        (
            rice_payload([2**62 * i for i in range(1, 6)], 57),
            5,
            2**63 - 1,
            "positions",
        ),  # in int64 the last is 2**62
        (rice_payload(MANY, 3, form=0x40, table=NO_STEP), 33, 400, None),
        (rice_payload(MANY, 3, form=0x40, table=b"\3"), 33, 400, "padding"),
        (rice_payload(MANY[:32], 3, form=0x40, table=NO_STEP), 32, 400, "form"),  # one block
        (bytes([0x40]) + stream(unary(1)) + bytes(5) + stream([1] * 33), 33, 400, "k"),  # -1
        (bytes([0x79]) + stream(unary(2)) + bytes(300), 33, 400, "k"),  # 58
        (b"\x80\x00\x00" + b"\3", 2, 20, None),  # no flip: positions 0 and 1, both plus
        (b"\x80\x40\x00" + b"\3", 2, 20, "form of the flips"),
        (b"\x80\x3a\x00" + b"\3", 2, 20, "k"),
        (b"\x80\x80\x01\x01" + b"\3", 2, 20, None),  # minus, then plus
        (b"\x80\x00\x02\x03" + b"\3", 2, 20, "flips"),  # two flips of two signs
        (b"\x80\x00\x01\x02" + b"\3", 2, 20, "positions"),  # the second and the third sign
        (b"\x80\x00\x01\x03" + b"\3", 2, 20, "padding"),
        (b"\x80\x01\x01\x02\x01" + b"\3", 2, 20, "padding"),
        (b"\x80\x00\x81\x00\x01" + b"\3", 2, 20, "varint at byte 2"),  # not in its shortest form
        (b"\x80\x00" + b"\xff" * 20, 2, 20, "varint at byte 2"),
    ],
)
def test_rice_refuses_what_breaks_a_rule(payload, count, n, says):
    if says is None:
        try:
            positions, _ = rice.unpack(memoryview(payload), count, n)
        except ProtocolError as error:
            pytest.fail(f"{error}")
        assert positions.size == count
    else:
        with pytest.raises(ProtocolError, match=rf"{says}: expected .*received"):
            rice.unpack(memoryview(payload), count, n)


@pytest.mark.parametrize("count", [2**50, 8 * 4096, 4 * 4096, 4095 * 8])
@pytest.mark.parametrize("octet", [b"\0", b"\xff", b"\x39", b"\x40", b"\x80"])
def test_rice_takes_memory_for_the_bytes_it_has_and_not_for_a_count(count, octet):
    payload = memoryview(octet + b"\xff" * 4095)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            rice.unpack(payload, count, 2**51)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400 * len(payload)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 80), st.sampled_from([0, 1, 40, 80, 10**6, 2**63 - 1]))
@example(b"\x40\1" + b"\xff" * 60, 40, 10**6)
def test_any_bytes_give_positions_or_a_protocol_error(payload, count, n):
    coders = [rice, ternary] if n < 1000 else [rice]
    for coder in coders:
        try:
            positions, negative = coder.unpack(memoryview(payload), count, n)
        except ProtocolError:
            continue
        assert positions.size == negative.size == count
        assert np.all(np.diff(positions) > 0)
        assert count == 0 or 0 <= positions[0] <= positions[-1] < n


@settings(max_examples=60, deadline=None)
@given(updates(), st.data())
def test_mutated_payloads_give_positions_or_a_protocol_error(update, data):
    n, positions, negative = update
    writers = [lambda: ternary.pack(positions, negative, n)]
    if positions.size:
        writers.append(lambda: rice.pack(positions, negative, rice.plan(positions, negative)))
    for coder, write in zip((ternary, rice), writers, strict=False):
        payload = bytearray(write() or b"\0")
        for _ in range(data.draw(st.integers(1, 3))):
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
        try:
            decoded, decoded_signs = coder.unpack(memoryview(payload), positions.size, n)
        except ProtocolError:
            continue
        assert decoded.size == decoded_signs.size == positions.size
        assert decoded.size == 0 or (np.all(np.diff(decoded) > 0) and 0 <= decoded[0] <= decoded[-1] < n)


@settings(max_examples=60, deadline=None)
@given(updates())
def test_ternary_writes_the_bytes_of_the_format_and_reads_them(update):
    n, positions, negative = update
    payload = ternary.pack(positions, negative, n)
    assert payload == write_ternary(positions.tolist(), negative.tolist(), n)
    decoded, decoded_signs = ternary.unpack(memoryview(payload), positions.size, n)
    assert np.array_equal(decoded, positions)
    assert np.array_equal(decoded_signs, negative)
    assert (decoded.dtype, decoded_signs.dtype) == (np.int64, np.bool_)


@pytest.mark.parametrize("n", [65_536, 65_537, 131_072, 140_001])
def test_ternary_joins_segments(n):
    rng = np.random.default_rng(n)
    positions = np.flatnonzero(rng.random(n) < 0.1)
    negative = rng.random(positions.size) < 0.5
    payload = ternary.pack(positions, negative, n)
    assert payload == write_ternary(positions.tolist(), negative.tolist(), n)
    decoded, decoded_signs = ternary.unpack(memoryview(payload), positions.size, n)
    assert np.array_equal(decoded, positions)
    assert np.array_equal(decoded_signs, negative)


def test_ternary_of_many_segments_is_that_of_few(monkeypatch):
    monkeypatch.setattr(ternary, "_SEGMENT", 300)  # shorter ones, for speed
    n = 4 * 2400 + 1000
    rng = np.random.default_rng(0)
    positions = mask(n, "clustered", 0.4, rng)
    negative = rng.random(positions.size) < 0.5
    payload = ternary.pack(positions, negative, n)
    monkeypatch.setattr(ternary, "_MANY", 1)
    assert ternary.pack(positions, negative, n) == payload
    decoded, decoded_signs = ternary.unpack(memoryview(payload), positions.size, n)
    assert np.array_equal(decoded, positions)
    assert np.array_equal(decoded_signs, negative)
    lengths = b"\x96\0" * 4
    with pytest.raises(ProtocolError, match="range"):
        ternary.unpack(memoryview(lengths + b"\xff" * 750), 3 * n // 4, n)
    with pytest.raises(ProtocolError, match="unread"):
        ternary.unpack(memoryview(lengths + b"\1" * 750), 0, n)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2**62), st.floats(0.0, 1.0))
def test_frequencies_are_a_whole_and_leave_no_byte_out(n, share):
    table = ternary.frequencies(min(int(n * share), n), n)
    assert (table.shape, table.dtype, int(table.sum())) == ((256,), np.int64, 65_536)
    assert table.min() >= 1


def test_frequencies_are_these():
    # They are part of the wire format, version 2, like the golden messages.
    assert ternary.frequencies(1, 2)[[0, 1, 255]].tolist() == [511, 255, 255]
    assert ternary.frequencies(1, 10)[[0, 1, 3, 7, 15, 255]].tolist() == [28371, 3122, 346, 38, 4, 1]
    assert ternary.frequencies(9, 10)[[0, 127, 255]].tolist() == [1, 3122, 28371]
    assert ternary.frequencies(0, 10)[[0, 1, 255]].tolist() == [65281, 1, 1]


@settings(max_examples=60, deadline=None)
@given(updates())
def test_the_histogram_counts_mask_bytes(update):
    n, positions, _ = update
    bits = np.zeros(-(-n // 8) * 8, np.int64)
    bits[positions] = 1
    expected = np.bincount(bits.reshape(-1, 8).sum(axis=1), minlength=9)
    assert ternary.histogram(positions, n).tolist() == expected.tolist()


@pytest.mark.parametrize("density", [0.03, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("n", [500, 100_000])
def test_the_estimate_is_the_length_within_a_few_bytes(n, density):
    rng = np.random.default_rng(n)
    positions = np.flatnonzero(rng.random(n) < density)
    length = len(ternary.pack(positions, rng.random(positions.size) < 0.5, n))
    estimate = ternary.estimate_bytes(ternary.histogram(positions, n), positions.size, n)
    assert length <= estimate <= length + 6


ONE_OF_20 = write_ternary([3], [True], 20)


@pytest.mark.parametrize(
    ("payload", "count", "n", "says"),
    [
        (ONE_OF_20, 1, 20, None),
        (b"", 0, 0, None),
        (b"\1", 0, 0, "length"),
        (ONE_OF_20, 21, 20, "count"),
        (ONE_OF_20 + b"\0", 1, 20, "zero byte"),
        (ONE_OF_20 + b"\1" * 20, 1, 20, "segment: expected at most"),  # more than the reader reads
        (ONE_OF_20 + b"\1" * 30_000, 1, 20, "lengths: expected at most"),  # more than any segment
        (write_ternary([3, 5], [True, True], 20, count=1), 1, 20, "positions: expected 1, received 2"),
        (write_ternary([], [], 20, count=1), 1, 20, "positions: expected 1, received 0"),
        (write_ternary([22], [True], 20, mask_bits=24), 1, 20, "positions: expected all below 20"),
        (b"\xff" * 50, 600, 800, "range"),
        (b"", 1, 65_537, "length"),  # one length is missing
        (b"\1", 1, 65_537, "length"),
        (b"\2\0\1", 1, 65_537, "lengths"),  # more than there is
        (b"\2\0\1\0", 1, 65_537, "zero byte"),  # the first segment's
    ],
)
def test_ternary_refuses_what_breaks_a_rule(payload, count, n, says):
    if says is None:
        assert ternary.unpack(memoryview(payload), count, n)[0].size == count
    else:
        with pytest.raises(ProtocolError, match=rf"ternary payload.*{says}"):
            ternary.unpack(memoryview(payload), count, n)
