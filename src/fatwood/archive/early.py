"""Let the disk work while the rest of a file is computed: without it all of that waits for the `fsync` at the end."""

from __future__ import annotations

import os
import stat
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

__all__ = ["EarlySync"]

_EVERY_BYTES = 2**26


class EarlySync:
    """Asks the system every 64 MiB to bring to the disk what was written, in a thread; a context manager.

    Nothing is promised by it, and its failures are those of the `fsync` that follows.

    Args:
        file: That is written; nothing is done for one without a name of its own on a local disk.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._number = _number_of(file)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fatwood-sync")
        self._running: Future[Any] | None = None
        self._bytes = 0

    def wrote(self, count: int) -> None:
        """So many bytes more are in the file."""
        self._bytes += count
        busy = self._running is not None and not self._running.done()
        if self._number is not None and self._bytes >= _EVERY_BYTES and not busy:
            self._bytes = 0
            self._running = self._pool.submit(os.fdatasync, self._number)

    def __enter__(self) -> EarlySync:
        return self

    def __exit__(self, *_: object) -> None:
        self._number = None  # what is written now is left to the `fsync`
        self._pool.shutdown(wait=True)


def _number_of(file: BinaryIO) -> int | None:
    if not hasattr(os, "fdatasync") or not isinstance(getattr(file, "name", None), str):
        return None
    try:
        number = file.fileno()
        return number if stat.S_ISREG(os.fstat(number).st_mode) else None
    except (AttributeError, OSError):
        return None
