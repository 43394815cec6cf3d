"""Vertices, and whole networks: stacks with preprocessors and graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.migrate import formulas
from tests.migrate.builders import close, filled, inside, layer, numbers, output, vertex
from tests.migrate.test_recurrent import MASK

from fatwood.blueprint import build, describe
from fatwood.errors import UserError
from fatwood.migrate.configuration import LayerConf, NetworkConf, VertexConf
from fatwood.migrate.context import Context
from fatwood.migrate.layers import layer_module
from fatwood.migrate.networks import Graph, Stack, build_network
from fatwood.migrate.vertices import vertex_module

A, B, C = (numbers(4, 6, seed=seed) for seed in (1, 2, 3))


@pytest.mark.parametrize(
    ("kind", "fields", "inputs", "expected"),
    [
        ("MergeVertex", {}, (A, B), np.concatenate([A, B], axis=1)),
        ("ElementWiseVertex", {"op": "Add"}, (A, B, C), A + B + C),
        ("ElementWiseVertex", {"op": "Subtract"}, (A, B), A - B),
        ("ElementWiseVertex", {"op": "Product"}, (A, B, C), A * B * C),
        ("ElementWiseVertex", {"op": "Average"}, (A, B, C), (A + B + C) / 3),
        ("ElementWiseVertex", {"op": "Max"}, (A, B, C), np.maximum(np.maximum(A, B), C)),
        ("ElementWiseVertex", {"op": "Add"}, (A, B[:, :1]), A + B[:, :1]),
        ("SubsetVertex", {"from": 1, "to": 3}, (A,), A[:, 1:4]),
        ("StackVertex", {}, (A, B), np.concatenate([A, B])),
        ("UnstackVertex", {"from": 1, "stackSize": 2}, (A,), A[2:]),
        ("ScaleVertex", {"scaleFactor": 2.5}, (A,), 2.5 * A),
        ("ShiftVertex", {"shiftFactor": 2.5}, (A,), A + 2.5),
        ("L2Vertex", {"eps": 1e-8}, (A, B), formulas.norm(A - B)),
        ("L2NormalizeVertex", {"eps": 1e-8, "dimension": None}, (A,), A / formulas.norm(A)),
        ("L2NormalizeVertex", {"eps": 1e3, "dimension": []}, (A,), A / 1e3),
        ("ReverseTimeSeriesVertex", {}, (A[:, :, None] * [1, 2, 3],), A[:, :, None] * [3, 2, 1]),
        ("LastTimeStepVertex", {"maskArrayInputName": "in"}, (A[:, :, None] * [1, 2, 3],), 3 * A),
    ],
)
def test_a_vertex_is_its_formula(
    kind: str, fields: dict[str, Any], inputs: tuple[formulas.Array, ...], expected: formulas.Array
) -> None:
    module = vertex_module(vertex(kind, **fields))
    close(output(module, *inputs), expected)
    assert describe(module) is not None


def test_vertices_of_images() -> None:
    x, y = numbers(2, 3, 4, 5), numbers(2, 3, 4, 5, seed=2)
    close(output(vertex_module(vertex("L2Vertex")), x, y), formulas.norm(x - y))
    expected = x / formulas.norm(x)[:, :, None, None]
    close(output(vertex_module(vertex("L2NormalizeVertex")), x), expected)
    along = vertex_module(vertex("L2NormalizeVertex", dimension=[1]))
    close(output(along, x), x / np.sqrt((x**2).sum(1, keepdims=True)))
    close(output(vertex_module(vertex("SubsetVertex", **{"from": 0, "to": 1})), x), x[:, :2])
    last = vertex_module(vertex("MergeVertex", mergeAxis=3))
    close(output(last, x, y), np.concatenate([x, y], axis=3))


def test_stacked_sequences_of_several_lengths_are_filled_up_with_zeros() -> None:
    x, y = numbers(2, 3, 4), numbers(2, 3, 2)
    expected = np.concatenate([x, np.pad(y, [(0, 0), (0, 0), (0, 2)])])
    close(output(vertex_module(vertex("StackVertex")), x, y), expected)


def test_vertices_of_sequences_see_the_mask_of_the_input_that_they_name() -> None:
    x = numbers(4, 3, 5)
    context = Context(4, masks={"in": torch.from_numpy(MASK)})
    last = vertex_module(vertex("LastTimeStepVertex", maskArrayInputName="in"))
    close(output(last, x, context=context), formulas.last_step(x, MASK))
    close(output(last, x), x[:, :, -1])
    ahead = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]], dtype=float)
    back = vertex_module(vertex("ReverseTimeSeriesVertex", maskArrayInputName="in"))
    expected = np.zeros_like(x)
    for row, count in enumerate((5, 3, 1, 2)):
        expected[row, :, :count] = x[row, :, :count][:, ::-1]
    close(output(back, x, context=Context(4, masks={"in": torch.from_numpy(ahead)})), expected)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("AttentionVertex", {}), ("ElementWiseVertex", {"op": "Modulo"}), ("SubsetVertex", {"from": 1})],
)
def test_a_vertex_that_cannot_be_mapped_is_refused_with_its_name_and_class(
    kind: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=rf"layer 'it' \(org\.deeplearning4j\.nn\.conf\.graph\.{kind}\)"):
        vertex_module(vertex(kind, **fields))


def _stack(*layers: LayerConf) -> tuple[Stack, list[dict[str, formulas.Array]]]:
    plans, arrays = {}, []
    for number, conf in enumerate(layers):
        own = LayerConf(f"layer{number}", conf.kind, conf.fields, conf.input_preprocessor, conf.source)
        plan = layer_module(own)
        arrays.append(filled(own, number)[1])
        plan.module.double()
        plan.load(arrays[-1])
        plans[own.name] = (own, plan)
    conf = NetworkConf(False, tuple(own for own, _ in plans.values()), (), (), (), "DOUBLE", 0, 0, {})
    network = build_network(conf, {name: plan for name, (_, plan) in plans.items()})
    assert isinstance(network, Stack)
    return network.eval(), arrays


def test_steps_become_rows_and_steps_again_in_the_order_of_the_original() -> None:
    network, (rnn, dense, last) = _stack(
        layer("SimpleRnn", "TanH", nIn=3, nOut=4),
        layer("DenseLayer", "TanH", nIn=4, nOut=5, before={"kind": "RnnToFeedForwardPreProcessor"}),
        layer("SimpleRnn", "TanH", nIn=5, nOut=2, before={"kind": "FeedForwardToRnnPreProcessor"}),
    )
    x = numbers(3, 3, 4)
    rows = formulas.steps_to_rows(formulas.simple_rnn(x, rnn["W"], rnn["RW"], rnn["b"]))
    steps = formulas.rows_to_steps(np.tanh(formulas.dense(rows, dense["W"], dense["b"])), 3)
    close(output(network, x), formulas.simple_rnn(steps, last["W"], last["RW"], last["b"]))


def test_rows_of_steps_come_step_by_step() -> None:
    module, _ = filled(layer("ActivationLayer", before={"kind": "RnnToFeedForwardPreProcessor"}))
    x = np.arange(12.0).reshape(2, 2, 3)  # rows, features, steps
    close(output(module, x), np.array([[0.0, 3], [6, 9], [1, 4], [7, 10], [2, 5], [8, 11]]))


def test_images_of_steps_are_convolved_and_become_steps_again() -> None:
    image = {"inputHeight": 2, "inputWidth": 3, "numChannels": 1}
    network, (convolution, rnn) = _stack(
        layer(
            "ConvolutionLayer",
            "TanH",
            nIn=1,
            nOut=2,
            kernelSize=[2, 2],
            before={"kind": "RnnToCnnPreProcessor", **image},
        ),
        layer(
            "SimpleRnn",
            "TanH",
            nIn=4,
            nOut=2,
            before={"kind": "CnnToRnnPreProcessor", "inputHeight": 1, "inputWidth": 2, "numChannels": 2},
        ),
    )
    x = numbers(3, 6, 4)
    images = formulas.steps_to_rows(x).reshape(12, 1, 2, 3)
    maps = np.tanh(formulas.convolve(images, convolution["W"], convolution["b"]))
    steps = formulas.rows_to_steps(maps.reshape(12, 4), 3)
    close(output(network, x), formulas.simple_rnn(steps, rnn["W"], rnn["RW"], rnn["b"]))


def test_a_composed_preprocessor_runs_its_parts_one_after_another() -> None:
    flat = {"@class": "org.deeplearning4j.nn.conf.preprocessor.CnnToFeedForwardPreProcessor"}
    before = {"kind": "ComposableInputPreProcessor", "inputPreProcessors": [flat]}
    module, own = filled(layer("DenseLayer", nIn=6, nOut=2, before=before))
    x = numbers(4, 1, 2, 3)
    close(output(module, x), formulas.dense(x.reshape(4, 6), own["W"], own["b"]))


def test_a_preprocessor_that_is_not_known_is_refused_with_the_layers_name() -> None:
    with pytest.raises(UserError, match=r"layer 'it' \(KerasFlattenRnnPreprocessor\)"):
        layer_module(layer("DenseLayer", nIn=6, nOut=2, before={"kind": "KerasFlattenRnnPreprocessor"}))


def test_a_mask_goes_through_a_stack() -> None:
    network, (lstm, _, out) = _stack(
        layer("LSTM", "TanH", nIn=3, nOut=4),
        layer("GlobalPoolingLayer", poolingType="AVG"),
        layer("OutputLayer", "Softmax", nIn=4, nOut=2),
    )
    x = numbers(4, 3, 5)
    outputs = formulas.lstm(x, lstm["W"], lstm["RW"], lstm["b"], mask=MASK)
    pooled = formulas.global_pool(outputs, "AVG", MASK)
    expected = formulas.softmax(formulas.dense(pooled, out["W"], out["b"]))
    close(output(network, x, mask=torch.from_numpy(MASK)), expected)


def _vertex(name: str, inputs: tuple[str, ...], conf: LayerConf | VertexConf) -> VertexConf:
    if isinstance(conf, LayerConf):
        own = LayerConf(name, conf.kind, conf.fields, conf.input_preprocessor, conf.source)
        return VertexConf(name, "LayerVertex", {}, inputs, own, conf.input_preprocessor, "LayerVertex")
    return VertexConf(name, conf.kind, conf.fields, inputs, None, conf.preprocessor, conf.source)


def _graph(
    vertices: list[VertexConf], inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> tuple[Graph, dict[str, dict[str, formulas.Array]]]:
    layers = tuple(vertex.layer for vertex in vertices if vertex.layer is not None)
    conf = NetworkConf(True, layers, tuple(vertices), inputs, outputs, "DOUBLE", 0, 0, {})
    plans, arrays = {}, {}
    for number, own in enumerate(layers):
        plans[own.name] = layer_module(own)
        arrays[own.name] = filled(own, number)[1]
        plans[own.name].module.double()
        plans[own.name].load(arrays[own.name])
    network = build_network(conf, plans)
    assert isinstance(network, Graph)
    return network.eval(), arrays


def test_a_sequence_is_summed_up_and_goes_to_every_step_of_another() -> None:
    """An encoder and a decoder: masks and lengths are those of the inputs that vertices name."""
    network, own = _graph(
        [
            _vertex("encoder", ("questions",), layer("LSTM", "TanH", nIn=3, nOut=4)),
            _vertex("last", ("encoder",), vertex("LastTimeStepVertex", maskArrayInputName="questions")),
            _vertex("copies", ("last",), vertex("DuplicateToTimeSeriesVertex", inputName="answers")),
            _vertex("both", ("answers", "copies"), vertex("MergeVertex")),
            _vertex("decoder", ("both",), layer("LSTM", "TanH", nIn=6, nOut=4)),
        ],
        ("questions", "answers"),
        ("decoder",),
    )
    x, y = numbers(4, 3, 5), numbers(4, 2, 7)
    first, second = own["encoder"], own["decoder"]
    encoded = formulas.lstm(x, first["W"], first["RW"], first["b"], mask=MASK)
    copies = np.repeat(formulas.last_step(encoded, MASK)[:, :, None], 7, axis=2)
    both = np.concatenate([y, copies], axis=1)
    expected = formulas.lstm(both, second["W"], second["RW"], second["b"])
    close(output(network, x, y, mask={"questions": torch.from_numpy(MASK)}), expected)


def test_names_that_modules_cannot_have_are_changed_a_little() -> None:
    network, own = _graph(
        [
            _vertex("block.1", ("in",), layer("DenseLayer", nIn=3, nOut=2)),
            _vertex("keys", ("block.1",), layer("DenseLayer", nIn=2, nOut=2)),
            _vertex("block_1", ("keys",), layer("DenseLayer", nIn=2, nOut=2)),
            _vertex("", ("block_1",), layer("DenseLayer", nIn=2, nOut=2)),
        ],
        ("in",),
        ("",),
    )
    assert list(network.vertices) == ["block_1", "keys_", "block_1_", "_"]
    x = numbers(4, 3)
    expected = x
    for name in ("block.1", "keys", "block_1", ""):
        expected = formulas.dense(expected, own[name]["W"], own[name]["b"])
    close(output(network, x), expected)


def test_a_graph_can_be_saved_without_pickle_and_shows_who_takes_what() -> None:
    network, _ = _graph(
        [
            _vertex("left", ("in",), layer("DenseLayer", "TanH", nIn=3, nOut=2)),
            _vertex(
                "right", ("in",), layer("LastTimeStep", underlying=inside("LSTM", "TanH", nIn=3, nOut=2))
            ),
            _vertex("sum", ("left", "right"), vertex("ElementWiseVertex", op="Add")),
        ],
        ("in",),
        ("sum", "left"),
    )
    assert "sum <- left, right" in repr(network)
    blueprint = describe(network.float())
    assert blueprint is not None
    assert repr(build(blueprint)) == repr(network)


def test_a_graph_refuses_a_wrong_number_of_inputs_and_unknown_names() -> None:
    network, _ = _graph([_vertex("sum", ("a", "b"), vertex("MergeVertex"))], ("a", "b"), ("sum",))
    with pytest.raises(UserError, match=r"inputs of a graph: expected 2 \(a, b\), received 1"):
        output(network, A)
    with pytest.raises(UserError, match="inputs of vertex 'sum': expected one of a, received c"):
        _graph([_vertex("sum", ("a", "c"), vertex("MergeVertex"))], ("a",), ("sum",))
    with pytest.raises(UserError, match="outputs of a graph: expected one of a, sum, received total"):
        _graph([_vertex("sum", ("a",), vertex("MergeVertex"))], ("a",), ("total",))
    with pytest.raises(UserError, match="one input of a layer, received 2"):
        _graph([_vertex("it", ("a", "a"), layer("DenseLayer", nIn=1, nOut=1))], ("a",), ("it",))
