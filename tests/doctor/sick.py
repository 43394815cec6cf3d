"""The facts of a healthy cluster of three hosts, as they were recorded, how to make them sick, and what is then to be found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

PACKAGES = {
    "cloudpickle": "3.1.2",
    "fatwood": "0.1.0",
    "numpy": "2.4.6",
    "pandas": "2.3.3",
    "pyarrow": "26.0.1",
    "pyspark": "4.3.0",
    "torch": "2.13.0+cpu",
}
GIB = 1 << 30


def process(host: str, executor: str | None) -> dict[str, Any]:
    return {
        "hostname": host,
        "executor": executor,
        "address": None if executor is None else f"10.0.0.{int(executor) + 2}",
        "jvm": None if executor is None else 4000,
        "java": None if executor is None else "17.0.15",
        "spark": None if executor is None else "4.3.0",
        "pid": 4981,
        "user": "spark",
        "python": "3.11.7",
        "executable": "/opt/python/bin/python3",
        "prefix": "/opt/python",
        "platform": "Linux-6.18-x86_64-with-glibc2.36",
        "system": "linux",
        "machine": "x86_64",
        "glibc": "2.36",
        "packages": dict(PACKAGES),
        "distributions": {**PACKAGES, "tqdm": "4.67.1"},
        "disks": [
            {"kind": kind, "path": path, "free_bytes": 48 * GIB, "writable": True, "error": None}
            for kind, path in (("temporary files", "/tmp"), ("spark.local.dir", "/data/spark"))
        ],
        "shm_bytes": 12 * GIB,
        "open_files": 20000,
        "ram_bytes": 24 * GIB,
        "cgroup_bytes": None,
        "cores": 8,
        "threads": {"OMP_NUM_THREADS": None, "MKL_NUM_THREADS": None, "OPENBLAS_NUM_THREADS": None},
        "kill_user_processes": "no",
        "time": 1795450976.2,
        "nvidia": None,
        "imports": {"cuda_available": False, "gpus": 0, "cuda": None, "cudnn": None, "error": None},
        "storage": {"uri": "s3://runs", "error": None},
    }


def reached(error: str | None = None, *, ahead: float = 0.0, trip: float = 3e-4, rate: float = 1e8) -> dict:
    if error is not None:
        return {"error": error}
    return {
        "round_trip_seconds": trip,
        "clock_ahead_seconds": ahead,
        "clock_error_seconds": trip / 2,
        "bytes_per_second": rate,
        "error": None,
    }


def healthy(master: str = "spark://10.0.0.1:7077") -> dict[str, Any]:
    """Two executors of two slots each."""
    executors = []
    for number, host in enumerate(("node-1", "node-2")):
        tasks = []
        for slot in (2 * number, 2 * number + 1):
            peers = {str(other): reached() for other in range(4) if other != slot}
            tasks.append({"number": slot, "driver": reached(), "peers": peers})
        executors.append({**process(host, str(number)), "first": True, "tasks": tasks})
    return copy.deepcopy(
        {
            "session": {
                "kind": "classic",
                "master": master,
                "pyspark": "4.3.0",
                "spark": "4.3.0",
                "java": "17.0.15",
                "conf": {"spark.executor.memory": "4g", "spark.driver.memory": "2g"},
                "driver_host": "10.0.0.1",
                "driver_bind": "10.0.0.1",
                "caches": [],
            },
            "driver": process("edge", None),
            "executors": executors,
            "failures": [],
            "slots": 4,
            "job_error": None,
        }
    )


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
    (
        "broken library",
        second(imports={"error": "ImportError: libtorch_cpu.so: file too short"}),
        "imports", "wrong", TWO, "file too short", "install the packages there anew",
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
    ("full temp disk", disk(free_bytes=300 << 20), "disks", "wrong", TWO, "300 MiB free", "make room in "),
    ("temp disk nearly full", disk(free_bytes=3 * GIB), "disks", "warn", TWO, "3.0 GiB free", "make room in "),
    (
        "read-only local dir",
        disk(writable=False, error="[Errno 30] Read-only file system"),
        "disks", "wrong", TWO, "Read-only", "let the executors' user write to ",
    ),
    ("small shared memory", second(shm_bytes=64 << 20), "shared memory", "warn", TWO, "64 MiB", "--shm-size"),
    ("256 open files", second(open_files=256), "open files", "warn", TWO, "256", "ulimit -n 65536"),
    ("70 open files", second(open_files=70), "open files", "wrong", TWO, "70", "ulimit -n 65536"),
    ("a clock 90 s ahead", from_second(reached(ahead=90.0)), "clocks", "wrong", TWO, "90.0 s ahead of", "chrony"),
    ("a clock 5 s behind", from_second(reached(ahead=-5.0)), "clocks", "warn", TWO, "5.0 s behind", "chrony"),
    ("logind kills", second(kill_user_processes="yes"), "logind", "warn", TWO, "die when", "loginctl enable-linger"),
    ("too many threads", second(threads={"OMP_NUM_THREADS": "8"}), "threads", "warn", TWO, "OMP_NUM_THREADS=8", "unset "),
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

REAL: dict[str, str] = {
    "another Python": "test_hosts.py",
    "no Python": "test_hosts.py",
    "fatwood missing": "test_hosts.py",
    "torch missing": "test_hosts.py",
    "one package more": "test_hosts.py",
    "old pyarrow": "test_hosts.py",  # a record of the installation, not the package
    "CPU build beside a GPU": "test_hosts.py",  # a program that answers as nvidia-smi
    "broken library": "test_hosts.py",
    "full temp disk": "test_hosts.py",
    "read-only local dir": "test_hosts.py",
    "small shared memory": "test_hosts.py",
    "256 open files": "test_hosts.py",
    "too many threads": "test_hosts.py",
    "logind kills": "test_hosts.py",
    "a clock 90 s ahead": "test_hosts.py",  # of the Python there, not of the machine
    "a slow network": "test_hosts.py",
    "blocked port of the driver": "test_hosts.py",
    "executors kept apart": "test_hosts.py",
    "storage that one host cannot reach": "test_hosts.py",
    "speculation": "test_hosts.py",
    "loopback as the driver's address": "test_hosts.py",
    "no executor": "test_hosts.py",
    "unbounded allocation": "test_real_clusters.py",
}
"""Which of them are also made on a real cluster, and by which test. The others are altered facts alone."""
