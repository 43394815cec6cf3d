"""The bytes of the zip archive around the parts: written in one form only, so that a reader can compare all of them.

Everything is zip64, stored, streamed (the checksum follows the data), dated 1980-01-01; the layout is of PKWARE's APPNOTE 6.3.10::

    for each entry:   local header   30 + name + 20 (zip64) + 4 + padding    so that the data begins at a multiple of 64
                      data
                      descriptor     24                                      CRC-32 and sizes
    directory         46 + name + 28 (zip64) for each entry
    end               56 + 20 + 22   zip64 record, its locator, and the old record, which points to them

Data that begins at a multiple of 64 can be mapped into memory as tensors. The padding is an extra field (0xD935, Android's
number for the same purpose).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "ALIGNMENT",
    "DESCRIPTOR_BYTES",
    "END_BYTES",
    "OLD_END",
    "Entry",
    "descriptor",
    "directory",
    "local_header",
]

ALIGNMENT = 64
DESCRIPTOR_BYTES = 24
_VERSION = 45  # of zip: the first with zip64
_STREAMED = 0x0008
_DATE = 0x0021  # 1980-01-01
_UNKNOWN = 0xFFFFFFFF  # "see the zip64 field"
_UNIX = 3 << 8
_MODE = 0o644 << 16
_PADDING_ID = 0xD935

OLD_END = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, _UNKNOWN, _UNKNOWN, 0)
"""The last 22 bytes of every archive of version 2 and later."""
END_BYTES = 56 + 20 + len(OLD_END)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where the bytes of a part are."""

    name: str
    offset: int
    """Of its local header."""
    data: int
    """Of its first byte."""
    size: int
    """In bytes."""
    crc: int
    """CRC-32."""


def local_header(name: str, offset: int) -> bytes:
    """What stands before the data.

    Args:
        name: Of the entry, ASCII.
        offset: In the file, where the header begins.
    """
    zip64 = struct.pack("<2H2Q", 1, 16, 0, 0)
    unpadded = offset + 30 + len(name) + len(zip64) + 4
    padding = -unpadded % ALIGNMENT
    extra = zip64 + struct.pack("<2H", _PADDING_ID, padding) + bytes(padding)
    fixed = struct.pack(
        "<4s5H3L2H",
        b"PK\x03\x04",
        _VERSION,
        _STREAMED,
        0,
        0,
        _DATE,
        0,
        _UNKNOWN,
        _UNKNOWN,
        len(name),
        len(extra),
    )
    return fixed + name.encode("ascii") + extra


def descriptor(entry: Entry) -> bytes:
    """What stands behind the data."""
    return struct.pack("<4sL2Q", b"PK\x07\x08", entry.crc, entry.size, entry.size)


def directory(entries: Sequence[Entry], offset: int) -> bytes:
    """What stands at the end of the file.

    Args:
        entries: In the order of their places.
        offset: In the file, where the directory begins.
    """
    rows = b"".join(_directory_row(entry) for entry in entries)
    count, end = len(entries), offset + len(rows)
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, _UNIX | _VERSION, _VERSION, 0, 0, count, count, len(rows), offset
    )
    return rows + record + struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1) + OLD_END


def _directory_row(entry: Entry) -> bytes:
    extra = struct.pack("<2H3Q", 1, 24, entry.size, entry.size, entry.offset)
    return (
        struct.pack(
            "<4s6H3L5H2L",
            b"PK\x01\x02",
            _UNIX | _VERSION,
            _VERSION,
            _STREAMED,
            0,
            0,
            _DATE,
            entry.crc,
            _UNKNOWN,
            _UNKNOWN,
            len(entry.name),
            len(extra),
            0,
            0,
            0,
            _MODE,
            _UNKNOWN,
        )
        + entry.name.encode("ascii")
        + extra
    )
