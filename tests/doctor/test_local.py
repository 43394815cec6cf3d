"""A healthy session on this machine: nothing is wrong, nothing is left behind, and the quick checks are quick."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from fatwood.doctor import CHECKS, doctor, quick_findings
from fatwood.doctor.examination import setting
from fatwood.errors import OptionError

pytestmark = [pytest.mark.spark, pytest.mark.timeout(240)]


def test_nothing_is_wrong_with_a_healthy_session(spark, tmp_path) -> None:
    before = set(os.listdir(spark.sparkContext._temp_dir))
    found = doctor(spark, storage_uri=str(tmp_path))
    assert found.healthy, str(found)
    assert [one.title for one in found.findings if one.status == "ok"][:1] == ["Python starts"]
    assert {one.title for one in found.findings} == {check.title for check in CHECKS}
    (executor,) = found.facts["executors"]
    assert found.facts["slots"] == len(executor["tasks"]) == 4
    assert sorted(task["number"] for task in executor["tasks"]) == [0, 1, 2, 3]
    assert all(len(task["peers"]) == 3 for task in executor["tasks"])
    assert all(call["error"] is None for task in executor["tasks"] for call in task["peers"].values())
    assert executor["distributions"] == found.facts["driver"]["distributions"]
    assert "secret" not in str(found.to_json()).lower()
    assert list(tmp_path.iterdir()) == []
    assert set(os.listdir(spark.sparkContext._temp_dir)) == before
    assert [t.name for t in threading.enumerate() if t.name.startswith("fatwood")] == []
    assert list(spark.sparkContext.statusTracker().getActiveJobsIds()) == []


def test_the_quick_checks_take_less_than_a_second_and_no_job(spark) -> None:
    quick_findings(spark)
    tracker = spark.sparkContext.statusTracker()
    jobs = set(tracker.getJobIdsForGroup(None))
    start = time.perf_counter()
    found = quick_findings(spark)
    assert time.perf_counter() - start < 1.0
    assert [one for one in found if one.status == "wrong"] == []
    assert set(tracker.getJobIdsForGroup(None)) == jobs


def test_the_quick_checks_see_a_harmful_cache(spark) -> None:
    rows = spark.sparkContext.parallelize(range(10), 2).cache()
    rows.count()
    try:
        (found,) = (one for one in quick_findings(spark) if one.title == "caches")
    finally:
        rows.unpersist(blocking=True)
    assert found.status == "warn"
    assert "MEMORY_ONLY" in found.received
    assert "persist(...)" in found.hint


def test_options_that_make_no_sense(spark) -> None:
    with pytest.raises(OptionError, match="timeout_seconds: expected a positive number, received 0"):
        doctor(spark, timeout_seconds=0)
    with pytest.raises(OptionError, match=r"expected NAME=VALUE, received 'spark\.executor\.memory'"):
        setting("spark.executor.memory")
    assert setting("spark.executor.extraJavaOptions=-Dx=y") == ("spark.executor.extraJavaOptions", "-Dx=y")


@pytest.mark.slow
def test_the_command_prints_a_table(tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYSPARK_PYTHON"}
    command = [sys.executable, "-m", "fatwood", "doctor", "--master", "local[1]"]
    command += ["--conf", "spark.speculation=true", "--conf", "spark.driver.host=127.0.0.1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, env=environment, cwd=tmp_path
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines[0].split() == ["status", "check", "where", "found", "expected"]
    assert any(line.startswith("warn    speculation") for line in lines)
    assert "  hint: --conf spark.speculation=false" in lines
    assert lines[-1].startswith("0 wrong, ")
