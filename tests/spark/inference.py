"""Evaluation and prediction with all that depends on executors, as JSON; run as a script on a cluster, or called with a session."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from pyspark.sql import SparkSession
from torch import nn

from fatwood import Batch, Classification, SparkModel
from fatwood.evaluation import Loss

ROWS = 240


def norm(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    return outputs.norm(dim=1)


def figures(spark: SparkSession) -> dict[str, Any]:
    """What can be compared between clusters."""
    torch.manual_seed(5)
    network = nn.Sequential(nn.Linear(2, 100_000), nn.Tanh(), nn.Linear(100_000, 3))  # sent as a file
    model = SparkModel(network, loss=nn.CrossEntropyLoss())
    table = spark.range(0, ROWS, 1, 5).selectExpr(
        "id", "id % 2 half", "array(float(sin(id)), float(cos(id * 2))) x", "int(pmod(hash(id), 3)) y"
    )
    columns = {"features": "x", "label": "y", "workers_per_node": 1}
    by = model.evaluate(table, metrics={"best": Classification(), "loss": Loss()}, by="half", **columns)
    norms = model.predict(table, key="id", features="x", function=norm, workers_per_node=1).collect()
    scores = model.score(table, key="id", **columns).collect()
    classes = table.select("id", model.udf(returns="class", workers_per_node=1)("x").alias("y")).collect()
    return {
        "rows": {str(half): found["best"].rows for half, found in by.items()},
        "accuracy": {str(half): found["best"].accuracy for half, found in by.items()},
        "loss": {str(half): found["loss"].loss for half, found in by.items()},
        "mean": model.mean_score(table, **columns),
        "norms": [row["prediction"][0] for row in sorted(norms)],
        "scores": [row["score"] for row in sorted(scores)],
        "classes": [row["y"] for row in sorted(classes)],
    }


if __name__ == "__main__":
    session = SparkSession.builder.master(sys.argv[1]).config("spark.ui.enabled", "false").getOrCreate()
    print(json.dumps(figures(session)))
    session.stop()
