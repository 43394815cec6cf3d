"""Twelve networks in the original's format, one for each family of layers: what they give is what the formulas give.

A network is written from known arrays, in the order in which the original lays them out, and read back; the expected output is computed
from the same arrays by formulas in NumPy. Nothing of the reader is used to write.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tests.migrate import formulas, writer
from tests.migrate.builders import close, function, keep, loss
from tests.migrate.formulas import Array

from fatwood.blueprint import build, describe
from fatwood.migrate import from_dl4j

Parameters = Sequence["Array | tuple[Array, str]"]


@dataclass(frozen=True)
class Case:
    """A file's content, and what it must give."""

    configuration: Mapping[str, Any]
    parameters: Parameters
    inputs: tuple[Array, ...]
    expected: tuple[Array, ...]


class Numbers:
    """Random numbers that float32 holds exactly, small enough for every activation to be in its bend."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def __call__(self, *shape: int, scale: float = 0.4) -> Array:
        drawn = scale * self._random.standard_normal(shape)
        return drawn.astype(np.float32).astype(np.float64)

    def positive(self, *shape: int) -> Array:
        return np.abs(self(*shape)) + 0.25


OUTPUT = {"lossFn": loss("MCXENT", softmaxClipEps=1e-10)}


def dense_network(n: Numbers) -> Case:
    w, b, v, c, u, d = n(4, 6), n(6), n(6, 5), n(5), n(5, 3), n(3)
    x = n(7, 4, scale=1)
    hidden = np.tanh(formulas.dense(np.maximum(formulas.dense(x, w, b), 0), v, c))
    layers = [
        writer.layer("DenseLayer", activation="ReLU", nIn=4, nOut=6, hasBias=True, iDropout=keep(0.8)),
        writer.layer("DenseLayer", activation="TanH", nIn=6, nOut=5, hasBias=True),
        writer.layer("OutputLayer", activation="Softmax", nIn=5, nOut=3, hasBias=True, **OUTPUT),
    ]
    expected = formulas.softmax(formulas.dense(hidden, u, d))
    return Case(writer.layer_network(layers), [w, b, v, c, u, d], (x,), (expected,))


def loss_network(n: Numbers) -> Case:
    """Layer normalisation, whose gain lies last; an activation, a dropout and a loss as layers of their own."""
    w, b, gain, v, c = n(4, 6), n(6), n(6), n(6, 3), n(3)
    x = n(7, 4, scale=1)
    hidden = formulas.ACTIVATIONS["RationalTanh"](formulas.normalised_dense(x, w, b, gain))
    layers = [
        writer.layer("DenseLayer", activation="Identity", nIn=4, nOut=6, hasLayerNorm=True),
        writer.layer("ActivationLayer", activation="RationalTanh"),
        writer.layer("DropoutLayer", activation="Identity", nIn=6, nOut=6, iDropout=keep(0.5)),
        writer.layer("DenseLayer", activation="HardSigmoid", nIn=6, nOut=3, hasBias=True),
        writer.layer("LossLayer", activation="Softmax", lossFn=loss("MCXENT")),
    ]
    second = formulas.ACTIVATIONS["HardSigmoid"](formulas.dense(hidden, v, c))
    return Case(writer.layer_network(layers), [w, b, gain, v, c], (x,), (formulas.softmax(second),))


def image_network(n: Numbers) -> Case:
    """LeNet's form: the bias before the weight of a convolution, images out of vectors and back."""
    a, b, c, d = n(4), n(4, 2, 3, 3), n(3), n(3, 4, 2, 2)
    w, v, u, t = n(36, 5), n(5), n(5, 3), n(3)
    x = n(3, 2 * 8 * 8, scale=1)
    image = np.maximum(formulas.convolve(x.reshape(3, 2, 8, 8), b, a), 0)
    image = formulas.pool(image, "MAX", (2, 2), (1, 2), (0, 0), (1, 1))
    image = np.tanh(formulas.convolve(image, d, c, (2, 1), "same", (1, 2)))
    image = formulas.pool(image, "AVG", (2, 2), (1, 1), (1, 1), (1, 1), count_padding=False)
    assert image.shape == (3, 3, 4, 4)
    image = image[:, :, :3]
    hidden = np.tanh(formulas.dense(formulas.flatten(image), w, v))
    layers = [
        writer.layer(
            "ConvolutionLayer",
            activation="ReLU",
            nIn=2,
            nOut=4,
            hasBias=True,
            kernelSize=[3, 3],
            stride=[1, 1],
            padding=[0, 0],
            dilation=[1, 1],
            convolutionMode="Truncate",
        ),
        writer.layer(
            "SubsamplingLayer",
            poolingType="MAX",
            kernelSize=[2, 2],
            stride=[1, 2],
            padding=[0, 0],
            dilation=[1, 1],
            convolutionMode="Truncate",
            pnorm=0,
        ),
        writer.layer(
            "ConvolutionLayer",
            activation="TanH",
            nIn=4,
            nOut=3,
            hasBias=True,
            kernelSize=[2, 2],
            stride=[2, 1],
            padding=[0, 0],
            dilation=[1, 2],
            convolutionMode="Same",
        ),
        writer.layer(
            "SubsamplingLayer",
            poolingType="AVG",
            kernelSize=[2, 2],
            stride=[1, 1],
            padding=[1, 1],
            dilation=[1, 1],
            convolutionMode="Truncate",
            avgPoolIncludePadInDivisor=False,
        ),
        writer.layer("Cropping2D", cropping=[0, 1, 0, 0]),
        writer.layer("DenseLayer", activation="TanH", nIn=36, nOut=5, hasBias=True),
        writer.layer("OutputLayer", activation="Softmax", nIn=5, nOut=3, hasBias=True, **OUTPUT),
    ]
    preprocessors = {
        0: writer.preprocessor("FeedForwardToCnnPreProcessor", inputHeight=8, inputWidth=8, numChannels=2),
        5: writer.preprocessor("CnnToFeedForwardPreProcessor", inputHeight=3, inputWidth=4, numChannels=3),
    }
    conf = writer.layer_network(layers, preprocessors=preprocessors)
    parameters: Parameters = [a, (b, "c"), c, (d, "c"), w, v, u, t]
    return Case(conf, parameters, (x,), (formulas.softmax(formulas.dense(hidden, u, t)),))


