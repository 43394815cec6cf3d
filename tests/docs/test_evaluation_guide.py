"""The Python blocks of docs/evaluation.md run in their order, and find what the text says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.mark.spark
@pytest.mark.timeout(300)
def test_every_block_runs(spark, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__", "spark": spark}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.split(block)[0].count("\n")
        exec(compile("\n" * line + block, str(GUIDE), "exec"), names)
    reports = names["reports"]
    assert reports["classification"].accuracy > 0.9
    assert reports["roc"].auroc() > 0.95
    assert set(names["by_shop"]) == {"shop 0", "shop 1", "shop 2"}
    assert sum(found["classification"].rows for found in names["by_shop"].values()) == 600
    assert names["both"]["classification"].rows == 700
    assert "<svg" in (tmp_path / "monday.html").read_text(encoding="utf-8")
    assert names["found"].columns == ["id", "shop", "prediction_class", "prediction_probability"]
    assert "scores" in capsys.readouterr().out
    spark.catalog.dropTempView("shops")
    spark.sql("DROP TEMPORARY FUNCTION predict")
