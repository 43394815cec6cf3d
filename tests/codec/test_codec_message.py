"""The wire format: golden bytes, round trips, sizes near the entropy, and every damaged byte refused."""

from __future__ import annotations

import math
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.codec.message import Coder, Message, decode, encode, encode_values
from fatwood.codec.varint import varint
from fatwood.errors import NotFiniteError, ProtocolError
from fatwood.testing.strategies import float32_vectors, sparse_vectors

POSITIONS = np.array([1, 4, 5, 17])
NEGATIVE = np.array([False, True, False, True])
RUNS = np.concatenate([np.arange(40), 40 + 1000 * np.arange(1, 41)])

# Version 2 for ever: these bytes may never change. Another format is another version.
GOLDEN = {
    # version 2; step 7; 8 * 4 + 0; tau 0.5; crc32; k = 1; signs 0101; remainders 1001; quotients 1 01 1 000001
    "rice": "b2 07 20 0000003f 9b52cdac 01 0a 09 0d02",
    "ternary": "b2 07 21 0000003f cbfa53c9 a19fa0",
    "float32": "b2 07 a201 0000003f 89701689 00000000 0000003f" + "00000000" * 2 + "000000bf 0000003f"
    + "00000000" * 11 + "000000bf" + "00000000" * 2,
    "float16": "b2 07 a301 0000003f 3979cfee 0000 0038" + "0000" * 2 + "00b8 0038" + "0000" * 11 + "00b8" + "0000" * 2,
    "nothing": "b2 00 00 0000003f 7f8a4118",
    # step 2**64 - 1; 8 * 3 + 0; k = 28; three minus signs; three times 28 bits; quotients 1 1 0001
    "last step": "b2 ffffffffffffffffff01 18 0000803a 4c1f8fae 1c 07 050000203e000016c69a0b 23",
    # step 300; 8 * 80 + 0; k = 0, blocks and flips; flips_k 5, first +, one flip; k steps by +9 and 0, zigzag 18 and 0;
    # flip 49 = 1 * 32 + 17; eight times 0 in 9 bits, 1000, 39 times 999; quotients 40 times 1, 40 times 01
    "blocks and flips": "b2 ac02 8005 0000803f d62ecd18 c0 05 01 0000 0c 11 02 0000000000000000 00e8"
    "cf9f3f7ffefcf9f3" + 4 * "e7cf9f3f7ffefcf9f3" + 5 * "ff" + 10 * "aa",
    "values as float16": "b2 07 1b 00000000 291d60ad 003c 66ae 0000",
    "values as float32": "b2 07 1a 00000000 7f7e17ee 0000803f 002474c9 00000000",
}  # fmt: skip
WRITTEN = {
    "rice": lambda: encode(7, 20, 0.5, POSITIONS, NEGATIVE, coder=Coder.RICE),
    "ternary": lambda: encode(7, 20, 0.5, POSITIONS, NEGATIVE),
    "float32": lambda: encode(7, 20, 0.5, POSITIONS, NEGATIVE, coder=Coder.DENSE32),
    "float16": lambda: encode(7, 20, 0.5, POSITIONS, NEGATIVE, coder=Coder.DENSE16),
    "nothing": lambda: encode(0, 20, 0.5, POSITIONS[:0], NEGATIVE[:0]),
    "last step": lambda: encode(
        2**64 - 1, 10**9, 2.0**-10, np.array([5, 1000, 10**9 - 1]), np.ones(3, np.bool_)
    ),
    "blocks and flips": lambda: encode(300, 10**6, 1.0, RUNS, np.arange(80) >= 50),
    "values as float16": lambda: encode_values(7, np.array([1.0, -0.1, 0.0], np.float32))[0],
    "values as float32": lambda: encode_values(7, np.array([1.0, -1e6, 0.0], np.float32))[0],
}
SIZES = {"last step": 10**9, "blocks and flips": 10**6, "values as float16": 3, "values as float32": 3}