def sequence_convolution_network(n: Numbers) -> Case:
    b, w, c, v = n(4), n(4, 3, 3), n(2), n(2, 4, 2)
    u, d = n(2, 3), n(3)
    x = n(2, 3, 9, scale=1)
    steps = np.tanh(formulas.convolve(x, w, b, (1,), "causal", (2,)))
    steps = formulas.pool(steps, "MAX", (2,), (2,), (0,), (1,))
    steps = formulas.padded(formulas.upsample(steps, (3,)), [(1, 2)])[:, :, 2:-1]
    steps = np.maximum(formulas.convolve(steps, v, c, (2,), "same", (1,)), 0)
    pooled = formulas.global_pool(steps, "PNORM", power=2)
    layers = [
        writer.layer(
            "Convolution1DLayer",
            activation="TanH",
            nIn=3,
            nOut=4,
            hasBias=True,
            kernelSize=[3],
            stride=[1],
            padding=[0],
            dilation=[2],
            convolutionMode="Causal",
        ),
        writer.layer("Subsampling1DLayer", poolingType="MAX", kernelSize=[2], stride=[2], padding=[0]),
        writer.layer("Upsampling1D", size=[3]),
        writer.layer("ZeroPadding1DLayer", padding=[1, 2]),
        writer.layer("Cropping1D", cropping=[2, 1]),
        writer.layer(
            "Convolution1DLayer",
            activation="ReLU",
            nIn=4,
            nOut=2,
            hasBias=True,
            kernelSize=[2, 1],
            stride=[2, 1],
            padding=[0, 0],
            dilation=[1, 1],
            convolutionMode="Same",
        ),
        writer.layer("GlobalPoolingLayer", poolingType="PNORM", pnorm=2, collapseDimensions=True),
        writer.layer("OutputLayer", activation="Softmax", nIn=2, nOut=3, hasBias=True, **OUTPUT),
    ]
    parameters: Parameters = [b, (w, "c"), c, (v, "c"), u, d]
    expected = formulas.softmax(formulas.dense(pooled, u, d))
    return Case(writer.layer_network(layers), parameters, (x,), (expected,))


