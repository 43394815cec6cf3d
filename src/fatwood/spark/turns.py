"""At most so many of a host's processes at a time, by locks on files: one that dies, however it does, gives its turn back."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fatwood.errors import ClusterError

__all__ = ["Turns"]

_WAIT_SECONDS = 3600.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.02


@dataclass(frozen=True)
class Turns:
    """Those of one call, on whatever host."""

    name: str
    """That no other call has."""
    limit: int
    """Processes at a time."""

    @contextmanager
    def taken(self, *, wait_seconds: float = _WAIT_SECONDS) -> Iterator[None]:
        """Do what is within when it is this process's turn.

        Args:
            wait_seconds: How long to wait at most.

        Raises:
            ClusterError: Others did not end in time.
        """
        path, lock = self._take(time.monotonic() + wait_seconds)
        try:
            yield
        finally:
            # while the lock is held, so that nobody who gets it later holds one on a file that is gone
            with suppress(FileNotFoundError):
                path.unlink()
            os.close(lock)

    def _take(self, deadline: float) -> tuple[Path, int]:
        folder, pause = Path(tempfile.gettempdir()), _FIRST_PAUSE
        while True:
            for turn in range(self.limit):
                path = folder / f"fatwood-{self.name}-{turn}.lock"
                lock = _locked(path)
                if lock is not None:
                    return path, lock
            if time.monotonic() >= deadline:
                text = f"workers_per_node: expected one of {self.limit} turns on host {socket.gethostname()} in time, received none"
                raise ClusterError(text, hint="look for a Python worker on this host that hangs")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _locked(path: Path) -> int | None:
    """A descriptor of the file, locked; None if another process has it."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)  # another has it, or it was removed meanwhile
    return None
