"""The densities of the first steps, the measured threshold, and what the encoder does with both."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.codec import (
    AdaptiveThreshold,
    Coder,
    DensityWarmup,
    FixedThreshold,
    ResidualClipping,
    TargetSparsityThreshold,
    ThresholdEncoder,
    apply_messages,
    decode,
    quantile_tau,
)
from fatwood.errors import NotFiniteError, OptionError
from fatwood.testing.strategies import float32_vectors

N = 20_000
SMALLEST = 1.1754943508222875e-38


def laplace(n=N, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).laplace(size=n)).astype(np.float32)


# Densities.


def test_the_density_falls_geometrically_and_reaches_both_ends():
    densities = [DensityWarmup(steps=5, initial=0.25, final=1e-3).density(step) for step in range(7)]
    assert densities[0] == 0.25
    assert densities[4] == pytest.approx(1e-3, rel=1e-12)
    assert densities[5:] == [None, None]
    ratios = [b / a for a, b in itertools.pairwise(densities[:5])]
    assert ratios == pytest.approx([0.004**0.25] * 4, rel=1e-12)


def test_defaults_and_the_shortest_warmup():
    assert (DensityWarmup(steps=2).density(0), DensityWarmup(steps=2).density(1)) == (0.25, 0.01)
    assert (DensityWarmup(steps=1).density(0), DensityWarmup(steps=1).density(1)) == (0.25, None)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": 2.0},
        {"steps": True},
        {"steps": 2, "initial": 1.1},
        {"steps": 2, "initial": 0.0},
        {"steps": 2, "final": 0.0},
        {"steps": 2, "initial": 0.1, "final": 0.2},
        {"steps": 2, "initial": math.nan},
    ],
)
def test_options_that_cannot_work_are_named(options):
    with pytest.raises(OptionError, match=r"DensityWarmup.*expected.*received") as caught:
        DensityWarmup(**options)
    assert caught.value.hint


# The quantile.


@settings(max_examples=60, deadline=None)
@given(float32_vectors(st.integers(1, 60)), st.integers(0, 99), st.floats(1e-3, 1.0))
def test_the_quantile_is_the_order_statistic_and_equal_on_tensors(residual, seed, density):
    delta = np.random.default_rng(seed).normal(size=residual.size).astype(np.float32)
    tau = quantile_tau(residual, delta, density)
    descending = np.sort(np.abs(residual + delta))[::-1]
    assert tau == max(descending[max(1, round(density * residual.size)) - 1], SMALLEST)
    assert quantile_tau(torch.from_numpy(residual), torch.from_numpy(delta), density) == tau


def test_where_fewer_values_are_not_zero_than_asked_for_all_of_them_are_sent():
    delta = np.zeros(1000, np.float32)
    delta[[3, 900]] = [2.0, -0.5]
    assert quantile_tau(np.zeros_like(delta), delta, 0.5) == 0.5
    assert quantile_tau(-delta, delta, 0.5) is None
    assert quantile_tau(delta[:0], delta[:0], 0.5) is None


def test_what_is_not_finite_is_left_to_the_encoder_to_name():
    delta = np.array([1.0, np.nan, np.inf, 3.0], np.float32)
    assert quantile_tau(np.zeros(4, np.float32), delta, 0.25) == 3.0
    for start in (AdaptiveThreshold(initial="quantile"), AdaptiveThreshold()):
        for warmup in (None, DensityWarmup(steps=1), DensityWarmup(steps=1, initial=1.0)):
            with pytest.raises(NotFiniteError, match=r"parameter 1 \(of 4\).*nan"):
                ThresholdEncoder(4, start, None, warmup=warmup).encode(delta, 0)


def test_tau_stays_a_normal_float32():
    assert quantile_tau(np.zeros(2, np.float32), np.array([1e-44, 0], np.float32), 0.5) == SMALLEST


def test_beyond_the_sample_size_the_share_is_met_within_sampling_error_whatever_the_period():
    n = 2**20
    noise = laplace(n)
    # Columns of very different scale: a fixed stride of 4 would see every fourth column only.
    striped = noise * np.tile(np.array([1.0, 10.0, 100.0, 1000.0], np.float32), n // 4)
    for values in (noise, striped):
        tau = quantile_tau(np.zeros_like(values), values, 1e-2)
        assert np.count_nonzero(np.abs(values) >= tau) / n == pytest.approx(1e-2, rel=0.1)
        again = quantile_tau(torch.zeros(n), torch.from_numpy(values), 1e-2)
        assert again == tau
        assert tau in np.abs(values)


def test_a_sample_that_meets_only_zeros_is_not_believed():
    delta = np.zeros(2**19 + 5, np.float32)
    delta[-3:] = [1.0, -2.0, 4.0]
    assert quantile_tau(np.zeros_like(delta), delta, 1e-4) == 1.0


# Start by quantile.


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize(
    ("rule", "aim"),
    [
        (TargetSparsityThreshold(initial="quantile", target=0.01), 0.01),
        (AdaptiveThreshold(initial="quantile"), 1e-3),
    ],
)
def test_a_quantile_start_meets_the_density_at_once_at_any_scale(rule, aim, scale):
    encoder = ThresholdEncoder(N, rule, None)
    encoder.encode(laplace(scale=scale), 0)
    assert encoder.last.count == round(aim * N)
    guessed = ThresholdEncoder(N, TargetSparsityThreshold(target=0.01), None)
    guessed.encode(laplace(scale=scale), 0)
    assert not 0.005 * N < guessed.last.count < 0.5 * N  # far off: nothing, or nearly everything


def test_an_update_of_zeros_is_not_measured():
    encoder = ThresholdEncoder(N, TargetSparsityThreshold(initial="quantile", target=0.01), None)
    target = np.zeros(N, np.float32)
    for step in range(2):
        wire = encoder.encode(np.zeros(N, np.float32), step)
        apply_messages([wire], target, [1.0], step)
        assert encoder.last.count == 0
    assert not target.any()
    again = ThresholdEncoder(N, TargetSparsityThreshold(initial="quantile", target=0.01), None)
    again.load_state(encoder.state_arrays(), json.loads(json.dumps(encoder.state_json())))
    for one in (encoder, again):
        one.encode(laplace(), 2)
        assert one.last.count == round(0.01 * N)


def test_after_the_quantile_the_rule_goes_on():
    encoder = ThresholdEncoder(N, TargetSparsityThreshold(initial="quantile", target=0.01, decay=0.5), None)
    encoder.encode(laplace(), 0)
    first = encoder.last.tau
    for step in (1, 2):
        encoder.encode(np.zeros(N, np.float32), step)
    assert encoder.last.tau == pytest.approx(first / 2)  # exactly the target at step 0, none at step 1


# Warm-up.

WARMUP = DensityWarmup(steps=4, initial=0.25, final=0.01)


@pytest.mark.parametrize(
    "rule", [FixedThreshold(tau=1.0), AdaptiveThreshold(), TargetSparsityThreshold()], ids=repr
)
def test_the_densities_of_a_warmup_are_met_and_the_rule_goes_on_from_its_last_tau(rule):
    encoder = ThresholdEncoder(N, rule, ResidualClipping(max_multiple=1, every=1), warmup=WARMUP)
    taus = []
    for step in range(6):
        encoder.encode(laplace(seed=step), step)
        taus.append(encoder.last.tau)
        density = WARMUP.density(step)
        assert density is None or encoder.last.count == round(density * N)
        assert density is None or encoder.last.clipped_mass == 0.0
    if isinstance(rule, FixedThreshold):
        assert taus[4:] == [1.0, 1.0]
        assert encoder.last.clipped_mass > 0.0
    else:
        assert taus[0] < taus[1] < taus[2] < taus[3] == taus[4] != taus[5]


def test_densities_of_a_large_vector_are_met_within_sampling_error():
    n = 2**20
    encoder = ThresholdEncoder(n, FixedThreshold(tau=1.0), None, warmup=WARMUP)
    delta = laplace(n)
    for step in range(4):
        encoder.encode(delta, step)
        # The sample holds 2**18 magnitudes; five standard deviations of the share.
        assert abs(encoder.last.count / n / WARMUP.density(step) - 1) < 5 / math.sqrt(
            WARMUP.density(step) * 2**18
        )


def test_a_warmup_counts_the_steps_of_the_models_life():
    encoder = ThresholdEncoder(N, FixedThreshold(tau=1.0), None, warmup=WARMUP)
    encoder.encode(laplace(), 4)
    assert encoder.last.tau == 1.0


def test_an_update_of_zeros_in_a_warmup_changes_nothing():
    encoder = ThresholdEncoder(N, AdaptiveThreshold(), None, warmup=WARMUP)
    encoder.encode(laplace(), 0)
    residual, state = encoder.residual.copy(), encoder.state_json()
    encoder.encode(-residual, 1)
    assert encoder.last.count == 0
    assert encoder.state_json() == state


@pytest.mark.parametrize(("scale", "coder"), [(1.0, Coder.DENSE16), (1e6, Coder.DENSE32)])
def test_a_dense_step_sends_every_value_and_keeps_the_rounding_exactly(scale, coder):
    encoder = ThresholdEncoder(
        N, AdaptiveThreshold(), None, warmup=DensityWarmup(steps=2, initial=1.0), debug=True
    )
    delta, target = laplace(scale=scale), np.zeros(N, np.float32)
    wire = encoder.encode(delta, 0)
    assert decode(wire, N, 0).coder == coder
    apply_messages([wire], target, [1.0], 0)
    assert np.array_equal(target.astype(np.float64) + encoder.residual, delta)
    assert np.abs(encoder.residual).max() <= scale * (2**-8 if coder is Coder.DENSE16 else 0)
    assert (encoder.last.tau, encoder.last.count, encoder.last.bytes) == (0.0, N, len(wire))
    assert encoder.last.debug is None


def test_conservation_is_exact_on_a_grid_from_dense_through_ternary_to_rice():
    # Multiples of 1/64 below 32: float16 holds them, every tau is one of them, so no operation rounds.
    encoder = ThresholdEncoder(
        N, FixedThreshold(tau=8.0), None, warmup=DensityWarmup(steps=4, initial=1.0, final=1e-3)
    )
    rng = np.random.default_rng(3)
    target, total, coders = np.zeros(N, np.float32), np.zeros(N), []
    for step in range(6):
        delta = (np.round(64 * rng.normal(size=N)) / 64).astype(np.float32)
        wire = encoder.encode(delta, step)
        coders.append(decode(wire, N, step).coder)
        apply_messages([wire], target, [1.0], step)
        total += delta
        assert np.array_equal(target.astype(np.float64) + encoder.residual, total)
    assert (coders[0], coders[1], coders[-1]) == (Coder.DENSE16, Coder.TERNARY, Coder.RICE)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1e-3, 1.0, 1e5]), st.sampled_from([1.0, 0.9, 0.3]))
def test_all_that_went_into_a_warmup_is_sent_or_kept(seed, scale, initial):
    n, steps = 500, 6
    encoder = ThresholdEncoder(
        n,
        TargetSparsityThreshold(initial="quantile", target=0.05),
        None,
        warmup=DensityWarmup(steps=3, initial=initial, final=0.02),
    )
    sent, total = np.zeros(n), np.zeros(n)
    for step in range(steps):
        delta = laplace(n, seed + step, scale)
        sent += decode(encoder.encode(delta, step), n, step).dense()
        total += delta
    # Two float32 roundings per step, each at most half a unit in the last place of what then lay in the residual.
    tolerance = steps * np.spacing(np.float32(np.abs(total).max() + np.abs(sent).max() + 20 * steps * scale))
    assert np.abs(sent + encoder.residual - total).max() <= tolerance


@pytest.mark.parametrize("initial", [1.0, 0.5])
def test_a_warmup_that_was_saved_in_its_midst_goes_on_bit_for_bit(initial):
    def fresh():
        warmup = DensityWarmup(steps=4, initial=initial, final=0.02)
        return ThresholdEncoder(N, AdaptiveThreshold(initial="quantile"), ResidualClipping(), warmup=warmup)

    straight = fresh()
    expected = [straight.encode(laplace(seed=step), step) for step in range(8)]
    for stop in range(8):
        first, second = fresh(), fresh()
        for step in range(stop):
            first.encode(laplace(seed=step), step)
        second.load_state(first.state_arrays(), json.loads(json.dumps(first.state_json())))
        assert [second.encode(laplace(seed=step), step) for step in range(stop, 8)] == expected[stop:]
