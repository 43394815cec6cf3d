"""The facts of a healthy cluster of three hosts, as they were recorded, and how to make them sick."""

from __future__ import annotations

import copy
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
