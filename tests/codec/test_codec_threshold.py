"""The threshold rules and the residual rule."""

from __future__ import annotations

import functools
import json
import math
import operator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.codec import (
    AdaptiveThreshold,
    FixedThreshold,
    ResidualClipping,
    Sent,
    TargetSparsityThreshold,
    Threshold,
    ThresholdMean,
    ThresholdState,
)
from fatwood.errors import OptionError

RULES = [FixedThreshold(tau=0.25), AdaptiveThreshold(initial=0.25), TargetSparsityThreshold(initial=0.25)]
MOVING = [AdaptiveThreshold, TargetSparsityThreshold]
states = st.builds(ThresholdState, st.floats(1e-38, 1e38), st.none() | st.floats(0.0, 1.0))
groups = st.lists(states, min_size=1, max_size=6)


def after(rule, count, n=100_000, tau=1.0):
    return rule.next(ThresholdState(tau), Sent(count, n))[0]


def run(rule, counts, n):
    """Tau of the first step and of one step after each count."""
    tau, state = rule.next(rule.init(), None)
    taus = [tau]
    for count in counts:
        tau, state = rule.next(state, Sent(count, n))
        taus.append(tau)
    return taus


# The sequences. d is the decay; a tau is written as it follows from the one before.


def test_fixed_by_hand():
    assert run(FixedThreshold(tau=0.3), [0, 1, 50, 100], 100) == [0.3, 0.3, 0.3, 0.3, 0.3]


def test_adaptive_by_hand():
    # d = 1/2, the band is 0.1 to 0.3, n = 20: below it are 0 and 1, in it 2 to 6, above it 7 to 20.
    rule = AdaptiveThreshold(initial=8.0, min_sparsity=0.1, max_sparsity=0.3, decay=0.5)
    assert run(rule, [0, 1, 2, 6, 7, 20, 1, 3], 20) == [
        8.0,  # first step: tau0
        4.0,  # s = 0/20 = 0.00 < 0.1: 8 * 1/2
        2.0,  # s = 1/20 = 0.05 < 0.1: 4 * 1/2
        2.0,  # s = 2/20 = 0.10, the lower bound itself: kept
        2.0,  # s = 6/20 = 0.30, the upper bound itself: kept
        4.0,  # s = 7/20 = 0.35 > 0.3: 2 / (1/2)
        8.0,  # s = 20/20 = 1.00 > 0.3: 4 / (1/2)
        4.0,  # s = 0.05 < 0.1: 8 * 1/2
        4.0,  # s = 0.15, in the band: kept
    ]


def test_target_by_hand():
    # d = 1/2, t = 1/20 = 1 of 20: there is no band, one more or one less moves tau.
    rule = TargetSparsityThreshold(initial=8.0, target=0.05, decay=0.5)
    assert run(rule, [0, 0, 1, 2, 20, 0, 1], 20) == [
        8.0,  # first step: tau0
        4.0,  # s = 0.00 < t: 8 * 1/2
        2.0,  # s = 0.00 < t: 4 * 1/2
        2.0,  # s = 0.05 = t: kept
        4.0,  # s = 0.10 > t: 2 / (1/2)
        8.0,  # s = 1.00 > t: 4 / (1/2)
        4.0,  # s = 0.00 < t: 8 * 1/2
        4.0,  # s = t: kept
    ]


# With the defaults d = 0.5 ** (1/20), so d**20 = 1/2; with natural logarithms ln d = -0.69314718056 / 20 = -0.034657359028,
# d = 1 - 0.034657359028 + 0.000600566267 - 0.000006938014 + 0.000000060113 - ... = 0.965936328925, 1/d = 1.035264923841.
D, INVERSE = 0.965936328925, 1.035264923841


def test_adaptive_by_hand_with_the_defaults():
    # n = 100 000: the band is 10 to 1000.
    assert run(AdaptiveThreshold(), [9, 0, 10, 1000, 1001, 100_000, 500], 100_000) == pytest.approx(
        [
            1e-4,  # first step: tau0
            0.965936328925e-4,  # s = 9e-5 < 1e-4: 1e-4 d
            0.933032991537e-4,  # s = 0: 1e-4 d^2 = 1e-4 * 2^(-1/10)
            0.933032991537e-4,  # s = 1e-4: kept
            0.933032991537e-4,  # s = 1e-2: kept
            0.965936328925e-4,  # s = 1.001e-2 > 1e-2: 1e-4 d^2 / d
            1e-4,  # s = 1: 1e-4 d / d
            1e-4,  # s = 5e-3: kept
        ],
        rel=1e-11,
    )


