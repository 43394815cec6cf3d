"""Archives with contents of one's own: right in form, so that what is wrong in them is wrong alone."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

from fatwood.archive.frame import Entry, descriptor, directory, local_header


def framed(members: Mapping[str, bytes]) -> bytes:
    """An archive of version 2 or later with these entries, in this order, the frame and all CRCs right."""
    file, entries = bytearray(), []
    for name, content in members.items():
        begin = len(file)
        file += local_header(name, begin)
        entry = Entry(name=name, offset=begin, data=len(file), size=len(content), crc=zlib.crc32(content))
        file += content + descriptor(entry)
        entries.append(entry)
    return bytes(file) + directory(entries, len(file))


def members_of(content: bytes) -> dict[str, bytes]:
    """What Python's zipfile finds in an archive, its CRCs checked."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezip(content: bytes, **changes: bytes | None) -> bytes:
    """The archive with members replaced, added or (None) left out; two underscores stand for a dot."""
    members: dict[str, bytes | None] = dict(members_of(content))
    members.update({name.replace("__", "."): value for name, value in changes.items()})
    return framed({name: value for name, value in members.items() if value is not None})


def manifest_of(content: bytes) -> dict[str, Any]:
    """An archive's manifest."""
    return json.loads(members_of(content)["manifest.json"])


def retold(content: bytes, **changes: Any) -> bytes:
    """The archive with other fields in its manifest."""
    return rezip(content, manifest__json=json.dumps(manifest_of(content) | changes).encode())


def believable(content: bytes, **changes: bytes | None) -> bytes:
    """As `rezip`, with a manifest that names the parts that are there."""
    changed = rezip(content, **changes)
    return retold(changed, parts=sorted(members_of(changed).keys() - {"manifest.json"}))
