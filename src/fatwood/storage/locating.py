"""Which store a URI names, and the path in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, overload

from fsspec.implementations.local import LocalFileSystem

from fatwood.errors import OptionError, StorageError
from fatwood.storage.hints import explained
from fatwood.storage.stores import open_store

__all__ = ["URI", "Location", "absolute", "join", "locate", "located", "location"]

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<rest>//?|:)")
_LOCAL_SCHEMES = frozenset({"file", "local"})


@dataclass(frozen=True)
class Location:
    """A URI and the options of its store: address, credentials.

    It is pickled with its options, so that executors reach the store, too. What is printed of it is the URI: options hold secrets.

    Args:
        uri: ``scheme://path``.
        options: Arguments of the store's fsspec class, by name; they say more than the environment does.

    Raises:
        OptionError: A URI of another type, a local path with options, or options that are no mapping of names.
    """

    uri: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.uri, str):
            message = f"uri: expected text such as s3://bucket/name, received {self.uri!r}"
            raise OptionError(message)
        if not isinstance(self.options, Mapping) or not all(isinstance(name, str) for name in self.options):
            message = f"storage_options: expected a mapping of names to values, received {type(self.options).__name__}"
            raise OptionError(message, hint='storage_options={"key": ...}')
        if self.options and _is_local(self.uri):
            message = f"storage_options: expected none for the local path {self.uri}, received {_names(self.options)}"
            raise OptionError(message, hint="write scheme://..., such as s3://bucket/name, or leave them out")
        object.__setattr__(self, "options", dict(self.options))

    def __str__(self) -> str:
        return self.uri


URI: TypeAlias = "str | os.PathLike[str] | Location"
"""Where a file is: a URI or a plain path, a ``pathlib.Path``, which is always local, or a URI with options of its store."""


def location(uri: URI, storage_options: Mapping[str, Any] | None = None) -> str | os.PathLike[str] | Location:
    """A URI with the options that the user gave for its store.

    Args:
        uri: As the user gave it.
        storage_options: Arguments of the store's fsspec class, by name; None and an empty mapping for none.

    Returns:
        The URI as it is where there are no options, else a :class:`Location`.

    Raises:
        OptionError: Options with a local path, options that are no mapping of names, or two sets of options.
    """
    if storage_options is None or (isinstance(storage_options, Mapping) and not storage_options):
        return uri
    if isinstance(uri, Location) and uri.options:
        message = (
            f"storage_options: expected none, as {uri} has some already, received {_names(storage_options)}"
        )
        raise OptionError(message, hint="pass a plain URI with storage_options, or a Location without")
    if isinstance(uri, os.PathLike):
        message = f"storage_options: expected none for the local path {os.fspath(uri)}, received {_names(storage_options)}"
        raise OptionError(message, hint="pass the URI as text, such as s3://bucket/name, or leave them out")
    return Location(str(uri), storage_options)


@overload
def join(folder: Location, name: str) -> Location: ...
@overload
def join(folder: str | os.PathLike[str], name: str) -> str: ...
@overload
def join(folder: URI, name: str) -> str | Location: ...
def join(folder: URI, name: str) -> str | Location:
    """The URI of a file in a folder.

    Args:
        folder: A URI, a plain path, or a ``pathlib.Path``, which stays local whatever it looks like.
        name: The file's name.

    Returns:
        A URI or path that every function here understands; a location with the folder's options where the folder is one.
    """
    if isinstance(folder, Location):
        return replace(folder, uri=join(folder.uri, name))
    base = folder if isinstance(folder, str) else os.path.abspath(folder)
    return base + name if base.endswith("/") else f"{base}/{name}"


@overload
def absolute(uri: Location) -> Location: ...
@overload
def absolute(uri: str | os.PathLike[str]) -> str: ...
@overload
def absolute(uri: URI) -> str | Location: ...
def absolute(uri: URI) -> str | Location:
    """The same place as text, for processes with another working folder: a local path from the root, any other URI as it is.

    Args:
        uri: A URI, a plain path, or a ``pathlib.Path``.

    Returns:
        Text; a location with the same options where it was one.
    """
    if isinstance(uri, Location):
        return replace(uri, uri=absolute(uri.uri))
    if not isinstance(uri, str):
        return os.path.abspath(uri)
    return uri if _SCHEME.match(uri) else os.path.abspath(os.path.expanduser(uri))


@contextmanager
def located(operation: str, uri: URI) -> Iterator[tuple[Any, str]]:
    """The fsspec file system that a URI names, and the path in it; what the store raises within is told as :class:`StorageError`.

    Args:
        operation: What is done to the URI, for the message: ``"list"``.
        uri: A scheme picks the store, a plain path is local.
    """
    with explained(operation, uri):
        store, path = locate(uri)
        yield LocalFileSystem() if store is None else store, path


def locate(uri: URI) -> tuple[Any | None, str]:
    """The store and the path in it; no store means the local disk.

    Args:
        uri: A scheme picks the store, a plain path is local.

    Returns:
        An fsspec file system and a path of its own form.

    Raises:
        StorageError: An address that would silently be a local name.
        Exception: Whatever the store raises when it is opened.
    """
    options = uri.options if isinstance(uri, Location) else {}
    if isinstance(uri, Location):
        uri = uri.uri
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
    return open_store(uri, scheme, options)


def name_of(uri: URI) -> str:
    """A URI as messages show it: without options."""
    return str(uri) if isinstance(uri, str | Location) else os.fspath(uri)


def _is_local(uri: str) -> bool:
    found = _SCHEME.match(uri)
    return found is None or found["scheme"] in _LOCAL_SCHEMES


def _names(options: Mapping[str, Any]) -> str:
    return ", ".join(map(str, options)) if isinstance(options, Mapping) else type(options).__name__
