"""A driver of a cluster whose executors have GPUs, as far as Spark knows; prints what came of it as one line of JSON.

Spark reads the file of a discovery script and gives addresses to tasks; no GPU is touched. Called with the script's path.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pyarrow as pa
import torch
from pyspark import TaskContext
from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests
from pyspark.sql import SparkSession
from torch import nn

from fatwood import AllReduce, SparkModel
from fatwood.errors import FatwoodError

QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
OPTIONS = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": QUICK,
    "spark.driver.host": "127.0.0.1",
    "spark.executor.extraJavaOptions": QUICK,
    "spark.executor.memory": "600m",
    "spark.executor.resource.gpu.amount": "2",
    "spark.log.level": "OFF",
    "spark.python.daemon.module": "fatwood.spark.daemon",
    "spark.sql.shuffle.partitions": "2",
    "spark.task.resource.gpu.amount": "0.5",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.worker.resource.gpu.amount": "2",
}


def seen(batches: Any) -> Any:
    """What a task has of Spark, and what it would compute on if the machine had eight GPUs."""
    from fatwood.spark.gpus import task_gpus
    from fatwood.train.device import Cuda, DeviceOrder, choose_device

    for _ in batches:
        pass
    given, eight = task_gpus(), Cuda(count=8)
    order = DeviceOrder(asked="cuda", scheduled=True)
    visible = {"CUDA_VISIBLE_DEVICES": "6,5"}
    found = {
        "addresses": given,
        "device": str(choose_device(order, {}, eight, given).device),
        "among visible": str(choose_device(order, visible, Cuda(count=2), given).device),
        "number": TaskContext.get().partitionId(),
    }
    yield pa.RecordBatch.from_pydict({"found": [json.dumps(found)]})


def failure(call: Any) -> str:
    try:
        call()
    except FatwoodError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def main() -> None:
    """Run."""
    script = sys.argv[1]
    options = OPTIONS | {
        f"spark.{part}.resource.gpu.discoveryScript": script for part in ("worker", "executor")
    }
    spark = SparkSession.builder.master("local-cluster[1,2,700]").config(map=options).getOrCreate()
    try:
        rows = [([float(i % 5), 1.0], i % 2) for i in range(40)]
        df = spark.createDataFrame(rows, "x array<float>, y int").repartition(2).cache()
        torch.manual_seed(0)
        model = SparkModel(
            nn.Linear(2, 2),
            loss=nn.CrossEntropyLoss(),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            strategy=AllReduce(),
        )
        columns: dict[str, Any] = {"features": "x", "label": "y"}
        found: dict[str, Any] = {
            "tasks": [json.loads(row.found) for row in df.mapInArrow(seen, "found string").collect()]
        }
        fit = model.fit(df, **columns, workers=2, progress=False)
        found["auto"] = {
            "rows": fit.stats.rows_trained,
            "devices": [worker.device for worker in fit.stats.workers],
            "accuracy": model.evaluate(df, **columns).accuracy,
        }
        model.reset()  # the next fits have other numbers of workers
        if torch.version.cuda is None:
            two = ResourceProfileBuilder().require(TaskResourceRequests().cpus(1).resource("gpu", 2)).build
            none = ResourceProfileBuilder().require(TaskResourceRequests().cpus(1)).build
            asked: dict[str, Any] = {**columns, "device": "cuda", "progress": False}
            found["failures"] = {
                "fit": failure(lambda: model.fit(df, **asked, workers=2)),
                "evaluate": failure(lambda: model.evaluate(df, **columns, device="cuda")),
                "profile": failure(lambda: model.fit(df, **asked, workers=1, profile=two)),
                "profile without": failure(lambda: model.fit(df, **asked, workers=1, profile=none)),
                "profile alone": failure(lambda: model.fit(df, **asked, profile=two)),
            }
        print(json.dumps(found))
    finally:
        spark.stop()


if __name__ == "__main__":
    main()
