"""The header of a message: what is written is read, and nothing else is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fatwood.errors import ProtocolError
from fatwood.train.header import HEADER_BYTES, MAX_ROWS, Header, join, split

headers = st.builds(
    Header,
    rows=st.integers(0, MAX_ROWS),
    loss_sum=st.floats(allow_nan=False),
    more=st.booleans(),
    position=st.integers(0, 2**64 - 1),
    consumed=st.integers(0, MAX_ROWS),
    digest=st.none() | st.integers(0, 2**64 - 1),
    checkpoint=st.booleans(),
    weight=st.none() | st.floats(0, 1e300),
    stop=st.booleans(),
    not_finite=st.booleans(),
)


@given(headers, st.binary(max_size=40))
def test_what_is_joined_is_split(header, payload) -> None:
    message = join(header, payload)
    optional = (header.digest is not None) + (header.weight is not None)
    assert len(message) == HEADER_BYTES + 8 * optional + len(payload)
    found, rest = split(3, message)
    assert found == header
    assert rest == payload
    assert found.payload_in(message) == payload


def test_the_layout_is_the_documented_one() -> None:
    header = Header(
        rows=1, consumed=2, position=3, loss_sum=0.5, more=True, digest=2**64 - 2, checkpoint=True
    )
    fixed = struct.pack("<I", 1) + struct.pack("<I", 2) + struct.pack("<Q", 3) + struct.pack("<d", 0.5)
    assert join(header, b"xy") == fixed + bytes([7]) + struct.pack("<Q", 2**64 - 2) + b"xy"
    assert join(Header(rows=1, loss_sum=0.5, more=False), b"")[24] == 0
    assert join(Header(rows=1, loss_sum=0.5, more=True), b"")[24] == 1
    assert join(Header(rows=1, loss_sum=0.5, more=False, digest=0), b"")[24] == 2
    assert join(Header(rows=1, loss_sum=0.5, more=False, checkpoint=True), b"")[24] == 4
    weighted = join(Header(rows=1, loss_sum=0.5, more=False, weight=0.25), b"z")
    assert weighted[24:] == bytes([8]) + struct.pack("<d", 0.25) + b"z"
    assert join(Header(rows=1, loss_sum=0.5, more=False, stop=True), b"")[24] == 16
    assert join(Header(rows=1, loss_sum=0.5, more=False, not_finite=True), b"")[24] == 32


def test_a_loss_that_is_no_number_travels_too() -> None:
    found, _ = split(0, join(Header(rows=1, loss_sum=float("nan"), more=False), b""))
    assert found.loss_sum != found.loss_sum


def test_the_payload_is_not_copied() -> None:
    message = bytearray(join(Header(rows=1, loss_sum=0.5, more=False), b"abc"))
    _, payload = split(0, message)
    message[-1] = ord("z")
    assert bytes(payload) == b"abz"


@given(headers, st.data())
def test_a_message_that_is_too_short_names_its_sender(header, data) -> None:
    message = join(header, b"")
    length = data.draw(st.integers(0, len(message) - 1))
    with pytest.raises(
        ProtocolError, match=rf"message of rank 5: expected at least \d+ bytes, received {length}"
    ):
        split(5, message[:length])


@given(headers, st.integers(64, 255))
def test_unknown_flags_are_an_error(header, flags) -> None:
    message = bytearray(join(header, bytes(16)))
    message[HEADER_BYTES - 1] = flags
    with pytest.raises(
        ProtocolError, match=rf"message of rank 2: expected flags below 64, received {flags}"
    ) as caught:
        split(2, message)
    assert "same version" in str(caught.value.hint)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_an_error(weight: float) -> None:
    message = join(Header(rows=1, loss_sum=0.5, more=False, weight=weight), b"")
    with pytest.raises(ProtocolError, match="message of rank 1: expected a finite weight of at least 0"):
        split(1, message)
