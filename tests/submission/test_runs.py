"""Commands that are really run: exit codes, signals, and a fit on a local session and on a standalone cluster."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

from fatwood.errors import ClusterError
from fatwood.submission import Submission, command_of, run

ENVIRONMENT = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"}
QUIET = ("spark.ui.enabled=false", "spark.driver.host=127.0.0.1", "spark.log.level=ERROR")
SMALL = ["--parameters", "1000", *(word for setting in QUIET for word in ("--conf", setting))]
FIT = """
import hashlib, os, sys
from functools import partial
import numpy as np, pandas as pd, torch
from pyspark.sql import SparkSession
from torch import nn
from fatwood import AllReduce, SparkModel

spark = SparkSession.builder.getOrCreate()
slots = spark.sparkContext.defaultParallelism
rng = np.random.default_rng(0)
x = rng.standard_normal((200, 4)).astype("float32")
df = spark.createDataFrame(pd.DataFrame({"x": list(x), "y": np.abs(x).argmax(axis=1)}))
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
model = SparkModel(net, loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.1), strategy=AllReduce())
fit = model.fit(df, features="x", label="y", workers=2, batch_size=10, epochs=2)
variables = spark.sparkContext.parallelize(range(2), 2).map(
    lambda _: (os.environ["FLAVOUR"], os.environ["OMP_NUM_THREADS"], os.environ.get("PACKED"))
).distinct().collect()
digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest()
print("slots", slots, "rows", fit.stats.rows_trained, fit.stats.digest_equal, sys.argv[1:])
print("variables", os.environ["FLAVOUR"], variables)
print("digest", digest)
"""


def submitted(script: Path, *options: str, timeout: float = 280) -> str:
    """What the script printed when ``fatwood submit`` ran it."""
    command = [sys.executable, "-m", "fatwood", "submit", *SMALL, *options, str(script), "--epochs", "a b"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=script.parent, **streams) as process:
        try:
            printed, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # a kill would leave Java behind
            raise
    assert process.returncode == 0, errors[-4000:]
    return printed


def packed(folder: Path) -> Path:
    """An archive whose Python is this one, and tells that it was started from there."""
    python, archive = folder / "python", folder / "environment.tar.gz"
    python.write_text(f'#!/bin/sh\nPACKED=yes exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(python, "bin/python")
    return archive


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_fit_runs_locally_and_on_a_standalone_cluster_and_gives_the_same_bits(tmp_path: Path) -> None:
    from fatwood.testing.cluster import standalone_cluster

    script = tmp_path / "train.py"
    script.write_text(FIT)
    flavour = ("--env", "FLAVOUR=resin and pine")
    local = submitted(script, *flavour)
    with standalone_cluster(2, memory="2g", parent=tmp_path) as cluster:
        archive = ("--archive", str(packed(tmp_path)))
        standalone = submitted(script, "--master", cluster.master, *archive, *flavour)
    for text, python in ((local, None), (standalone, "yes")):
        assert "slots 2 rows 400 True ['--epochs', 'a b']" in text
        assert f"variables resin and pine [('resin and pine', '1', {python!r})]" in text
    digests = [re.search(r"digest ([0-9a-f]{64})", text).group(1) for text in (local, standalone)]
    assert digests[0] == digests[1]


@pytest.mark.spark
def test_the_exit_code_is_the_scripts(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import sys\nsys.exit(7)\n")
    command = [sys.executable, "-m", "fatwood", "submit", str(script)]
    assert (
        subprocess.run(command, capture_output=True, env=ENVIRONMENT, timeout=90, check=False).returncode == 7
    )


@pytest.mark.spark
def test_a_signal_ends_java_and_the_scripts_python(tmp_path: Path) -> None:
    script, told = tmp_path / "sleeps.py", tmp_path / "pid"
    script.write_text(
        f"import os, time\nfrom pathlib import Path\nPath({str(told)!r}).write_text(f'{{os.getpid()}} ')\ntime.sleep(300)\n"
    )
    command = [sys.executable, "-m", "fatwood", "submit", str(script)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        deadline = time.monotonic() + 60
        while not (told.exists() and told.read_text().endswith(" ")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        assert int(told.read_text()) in {child.pid for child in family}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        _, alive = psutil.wait_procs(family, timeout=20)
        for child in alive:
            child.kill()
        assert alive == []


def test_a_program_ended_by_a_signal_gives_the_code_that_a_shell_gives(tmp_path: Path) -> None:
    script, program = tmp_path / "x.py", tmp_path / "spark-submit"
    script.touch()
    program.write_text("#!/bin/sh\nkill -KILL $$\n")
    program.chmod(0o755)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert run(command_of(Submission(script=str(script)), str(program))) == 137
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_a_program_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    script = tmp_path / "x.py"
    script.touch()
    with pytest.raises(ClusterError, match=r"x\.py: cannot be started: Permission denied"):
        run(command_of(Submission(script=str(script)), str(script)))
