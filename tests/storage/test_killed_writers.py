"""A writer that is killed at any moment leaves the old file or the new one."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys

import pytest
from tests.storage.conftest import stores

from fatwood.storage import list_folder, read_bytes, write_atomic

OLD, NEW = b"old" * 1000, b"new and longer" * 1000
WRITER = """
import io, os, pickle, signal, sys
uri, new, fatal = pickle.loads(sys.stdin.buffer.read())
calls = 0

def counted(owner, name):
    function = getattr(owner, name)

    def call(*given, **named):
        global calls
        for moment in ("before", "after"):
            calls += 1
            if calls == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            if moment == "before":
                answer = function(*given, **named)
        return answer

    setattr(owner, name, call)

from fatwood.storage import locating, write_atomic

for name in ("makedirs", "replace", "fsync", "unlink"):
    counted(os, name)
store, _ = locating.locate(uri)
if store is not None and type(store).__module__.startswith("hdfs_native"):
    import hdfs_native

    for name in ("mkdirs", "create", "rename", "delete"):
        counted(hdfs_native.Client, name)
    for name in ("write", "close"):
        counted(hdfs_native.FileWriter, name)
elif store is not None:
    import aiobotocore.client

    send = aiobotocore.client.AioBaseClient._make_api_call

    async def call(*given, **named):
        global calls
        calls += 2
        own = calls  # parts go at the same time
        if own - 1 == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await send(*given, **named)
        if own == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    aiobotocore.client.AioBaseClient._make_api_call = call
    put = store.put_file
    store.put_file = lambda local, path: put(local, path, chunksize=5 << 20)  # in several parts

def write(file):
    for start in range(0, len(new), len(new) // 3 + 1):
        counted_write(file, new[start : start + len(new) // 3 + 1])

class Writing:
    @staticmethod
    def write(file, piece):
        file.write(piece)
        file.flush()

counted(Writing, "write")
counted_write = Writing.write
write_atomic(uri, write)
print(calls)
"""


def _run(uri, new: bytes, fatal: int) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", WRITER],
        input=pickle.dumps((uri, new, fatal)),
        capture_output=True,
        timeout=100,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@stores("local", "hdfs", "s3")
def test_a_writer_that_is_killed_at_any_call_leaves_the_old_file_or_the_new_one(place) -> None:
    new = NEW if place.store != "s3" else bytes(11 << 20)
    write_atomic(place.file(), lambda file: file.write(OLD) and None)
    whole = _run(place.file(), new, 0)
    assert whole.returncode == 0, whole.stderr.decode()
    calls = int(whole.stdout)
    assert calls >= 8
    found = set()
    for fatal in range(1, calls + 1):
        write_atomic(place.file(), lambda file: file.write(OLD) and None)
        killed = _run(place.file(), new, fatal)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        content = read_bytes(place.file())
        assert content in (OLD, new), (fatal, len(content))
        found.add(content)
        others = [name for name in list_folder(place.folder) if name != "model"]
        assert all(name.startswith(".fatwood-") for name in others)
        assert len(others) <= fatal
    assert found == {OLD, new}
