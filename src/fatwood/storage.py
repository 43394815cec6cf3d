"""Read, write, list and delete at any URI by its scheme: ``hdfs://``, ``s3://``, ``gs://``, ``file://``, plain local paths.

The scheme alone decides where bytes go, never a default file system of the cluster. A plain string without
a scheme and every ``pathlib.Path`` is local to the machine that runs the code. What is written appears
whole under its name or not at all.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fatwood.errors import FatwoodError, StorageError

__all__ = [
    "absolute",
    "delete",
    "delete_leftovers",
    "join",
    "list_folder",
    "list_sizes",
    "located",
    "open_read",
    "read_bytes",
    "write_atomic",
]

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<rest>//?|:)")
_LOCAL_SCHEMES = frozenset({"file", "local"})
_OPEN_FILES = "/proc/self/fd"  # where Linux gives an open file a path, also one without a name
_LEFTOVER = re.compile(r"\.fatwood-[0-9a-f]{16}\.part")
# The one store whose package is not called like its module.
_PACKAGE_OF_MODULE: Mapping[str, str] = MappingProxyType({"smbclient": "smbprotocol"})
_GENERAL_HINT = (
    "check that the path exists, that this user may use it, and that the store's address and credentials "
    "are known on the machine that runs this code"
)
_HADOOP_HINT = (
    "the hdfs scheme needs libhdfs and Java on this machine: set JAVA_HOME and HADOOP_HOME, and "
    "CLASSPATH to the output of `hadoop classpath --glob`; webhdfs:// works without them"
)


def read_bytes(uri: str | os.PathLike[str], *, max_bytes: int | None = None) -> bytes:
    """Read a whole file.

    Args:
        uri: Where to read; a scheme picks the store, a plain path is local.
        max_bytes: Refuse a larger file, before any memory is allocated for it; ``None`` for no limit.

    Returns:
        The file's bytes.

    Raises:
        StorageError: The file cannot be read or is larger than ``max_bytes``.
    """
    with open_read(uri) as file, _explained("read", uri):
        if max_bytes is None:
            return file.read()
        size = file.seek(0, os.SEEK_END) if file.seekable() else None
        if size is not None:
            file.seek(0)
        if size is None or size <= max_bytes:
            content = file.read(max_bytes + 1 if size is None else size)
            if len(content) <= max_bytes:
                return content
    message = f"cannot read {_name(uri)}: expected at most {max_bytes} bytes, received more"
    raise StorageError(message, hint="check that this is the file that was meant")


def open_read(uri: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; the caller closes it.

    Args:
        uri: Where to read; a scheme picks the store, a plain path is local.

    Returns:
        A binary file, seekable wherever the store allows it.

    Raises:
        StorageError: The file cannot be opened.
    """
    with _explained("open", uri):
        store, path = _locate(uri)
        if store is None:
            return open(path, "rb")
        store.invalidate_cache()  # listings are cached per process; another one may have replaced the file
        return cast("BinaryIO", store.open(path, "rb"))


def write_atomic(uri: str | os.PathLike[str], write: Callable[[BinaryIO], None]) -> None:
    """Write a file so that its name never shows half of it.

    A local file is written beside its place, synced to the disk and renamed. For another store the bytes are collected in a
    local temporary file first; then a store with a rename of its own gets them under a temporary name and renames, and a
    store that publishes an object when its upload completes gets one upload. Missing parent folders are made. After a failure
    neither a half nor a temporary file is left, and a file that was there before is as it was. A process that is killed leaves
    at most one file with a temporary name in the folder (:func:`delete_leftovers`). Some stores' rename refuses an existing
    name: there the old file steps aside first, and for an instant nothing has the name.

    Args:
        uri: Where to write; a scheme picks the store, a plain path is local.
        write: Called once with a seekable binary file. What it raises ends the writing and is passed on,
            except an ``OSError``, which becomes a :class:`StorageError`.

    Raises:
        StorageError: The file cannot be written.
    """
    with _explained("write", uri):
        store, path = _locate(uri)
    if store is None:
        _write_local(path, uri, write)
        return
    try:
        with _collected() as (file, local):
            write(file)
            file.flush()
            with _explained("write", uri):
                _upload(store, local, path)
    except OSError as error:
        raise _storage_error(uri, "write", error) from error


def join(folder: str | os.PathLike[str], name: str) -> str:
    """The URI of a file in a folder.

    Args:
        folder: A URI, a plain path, or a ``pathlib.Path``, which stays local whatever it looks like.
        name: The file's name.

    Returns:
        A URI or path that every function here understands.
    """
    base = folder if isinstance(folder, str) else os.path.abspath(folder)
    return base + name if base.endswith("/") else f"{base}/{name}"


def absolute(uri: str | os.PathLike[str]) -> str:
    """The same place as text, for processes with another working folder: a local path from the root, any other URI as it is.

    Args:
        uri: A URI, a plain path, or a ``pathlib.Path``.
    """
    if not isinstance(uri, str):
        return os.path.abspath(uri)
    return uri if _SCHEME.match(uri) else os.path.abspath(os.path.expanduser(uri))


