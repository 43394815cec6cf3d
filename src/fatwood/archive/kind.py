"""What writer and reader of archives agree on."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "PIECE_BYTES",
    "Kind",
    "is_part_name",
    "is_reasonable_json",
]

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 2**20
PIECE_BYTES = 2**20
"""Parts are read and written in pieces of this size; it is part of version 2 of the format (`fatwood.archive.hashing`)."""
_MAX_CONTAINERS = 400_000
_MAX_ITEMS = 4_000_000
_PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # a plain file name everywhere


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of file."""

    format: str
    """Its name in the manifest."""
    version: int
    """The version of the format that is written, and the newest that can be read; older ones are read, too."""
    content: str
    """What it holds, for messages, such as ``"model"``."""
    remedy: str
    """What to do when a file is damaged, for hints."""


def is_part_name(name: str) -> bool:
    """Whether a part may have this name: a plain file name on every system, and not the manifest's."""
    return _PART_NAME.fullmatch(name) is not None and name != MANIFEST


def is_reasonable_json(text: bytes) -> bool:
    """Whether it has so few values that parsing takes little more memory than its bytes: `[[],[],...` takes twenty times as much."""
    containers = text.count(b"[") + text.count(b"{")
    return containers <= _MAX_CONTAINERS and text.count(b",") <= _MAX_ITEMS
