"""Gradient sharing costs no accuracy: the benchmark's runs on the demo's task, judged."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path

import pytest

from fatwood.demo.run import EPOCHS, strategy
from fatwood.train import AllReduce

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "convergence.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gradient_sharing_reaches_the_accuracy_of_all_reduce() -> None:
    spec = importlib.util.spec_from_file_location("convergence", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    convergence = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(convergence)
    pairs = [[convergence.run(s, seed, EPOCHS) for s in (AllReduce(), strategy())] for seed in range(2)]
    for dense, shared in pairs:
        assert dense["rows"] == shared["rows"] == EPOCHS * 12_000
        assert dense["digest_equal"]
        assert shared["digest_equal"]
        assert shared["bytes_per_step"] * 100 < shared["dense_bytes"]
    means = [statistics.mean(pair[i]["accuracy"] for pair in pairs) for i in (0, 1)]
    assert min(means) > 0.97
    assert means[1] > means[0] - 0.005
