"""The checks at the start of every fit: what surely fails is raised, the rest is a line of the log, once for each session."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fatwood.doctor import quick
from fatwood.doctor.quick import certain, likely, require_fit
from fatwood.errors import ClusterError

sys.path.insert(0, str(Path(__file__).parent))
from sick import healthy


def session(master: str = "spark://10.0.0.1:7077", **changed):
    """The facts of a healthy session as a fit sees them, and what is another."""
    facts = healthy(master)
    facts["executors"] = []
    facts["session"].update(python_exec="/opt/python/bin/python3", python_exec_version="3.11", executors=2)
    facts["session"].update(changed)
    return facts


def found(facts) -> tuple[list[str], list[str]]:
    return [one.title for one in certain(facts)], [one.title for one in likely(facts)]


OTHER = {"python_exec": "/usr/bin/python3.9", "python_exec_version": "3.9"}
GONE = {"python_exec": "/nowhere/python3", "python_exec_version": None}
CASES = [
    ("healthy", session(), [], []),
    ("healthy and local", session("local[4]", driver_host="127.0.0.1"), [], []),
    ("another Python here", session("local[4]", **OTHER), ["Python of the executors"], []),
    ("another Python there", session(**OTHER), [], ["Python of the executors"]),
    ("no such Python here", session("local[4]", **GONE), ["Python of the executors"], []),
    ("a Python that is only there", session(**GONE), [], []),
    (
        "another Python by its name alone",
        session("local[4]", python_exec="python3", python_exec_version="3.9"),
        [],
        ["Python of the executors"],
    ),
    ("PySpark of another major version", session(pyspark="3.5.9"), ["Spark"], ["Spark"]),
    ("PySpark of another minor version", session(pyspark="4.2.1"), [], ["Spark"]),
    ("loopback, nobody came", session(driver_host="127.0.0.1", executors=0), [], ["driver's address"]),
    ("loopback, and they came", session(driver_host="localhost"), [], []),
    ("all on loopback", session("spark://127.0.0.1:7077", driver_host="127.0.0.1", executors=0), [], []),
    ("loopback on YARN", session("yarn", driver_host="::1", executors=0), [], ["driver's address"]),
    ("speculation", session(conf={"spark.speculation": "true"}), [], ["speculation"]),
    ("what a fit says itself", session(conf={"spark.dynamicAllocation.enabled": "true"}), [], []),
    ("caches, of which a fit warns", session(caches=[{"name": "a", "level": "b", "harm": "c"}]), [], []),
]


@pytest.mark.parametrize(("facts", "wrong", "warned"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_is_raised_and_what_is_warned_of(facts, wrong, warned) -> None:
    assert found(facts) == (wrong, warned)


@pytest.fixture
def given(monkeypatch):
    """A session that has given facts."""

    def make(facts):
        monkeypatch.setattr(quick, "_facts", lambda _: facts)
        return SimpleNamespace(sparkContext=SimpleNamespace(applicationId="application-of-this-test"))

    monkeypatch.setattr(quick, "_told", set())
    return make


def test_a_finding_is_warned_of_once_in_a_session(given, caplog) -> None:
    spark = given(session(pyspark="4.2.1"))
    require_fit(spark)
    require_fit(spark)
    (line,) = caplog.messages
    assert line.startswith(
        "Spark at edge (driver): expected Spark 4.2.1, the version of the driver's PySpark, received 4.3.0"
    )
    assert "; hint: pip install pyspark==4.3.0" in line
    assert caplog.records[0].name == "fatwood.doctor"
    spark.sparkContext.applicationId = "another"
    require_fit(spark)
    assert len(caplog.messages) == 2


def test_what_surely_fails_is_raised(given) -> None:
    spark = given(session("local[4]", **OTHER))
    text = r"^Python of the executors at edge \(driver\): expected Python 3.11, the driver's, received /usr/bin/python3.9, which"
    for _ in range(2):
        with pytest.raises(ClusterError, match=text) as caught:
            require_fit(spark)
        assert caught.value.hint.startswith("set PYSPARK_PYTHON=/opt/python/bin/python3")


def test_an_examination_that_fails_is_no_failure(given, caplog) -> None:
    caplog.set_level(logging.INFO)
    require_fit(given({}))
    assert caplog.messages == []


def test_the_version_of_a_python_is_asked_for_once(monkeypatch) -> None:
    own = f"3.{sys.version_info[1]}"
    assert quick._version_of(sys.executable) == own
    assert quick._version_of("/nowhere/python3") is None
    copy = "/usr/bin/env"  # runs, and prints no version
    assert quick._version_of(copy) is None


@pytest.mark.spark
def test_a_healthy_session_passes_without_a_job(spark, caplog) -> None:
    require_fit(spark)
    tracker = spark.sparkContext.statusTracker()
    jobs = set(tracker.getJobIdsForGroup(None))
    caplog.clear()
    require_fit(spark)
    assert caplog.messages == []
    assert set(tracker.getJobIdsForGroup(None)) == jobs
