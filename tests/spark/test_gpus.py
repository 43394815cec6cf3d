"""GPUs of Spark: addresses that real executors get by a discovery script, and what the driver refuses before a job."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pyspark
import pytest
import torch
from torch import nn

from fatwood import SparkModel
from fatwood.errors import OptionError
from fatwood.spark.gpus import device_order
from fatwood.train.device import DeviceOrder

pytestmark = pytest.mark.spark

DRIVER = Path(__file__).with_name("gpus.py")
FOUND = """#!/bin/sh
echo '{"name": "gpu", "addresses": ["5", "7"]}'
"""
without_cuda = pytest.mark.skipif(torch.version.cuda is not None, reason="a build of PyTorch for CUDA")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tasks_of_a_cluster_compute_on_the_gpus_that_spark_gave_them(tmp_path: Path) -> None:
    script = tmp_path / "gpus.sh"
    script.write_text(FOUND)
    script.chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))
    }
    environment |= {
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": str(tmp_path),
        "PYSPARK_PYTHON": sys.executable,
    }
    done = subprocess.run(
        [sys.executable, DRIVER, script],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # a half each: two tasks share a GPU
    assert [task["addresses"] for task in found["tasks"]] == [["5"], ["5"]]
    assert {task["number"] for task in found["tasks"]} == {0, 1}
    assert {task["device"] for task in found["tasks"]} == {"cuda:5"}
    assert {task["among visible"] for task in found["tasks"]} == {"cuda:1"}
    assert found["auto"]["rows"] == 40
    if torch.version.cuda is None:
        assert found["auto"]["devices"] == [None, None]
        failures = found["failures"]
        for name in ("fit", "evaluate"):
            assert failures[name].startswith(
                "OptionError: device: expected a GPU that PyTorch can use on host"
            )
            assert "to which Spark gave GPU 5, received none: PyTorch" in failures[name]
            assert "install a build of PyTorch for CUDA there" in failures[name]
        assert "to which Spark gave GPU 5, 7," in failures["profile"]  # the profile asks for two
        assert "received a profile of tasks with ['cpus']" in failures["profile without"]
        assert "workers: expected a number beside profile=" in failures["profile alone"]


@without_cuda
def test_a_gpu_in_local_mode_without_one_is_an_error_before_any_job(spark) -> None:
    df = spark.createDataFrame([([1.0, 2.0], 0)], "x array<float>, y int")
    model = SparkModel(nn.Linear(2, 2), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD)
    columns = {"features": "x", "label": "y"}
    jobs = spark.sparkContext.statusTracker().getJobIdsForGroup()
    for call in (
        lambda: model.fit(df, **columns, device="cuda"),
        lambda: model.evaluate(df, **columns, device="cuda"),
        lambda: model.mean_score(df, **columns, device="cuda"),
        lambda: model.predict(df, features="x", key="y", device="cuda"),
        lambda: model.score(df, **columns, key="y", device="cuda"),
        lambda: model.udf(device="cuda"),
    ):
        with pytest.raises(
            OptionError, match=r"the tasks of local\[4\], received PyTorch .* built for the CPU"
        ):
            call()
    with pytest.raises(OptionError, match="expected 'auto', 'cpu' or 'cuda', received 'gpu'"):
        model.predict(df, features="x", key="y", device="gpu")
    with pytest.raises(OptionError, match="gc_every_seconds"):
        model.fit(df, **columns, gc_every_seconds=0)
    assert spark.sparkContext.statusTracker().getJobIdsForGroup() == jobs


def test_profiles_that_local_mode_cannot_give(spark) -> None:
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    df = spark.createDataFrame([([1.0, 2.0], 0)], "x array<float>, y int")
    model = SparkModel(nn.Linear(2, 2), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD)
    columns = {"features": "x", "label": "y", "workers": 1}
    with pytest.raises(OptionError, match=r"expected a pyspark\.resource\.ResourceProfile, received 3"):
        model.fit(df, **columns, profile=3)
    profile = ResourceProfileBuilder().require(TaskResourceRequests().cpus(1).resource("gpu", 1)).build
    with pytest.raises(OptionError, match=r"resources of its own|expected PySpark 4"):
        model.fit(df, **columns, profile=profile)


def test_devices_and_collections_of_garbage_that_python_workers_have(spark) -> None:
    def enabled(batches):
        import gc

        import pyarrow as pa

        for _ in batches:
            pass
        yield pa.RecordBatch.from_pydict({"enabled": [gc.isenabled()]})

    df = spark.createDataFrame([([float(i % 3), 1.0], i % 2) for i in range(24)], "x array<float>, y int")

    def loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if gc.isenabled():
            raise ValueError
        return nn.functional.cross_entropy(output, label)

    def factory(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    model = SparkModel(nn.Linear(2, 2), loss=loss, optimizer=factory)
    fit = model.fit(df, features="x", label="y", workers=2, device="cpu", progress=False)
    assert fit.stats.rows_trained == 24
    with pytest.raises(ValueError, match="raised by the loss"):
        model.fit(df, features="x", label="y", workers=2, gc_every_seconds=None, progress=False)
    after = spark.range(0, 8, 1, 4).mapInArrow(enabled, "enabled boolean").collect()
    assert all(row.enabled for row in after)  # the processes are used again


def test_executors_with_gpus_and_tasks_that_ask_for_none(spark) -> None:
    df = spark.createDataFrame([([1.0, 2.0], 0)], "x array<float>, y int")
    model = SparkModel(nn.Linear(2, 2), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD)
    spark.conf.set("spark.executor.resource.gpu.amount", "2")
    try:
        with pytest.raises(OptionError, match=r"received no spark\.task\.resource\.gpu\.amount") as caught:
            model.fit(df, features="x", label="y", device="cuda")
        assert "set spark.task.resource.gpu.amount to 1" in caught.value.hint
        assert device_order(spark, "auto") == DeviceOrder(asked="auto", scheduled=True)
    finally:
        spark.conf.unset("spark.executor.resource.gpu.amount")
    assert device_order(spark, "auto") == DeviceOrder()
