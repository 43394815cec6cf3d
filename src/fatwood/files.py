"""Files that a function of the user's makes minibatches of: which they are (`Files`), and their rows.

::

    paths --expand, on the driver--> URIs --load, in a task--> Batch --read--> record batches, one row each

A row's id is ``number of the file << 33 | row in the file``. What the paths name is looked for by listing folders, and whatever
cannot be listed is an error: a file that is left out in silence is data that is lost.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from fatwood.data.batch import ROW_BITS, Batch
from fatwood.data.batch_parts import devices
from fatwood.data.batches import BatchSchema, pieces
from fatwood.errors import (
    DataError,
    FatwoodError,
    OptionError,
    SchemaError,
    StorageError,
    UserCodeError,
    UserError,
)
from fatwood.storage import URI, Location, absolute, join, located, location

__all__ = ["Files", "Inspected", "Parquet"]

_MAGIC = re.compile(r"[*?[]")
_HIDDEN = (".", "_")
_PIECE_BYTES = 16 << 20  # of rows that are checked and kept at a time
_LOADER_HINT = "return Batch(features=..., label=...)"


class Inspected(NamedTuple):
    """A minibatch without its values."""

    rows: int
    schema: BatchSchema | None
    """None where there are no rows."""
    devices: frozenset[str]
    """Where else than in the main memory its tensors are."""


@dataclass(frozen=True)
class Parquet:
    """Parquet files that the workers read themselves, without Spark in between.

    Each worker reads a run of rows; the files' order is drawn, but in the first epoch rows that lie side by side come one
    after another. So files that are sorted by class should be shuffled once, with ``fatwood.data.write_shards``.

    Args:
        uri: A shard directory, any other directory of Parquet files, one file, or a pattern with ``*`` in its last part;
            a scheme picks the store, which all executors must reach.
        storage_options: Arguments of the store's fsspec class, by name: address, credentials. They become a part of `uri`, and
            travel to the executors.

    Raises:
        OptionError: Options with a local path.
    """

    uri: URI
    storage_options: InitVar[Mapping[str, Any] | None] = None

    def __post_init__(self, storage_options: Mapping[str, Any] | None) -> None:
        object.__setattr__(self, "uri", location(self.uri, storage_options))


@dataclass(frozen=True)
class Files:
    """Files of any format on any storage, and what makes a minibatch of one.

    Args:
        paths: A file, a folder, a pattern, or several of these: URIs of any scheme that fsspec knows, plain local paths
            or ``pathlib.Path``. A folder stands for the files in it. ``*``, ``?`` and ``[...]`` of a pattern match within one name,
            ``**`` any number of folders; a path that exists is no pattern. Names that begin with ``.`` or ``_`` are left out
            unless a path or pattern begins so itself.
        loader: Called in the tasks as ``loader(path, filesystem)`` with an fsspec file system and the path of one file in it,
            such as ``filesystem.open(path, "rb")`` takes. Returns a `Batch` of any number of rows, the same one whenever it
            is called.
        recursive: Whether folders stand for the files in their folders, too.
        storage_options: Arguments of the store's fsspec class, by name: address, credentials. They become a part of `paths`, and
            travel to the executors.

    Raises:
        OptionError: An argument is of another type, there are no paths, or options with a local path.
    """

    paths: URI | Sequence[URI]
    loader: Callable[[str, Any], Batch]
    recursive: bool = False
    storage_options: InitVar[Mapping[str, Any] | None] = None

    def __post_init__(self, storage_options: Mapping[str, Any] | None) -> None:
        if not callable(self.loader):
            message = f"loader: expected a function of path and file system, received {self.loader!r}"
            raise OptionError(message, hint=f"Files(paths, loader), where the loader shall {_LOADER_HINT}")
        given = self._given
        if not given or not all(
            isinstance(path, str | os.PathLike | Location) and str(path) for path in given
        ):
            message = f"paths: expected a path or a list of paths, received {self.paths!r}"
            raise OptionError(message)
        if storage_options:
            object.__setattr__(self, "paths", [location(path, storage_options) for path in given])

    def expand(self) -> list[str | Location]:
        """The files that the paths name now, as absolute URIs: sorted, each one once.

        Raises:
            StorageError: A path names nothing, or something cannot be looked at.
        """
        found: set[str | Location] = set()
        for given in self._given:
            found.update(_found(absolute(given), recursive=self.recursive))
        return sorted(found, key=str)

    def load(self, uri: str | Location) -> Batch:
        """The minibatch of one file.

        Args:
            uri: From `expand`.

        Raises:
            UserCodeError: The loader raised.
            DataError: It returned something else than a `Batch`.
            StorageError: The storage is not known here.
        """
        with located("open", uri) as (store, path):
            store.invalidate_cache()  # listings are cached per process; another one may have replaced the file
        try:
            batch = self.loader(path, store)
        except FatwoodError as error:
            named = _of_file(error, uri)
            if named is error:
                raise
            raise named from error
        except Exception as error:
            message = f"{type(error).__name__}: {error}\nraised by the loader {self._loader_name}, given the file {uri}"
            raise UserCodeError(message) from error
        if not isinstance(batch, Batch):
            kind = f"{type(batch).__module__}.{type(batch).__qualname__}"
            message = f"{uri}: expected a Batch of the loader {self._loader_name}, received {kind}"
            raise DataError(message, hint=_LOADER_HINT)
        return batch

    def read(
        self,
        uri: str | Location,
        start: int,
        stop: int,
        file_number: int,
        schema: BatchSchema,
        *,
        rows: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Some rows of one file, in their order.

        Args:
            uri: From `expand`.
            start: The first row.
            stop: The row behind the last.
            file_number: For the row ids, ``file_number << 33 | row``.
            schema: Of all files.
            rows: How many the file had when it was counted; None where that is not known.

        Returns:
            Record batches as `BatchSchema.to_arrow` makes them, of some megabytes each.

        Raises:
            UserCodeError: As for `load`.
            DataError: As for `load`; or the file has other rows than when it was counted.
            SchemaError: The minibatch does not fit the schema.
        """
        batch = self.load(uri)
        if len(batch) < stop or rows not in (None, len(batch)):
            message = f"{uri}: expected {rows or stop} rows as when it was counted, received {len(batch)}"
            hint = (
                "the loader must return the same rows whenever it is called, and the file must stay as it is"
            )
            raise DataError(message, hint=hint)
        try:
            found = schema.to_arrow(batch, file_number << ROW_BITS)
        except UserError as error:
            raise _of_file(error, uri) from None
        yield from pieces(found.slice(start, stop - start), _PIECE_BYTES)

    def inspect(self, uri: str | Location) -> Inspected:
        """What must be known of one file before its rows are dealt out.

        Args:
            uri: From `expand`.

        Raises:
            UserCodeError: As for `load`.
            DataError: As for `load`, or the minibatch cannot be used.
            SchemaError: It cannot be used.
        """
        batch = self.load(uri)
        try:
            schema = BatchSchema.of(batch) if len(batch) else None
        except UserError as error:
            raise _of_file(error, uri) from None
        return Inspected(len(batch), schema, devices(batch))

    @property
    def _given(self) -> list[Any]:
        if isinstance(self.paths, str) or not isinstance(self.paths, Sequence):
            return [self.paths]
        return list(self.paths)

    @property
    def _loader_name(self) -> str:
        return str(getattr(self.loader, "__qualname__", type(self.loader).__qualname__))


