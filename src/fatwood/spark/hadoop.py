"""Hadoop's own file systems through the session, for schemes that only Hadoop knows: a classic session, on the driver.

:mod:`fatwood.storage` comes here when fsspec has no store for a scheme. What Hadoop knows and where it is is told by the
session's settings, ``spark.hadoop.fs...`` and the files of HADOOP_CONF_DIR. Bytes cross the gateway in pieces.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Any

from fsspec import AbstractFileSystem
from py4j.protocol import Py4JError, Py4JJavaError  # type: ignore[import-untyped]
from pyspark import SparkContext

from fatwood.storage.seekable import SeekableReader

__all__ = ["HadoopFileSystem", "open_store"]

_PIECE_BYTES = 1 << 20
"""Of a file, that crosses at once."""
_URI = re.compile(r"(?P<scheme>[^:/]+)://(?P<authority>[^/]*)(?P<path>.*)")


def open_store(uri: str) -> tuple[HadoopFileSystem, str] | None:
    """The file system of a URI, and the path in it.

    Args:
        uri: ``scheme://authority/path``.

    Returns:
        None where this process has no classic session, or its Hadoop does not know the scheme.

    Raises:
        OSError: The file system cannot be opened.
    """
    context = SparkContext._active_spark_context
    found = _URI.fullmatch(uri)
    if context is None or context._jsc is None or found is None:
        return None
    jvm: Any = context._jvm
    settings = context._jsc.hadoopConfiguration()
    try:
        jvm.org.apache.hadoop.fs.FileSystem.getFileSystemClass(found["scheme"], settings)
    except Py4JError:  # the scheme is not known, or the class is on no class path
        return None
    return HadoopFileSystem(jvm, settings, found["scheme"], found["authority"]), found["path"] or "/"


class HadoopFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """One of Hadoop's file systems with fsspec's methods; paths are those within it.

    Args:
        jvm: The gateway's view of the JVM.
        settings: A Hadoop ``Configuration``.
        scheme: Such as ``viewfs``.
        authority: Such as ``host:port``; empty for the one of the settings.
    """

    protocol = "hadoop"
    cachable = False  # sessions come and go

    def __init__(self, jvm: Any, settings: Any, scheme: str, authority: str) -> None:
        super().__init__()
        self._jvm, self._settings = jvm, settings
        self._scheme, self._authority = scheme, authority or None
        with _told(scheme):
            self._store = self._at("/").getFileSystem(settings)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size and kind of a file or folder."""
        with _told(path):
            return _entry(self._store.getFileStatus(self._at(path)))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:  # noqa: FBT001  # fsspec's
        """What is in a folder; of a file, the file."""
        with _told(path):
            entries = [_entry(status) for status in self._store.listStatus(self._at(path))]
        return entries if detail else [entry["name"] for entry in entries]

    def modified(self, path: str) -> datetime:
        """When a file was last changed."""
        with _told(path):
            milliseconds = self._store.getFileStatus(self._at(path)).getModificationTime()
        return datetime.fromtimestamp(milliseconds / 1000, tz=timezone.utc)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:  # noqa: FBT001  # fsspec's
        """Make a folder and those above it."""
        if not exist_ok and self.exists(path):
            raise FileExistsError(path)
        with _told(path):
            self._store.mkdirs(self._at(path))

    def rm_file(self, path: str) -> None:
        """Delete a file."""
        with _told(path):
            if not self._store.delete(self._at(path), False):
                raise FileNotFoundError(path)

    def mv(self, path1: str, path2: str, *, overwrite: bool = False, **_: Any) -> None:
        """Rename; with `overwrite` in one step also where the name is taken, or an error where Hadoop cannot do that."""
        source, target = self._at(path1), self._at(path2)
        with _told(path2):
            if not overwrite:
                if not self._store.rename(source, target):
                    text = f"Hadoop did not rename {path1} to {path2}"
                    raise OSError(text)
                return
            option = self._jvm.org.apache.hadoop.fs.Options.Rename
            options = self._jvm.java.lang.reflect.Array.newInstance(option.OVERWRITE.getClass(), 1)
            options[0] = option.OVERWRITE
            context = self._jvm.org.apache.hadoop.fs.FileContext
            context.getFileContext(self._store.getUri(), self._settings).rename(source, target, options)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        with _told(path):
            if mode == "rb":
                size = self._store.getFileStatus(self._at(path)).getLen()
                raw = _Reader(self._jvm, self._store.open(self._at(path)), size)
                return io.BufferedReader(raw, _PIECE_BYTES)
            if mode == "wb":
                return io.BufferedWriter(_Writer(self._store.create(self._at(path), True)), _PIECE_BYTES)
        text = f"expected mode rb or wb, received {mode}"
        raise ValueError(text)

    def _at(self, path: str) -> Any:
        """A Hadoop ``Path``."""
        return self._jvm.org.apache.hadoop.fs.Path(self._scheme, self._authority, path)


class _Reader(SeekableReader):
    """An ``FSDataInputStream`` as a file."""

    def __init__(self, jvm: Any, stream: Any, size: int) -> None:
        super().__init__(size)
        self._copy = jvm.org.apache.commons.io.IOUtils.toByteArray
        self._stream = stream

    def read_at(self, start: int, length: int) -> bytes:
        """A piece, through the session's gateway."""
        with _told("read"):
            if self._stream.getPos() != start:
                self._stream.seek(start)
            return bytes(self._copy(self._stream, min(length, _PIECE_BYTES)))

    def close(self) -> None:
        if not self.closed:
            super().close()
            with suppress(Py4JError, OSError):  # the session may have ended
                self._stream.close()


class _Writer(io.RawIOBase):
    """An ``FSDataOutputStream`` as a file."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        piece = bytes(content[:_PIECE_BYTES])
        with _told("write"):
            self._stream.write(piece)
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            super().close()
            with _told("close"):
                self._stream.close()


def _entry(status: Any) -> dict[str, Any]:
    return {
        "name": status.getPath().toUri().getPath(),
        "size": status.getLen(),
        "type": "directory" if status.isDirectory() else "file",
    }


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Java's exceptions as Python's."""
    try:
        yield
    except Py4JJavaError as error:
        text = error.java_exception.toString()
        kind = text.partition(":")[0].rpartition(".")[2]
        if kind in ("FileNotFoundException", "NoSuchFileException"):
            raise FileNotFoundError(path) from error
        raise OSError(text) from error
