"""Sick clusters, each one change away from a healthy one: what is found, on which host, and what is advised."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fatwood.doctor import CHECKS, Checkup, examine

sys.path.insert(0, str(Path(__file__).parent))
from sick import GIB, healthy, reached

Change = Callable[[dict[str, Any]], object]
ONE, TWO, DRIVER = "node-1 (executor 0)", "node-2 (executor 1)", "edge (driver)"
CUDA = {"cuda_available": True, "gpus": 1, "cuda": "13.0", "cudnn": 91000, "error": None}


def second(**facts: Any) -> Change:
    """On the second executor, these facts are others."""
    return lambda cluster: cluster["executors"][1].update(facts)


def package(name: str, version: str | None) -> Change:
    return lambda cluster: cluster["executors"][1]["packages"].update({name: version})


def conf(**settings: str) -> Change:
    named = {"spark." + name.replace("_", "."): value for name, value in settings.items()}
    return lambda cluster: cluster["session"]["conf"].update(named)


def disk(**facts: Any) -> Change:
    return lambda cluster: cluster["executors"][1]["disks"][1].update(facts)


def slow_second(cluster: dict[str, Any]) -> None:
    for task in cluster["executors"][1]["tasks"]:
        task.update(driver=reached(rate=1e6), peers={"0": reached(rate=1e6)})


def from_second(found: dict[str, Any], *, to_driver: bool = True) -> Change:
    """What the tasks of the second executor reach, and how: the driver, or the tasks of the first."""

    def change(cluster: dict[str, Any]) -> None:
        for task in cluster["executors"][1]["tasks"]:
            task["peers"].update({} if to_driver else {"0": found, "1": found})
            task["driver"] = found if to_driver else task["driver"]

    return change


def on_yarn(cluster: dict[str, Any]) -> None:
    cluster["session"]["master"] = "yarn"


REFUSED = reached("the driver at 10.0.0.1:40001: cannot connect: [Errno 111] Connection refused")
SILENT = reached("task 0 at 10.0.0.2:40001: no answer in 6.0 seconds")
NO_EXECUTORS = {"executors": [], "slots": 0}
FAILED = {"hostname": "node-2", "executor": "1", "text": "sh: 1: ./environment/bin/python: not found"}
DENIED = {"uri": "s3://runs", "error": "cannot write s3://runs/x: PermissionError: Access Denied"}
CACHE = {"name": "rows", "level": "MEMORY_ONLY", "harm": "what does not fit is computed again"}

SICK: list[tuple[str, Change, str, str, str, str, str]] = [
    # name, change, check, status, host, in what was received, in the hint
    ("another Python", second(python="3.9.18"), "Python", "wrong", TWO, "3.9.18", "PYSPARK_PYTHON"),
    ("no Python", lambda c: c["failures"].append(FAILED), "Python starts", "wrong", TWO, "not found", "spark.archives"),
    ("Java too old", second(java="11.0.2"), "Java", "wrong", TWO, "11.0.2", "install Java 17"),
    ("another Java", second(java="21.0.1"), "Java", "warn", TWO, "21.0.1", "one version of Java"),
    ("another Spark", second(spark="4.1.4"), "Spark", "wrong", TWO, "4.1.4", "SPARK_HOME"),
    ("old client", lambda c: c["session"].update(pyspark="4.2.0"), "Spark", "wrong", DRIVER, "4.3.0", "pyspark==4.3.0"),
    ("fatwood missing", package("fatwood", None), "packages", "wrong", TWO, "fatwood missing", "pip install fatwood"),
    ("another fatwood", package("fatwood", "0.0.9"), "packages", "wrong", TWO, "fatwood 0.0.9", "same environment"),
    ("torch missing", package("torch", None), "packages", "wrong", TWO, "torch missing", "pip install torch"),
    ("another torch", package("torch", "2.9.1"), "packages", "wrong", TWO, "torch 2.9.1", "same environment"),
    ("old pyarrow", package("pyarrow", "12.0.1"), "packages", "wrong", TWO, "pyarrow 12.0.1", "pyarrow>=15"),
    ("another pandas", package("pandas", "3.1.1"), "packages", "warn", TWO, "pandas 3.1.1", "same environment"),
    ("another numpy", package("numpy", "1.26.4"), "packages", "wrong", TWO, "numpy 1.26.4", "same environment"),
    ("torch built for NumPy 1", package("torch", "2.2.2"), "clashing packages", "wrong", TWO, "torch 2.2.2, numpy 2.4.6", "numpy<2"),
    ("old pandas beside NumPy 2", package("pandas", "2.1.0"), "clashing packages", "wrong", TWO, "pandas 2.1.0", "pandas>=2.2.2"),
    (
        "glibc that torch does not know",
        second(imports={"error": "ImportError: libc.so.6: version `GLIBC_2.38' not found"}),
        "imports", "wrong", TWO, "GLIBC_2.38", "oldest system",
    ),
    ("old glibc", second(glibc="2.17"), "glibc", "wrong", TWO, "2.17", "upgrade the system"),
    (
        "one package more",
        lambda c: c["executors"][1]["distributions"].update(tqdm="4.60.0", extra="1.0"),
        "environment", "warn", TWO, "tqdm 4.60.0 (driver: 4.67.1)", "fatwood pack",
    ),
    (
        "driver older than the CUDA build",
        second(imports=CUDA, nvidia={"driver": "535.104", "cuda": "12.2"}),
        "CUDA", "wrong", TWO, "driver 535.104, for CUDA 12.2", "newer driver",
    ),
    ("GPU asked for, none there", conf(task_resource_gpu_amount="1"), "CUDA", "wrong", ONE, "no driver of NVIDIA", "device='cpu'"),
    (
        "CPU build beside a GPU",
        second(nvidia={"driver": "580.65", "cuda": "13.0"}),
        "CUDA", "warn", TWO, "a build for CPU", "CUDA build of PyTorch",
    ),
    ("no executor", lambda c: c.update(NO_EXECUTORS), "slots", "wrong", DRIVER, "no executor", "free cores"),
    ("a job that does not end", lambda c: c.update(job_error="no end within 180 s"), "slots", "wrong", DRIVER, "180 s", "master's page"),
    ("full temp disk", disk(free_bytes=300 << 20), "disks", "wrong", TWO, "300 MiB free", "make room in /data/spark"),
    ("temp disk nearly full", disk(free_bytes=3 * GIB), "disks", "warn", TWO, "3.0 GiB free", "make room in /data/spark"),
    (
        "read-only local dir",
        disk(writable=False, error="[Errno 30] Read-only file system"),
        "disks", "wrong", TWO, "Read-only", "let the executors' user write to /data/spark",
    ),
    ("small shared memory", second(shm_bytes=64 << 20), "shared memory", "warn", TWO, "64 MiB", "--shm-size"),
    ("256 open files", second(open_files=256), "open files", "warn", TWO, "256", "ulimit -n 65536"),
    ("70 open files", second(open_files=70), "open files", "wrong", TWO, "70", "ulimit -n 65536"),
    ("a clock 90 s ahead", from_second(reached(ahead=90.0)), "clocks", "wrong", TWO, "90.0 s ahead of", "chrony"),
    ("a clock 5 s behind", from_second(reached(ahead=-5.0)), "clocks", "warn", TWO, "5.0 s behind", "chrony"),
    ("logind kills", second(kill_user_processes="yes"), "logind", "warn", TWO, "die when", "loginctl enable-linger spark"),
    ("too many threads", second(threads={"OMP_NUM_THREADS": "8"}), "threads", "warn", TWO, "OMP_NUM_THREADS=8", "unset OMP_NUM_THREADS"),
    ("a small container", second(cgroup_bytes=5 * GIB), "memory", "warn", TWO, "5.0 GiB", "larger machines"),
    ("small overhead", on_yarn, "memory overhead", "wrong", ONE, "410 MiB", "spark.executor.memoryOverhead=1456m"),
    ("speculation", conf(speculation="true"), "speculation", "warn", DRIVER, "second copy", "spark.speculation=false"),
    ("unbounded allocation", conf(dynamicAllocation_enabled="true"), "dynamic allocation", "warn", DRIVER, "none", "maxExecutors=N"),
    ("a harmful cache", lambda c: c["session"]["caches"].append(CACHE), "caches", "warn", DRIVER, "MEMORY_ONLY", "unpersist"),
    (
        "loopback as the driver's address",
        lambda c: c["session"].update(driver_host="127.0.0.1"),
        "driver's address", "wrong", DRIVER, "for node-1 (executor 0), node-2 (executor 1)", "spark.driver.host=ADDRESS",
    ),
    ("blocked port of the driver", from_second(REFUSED), "way to the driver", "wrong", TWO, "Connection refused", "firewall"),
    ("executors kept apart", from_second(SILENT, to_driver=False), "way between executors", "wrong", TWO, "no answer", "firewall"),
    (
        "a slow network",
        slow_second,
        "network speed", "warn", TWO, "8 Mbit/s", "fatwood plan",
    ),
    ("storage that one host cannot reach", second(storage=DENIED), "storage", "wrong", TWO, "Access Denied", "credentials"),
    (
        "fatwood without what it needs",
        second(errand_error="ModuleNotFoundError: No module named 'fsspec'"),
        "fatwood runs", "wrong", TWO, "fsspec", "same fatwood",
    ),
]  # fmt: skip


def test_nothing_is_found_where_all_is_well() -> None:
    findings = examine(healthy())
    assert [finding for finding in findings if finding.status != "ok"] == []
    assert [finding.title for finding in findings] == [check.title for check in CHECKS]
    assert Checkup(findings=findings, facts=healthy()).healthy


def test_the_table_has_every_check_and_twenty_five_clusters() -> None:
    assert len({name for name, *_ in SICK}) == len(SICK) >= 25
    assert {check for _, _, check, *_ in SICK} == {check.title for check in CHECKS}


@pytest.mark.parametrize(
    ("change", "title", "status", "where", "received", "hint"),
    [case[1:] for case in SICK],
    ids=[case[0] for case in SICK],
)
def test_a_sick_cluster_is_found(change, title, status, where, received, hint) -> None:
    cluster = healthy()
    change(cluster)
    found = [finding for finding in examine(cluster) if finding.title == title]
    assert found[0].status == status
    assert found[0].where == where
    assert received in found[0].received
    assert hint in found[0].hint
    checkup = Checkup(findings=examine(cluster), facts=cluster)
    assert checkup.healthy == (all(finding.status != "wrong" for finding in checkup.findings))
    assert f"{status}: {title} at {where}" in str(checkup)
    assert json.loads(json.dumps(checkup.to_json()))["healthy"] == checkup.healthy


@pytest.mark.parametrize("case", SICK, ids=[case[0] for case in SICK])
def test_only_the_hosts_that_differ_are_named(case) -> None:
    _, change, title, _, where, *_ = case
    cluster = healthy()
    change(cluster)
    named = {finding.where for finding in examine(cluster) if finding.title == title}
    assert named == ({ONE, TWO} if where == ONE else {where})


def test_local_sessions_have_no_network_between_hosts() -> None:
    cluster = healthy("local[4]")
    cluster["session"]["driver_host"] = "localhost"
    cluster["executors"][0]["kill_user_processes"] = "yes"
    assert {finding.status for finding in examine(cluster)} == {"ok"}


def test_a_lingering_user_is_not_killed() -> None:
    cluster = healthy()
    cluster["executors"][0]["kill_user_processes"] = "lingering"
    assert {finding.status for finding in examine(cluster)} == {"ok"}


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({}, False),
        ({"spark.executor.memoryOverhead": "2g"}, True),
        ({"spark.executor.memoryOverhead": "1000"}, False),
        ({"spark.executor.memoryOverheadFactor": "0.5"}, True),
        ({"spark.executor.pyspark.memory": "1g"}, True),
        ({"spark.executor.memory": "20g"}, True),
    ],
)
def test_the_overhead_follows_spark_s_settings(settings, fits) -> None:
    cluster = healthy("yarn")
    cluster["session"]["conf"].update(settings)
    found = [finding.status for finding in examine(cluster) if finding.title == "memory overhead"]
    assert found == (["ok"] if fits else ["wrong", "wrong"])