def pixel_network(n: Numbers) -> Case:
    """An output for every pixel, behind padding, cropping, upsampling and local response normalisation."""
    b, w = n(3), n(3, 2, 1, 1)
    x = n(2, 2, 4, 5, scale=1)
    image = formulas.padded(x, [(1, 2), (0, 1)])[:, :, 1:-1, 2:]
    image = formulas.upsample(image, (2, 3))
    image = formulas.response_norm(image, 5, 1.5, 0.5, 0.75)
    image = formulas.pool(image, "PNORM", (2, 2), (2, 1), (0, 0), (1, 1), power=3)
    expected = formulas.softmax(np.tanh(formulas.convolve(image, w, b)), axis=1)
    layers = [
        writer.layer("ZeroPaddingLayer", padding=[1, 2, 0, 1]),
        writer.layer("Cropping2D", cropping=[1, 1, 2, 0]),
        writer.layer("Upsampling2D", size=[2, 3]),
        writer.layer("LocalResponseNormalization", n=5.0, k=1.5, alpha=0.5, beta=0.75),
        writer.layer(
            "SubsamplingLayer", poolingType="PNORM", pnorm=3, kernelSize=[2, 2], stride=[2, 1], padding=[0, 0]
        ),
        writer.layer(
            "ConvolutionLayer",
            activation="TanH",
            nIn=2,
            nOut=3,
            hasBias=True,
            kernelSize=[1, 1],
            stride=[1, 1],
        ),
        writer.layer("CnnLossLayer", activation="Softmax", lossFn=loss("MCXENT")),
    ]
    return Case(writer.layer_network(layers), [b, (w, "c")], (x,), (expected,))


def normalised_network(n: Numbers) -> Case:
    """Batch normalisation of images by its variance, and of vectors by the logarithm of its standard deviation."""
    b, w, g, h, m, s = n(3), n(3, 1, 2, 2), n(3), n(3), n(3), n.positive(3)
    v, c, k, o, e, r = n(12, 4), n(4), n(4), n(4), n(4), n(4)
    u, d = n(4, 2), n(2)
    x = n(3, 1, 3, 3, scale=1)
    image = formulas.batch_norm(formulas.convolve(x, w, b), g, h, m, s, 1e-5)
    hidden = formulas.dense(formulas.flatten(image), v, c)
    hidden = np.maximum(formulas.batch_norm(hidden, k, o, e, 10 ** (2 * r), 1e-3), 0)
    layers = [
        writer.layer(
            "ConvolutionLayer",
            activation="Identity",
            nIn=1,
            nOut=3,
            hasBias=True,
            kernelSize=[2, 2],
            stride=[1, 1],
        ),
        writer.layer("BatchNormalization", nIn=3, nOut=3, eps=1e-5, decay=0.9, lockGammaBeta=False),
        writer.layer("DenseLayer", activation="Identity", nIn=12, nOut=4, hasBias=True),
        writer.layer("BatchNormalization", nIn=4, nOut=4, eps=1e-3, decay=0.9, useLogStd=True),
        writer.layer("ActivationLayer", activation="ReLU"),
        writer.layer("OutputLayer", activation="Identity", nIn=4, nOut=2, hasBias=True, lossFn=loss("MSE")),
    ]
    before = writer.preprocessor("CnnToFeedForwardPreProcessor", inputHeight=2, inputWidth=2, numChannels=3)
    parameters: Parameters = [b, (w, "c"), g, h, m, s, v, c, k, o, e, r, u, d]
    conf = writer.layer_network(layers, preprocessors={2: before})
    return Case(conf, parameters, (x,), (formulas.dense(hidden, u, d),))


def embedding_network(n: Numbers) -> Case:
    w, b, u, d = n(9, 4), n(4), n(4, 3), n(3)
    x = np.array([[8.0], [0.0], [4.0], [4.0]])
    hidden = np.tanh(formulas.lookup(x, w, b))
    layers = [
        writer.layer("EmbeddingLayer", activation="TanH", nIn=9, nOut=4, hasBias=True),
        writer.layer(
            "OutputLayer", activation="Sigmoid", nIn=4, nOut=3, hasBias=True, lossFn=loss("BinaryXENT")
        ),
    ]
    expected = formulas.sigmoid(formulas.dense(hidden, u, d))
    return Case(writer.layer_network(layers), [w, b, u, d], (x,), (expected,))


