"""Every option changes the command, and what cannot work is refused before anything runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fatwood.errors import OptionError
from fatwood.submission import Command, Kind, Submission, cluster_of, command_of, find_spark_submit, pairs
from fatwood.submission.settings import own_discovery_script

K8S = {"master": "k8s://https://k8s.example:6443", "script": "local:///job/train.py"}
IMAGE = {**K8S, "image": "registry.example/fatwood:1"}
STANDALONE = {"master": "spark://head:7077"}
YARN = {"master": "yarn"}


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "train.py"
    path.touch()
    (tmp_path / "env.tar.gz").touch()
    return str(path)


def command(script: str, /, **options: Any) -> Command:
    return command_of(Submission(**{"script": script, **options}))


def conf(script: str, /, **options: Any) -> dict[str, str]:
    return {setting.key: setting.value for setting in command(script, **options).settings}


CHANGES: dict[str, tuple[dict[str, Any], Any, str, str]] = {
    # option: where it works, a value, the setting that changes, to what
    "workers": (STANDALONE, 6, "spark.cores.max", "6"),
    "cores_per_worker": (YARN, 3, "spark.task.cpus", "3"),
    "workers_per_executor": (YARN, 2, "spark.executor.cores", "2"),
    "parameters": (YARN, 1_000_000_000, "spark.executor.memoryOverhead", f"{1024 + 53406 + 384}m"),
    "memory_per_worker_mib": (YARN, 5000, "spark.executor.memoryOverhead", "5384m"),
    "executor_memory_total_mib": (YARN, 3502, "spark.executor.memory", "1025m"),
    "archive": (STANDALONE, "env.tgz", "spark.archives", "env.tgz#environment"),
    "python": (YARN, "/opt/py", "spark.pyspark.python", "/opt/py"),
    "driver_python": (YARN, "/opt/py", "spark.pyspark.driver.python", "/opt/py"),
    "gpus_per_worker": (STANDALONE, 2.0, "spark.executor.resource.gpu.amount", "2"),
    "node_label": (YARN, "gpu", "spark.yarn.executor.nodeLabelExpression", "gpu"),
    "namespace": (IMAGE, "ns", "spark.kubernetes.namespace", "ns"),
    "image": (IMAGE, "other:2", "spark.kubernetes.container.image", "other:2"),
    "environment": (YARN, {"A": "1"}, "spark.executorEnv.A", "1"),
    "conf": (YARN, {"spark.task.cpus": "9"}, "spark.task.cpus", "9"),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_an_option_changes_its_setting(name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(script).parent)
    Path("env.tgz").touch()
    where, value, key, expected = CHANGES[name]
    assert conf(script, **where).get(key) != expected
    assert conf(script, **{**where, name: value})[key] == expected


def test_the_other_options_have_a_test_of_their_own() -> None:
    others = {"script", "arguments", "master", "deploy_mode", "gpu_discovery_script"}
    assert {field.name for field in fields(Submission)} == CHANGES.keys() | others


def test_the_discovery_script_is_the_given_one_or_one_that_is_there_or_is_sent(script: str) -> None:
    key, sent = "spark.executor.resource.gpu.discoveryScript", "spark.yarn.dist.files"
    gpu = {"gpus_per_worker": 1.0}
    assert conf(script, **YARN, **gpu)[key] == "./gpus.sh"
    assert Path(conf(script, **YARN, **gpu)[sent]).is_file()
    given = conf(script, **YARN, **gpu, gpu_discovery_script="/opt/gpus")
    assert given[key] == "/opt/gpus"
    assert sent not in given
    assert conf(script, **IMAGE, **gpu)[key].startswith("/opt/spark/")
    assert key not in conf(script, **STANDALONE, **gpu)


@pytest.mark.parametrize(
    ("gpus", "per_executor", "amount"),
    [
        (0.5, 4, 2),
        (0.25, 4, 1),
        (0.3, 4, 2),
        (0.1, 10, 1),
        (0.1, 11, 2),
        (1.0, 3, 3),
        (2.0, 3, 6),
        (1 / 3, 3, 1),
    ],
)
def test_an_executor_has_the_gpus_of_its_workers(
    script: str, gpus: float, per_executor: int, amount: int
) -> None:
    options = {"workers": per_executor, "workers_per_executor": per_executor, "gpus_per_worker": gpus}
    assert Submission(script=script, **STANDALONE, **options).gpus_per_executor == amount


def test_variables_reach_driver_and_executors_in_every_kind_of_cluster(script: str) -> None:
    driver = {
        "yarn": "spark.yarn.appMasterEnv.A",
        "k8s": "spark.kubernetes.driverEnv.A",
    }
    for where in ({}, STANDALONE, YARN, {**YARN, "deploy_mode": "cluster"}, IMAGE):
        made = command(script, **where, environment={"A": "x y"})
        settings = {setting.key: setting.value for setting in made.settings}
        assert settings["spark.executorEnv.A"] == "x y"
        kind = Submission(**{"script": script, **where}).kind
        if kind.driver_in_cluster:
            assert settings[driver[kind.value.split()[0]]] == "x y"
            assert made.environment == {}
        else:
            assert made.environment == {"A": "x y"}
            assert not set(driver.values()) & settings.keys()


def test_a_thread_count_of_the_user_wins(script: str) -> None:
    assert conf(script, environment={"OMP_NUM_THREADS": "7"})["spark.executorEnv.OMP_NUM_THREADS"] == "7"


def test_an_archive_gives_its_python_to_the_executors_and_to_a_driver_in_the_cluster(script: str) -> None:
    archive = {"archive": "hdfs:///env.tar.gz"}
    for mode in ("client", "cluster"):
        settings = conf(script, **YARN, **archive, deploy_mode=mode, driver_python="/here/python")
        assert settings["spark.yarn.dist.archives"] == "hdfs:///env.tar.gz#environment"
        assert "spark.archives" not in settings
        assert settings["spark.pyspark.python"] == "./environment/bin/python"
        assert settings.get("spark.pyspark.driver.python") == ("/here/python" if mode == "client" else None)


def test_a_setting_of_the_user_wins_and_the_note_says_over_what(script: str) -> None:
    made = command(script, **YARN, conf={"spark.locality.wait": "3s", "spark.yarn.queue": "q"})
    notes = {setting.key: setting.why for setting in made.settings}
    assert notes["spark.locality.wait"].startswith("given with --conf; replaces 0s (")
    assert notes["spark.yarn.queue"] == "given with --conf"
    assert made.arguments.count("spark.locality.wait=3s") == 1
    assert "spark.locality.wait=0s" not in made.arguments


@pytest.mark.parametrize(
    "where", [{"master": "spark://head:7077"}, YARN, IMAGE], ids=["standalone", "yarn", "k8s"]
)
def test_with_dynamic_allocation_the_session_waits_for_no_executors(
    script: str, where: dict[str, Any]
) -> None:
    fixed = conf(script, **where, workers=6, workers_per_executor=2)
    dynamic = conf(
        script, **where, workers=6, workers_per_executor=2, conf={"spark.dynamicAllocation.enabled": "true"}
    )
    waits = {
        "spark.scheduler.minRegisteredResourcesRatio",
        "spark.scheduler.maxRegisteredResourcesWaitingTime",
    }
    assert fixed.keys() - dynamic.keys() == waits
    assert {key: dynamic[key] for key in dynamic.keys() - fixed.keys()} == {
        "spark.dynamicAllocation.maxExecutors": "3",
        "spark.dynamicAllocation.shuffleTracking.enabled": "true",
    }


def test_local_mode_has_a_slot_for_every_core_of_every_worker(script: str) -> None:
    assert "local[6]" in command(script, workers=3, cores_per_worker=2).arguments
    assert "local[8]" in command(script, workers=3, cores_per_worker=2, master="local[8]").arguments
    assert "local[*]" in command(script, master="local[*]").arguments


@pytest.mark.parametrize(
    ("master", "mode", "kind"),
    [
        ("local", None, Kind.LOCAL),
        ("local[*]", "client", Kind.LOCAL),
        ("spark://a:7077", None, Kind.STANDALONE),
        ("spark://a:7077,b:7077", None, Kind.STANDALONE),
        ("yarn", None, Kind.YARN_CLIENT),
        ("yarn", "cluster", Kind.YARN_CLUSTER),
        ("k8s://https://a:6443", None, Kind.K8S_CLUSTER),
        ("k8s://a", "client", Kind.K8S_CLIENT),
    ],
)
def test_a_master_means_a_kind_of_cluster(master: str, mode: str | None, kind: Kind) -> None:
    assert cluster_of(master, mode) is kind


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"master": "mesos://a:5050"}, "--master: expected local"),
    ({"master": "spark://a"}, "--master: expected local"),
    ({"master": "local[0"}, "--master: expected local"),
    ({"deploy_mode": "claster", **YARN}, "--deploy-mode: expected client or cluster"),
    ({"deploy_mode": "cluster", **STANDALONE}, "--deploy-mode: expected client with --master spark"),
    ({"deploy_mode": "cluster"}, "--deploy-mode: expected client with --master local"),
    ({"script": "missing.py"}, "script: expected a file"),
    ({"script": "hdfs:///train.jar", **YARN}, "script: expected a Python script"),
    ({"workers": 0}, "--workers: expected at least 1"),
    ({"cores_per_worker": 0}, "--cores-per-worker: expected at least 1"),
    ({"parameters": -1}, "--parameters: expected at least 1"),
    ({"parameters": 0}, "--parameters: expected at least 1"),
    ({"workers_per_executor": 0, **YARN}, "--workers-per-executor: expected at least 1"),
    ({"workers": 3, "workers_per_executor": 2, **YARN}, "--workers: expected a multiple of"),
    ({"master": "local[3]", "workers": 2, "cores_per_worker": 2}, r"expected at least local\[4\]"),
    ({"workers_per_executor": 2}, "--workers-per-executor: it has no effect"),
    ({"memory_per_worker_mib": 2048}, "--memory-per-worker: it has no effect"),
    ({"executor_memory_total_mib": 9000}, "--executor-memory-total: it has no effect"),
    ({"archive": "hdfs:///e.tar.gz"}, "--archive: it has no effect"),
    ({"image": "i", **YARN}, "--image: it has no effect"),
    ({"namespace": "n", **STANDALONE}, "--namespace: it has no effect"),
    ({"node_label": "n", **STANDALONE}, "--node-label: it has no effect"),
    ({"gpus_per_worker": 1, "gpu_discovery_script": "/s", **STANDALONE}, "--gpu-discovery-script: it has no"),
    ({"gpu_discovery_script": "/s", **YARN}, "--gpu-discovery-script: expected --gpus-per-worker"),
    ({"gpus_per_worker": 0.0, **YARN}, "--gpus-per-worker: expected a whole number"),
    ({"gpus_per_worker": 0.7, **YARN}, "--gpus-per-worker: expected a whole number"),
    ({"gpus_per_worker": 1.5, **YARN}, "--gpus-per-worker: expected a whole number"),
    ({"gpus_per_worker": float("nan"), **YARN}, "--gpus-per-worker: expected a whole number"),
    ({"gpus_per_worker": float("inf"), **YARN}, "--gpus-per-worker: expected a whole number"),
    ({"memory_per_worker_mib": 100, **YARN}, "--memory-per-worker: expected at least 512 MiB"),
    ({"executor_memory_total_mib": 2048, **YARN}, "--executor-memory-total: expected at least 3501 MiB"),
    ({"archive": "missing.tar.gz", **YARN}, "--archive: expected a file"),
    ({"archive": "hdfs:///e.zip", **YARN}, r"--archive: expected a \.tar\.gz"),
    ({"archive": "hdfs:///e.tar.gz#other", **YARN}, r"--archive: expected a \.tar\.gz"),
    ({"archive": "hdfs:///e.tar.gz", "python": "/p", **YARN}, "--python: expected none beside --archive"),
    (K8S, "--image: expected a container image"),
    ({**IMAGE, "node_label": "gpu"}, "--node-label: expected name=value"),
    ({"master": "k8s://a", "image": "i"}, "script: expected one that the cluster's containers can read"),
    ({"environment": {"A-B": "1"}}, "--env: expected NAME=VALUE with a name"),
    ({"conf": {"spark.master": "yarn"}}, "--conf: expected no spark.master"),
    ({"conf": {"spark.submit.deployMode": "client"}}, "--conf: expected no spark.submit.deployMode"),
    ({"conf": {"fs.s3a.endpoint": "x"}}, "--conf: expected a setting that begins with spark"),
]


@pytest.mark.parametrize(("options", "text"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_what_cannot_work_is_refused(script: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        Submission(**{"script": script, **options})


def test_kubernetes_takes_files_of_this_machine_when_it_is_told_where_to_copy_them(script: str) -> None:
    upload = {"spark.kubernetes.file.upload.path": "s3a://bucket/uploads"}
    assert script in command(script, master="k8s://a", image="i", conf=upload).arguments


def test_yarn_wants_its_configuration(script: str, tmp_path: Path) -> None:
    submission = Submission(script=script, **YARN)
    for environ in ({}, {"HADOOP_CONF_DIR": ""}, {"YARN_CONF_DIR": str(tmp_path / "missing")}):
        with pytest.raises(OptionError, match="expected HADOOP_CONF_DIR or YARN_CONF_DIR to name a folder"):
            submission.require_cluster_files(environ)
    submission.require_cluster_files({"YARN_CONF_DIR": str(tmp_path)})
    Submission(script=script).require_cluster_files({})


def test_names_and_values_are_read_up_to_the_first_equals_sign() -> None:
    assert pairs("--env", ["A=b=c", "D=", "A=2"]) == {"A": "2", "D": ""}
    with pytest.raises(OptionError, match="--env: expected NAME=VALUE, received 'A'"):
        pairs("--env", ["A"])


def test_spark_submit_is_that_of_spark_home_or_of_pyspark(tmp_path: Path) -> None:
    pytest.importorskip("pyspark")
    program, variables = find_spark_submit({"PATH": ""})
    assert Path(program).is_file()
    assert Path(variables["SPARK_HOME"]) == Path(program).parents[1]
    assert find_spark_submit(variables) == (program, {})
    with pytest.raises(OptionError, match="SPARK_HOME: expected a folder with bin/spark-submit"):
        find_spark_submit({"SPARK_HOME": str(tmp_path)})


def test_the_discovery_script_prints_what_spark_reads(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '0\\n3\\n'\n")
    tool.chmod(0o755)
    found = subprocess.run(
        ["bash", str(own_discovery_script())],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert json.loads(found.stdout) == {"name": "gpu", "addresses": ["0", "3"]}
    tool.write_text("#!/bin/sh\nexit 9\n")
    failed = subprocess.run(
        ["bash", str(own_discovery_script())],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert failed.returncode != 0
    assert failed.stdout == b""


def test_the_command_of_the_shell_prints_the_text_and_runs_nothing(script: str) -> None:
    pytest.importorskip("pyspark")
    options = ["--dry-run", "--workers", "4", "--workers-per-executor", "2", "--memory-per-worker", "3g"]
    options += ["--executor-memory-total", "16g", "--master", "spark://head:7077", "--env", "A=1"]
    options += ["--conf", "spark.ui.enabled=false"]
    done = subprocess.run(
        [sys.executable, "-m", "fatwood", "submit", *options, script, "--workers", "9", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    submission = Submission(
        script=script,
        arguments=("--workers", "9", "--help"),
        workers=4,
        workers_per_executor=2,
        memory_per_worker_mib=3072,
        executor_memory_total_mib=16384,
        master="spark://head:7077",
        driver_python=sys.executable,
        environment={"A": "1"},
        conf={"spark.ui.enabled": "false"},
    )
    assert done.stdout == command_of(submission, *find_spark_submit(os.environ)).text()


def test_a_mistake_ends_with_1_a_hint_and_nothing_on_stdout(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fatwood", "submit", "missing.py"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: script: expected a file, received 'missing.py', which is none\n"
