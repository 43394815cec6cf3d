"""What encoding_debug measures, and what it makes of it."""

from __future__ import annotations

import doctest
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fatwood.codec import diagnostics, sampling
from fatwood.codec.diagnostics import EncodingRecord, Multiples, findings, multiples

HEALTHY = Multiples(mean=0.2, p50=0.1, p95=0.6, p99=1.2, p99_9=3.0, p99_99=5.0, max=7.0)
RECORD = EncodingRecord(
    step=12,
    tau=2.0**-10,
    n=50_000,
    count=400,
    bytes=612,
    clipped_mass=0.5,
    residual_norm=2.0,
    multiples=HEALTHY,
)

magnitudes = st.floats(-1e3, 1e3, width=32)


def run(steps=40, **changes):
    return [replace(RECORD, step=step, **changes) for step in range(steps)]


def test_examples():
    results = doctest.testmod(diagnostics)
    assert results.attempted > 0
    assert results.failed == 0


@settings(max_examples=60, deadline=None)
@given(
    pair=hnp.array_shapes(min_dims=1, max_dims=1, min_side=1, max_side=300).flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=magnitudes)] * 2)
    ),
    tau=st.floats(1e-6, 1e3),
)
def test_multiples_are_those_of_the_sum_and_tensors_agree(pair, tau):
    residual, delta = pair
    before = residual.tobytes(), delta.tobytes()
    found = multiples(residual, delta, tau)
    sums = np.abs(residual + delta).astype(np.float64) / tau
    expected = [sums.mean(), *np.quantile(sums, [0.5, 0.95, 0.99, 0.999, 0.9999]), sums.max()]
    assert list(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert multiples(torch.from_numpy(residual), torch.from_numpy(delta), tau) == found
    assert (residual.tobytes(), delta.tobytes()) == before


def test_no_parameters_have_no_multiples():
    empty = np.zeros(0, np.float32)
    assert multiples(empty, empty, 0.1) == Multiples(0, 0, 0, 0, 0, 0, 0)


def test_read_only_arrays_are_taken():
    values = np.ones(3, np.float32)
    values.flags.writeable = False
    assert multiples(values, values, 0.5).max == 4.0


def test_quantiles_of_a_large_vector_are_sampled_and_its_maximum_and_mean_are_not(monkeypatch):
    monkeypatch.setattr(sampling, "SAMPLE", 20_000)
    monkeypatch.setattr(diagnostics, "_CHUNK", 70_001)
    generator = np.random.default_rng(3)
    rows = generator.exponential(size=(1000, 200)).astype(np.float32)
    rows[:, 0] *= 1000.0  # a column; a fixed stride of 200 would see it always or never
    residual = rows.reshape(-1)
    residual[123_456] = -1e6
    zeros = np.zeros_like(residual)
    found = multiples(residual, zeros, 0.5)
    exact = np.abs(residual.astype(np.float64)) / 0.5
    assert found.max == 2e6
    assert found.mean == pytest.approx(exact.mean(), rel=1e-12)
    assert found.p50 == pytest.approx(np.quantile(exact, 0.5), rel=0.05)
    assert found.p95 == pytest.approx(np.quantile(exact, 0.95), rel=0.05)
    assert found.p99_9 == pytest.approx(np.quantile(exact, 0.999), rel=0.2)
    assert found == multiples(residual, zeros, 0.5)
    assert found == multiples(torch.from_numpy(residual), torch.from_numpy(zeros), 0.5)


def test_what_is_not_finite_warns_of_nothing():
    """The kernel names it; what is measured before must not stumble over it."""
    residual = np.array([np.inf, 1.0, np.nan], np.float32)
    assert np.isnan(multiples(residual, np.array([-np.inf, 1.0, 0.0], np.float32), 1.0).max)


def test_a_record_survives_json():
    assert EncodingRecord.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD
    assert RECORD.sparsity == 0.008
    assert replace(RECORD, n=0, count=0).sparsity == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"tau": None},
        {"tau": 0.0},
        {"count": "many"},
        {"surprise": 1},
        {"multiples": {"mean": 1.0}},
        {"multiples": {**HEALTHY._asdict(), "max": "large"}},
        {"multiples": None},
    ],
    ids=str,
)
def test_what_is_no_record_is_refused(change):
    with pytest.raises((TypeError, ValueError)):
        EncodingRecord.from_json({**RECORD.to_json(), **change})


def test_a_record_is_one_line_in_multiples_of_tau():
    line = str(RECORD)
    assert "\n" not in line
    for part in (
        "step 12: tau 0.000977, sent 400 of 50,000 (8.00e-03) in 612 bytes",
        "mean 0.2",
        "0.1 0.6 1.2 3 5",
        "max 7",
        "held back 2.05e+03",
        "clipped 512",
    ):
        assert part in line


def test_a_healthy_run_has_no_finding():
    assert findings(run()) == []
    assert findings([]) == []
    # all that clipping at its defaults lets through, at the densest that an adaptive threshold lets through
    assert (
        findings(run(count=500, multiples=HEALTHY._replace(p99=5.9, p99_9=20.0, p99_99=90.0, max=400.0)))
        == []
    )
    # the sparsest that an adaptive threshold lets through
    assert findings(run(count=5)) == []


@pytest.mark.parametrize(("p99", "p99_9"), [(34.0, 60.0), (2.0, 150.0)])
def test_many_values_at_tens_or_hundreds_of_tau_are_a_finding(p99, p99_9):
    large = HEALTHY._replace(p99=p99, p99_9=p99_9)
    (finding,) = findings(run(multiples=large))
    assert f"1 in 100 at {p99:.3g} tau" in finding
    assert f"1 in 1 000 at {p99_9:.3g}" in finding
    assert "raise tau" in finding
    assert "max_multiple" in finding
    # the tau it names would be judged healthy
    better = float(finding.split("raise tau beyond ")[1].split()[0])
    assert better == pytest.approx(2.0**-10 * max(p99 / 10, p99_9 / 100), rel=0.05)
    # a few such steps are none
    assert findings([*run(33), *run(7, multiples=large)]) == []


@pytest.mark.parametrize(("count", "says"), [(4, "1 in 12,500"), (0, "none")])
def test_fewer_than_one_in_ten_thousand_is_a_finding(count, says):
    (finding,) = findings(run(count=count))
    assert f"was sent: {says} (over 20 steps up to step 39, tau 0.000977)" in finding
    assert "lower tau" in finding
    assert f"{3.0 * 2**-10:.2g}" in finding


def test_a_threshold_that_has_settled_by_half_time_is_healthy():
    assert findings([*run(30, count=0), *run(30)]) == []
    assert len(findings([*run(30), *run(30, count=0)])) == 1


def test_a_short_run_or_a_tiny_network_says_nothing_of_rarity():
    assert findings(run(18, count=0)) == []
    assert findings(run(40, n=100, count=0)) == []
    assert len(findings(run(4000, n=100, count=0))) == 1