def text_network(n: Numbers) -> Case:
    """Numbers of words through an LSTM to an output at every step."""
    e, w, r, b, u, d = n(9, 4), n(4, 20), n(5, 20), n(20), n(5, 3), n(3)
    x = np.array([[8.0, 0, 1, 2], [3, 3, 7, 6]])
    steps = formulas.lstm(formulas.lookup_sequence(x, e), w, r, b)
    layers = [
        writer.layer(
            "EmbeddingSequenceLayer", activation="Identity", nIn=9, nOut=4, inputLength=4, hasBias=False
        ),
        writer.layer("LSTM", activation="TanH", nIn=4, nOut=5, gateActivationFn=function("Sigmoid")),
        writer.layer("RnnOutputLayer", activation="Softmax", nIn=5, nOut=3, hasBias=True, **OUTPUT),
    ]
    expected = formulas.every_step(steps, lambda row: formulas.softmax(formulas.dense(row, u, d)))
    return Case(writer.layer_network(layers), [e, w, r, b, u, d], (x,), (expected,))


def peephole_network(n: Numbers) -> Case:
    """Two of Graves' LSTMs, the second with hard gates, and the largest of all steps."""
    w, r, b = n(3, 16), n(4, 19), n(16)
    v, q, c = n(4, 8), n(2, 11), n(8)
    u, d = n(2, 3), n(3)
    x = n(2, 3, 6, scale=1)
    steps = formulas.lstm(x, w, r, b)
    steps = formulas.lstm(steps, v, q, c, np.tanh, formulas.ACTIVATIONS["HardSigmoid"])
    layers = [
        writer.layer("GravesLSTM", activation="TanH", nIn=3, nOut=4, gateActivationFn=function("Sigmoid")),
        writer.layer(
            "GravesLSTM", activation="TanH", nIn=4, nOut=2, gateActivationFn=function("HardSigmoid")
        ),
        writer.layer("GlobalPoolingLayer", poolingType="MAX", collapseDimensions=True),
        writer.layer("OutputLayer", activation="Softmax", nIn=2, nOut=3, hasBias=True, **OUTPUT),
    ]
    expected = formulas.softmax(formulas.dense(formulas.global_pool(steps, "MAX"), u, d))
    return Case(writer.layer_network(layers), [w, r, b, v, q, c, u, d], (x,), (expected,))


def two_way_network(n: Numbers) -> Case:
    """An LSTM in both directions, side by side, then a plain recurrence in both directions, averaged."""
    one, two = (n(3, 8), n(2, 8), n(8)), (n(3, 8), n(2, 8), n(8))
    three, four = (n(4, 3), n(3, 3), n(3)), (n(4, 3), n(3, 3), n(3))
    u, d = n(3, 2), n(2)
    x = n(2, 3, 5, scale=1)
    steps = formulas.both_ways(
        x, lambda x, _: formulas.lstm(x, *one), lambda x, _: formulas.lstm(x, *two), "CONCAT"
    )
    relu = formulas.ACTIVATIONS["ReLU"]
    steps = formulas.both_ways(
        steps,
        lambda x, _: formulas.simple_rnn(x, *three, relu),
        lambda x, _: formulas.simple_rnn(x, *four, relu),
        "AVERAGE",
    )
    inner = writer.layer("LSTM", activation="TanH", nIn=3, nOut=2, gateActivationFn=function("Sigmoid"))
    plain = writer.layer("SimpleRnn", activation="ReLU", nIn=4, nOut=3, hasLayerNorm=False)
    layers = [
        writer.layer("Bidirectional", fwd=inner, bwd=inner, mode="CONCAT"),
        writer.layer("Bidirectional", fwd=plain, bwd=plain, mode="AVERAGE"),
        writer.layer(
            "RnnOutputLayer", activation="Identity", nIn=3, nOut=2, hasBias=True, lossFn=loss("MSE")
        ),
    ]
    expected = formulas.every_step(steps, lambda row: formulas.dense(row, u, d))
    return Case(writer.layer_network(layers), [*one, *two, *three, *four, u, d], (x,), (expected,))