def test_target_by_hand_with_the_defaults():
    # n = 100 000: the target is 100.
    assert run(TargetSparsityThreshold(), [101, 6250, 100, 99, 99, 99], 100_000) == pytest.approx(
        [
            1e-4,  # first step: tau0
            1.035264923841e-4,  # s = 1.01e-3 > 1e-3: 1e-4 / d
            1.071773462536e-4,  # s = 1/16: 1e-4 / d^2 = 1e-4 * 2^(1/10)
            1.071773462536e-4,  # s = t: kept
            1.035264923841e-4,  # s = 9.9e-4 < 1e-3
            1e-4,
            0.965936328925e-4,
        ],
        rel=1e-11,
    )


@pytest.mark.parametrize("rule", MOVING)
def test_tau_halves_in_twenty_quiet_steps_and_doubles_in_twenty_loud_ones(rule):
    quiet, loud = (run(rule(initial=1.0), [count] * 20, 10) for count in (0, 10))
    assert [quiet[1], loud[1]] == pytest.approx([D, INVERSE], rel=1e-11)
    assert [quiet[20], loud[20]] == pytest.approx([0.5, 2.0], rel=1e-12)


def test_defaults_are_those_of_deeplearning4j():
    adaptive, target = AdaptiveThreshold(), TargetSparsityThreshold()
    assert (adaptive.initial, adaptive.min_sparsity, adaptive.max_sparsity) == (1e-4, 1e-4, 1e-2)
    assert (target.initial, target.target) == (1e-4, 1e-3)
    assert adaptive.decay == target.decay == 0.5 ** (1 / 20)
    assert (ResidualClipping().max_multiple, ResidualClipping().every) == (5, 5)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_first_step_has_the_initial_tau_and_state_survives_json(rule):
    assert isinstance(rule, Threshold)
    tau, state = rule.next(rule.init(), None)
    assert tau == 0.25
    _, state = rule.next(state, Sent(5, 10))
    again = ThresholdState(**json.loads(json.dumps(state._asdict())))
    assert rule.next(again, Sent(0, 10)) == rule.next(state, Sent(0, 10))


@pytest.mark.parametrize("rule", MOVING)
def test_where_nothing_is_known_of_the_last_message_the_state_knows(rule):
    # As in Deeplearning4j, where a further fit begins with the merged state: its sparsity moves tau.
    several = [ThresholdState(1.0, 0.0), ThresholdState(3.0, 0.5)]
    merged = rule(decay=0.5).merge(several)
    assert merged == (2.0, 0.25)
    assert rule(decay=0.5).next(merged, None) == (4.0, (4.0, 0.25))
    assert rule(decay=0.5).next(merged, Sent(0, 10)) == (1.0, (1.0, 0.0))


@pytest.mark.parametrize("rule", MOVING)
@pytest.mark.parametrize(("count", "limit"), [(0, 1.1754943508222875e-38), (10, 3.4028234663852886e38)])
def test_tau_stays_within_normal_float32_for_ever(rule, count, limit):
    assert run(rule(decay=0.5), [count] * 400, 10)[-1] == limit


def test_a_measured_start_replaces_the_initial_tau_of_rules_that_move_it():
    assert AdaptiveThreshold().init(0.5) == TargetSparsityThreshold().init(0.5) == ThresholdState(0.5, None)
    assert FixedThreshold(tau=0.25).init(0.5) == ThresholdState(0.25, None)
    assert AdaptiveThreshold().init(0.0).tau == 1.1754943508222875e-38


def test_quantile_says_which_density_to_measure_at():
    assert AdaptiveThreshold(initial="quantile").start_density == pytest.approx(1e-3, rel=1e-12)
    assert TargetSparsityThreshold(initial="quantile", target=0.02).start_density == 0.02
    assert [rule.start_density for rule in RULES] == [None, None, None]
    for rule in MOVING:
        assert rule(initial="quantile").init(0.5) == ThresholdState(0.5)
        with pytest.raises(ValueError, match="measured"):
            rule(initial="quantile").init()


def test_every_option_changes_something():
    assert after(FixedThreshold(tau=2.0), 5) == 2.0
    assert AdaptiveThreshold(initial=2.0).init() != AdaptiveThreshold().init()
    assert after(AdaptiveThreshold(min_sparsity=1e-3), 50) < after(AdaptiveThreshold(), 50)
    assert after(AdaptiveThreshold(max_sparsity=1e-3), 500) > after(AdaptiveThreshold(), 500)
    assert after(AdaptiveThreshold(decay=0.5), 0) == 0.5
    assert TargetSparsityThreshold(initial=2.0).init() != TargetSparsityThreshold().init()
    assert after(TargetSparsityThreshold(target=1e-2), 500) < after(TargetSparsityThreshold(), 500)
    assert after(TargetSparsityThreshold(decay=0.5), 0) == 0.5