def _of_file(error: FatwoodError, uri: str | Location) -> FatwoodError:
    """The error with the file in its message."""
    if str(uri) in error.message or not isinstance(
        error, DataError | SchemaError | OptionError | StorageError
    ):
        return error
    return type(error)(f"{uri}: {error.message}", hint=error.hint)


class _Entry(NamedTuple):
    """A file or folder that was found."""

    uri: str | Location
    path: str
    """In its store."""
    is_folder: bool


def _found(uri: str | Location, *, recursive: bool) -> list[str | Location]:
    """The files that one path names.

    Raises:
        StorageError: There are none.
    """
    with located("look at", uri) as (store, path):
        store.invalidate_cache()
        entry = _entry(store, uri, path)
    if entry is not None and not entry.is_folder:
        return [uri]
    folders, files = [] if entry is None else [entry], []
    wanted = "a folder with files" if folders else "a file or a folder"
    hint = "check the spelling; a relative path begins in the folder that the driver was started in"
    if folders:
        hint = "names that begin with . or _ are left out, and files in further folders without Files(..., recursive=True)"
    elif _MAGIC.search(str(uri)):
        root, patterns = _divided(uri)
        with located("list", root) as (store, path):
            matches = set(_matches(store, _Entry(root, path, is_folder=True), patterns))
        files = [match.uri for match in matches if not match.is_folder]
        folders = [match for match in matches if match.is_folder and recursive]
        wanted = "files that match the pattern"
        if matches:
            hint = "folders match it: add /* to it, or pass Files(..., recursive=True) to look in them"
    for folder in folders:
        with located("list", folder.uri) as (store, _):
            files += _walked(store, folder, recursive=recursive)
    if not files:
        message = f"paths: expected {wanted} at {uri}, found none"
        raise StorageError(message, hint=hint)
    return files


