"""The encoder over many steps: nothing lost, everything resumed, replicas equal."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.codec import (
    AdaptiveThreshold,
    FixedThreshold,
    ResidualClipping,
    ThresholdEncoder,
    apply_message,
    decode,
    encode,
)
from fatwood.errors import OptionError, ProtocolError, UserError

N = 500


def updates(steps, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.laplace(size=N)).astype(np.float32) for _ in range(steps)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.01, 0.3, 1.0, 4.0]), st.integers(1, 12))
def test_all_that_went_in_is_sent_or_kept(seed, tau, steps):
    encoder = ThresholdEncoder(N, FixedThreshold(tau=tau), None)
    sent = np.zeros(N)
    total = np.zeros(N)
    for step, delta in enumerate(updates(steps, seed)):
        wire = encoder.encode(delta, step)
        message = decode(wire, N, step)
        sent[message.positions] += np.where(message.negative, -message.tau, message.tau)
        total += delta
    # Two float32 roundings per step, each at most half a unit in the last place of what then lay in the residual.
    tolerance = steps * np.spacing(np.float32(np.abs(total).max() + np.abs(sent).max() + steps * 20))
    assert np.abs(sent + encoder.residual - total).max() <= tolerance


def test_conservation_is_exact_on_a_grid_through_every_coder():
    # Multiples of 1/64 and tau = 1/4: no float32 operation rounds, so the books must balance to the last bit.
    rng = np.random.default_rng(1)
    encoder = ThresholdEncoder(N, FixedThreshold(tau=0.25), None)
    target, total, coders = np.zeros(N, np.float32), np.zeros(N), set()
    for step, spread in enumerate([0.02, 4.0, 0.05, 8.0, 0.1, 0.0]):
        delta = (np.round(64 * spread * rng.normal(size=N)) / 64).astype(np.float32)
        wire = encoder.encode(delta, step)
        coders.add(wire[5])
        apply_message(wire, target, 1.0, step)
        total += delta
        assert np.array_equal(target.astype(np.float64) + encoder.residual, total)
    assert coders == {1, 2}, (
        "the test must cross the switch between sparse and dense, where Deeplearning4j loses mass"
    )


def test_clipped_mass_is_reported_and_balances():
    encoder = ThresholdEncoder(N, FixedThreshold(tau=0.25), ResidualClipping(max_multiple=2, every=2))
    target, total, clipped = np.zeros(N, np.float32), np.zeros(N), []
    delta = np.full(N, 2.0, np.float32)
    for step in range(4):
        apply_message(encoder.encode(delta, step), target, 1.0, step)
        total += delta
        clipped.append(encoder.last.clipped_mass)
    assert clipped[0] == clipped[1] == clipped[3] == 0.0  # step 0 is never due
    assert clipped[2] == N * (6.0 - 3 * 0.25 - 0.5)
    missing = total - target - encoder.residual
    assert missing.sum() == sum(clipped)


def test_last_tells_what_was_sent():
    encoder = ThresholdEncoder(4, FixedThreshold(tau=0.1), None)
    assert encoder.last is None
    wire = encoder.encode(np.array([1, 0, -1, 0.05], np.float32), 0)
    assert encoder.last.tau == float(np.float32(0.1))
    assert (encoder.last.count, encoder.last.bytes, encoder.last.clipped_mass) == (2, len(wire), 0.0)


def test_one_lone_element_is_sent():
    # Deeplearning4j turns fewer than two hits into none.
    encoder = ThresholdEncoder(N, FixedThreshold(tau=1.0), None)
    delta = np.zeros(N, np.float32)
    delta[7] = -1.0
    message = decode(encoder.encode(delta, 0), N)
    assert (message.positions.tolist(), message.negative.tolist()) == ([7], [True])


def test_nothing_to_send_is_a_message_too():
    encoder = ThresholdEncoder(N, FixedThreshold(tau=1.0), None)
    target = np.ones(N, np.float32)
    apply_message(encoder.encode(np.zeros(N, np.float32), 0), target, 1.0, 0)
    assert np.array_equal(target, np.ones(N, np.float32))


def test_tau_adapts_to_what_was_sent():
    encoder = ThresholdEncoder(N, AdaptiveThreshold(initial=1e-3), None)
    taus = []
    for step, delta in enumerate(updates(3)):
        encoder.encode(delta, step)
        taus.append(encoder.last.tau)
    assert taus[0] < taus[1] < taus[2]  # nearly everything was sent: far too dense
    assert taus[0] == float(np.float32(1e-3))


def test_a_saved_encoder_goes_on_bit_for_bit():
    deltas = updates(12, scale=0.01)

    def fresh():
        return ThresholdEncoder(N, AdaptiveThreshold(), ResidualClipping())

    straight = fresh()
    expected = [straight.encode(delta, step) for step, delta in enumerate(deltas)]
    for stop in (0, 1, 5, 6, 11):
        first, second = fresh(), fresh()
        for step in range(stop):
            first.encode(deltas[step], step)
        arrays, text = first.state_arrays(), json.dumps(first.state_json())
        if stop:
            first.encode(deltas[stop], stop)  # must not reach into the saved arrays
        second.load_state(arrays, json.loads(text))
        assert [second.encode(deltas[step], step) for step in range(stop, 12)] == expected[stop:]


@pytest.mark.parametrize(
    ("arrays", "state"),
    [
        ({}, None),
        ({"residual": np.zeros(N + 1, np.float32)}, None),
        ({"residual": np.zeros(N)}, None),
        (None, {}),
        (None, {"threshold": {}, "sent": None}),
        (None, {"threshold": {"tau": "x"}, "sent": None}),
        (None, {"threshold": {"tau": 0.0}, "sent": None}),
        (None, {"threshold": {"tau": float("nan")}, "sent": None}),
        (None, {"threshold": {"tau": 1.0}, "sent": {"count": 2, "n": N + 1}}),
        (None, {"threshold": {"tau": 1.0}, "sent": {"count": N + 1, "n": N}}),
        (None, {"threshold": {"tau": 1.0}, "sent": 3}),
    ],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(arrays, state):
    encoder = ThresholdEncoder(N, AdaptiveThreshold(), None)
    encoder.encode(updates(1)[0], 0)
    before = encoder.state_arrays()["residual"], encoder.state_json()
    with pytest.raises(OptionError, match="encoder state"):
        encoder.load_state(
            encoder.state_arrays() if arrays is None else arrays,
            encoder.state_json() if state is None else state,
        )
    assert np.array_equal(encoder.residual, before[0])
    assert encoder.state_json() == before[1]


def test_an_update_that_is_not_finite_is_named():
    encoder = ThresholdEncoder(N, FixedThreshold(), None)
    delta = np.zeros(N, np.float32)
    delta[3] = np.nan
    with pytest.raises(UserError, match="parameter 3"):
        encoder.encode(delta, 0)


def test_replicas_that_apply_the_same_messages_are_bitwise_equal():
    workers = [ThresholdEncoder(N, AdaptiveThreshold(initial=0.5), None) for _ in range(3)]
    replicas = [np.random.default_rng(9).normal(size=N).astype(np.float32) for _ in range(3)]
    for step in range(5):
        wires = [w.encode(updates(1, seed=10 * step + rank)[0], step) for rank, w in enumerate(workers)]
        for replica in replicas:
            for wire in wires:
                apply_message(wire, replica, 1 / 3, step)
    assert replicas[0].tobytes() == replicas[1].tobytes() == replicas[2].tobytes()


def test_the_value_applied_is_tau_times_scale_rounded_once():
    wire = encode(0, 2, 0.1, np.array([0, 1]), np.array([False, True]))
    target = np.zeros(2, np.float32)
    apply_message(wire, target, 1 / 3, 0)
    assert target.tolist() == [
        np.float32(float(np.float32(0.1)) / 3),
        -np.float32(float(np.float32(0.1)) / 3),
    ]


def test_a_refused_message_leaves_the_target_alone():
    wire = encode(4, 3, 0.5, np.array([0, 2]), np.array([False, True]))
    target = np.arange(3, dtype=np.float32)
    for message, step in ((wire[:-1], 4), (wire, 5)):
        with pytest.raises(ProtocolError):
            apply_message(message, target, 1.0, step)
    with pytest.raises(ProtocolError, match="number of parameters: expected 4, received 3"):
        apply_message(wire, np.zeros(4, np.float32), 1.0, 4)
    for scale in (np.nan, np.inf, 1e60):
        with pytest.raises(ValueError, match="scale"):
            apply_message(wire, target, scale, 4)
    with pytest.raises(ValueError, match="target"):
        apply_message(wire, target.astype(np.float64), 1.0, 4)
    assert target.tolist() == [0.0, 1.0, 2.0]
