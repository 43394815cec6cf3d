"""DataFrame, RDD of Batch, files with a loader and shards give the same model, report, predictions and scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fatwood.testing.cluster import standalone_cluster

sys.path.insert(0, str(Path(__file__).parent))
import matrix

pytestmark = pytest.mark.spark


def require(name: str, found: dict[str, Any]) -> None:
    assert found["worst"]["rows"] == 0
    assert found["rows"] == [matrix.ROWS] * 3
    assert max(found["worst"].values()) < 2e-5, found["worst"]
    assert found["losses"][1] < found["losses"][0]
    steps = sum(len(row[5]) for row in matrix.rows())
    expected = {"single": [matrix.ROWS], "multi": [matrix.ROWS] * 2, "masked": [steps]}[name]
    assert [rows for rows, _ in found["evaluated"]] == expected


@pytest.mark.parametrize("name", list(matrix.CASES))
@pytest.mark.timeout(300)
def test_all_forms_agree(spark, tmp_path, name) -> None:
    require(name, matrix.differences(spark, name, tmp_path / "data"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_forms_agree_on_a_cluster(tmp_path) -> None:
    with standalone_cluster(workers=2, cores=1) as cluster:
        command = [sys.executable, matrix.__file__, cluster.master, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    for name, line in zip(matrix.CASES, lines, strict=True):
        require(name, json.loads(line))
