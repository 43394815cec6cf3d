"""Write an archive; the same contents give the same bytes everywhere."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fatwood.archive.kind import MANIFEST, MAX_MANIFEST_BYTES, PIECE_BYTES, Kind, is_part_name
from fatwood.errors import OptionError, UserError

__all__ = ["write_archive"]

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date zip knows


def write_archive(
    file: BinaryIO, kind: Kind, *, fields: Mapping[str, Any], parts: Mapping[str, bytes | Path]
) -> None:
    """Write an archive.

    Args:
        file: An open binary file, best a seekable one; it stays open.
        kind: What is written.
        fields: What stands in the manifest beside the fields of every archive; JSON values.
        parts: By plain file name, bytes, or a local file that is copied a piece at a time and must not change meanwhile.

    Raises:
        OptionError: A part's name is not a plain file name.
        UserError: A field that JSON cannot say, or a manifest that is too large; nothing was written then.
    """
    for name in parts:
        if not is_part_name(name):
            message = f"archive of a {kind.content}: expected plain file names of parts, received {name!r}"
            raise OptionError(message)
    manifest = {
        **fields,
        "format": kind.format,
        "format_version": kind.version,
        "versions": _versions(),
        "sha256": {name: _digest(part) for name, part in parts.items()},
    }
    text = _json(manifest, kind)
    with zipfile.ZipFile(file, "w", compression=zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(MANIFEST), text)
        for name in sorted(parts):
            part = parts[name]
            if isinstance(part, bytes):
                archive.writestr(_entry(name), part)
                continue
            entry = _entry(name)
            entry.file_size = (
                part.stat().st_size
            )  # known beforehand, so that zip64 is used only where it must be
            with open(part, "rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, PIECE_BYTES)


def _digest(part: bytes | Path) -> str:
    if isinstance(part, bytes):
        return hashlib.sha256(part).hexdigest()
    digest = hashlib.sha256()
    with open(part, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _json(manifest: Mapping[str, Any], kind: Kind) -> bytes:
    try:
        plain = json.loads(json.dumps(manifest))  # keys that are numbers become text before they are sorted
        text = json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        message = (
            f"cannot save the {kind.content}: expected JSON values beside the tensors, received: {error}"
        )
        raise UserError(message, hint="use numbers, strings, lists and dicts with string keys") from error
    if len(text) > MAX_MANIFEST_BYTES:
        message = f"cannot save the {kind.content}: expected a manifest of at most {MAX_MANIFEST_BYTES} bytes, received {len(text)}"
        raise UserError(message, hint="keep large things in a file of their own")
    return text


def _versions() -> dict[str, str]:
    try:
        fatwood = importlib.metadata.version("fatwood")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree or a shipped archive
        fatwood = "unknown"
    return {"fatwood": fatwood, "python": platform.python_version(), "torch": torch.__version__}


def _entry(name: str) -> zipfile.ZipInfo:
    """An archive entry that is the same on every machine."""
    entry = zipfile.ZipInfo(name, date_time=_EPOCH)
    entry.create_system = 3  # Unix, also where it is written on Windows
    entry.external_attr = 0o644 << 16
    return entry
