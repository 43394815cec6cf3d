"""Fit, evaluate, predict and score on the GPU of a machine, by tasks of Spark that share it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fatwood import AllReduce, SparkModel

pytestmark = [
    pytest.mark.spark,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use"),
]
COLUMNS = {"features": "x", "label": "y"}


def frame(spark):
    x = np.random.default_rng(0).standard_normal((240, 4)).astype(np.float32)
    y = np.abs(x).argmax(axis=1) % 3
    rows = [(i, x[i].tolist(), int(y[i])) for i in range(len(x))]
    return spark.createDataFrame(rows, "id int, x array<float>, y int").repartition(2, "id").cache()


def model() -> SparkModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return SparkModel(
        net,
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        strategy=AllReduce(),
    )


def test_two_workers_that_share_a_gpu_agree_with_the_cpu(spark) -> None:
    df, ends = frame(spark), {}
    for device in ("cuda", "cpu"):
        trained = model()
        fit = trained.fit(
            df, **COLUMNS, workers=2, epochs=3, device=device, prefetch=2, validation=df, progress=False
        )
        ends[device] = trained
        assert fit.stats.digest_equal
        assert fit.stats.rows_trained == 3 * 240
        names = [worker.device and worker.device["device"] for worker in fit.stats.workers]
        count = torch.cuda.device_count()
        assert names == ([None, None] if device == "cpu" else ["cuda:0", f"cuda:{1 % count}"])
        assert all(p.device.type == "cpu" for p in trained.network.parameters())
    for one, other in zip(ends["cuda"].network.parameters(), ends["cpu"].network.parameters(), strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), atol=1e-2)


def test_inference_agrees_with_the_cpu(spark) -> None:
    df, trained = frame(spark), model()
    there, here = (
        {
            "accuracy": trained.evaluate(df, **COLUMNS, device=device).accuracy,
            "loss": trained.mean_score(df, **COLUMNS, device=device),
            "predict": [
                row.prediction
                for row in trained.predict(df, key="id", features="x", device=device).orderBy("id").collect()
            ],
            "score": [
                row.score
                for row in trained.score(df, key="id", **COLUMNS, device=device).orderBy("id").collect()
            ],
        }
        for device in ("cuda", "cpu")
    )
    assert there["accuracy"] == pytest.approx(here["accuracy"], abs=0.01)
    assert there["loss"] == pytest.approx(here["loss"], abs=1e-3)
    np.testing.assert_allclose(there["predict"], here["predict"], atol=1e-3)
    np.testing.assert_allclose(there["score"], here["score"], atol=1e-3)
