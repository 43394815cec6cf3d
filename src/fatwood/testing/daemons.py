"""Servers for tests: processes that end with this one, also when it is killed, and leave no file.

::

    this process --- pipe ---> guard ---> server

The guard is a small process that kills the server and removes its folder when the pipe closes, or when this process, whose
forks may hold the pipe open, is no longer its parent.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fatwood.errors import ClusterError

__all__ = ["Daemon"]

_POLL_SECONDS = 0.05
_STOP_SECONDS = 20.0
_GUARD = """
import os, shutil, subprocess, sys, threading, time
folder = sys.argv[1]
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
ended = threading.Event()
def watch():
    sys.stdin.buffer.read()
    ended.set()
threading.Thread(target=watch, daemon=True).start()
parent = os.getppid()
while not ended.wait(0.5) and os.getppid() == parent:
    pass
server.kill()
code = server.wait()
deadline = time.monotonic() + 10
while os.path.isdir(folder) and time.monotonic() < deadline:
    shutil.rmtree(folder, ignore_errors=True)
    time.sleep(0.05)
sys.exit(code)
"""


class Daemon:
    """A server process with a folder of its own; both are gone after :meth:`close`, or when this process ends.

    Args:
        name: For messages: ``"NameNode of HDFS"``.
        command: What to run.
        folder: Its own, which is removed at the end; ``log`` in it has its output.
        environment: All of the process's variables; None for this process's.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._guard = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _GUARD, str(folder), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a Ctrl-C is for this process, which ends the others
            )

    def wait_for(self, pattern: str, *, seconds: float) -> str:
        """Wait until the server's log has a line.

        Args:
            pattern: A regular expression.
            seconds: How long to wait.

        Returns:
            What the pattern's first group matched, or else all of it.

        Raises:
            ClusterError: The line does not come.
        """
        deadline = time.monotonic() + seconds
        while True:
            text = self._log.read_text(errors="replace")
            found = re.search(pattern, text)
            if found is not None:
                return found.group(found.lastindex or 0)
            if time.monotonic() >= deadline:
                message = f"the {self._name}: expected {pattern!r} in its log within {seconds:.0f} s, received:\n{text[-4000:]}"
                raise ClusterError(message)
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """End the server, wait for its end, and remove its folder; idempotent.

        Raises:
            subprocess.TimeoutExpired: It does not die.
        """
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait(_STOP_SECONDS)
