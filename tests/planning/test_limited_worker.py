"""A fit whose Python workers have no more memory than the plan says; and one with 30 % less, refused with the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(600)]

DAEMON = """
import os
from pathlib import Path

def main():
    from pyspark import daemon
    group = Path(os.environ["GROUPS"], f"daemon-{os.getpid()}")
    group.mkdir()
    (group / os.environ["LIMIT_FILE"]).write_text(str(int(os.environ["LIMIT_MIB"]) << 20))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    daemon.manager()

main()
"""
FIT = """
import sys, json
from functools import partial
import numpy as np, pandas as pd, torch
from torch import nn
import fatwood
from fatwood import AllReduce, SparkModel
from fatwood.errors import FatwoodError
from fatwood.testing.cluster import standalone_cluster

folder, groups, limit_file = sys.argv[1:]
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(100, 4000), nn.ReLU(), nn.Linear(4000, 4000), nn.ReLU(), nn.Linear(4000, 10))
optimizer, loss = partial(torch.optim.Adam, lr=1e-3), nn.CrossEntropyLoss()
rows = np.random.default_rng(0).standard_normal((256, 100), np.float32)
classes = np.arange(256) % 10
plan = fatwood.plan(net, loss=loss, optimizer=optimizer, features=torch.from_numpy(rows), label=torch.from_numpy(classes),
                    batch_size=32, strategies=[AllReduce()], steps=3)
planned = plan.strategies[0].worker_mib
said = {"planned": planned}

def fit(master, limit):
    from pyspark.sql import SparkSession
    settings = {
        "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.ui.enabled": "false",
        "spark.log.level": "ERROR", "spark.ui.showConsoleProgress": "false", "spark.executor.memory": "512m",
        "spark.pyspark.python": sys.executable, "spark.python.daemon.module": "confined",
        "spark.executorEnv.PYTHONPATH": folder, "spark.executorEnv.GROUPS": groups,
        "spark.executorEnv.LIMIT_FILE": limit_file, "spark.executorEnv.LIMIT_MIB": str(limit),
    }
    spark = SparkSession.builder.master(master).config(map=settings).getOrCreate()
    try:
        frame = spark.createDataFrame(pd.DataFrame({"x": list(rows), "y": classes}))
        model = SparkModel(net, loss=loss, optimizer=optimizer, strategy=AllReduce())
        return model.fit(frame, features="x", label="y", workers=2, epochs=2, progress=False)
    finally:
        spark.stop()

with standalone_cluster(2, cores=1, memory="1g") as cluster:
    done = fit(cluster.master, planned)
    said["trained"] = [done.stats.rows_trained, done.stats.digest_equal, len(done.stats.incidents)]
    try:
        fit(cluster.master, planned * 7 // 10)
    except FatwoodError as error:
        said["refused"] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@pytest.fixture
def groups() -> Iterator[tuple[Path, str, str]]:
    """A control group to make others in, and the names of the files of limit and peak."""
    of_one = Path("/sys/fs/cgroup/memory")
    if (of_one / "memory.limit_in_bytes").exists():
        root, limit, peak = of_one, "memory.limit_in_bytes", "memory.max_usage_in_bytes"
    else:
        root, limit, peak = Path("/sys/fs/cgroup"), "memory.max", "memory.peak"
    folder = root / f"fatwood-test-{os.getpid()}"
    try:
        folder.mkdir()
        if limit == "memory.max":
            (folder / "cgroup.subtree_control").write_text("+memory")
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"control groups cannot be made here: {error}")
    try:
        yield folder, limit, peak
    finally:
        deadline = time.monotonic() + 20
        for inner in [*folder.glob("daemon-*"), folder]:
            while inner.exists():
                try:
                    inner.rmdir()
                except OSError:  # a process that was killed is still in it
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)


def test_a_fit_survives_with_what_the_plan_says_and_is_refused_with_30_percent_less(
    tmp_path: Path, groups: tuple[Path, str, str]
) -> None:
    pytest.importorskip("pyspark")
    folder, limit, peak = groups
    (tmp_path / "confined.py").write_text(DAEMON)
    (tmp_path / "fit.py").write_text(FIT)
    done = subprocess.run(
        [sys.executable, "fit.py", str(tmp_path), str(folder), limit],
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["trained"] == [512, True, 0]
    assert said["refused"].startswith("OptionError: memory: expected at least ")
    assert f"received {said['planned'] * 7 // 10} MiB, the limit of its control group" in said["refused"]
    # the workers really were in the groups, and needed most of them
    peaks = sorted(int((inner / peak).read_text()) >> 20 for inner in folder.glob("daemon-*"))
    assert len(peaks) == 4
    assert all(0.6 * said["planned"] < used <= said["planned"] for used in peaks[-2:])
