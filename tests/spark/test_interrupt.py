"""Ctrl-C in a script that fits: out at once, the session usable, and nothing left when the script has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

SCRIPT = """
import sys, time
from functools import partial
from pathlib import Path
import torch
from pyspark.sql import SparkSession
from fatwood import AllReduce, SparkModel

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 2)

    def forward(self, x):
        return self.linear(x)

def slow_loss(output, label):
    marker.touch()
    time.sleep(0.05)
    return torch.nn.functional.cross_entropy(output, label)

def fit(loss, epochs=1):
    model = SparkModel(Net(), loss=loss, optimizer=partial(torch.optim.SGD, lr=0.1), strategy=AllReduce())
    return model.fit(df, features="x", label="y", workers=2, batch_size=5, epochs=epochs, progress=False)

options = {
    "spark.driver.host": "127.0.0.1", "spark.log.level": "OFF", "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false", "spark.local.dir": sys.argv[1],
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -Djava.io.tmpdir=" + sys.argv[1],
}
spark = SparkSession.builder.master("local[2]").config(map=options).getOrCreate()
df = spark.range(40).selectExpr("id / 40 x", "int(id % 2) y")
marker = Path(sys.argv[1], "training-1")
try:
    fit(slow_loss, epochs=10_000)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print("active jobs", len(spark.sparkContext.statusTracker().getActiveJobsIds()), flush=True)
print("trained", fit(torch.nn.CrossEntropyLoss()).stats.rows_trained, flush=True)
marker = Path(sys.argv[1], "training-2")
fit(slow_loss, epochs=10_000)
"""


def wait_for(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@pytest.mark.spark
@pytest.mark.skipif(os.name == "nt", reason="needs process groups")
def test_ctrl_c_ends_the_fit_and_then_the_script(tmp_path) -> None:
    script, work = tmp_path / "train.py", tmp_path / "work"
    script.write_text(SCRIPT)
    work.mkdir()
    environment = {
        **os.environ,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "TMPDIR": str(work),
        "PYSPARK_PYTHON": sys.executable,
    }
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        [sys.executable, str(script), str(work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # a terminal's Ctrl-C reaches the JVM as well
    )
    family: list[psutil.Process] = []
    try:
        for attempt in (1, 2):
            wait_for((work / f"training-{attempt}").exists, 100, "training")
            family = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGINT)
            pressed = time.monotonic()
            if attempt == 1:
                assert process.stdout is not None
                assert process.stdout.readline() == "interrupted\n"
                assert time.monotonic() - pressed < 8
        out, err = process.communicate(timeout=20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert out == "active jobs 0\ntrained 40\n", err
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode != 0
    assert len(family) >= 3, "JVM, Python's daemon and two workers"
    _, alive = psutil.wait_procs(family, timeout=10)  # sockets go with their processes
    assert alive == []
    left = [str(path) for kind in ("fatwood", "blockmgr", "spark", "tmp") for path in work.rglob(f"{kind}*")]
    assert left == []
