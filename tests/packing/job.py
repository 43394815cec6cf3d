"""A small training job that says whose Python the driver and the executors ran; submitted by test_real.py, with no part of the tests at hand."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
from pyspark.sql import SparkSession
from torch import nn

from fatwood import AllReduce, SparkModel


def facts(_: int) -> dict[str, object]:
    import torch

    maps = Path("/proc/self/maps").read_text()
    files = {line.split(None, 5)[5] for line in maps.splitlines() if "/" in line}
    python = [name for name in files if "python" in Path(name).name]
    return {"prefix": sys.prefix, "torch": torch.__file__, "python": python, "path": sys.path}


if __name__ == "__main__":
    session = SparkSession.builder.getOrCreate()
    torch.manual_seed(1)
    sgd = partial(torch.optim.SGD, lr=0.1)
    model = SparkModel(nn.Linear(2, 2), loss=nn.CrossEntropyLoss(), optimizer=sgd, strategy=AllReduce())
    table = session.range(0, 200, 1, 2).selectExpr(
        "array(float(sin(id)), float(cos(id))) x", "int(sin(id) > 0) y"
    )
    fit = model.fit(table, features="x", label="y", epochs=3, workers=2, batch_size=10)
    executors = session.sparkContext.parallelize(range(2), 2).map(facts).collect()
    rows = {"trained": fit.stats.rows_trained, "equal": fit.stats.digest_equal}
    print(json.dumps({"driver": facts(0), "executors": executors, **rows}))
    session.stop()
