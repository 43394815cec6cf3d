"""A writer that is killed at any of its calls leaves the old file or the new one, whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import builtins, io, os, signal, sys
from pathlib import Path
import torch
from torch import nn
from fatwood import SparkModel
from fatwood.snapshots import write_snapshot
from fatwood.storage import write_atomic
import fatwood.storage.writing as writing

what, folder = sys.argv[1], Path(sys.argv[2])
target = folder / "target"
calls = 0
deadly = 0

def strike(before_it=lambda: None):
    global calls
    calls += 1
    if calls == deadly:
        before_it()
        os.kill(os.getpid(), signal.SIGKILL)

class Raw(io.FileIO):
    def write(self, content):
        strike(lambda: io.FileIO.write(self, bytes(content)[: len(content) // 2]))  # it is torn
        return super().write(content)
    def flush(self):
        strike()
        return super().flush()
    def close(self):
        if not self.closed:
            strike()
        super().close()

def deadly_call(original):
    def call(*arguments, **keywords):
        strike()
        found = original(*arguments, **keywords)
        strike()
        return found
    return call

def save(number):
    if what == "model":
        network = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(number)
        SparkModel(network).save(target)
    else:
        parts = {"shared": bytes([number]) * 1000, "worker-0": bytes([number]) * 10}
        write_atomic(target, lambda file: write_snapshot(file, manifest={"n": number}, parts=parts))

save(2)
new = target.read_bytes()
save(1)
old = target.read_bytes()
assert old != new

def armed(number):
    global deadly
    writing.open = lambda path, mode: Raw(path, mode)
    for name in ("makedirs", "fsync", "replace", "unlink", "fdatasync"):
        setattr(os, name, deadly_call(getattr(os, name)))
    deadly = number
    save(2)
    os._exit(0)

for first in (False, True):
    number = 0
    while True:
        number += 1
        if first:
            target.unlink(missing_ok=True)
        else:
            save(1)
        child = os.fork()
        if child == 0:
            try:
                armed(number)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        found = target.read_bytes() if target.exists() else None
        state = "none" if found is None else {old: "old", new: "new"}.get(found, "TORN")
        end = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        others = [path for path in folder.iterdir() if path != target]
        print(first, state, end, len(others), flush=True)
        for path in others:
            path.unlink()
        if not os.WIFSIGNALED(status):
            break
"""


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("what", ["model", "checkpoint"])
def test_a_writer_killed_at_any_call_leaves_the_old_file_or_the_new_one(tmp_path: Path, what) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, what, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for first in ("False", "True"):
        lines = [line.split(" ", 4)[1:] for line in done.stdout.splitlines() if line.startswith(first)]
        *killed, last = lines
        assert last == ["new", "exit", "0", "0"]
        assert len(killed) >= 15
        states = [line[0] for line in killed]
        before = "none" if first == "True" else "old"
        # the old one until the rename, the new one from then on
        turn = states.index("new")
        assert states == [before] * turn + ["new"] * (len(states) - turn)
        assert 0 < turn < len(states)
        assert all(line[1:3] == ["signal", "9"] for line in killed)
        assert {int(line[3]) for line in killed} == {0, 1}  # at most one file with a temporary name
