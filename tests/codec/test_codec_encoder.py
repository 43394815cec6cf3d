"""The encoder over many steps: nothing lost, everything resumed, replicas equal."""

from __future__ import annotations

import json

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
    encode,
    encode_values,
)
from fatwood.codec.vectors import Difference
from fatwood.errors import NotFiniteError, OptionError, ProtocolError
from fatwood.testing.strategies import float32_vectors

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
        coders.add(decode(wire, N, step).coder)
        apply_messages([wire], target, [1.0], step)
        total += delta
        assert np.array_equal(target.astype(np.float64) + encoder.residual, total)
    assert coders == {Coder.RICE, Coder.TERNARY}, (
        "the test must cross the switch between sparse and dense, where Deeplearning4j loses mass"
    )


def test_clipped_mass_is_reported_and_balances():
    encoder = ThresholdEncoder(N, FixedThreshold(tau=0.25), ResidualClipping(max_multiple=2, every=2))
    target, total, clipped = np.zeros(N, np.float32), np.zeros(N), []
    delta = np.full(N, 2.0, np.float32)
    for step in range(4):
        apply_messages([encoder.encode(delta, step)], target, [1.0], step)
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
    apply_messages([encoder.encode(np.zeros(N, np.float32), 0)], target, [1.0], 0)
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
        (None, {"threshold": 3, "sent": None}),
        (None, {"threshold": {"tau": 1.0, "sparsity": 1.5}, "sent": None}),
        (None, {"threshold": {"tau": 1.0, "sparsity": "x"}, "sent": None}),
        (None, {"threshold": None, "sent": {"count": 2, "n": N}}),
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


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_named(device, bad):
    encoder = ThresholdEncoder(N, FixedThreshold(), None, device=device)
    delta = np.zeros(N, np.float32)
    delta[[3, 400]] = bad
    with pytest.raises(NotFiniteError, match=r"parameter 3 \(of 500\)") as caught:
        encoder.encode(delta, 0)
    assert (caught.value.position, caught.value.n) == (3, N)
    assert encoder.last is None


# Laws of the scheme.

CONFIGURATIONS = [
    {"threshold": AdaptiveThreshold(initial=0.5), "clipping": ResidualClipping(max_multiple=1, every=2)},
    {"threshold": FixedThreshold(tau=0.01), "clipping": None},
    {
        "threshold": TargetSparsityThreshold(initial="quantile"),
        "clipping": ResidualClipping(),
        "warmup": DensityWarmup(steps=3, initial=1.0),
    },
]


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_arrays_and_tensors_give_the_same_bytes_and_residuals(options):
    arrays = ThresholdEncoder(N, **options, debug=True)
    tensors = ThresholdEncoder(N, **options, debug=True, device=torch.device("cpu"))
    assert isinstance(tensors.residual, torch.Tensor)
    for step, delta in enumerate(updates(8)):
        given = torch.from_numpy(delta) if step % 2 else delta  # either kind is taken
        assert arrays.encode(given, step) == tensors.encode(given, step)
        assert arrays.residual.tobytes() == tensors.residual.numpy().tobytes()
        assert arrays.last.clipped_mass == pytest.approx(tensors.last.clipped_mass)
    saved = tensors.state_arrays(), tensors.state_json()
    arrays.load_state(*saved)
    again = ThresholdEncoder(N, **options, device=torch.device("cpu"))
    again.load_state(*saved)
    delta = updates(1, seed=5)[0]
    assert arrays.encode(delta, 8) == tensors.encode(delta, 8) == again.encode(delta, 8)
    assert saved[0]["residual"].tobytes() != tensors.residual.numpy().tobytes()  # it was a copy


@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=["array", "tensor"])
@pytest.mark.parametrize(
    "options",
    [
        {"clipping": ResidualClipping()},
        {"clipping": None, "warmup": DensityWarmup(steps=4, initial=1.0, final=0.1)},
        {"clipping": None, "debug": True},
    ],
    ids=["clipping", "warmup", "debug"],
)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_difference_gives_the_bytes_of_its_vector(options, device, seed):
    one, other = (ThresholdEncoder(N, FixedThreshold(tau=0.5), device=device, **options) for _ in "12")
    for step, (after, before) in enumerate(zip(updates(5, seed), updates(5, seed + 1), strict=True)):
        kept = after.copy(), before.copy()
        encoded = other.encode(after - before, step)
        given = [vector if device is None else torch.from_numpy(vector) for vector in (after, before)]
        assert one.encode(Difference(*given, put_back=step % 2 == 1), step) == encoded
        assert one.last == other.last
        np.testing.assert_array_equal([after, before], (kept[1], kept[1]) if step % 2 else kept)
    np.testing.assert_array_equal(np.asarray(one.residual), np.asarray(other.residual))


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_two_encoders_fed_the_same_give_the_same_bytes_on_any_number_of_threads(options):
    one, two = ThresholdEncoder(N, **options), ThresholdEncoder(N, **options, threads=2)
    for step, delta in enumerate(updates(8)):
        assert one.encode(delta, step) == two.encode(delta, step)


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_a_mirrored_update_gives_a_mirrored_message(options):
    # Deeplearning4j's bitmap has a half step for negative values only.
    one, two = ThresholdEncoder(N, **options), ThresholdEncoder(N, **options)
    for step, delta in enumerate(updates(8)):
        sent, mirrored = (decode(e.encode(d, step), N, step) for e, d in ((one, delta), (two, -delta)))
        assert np.array_equal(sent.dense(), -mirrored.dense())
        assert np.array_equal(one.residual, -two.residual)


