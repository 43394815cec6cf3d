"""What a store raised, told as an error that says what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from fatwood.errors import FatwoodError, StorageError

__all__ = ["explained", "storage_error"]

# Stores whose package is not called like its module, or that an extra brings.
_PACKAGE_OF_MODULE: Mapping[str, str] = MappingProxyType(
    {
        "adlfs": "'fatwood[azure]'",
        "gcsfs": "'fatwood[gcs]'",
        "hdfs_native": "'fatwood[hdfs]'",
        "s3fs": "'fatwood[s3]'",
        "smbclient": "smbprotocol",
    }
)
_GENERAL_HINT = (
    "check that the path exists, that this user may use it, and that the store's address and credentials "
    "are known on the machine that runs this code"
)
_HADOOP_HINT = (
    "for hdfs without Java, pip install 'fatwood[hdfs]'; else it needs libhdfs and Java on this machine: set JAVA_HOME and "
    "HADOOP_HOME, and CLASSPATH to the output of `hadoop classpath --glob`; webhdfs:// works without them"
)
_UNKNOWN_HINT = (
    "use a scheme that fsspec knows, such as file, hdfs, s3, gs, abfs or sftp; a scheme that only Hadoop knows works where "
    "a classic Spark session is, which is on the driver and not on executors"
)


@contextmanager
def explained(operation: str, uri: object) -> Iterator[None]:
    """Turn whatever a store raises (their own classes included) into a StorageError.

    Args:
        operation: What is done to the URI: ``"list"``.
        uri: For the message.
    """
    try:
        yield
    except FatwoodError:
        raise
    except Exception as error:
        raise storage_error(uri, operation, error) from error


def storage_error(uri: Any, operation: str, error: Exception) -> StorageError:
    """What a store raised, as an error that says what was done where, and what to do.

    Args:
        uri: For the message.
        operation: What was done to it.
        error: What was raised.
    """
    name = os.fspath(uri) if isinstance(uri, os.PathLike) else str(uri)
    message = f"cannot {operation} {name}: {type(error).__name__}: {error}"
    hint = _GENERAL_HINT
    missing = _missing_module(error)
    if missing is not None:
        package = _PACKAGE_OF_MODULE.get(missing, missing)
        hint = f"pip install {package} (on every machine that runs this code)"
    elif name.startswith("hdfs:"):
        hint = f"{_GENERAL_HINT}; {_HADOOP_HINT}"
    elif isinstance(error, ValueError) and "Protocol not known" in str(error):
        hint = _UNKNOWN_HINT
    return StorageError(message, hint=hint)


def _missing_module(error: BaseException | None) -> str | None:
    """The top-level module whose absence caused the error, if that was the cause."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name.partition(".")[0]
        error = error.__cause__
    return None
