"""Write a file so that its name never shows half of it."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec

from fatwood.storage.hints import explained, storage_error
from fatwood.storage.locating import URI, locate

__all__ = ["write_atomic"]

_OPEN_FILES = "/proc/self/fd"  # where Linux gives an open file a path, also one without a name
_REPLACING = frozenset({"hadoop", "hdfs", "viewfs"})  # stores whose rename takes `overwrite`


def write_atomic(uri: URI, write: Callable[[BinaryIO], None]) -> None:
    """Write a file so that its name never shows half of it.

    A local file is written beside its place, synced to the disk and renamed. For another store the bytes are collected in a
    local temporary file first; then a store with a rename of its own gets them under a temporary name and renames, and a
    store that publishes an object when its upload completes gets one upload. Missing parent folders are made. After a failure
    neither a half nor a temporary file is left, and a file that was there before is as it was. A process that is killed leaves
    at most one file with a temporary name in the folder (:func:`delete_leftovers`). HDFS replaces an old file in one step; where a
    store's rename refuses an existing name the old file steps aside first, and for an instant nothing has the name.

    Args:
        uri: Where to write; a scheme picks the store, a plain path is local.
        write: Called once with a seekable binary file. What it raises ends the writing and is passed on,
            except an ``OSError``, which becomes a :class:`StorageError`.

    Raises:
        StorageError: The file cannot be written.
    """
    with explained("write", uri):
        store, path = locate(uri)
    if store is None:
        _write_local(path, uri, write)
        return
    try:
        with _collected() as (file, local):
            write(file)
            file.flush()
            with explained("write", uri):
                _upload(store, local, path)
    except OSError as error:
        raise storage_error(uri, "write", error) from error


@contextmanager
def _collected() -> Iterator[tuple[BinaryIO, str]]:
    """A temporary file, and a path under which it can be opened.

    Where the system allows it the file has no name, so that a killed process leaves nothing behind.
    """
    if os.path.isdir(_OPEN_FILES):
        with tempfile.TemporaryFile() as unnamed:
            yield cast("BinaryIO", unnamed), f"{_OPEN_FILES}/{unnamed.fileno()}"
        return
    with tempfile.TemporaryDirectory(prefix="fatwood-") as folder:
        path = os.path.join(folder, "upload")
        with open(path, "xb") as named:
            yield named, path


def _write_local(path: str, uri: URI, write: Callable[[BinaryIO], None]) -> None:
    """Write `path` by way of a temporary file in the same folder; `uri` is the name for messages."""
    target = os.path.realpath(path)  # a symbolic link stays a link: the file it points to is replaced
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".fatwood-{secrets.token_hex(8)}.part")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(folder)
    except OSError as error:
        raise storage_error(uri, "write", error) from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    """Make a rename durable, where the system allows a folder to be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _upload(store: Any, local: str, path: str) -> None:
    """Copy a local file to a store and publish it in one step."""
    if type(store).mv is fsspec.AbstractFileSystem.mv:  # no rename but copy-and-delete: an object store
        store.put_file(local, path)
        return
    parent = str(PurePosixPath(path).parent)
    temporary = f"{parent.rstrip('/')}/.fatwood-{secrets.token_hex(8)}.part"
    store.makedirs(parent, exist_ok=True)
    try:
        store.put_file(local, temporary)
        with suppress(Exception):  # said again by what follows
            _rename(store, temporary, path)
        # A rename onto an existing name is refused by some stores, by others even without an error.
        store.invalidate_cache()
        if store.exists(temporary):
            _replace(store, temporary, path)
    except BaseException:
        with suppress(Exception):
            store.rm_file(temporary)
        raise


def _rename(store: Any, temporary: str, path: str) -> None:
    """Rename, with one step in the store that replaces an old file, where it has one."""
    kinds = {store.protocol} if isinstance(store.protocol, str) else set(store.protocol)
    if "webhdfs" in kinds:  # whose `mv` does not pass the option on
        store._call("RENAME", method="put", path=temporary, destination=path, renameoptions="OVERWRITE")
    elif kinds & _REPLACING:
        store.mv(temporary, path, overwrite=True)
    else:
        store.mv(temporary, path)


def _replace(store: Any, temporary: str, path: str) -> None:
    """Rename where the store's own rename refuses: the old file steps aside until the new one is in place."""
    aside = f"{temporary}.old"
    existed = store.exists(path)
    if existed:
        if store.isdir(path):
            raise IsADirectoryError(path)
        store.mv(path, aside)
    try:
        store.mv(temporary, path)
        if store.exists(temporary):
            message = f"the store did not rename {temporary}"
            raise OSError(message)
    except BaseException:
        if existed:
            store.mv(aside, path)
        raise
    if existed:
        store.rm_file(aside)
