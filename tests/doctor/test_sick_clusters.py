"""Sick clusters, each one change away from a healthy one: what is found, on which host, and what is advised."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fatwood.doctor import CHECKS, Checkup, examine

sys.path.insert(0, str(Path(__file__).parent))
from sick import ONE, REAL, SICK, TWO, healthy


def test_nothing_is_found_where_all_is_well() -> None:
    findings = examine(healthy())
    assert [finding for finding in findings if finding.status != "ok"] == []
    assert [finding.title for finding in findings] == [check.title for check in CHECKS]
    assert Checkup(findings=findings, facts=healthy()).healthy


def test_the_table_has_every_check_and_twenty_five_clusters() -> None:
    assert len({name for name, *_ in SICK}) == len(SICK) >= 25
    assert {check for _, _, check, *_ in SICK} == {check.title for check in CHECKS}
    assert REAL.keys() <= {name for name, *_ in SICK}
    assert {Path(__file__).with_name(name).is_file() for name in REAL.values()} == {True}


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