def step_network(n: Numbers) -> Case:
    """Steps as rows for a dense layer, steps again, and the last of them."""
    w, r, b, v, c = n(3, 4), n(4, 4), n(4), n(4, 5), n(5)
    q, s, e, u, d = n(5, 2), n(2, 2), n(2), n(2, 3), n(3)
    x = n(3, 3, 4, scale=1)
    rows = formulas.steps_to_rows(formulas.simple_rnn(x, w, r, b))
    steps = formulas.rows_to_steps(np.tanh(formulas.dense(rows, v, c)), 3)
    last = formulas.last_step(formulas.simple_rnn(steps, q, s, e))
    layers = [
        writer.layer("SimpleRnn", activation="TanH", nIn=3, nOut=4),
        writer.layer("DenseLayer", activation="TanH", nIn=4, nOut=5, hasBias=True),
        writer.layer("LastTimeStep", underlying=writer.layer("SimpleRnn", activation="TanH", nIn=5, nOut=2)),
        writer.layer("OutputLayer", activation="Softmax", nIn=2, nOut=3, hasBias=True, **OUTPUT),
    ]
    preprocessors = {
        1: writer.preprocessor("RnnToFeedForwardPreProcessor"),
        2: writer.preprocessor("FeedForwardToRnnPreProcessor"),
    }
    conf = writer.layer_network(layers, preprocessors=preprocessors)
    expected = formulas.softmax(formulas.dense(last, u, d))
    return Case(conf, [w, r, b, v, c, q, s, e, u, d], (x,), (expected,))


def graph_network(n: Numbers) -> Case:
    """Two inputs, a vector and a sequence, two outputs, and a vertex of nearly every kind."""
    w, b, r = n(4, 3), n(3), (n(2, 12), n(3, 12), n(12))
    v, c, u, d = n(9, 2), n(2), n(4, 2), n(2)
    x, y = n(3, 4, scale=1), n(3, 2, 5, scale=1)
    left = np.tanh(formulas.dense(x, w, b))
    right = formulas.last_step(formulas.lstm(y, *r))
    total, apart = left + right, formulas.norm(left - right)
    scaled = 0.5 * left + 1.25
    unit = right / formulas.norm(right)
    stacked = np.concatenate([scaled, unit])
    merged = np.concatenate([total, stacked[3:], np.maximum(left, right)[:, 1:3], apart], axis=1)
    first = formulas.softmax(formulas.dense(merged, v, c))
    copies = np.repeat(apart[:, :, None], 5, axis=2)
    second = formulas.every_step(
        np.concatenate([y, copies, copies], axis=1), lambda row: formulas.sigmoid(formulas.dense(row, u, d))
    )
    vertices = {
        "left": writer.layer_vertex(
            writer.layer("DenseLayer", activation="TanH", nIn=4, nOut=3, hasBias=True)
        ),
        "right": writer.layer_vertex(
            writer.layer("LSTM", activation="TanH", nIn=2, nOut=3, gateActivationFn=function("Sigmoid"))
        ),
        "last": writer.vertex("LastTimeStepVertex", maskArrayInputName="sequence"),
        "total": writer.vertex("ElementWiseVertex", op="Add"),
        "largest": writer.vertex("ElementWiseVertex", op="Max"),
        "apart": writer.vertex("L2Vertex", eps=1e-8),
        "half": writer.vertex("ScaleVertex", scaleFactor=0.5),
        "scaled": writer.vertex("ShiftVertex", shiftFactor=1.25),
        "unit": writer.vertex("L2NormalizeVertex", dimension=[], eps=1e-8),
        "stacked": writer.vertex("StackVertex"),
        "unstacked": writer.vertex("UnstackVertex", **{"from": 1, "stackSize": 2}),
        "part": writer.vertex("SubsetVertex", **{"from": 1, "to": 2}),
        "merged": writer.vertex("MergeVertex"),
        "class": writer.layer_vertex(
            writer.layer("OutputLayer", activation="Softmax", nIn=9, nOut=2, hasBias=True, **OUTPUT)
        ),
        "copies": writer.vertex("DuplicateToTimeSeriesVertex", inputName="sequence"),
        "joined": writer.vertex("MergeVertex"),
        "tags": writer.layer_vertex(
            writer.layer(
                "RnnOutputLayer", activation="Sigmoid", nIn=4, nOut=2, hasBias=True, lossFn=loss("BinaryXENT")
            )
        ),
    }
    wiring = {
        "left": ["vector"],
        "right": ["sequence"],
        "last": ["right"],
        "total": ["left", "last"],
        "largest": ["left", "last"],
        "apart": ["left", "last"],
        "half": ["left"],
        "scaled": ["half"],
        "unit": ["last"],
        "stacked": ["scaled", "unit"],
        "unstacked": ["stacked"],
        "part": ["largest"],
        "merged": ["total", "unstacked", "part", "apart"],
        "class": ["merged"],
        "copies": ["apart"],
        "joined": ["sequence", "copies", "copies"],
        "tags": ["joined"],
    }
    order = ["vector", "sequence", *vertices]
    conf = writer.graph_network(
        vertices,
        wiring,
        inputs=["vector", "sequence"],
        outputs=["class", "tags"],
        topologicalOrderStr=order,
        topologicalOrder=list(range(len(order))),
    )
    return Case(conf, [w, b, *r, v, c, u, d], (x, y), (first, second))


