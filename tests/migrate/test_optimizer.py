"""The optimizer goes on where the original stopped: three more steps of both, the original's by its formulas in NumPy."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.migrate import writer

from fatwood.errors import DamagedError, OptionError
from fatwood.migrate import MigratedNetwork, from_dl4j
from fatwood.migrate.updaters import number

Array = NDArray[np.float64]
LR, EPS, STEPS = 0.05, 1e-8, 7
L2 = "org.nd4j.linalg.learning.regularization.L2Regularization"

# Dense 3 x 4, batch normalisation of 4, output 4 x 2; in the order of the flat vector.
SHAPES = {
    "dense.W": (3, 4),
    "dense.b": (1, 4),
    "norm.gamma": (1, 4),
    "norm.beta": (1, 4),
    "norm.mean": (1, 4),
    "norm.var": (1, 4),
    "out.W": (4, 2),
    "out.b": (1, 2),
}
TRAINED = [name for name in SHAPES if name not in ("norm.mean", "norm.var")]
TENSORS = {  # where the network has them; weights are transposed there
    "dense.W": "layers.dense.linear.weight",
    "dense.b": "layers.dense.linear.bias",
    "norm.gamma": "layers.norm.weight",
    "norm.beta": "layers.norm.bias",
    "out.W": "layers.out.linear.weight",
    "out.b": "layers.out.linear.bias",
}


def numbers(seed: int) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {name: generator.uniform(0.2, 2.0, shape) for name, shape in SHAPES.items()}


def saved(
    updaters: dict[str, dict[str, Any]], state: Array | None, *, iteration: int = STEPS, **fields: Any
) -> io.BytesIO:
    """The network, trained by an updater for each layer."""
    dense = {"activation": "TanH", "hasBias": True, **fields}
    loss = {"@class": "org.nd4j.linalg.lossfunctions.impl.LossMCXENT"}
    layers = [
        writer.layer("DenseLayer", layerName="dense", nIn=3, nOut=4, iUpdater=updaters["dense"], **dense),
        writer.layer(
            "BatchNormalization",
            layerName="norm",
            nIn=4,
            nOut=4,
            eps=1e-5,
            decay=0.9,
            lockGammaBeta=False,
            useLogStd=False,
            iUpdater=updaters["norm"],
        ),
        writer.layer(
            "OutputLayer",
            activation="Softmax",
            layerName="out",
            nIn=4,
            nOut=2,
            hasBias=True,
            lossFn=loss,
            iUpdater=updaters["out"],
        ),
    ]
    file = io.BytesIO()
    configuration = writer.layer_network(layers, iteration=iteration)
    writer.write_network(file, configuration, list(numbers(0).values()), state)
    return file


def everywhere(updater: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(("dense", "norm", "out"), updater)


def state_of(kept: dict[str, list[Array]], blocks: list[list[str]]) -> Array:
    """Of each block the first number of all its parameters, then the second of all."""
    pieces = [
        kept[name][k].ravel(order="F")
        for block in blocks
        for k in range(len(kept[block[0]]))
        for name in block
    ]
    return np.concatenate(pieces)


BLOCKS = [["dense.W", "dense.b", "norm.gamma", "norm.beta"], ["out.W", "out.b"]]

Rule = Callable[[list[Array], Array, int], Array]


def sgd(kept: list[Array], g: Array, t: int) -> Array:
    return LR * g


def nesterovs(kept: list[Array], g: Array, t: int) -> Array:
    before = 0.9 * kept[0]
    kept[0] = before - LR * g
    return before - 1.9 * kept[0]


def adam(kept: list[Array], g: Array, t: int) -> Array:
    kept[0] = 0.9 * kept[0] + 0.1 * g
    kept[1] = 0.99 * kept[1] + 0.01 * g * g
    return LR * np.sqrt(1 - 0.99**t) / (1 - 0.9**t) * kept[0] / (np.sqrt(kept[1]) + EPS)


def amsgrad(kept: list[Array], g: Array, t: int) -> Array:
    kept[0] = 0.9 * kept[0] + 0.1 * g
    kept[1] = 0.99 * kept[1] + 0.01 * g * g
    kept[2] = np.maximum(kept[2], kept[1])
    return LR * np.sqrt(1 - 0.99**t) / (1 - 0.9**t) * kept[0] / (np.sqrt(kept[2]) + EPS)


def adamax(kept: list[Array], g: Array, t: int) -> Array:
    kept[0] = 0.9 * kept[0] + 0.1 * g
    kept[1] = np.maximum(0.99 * kept[1], np.abs(g)) + 1e-32
    return LR / (1 - 0.9**t) * kept[0] / kept[1]


def rms_prop(kept: list[Array], g: Array, t: int) -> Array:
    kept[0] = 0.95 * kept[0] + 0.05 * g * g
    return LR * g / (np.sqrt(kept[0]) + EPS)


def ada_grad(kept: list[Array], g: Array, t: int) -> Array:
    kept[0] = kept[0] + g * g
    return LR * g / (np.sqrt(kept[0]) + EPS)


def ada_delta(kept: list[Array], g: Array, t: int) -> Array:
    kept[0] = 0.95 * kept[0] + 0.05 * g * g
    update = g * np.sqrt(kept[1] + EPS) / np.sqrt(kept[0] + EPS)
    kept[1] = 0.95 * kept[1] + 0.05 * update * update
    return update


MOMENTS = {"beta1": 0.9, "beta2": 0.99, "epsilon": EPS, "learningRate": LR}
UPDATERS: dict[str, tuple[Rule, int, dict[str, float]]] = {
    "Sgd": (sgd, 0, {"learningRate": LR}),
    "Nesterovs": (nesterovs, 1, {"learningRate": LR, "momentum": 0.9}),
    "Adam": (adam, 2, MOMENTS),
    "AMSGrad": (amsgrad, 3, MOMENTS),
    "AdaMax": (adamax, 2, MOMENTS),
    "RmsProp": (rms_prop, 1, {"learningRate": LR, "rmsDecay": 0.95, "epsilon": EPS}),
    "AdaGrad": (ada_grad, 1, {"learningRate": LR, "epsilon": EPS}),
    "AdaDelta": (ada_delta, 2, {"rho": 0.95, "epsilon": EPS}),
}


def kept_by(states: int) -> dict[str, list[Array]]:
    return {name: [numbers(10 + k)[name] for k in range(states)] for name in TRAINED}


def go_on(
    old: MigratedNetwork, rules: dict[str, Rule], kept: dict[str, list[Array]], decay: float = 0.0
) -> None:
    """Three steps of both with the same gradients; the parameters must stay equal, but for where Adam adds its 1e-8."""
    assert old.optimizer is not None
    shipped = pickle.loads(pickle.dumps(old.optimizer))
    optimizer = shipped(old.network.parameters())
    tensors = dict(old.network.named_parameters())
    own = numbers(0)
    for step in range(3):
        gradients = numbers(20 + step)
        for name in TRAINED:
            g = gradients[name] - 1.0
            tensor = tensors[TENSORS[name]]
            tensor.grad = torch.from_numpy(g.T if name.endswith("W") else g.reshape(-1)).clone()
            g = g + decay * own[name] * name.endswith("W")
            own[name] = own[name] - rules[name.split(".")[0]](kept[name], g, STEPS + step + 1)
        optimizer.step()
        for name in TRAINED:
            found = tensors[TENSORS[name]].detach().numpy()
            expected = own[name].T if name.endswith("W") else own[name].reshape(-1)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("kind", UPDATERS)
def test_an_optimizer_goes_on_as_the_original_would(kind: str) -> None:
    rule, states, options = UPDATERS[kind]
    kept = kept_by(states)
    updater = writer.updater(kind, **options)
    file = saved(everywhere(updater), state_of(kept, BLOCKS) if states else None)
    old = from_dl4j(file, dtype=torch.float64)
    go_on(old, dict.fromkeys(("dense", "norm", "out"), rule), kept)


def test_layers_with_options_of_their_own_are_groups_and_blocks_of_their_own() -> None:
    """The layer of normalisation has another rate, so its neighbours are not one block with it."""
    adams = {"dense": MOMENTS, "norm": {**MOMENTS, "learningRate": 2 * LR}, "out": MOMENTS}
    blocks = [["dense.W", "dense.b"], ["norm.gamma", "norm.beta"], ["out.W", "out.b"]]
    kept = kept_by(2)
    updaters = {name: writer.updater("Adam", **own) for name, own in adams.items()}
    old = from_dl4j(saved(updaters, state_of(kept, blocks)), dtype=torch.float64)
    assert old.optimizer is not None
    assert [group["lr"] for group in old.optimizer.groups] == [LR, 2 * LR]
    go_on(old, {"dense": adam, "norm": lambda k, g, t: 2 * adam(k, g, t), "out": adam}, kept)


def test_weights_decay_as_l2_of_the_original_and_biases_do_not() -> None:
    kept = kept_by(1)
    schedule = {"@class": "org.nd4j.linalg.schedule.FixedSchedule", "value": 0.3}
    terms = [{"@class": L2, "l2": schedule}]
    file = saved(
        everywhere(writer.updater("Nesterovs", learningRate=LR, momentum=0.9)),
        state_of(kept, BLOCKS),
        regularization=terms,
        regularizationBias=[],
    )
    old = from_dl4j(file, dtype=torch.float64)
    assert old.optimizer is not None
    assert sorted(group["weight_decay"] for group in old.optimizer.groups) == [0.0, 0.3]
    del kept["out.W"], kept["out.b"]
    dense = {name: values for name, values in kept.items() if name.startswith("dense")}
    optimizer = old.optimizer(old.network.parameters())
    tensors = dict(old.network.named_parameters())
    for tensor in tensors.values():
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    for name, own in dense.items():
        start = numbers(0)[name]
        expected = start - nesterovs(own, 1.0 + 0.3 * start * name.endswith("W"), STEPS + 1)
        found = tensors[TENSORS[name]].detach().numpy()
        np.testing.assert_allclose(
            found, expected.T if name.endswith("W") else expected.reshape(-1), atol=1e-12
        )


def test_a_bias_may_have_an_updater_of_its_own() -> None:
    adam_json = writer.updater("Adam", **MOMENTS)
    faster = writer.updater("Adam", **{**MOMENTS, "learningRate": 3 * LR})
    blocks = [["dense.W"], ["dense.b"], ["norm.gamma", "norm.beta"], ["out.W", "out.b"]]
    kept = kept_by(2)
    file = saved(everywhere(adam_json), state_of(kept, blocks), biasUpdater=faster)
    old = from_dl4j(file, dtype=torch.float64)
    assert old.optimizer is not None
    state = dict(zip([n for n, _ in old.network.named_parameters()], old.optimizer.state or (), strict=True))
    np.testing.assert_array_equal(state[TENSORS["dense.b"]]["exp_avg"], kept["dense.b"][0].reshape(-1))
    np.testing.assert_array_equal(state[TENSORS["norm.beta"]]["exp_avg_sq"], kept["norm.beta"][1].reshape(-1))
    np.testing.assert_array_equal(state[TENSORS["out.W"]]["exp_avg_sq"], kept["out.W"][1].T)


@pytest.mark.parametrize(
    ("updaters", "note"),
    [
        (
            everywhere(writer.updater("Nadam", **MOMENTS)),
            "no optimizer: dense.W: the updater Nadam has no equal",
        ),
        (
            {**everywhere(writer.updater("Adam", **MOMENTS)), "norm": None},
            "no optimizer: the file names none for layers.norm.weight",
        ),
        (
            everywhere({"@class": "com.acme.Adam", "learningRate": 1.0}),
            "the updater com.acme.Adam has no equal",
        ),
        (everywhere(writer.updater("Adam", learningRate=LR)), "Adam has no number 'beta1'"),
        (everywhere(writer.updater("Sgd", learningRate="NaN")), "the learning rate of Sgd is not a number"),
        (
            {
                **everywhere(writer.updater("Adam", **MOMENTS)),
                "out": writer.updater("RmsProp", **UPDATERS["RmsProp"][2]),
            },
            "the layers have several kinds, Adam, RmsProp",
        ),
    ],
)
def test_what_pytorch_does_not_have_is_said_and_left_out(
    updaters: dict[str, dict[str, Any]], note: str
) -> None:
    old = from_dl4j(saved(updaters, None))
    assert old.optimizer is None
    assert any(note in line for line in old.notes), old.notes
    assert note in str(old)


def test_a_state_of_another_length_is_damage_and_need_not_be_read() -> None:
    file = saved(everywhere(writer.updater("Adam", **MOMENTS)), np.zeros(67))
    with pytest.raises(
        DamagedError, match=r"updaterState\.bin: expected 68 numbers for the updaters .*, received 67"
    ):
        from_dl4j(file)
    old = from_dl4j(file, updater=False)
    assert old.optimizer is not None
    assert old.optimizer.state is None
    optimizer = old.optimizer(old.network.parameters())
    assert optimizer.state_dict()["state"] == {}


def old_file(updater: str, states: int) -> io.BytesIO:
    """As version 0.8 wrote it: options beside the layer's, no objects."""
    fields = {
        "updater": updater,
        "learningRate": LR,
        "adamMeanDecay": 0.9,
        "adamVarDecay": 0.99,
        "rmsDecay": 0.95,
    }
    layers = [
        writer.layer("DenseLayer", activation="TanH", old=True, nIn=3, nOut=4, **fields),
        writer.layer(
            "OutputLayer", activation="Softmax", old=True, nIn=4, nOut=2, lossFn={"MCXENT": {}}, **fields
        ),
    ]
    own = numbers(0)
    parameters = [own[name] for name in ("dense.W", "dense.b", "out.W", "out.b")]
    file = io.BytesIO()
    state = np.arange(float(26 * states))
    writer.write_network(file, writer.layer_network(layers), parameters, state, mode="JAVACPP")
    return file