def golden(name):
    return bytes.fromhex(GOLDEN[name]), SIZES.get(name, 20)


def sealed(n, payload, *, first=0xB2, step=7, count=4, coder=0, tau=0.5, number=None):
    """A message with any fields and a right checksum."""
    header = bytes([first]) + varint(step) + (number or varint(8 * count + coder)) + struct.pack("<f", tau)
    crc = zlib.crc32(payload, zlib.crc32(header, zlib.crc32(n.to_bytes(8, "little"))))
    return header + struct.pack("<I", crc) + payload


@pytest.mark.parametrize("name", list(GOLDEN))
def test_golden_bytes_are_written_and_read(name):
    wire, n = golden(name)
    assert WRITTEN[name]().hex() == wire.hex()
    message = decode(wire, n)
    assert (message.n, message.dense().dtype if n < 10**6 else None) == (n, np.float32 if n < 10**6 else None)
    if n == 20 and name != "nothing":
        assert (message.step, message.tau) == (7, 0.5)
        expected = np.zeros(20)
        expected[POSITIONS] = [0.5, -0.5, 0.5, -0.5]
        assert message.dense().tolist() == expected.tolist()


@pytest.mark.parametrize("name", list(GOLDEN))
def test_any_flipped_bit_or_byte_is_refused(name):
    wire, n = golden(name)
    for position in range(len(wire)):
        for flipped in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged = bytearray(wire)
            damaged[position] ^= flipped
            with pytest.raises(ProtocolError):
                decode(damaged, n)


@pytest.mark.parametrize("name", list(GOLDEN))
def test_a_message_cut_short_or_extended_is_refused(name):
    wire, n = golden(name)
    for wrong in (*(wire[:length] for length in range(len(wire))), wire + b"\0", wire + b"\1", b"\0" + wire):
        with pytest.raises(ProtocolError):
            decode(wrong, n)


@settings(max_examples=80, deadline=None)
@given(
    sparse_vectors(),
    st.sampled_from([None, *Coder]),
    st.integers(0, 2**64 - 1),
    st.integers(-14, 15).map(lambda exponent: 2.0**exponent),
)
def test_round_trip_at_any_density_with_any_coder(sparse, coder, step, tau):
    message = decode(
        encode(step, sparse.n, tau, sparse.positions, sparse.negative, coder=coder), sparse.n, step
    )
    assert (message.step, message.n, message.tau) == (step, sparse.n, tau)
    assert coder in (None, message.coder)
    expected = np.zeros(sparse.n, np.float32)
    expected[sparse.positions] = np.where(sparse.negative, -tau, tau)
    assert message.dense().tobytes() == expected.tobytes()
    if message.coder in (Coder.RICE, Coder.TERNARY):
        assert np.array_equal(message.positions, sparse.positions)
        assert np.array_equal(message.negative, sparse.negative)
        assert message.values is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), st.integers(0, 2**32 - 1), st.floats(2.0**-149, 2.0**127, width=32))
def test_all_coders_give_the_same_tensor_for_any_tau(n, seed, tau):
    rng = np.random.default_rng(seed)
    positions = np.flatnonzero(rng.random(n) < 0.3)
    negative = rng.random(positions.size) < 0.5
    tensors = [
        decode(encode(0, n, tau, positions, negative, coder=coder), n).dense().tobytes()
        for coder in (Coder.RICE, Coder.TERNARY, Coder.DENSE32)
    ]
    assert tensors[0] == tensors[1] == tensors[2]


def test_float16_is_only_for_a_tau_that_is_one():
    with pytest.raises(ValueError, match="float16"):
        encode(0, 20, 0.1, POSITIONS, NEGATIVE, coder=Coder.DENSE16)
    with pytest.raises(ValueError, match="float16"):
        encode(0, 20, 1e38, POSITIONS, NEGATIVE, coder=Coder.DENSE16)
    tau = float(np.float16(0.1))
    assert decode(encode(0, 20, tau, POSITIONS, NEGATIVE, coder=Coder.DENSE16), 20).tau == tau


