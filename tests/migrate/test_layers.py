"""Layers of vectors, activations, normalisation and losses, against formulas in NumPy."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.migrate import formulas
from tests.migrate.builders import close, fill, filled, function, inside, keep, layer, loss, numbers, output

from fatwood.blueprint import build, describe
from fatwood.errors import UserError
from fatwood.migrate.layers import layer_module, parameter_specs
from fatwood.migrate.losses import loss_of


@pytest.mark.parametrize("name", sorted(formulas.ACTIVATIONS))
def test_an_activation_is_the_originals_formula_for_small_and_large_numbers(name: str) -> None:
    module, _ = filled(layer("ActivationLayer", name))
    x = np.concatenate([numbers(20, 7), 5 * numbers(20, 7, seed=2)])
    close(output(module, x), formulas.ACTIVATIONS[name](x))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"negativeSlope": 0.2}, lambda x: np.where(x > 0, x, 0.2 * x)),
        ({"max": 1.5}, lambda x: np.minimum(np.maximum(x, 0), 1.5)),
        ({"threshold": 0.5, "negativeSlope": 0.1}, lambda x: np.where(x >= 0.5, x, 0.1 * (x - 0.5))),
    ],
)
def test_a_relu_keeps_its_slope_threshold_and_maximum(fields: dict[str, float], expected: Any) -> None:
    module, _ = filled(layer("ActivationLayer", activationFn=function("ReLU", **fields)))
    x = 2 * numbers(9, 5)
    close(output(module, x), expected(x))


def test_arguments_of_activations_are_kept() -> None:
    x = 2 * numbers(9, 5)
    elu, _ = filled(layer("ActivationLayer", activationFn=function("ELU", alpha=0.5)))
    close(output(elu, x), np.where(x >= 0, x, 0.5 * (np.exp(np.minimum(x, 0)) - 1)))
    leaky, _ = filled(layer("ActivationLayer", activationFn=function("LReLU", alpha=0.3)))
    close(output(leaky, x), np.where(x >= 0, x, 0.3 * x))
    gelu, _ = filled(layer("ActivationLayer", activationFn=function("GELU", precise=True)))
    inner = np.sqrt(2 / np.pi) * (x + (0.044715 * x) ** 3)
    close(output(gelu, x), x / 2 * (1 + np.tanh(inner)))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5), inputs=st.integers(1, 6), outputs=st.integers(1, 6), bias=st.booleans())
def test_a_dense_layer_is_its_formula(rows: int, inputs: int, outputs: int, *, bias: bool) -> None:
    module, own = filled(layer("DenseLayer", "TanH", nIn=inputs, nOut=outputs, hasBias=bias))
    x = numbers(rows, inputs)
    close(output(module, x), np.tanh(formulas.dense(x, own["W"], own.get("b", 0.0))))


@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalisation_stands_before_the_bias(*, bias: bool) -> None:
    module, own = filled(layer("DenseLayer", "ReLU", nIn=4, nOut=6, hasLayerNorm=True, hasBias=bias))
    x = numbers(5, 4)
    expected = formulas.normalised_dense(x, own["W"], own.get("b", 0.0), own["g"])
    close(output(module, x), np.maximum(expected, 0))


def test_the_gain_of_a_layer_normalisation_lies_behind_the_bias_in_the_vector() -> None:
    plan = layer_module(layer("DenseLayer", nIn=4, nOut=6, hasLayerNorm=True))
    assert [(spec.key, spec.shape) for spec in plan.parameters] == [("W", (4, 6)), ("b", (6,)), ("g", (6,))]


def test_an_output_layer_ends_in_its_softmax() -> None:
    module, own = filled(layer("OutputLayer", "Softmax", nIn=4, nOut=3, lossFn=loss("MCXENT")))
    x = numbers(5, 4)
    close(output(module, x), formulas.softmax(formulas.dense(x, own["W"], own["b"])))


@pytest.mark.parametrize("layout", ["NCW", "NWC"])
def test_an_output_layer_of_sequences_is_a_dense_layer_at_every_step(layout: str) -> None:
    conf = layer("RnnOutputLayer", "Softmax", nIn=4, nOut=3, rnnDataFormat=layout)
    module, own = filled(conf)
    x = numbers(2, 4, 5)
    expected = formulas.every_step(x, lambda row: formulas.softmax(formulas.dense(row, own["W"], own["b"])))
    if layout == "NWC":
        x, expected = x.swapaxes(1, 2), expected.swapaxes(1, 2)
    close(output(module, x), expected)


@pytest.mark.parametrize(
    ("kind", "shape", "axis", "fields"),
    [
        ("LossLayer", (3, 5), 1, {}),
        ("RnnLossLayer", (3, 5, 4), 1, {}),
        ("RnnLossLayer", (3, 4, 5), 2, {"rnnDataFormat": "NWC"}),
        ("CnnLossLayer", (3, 5, 2, 4), 1, {}),
        ("CnnLossLayer", (3, 2, 4, 5), 3, {"format": "NHWC"}),
    ],
)
def test_the_softmax_of_a_loss_layer_is_over_the_features(
    kind: str, shape: tuple[int, ...], axis: int, fields: dict[str, str]
) -> None:
    module, _ = filled(layer(kind, "Softmax", **fields))
    x = numbers(*shape)
    close(output(module, x), formulas.softmax(x, axis))


@pytest.mark.parametrize("bias", [True, False])
def test_an_embedding_takes_a_column_of_numbers(*, bias: bool) -> None:
    module, own = filled(layer("EmbeddingLayer", "TanH", nIn=7, nOut=3, hasBias=bias))
    x = np.array([[6.0], [0.0], [3.0], [6.0]])
    close(output(module, x), np.tanh(formulas.lookup(x, own["W"], own.get("b", 0.0))))


@pytest.mark.parametrize("shape", [(2, 4), (2, 1, 4)])
@pytest.mark.parametrize("layout", ["NCW", "NWC"])
def test_an_embedding_of_sequences_takes_numbers_of_steps(shape: tuple[int, ...], layout: str) -> None:
    conf = layer("EmbeddingSequenceLayer", nIn=7, nOut=3, inputLength=4, outputFormat=layout)
    module, own = filled(conf)
    x = np.array([[6.0, 0, 3, 3], [1, 2, 5, 4]])
    expected = formulas.lookup_sequence(x, own["W"])
    close(output(module, x.reshape(shape)), expected if layout == "NCW" else expected.swapaxes(1, 2))


def test_the_number_of_a_dropout_is_the_probability_to_keep() -> None:
    module = layer_module(layer("DenseLayer", nIn=100, nOut=2, iDropout=keep(0.8))).module
    assert isinstance(module[0], torch.nn.Dropout)
    assert module[0].p == 0.2
    dropped = module[0].train()(torch.ones(100, 1000))
    assert dropped.max().item() == pytest.approx(1.25)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"iDropout": keep(0.5, "AlphaDropout")}, torch.nn.AlphaDropout),
        ({"iDropout": keep(0.5, "SpatialDropout")}, torch.nn.Dropout2d),
        ({"dropOut": 0.5}, torch.nn.Dropout),
    ],
)
def test_kinds_of_dropout_before_a_convolution(fields: dict[str, Any], kind: type) -> None:
    module = layer_module(layer("ConvolutionLayer", nIn=1, nOut=1, kernelSize=[1, 1], **fields)).module
    assert type(module[0]) is kind
    assert module[0].p == 0.5


@pytest.mark.parametrize(
    "fields", [{}, {"iDropout": None}, {"dropOut": 0.0}, {"dropOut": "NaN"}, {"iDropout": keep(1.0)}]
)
def test_a_layer_that_keeps_everything_has_no_dropout(fields: dict[str, Any]) -> None:
    assert type(layer_module(layer("DenseLayer", nIn=3, nOut=2, **fields)).module) is torch.nn.Linear


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 4, 5)])
def test_batch_normalisation_of_vectors_and_images(shape: tuple[int, ...]) -> None:
    module, own = filled(layer("BatchNormalization", nIn=3, nOut=3, eps=1e-3, decay=0.8))
    x = numbers(*shape)
    expected = formulas.batch_norm(x, own["gamma"], own["beta"], own["mean"], own["var"], 1e-3)
    close(output(module, x), expected)
    assert module.momentum == 0.2


def test_batch_normalisation_with_the_channels_last() -> None:
    module, own = filled(layer("BatchNormalization", nOut=3, cnn2DFormat="NHWC"))
    x = numbers(2, 3, 4, 5)
    expected = formulas.batch_norm(x, own["gamma"], own["beta"], own["mean"], own["var"])
    close(output(module, np.moveaxis(x, 1, 3)), np.moveaxis(expected, 1, 3))


def test_batch_normalisation_with_the_logarithm_of_the_standard_deviation() -> None:
    module, own = filled(layer("BatchNormalization", nOut=3, useLogStd=True))
    assert list(own) == ["gamma", "beta", "mean", "log10stdev"]
    x = numbers(6, 3)
    var = (10 ** own["log10stdev"]) ** 2
    close(output(module, x), formulas.batch_norm(x, own["gamma"], own["beta"], own["mean"], var))


def test_batch_normalisation_with_a_locked_scale_has_only_statistics_in_the_vector() -> None:
    module, own = filled(layer("BatchNormalization", nOut=3, lockGammaBeta=True, gamma=1.5, beta=0.25))
    assert list(own) == ["mean", "var"]
    x = numbers(6, 3)
    gamma, beta = np.full(3, 1.5), np.full(3, 0.25)
    close(output(module, x), formulas.batch_norm(x, gamma, beta, own["mean"], own["var"]))
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_statistics_of_a_batch_normalisation_are_not_trained() -> None:
    specs = parameter_specs(layer("BatchNormalization", nOut=3))
    assert [(spec.key, spec.trained) for spec in specs] == [
        ("gamma", True),
        ("beta", True),
        ("mean", False),
        ("var", False),
    ]


def test_batch_normalisation_refuses_sequences() -> None:
    module, _ = filled(layer("BatchNormalization", nOut=3))
    with pytest.raises(UserError, match=r"expected 2 or 4 axes, received shape \(2, 3, 4\)"):
        output(module, numbers(2, 3, 4))


@settings(max_examples=20, deadline=None)
@given(
    channels=st.integers(1, 9),
    n=st.integers(1, 7),
    k=st.floats(0.5, 3),
    alpha=st.floats(0.01, 2),
    beta=st.floats(0.1, 1.5),
)
def test_local_response_normalisation_is_its_formula(
    channels: int, n: int, k: float, alpha: float, beta: float
) -> None:
    module, _ = filled(layer("LocalResponseNormalization", n=float(n), k=k, alpha=alpha, beta=beta))
    x = numbers(2, channels, 3, 2)
    close(output(module, x), formulas.response_norm(x, n, k, alpha, beta))


@pytest.mark.parametrize(("shared", "weights"), [(None, (2, 3, 4)), ([2, 3], (2, 1, 1))])
def test_a_parametric_relu_shares_its_weights_along_axes(
    shared: list[int] | None, weights: tuple[int, ...]
) -> None:
    module, own = filled(layer("PReLULayer", inputShape=[2, 3, 4], sharedAxes=shared))
    assert own["W"].shape == weights
    x = numbers(5, 2, 3, 4)
    close(output(module, x), np.where(x > 0, x, own["W"] * x))


def test_multiplication_by_elements_and_repetition() -> None:
    module, own = filled(layer("ElementWiseMultiplicationLayer", "Sigmoid", nIn=4, nOut=4))
    x = numbers(3, 4)
    close(output(module, x), formulas.sigmoid(x * own["W"] + own["b"]))
    repeated, _ = filled(layer("RepeatVector", n=5))
    close(output(repeated, x), np.stack([x] * 5, axis=2))


def test_a_frozen_layer_computes_the_same_and_does_not_train() -> None:
    module, own = filled(layer("FrozenLayer", layer=inside("DenseLayer", "TanH", nIn=4, nOut=3)))
    x = numbers(5, 4)
    close(output(module, x), np.tanh(formulas.dense(x, own["W"], own["b"])))
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_layer_at_every_step() -> None:
    module, own = filled(layer("TimeDistributed", underlying=inside("DenseLayer", "TanH", nIn=4, nOut=3)))
    x = numbers(2, 4, 5)
    close(output(module, x), formulas.every_step(x, lambda row: np.tanh(row @ own["W"] + own["b"])))


def test_preprocessors_between_images_and_vectors_keep_the_order_of_the_original() -> None:
    before = {"kind": "CnnToFeedForwardPreProcessor", "inputHeight": 3, "inputWidth": 4, "numChannels": 2}
    module, own = filled(layer("DenseLayer", nIn=24, nOut=5, before=before))
    x = numbers(3, 2, 3, 4)
    close(output(module, x), formulas.flatten(x) @ own["W"] + own["b"])
    before = {"kind": "FeedForwardToCnnPreProcessor", "inputHeight": 3, "inputWidth": 4, "numChannels": 2}
    image, _ = filled(layer("ActivationLayer", "TanH", before=before))
    close(output(image, x.reshape(3, 24)), np.tanh(x))


def test_the_place_of_an_array_is_the_same_for_an_optimizers_state() -> None:
    plan = layer_module(layer("DenseLayer", nIn=4, nOut=3))
    moment = numbers(4, 3)
    np.testing.assert_array_equal(plan.place("W", moment)["weight"], moment.T)
    np.testing.assert_array_equal(plan.place("b", numbers(1, 3))["bias"], numbers(3))


def test_arrays_that_are_missing_or_of_another_size_are_refused() -> None:
    plan = layer_module(layer("DenseLayer", nIn=4, nOut=3))
    with pytest.raises(UserError, match="expected b, received W"):
        plan.load({"W": numbers(4, 3)})
    with pytest.raises(
        UserError, match=r"parameter W: expected an array of shape \(4, 3\), received \(3, 4\)"
    ):
        plan.load({"W": numbers(3, 4), "b": numbers(3)})


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("CapsuleLayer", {}, "a layer that can be migrated"),
        ("DenseLayer", {"nIn": 3}, "a whole number of at least 1 as nOut, received None"),
        ("DenseLayer", {"nIn": 3, "nOut": -1}, "at least 1 as nOut, received -1"),
        ("DenseLayer", {"nIn": 3, "nOut": True}, "at least 1 as nOut, received True"),
        ("DenseLayer", {"nIn": 3, "nOut": 2, "hasBias": "yes"}, "true or false as hasBias"),
        (
            "DenseLayer",
            {"nIn": 3, "nOut": 2, "activationFn": function("Custom")},
            "as activationFn, received",
        ),
        ("DenseLayer", {"nIn": 3, "nOut": 2, "activationFn": function("ELU", alpha="x")}, "numbers"),
        ("DenseLayer", {"nIn": 3, "nOut": 2, "iDropout": keep(0.5, "GaussianDropout")}, "as iDropout"),
        ("DenseLayer", {"nIn": 3, "nOut": 2, "iDropout": keep(1.5)}, "between 0 and 1, received 1.5"),
        ("SimpleRnn", {"nIn": 3, "nOut": 2, "hasLayerNorm": True}, "no layer normalisation"),
        ("SubsamplingLayer", {"kernelSize": [2, 2], "poolingType": "SUM"}, "one of MAX, AVG, PNORM"),
        ("ConvolutionLayer", {"nIn": 1, "nOut": 1, "kernelSize": [2]}, ""),
        ("ConvolutionLayer", {"nIn": 1, "nOut": 1, "kernelSize": "2x2"}, "2 whole numbers of at least 1"),
        ("ConvolutionLayer", {"nIn": 1, "nOut": 1, "kernelSize": [2, 2], "stride": [0, 1]}, "as stride"),
        ("PReLULayer", {"inputShape": [2], "sharedAxes": [2]}, "axes from 1 to 1 as sharedAxes"),
        ("Bidirectional", {"mode": "ADD"}, "a layer as fwd, received None"),
    ],
)
def test_what_cannot_be_mapped_is_refused_with_the_layers_name_and_class(
    kind: str, fields: dict[str, Any], said: str
) -> None:
    if not said:
        layer_module(layer(kind, **fields))  # one number for both axes is allowed
        return
    with pytest.raises(UserError) as caught:
        layer_module(layer(kind, **fields))
    assert f"layer 'it' (org.deeplearning4j.nn.conf.layers.{kind}" in caught.value.message
    assert said in caught.value.message


def test_layers_around_each_other_without_end_are_refused() -> None:
    fields: dict[str, Any] = inside("DenseLayer", nIn=2, nOut=2)
    for _ in range(20):
        fields = inside("FrozenLayer", layer=fields)
    with pytest.raises(UserError, match="at most 8 layers around each other"):
        layer_module(layer("FrozenLayer", layer=fields))


def test_the_parameters_of_a_giant_layer_are_known_without_memory() -> None:
    begin = time.perf_counter()
    specs = parameter_specs(layer("DenseLayer", nIn=1 << 28, nOut=1 << 28))
    assert specs[0].length == 1 << 56
    with pytest.raises(UserError, match="expected sizes of tensors"):
        parameter_specs(layer("ConvolutionLayer", nIn=1 << 30, nOut=1 << 30, kernelSize=[1 << 30, 1 << 30]))
    assert time.perf_counter() - begin < 1


_MIGRATED = [
    layer("DenseLayer", "GELU", nIn=4, nOut=4, iDropout=keep(0.9)),
    layer("DenseLayer", "ReLU", nIn=4, nOut=4, hasLayerNorm=True),
    layer("EmbeddingLayer", "HardSigmoid", nIn=4, nOut=4),
    layer("EmbeddingSequenceLayer", nIn=4, nOut=4),
    layer("BatchNormalization", nOut=4),
    layer("BatchNormalization", nOut=4, lockGammaBeta=True, cnn2DFormat="NHWC"),
    layer("LocalResponseNormalization"),
    layer("PReLULayer", inputShape=[4]),
    layer("ElementWiseMultiplicationLayer", nOut=4),
    layer("RepeatVector", n=3),
    layer("ActivationLayer", activationFn=function("ReLU", max=2.0)),
    layer(
        "ConvolutionLayer", "Softmax", nIn=1, nOut=4, kernelSize=[2, 3], stride=[2, 2], convolutionMode="Same"
    ),
    layer("Convolution1DLayer", nIn=1, nOut=4, kernelSize=[3], convolutionMode="Causal"),
    layer("SeparableConvolution2D", nIn=2, nOut=4, kernelSize=[2, 2], cnn2dDataFormat="NHWC"),
    layer("SubsamplingLayer", poolingType="AVG", kernelSize=[2, 2], convolutionMode="Same"),
    layer("SubsamplingLayer", poolingType="MAX", kernelSize=[2, 2]),
    layer("GlobalPoolingLayer", poolingType="PNORM", pnorm=3),
    layer("ZeroPaddingLayer", padding=[1, 2, 3, 4]),
    layer("Cropping2D", cropping=[1, 2, 3, 4]),
    layer("Upsampling2D", size=[2, 3]),
    layer("LSTM", "TanH", nIn=4, nOut=4),
    layer("LSTM", "ReLU", nIn=4, nOut=4),
    layer("GravesLSTM", "TanH", nIn=4, nOut=4, gateActivationFn=function("HardSigmoid")),
    layer("GravesBidirectionalLSTM", "TanH", nIn=4, nOut=4),
    layer("SimpleRnn", "SoftSign", nIn=4, nOut=4, before={"kind": "FeedForwardToRnnPreProcessor"}),
    layer("RnnOutputLayer", "Softmax", nIn=4, nOut=4),
    layer("LastTimeStep", underlying=inside("LSTM", "TanH", nIn=4, nOut=4)),
    layer("MaskZeroLayer", underlying=inside("LSTM", "TanH", nIn=4, nOut=4), maskingValue=-1.0),
    layer(
        "Bidirectional",
        mode="CONCAT",
        fwd=inside("SimpleRnn", "TanH", nIn=4, nOut=4),
        bwd=inside("SimpleRnn", "TanH", nIn=4, nOut=4),
    ),
    layer("CnnLossLayer", "Softmax"),
    layer("DenseLayer", nIn=4, nOut=4, before={"kind": "RnnToFeedForwardPreProcessor"}),
    layer("DenseLayer", nIn=4, nOut=4, before={"kind": "CnnToFeedForwardPreProcessor"}),
]


@pytest.mark.parametrize("number", range(len(_MIGRATED)))
def test_every_layer_can_be_saved_without_pickle_and_be_rebuilt(number: int) -> None:
    module, _ = fill(layer_module(_MIGRATED[number]))
    blueprint = describe(module.float())
    assert blueprint is not None
    rebuilt = build(blueprint)
    rebuilt.load_state_dict(module.state_dict())
    assert repr(rebuilt.eval()) == repr(module)


def _score(kind: str, y: np.ndarray[Any, Any], label: np.ndarray[Any, Any]) -> float:
    """By the original: a sum over the outputs (a mean for those with M or P), a mean over the rows."""
    columns = y.shape[1]
    total = {
        "MCXENT": lambda: -(label * np.log(y)).sum(),
        "NegativeLogLikelihood": lambda: -(label * np.log(y)).sum(),
        "BinaryXENT": lambda: -(label * np.log(y) + (1 - label) * np.log(1 - y)).sum(),
        "KLD": lambda: (label * np.log(label / y)).sum(),
        "L1": lambda: np.abs(y - label).sum(),
        "MAE": lambda: np.abs(y - label).sum() / columns,
        "L2": lambda: ((y - label) ** 2).sum(),
        "MSE": lambda: ((y - label) ** 2).sum() / columns,
        "MSLE": lambda: (np.log((y + 1) / (label + 1)) ** 2).sum() / columns,
        "MAPE": lambda: (100 * np.abs((label - y) / label)).sum() / columns,
        "Poisson": lambda: (y - label * np.log(y)).sum(),
        "Hinge": lambda: np.maximum(0, 1 - y * label).sum(),
        "SquaredHinge": lambda: (np.maximum(0, 1 - y * label) ** 2).sum(),
    }[kind]()
    return float(total) / len(y)


@pytest.mark.parametrize(
    "kind",
    [
        "MCXENT",
        "NegativeLogLikelihood",
        "BinaryXENT",
        "KLD",
        "L1",
        "MAE",
        "L2",
        "MSE",
        "MSLE",
        "MAPE",
        "Poisson",
        "Hinge",
        "SquaredHinge",
    ],
)
def test_a_loss_is_scored_as_the_original_does(kind: str) -> None:
    module = loss_of(layer("OutputLayer", "Softmax", nIn=3, nOut=4, lossFn=loss(kind)))
    assert module is not None
    y, label = formulas.softmax(numbers(5, 4)), formulas.softmax(numbers(5, 4, seed=2))
    received = module(torch.from_numpy(y), torch.from_numpy(label)).item()
    assert received == pytest.approx(_score(kind, y, label), abs=1e-9)


def test_a_loss_keeps_its_weights_and_sums_over_steps() -> None:
    weights = [1.0, 2.0, 0.5, 0.0]
    module = loss_of(layer("RnnOutputLayer", "Sigmoid", nIn=3, nOut=4, lossFn=loss("L2", weights=weights)))
    assert module is not None
    y, label = numbers(5, 4, 6), numbers(5, 4, 6, seed=2)
    expected = ((y - label) ** 2 * np.array(weights)[None, :, None]).sum() / 5
    assert module(torch.from_numpy(y), torch.from_numpy(label)).item() == pytest.approx(expected)


def test_a_loss_that_is_not_known_is_left_out() -> None:
    assert loss_of(layer("OutputLayer", nIn=3, nOut=4, lossFn=loss("Wasserstein"))) is None
    assert loss_of(layer("DenseLayer", nIn=3, nOut=4)) is None