def test_of_old_files_states_of_one_number_are_read_and_others_left_out() -> None:
    plain = from_dl4j(old_file("RMSPROP", 1)).optimizer
    assert plain is not None
    assert plain.state is not None
    first = plain.state[0]["square_avg"]
    np.testing.assert_array_equal(first.numpy(), np.arange(12.0).reshape(4, 3))
    adam_of_old = from_dl4j(old_file("ADAM", 2))
    assert adam_of_old.optimizer is not None
    assert adam_of_old.optimizer.state is None
    assert "whose order in versions 0.8 and before is not known" in str(adam_of_old)


def test_the_parameters_must_be_those_of_the_network() -> None:
    old = from_dl4j(saved(everywhere(writer.updater("Sgd", learningRate=LR)), None))
    assert old.optimizer is not None
    with pytest.raises(OptionError, match=r"expected 6 parameters .*, received 1"):
        old.optimizer([torch.nn.Parameter(torch.zeros(2))])


SCHEDULE = "org.nd4j.linalg.schedule."


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("FixedSchedule", {"value": 0.5}, 0.5),
        ("ExponentialSchedule", {"initialValue": 2.0, "gamma": 0.5}, 2.0 * 0.5**7),
        ("StepSchedule", {"initialValue": 2.0, "decayRate": 0.5, "step": 3.0}, 2.0 * 0.5**2),
        ("InverseSchedule", {"initialValue": 2.0, "gamma": 0.5, "power": 2.0}, 2.0 / 4.5**2),
        ("PolySchedule", {"initialValue": 2.0, "power": 2.0, "maxIter": 14}, 2.0 * 1.5**2),
        ("PolySchedule", {"initialValue": 2.0, "power": 2.0, "maxIter": 7}, 0.0),
        ("MapSchedule", {"values": {"0": 1.0, "5": 0.25, "9": 0.1}}, 0.25),
        ("CycleSchedule", {"initialValue": 1.0}, None),
        ("ExponentialSchedule", {"initialValue": 2.0}, None),
        ("ExponentialSchedule", {"initialValue": 2.0, "gamma": 1e308}, None),
        ("StepSchedule", {"initialValue": 2.0, "decayRate": 0.5, "step": 0.0}, None),
        ("MapSchedule", {"values": {"9": 1.0}}, None),
        ("MapSchedule", {"values": 3}, None),
    ],
)
def test_a_schedule_has_the_value_of_the_step_that_was_saved(
    kind: str, fields: dict[str, Any], expected: float | None
) -> None:
    state = {"@class": SCHEDULE + kind, "scheduleType": "ITERATION", **fields}
    assert number(state, 7, 1000) == (None if expected is None else pytest.approx(expected))


def test_schedules_of_epochs_count_epochs_and_a_note_says_that_they_stop() -> None:
    schedule = {
        "@class": SCHEDULE + "ExponentialSchedule",
        "scheduleType": "EPOCH",
        "initialValue": 1.0,
        "gamma": 0.1,
    }
    assert number(schedule, 100, 2) == pytest.approx(0.01)
    updater = writer.updater(
        "Sgd", learningRate="NaN", learningRateSchedule={**schedule, "scheduleType": "ITERATION"}
    )
    old = from_dl4j(saved(everywhere(updater), None, iteration=2))
    assert old.optimizer is not None
    assert old.optimizer.groups[0]["lr"] == pytest.approx(0.01)
    assert "the schedule of the learning rate, which is 0.01" in str(old)
