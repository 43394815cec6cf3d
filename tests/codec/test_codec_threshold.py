"""The threshold rules and the residual rule."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.codec import AdaptiveThreshold, FixedThreshold, ResidualClipping, Sent, ThresholdState
from fatwood.errors import OptionError

RULES = [FixedThreshold(tau=0.25), AdaptiveThreshold(initial=0.25)]
states = st.lists(st.builds(ThresholdState, st.floats(1e-6, 1e3)), min_size=1, max_size=6)


def after(rule, count, n=100_000, tau=1.0):
    return rule.next(ThresholdState(tau), Sent(count, n))[0]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_first_step_has_the_initial_tau_and_state_survives_json(rule):
    tau, state = rule.next(rule.init(), None)
    assert tau == 0.25
    again = ThresholdState(**json.loads(json.dumps(state._asdict())))
    assert rule.next(again, Sent(0, 10)) == rule.next(state, Sent(0, 10))


def test_adaptive_follows_the_published_rule():
    rule = AdaptiveThreshold()
    decay = 0.5 ** (1 / 20)
    assert rule.initial == 1e-3
    assert after(rule, 9) == decay  # below 1e-4 of 100 000
    assert after(rule, 10) == 1.0  # exactly the lower bound
    assert after(rule, 1000) == 1.0  # exactly the upper bound
    assert after(rule, 1001) == 1.0 / decay


def test_adaptive_halves_tau_in_twenty_quiet_steps():
    rule = AdaptiveThreshold(initial=1.0)
    tau, state = rule.next(rule.init(), None)
    for _ in range(20):
        tau, state = rule.next(state, Sent(0, 10))
    assert tau == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize(("count", "limit"), [(0, 1.1754943508222875e-38), (10, 3.4028234663852886e38)])
def test_adaptive_stays_within_normal_float32_for_ever(count, limit):
    rule = AdaptiveThreshold(decay=0.5)
    state = rule.init()
    for _ in range(400):
        tau, state = rule.next(state, Sent(count, 10))
    assert tau == limit


def test_every_option_changes_something():
    assert after(FixedThreshold(tau=2.0), 5) == 2.0
    assert AdaptiveThreshold(initial=2.0).init() != AdaptiveThreshold().init()
    assert after(AdaptiveThreshold(min_sparsity=1e-3), 50) < after(AdaptiveThreshold(), 50)
    assert after(AdaptiveThreshold(max_sparsity=1e-3), 500) > after(AdaptiveThreshold(), 500)
    assert after(AdaptiveThreshold(decay=0.5), 0) == 0.5


@settings(max_examples=50)
@given(states, st.randoms())
def test_merge_is_a_mean_in_any_order(several, random):
    rule = AdaptiveThreshold()
    merged = rule.merge(several)
    shuffled = list(several)
    random.shuffle(shuffled)
    assert rule.merge(shuffled) == merged
    assert min(several).tau <= merged.tau <= max(several).tau
    assert merged.tau == pytest.approx(math.fsum(s.tau for s in several) / len(several))
    assert rule.merge([several[0]] * 3) == several[0]


def test_merge_of_nothing_is_refused_and_fixed_stays_fixed():
    with pytest.raises(ValueError, match="at least one"):
        AdaptiveThreshold().merge([])
    assert FixedThreshold(tau=2.0).merge([ThresholdState(1.0)]) == ThresholdState(2.0)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (FixedThreshold, {"tau": 0.0}),
        (FixedThreshold, {"tau": -1.0}),
        (FixedThreshold, {"tau": math.nan}),
        (FixedThreshold, {"tau": math.inf}),
        (FixedThreshold, {"tau": 1e-60}),
        (AdaptiveThreshold, {"initial": 0.0}),
        (AdaptiveThreshold, {"min_sparsity": 0.0}),
        (AdaptiveThreshold, {"min_sparsity": 0.1, "max_sparsity": 0.01}),
        (AdaptiveThreshold, {"max_sparsity": 1.5}),
        (AdaptiveThreshold, {"decay": 0.49}),
        (AdaptiveThreshold, {"decay": 1.0}),
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


def test_clipping_is_due_every_so_many_steps_but_not_at_the_first():
    assert [step for step in range(16) if ResidualClipping().due(step)] == [5, 10, 15]
    assert [step for step in range(4) if ResidualClipping(every=1).due(step)] == [1, 2, 3]
