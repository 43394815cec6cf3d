"""Layers over sequences and their masks, against formulas in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.migrate import formulas
from tests.migrate.builders import close, filled, function, inside, layer, numbers, output

from fatwood.errors import UserError
from fatwood.migrate.context import Context
from fatwood.migrate.layers import layer_module

# Of five steps: all, the first three, the last two, and with a hole.
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 0, 1, 1, 0]], dtype=float)


def masked(mask: formulas.Array) -> Context:
    return Context(len(mask), torch.from_numpy(mask))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 3),
    inputs=st.integers(1, 4),
    units=st.integers(1, 4),
    steps=st.integers(1, 5),
    activation=st.sampled_from(["TanH", "ReLU", "SoftSign"]),
    gate=st.sampled_from(["Sigmoid", "HardSigmoid", None]),
    kind=st.sampled_from(["LSTM", "GravesLSTM"]),
)
def test_an_lstm_is_its_formula_with_and_without_peepholes(
    rows: int, inputs: int, units: int, steps: int, activation: str, gate: str | None, kind: str
) -> None:
    fields = {} if gate is None else {"gateActivationFn": function(gate)}
    module, own = filled(layer(kind, activation, nIn=inputs, nOut=units, **fields))
    assert own["RW"].shape == (units, 4 * units + (3 if kind == "GravesLSTM" else 0))
    x = numbers(rows, inputs, steps)
    functions = formulas.ACTIVATIONS[activation], formulas.ACTIVATIONS[gate or "Sigmoid"]
    close(output(module, x), formulas.lstm(x, own["W"], own["RW"], own["b"], *functions))


@pytest.mark.parametrize("activation", ["TanH", "ReLU", "Sigmoid"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_recurrence_is_its_formula(activation: str, *, bias: bool) -> None:
    module, own = filled(layer("SimpleRnn", activation, nIn=3, nOut=4, useBias=bias))
    x = numbers(2, 3, 5)
    function_ = formulas.ACTIVATIONS[activation]
    close(output(module, x), formulas.simple_rnn(x, own["W"], own["RW"], own.get("b", 0.0), function_))


def test_torchs_own_layers_run_where_they_are_exact() -> None:
    assert type(layer_module(layer("LSTM", "TanH", nIn=3, nOut=4)).module.layer) is torch.nn.LSTM
    assert type(layer_module(layer("SimpleRnn", "TanH", nIn=3, nOut=4)).module.layer) is torch.nn.RNN
    assert type(layer_module(layer("LSTM", "ReLU", nIn=3, nOut=4)).module.layer) is not torch.nn.LSTM


@pytest.mark.parametrize("kind", ["LSTM", "SimpleRnn"])
def test_the_second_bias_of_torchs_layer_stays_zero_in_training(kind: str) -> None:
    module = layer_module(layer(kind, "TanH", nIn=3, nOut=4)).module
    before = module.layer.bias_ih_l0.detach().clone()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module(torch.ones(2, 3, 5)).sum().backward()
    optimizer.step()
    assert not torch.equal(module.layer.bias_ih_l0, before)
    assert module.layer.bias_hh_l0.count_nonzero() == 0


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("LSTM", "TanH"),
        ("LSTM", "ReLU"),
        ("GravesLSTM", "TanH"),
        ("SimpleRnn", "TanH"),
        ("SimpleRnn", "Cube"),
    ],
)
def test_output_and_state_are_zero_at_steps_that_are_not_real(kind: str, activation: str) -> None:
    module, own = filled(layer(kind, activation, nIn=3, nOut=2))
    x, act = numbers(4, 3, 5), formulas.ACTIVATIONS[activation]
    if kind == "SimpleRnn":
        expected = formulas.simple_rnn(x, own["W"], own["RW"], own["b"], act, MASK)
    else:
        expected = formulas.lstm(x, own["W"], own["RW"], own["b"], act, mask=MASK)
    close(output(module, x, context=masked(MASK)), expected)


def _two(mode: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"mode": mode, "fwd": inside(kind, "TanH", **fields), "bwd": inside(kind, "TanH", **fields)}


@pytest.mark.parametrize("mode", ["CONCAT", "ADD", "MUL", "AVERAGE"])
@pytest.mark.parametrize("mask", [None, MASK])
def test_both_directions_joined(mode: str, mask: formulas.Array | None) -> None:
    module, own = filled(layer("Bidirectional", **_two(mode, "LSTM", nIn=3, nOut=2)))
    assert list(own) == ["fW", "fRW", "fb", "bW", "bRW", "bb"]
    x = numbers(4, 3, 5)
    expected = formulas.both_ways(
        x,
        lambda x, m: formulas.lstm(x, own["fW"], own["fRW"], own["fb"], mask=m),
        lambda x, m: formulas.lstm(x, own["bW"], own["bRW"], own["bb"], mask=m),
        mode,
        mask,
    )
    close(output(module, x, context=None if mask is None else masked(mask)), expected)


def test_the_old_bidirectional_layer_is_the_sum_of_two_with_peepholes() -> None:
    module, own = filled(layer("GravesBidirectionalLSTM", "TanH", nIn=3, nOut=2))
    assert list(own) == ["WF", "RWF", "bF", "WB", "RWB", "bB"]
    x = numbers(4, 3, 5)
    expected = formulas.both_ways(
        x,
        lambda x, _: formulas.lstm(x, own["WF"], own["RWF"], own["bF"]),
        lambda x, _: formulas.lstm(x, own["WB"], own["RWB"], own["bB"]),
        "ADD",
    )
    close(output(module, x), expected)


@pytest.mark.parametrize("kind", ["LSTM", "GravesLSTM", "SimpleRnn"])
def test_sequences_with_the_features_last_are_the_same_but_for_the_layout(kind: str) -> None:
    x = numbers(2, 3, 5)
    first, _ = filled(layer(kind, "TanH", nIn=3, nOut=2))
    last, _ = filled(layer(kind, "TanH", nIn=3, nOut=2, rnnDataFormat="NWC"))
    close(output(last, x.swapaxes(1, 2)), output(first, x).swapaxes(1, 2))
    first, _ = filled(layer("Bidirectional", **_two("CONCAT", kind, nIn=3, nOut=2)))
    last, _ = filled(layer("Bidirectional", **_two("CONCAT", kind, nIn=3, nOut=2, rnnDataFormat="NWC")))
    close(output(last, x.swapaxes(1, 2)), output(first, x).swapaxes(1, 2))


@pytest.mark.parametrize("mask", [None, MASK, np.zeros((4, 5))])
@pytest.mark.parametrize("layout", ["NCW", "NWC"])
def test_the_last_step_is_the_last_real_one(mask: formulas.Array | None, layout: str) -> None:
    within = inside("SimpleRnn", "TanH", nIn=3, nOut=2, rnnDataFormat=layout)
    module, own = filled(layer("LastTimeStep", underlying=within))
    x = numbers(4, 3, 5)
    outputs = formulas.simple_rnn(x, own["W"], own["RW"], own["b"], mask=mask)
    given_ = x if layout == "NCW" else x.swapaxes(1, 2)
    received = output(module, given_, context=None if mask is None else masked(mask))
    close(received, formulas.last_step(outputs, mask))


def test_a_number_can_stand_for_steps_that_are_not_real() -> None:
    within = inside("LSTM", "TanH", nIn=3, nOut=2)
    module, own = filled(layer("MaskZeroLayer", underlying=within, maskingValue=-7.0))
    x = numbers(4, 3, 5)
    given_ = np.where(MASK[:, None] == 1, x, -7.0)
    close(output(module, given_), formulas.lstm(x, own["W"], own["RW"], own["b"], mask=MASK))


@pytest.mark.parametrize("kind", ["MAX", "AVG", "SUM", "PNORM"])
def test_global_pooling_sees_the_real_steps_only(kind: str) -> None:
    module, _ = filled(layer("GlobalPoolingLayer", poolingType=kind, pnorm=3))
    x = numbers(4, 3, 5)
    close(output(module, x, context=masked(MASK)), formulas.global_pool(x, kind, MASK, power=3))


def test_a_mask_layer_has_zeros_at_steps_that_are_not_real() -> None:
    module, _ = filled(layer("MaskLayer"))
    x = numbers(4, 3, 5)
    close(output(module, x, context=masked(MASK)), x * MASK[:, None])
    close(output(module, x), x)


def test_a_mask_of_another_length_is_refused() -> None:
    module, _ = filled(layer("LSTM", "TanH", nIn=3, nOut=2))
    with pytest.raises(UserError, match=r"mask of a sequence: expected shape \(4, 6\), received \(4, 5\)"):
        output(module, numbers(4, 3, 6), context=masked(MASK))