@settings(max_examples=40, deadline=None)
@given(sparse_vectors(clustered=False))
def test_the_smaller_of_rice_and_ternary_is_sent(sparse):
    arguments = (0, sparse.n, 1.0, sparse.positions, sparse.negative)
    chosen = encode(*arguments)
    rice, ternary = (len(encode(*arguments, coder=coder)) for coder in (Coder.RICE, Coder.TERNARY))
    assert len(chosen) <= rice
    if 64 * sparse.positions.size < sparse.n or not sparse.positions.size:
        assert decode(chosen, sparse.n).coder is Coder.RICE
    else:
        assert len(chosen) <= ternary + 7  # its length is an estimate


def test_dense_messages_are_ternary_and_sparse_ones_rice():
    rng = np.random.default_rng(0)
    for density, coder in ((0.3, Coder.TERNARY), (0.05, Coder.TERNARY), (0.001, Coder.RICE)):
        positions = np.flatnonzero(rng.random(20_000) < density)
        negative = rng.random(positions.size) < 0.5
        assert decode(encode(0, 20_000, 1.0, positions, negative), 20_000).coder is coder


@pytest.mark.parametrize("n", [2**25, 2**33, 2**50, 2**63 - 1])
def test_positions_far_beyond_float_integers_cost_no_memory(n):
    positions = np.array([0, 2**24 - 1, 2**24 + 1, n - 3, n - 1])
    negative = np.array([True, False, False, True, False])
    tracemalloc.start()
    try:
        message = decode(encode(3, n, 0.25, positions, negative), n, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message.positions.tolist() == positions.tolist()
    assert message.negative.tolist() == negative.tolist()
    assert peak < 100_000


def test_a_count_that_is_not_there_takes_no_memory():
    hostile = sealed(2**51, b"\0" * 64, count=2**50)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="count"):
            decode(hostile, 2**51)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000


@settings(max_examples=30, deadline=None)
@given(sparse_vectors(max_n=20_000), st.integers(0, 2**32 - 1))
def test_decoding_takes_a_bounded_multiple_of_the_message(sparse, seed):
    rng = np.random.default_rng(seed)
    wire = bytearray(encode(0, sparse.n, 1.0, sparse.positions, sparse.negative, coder=Coder.RICE))
    payload = bytearray(wire[wire.index(struct.pack("<f", 1.0)) + 8 :])
    for at in rng.integers(0, len(payload), 2) if payload else ():
        payload[at] ^= 1 << int(rng.integers(0, 8))
    hostile = sealed(2**40, bytes(payload), count=int(sparse.positions.size * rng.choice([1, 2, 2**20])))
    tracemalloc.start()
    try:
        decode(hostile, 2**40)
    except ProtocolError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 400 * len(hostile) + 100_000


def wrong(n, payload, says, **fields):
    return pytest.param(n, payload, fields, says, id=says)


