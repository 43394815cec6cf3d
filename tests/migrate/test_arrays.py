"""Arrays as ND4J writes them: every type, order and age, and bytes that are no arrays."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from tests.migrate.writer import array_bytes

from fatwood.errors import DamagedError, StorageError
from fatwood.nd4j import read_array

MODES = ["MIXED_DATA_TYPES", "LONG_SHAPE", "JAVACPP", "DIRECT", "HEAP"]
TYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1"]


@given(
    st.sampled_from(TYPES).flatmap(
        lambda kind: arrays_of.arrays(np.dtype(kind), arrays_of.array_shapes(max_dims=4, max_side=4))
    ),
    st.sampled_from("cf"),
    st.sampled_from(MODES),
    st.binary(max_size=9),
)
def test_what_is_written_in_any_type_order_and_age_is_read_again(
    array: np.ndarray, order: str, mode: str, before: bytes
) -> None:
    content = before + array_bytes(array, order, mode=mode)
    found, end = read_array(content + b"more", len(before))
    assert end == len(content)
    assert found.dtype.newbyteorder("=") == array.dtype
    np.testing.assert_array_equal(found, array)


def test_the_bytes_are_those_that_the_format_says() -> None:
    """Two by three in columns, typed out by hand."""
    mode = b"\x00\x10MIXED_DATA_TYPES"
    shape = struct.pack(">8q", 2, 2, 3, 1, 2, 8192, 1, ord("f"))
    elements = struct.pack(">6f", 0, 3, 1, 4, 2, 5)
    content = mode + struct.pack(">q", 8) + b"\x00\x04LONG" + shape
    content += mode + struct.pack(">q", 6) + b"\x00\x05FLOAT" + elements
    found, end = read_array(content)
    assert end == len(content)
    np.testing.assert_array_equal(found, np.arange(6.0).reshape(2, 3))


def test_bfloat16_are_the_upper_halves_of_float32() -> None:
    numbers = np.array([1.0, -2.5, 3.140625, float("inf")], np.float32)
    halves = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    content = array_bytes(halves.view(np.int16), kind="BFLOAT16")
    found, _ = read_array(content)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, numbers)


def test_a_scalar_and_an_empty_array_have_their_shapes() -> None:
    scalar, _ = read_array(array_bytes(np.array(7.0)))
    empty, _ = read_array(array_bytes(np.zeros((0, 3), np.float32)))
    assert (scalar.shape, float(scalar), empty.shape) == ((), 7.0, (0, 3))


def test_compressed_arrays_are_refused_by_name() -> None:
    content = array_bytes(np.zeros(4, np.int8), kind="COMPRESSED")
    with pytest.raises(
        StorageError, match="expected numbers, received COMPRESSED elements\nhint: save it again"
    ):
        read_array(content)


@given(st.data())
def test_cut_anywhere_it_is_an_error_and_never_another_array(data: st.DataObject) -> None:
    content = array_bytes(np.arange(6.0).reshape(2, 3))
    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(DamagedError):
        read_array(content[:cut])


@pytest.mark.parametrize("length", [-1, 7, 1 << 40, (1 << 63) - 1])
def test_a_length_that_is_not_there_takes_no_memory(length: int) -> None:
    content = array_bytes(np.arange(6.0))
    at = content.rindex(struct.pack(">q", 6))
    with pytest.raises(DamagedError, match="elements"):
        read_array(content[:at] + struct.pack(">q", length) + content[at + 8 :])


@pytest.mark.parametrize(
    ("rank", "sizes", "match"),
    [
        (2**31, (6,), "axes"),
        (-1, (6,), "axes"),
        (33, (1,) * 33, "INT or LONG|elements"),
        (2, (2**40, 2**40), "elements of the shape"),
        (2, (-2, -3), "order c or f"),
    ],
)
def test_a_shape_that_cannot_be_is_an_error(rank: int, sizes: tuple[int, ...], match: str) -> None:
    numbers = [rank, *sizes, *(1 for _ in sizes), 8192, 1, ord("c")]
    mode = b"\x00\x10MIXED_DATA_TYPES"
    content = (
        mode + struct.pack(">q", len(numbers)) + b"\x00\x04LONG" + struct.pack(f">{len(numbers)}q", *numbers)
    )
    content += mode + struct.pack(">q", 6) + b"\x00\x05FLOAT" + bytes(24)
    with pytest.raises(DamagedError, match=match):
        read_array(content)


@given(st.binary(max_size=200))
def test_bytes_of_anyone_are_no_array(content: bytes) -> None:
    with pytest.raises(StorageError):
        read_array(content)
