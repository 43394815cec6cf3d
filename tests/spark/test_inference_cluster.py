"""What evaluation and prediction need of executors: weights as files, turns of workers, groups, functions of the user's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fatwood.testing.cluster import standalone_cluster

sys.path.insert(0, str(Path(__file__).parent))
import inference

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_cluster_gives_what_one_process_gives(spark) -> None:
    expected = inference.figures(spark)
    assert sum(expected["rows"].values()) == len(expected["norms"]) == inference.ROWS
    with standalone_cluster(workers=2, cores=2) as cluster:
        command = [sys.executable, inference.__file__, cluster.master]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name