RICE = bytes.fromhex("010a090d02")
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("n", "payload", "fields", "says"),
    [
        wrong(20, RICE, "magic: expected 0xb, received 0x4", first=0x42),
        wrong(20, RICE, "expected version 2, received version 1", first=0xB1),
        wrong(20, RICE, "expected version 2, received version 3", first=0xB3),
        wrong(20, RICE, "step: expected 7, received 6", step=6),
        wrong(20, RICE, "step: expected 7, received 18446744073709551623", step=2**64 + 7),
        wrong(20, RICE, "coder: expected 0 to 3, received 4", coder=4),
        wrong(20, RICE, "coder: expected 0 to 3, received 7", coder=7),
        wrong(20, RICE, "count: expected at most 20 parameters, received 21", count=21),
        wrong(20, RICE, "count: expected at most 20 parameters, received 1152921504606846976", count=2**60),
        wrong(20, RICE, "shortest form, received a000", number=b"\xa0\x00"),
        wrong(20, RICE, "shortest form, received " + "ff" * 10, number=b"\xff" * 10),
        wrong(20, RICE, "tau: expected a finite float32, positive, received 0.0", tau=0.0),
        wrong(20, RICE, "tau: expected a finite float32, positive, received -0.5", tau=-0.5),
        wrong(20, RICE, "tau: expected a finite float32, positive, received nan", tau=NAN),
        wrong(20, RICE, "tau: expected a finite float32, positive, received inf", tau=INF),
        wrong(2, bytes(8), "not negative, received -1.0", coder=2, count=2, tau=-1.0),
        wrong(2, bytes(8), "not negative, received inf", coder=2, count=2, tau=INF),
        wrong(20, RICE + b"\0", "length"),
        wrong(20, RICE[:-1], "Rice payload"),
        wrong(20, b"", "count: expected at most 0, for 20 parameters and 0 bytes, received 4"),
        wrong(20, b"\0", "Rice payload, length: expected nothing after", count=0),
        wrong(20, RICE, "ternary payload", coder=1),
        wrong(20, bytes(80), "count: expected 20 for all parameters, received 19", coder=2, count=19),
        wrong(20, bytes(79), "payload: expected 80 bytes, received 79", coder=2, count=20),
        wrong(20, bytes(81), "payload: expected 80 bytes, received 81", coder=2, count=20),
        wrong(20, bytes(80), "payload: expected 40 bytes, received 80", coder=3, count=20),
        wrong(2, np.array([0, NAN], "<f4").tobytes(), "values: expected finite", coder=2, count=2, tau=0.0),
        wrong(2, np.array([INF, 0], "<f4").tobytes(), "finite numbers, received NaN or", coder=2, count=2),
        wrong(2, np.array([0, NAN], "<f2").tobytes(), "finite numbers", coder=3, count=2, tau=0.0),
    ],
)
def test_a_wrong_field_with_a_right_checksum_is_named(n, payload, fields, says):
    with pytest.raises(ProtocolError) as caught:
        decode(sealed(n, payload, **fields), n, 7)
    assert says in str(caught.value)


def test_refusals_say_what_to_do():
    wire, n = golden("rice")
    with pytest.raises(ProtocolError, match="hint: install the same version of fatwood everywhere"):
        decode(sealed(n, RICE, first=0xB1), n)
    for damaged, size in ((wire[:-1] + b"\0", n), (wire, n + 1)):
        with pytest.raises(
            ProtocolError, match=r"checksum.*\nhint: it was damaged, or made for another number of"
        ):
            decode(damaged, size)


def test_without_an_expected_step_any_step_will_do_that_fits_64_bits():
    assert decode(sealed(20, RICE, step=2**64 - 1), 20).step == 2**64 - 1
    with pytest.raises(ProtocolError, match="step: expected below"):
        decode(sealed(20, RICE, step=2**64), 20)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_like_object_is_read(kind):
    wire, n = golden("rice")
    assert decode(kind(wire), n).positions.tolist() == POSITIONS.tolist()


@pytest.mark.parametrize(
    ("step", "n", "tau", "positions", "negative"),
    [
        (0, 10, 1.0, [3, 3], [True, True]),
        (0, 10, 1.0, [3, 2], [True, True]),
        (0, 10, 1.0, [1, 5, 2, 7], [True] * 4),
        (0, 10, 1.0, [-1, 2], [True, True]),
        (0, 10, 1.0, [0, 10], [True, True]),
        (0, 10, 1.0, [0.0, 1.0], [True, True]),
        (0, 10, 1.0, [[0, 1]], [[True, True]]),
        (0, 10, 1.0, [0, 1], [True]),
        (0, 10, 1.0, [0, 1], [1, 0]),
        (0, 0, 1.0, [0], [True]),
        (0, -1, 1.0, [0], [True]),
        (0, 2**63, 1.0, [0], [True]),
        (-1, 10, 1.0, [0], [True]),
        (2**64, 10, 1.0, [0], [True]),
        (0, 10, 0.0, [0], [True]),
        (0, 10, -1.0, [0], [True]),
        (0, 10, 1e-60, [0], [True]),
        (0, 10, 1e60, [0], [True]),
        (0, 10, math.nan, [0], [True]),
    ],
)
@pytest.mark.parametrize("coder", [None, Coder.DENSE32])
def test_what_cannot_be_written_is_refused(step, n, tau, positions, negative, coder):
    with pytest.raises(ValueError, match=r"expected.*received"):
        encode(step, n, tau, np.array(positions), np.array(negative), coder=coder)


