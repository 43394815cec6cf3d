"""The tests' own session runs this daemon; clusters of tests run Spark's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.spark


def test_workers_share_what_the_daemon_imported(spark) -> None:
    def look(_) -> tuple[str, int]:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_text()
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return parent, kb["Shared_Dirty"]

    ((parent, shared_kb),) = spark.sparkContext.parallelize([0], 1).map(look).collect()
    assert "fatwood.spark.daemon" in parent
    assert shared_kb > 100_000


def test_nothing_runs_before_the_fork_that_a_worker_would_miss() -> None:
    """Only threads which their libraries renew: OpenBLAS's, at most one per core, and jemalloc's."""
    script = """
import importlib, os
from fatwood.spark import daemon
before = set(os.listdir("/proc/self/task"))
import numpy
allowed = len(os.listdir("/proc/self/task"))
for name in daemon._NEEDED:
    importlib.import_module(name)
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
others = [name for name in names if name != "jemalloc_bg_thd"]
assert len(others) == allowed, names
import torch
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
