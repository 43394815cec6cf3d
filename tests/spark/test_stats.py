"""A fit on Spark measures itself: every worker's trace is there, on the driver's clock, and has a page."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fatwood import SparkModel
from fatwood.train import FitStats

pytestmark = pytest.mark.spark


def test_a_fit_has_a_trace_of_every_worker(spark, tmp_path) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((90, 4))
    df = spark.createDataFrame([(row.tolist(), int(row[0] > 0)) for row in x], "x array<double>, y long")
    torch.manual_seed(0)
    model = SparkModel(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)),
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    before = time.time()
    fit = model.fit(
        df,
        validation=df.limit(20),
        features="x",
        label="y",
        batch_size=5,
        epochs=3,
        workers=2,
        collect_stats=True,
        progress=False,
    )
    after = time.time()
    stats = fit.stats
    assert before <= stats.started <= after
    assert stats.history == fit.history
    assert [v.epoch for v in stats.validations] == [0, 1, 2]
    for worker in stats.workers:
        assert worker.host
        assert {"read", "compute", "encode", "exchange", "apply", "validate"} <= set(worker.seconds)
        trace = worker.trace
        assert trace is not None
        assert [reading["source"] for reading in trace["clock"]] == ["job", "job"]
        assert all(reading["error"] < 1.0 for reading in trace["clock"])
        assert sum(trace["steps"]["steps"]) == worker.agreements
        assert sum(trace["steps"]["figures"]["rows"]["mean"]) == pytest.approx(worker.rows_trained)
        for name, bins in zip(trace["spans"]["phases"], trace["spans"]["bins"]["phases"], strict=True):
            assert sum(bins) == pytest.approx(1e6 * worker.seconds[name], rel=0.01, abs=1000)
    spans = stats.to_arrow()["spans"].to_pylist()
    assert all(before <= row["start"] <= row["start"] + row["seconds"] <= after for row in spans)
    stats.save(tmp_path / "stats.json")
    assert FitStats.load(tmp_path / "stats.json") == stats
    stats.to_html(tmp_path / "page.html")
    assert "270 of 270 rows trained" in (tmp_path / "page.html").read_text()


def test_message_sizes_by_step_add_up_where_they_are_collected(spark) -> None:
    df = spark.range(64).selectExpr("array(id * 0.01D, 1.0D) x", "id % 2 y")
    torch.manual_seed(0)
    model = SparkModel(
        nn.Linear(2, 2), loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.1)
    )
    options = {"features": "x", "label": "y", "batch_size": 8, "workers": 1, "progress": False}
    (worker,) = model.fit(df, collect_stats=True, time_source="system", **options).stats.workers
    assert worker.trace is not None
    assert {reading["source"] for reading in worker.trace["clock"]} == {"system"}
    sizes = worker.trace["steps"]["figures"]["message_bytes"]["mean"]
    assert sum(sizes) == worker.message_bytes
    (worker,) = model.fit(df, **options).stats.workers
    assert worker.trace is None