NETWORKS: dict[str, Callable[[Numbers], Case]] = {
    "dense": dense_network,
    "loss": loss_network,
    "images": image_network,
    "convolution of sequences": sequence_convolution_network,
    "pixels": pixel_network,
    "batch normalisation": normalised_network,
    "embedding": embedding_network,
    "text": text_network,
    "peepholes": peephole_network,
    "both directions": two_way_network,
    "steps as rows": step_network,
    "graph": graph_network,
}


def written(case: Case, mode: str = "MIXED_DATA_TYPES") -> io.BytesIO:
    file = io.BytesIO()
    parameters = [
        (item[0].astype(np.float32), item[1]) if isinstance(item, tuple) else item.astype(np.float32)
        for item in case.parameters
    ]
    writer.write_network(file, case.configuration, parameters, mode=mode)
    file.seek(0)
    return file


def outputs(network: torch.nn.Module, inputs: tuple[Array, ...], dtype: torch.dtype) -> list[Array]:
    with torch.no_grad():
        given = network.eval()(*(torch.from_numpy(x).to(dtype) for x in inputs))
    return [one.double().numpy() for one in (given if isinstance(given, tuple) else (given,))]


def test_there_are_twelve_networks() -> None:
    assert len(NETWORKS) == 12


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_of_the_original_gives_what_the_formulas_give(name: str, dtype: torch.dtype) -> None:
    for seed in range(3):
        case = NETWORKS[name](Numbers(seed))
        network = from_dl4j(written(case), dtype=dtype).network
        received = outputs(network, case.inputs, dtype)
        assert len(received) == len(case.expected)
        for one, other in zip(received, case.expected, strict=True):
            close(one, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_migrated_network_is_rebuilt_without_pickle(name: str) -> None:
    case = NETWORKS[name](Numbers(0))
    network = from_dl4j(written(case)).network
    blueprint = describe(network)
    assert blueprint is not None
    rebuilt = build(blueprint)
    rebuilt.load_state_dict(network.state_dict())
    before, after = (outputs(one, case.inputs, torch.float32) for one in (network, rebuilt))
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_migrated_network_trains(name: str) -> None:
    """Every parameter that trains gets a gradient that is finite; most of them one that is not zero."""
    case = NETWORKS[name](Numbers(0))
    network = from_dl4j(written(case), dtype=torch.float64).network.train()
    given = network(*(torch.from_numpy(x) for x in case.inputs))
    weighed = [
        (one * torch.linspace(-1, 1, one.numel(), dtype=one.dtype).reshape(one.shape)).sum()
        for one in (given if isinstance(given, tuple) else (given,))
    ]
    torch.stack(weighed).sum().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.requires_grad]
    assert gradients
    for gradient in gradients:
        assert gradient is not None
        assert gradient.isfinite().all()
    assert (
        sum(bool(gradient.count_nonzero()) for gradient in gradients if gradient is not None)
        > len(gradients) / 2
    )