@settings(max_examples=60, deadline=None)
@given(groups, st.randoms())
def test_merge_is_the_exact_mean_in_any_order(several, random):
    for rule in (make() for make in MOVING):
        merged = rule.merge(several)
        shuffled = list(several)
        random.shuffle(shuffled)
        assert rule.merge(shuffled) == merged
        assert merged.tau == float(sum(Fraction(s.tau) for s in several) / len(several))
        known = [Fraction(s.sparsity) for s in several if s.sparsity is not None]
        assert merged.sparsity == (float(sum(known) / len(known)) if known else None)
        taus = [s.tau for s in several]
        assert min(taus) <= merged.tau <= max(taus)
        assert rule.merge([several[0]] * 3) == several[0]


@settings(max_examples=60, deadline=None)
@given(groups, groups, groups)
def test_means_are_associative_and_commutative_to_the_last_bit(first, second, third):
    a, b, c = (functools.reduce(operator.add, map(ThresholdMean.of, g)) for g in (first, second, third))
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert ((c + a) + b).state() == AdaptiveThreshold().merge([*first, *second, *third])


def test_a_worker_without_a_sparsity_does_not_pull_the_mean_down():
    several = [ThresholdState(1.0), ThresholdState(1.0, 0.5)]
    assert AdaptiveThreshold().merge(several) == (1.0, 0.5)  # Deeplearning4j: 0.25


def test_merge_of_nothing_is_refused_and_fixed_stays_fixed():
    for rule in MOVING:
        with pytest.raises(ValueError, match="at least one"):
            rule().merge([])
    assert FixedThreshold(tau=2.0).merge([ThresholdState(1.0)]) == ThresholdState(2.0)
    with pytest.raises(TypeError):
        operator.add(ThresholdMean.of(ThresholdState(1.0)), 2.0)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (FixedThreshold, {"tau": 0.0}),
        (FixedThreshold, {"tau": -1.0}),
        (FixedThreshold, {"tau": math.nan}),
        (FixedThreshold, {"tau": math.inf}),
        (FixedThreshold, {"tau": 1e-60}),
        (FixedThreshold, {"tau": "quantile"}),
        (AdaptiveThreshold, {"initial": 0.0}),
        (AdaptiveThreshold, {"initial": "median"}),
        (AdaptiveThreshold, {"initial": True}),
        (AdaptiveThreshold, {"min_sparsity": 0.0}),
        (AdaptiveThreshold, {"min_sparsity": 0.1, "max_sparsity": 0.01}),
        (AdaptiveThreshold, {"max_sparsity": 1.5}),
        (AdaptiveThreshold, {"decay": 0.49}),
        (AdaptiveThreshold, {"decay": 1.0}),
        (TargetSparsityThreshold, {"initial": -1.0}),
        (TargetSparsityThreshold, {"initial": "Quantile"}),
        (TargetSparsityThreshold, {"target": 0.0}),
        (TargetSparsityThreshold, {"target": 1 / 16}),
        (TargetSparsityThreshold, {"target": math.nan}),
        (TargetSparsityThreshold, {"decay": 0.49}),
        (TargetSparsityThreshold, {"decay": 1.0}),
        (ResidualClipping, {"max_multiple": 0.9}),
        (ResidualClipping, {"max_multiple": math.nan}),
        (ResidualClipping, {"max_multiple": math.inf}),
        (ResidualClipping, {"every": 0}),
        (ResidualClipping, {"every": 2.5}),
        (ResidualClipping, {"every": True}),
    ],
)
def test_options_that_cannot_work_are_named(make, options):
    with pytest.raises(
        OptionError, match=rf"{make.__name__}.*{next(iter(options))}.*expected|expected.*received"
    ) as caught:
        make(**options)
    assert caught.value.hint


def test_the_least_and_the_largest_options_work():
    assert TargetSparsityThreshold(target=math.nextafter(1 / 16, 0), decay=0.5).target < 1 / 16
    assert AdaptiveThreshold(min_sparsity=1.0, max_sparsity=1.0, decay=0.5).decay == 0.5


def test_clipping_is_due_every_so_many_steps_but_not_at_the_first():
    assert [step for step in range(16) if ResidualClipping().due(step)] == [5, 10, 15]
    assert [step for step in range(4) if ResidualClipping(every=1).due(step)] == [1, 2, 3]
