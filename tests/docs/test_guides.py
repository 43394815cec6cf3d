"""The Python blocks of the guides and how-to pages that have no test of their own run, and find what the text says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.docs.pages import DOCS, run_page
from torch import nn

GUIDES = {
    "callbacks",
    "choosing",
    "from-deeplearning4j",
    "from-pytorch",
    "how-to/caching",
    "how-to/dependencies",
    "how-to/inference",
    "how-to/install",
    "how-to/not-needed",
    "how-to/thresholds",
    "stats",
}
"""The pages whose Python blocks are run here."""


def guide(name: str, replaced: dict[str, str] | None = None, **names: Any) -> dict[str, Any]:
    assert name in GUIDES
    return run_page(DOCS / f"{name}.md", names, replaced)


def trained_whole(fit: Any) -> bool:
    stats = fit.stats
    return stats.digest_equal and stats.rows_trained == stats.rows_expected and not stats.rows_lost


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_install(capsys) -> None:
    guide("how-to/install")
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said
    assert "codec: " in said


@pytest.mark.spark
def test_not_needed(here) -> None:
    guide("how-to/not-needed")


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_from_pytorch(spark, here) -> None:
    names = guide("from-pytorch", spark=spark)
    assert trained_whole(names["fit"])
    assert names["model"].evaluate(names["df"], features="x", label="y").accuracy > 0.85
    untrained = names["network"]().state_dict()
    assert any(not torch.equal(untrained[k], v) for k, v in names["plain"].state_dict().items())


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_from_deeplearning4j(spark, here) -> None:
    names = guide("from-deeplearning4j", spark=spark)
    assert trained_whole(names["fit"])
    assert names["evaluation"].accuracy > 0.7
    assert (here / "network.fatwood").exists()


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_choosing(spark, here, capsys) -> None:
    names = guide("choosing", spark=spark)
    said = capsys.readouterr().out
    assert "'exchange': " in said
    compared = names["compared"]
    assert compared.keys() == {"AllReduce", "GradientSharing", "DiLoCo"}
    dense = compared["AllReduce"][1]
    assert all(sent < dense / 2 for name, (_, sent) in compared.items() if name != "AllReduce")
    assert compared["AllReduce"][0] > 0.9


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_thresholds(spark, here) -> None:
    names = guide("how-to/thresholds", spark=spark)
    assert names["fit"].stats.workers[0].encoding
    (slow,) = {text.partition(": ")[2][:5] for text in names["slow"].stats.findings}
    assert all("raise" in text for text in names["slow"].stats.findings), slow
    assert len(names["slow"].stats.findings) == len(names["mute"].stats.findings) == 2
    assert all("lower" in text for text in names["mute"].stats.findings)
    assert not any("raise" in text or "lower" in text for text in names["fit"].stats.findings)


@pytest.mark.spark
def test_inference(spark, here) -> None:
    names = guide("how-to/inference", spark=spark)
    assert names["found"].columns == [
        "id",
        "shop",
        "prediction",
        "prediction_class",
        "prediction_probability",
    ]


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_caching(spark, here, caplog) -> None:
    caplog.set_level(logging.INFO, "fatwood.data")
    names = guide("how-to/caching", spark=spark)
    assert trained_whole(names["fit"])
    assert "DataFrame kept at MEMORY_AND_DISK_DESER: " in caplog.text
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("rows cached at MEMORY_ONLY: ")


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_dependencies(spark, here, capsys) -> None:
    names = guide("how-to/dependencies", spark=spark)
    assert "Python" in capsys.readouterr().out
    assert names["found"].healthy


@pytest.fixture
def small(spark) -> dict[str, Any]:
    from fatwood import AllReduce, SparkModel

    x = np.random.default_rng(0).standard_normal((64, 3))
    rows = [(row.tolist(), int(row[0] > 0)) for row in x]
    df = spark.createDataFrame(rows, "x array<float>, y int").coalesce(2)
    model = SparkModel(
        nn.Linear(3, 2), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.Adam, strategy=AllReduce()
    )
    return {"spark": spark, "model": model, "df": df}


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_callbacks(small, here, capsys) -> None:
    guide("callbacks", **small)
    assert "epoch 1: loss" in capsys.readouterr().out
    assert list((here / "logs" / "first").iterdir())


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_stats_and_the_command_that_reads_them(small, here, capsys) -> None:
    from fatwood.cli import cli

    df = small["df"].withColumnsRenamed({"x": "pixels", "y": "digit"})
    local = {"s3://runs/1.json": "run.json"}
    names = guide("stats", local, **small, train_df=df, test_df=df)
    assert len(names["fit"].history) == 4
    assert "replicas bitwise equal" in capsys.readouterr().out
    (here / "run.html").unlink()
    done = CliRunner().invoke(cli, ["report", "run.json", "--no-open"])
    assert (done.exit_code, done.output) == (0, "run.html\n")
    assert "<html" in (here / "run.html").read_text(encoding="utf-8")