@contextmanager
def located(operation: str, uri: str | os.PathLike[str]) -> Iterator[tuple[Any, str]]:
    """The fsspec file system that a URI names, and the path in it; what the store raises within is told as :class:`StorageError`.

    Args:
        operation: What is done to the URI, for the message: ``"list"``.
        uri: A scheme picks the store, a plain path is local.
    """
    with _explained(operation, uri):
        store, path = _locate(uri)
        yield LocalFileSystem() if store is None else store, path


def list_folder(uri: str | os.PathLike[str]) -> list[str]:
    """The names of the files in a folder, sorted; see :func:`list_sizes`."""
    return sorted(list_sizes(uri))


def list_sizes(uri: str | os.PathLike[str]) -> dict[str, int | None]:
    """The files in a folder with their sizes.

    Args:
        uri: The folder; a scheme picks the store, a plain path is local.

    Returns:
        Bytes, or None where the store does not tell, by name without the folder; without what lies deeper. A folder that
        does not exist has none.

    Raises:
        StorageError: The folder cannot be listed.
    """
    with _explained("list", uri):
        store, path = _locate(uri)
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


def delete(uri: str | os.PathLike[str]) -> None:
    """Delete a file; one that does not exist is no error.

    Args:
        uri: The file; a scheme picks the store, a plain path is local.

    Raises:
        StorageError: The file cannot be deleted.
    """
    with _explained("delete", uri), suppress(FileNotFoundError):
        store, path = _locate(uri)
        if store is None:
            os.unlink(path)
            return
        try:
            store.rm_file(path)
        except Exception:
            store.invalidate_cache()
            store.info(path)  # HDFS calls a missing file an I/O error; this says FileNotFoundError
            raise


def delete_leftovers(folder: str | os.PathLike[str], *, older_than_seconds: float) -> None:
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


def _modified(uri: str) -> float:
    """When a file was last changed, in seconds since 1970."""
    with _explained("look at", uri):
        store, path = _locate(uri)
        return os.stat(path).st_mtime if store is None else float(store.modified(path).timestamp())


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


def _write_local(path: str, uri: str | os.PathLike[str], write: Callable[[BinaryIO], None]) -> None:
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
        raise _storage_error(uri, "write", error) from error
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
    temporary = f"{parent}/.fatwood-{secrets.token_hex(8)}.part"
    store.makedirs(parent, exist_ok=True)
    try:
        store.put_file(local, temporary)
        with suppress(OSError):
            store.mv(temporary, path)
        # A rename onto an existing name is refused by some stores, by others even without an error.
        store.invalidate_cache()
        if store.exists(temporary):
            _replace(store, temporary, path)
    except BaseException:
        with suppress(Exception):
            store.rm_file(temporary)
        raise


def _replace(store: Any, temporary: str, path: str) -> None:
    """Rename where the store's own rename refuses: the old file steps aside until the new one is in place."""
    aside = f"{temporary}.old"
    existed = store.exists(path)
    if existed:
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


def _locate(uri: str | os.PathLike[str]) -> tuple[Any | None, str]:
    """The store and the path in it; no store means the local disk."""
    if not isinstance(uri, str):
        return None, os.fspath(uri)
    found = _SCHEME.match(uri)
    if found is None:
        return None, os.path.expanduser(uri)
    scheme, rest = found["scheme"], found["rest"]
    if scheme in _LOCAL_SCHEMES and rest != ":":
        return None, LocalFileSystem._strip_protocol(uri)
    if rest != "//":
        text = (
            f"cannot tell where {uri!r} is: expected scheme://path or a plain path, received {scheme}:{rest}"
        )
        raise StorageError(text, hint=f"write {scheme}://..., or pass a pathlib.Path for a local file")
    store, path = fsspec.core.url_to_fs(uri)
    return store, path


@contextmanager
def _explained(operation: str, uri: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever a store raises (their own classes included) into a StorageError."""
    try:
        yield
    except FatwoodError:
        raise
    except Exception as error:
        raise _storage_error(uri, operation, error) from error


def _storage_error(uri: str | os.PathLike[str], operation: str, error: Exception) -> StorageError:
    name = _name(uri)
    message = f"cannot {operation} {name}: {type(error).__name__}: {error}"
    hint = _GENERAL_HINT
    missing = _missing_module(error)
    if missing is not None:
        package = _PACKAGE_OF_MODULE.get(missing, missing)
        hint = f"pip install {package} (on every machine that runs this code)"
    elif name.startswith("hdfs:"):
        hint = f"{_GENERAL_HINT}; {_HADOOP_HINT}"
    elif isinstance(error, ValueError) and "Protocol not known" in str(error):
        hint = "use a scheme that fsspec knows, such as file, hdfs, s3, gs, abfs or sftp"
    return StorageError(message, hint=hint)


def _missing_module(error: BaseException | None) -> str | None:
    """The top-level module whose absence caused the error, if that was the cause."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name.partition(".")[0]
        error = error.__cause__
    return None


def _name(uri: str | os.PathLike[str]) -> str:
    return uri if isinstance(uri, str) else os.fspath(uri)
