"""The servers of `fatwood.testing` end with the process that started them, also when it is killed, and leave nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

STARTS = {
    "s3": "from fatwood.testing.s3 import s3_server as start; address = lambda server: server.endpoint",
    "hdfs": "from fatwood.testing.hdfs import hdfs_cluster as start; address = lambda server: server.uri",
}


@pytest.mark.parametrize(
    "store", ["s3", pytest.param("hdfs", marks=[pytest.mark.spark, pytest.mark.timeout(600)])]
)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_with_a_killed_process(store, end, tmp_path, request) -> None:
    request.getfixturevalue(store)  # which skips where there can be none
    code = (
        f"import os, sys, time; from pathlib import Path; {STARTS[store]}\n"
        f"with start(parent=Path(sys.argv[1])) as server:\n"
        f"    if not os.fork(): time.sleep(1000)\n"  # a fork that still holds the guards' pipes
        f"    print(address(server), flush=True); time.sleep(1000)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        port = int(process.stdout.readline().rpartition(":")[2])
        assert _listens(port)
        assert list(tmp_path.iterdir())
        process.send_signal(end)
        process.wait(30)
        deadline = time.monotonic() + 30
        while (_listens(port) or list(tmp_path.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _listens(port)
        assert list(tmp_path.iterdir()) == []
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
