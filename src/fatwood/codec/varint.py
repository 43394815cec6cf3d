"""Whole numbers in as few bytes as they need: unsigned LEB128."""

from __future__ import annotations

from fatwood.errors import ProtocolError

__all__ = ["read_varint", "varint"]


def varint(number: int) -> bytes:
    """An unsigned integer in LEB128: seven bits a byte from the lowest up, bit 7 set on all bytes but the last.

    >>> varint(3).hex(), varint(300).hex()
    ('03', 'ac02')
    """
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def read_varint(octets: memoryview, at: int) -> tuple[int, int]:
    """Reads what `varint` wrote: the number that begins at byte ``at``, and where the next field begins.

    Raises:
        ProtocolError: The bytes end too soon, there are more than ten, or a shorter form would have done.
    """
    number = 0
    for index, octet in enumerate(octets[at : at + 10]):
        number |= (octet & 0x7F) << (7 * index)
        if octet < 0x80 and (octet or not index):
            return number, at + index + 1
        if octet < 0x80:
            break
    received = bytes(octets[at : at + 10]).hex() or "nothing"
    msg = f"varint at byte {at}: expected at most 10 bytes in the shortest form, received {received}"
    raise ProtocolError(msg)
