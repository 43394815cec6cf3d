"""The fsspec file system of a URI, and what it can do in one step."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import fsspec

__all__ = ["open_store"]

_OF_SESSION = "fatwood.spark.hadoop"
"""Gives Hadoop's own file systems. Named as fsspec names its classes, for it lies on a floor above this one."""
_NEED_SYSTEM_LIBRARIES = ("hdfs", "viewfs")


def open_store(uri: str, scheme: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The store of a URI, by fsspec; where it has none, by Hadoop through the Spark session, where there is one.

    Hadoop's file systems take no options: those are arguments of an fsspec class, and the session has settings of its own.

    Args:
        uri: ``scheme://path``.
        scheme: Of the URI.
        options: Arguments of the store's class, by name.

    Returns:
        A file system with fsspec's methods, and the path in it.

    Raises:
        Exception: Whatever fsspec raises for it.
    """
    try:
        store, path = fsspec.core.url_to_fs(uri, **options)
    except Exception as error:
        known = scheme in fsspec.available_protocols()
        opened_late = known and not isinstance(error, ImportError) and scheme not in _NEED_SYSTEM_LIBRARIES
        found = None if options or opened_late else _of_session(uri)
        if found is None:
            raise
        return found
    _keep(store)
    _check_answers(store)
    return store, path


def _keep(store: Any) -> None:
    """Never end a client of hdfs-native: it would wait for its threads, which a forked process does not have.

    fsspec forgets its stores in a forked process, and starting a Spark session forks: it would hang.
    """
    if type(store).__module__.startswith("hdfs_native") and not hasattr(store, "fatwood_keeps"):
        store.fatwood_keeps = store.client.inner
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(store.client.inner))


def _check_answers(store: Any) -> None:
    """Fsspec's store of WebHDFS takes what a DataNode answers for the file's bytes, an error page, too."""
    if "webhdfs" in store.protocol and _require_success not in store.session.hooks["response"]:
        store.session.hooks["response"].append(_require_success)


def _require_success(response: Any, *_: Any, **__: Any) -> None:
    if response.status_code >= 400 and response.status_code not in (401, 407):  # those ask who is there
        text = response.text[:1000]
        raise (FileNotFoundError if "FileNotFoundException" in text else OSError)(text)


def _of_session(uri: str) -> tuple[Any, str] | None:
    """None where this process has no Spark session whose Hadoop knows the scheme."""
    if sys.modules.get("pyspark") is None:
        return None
    found: tuple[Any, str] | None = import_module(_OF_SESSION).open_store(uri)
    return found
