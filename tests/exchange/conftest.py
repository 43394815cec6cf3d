"""Every test of this room leaves no thread and no descriptor behind."""

from __future__ import annotations

import gc
import os
import threading
import time

import pytest


@pytest.fixture(autouse=True)
def nothing_is_left():
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        left = [thread.name for thread in threading.enumerate() if thread not in threads]
        opened = _descriptors() - descriptors
        if not left and not opened:
            return
        gc.collect()
        time.sleep(0.02)
    pytest.fail(f"left behind: threads {left}, descriptors {sorted(opened)}")


def _descriptors() -> set[tuple[int, str]]:
    """Open sockets and pipes of this process, where the system tells."""
    found = set()
    if os.path.isdir("/proc/self/fd"):
        for number in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{number}")
            except OSError:
                continue
            if target.startswith(("socket:", "pipe:", "anon_inode:")):
                found.add((int(number), target))
    return found