def test_a_read_only_update_is_taken_and_left_alone():
    delta = updates(1)[0]
    before = delta.copy()
    delta.setflags(write=False)
    for device in (None, torch.device("cpu")):
        ThresholdEncoder(N, FixedThreshold(), None, device=device).encode(delta, 0)
    assert np.array_equal(delta, before)


@pytest.mark.parametrize(
    "delta", [np.zeros(N + 1, np.float32), np.zeros(N), torch.zeros(1), torch.zeros(1, N)]
)
@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_an_update_of_another_shape_or_type_is_refused(delta, device):
    encoder = ThresholdEncoder(N, AdaptiveThreshold(initial="quantile"), None, device=device)
    with pytest.raises(ValueError, match="delta: expected 500 float32 numbers"):
        encoder.encode(delta, 0)


def test_a_network_without_parameters_sends_empty_messages():
    for options in CONFIGURATIONS:
        encoder = ThresholdEncoder(0, **options, debug=True)
        for step in range(5):
            wire = encoder.encode(np.zeros(0, np.float32), step)
            apply_messages([wire], np.zeros(0, np.float32), [1.0], step)


def test_debug_measures_what_was_sent_and_changes_no_byte():
    plain = ThresholdEncoder(N, AdaptiveThreshold(initial=0.5), ResidualClipping())
    debugged = ThresholdEncoder(N, AdaptiveThreshold(initial=0.5), ResidualClipping(), debug=True)
    for step, delta in enumerate(updates(6)):
        values = np.abs(debugged.residual + delta)
        wire = debugged.encode(delta, step)
        assert wire == plain.encode(delta, step)
        assert plain.last.debug is None
        record, last = debugged.last.debug, debugged.last
        assert (record.step, record.n, record.bytes) == (step, N, len(wire))
        assert (record.tau, record.count, record.clipped_mass) == (last.tau, last.count, last.clipped_mass)
        assert record.multiples.max == pytest.approx(values.max() / last.tau)
        assert record.residual_norm == pytest.approx(np.linalg.norm(debugged.residual.astype(np.float64)))


def test_a_state_that_was_saved_before_sparsities_were_kept_is_loaded():
    encoder = ThresholdEncoder(N, TargetSparsityThreshold(decay=0.5), None)
    old = {"threshold": {"tau": 0.25}, "sent": {"count": 400, "n": N}}
    encoder.load_state({"residual": np.zeros(N, np.float32)}, old)
    assert encoder.state_json() == {"threshold": {"tau": 0.25, "sparsity": None}, "sent": old["sent"]}
    encoder.encode(updates(1)[0], 7)
    assert encoder.last.tau == 0.5
    assert encoder.state_json()["threshold"] == {"tau": 0.5, "sparsity": 0.8}


# Messages of several workers.


