from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pyspark
import pytest

from fatwood.errors import ClusterError, OptionError
from fatwood.spark import session
from fatwood.spark.elasticity import Elasticity
from fatwood.spark.session import (
    allocates,
    available_slots,
    driver_address,
    find_java,
    require_java,
    require_slots,
    require_spark,
)

NEEDED = 17 if int(pyspark.__version__.split(".")[0]) >= 4 else 8


@pytest.mark.spark
def test_a_dataframe_leads_to_its_session(spark) -> None:
    assert require_spark(spark.range(3)) is spark


@pytest.mark.parametrize("thing", [None, [1, 2], "table"])
def test_no_dataframe(thing) -> None:
    with pytest.raises(OptionError, match=rf"received builtins.{type(thing).__name__}[\s\S]*createDataFrame"):
        require_spark(thing)


def test_spark_connect_needs_a_newer_pyspark(monkeypatch) -> None:
    remote = type("DataFrame", (), {"__module__": "pyspark.sql.connect.dataframe"})()
    monkeypatch.setattr(pyspark, "__version__", "3.5.9")
    with pytest.raises(ClusterError, match=r"PySpark: expected 4 or later[\s\S]*3.5.9[\s\S]*classic"):
        require_spark(remote)


@pytest.mark.spark
def test_streams_are_refused(spark) -> None:
    with pytest.raises(OptionError, match="received a stream"):
        require_spark(spark.readStream.format("rate").load())


@pytest.mark.spark
def test_a_stopped_session_is_refused(spark, monkeypatch) -> None:
    df = spark.range(3)
    monkeypatch.setattr(spark.sparkContext, "_jsc", None)
    with pytest.raises(ClusterError, match="stopped"):
        require_spark(df)


@pytest.mark.spark
def test_slots_of_a_local_session(spark) -> None:
    begun = time.monotonic()
    assert available_slots(spark) == 4
    require_slots(spark, 4, wait_seconds=30)
    assert time.monotonic() - begun < 10
    with pytest.raises(ClusterError) as caught:
        require_slots(spark, 5, wait_seconds=0.3)
    message = str(caught.value)
    assert "at most 4, the tasks that local[4] can run at once, received 5" in message
    assert "workers=4, or start the session with master local[5]" in message


def cluster(slots, conf=()):
    """As much of a session as counting slots needs: each question takes the next answer of `slots`."""
    answers = iter(slots)
    manager = SimpleNamespace(defaultResourceProfile=lambda: "default")
    java = SimpleNamespace(
        resourceProfileManager=lambda: manager, maxNumConcurrentTasks=lambda _: next(answers)
    )
    context = SimpleNamespace(
        _jsc=SimpleNamespace(sc=lambda: java),
        master="spark://driver:7077",
        getConf=lambda: SimpleNamespace(getAll=lambda: list(conf)),
    )
    return SimpleNamespace(sparkContext=context)


def test_executors_that_register_late() -> None:
    assert available_slots(cluster([0, 2, 4, 9]), wanted=3, wait_seconds=30) == 4
    assert available_slots(cluster([2, 9])) == 2
    with pytest.raises(
        ClusterError, match=r"at most 0[\s\S]*spark://driver:7077[\s\S]*received 2[\s\S]*--executor-cores"
    ):
        require_slots(cluster([0] * 9), 2, wait_seconds=0.3)


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        ({}, 1),
        ({"spark.dynamicAllocation.maxExecutors": "3", "spark.executor.cores": "4"}, 12),
        (
            {
                "spark.dynamicAllocation.maxExecutors": "3",
                "spark.executor.cores": "5",
                "spark.task.cpus": "2",
            },
            6,
        ),
        ({"spark.dynamicAllocation.maxExecutors": "3", "spark.master": "yarn"}, 3),
        ({"spark.dynamicAllocation.maxExecutors": "3", "spark.master": "spark://host:7077"}, sys.maxsize),
        ({"spark.executor.cores": "4"}, sys.maxsize),
    ],
)
def test_dynamic_allocation(conf, expected) -> None:
    enabled = {"spark.dynamicAllocation.enabled": "true"} if conf else {}
    assert available_slots(cluster([1], {**conf, **enabled}.items())) == expected
    assert allocates(cluster([], {**conf, **enabled}.items())) == bool(conf)


def test_executors_that_come_when_they_are_asked_for_have_more_time() -> None:
    assert Elasticity().with_allocation() == Elasticity(start_timeout_seconds=300.0)
    assert Elasticity(start_timeout_seconds=500.0).with_allocation().start_timeout_seconds == 500.0
    assert Elasticity(min_workers=1).with_allocation() == Elasticity(min_workers=1)


@pytest.mark.spark
def test_driver_address_of_the_session(spark) -> None:
    assert driver_address(spark) == ("127.0.0.1", "127.0.0.1")


def test_driver_address_in_a_container() -> None:
    apart = {"spark.driver.bindAddress": "[::1]", "spark.driver.host": "driver.svc"}
    assert driver_address(cluster([], apart.items())) == ("::1", "driver.svc")
    assert driver_address(cluster([], [("spark.driver.host", "node7")])) == ("node7", "node7")


@pytest.fixture
def java_home(tmp_path, monkeypatch):
    """Puts a java that prints the given version, or runs the given script, into JAVA_HOME."""

    def install(script: str) -> str:
        java = tmp_path / "bin" / "java"
        java.parent.mkdir(exist_ok=True)
        java.write_text(f"#!/bin/sh\n{script}\n")
        java.chmod(0o755)
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        return str(java)

    return install


@pytest.mark.parametrize(
    "version", ["17", "17.0.15", "21-ea", "25.0.1"] + (["1.8.0_392", "11.0.2"] if NEEDED == 8 else [])
)
def test_java_that_will_do(java_home, version) -> None:
    java = java_home(f"echo 'openjdk version \"{version}\" 2025-04-15' >&2")
    assert require_java() == find_java() == java


@pytest.mark.parametrize(("version", "major"), [("1.7.0_80", 7)] + ([("11.0.2", 11)] if NEEDED == 17 else []))
def test_java_that_is_too_old(java_home, version, major) -> None:
    java = java_home(f"echo 'java version \"{version}\"' >&2")
    with pytest.raises(
        ClusterError, match=rf"version {NEEDED} or later[\s\S]*received {major} from {java}[\s\S]*Java 17"
    ):
        require_java()


def test_java_that_does_not_run(java_home, monkeypatch) -> None:
    java_home("echo Unable to locate a Java Runtime. >&2; exit 1")
    with pytest.raises(ClusterError, match="Unable to locate"):
        require_java()
    java_home("exec sleep 60")
    monkeypatch.setattr(session, "_JAVA_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(ClusterError, match="timed out"):
        require_java()


def test_no_java(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert find_java() is None
    with pytest.raises(ClusterError, match=r"no bin/java in JAVA_HOME[\s\S]*openjdk-17"):
        require_java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="no java on PATH"):
        require_java()
