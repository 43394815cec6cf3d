"""Checkpoints of a run: what a fit needs to go on after everything died, one file for each, in one folder.

A file is an archive as `fatwood.archive` draws it, of the format ``"fatwood-checkpoint"``::

    fatwood-checkpoint-000000001200.fwc      the step in at least 12 digits
        manifest.json      the fields of every archive, and
            run            JSON object of the caller
        ...                the caller's parts, copied from local files a piece at a time

Written through `fatwood.storage.write_atomic` a file is whole or not there. Files with other names are not ours and are
left alone.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fatwood.archive import Archive, Kind, write_archive
from fatwood.errors import OptionError, StorageError
from fatwood.storage import URI, Location, delete, delete_leftovers, join, list_folder, location

__all__ = [
    "Checkpoints",
    "Snapshot",
    "latest_checkpoint",
    "list_snapshots",
    "prune",
    "read_snapshot",
    "snapshot_uri",
    "write_snapshot",
]

_KIND = Kind(
    format="fatwood-checkpoint",
    version=3,
    content="checkpoint",
    remedy="copy it again, or resume from an older one",
)
_NAME = re.compile(r"fatwood-checkpoint-([0-9]{12,})\.fwc")
_LEFTOVER_SECONDS = 3600.0  # nobody takes an hour to write a file


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When a fit writes checkpoints, where to, and how many stay; exactly one of the two intervals is given."""

    uri: URI
    """A folder, for this run alone: ``hdfs://...``, ``s3://...``, a plain path that all machines share."""
    every_steps: int | None = None
    """Write after this many steps."""
    every_seconds: float | None = None
    """Write at the first step after this many seconds."""
    keep: int = 3
    """How many of the newest checkpoints stay."""
    storage_options: InitVar[Mapping[str, Any] | None] = None
    """Arguments of the store's fsspec class, by name: address, credentials. They become a part of `uri`."""

    def __post_init__(self, storage_options: Mapping[str, Any] | None) -> None:
        if not isinstance(self.uri, str | os.PathLike | Location) or not str(self.uri):
            message = f"Checkpoints: uri: expected a URI or path of a folder, received {self.uri!r}"
            raise OptionError(message)
        if (self.every_steps is None) == (self.every_seconds is None):
            message = (
                f"Checkpoints: expected either every_steps or every_seconds, "
                f"received every_steps={self.every_steps} and every_seconds={self.every_seconds}"
            )
            raise OptionError(message, hint="every_seconds=60 loses at most a minute of work")
        if self.every_steps is not None:
            _check_count("Checkpoints: every_steps", self.every_steps)
        seconds = self.every_seconds
        if seconds is not None and not (
            isinstance(seconds, int | float)
            and not isinstance(seconds, bool)
            and seconds > 0
            and math.isfinite(seconds)
        ):
            message = f"Checkpoints: every_seconds: expected a finite number above 0, received {seconds!r}"
            raise OptionError(message)
        _check_count("Checkpoints: keep", self.keep)
        object.__setattr__(self, "uri", location(self.uri, storage_options))


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A checkpoint that was read."""

    manifest: dict[str, Any]
    """What the caller of :func:`write_snapshot` said about the run."""
    parts: dict[str, Path]
    """By name, local files that hold what was written."""


def write_snapshot(file: BinaryIO, *, manifest: Mapping[str, Any], parts: Mapping[str, bytes | Path]) -> None:
    """Write a checkpoint; equal contents give equal bytes.

    Args:
        file: An open binary file, best a seekable one; it stays open.
        manifest: What there is to say about the run; JSON values.
        parts: By plain file name, bytes, or a local file that is copied a piece at a time and must not change meanwhile.

    Raises:
        OptionError: A part's name is not a plain file name.
        UserError: A manifest that JSON cannot say, or that is too large; nothing was written then.
    """
    write_archive(file, _KIND, fields={"run": dict(manifest)}, parts=parts)


def read_snapshot(file: BinaryIO, directory: Path) -> Snapshot:
    """Read a checkpoint and check every byte of it.

    Args:
        file: A seekable binary file, from its beginning; it stays open.
        directory: A local directory for the parts, each a file of its own name; made when missing.

    Returns:
        What was written. After an error none of the parts is in the directory.

    Raises:
        StorageError: Not a checkpoint, truncated, altered, of a newer version of the format, or the local disk is full.
    """
    with Archive(file, _KIND) as archive:
        run = archive.manifest.get("run")
        if not isinstance(run, dict):
            raise archive.wrong_manifest()
        parts: dict[str, Path] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name in archive.parts:
                archive.extract(name, directory / name)
                parts[name] = directory / name
        except BaseException as error:
            for path in parts.values():
                with suppress(OSError):
                    path.unlink()
            if not isinstance(error, OSError):
                raise
            message = f"cannot make the directory {directory} for a checkpoint's parts: {error}"
            raise StorageError(message, hint="choose a directory that this user may write to") from error
    return Snapshot(manifest=run, parts=parts)


def snapshot_uri(folder: URI, step: int) -> str | Location:
    """Where the checkpoint of a step is, whether it exists or not.

    Args:
        folder: The folder of the run's checkpoints.
        step: The number of agreements before it, at least 0.

    Returns:
        A URI or path for `fatwood.storage`.
    """
    if step < 0:
        message = f"snapshot_uri: step: expected at least 0, received {step}"
        raise OptionError(message)
    return join(folder, f"fatwood-checkpoint-{step:012d}.fwc")


def list_snapshots(folder: URI) -> list[tuple[int, str | Location]]:
    """The checkpoints in a folder.

    Args:
        folder: The folder; one that does not exist has none.

    Returns:
        (step, URI) of each, by step. Known by their names alone; nothing is opened.

    Raises:
        StorageError: The folder cannot be listed.
    """
    found = []
    for name in list_folder(folder):
        match = _NAME.fullmatch(name)
        if match is not None and f"{int(match[1]):012d}" == match[1]:
            found.append((int(match[1]), join(folder, name)))
    return sorted(found, key=lambda item: item[0])


def latest_checkpoint(
    folder: URI, *, storage_options: Mapping[str, Any] | None = None
) -> str | Location | None:
    """The checkpoint of the highest step in a folder, for ``fit(..., resume_from=...)``.

    Args:
        folder: The folder that was given to :class:`Checkpoints`.
        storage_options: Those that were given to it.

    Returns:
        Its URI, with the options where there are any, or None when there is none or no such folder.

    Raises:
        StorageError: The folder cannot be listed.
    """
    snapshots = list_snapshots(location(folder, storage_options))
    return snapshots[-1][1] if snapshots else None


def prune(folder: URI, keep: int) -> None:
    """Delete all but the checkpoints of the highest steps, and what killed writers left more than an hour ago.

    Another process may delete the same files at the same time.

    Args:
        folder: The folder of the run's checkpoints.
        keep: How many stay, at least 1.

    Raises:
        StorageError: The folder cannot be listed, or a checkpoint cannot be deleted.
    """
    _check_count("prune: keep", keep)
    for _, uri in list_snapshots(folder)[:-keep]:
        delete(uri)
    delete_leftovers(folder, older_than_seconds=_LEFTOVER_SECONDS)


def _check_count(where: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        message = f"{where}: expected a whole number of at least 1, received {value!r}"
        raise OptionError(message)