def _divided(uri: str | Location) -> tuple[str | Location, list[str]]:
    """A pattern's folder without patterns, and the names behind it."""
    names = str(uri).split("/")
    first = next(i for i, name in enumerate(names) if _MAGIC.search(name))
    above = "/".join(names[:first]) + "/"
    root = replace(uri, uri=above) if isinstance(uri, Location) else above
    return root, [name for name in names[first:] if name]


def _entry(store: Any, uri: str | Location, path: str) -> _Entry | None:
    try:
        found = store.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _Entry(uri, path, is_folder=found["type"] == "directory")


def _entries(store: Any, folder: _Entry) -> list[_Entry]:
    """What is in a folder; nothing where it is none."""
    try:
        if type(store) is LocalFileSystem:  # which calls a link neither a file nor a folder
            with os.scandir(folder.path) as entries:
                found = [
                    (entry.name, entry.is_dir()) for entry in entries if entry.is_dir() or entry.is_file()
                ]
        else:
            own = folder.path.rstrip("/")  # some stores list an object of the folder's own name
            listed = [
                (entry["name"].rstrip("/"), entry["type"]) for entry in store.ls(folder.path, detail=True)
            ]
            found = [(name.rpartition("/")[2], kind == "directory") for name, kind in listed if name != own]
    except (FileNotFoundError, NotADirectoryError):
        return []
    path = folder.path.rstrip("/")
    return [_Entry(join(folder.uri, name), f"{path}/{name}", is_folder) for name, is_folder in found]


def _walked(
    store: Any, folder: _Entry, *, recursive: bool, above: tuple[str, ...] = ()
) -> Iterator[str | Location]:
    """The files in a folder, and in its folders, where a link does not lead back to one above."""
    own = os.path.realpath(folder.path) if type(store) is LocalFileSystem else folder.path
    if own in above:
        return
    for entry in _entries(store, folder):
        if _name(entry).startswith(_HIDDEN):
            continue
        if not entry.is_folder:
            yield entry.uri
        elif recursive:
            yield from _walked(store, entry, recursive=True, above=(*above, own))


def _matches(store: Any, folder: _Entry, patterns: list[str]) -> Iterator[_Entry]:
    """What a folder holds under names of which each matches the next pattern."""
    pattern, rest = patterns[0], patterns[1:]
    if pattern == "**":
        yield from _matches(store, folder, rest or ["*"])
    elif not _MAGIC.search(pattern):
        child = _Entry(join(folder.uri, pattern), f"{folder.path.rstrip('/')}/{pattern}", is_folder=True)
        found = child if rest else _entry(store, child.uri, child.path)
        if found is not None:
            yield from _matches(store, found, rest) if rest else [found]
        return
    for entry in _entries(store, folder):
        name = _name(entry)
        if name.startswith(_HIDDEN) and not pattern.startswith(name[0]):
            continue
        if pattern == "**":
            if entry.is_folder:
                yield from _matches(store, entry, patterns)
        elif fnmatchcase(name, pattern):
            if not rest:
                yield entry
            elif entry.is_folder:
                yield from _matches(store, entry, rest)


def _name(entry: _Entry) -> str:
    return entry.path.rpartition("/")[2]
