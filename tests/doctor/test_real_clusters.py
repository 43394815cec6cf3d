"""Clusters that are really sick: three Workers on loopback, each with an ailment of its own, and the command itself."""

from __future__ import annotations

import json
import resource
import stat
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from fatwood.testing.cluster import StandaloneCluster, standalone_cluster

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(500)]
JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
SETTINGS = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.executor.memory": "512m",
    "spark.driver.extraJavaOptions": JVM,
    "spark.executor.extraJavaOptions": JVM,
}
ALLOCATION = {
    "spark.dynamicAllocation.enabled": "true",
    "spark.dynamicAllocation.shuffleTracking.enabled": "true",
    "spark.dynamicAllocation.minExecutors": "3",
}
LATE = "import time\nreal = time.time\ntime.time = lambda: real() + 90.0\n"


def doctor(cluster: StandaloneCluster, *more: str, **settings: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of the command."""
    given = {**SETTINGS, **{name.replace("__", "."): value for name, value in settings.items()}}
    command = [sys.executable, "-m", "fatwood", "doctor", "--json", "--master", cluster.master, *more]
    command += [part for name, value in given.items() for part in ("--conf", f"{name}={value}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout, done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout)


def wrapper(path: Path, *cases: str) -> str:
    """A Python that is another one on some Workers."""
    lines = ["#!/bin/sh", 'case "$PWD" in', *cases, "esac", f'exec {sys.executable} "$@"', ""]
    path.write_text("\n".join(lines))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def place(found: dict[str, Any], worker: str) -> str:
    """How the executor of a Worker is named in findings."""
    for process in found["facts"]["executors"]:
        if any(f"/{worker}/" in disk["path"] for disk in process["disks"]):
            return f"{process['hostname']} (executor {process['executor']})"
    raise KeyError(worker)


def sick(found: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, str]]]:
    """What is not well, by check and host; not how fast a busy machine's loopback is."""
    rows: dict[tuple[str, str], list[dict[str, str]]] = {}
    for finding in found["findings"]:
        if finding["status"] != "ok" and finding["title"] != "network speed":
            rows.setdefault((finding["title"], finding["where"]), []).append(finding)
    return rows


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Worker 1 has few open files, Worker 2 too many threads."""
    with (
        standalone_cluster(1, parent=tmp_path_factory.mktemp("sick")) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        limited = running.start_worker()
        resource.prlimit(running.pid(limited), resource.RLIMIT_NOFILE, (700, 700))
        patch.setenv("MKL_NUM_THREADS", "64")
        running.start_worker()
        yield running


def test_each_host_is_named_with_what_it_has(cluster, tmp_path) -> None:
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False)
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "sitecustomize.py").write_text(LATE)
    python = wrapper(
        tmp_path / "python",
        f'*/worker-1/*) exec {bare}/bin/python "$@" ;;',
        f"*/worker-2/*) export PYTHONPATH={tmp_path}/late ;;",
    )
    options = {"spark.pyspark.python": python, "spark.speculation": "true"}
    code, found = doctor(cluster, "--storage", "memory://runs", **options)
    assert code == 1
    assert not found["healthy"]
    rows = sick(found)
    well, other, third = (place(found, f"worker-{number}") for number in range(3))
    missing = {finding["received"] for finding in rows["packages", other]}
    assert {"fatwood missing", "torch missing", "numpy missing"} <= missing
    assert "(driver:" in rows["environment", other][0]["received"]
    assert rows["open files", other][0]["received"] == "700"
    assert "MKL_NUM_THREADS=64" in rows["threads", third][0]["received"]
    assert rows["clocks", third][0]["received"].startswith("90.0 s ahead of the driver")
    assert rows["clocks", third][0]["status"] == "wrong"
    # each process has a memory:// of its own, as each host has a disk
    assert "cannot open memory://runs/" in rows["storage", well][0]["received"]
    driver = f"{found['facts']['driver']['hostname']} (driver)"
    assert "second copy" in rows["speculation", driver][0]["received"]
    assert {title for title, where in rows if where == well} == {"storage"}
    assert {title for title, where in rows if where == third} == {"storage", "threads", "clocks"}
    assert all(finding["hint"] for findings in rows.values() for finding in findings)


def test_a_host_without_python_and_allocation_without_bound(cluster, tmp_path) -> None:
    python = wrapper(tmp_path / "python", "*/worker-1/*) exec /nowhere/bin/python ;;")
    code, found = doctor(
        cluster, "--storage", str(tmp_path), **ALLOCATION, **{"spark.pyspark.python": python}
    )
    assert code == 1
    rows = sick(found)
    answered = {place(found, "worker-0"), place(found, "worker-2")}
    (failed,) = (where for title, where in rows if title == "Python starts")
    assert failed not in answered
    assert "(executor " in failed
    assert "/nowhere/bin/python" in rows["Python starts", failed][0]["received"]
    driver = f"{found['facts']['driver']['hostname']} (driver)"
    assert "maxExecutors" in rows["dynamic allocation", driver][0]["hint"]
    wrong = {title for title, where in rows if rows[title, where][0]["status"] == "wrong"}
    assert wrong == {"Python starts"}
    assert list(tmp_path.glob("fatwood-*")) == []


def test_a_driver_that_executors_cannot_reach(cluster) -> None:
    options = {"spark.driver.host": "127.0.0.2", "spark.pyspark.python": sys.executable}
    code, found = doctor(cluster, "--timeout-seconds", "45", **options)
    assert code == 1
    (row,) = (finding for finding in found["findings"] if finding["title"] == "slots")
    assert row["status"] == "wrong"
    assert row["received"] == "no executor"
    assert "spark.driver.host" in row["hint"]
