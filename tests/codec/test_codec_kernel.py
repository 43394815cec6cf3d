"""The kernel: what one pass takes out of a residual, and what the arithmetic promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.codec.kernel import add_signed, extract
from fatwood.errors import UserError
from fatwood.testing.strategies import float32_vectors

N = 64
vectors = float32_vectors(N)
taus = st.floats(2.0**-10, 100.0, width=32)


def plain_loop(residual, delta, tau, clip):
    """The definition, one element at a time, in float32."""
    residual, tau = residual.copy(), np.float32(tau)
    positions, negative, clipped = [], [], 0.0
    for i in range(residual.size):
        r = residual[i] + delta[i]
        if abs(r) >= tau:
            positions.append(i)
            negative.append(bool(r < 0))
            r = r - tau if r > 0 else r + tau
        if clip is not None and abs(r) > np.float32(clip):
            clipped += float(abs(r)) - float(np.float32(clip))
            r = np.sign(r) * np.float32(clip)
        residual[i] = r
    return residual, positions, negative, clipped


@settings(max_examples=60, deadline=None)
@given(vectors, vectors, taus, st.none() | st.floats(1.0, 8.0))
def test_equals_the_plain_loop_bit_for_bit(residual, delta, tau, multiple):
    clip = None if multiple is None else multiple * tau
    if clip is not None and np.float32(clip) < np.float32(tau):
        clip = tau
    expected, positions, negative, clipped = plain_loop(residual, delta, tau, clip)
    found = extract(residual, delta, tau, clip)
    assert np.array_equal(residual, expected)
    assert found.positions.tolist() == positions
    assert found.negative.tolist() == negative
    assert found.clipped_mass == pytest.approx(clipped, rel=1e-12)
    assert found.positions.dtype == np.int64
    assert found.negative.dtype == np.bool_


@settings(max_examples=60, deadline=None)
@given(vectors, vectors, taus)
def test_mass_is_conserved(residual, delta, tau):
    before = residual.copy()
    summed = before + delta  # float32: the one rounding that adding to a residual cannot avoid
    found = extract(residual, delta, tau, None)
    taken = np.zeros(N)
    taken[found.positions] = np.where(found.negative, -tau, tau)
    rebuilt = taken + residual.astype(np.float64)
    # Never more than half a unit in the last place; nothing at all up to two tau (Sterbenz).
    assert np.all(np.abs(rebuilt - summed) <= np.spacing(np.abs(summed)).astype(np.float64) / 2)
    near = np.abs(summed) <= 2 * np.float32(tau)
    assert np.array_equal(rebuilt[near], summed[near].astype(np.float64))


@settings(max_examples=40, deadline=None)
@given(vectors, vectors, st.integers(-9, 9))
def test_mass_is_conserved_exactly_when_tau_is_a_power_of_two(residual, delta, exponent):
    summed = residual + delta
    found = extract(residual, delta, 2.0**exponent, None)
    taken = np.zeros(N)
    taken[found.positions] = np.where(found.negative, -(2.0**exponent), 2.0**exponent)
    assert np.array_equal(taken + residual.astype(np.float64), summed.astype(np.float64))


@settings(max_examples=40, deadline=None)
@given(vectors, vectors, taus)
def test_signs_are_treated_alike(residual, delta, tau):
    mirrored = -residual
    found = extract(residual, delta, tau, 2 * tau)
    mirror = extract(mirrored, -delta, tau, 2 * tau)
    assert np.array_equal(mirror.positions, found.positions)
    assert np.array_equal(mirror.negative, ~found.negative)
    assert np.array_equal(mirrored, -residual)
    assert mirror.clipped_mass == found.clipped_mass


@settings(max_examples=40, deadline=None)
@given(vectors, vectors, taus, st.floats(1.0, 5.0))
def test_clipped_mass_is_what_clipping_took(residual, delta, tau, multiple):
    unclipped = residual.copy()
    clip = max(multiple * tau, tau)
    without = extract(unclipped, delta, tau, None)
    found = extract(residual, delta, tau, clip)
    assert np.array_equal(found.positions, without.positions)
    assert np.abs(residual).max() <= np.float32(clip)
    lost = np.abs(unclipped.astype(np.float64) - residual).sum()
    assert found.clipped_mass == pytest.approx(lost, rel=1e-12)


def test_positions_run_on_across_chunks():
    n = 3 * 65536 + 5
    delta = np.zeros(n, np.float32)
    at = np.array([0, 65535, 65536, 2 * 65536 - 1, 3 * 65536, n - 1])
    delta[at] = [1, -1, 2, -2, 3, -3]
    residual = np.zeros(n, np.float32)
    found = extract(residual, delta, 1.0, None)
    assert found.positions.tolist() == at.tolist()
    assert found.negative.tolist() == [False, True] * 3
    assert residual[at].tolist() == [0, 0, 1, -1, 2, -2]


def test_exactly_tau_is_sent_and_just_below_is_not():
    below = np.nextafter(np.float32(0.1), np.float32(0))
    residual = np.zeros(3, np.float32)
    found = extract(residual, np.array([0.1, below, -0.1], np.float32), 0.1, None)
    assert found.positions.tolist() == [0, 2]
    assert residual.tolist() == [0.0, below, 0.0]


def test_an_empty_vector_gives_nothing():
    empty = np.zeros(0, np.float32)
    found = extract(empty, empty, 1.0, 5.0)
    assert (found.positions.size, found.negative.size, found.clipped_mass) == (0, 0, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(bad):
    delta = np.zeros(70_000, np.float32)
    delta[65_540] = bad
    with pytest.raises(UserError, match=rf"parameter 65540 \(of 70000\).*received {bad}") as caught:
        extract(np.zeros_like(delta), delta, 1.0, None)
    assert "learning rate" in str(caught.value.hint)


def test_an_overflowing_sum_is_found():
    large = np.full(2, 3e38, np.float32)
    with pytest.raises(UserError, match="received inf"):
        extract(large.copy(), large, 1.0, None)


def test_the_update_may_be_read_only_and_is_left_alone():
    delta = np.ones(4, np.float32)
    delta.flags.writeable = False
    assert extract(np.zeros(4, np.float32), delta, 1.0, None).positions.size == 4


@pytest.mark.parametrize(
    ("residual", "delta", "tau", "clip", "names"),
    [
        (np.zeros(3, np.float32), np.zeros(4, np.float32), 1.0, None, "delta: expected 3"),
        (np.zeros(3), np.zeros(3, np.float32), 1.0, None, "residual: expected a float32"),
        (np.zeros(3, np.float32), np.zeros(3), 1.0, None, "delta: expected a float32"),
        (
            np.zeros((3, 1), np.float32),
            np.zeros((3, 1), np.float32),
            1.0,
            None,
            "residual: expected a float32 vector",
        ),
        (np.zeros(3, np.float32), np.zeros(3, np.float32), 0.0, None, "tau"),
        (np.zeros(3, np.float32), np.zeros(3, np.float32), -1.0, None, "tau"),
        (np.zeros(3, np.float32), np.zeros(3, np.float32), np.nan, None, "tau"),
        (np.zeros(3, np.float32), np.zeros(3, np.float32), np.inf, None, "tau"),
        (np.zeros(3, np.float32), np.zeros(3, np.float32), 1.0, 0.5, "clip"),
        (np.zeros(3, np.float32), np.zeros(3, np.float32), 1.0, np.nan, "clip"),
    ],
)
def test_what_cannot_work_is_refused(residual, delta, tau, clip, names):
    with pytest.raises(ValueError, match=names):
        extract(residual, delta, tau, clip)


def test_add_signed_adds_in_float32_across_chunks():
    n = 150_000
    rng = np.random.default_rng(0)
    target = rng.normal(size=n).astype(np.float32)
    positions = np.flatnonzero(rng.random(n) < 0.9)
    negative = rng.random(positions.size) < 0.5
    expected = target.copy()
    expected[positions] += np.where(negative, np.float32(-0.1), np.float32(0.1))
    add_signed(target, positions, negative, 0.1)
    assert np.array_equal(target, expected)


def test_positions_above_two_to_the_24_stay_exact():
    # A trap on record in the facts: (index + 1) * sign in float32 loses indices above 16 777 216.
    n = 2**24 + 6
    delta = np.zeros(n, np.float32)
    delta[[2**24 + 1, 2**24 + 3]] = [1.0, -1.0]
    assert extract(np.zeros(n, np.float32), delta, 1.0, None).positions.tolist() == [2**24 + 1, 2**24 + 3]