@settings(max_examples=80, deadline=None)
@given(float32_vectors(st.integers(0, 40), largest=7e4), st.integers(0, 2**64 - 1))
def test_values_are_sent_and_the_rest_is_kept_exactly(values, step):
    wire, sent = encode_values(step, values)
    message = decode(wire, values.size, step)
    assert (message.tau, message.positions.size, message.negative.size) == (0.0, 0, 0)
    assert message.values is not None
    assert message.dense().tobytes() == sent.tobytes()
    rest = values - sent
    assert np.array_equal(rest.astype(np.float64) + sent, values.astype(np.float64))
    assert np.all(np.abs(rest) <= 2.0**-11 * np.abs(values) + 2.0**-25)
    as_half = not values.size or float(np.abs(values).max()) < 65_520.0
    assert message.coder is (Coder.DENSE16 if as_half else Coder.DENSE32)
    assert len(wire) <= 30 + (2 if as_half else 4) * values.size


def test_what_was_sent_is_not_the_callers_own_memory():
    values = np.array([1e30, 2.0], np.float32)
    _, sent = encode_values(0, values)
    values[:] = 0.0
    assert sent.tolist() == [float(np.float32(1e30)), 2.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named(value):
    values = np.ones(9, np.float32)
    values[[6, 8]] = value
    with pytest.raises(NotFiniteError) as caught:
        encode_values(0, values)
    assert (caught.value.position, caught.value.n) == (6, 9)


@pytest.mark.parametrize(
    ("step", "values"),
    [
        (-1, np.zeros(2, np.float32)),
        (2**64, np.zeros(2, np.float32)),
        (0, np.zeros(2)),
        (0, np.zeros((2, 1), "f4")),
    ],
)
def test_values_of_another_type_are_refused(step, values):
    with pytest.raises(ValueError, match=r"expected.*received"):
        encode_values(step, values)


def test_a_message_is_a_tuple_of_named_fields():
    message = decode(*golden("rice"))
    assert Message._fields == ("step", "n", "tau", "coder", "positions", "negative", "values")
    assert message.coder is Coder.RICE


def bits_over_entropy(p, nnz):
    """A whole message of a random mask over the bound for an even mask with fair signs, n H(p) + nnz bits."""
    rng = np.random.default_rng([round(p * 10**6), nnz])
    n = round(nnz / p)
    positions = np.unique(rng.integers(0, n, nnz + nnz // 2))  # ascending; some were drawn twice
    positions = np.sort(rng.permutation(positions)[:nnz]) if positions.size >= nnz else np.arange(nnz)
    wire = encode(1000, n, 0.01, positions, rng.random(nnz) < 0.5)
    p = nnz / n
    entropy = -n * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    return 8 * len(wire) / (entropy + nnz)


GRID = [1e-4, 3e-4, 1e-3, 3e-3, 7e-3, 1e-2, 0.0155, 0.02, 0.029, 0.04, 0.058, 0.1, 0.2, 0.3]


@pytest.mark.parametrize("p", GRID)
def test_a_message_of_a_thousand_is_within_three_percent_of_the_entropy(p):
    assert bits_over_entropy(p, 1000) < 1.03


@pytest.mark.parametrize("p", GRID)
def test_a_message_of_ten_thousand_is_within_two_percent_of_the_entropy(p):
    assert 0.99 < bits_over_entropy(p, 10_000) < 1.02
