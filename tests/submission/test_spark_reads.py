"""Spark itself reads the reviewed commands: its own parser, up to where it would speak to a cluster, and its own list of settings."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.txt"))
FREE = ("spark.executorEnv.", "spark.yarn.appMasterEnv.", "spark.kubernetes.driverEnv.")
FREE += (
    "spark.kubernetes.executor.node.selector.",
    "spark.executor.resource.gpu.",
    "spark.task.resource.gpu.",
)
"""Settings whose names the user completes; Spark lists no such name."""


def words_of(path: Path, folder: Path) -> list[str]:
    """The arguments behind ``spark-submit``, with files that are there in place of those that are not."""
    archive = folder / "train.tar.gz"
    archive.touch()
    text = path.read_text(encoding="utf-8").replace("hdfs:///envs/train.tar.gz", str(archive))
    (folder / "train.py").touch()
    words = shlex.split(text.replace("/home/me", str(folder)).replace(" \\\n", " "), comments=True)
    return words[words.index("spark-submit") + 1 :]


def settings(words: list[str]) -> dict[str, str]:
    following = (words[i + 1] for i, word in enumerate(words) if word == "--conf")
    return dict(setting.split("=", 1) for setting in following)


def prepared(spark: Any, words: list[str]) -> tuple[list[str], dict[str, str], str]:
    """The arguments, settings and class that ``spark-submit`` would run next."""
    jvm = spark._jvm
    arguments = jvm.org.apache.spark.deploy.SparkSubmitArguments(
        jvm.PythonUtils.toSeq(words), jvm.PythonUtils.toScalaMap({"HADOOP_CONF_DIR": "/nowhere"})
    )
    nothing = jvm.scala.Option.empty()
    found = jvm.org.apache.spark.deploy.SparkSubmit().prepareSubmitEnvironment(arguments, nothing)
    args = [found._1().apply(i) for i in range(found._1().length())]
    conf = {pair._1(): pair._2() for pair in found._3().getAll()}
    return args, conf, str(found._4())


RUN_NEXT = {
    "local": "org.apache.spark.deploy.PythonRunner",
    "standalone": "org.apache.spark.deploy.PythonRunner",
    "yarn-client": "org.apache.spark.deploy.PythonRunner",
    "yarn-cluster": "org.apache.spark.deploy.yarn.YarnClusterApplication",
    "k8s": "org.apache.spark.deploy.k8s.submit.KubernetesClientApplication",
}


@pytest.mark.spark
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_spark_submit_reads_every_setting_and_chooses_the_cluster(
    spark: Any, path: Path, tmp_path: Path
) -> None:
    words = words_of(path, tmp_path)
    args, conf, main = prepared(spark, words)
    assert main == RUN_NEXT[path.stem.removesuffix("-gpu")]
    assert args[-3:] == ["--epochs", "3", "a b"] or args[-6:] == [
        "--arg",
        "--epochs",
        "--arg",
        "3",
        "--arg",
        "a b",
    ]
    assert conf["spark.master"] in (words[1], words[1].replace("k8s://", "k8s://https://", 1))
    for key, value in settings(words).items():
        seen = conf[key]
        assert seen in (value, f"file:{value}", f"file://{value}"), key
    assert ("spark.yarn.dist.archives" in conf) == path.stem.startswith("yarn")
    assert "spark.archives" not in conf


@pytest.mark.spark
def test_spark_knows_every_setting_by_name(spark: Any, tmp_path: Path) -> None:
    jvm = spark._jvm
    for name in ("yarn.config.package$", "k8s.Config$"):
        jvm.java.lang.Class.forName(f"org.apache.spark.deploy.{name}")  # lists its settings when it is loaded
    find = jvm.org.apache.spark.internal.config.ConfigEntry.findEntry
    names = {name for path in GOLDEN for name in settings(words_of(path, tmp_path))}
    listed = {name for name in names if not name.startswith(FREE)}
    assert len(listed) > 25
    assert [name for name in sorted(listed) if find(name) is None] == []
    assert find("spark.executor.memoryoverhead") is None  # the list is one that can say no


def submitted(*options: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``fatwood submit`` in a process of its own, ended if it takes too long."""
    return subprocess.run(
        [sys.executable, "-m", "fatwood", "submit", *options],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", **environment},
        timeout=200,
        check=False,
    )


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_yarn_is_spoken_to_and_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    hadoop = {
        "yarn.resourcemanager.address": "127.0.0.1:1",
        "yarn.resourcemanager.connect.max-wait.ms": "1000",
        "yarn.resourcemanager.connect.retry-interval.ms": "500",
        "ipc.client.connect.max.retries": "0",
        "ipc.client.connect.retry.interval": "100",
    }
    rows = "".join(f"<property><name>{k}</name><value>{v}</value></property>" for k, v in hadoop.items())
    for name in ("core-site.xml", "yarn-site.xml"):
        (tmp_path / name).write_text(f"<configuration>{rows}</configuration>")
    done = submitted(
        *(
            "--master",
            "yarn",
            "--deploy-mode",
            "cluster",
            "--conf",
            "spark.hadoop.ipc.client.connect.max.retries=0",
        ),
        "train.py",
        cwd=tmp_path,
        HADOOP_CONF_DIR=str(tmp_path),
    )
    assert done.returncode == 1
    assert re.search(r"127\.0\.0\.1:1\b.*failed on connection|Call From .* to .*:1 failed", done.stderr), (
        done.stderr[-3000:]
    )


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_kubernetes_is_spoken_to_and_does_not_answer(tmp_path: Path) -> None:
    done = submitted(
        *("--master", "k8s://https://127.0.0.1:1", "--image", "registry.example/fatwood:1"),
        "local:///opt/job/train.py",
        cwd=tmp_path,
        KUBERNETES_REQUEST_RETRY_BACKOFFLIMIT="0",
    )
    assert done.returncode == 1
    assert "KubernetesClientException" in done.stderr, done.stderr[-3000:]
    assert "127.0.0.1" in done.stderr
