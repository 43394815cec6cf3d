"""What a zip archive says is in it; nothing of that is believed before it fits the bytes that are there.

Archives of version 2 and later have but one form (`fatwood.archive.frame`): every byte outside the parts is compared with it.
Those of version 1 were written by Python's zipfile; any zip of stored entries with plain names that do not overlap is one.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from itertools import pairwise
from typing import BinaryIO

from fatwood.archive.frame import (
    DESCRIPTOR_BYTES,
    END_BYTES,
    OLD_END,
    Entry,
    descriptor,
    directory,
    local_header,
)
from fatwood.archive.kind import MANIFEST, is_part_name

__all__ = ["ListingError", "check_crc", "first_name", "is_framed", "list_entries", "read_at"]

_MAX_DIRECTORY_BYTES = 2**21  # some 20,000 entries
_STORED = 0


class ListingError(Exception):
    """The bytes are no archive; never leaves `fatwood.archive`."""


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Exactly so many bytes."""
    file.seek(offset)
    pieces, missing = [], size
    while missing and (piece := file.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    if missing:
        message = f"expected {size} bytes at {offset}, received {size - missing}"
        raise ListingError(message)
    return b"".join(pieces)


def is_framed(file: BinaryIO) -> bool:
    """Whether the file ends like an archive of version 2 or later."""
    size = file.seek(0, os.SEEK_END)
    return size >= END_BYTES and read_at(file, size - len(OLD_END), len(OLD_END)) == OLD_END


def first_name(file: BinaryIO) -> str | None:
    """The name of the first entry, if the file begins like a zip archive; for messages about one that is cut off."""
    file.seek(0)
    head = file.read(30)
    if len(head) < 30 or not head.startswith(b"PK\x03\x04"):
        return None
    name = file.read(min(int.from_bytes(head[26:28], "little"), 100)).decode("ascii", "replace")
    return name if name == MANIFEST or is_part_name(name) else None


def list_entries(file: BinaryIO) -> dict[str, Entry]:
    """All entries by name, none of which overlaps another or reaches beyond the file.

    Raises:
        ListingError: The bytes are no archive that Fatwood writes.
    """
    size = file.seek(0, os.SEEK_END)
    framed = is_framed(file)
    offset, rows = _framed_directory(file, size) if framed else _old_directory(file, size)
    entries = _parsed(rows)
    for entry in entries:
        if entry.name != MANIFEST and not is_part_name(entry.name):
            message = f"expected plain file names of entries, received {entry.name!r:.120}"
            raise ListingError(message)
        if entry.offset + entry.size > offset:
            message = (
                f"{entry.name}: expected at most {offset} stored bytes, "
                f"received {entry.size} from {entry.offset}"
            )
            raise ListingError(message)
    for name, count in Counter(entry.name for entry in entries).items():
        if count > 1:
            message = f"{name}: expected one entry of that name, received {count}"
            raise ListingError(message)
    entries.sort(key=lambda entry: entry.offset)
    if framed:
        found = [_framed(file, entry) for entry in entries]
        _check_frame(file, found, offset, size)
    else:
        found = [_old(file, entry, offset) for entry in entries]
    for before, after in pairwise(found):
        if before.data + before.size > after.offset:
            message = f"{after.name}: expected entries one behind another, received one that begins within {before.name}"
            raise ListingError(message)
    return {entry.name: entry for entry in found}


def _framed_directory(file: BinaryIO, size: int) -> tuple[int, bytes]:
    record = read_at(file, size - END_BYTES, 56)
    length, offset = struct.unpack_from("<2Q", record, 40)
    if length > _MAX_DIRECTORY_BYTES or offset + length != size - END_BYTES:
        message = (
            f"zip directory: expected it to end at {size - END_BYTES}, received {length} bytes at {offset}"
        )
        raise ListingError(message)
    return offset, read_at(file, offset, length)


def _old_directory(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """Of a zip without a comment, as Python writes it."""
    end = read_at(file, size - 22, 22) if size >= 22 else b""
    if not end.startswith(b"PK\x05\x06") or end[20:] != b"\0\0":
        message = "zip directory: expected one at the end of the file, received none"
        raise ListingError(message)
    length, offset = struct.unpack_from("<2L", end, 12)
    place = size - 22
    if place >= 76 and read_at(file, place - 20, 4) == b"PK\x06\x07":
        place -= 76
        length, offset = struct.unpack_from("<2Q", read_at(file, place, 56), 40)
    if length > _MAX_DIRECTORY_BYTES or offset + length != place:
        message = f"zip directory: expected it to end at {place}, received {length} bytes at {offset}"
        raise ListingError(message)
    return offset, read_at(file, offset, length)


def _parsed(rows: bytes) -> list[Entry]:
    """The entries of a directory; where their data begins is not known yet."""
    entries, at = [], 0
    while at < len(rows):
        if rows[at : at + 4] != b"PK\x01\x02" or at + 46 > len(rows):
            message = f"zip directory: expected an entry at {at}, received {rows[at : at + 4]!r}"
            raise ListingError(message)
        flags, method = struct.unpack_from("<2H", rows, at + 8)
        crc, packed, size, name_bytes, extra_bytes, comment_bytes = struct.unpack_from("<3L3H", rows, at + 16)
        (offset,) = struct.unpack_from("<L", rows, at + 42)
        name = rows[at + 46 : at + 46 + name_bytes].decode("utf-8", "replace")
        extra = rows[at + 46 + name_bytes : at + 46 + name_bytes + extra_bytes]
        size, packed, offset = _wide((size, packed, offset), extra)
        if method != _STORED or packed != size or flags & 1:
            message = (
                f"{name!r:.120}: expected stored bytes, received {packed} packed bytes that stand for {size}"
            )
            raise ListingError(message)
        entries.append(Entry(name=name, offset=offset, data=0, size=size, crc=crc))
        at += 46 + name_bytes + extra_bytes + comment_bytes
    return entries


def _wide(numbers: tuple[int, int, int], extra: bytes) -> tuple[int, ...]:
    """Size, packed size and offset, those that do not fit into 32 bits from the zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = [value for (value,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8])]
            return tuple(wide.pop(0) if value == 0xFFFFFFFF and wide else value for value in numbers)
        at += 4 + length
    return numbers


def _framed(file: BinaryIO, entry: Entry) -> Entry:
    expected = local_header(entry.name, entry.offset)
    _compare(file, entry.name, entry.offset, expected)
    found = Entry(
        name=entry.name,
        offset=entry.offset,
        data=entry.offset + len(expected),
        size=entry.size,
        crc=entry.crc,
    )
    _compare(file, entry.name, found.data + found.size, descriptor(found))
    return found


def _compare(file: BinaryIO, name: str, offset: int, expected: bytes) -> None:
    received = read_at(file, offset, len(expected))
    if received != expected:
        message = f"{name}: expected {expected[:60]!r} at {offset}, received {received[:60]!r}"
        raise ListingError(message)


def _check_frame(file: BinaryIO, entries: list[Entry], offset: int, size: int) -> None:
    """No byte of the file is outside of what was looked at."""
    place = 0
    for entry in entries:
        if entry.offset != place:
            message = f"{entry.name}: expected it at {place}, received {entry.offset}"
            raise ListingError(message)
        place = entry.data + entry.size + DESCRIPTOR_BYTES
    if place != offset:
        message = f"zip directory: expected it at {place}, received {offset}"
        raise ListingError(message)
    expected = directory(entries, offset)
    if read_at(file, offset, size - offset) != expected:
        message = "zip directory: expected the one form in which Fatwood writes it, received another"
        raise ListingError(message)


def _old(file: BinaryIO, entry: Entry, end: int) -> Entry:
    head = read_at(file, entry.offset, 30)
    name_bytes, extra_bytes = struct.unpack_from("<2H", head, 26)
    name = read_at(file, entry.offset + 30, name_bytes).decode("utf-8", "replace")
    if not head.startswith(b"PK\x03\x04") or name != entry.name:
        message = f"{entry.name}: expected its header at {entry.offset}, received {head[:4]!r} {name!r:.120}"
        raise ListingError(message)
    data = entry.offset + 30 + name_bytes + extra_bytes
    if data + entry.size > end:
        message = f"{entry.name}: expected at most {max(end - data, 0)} stored bytes, received {entry.size}"
        raise ListingError(message)
    return Entry(name=entry.name, offset=entry.offset, data=data, size=entry.size, crc=entry.crc)


def check_crc(entry: Entry, content: bytes) -> None:
    """Compare the CRC-32 of an entry's bytes with the archive's."""
    received = zlib.crc32(content)
    if received != entry.crc:
        message = f"{entry.name}: expected CRC-32 {entry.crc:#010x}, received {received:#010x}"
        raise ListingError(message)
