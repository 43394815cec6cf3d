"""What is in a folder, and how it goes away."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress

from fatwood.errors import StorageError
from fatwood.storage.hints import explained
from fatwood.storage.locating import URI, join, locate

__all__ = ["delete", "delete_leftovers", "list_folder", "list_sizes"]

_LEFTOVER = re.compile(r"\.fatwood-[0-9a-f]{16}\.part")


def list_folder(uri: URI) -> list[str]:
    """The names of the files in a folder, sorted; see :func:`list_sizes`."""
    return sorted(list_sizes(uri))


def list_sizes(uri: URI) -> dict[str, int | None]:
    """The files in a folder with their sizes.

    Args:
        uri: The folder; a scheme picks the store, a plain path is local.

    Returns:
        Bytes, or None where the store does not tell, by name without the folder; without what lies deeper. A folder that
        does not exist has none.

    Raises:
        StorageError: The folder cannot be listed.
    """
    with explained("list", uri):
        store, path = locate(uri)
        try:
            if store is None:
                with os.scandir(path) as entries:
                    return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
            store.invalidate_cache()
            found = [entry for entry in store.ls(path, detail=True) if entry["type"] == "file"]
        except FileNotFoundError:
            return {}
        own = path.rstrip("/")  # some stores list an object of the folder's own name
        files = [(entry["name"].rstrip("/"), entry.get("size")) for entry in found]
        return {name.rpartition("/")[2]: size for name, size in files if name != own}


def delete(uri: URI) -> None:
    """Delete a file; one that does not exist is no error.

    Args:
        uri: The file; a scheme picks the store, a plain path is local.

    Raises:
        StorageError: The file cannot be deleted.
    """
    with explained("delete", uri), suppress(FileNotFoundError):
        store, path = locate(uri)
        if store is None:
            os.unlink(path)
            return
        try:
            store.rm_file(path)
        except Exception:
            store.invalidate_cache()
            store.info(path)  # HDFS calls a missing file an I/O error; this says FileNotFoundError
            raise


def delete_leftovers(folder: URI, *, older_than_seconds: float) -> None:
    """Delete the temporary files that killed processes left in a folder while they wrote to it.

    A file that cannot be deleted, or whose age the store does not tell, stays.

    Args:
        folder: The folder; a scheme picks the store, a plain path is local.
        older_than_seconds: Files changed later than this are left alone: somebody may be writing them.

    Raises:
        StorageError: The folder cannot be listed.
    """
    for name in list_folder(folder):
        if _LEFTOVER.fullmatch(name):
            uri = join(folder, name)
            with suppress(StorageError):
                if time.time() - _modified(uri) > older_than_seconds:
                    delete(uri)


def _modified(uri: URI) -> float:
    """When a file was last changed, in seconds since 1970."""
    with explained("look at", uri):
        store, path = locate(uri)
        return os.stat(path).st_mtime if store is None else float(store.modified(path).timestamp())
