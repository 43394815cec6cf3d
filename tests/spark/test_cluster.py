"""Workers of a real standalone cluster: what falls with a Python worker, an executor, the driver, and the cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fatwood.errors import OptionError
from fatwood.testing.cluster import executor_of, python_workers, standalone_cluster

DRIVER = """
import os, sys, time
from pyspark import TaskContext
from pyspark.sql import SparkSession
from fatwood.spark.workers import WorkerJobs

def task(batches):
    import pyarrow as pa
    rank = TaskContext.get().partitionId()
    rows = sum(batch.num_rows for batch in batches)
    open(os.path.join(folder, f"{rank}-{rows}-{os.getpid()}-{TaskContext.get().taskAttemptId()}"), "x").close()
    time.sleep(240)
    yield pa.RecordBatch.from_pydict({"rank": pa.array([rank], pa.int32())})

master, folder = sys.argv[1:]
quick = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
options = {
    "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false", "spark.log.level": "OFF", "spark.executor.memory": "600m",
    "spark.driver.extraJavaOptions": quick, "spark.executor.extraJavaOptions": quick,
}
spark = SparkSession.builder.master(master).config(map=options).getOrCreate()
rows = spark.range(0, 20000, 1, 4).repartition(2, "id").sortWithinPartitions("id")
jobs = WorkerJobs(spark.sparkContext, rows.mapInArrow(task, "rank int"), 2, "fatwood.test")
jobs.start()
print(jobs.next_event(240), flush=True)
"""


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def entries(folder: Path, rank: int) -> list[tuple[int, int]]:
    """Rows and process of each attempt of a worker that has read its rows."""
    found = [[int(part) for part in path.name.split("-")] for path in folder.glob(f"{rank}-*")]
    return [(rows, pid) for _, rows, pid, _ in sorted(found, key=lambda entry: entry[3])]


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_only_what_was_killed_comes_again(tmp_path) -> None:
    here = tmp_path / "here"
    here.mkdir()

    def attempts(*expected: int) -> None:
        wait_until(
            lambda: [len(entries(here, rank)) for rank in (0, 1)] == list(expected),
            f"{expected} attempts",
            100,
        )

    with standalone_cluster(2, parent=tmp_path) as cluster:
        environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, cluster.master, str(here)], env=environment, stdout=subprocess.PIPE
        )
        try:
            attempts(1, 1)
            first = [entries(here, rank)[0] for rank in (0, 1)]
            assert sum(rows for rows, _ in first) == 20000
            assert first[0][1] in python_workers(executor_of(first[0][1]))

            os.kill(first[0][1], signal.SIGKILL)
            attempts(2, 1)
            second = entries(here, 0)[1]
            assert second[0] == first[0][0]

            before = cluster.executors()
            os.kill(executor_of(first[1][1]), signal.SIGKILL)
            wait_until(lambda: gone(first[1][1]), "the Python worker dies with its executor", 10)
            attempts(2, 2)
            assert entries(here, 1)[1][0] == first[1][0], "the same rows, though shuffle files were lost"
            assert not gone(second[1]), "the other one runs on"
            assert len(cluster.executors().keys() - before.keys()) == 1

            left = [second[1], entries(here, 1)[1][1], *cluster.executors().values()]
        finally:
            driver.kill()
            out, _ = driver.communicate(timeout=30)
        assert out == b"", "no job has ended"
        wait_until(lambda: all(map(gone, left)), "workers and executors die with the driver", 20)
    assert not cluster.folder.exists()


CLUSTER = """
import sys, time
from fatwood.testing.cluster import standalone_cluster
with standalone_cluster(1) as cluster:
    print(cluster.pid("master"), cluster.pid("worker-0"), cluster.folder, flush=True)
    time.sleep(240)
"""


@pytest.mark.spark
@pytest.mark.slow
def test_a_cluster_dies_with_the_process_that_started_it(tmp_path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        assert process.stdout is not None
        master, worker, folder = process.stdout.readline().split()
        assert not gone(int(master))
    finally:
        process.kill()
        process.communicate(timeout=30)
    wait_until(lambda: gone(int(master)) and gone(int(worker)), "the daemons die", 10)
    assert Path(folder).parent == tmp_path


def test_a_cluster_without_workers_is_refused() -> None:
    with pytest.raises(OptionError, match="received 0 and 1"), standalone_cluster(0):
        pass