def wires_of(seed, step=0):
    """Five messages of all coders, the dense ones in the midst."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=N).astype(np.float32)
    sparse = [
        ThresholdEncoder(N, FixedThreshold(tau=tau), None).encode(updates(1, seed + i)[0], step)
        for i, tau in enumerate((6.0, 0.5, 1.0))
    ]
    dense = [encode_values(step, values)[0], encode_values(step, values * 1e6)[0]]
    wires = [sparse[0], sparse[1], dense[0], sparse[2], dense[1], sparse[0]]
    assert {decode(wire, N, step).coder for wire in wires} == set(Coder)
    return wires


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(6)), st.integers(1, 3))
def test_a_merged_sweep_is_bitwise_one_message_after_the_other(seed, order, threads):
    wires = [wires_of(seed)[i] for i in order]
    scales = [0.1 * (i + 1) for i in order]
    start = np.random.default_rng(seed).normal(size=N).astype(np.float32)
    one, merged, tensor = start.copy(), start.copy(), torch.from_numpy(start.copy())
    for wire, scale in zip(wires, scales, strict=True):
        apply_messages([wire], one, [scale], 0)
    apply_messages(wires, merged, scales, 0, threads=threads)
    apply_messages(wires, tensor, scales, 0)
    assert one.tobytes() == merged.tobytes() == tensor.numpy().tobytes()


def test_replicas_that_apply_the_same_messages_are_bitwise_equal():
    workers = [ThresholdEncoder(N, AdaptiveThreshold(initial=0.5), None) for _ in range(3)]
    replicas = [np.random.default_rng(9).normal(size=N).astype(np.float32) for _ in range(3)]
    for step in range(5):
        wires = [w.encode(updates(1, seed=10 * step + rank)[0], step) for rank, w in enumerate(workers)]
        for replica in replicas:
            apply_messages(wires, replica, [1 / 3] * 3, step)
    assert replicas[0].tobytes() == replicas[1].tobytes() == replicas[2].tobytes()


def test_the_value_applied_is_tau_times_scale_rounded_once():
    positions, negative = np.array([0, 1]), np.array([False, True])
    expected = np.float32(float(np.float32(0.1)) / 3)
    for coder in Coder:
        if coder is Coder.DENSE16:  # has no room for this tau
            continue
        wire = encode(0, 2, 0.1, positions, negative, coder=coder)
        target = np.zeros(2, np.float32)
        apply_messages([memoryview(wire)], target, [1 / 3], 0)
        assert target.tolist() == [expected, -expected]


@settings(max_examples=20, deadline=None)
@given(float32_vectors(20), st.floats(-2.0, 2.0))
def test_dense_values_are_scaled_in_float64_and_rounded_once(values, scale):
    wire, sent = encode_values(0, values)
    target = np.zeros(20, np.float32)
    apply_messages([wire], target, [scale], 0)
    assert np.array_equal(target, (sent.astype(np.float64) * scale).astype(np.float32))


@pytest.mark.parametrize("make", [lambda a: a, torch.from_numpy], ids=["array", "tensor"])
def test_when_one_message_is_refused_none_is_applied(make):
    good = encode(4, 3, 0.5, np.array([0, 2]), np.array([False, True]))
    values, _ = encode_values(4, np.array([1.0, 2.0, 3.0], np.float32))
    target = make(np.arange(3, dtype=np.float32))
    for bad in (good[:-1], encode(5, 3, 0.5, np.array([0]), np.array([False])), b""):
        with pytest.raises(ProtocolError):
            apply_messages([good, values, bad], target, [1.0] * 3, 4)
    with pytest.raises(ProtocolError):
        apply_messages([good, encode(4, 4, 0.5, np.array([0]), np.array([False]))], target, [1.0, 1.0], 4)
    for scale in (np.nan, np.inf, 1e60):
        for last in (good, values):
            with pytest.raises(ValueError, match="scale"):
                apply_messages([good, last], target, [1.0, scale], 4)
    with pytest.raises(ValueError, match="zip"):
        apply_messages([good, good], target, [1.0], 4)
    for wrong in (np.zeros(3), np.zeros((3, 1), np.float32), np.zeros(6, np.float32)[::2]):
        with pytest.raises(ValueError, match="target"):
            apply_messages([good], make(wrong), [1.0], 4)
    assert target.tolist() == [0.0, 1.0, 2.0]


def test_several_targets_are_as_several_calls():
    wires = wires_of(3)
    targets = [np.full(N, value, np.float32) for value in (0.0, 0.5, -3.0)]
    alone = [target.copy() for target in targets]
    apply_messages(wires, targets[0], [0.25] * len(wires), 0, others=targets[1:])
    for target in alone:
        apply_messages(wires, target, [0.25] * len(wires), 0)
    np.testing.assert_array_equal(targets, alone)
    with pytest.raises(ValueError, match="target: expected"):
        apply_messages(wires, targets[0], [0.25] * len(wires), 0, others=[np.zeros(N + 1, np.float32)])
    np.testing.assert_array_equal(targets, alone)


def test_a_difference_that_cannot_be_put_back_is_refused():
    encoder = ThresholdEncoder(N, FixedThreshold(tau=0.5), None, device=torch.device("cpu"))
    after = np.zeros(N, np.float32)
    after.flags.writeable = False
    with pytest.raises(ValueError, match="put back"):
        encoder.encode(Difference(after, np.ones(N, np.float32), put_back=True), 0)


def test_no_messages_change_nothing():
    target = np.array([-0.0, 1.0], np.float32)
    apply_messages([], target, [], 0)
    assert target.tobytes() == np.array([-0.0, 1.0], np.float32).tobytes()
