"""The file and its JSON: every age of the configuration, and files that are hostile."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.migrate import writer

from fatwood.errors import DamagedError, FatwoodError, UserError
from fatwood.migrate.configuration import CLASS
from fatwood.migrate.file import read_file
from fatwood.migrate.ordering import topological_order
from fatwood.migrate.parsing import parse_configuration

ACTIVATIONS = "org.nd4j.linalg.activations.impl.Activation"
CONFIG = "org.nd4j.linalg.learning.config."


def parsed(configuration: dict[str, Any]) -> Any:
    return parse_configuration(json.dumps(configuration).encode())


def test_old_and_new_forms_of_the_same_network_are_read_alike() -> None:
    def network(old: bool) -> Any:
        dense = writer.layer("DenseLayer", activation="ReLU", old=old, nIn=3, nOut=4, layerName="hidden")
        output = writer.layer("OutputLayer", activation="Softmax", old=old, nIn=4, nOut=2, layerName=None)
        before = {1: writer.preprocessor("CnnToFeedForwardPreProcessor", old=old, inputHeight=2)}
        return parsed(writer.layer_network([dense, output], preprocessors=before, iteration=7, epoch=2))

    new = network(False)
    assert [(layer.name, layer.kind) for layer in new.layers] == [
        ("hidden", "DenseLayer"),
        ("layer1", "OutputLayer"),
    ]
    assert new.layers[0].fields["nIn"] == 3
    assert new.layers[0].fields["activationFn"] == {CLASS: ACTIVATIONS + "ReLU"}
    assert new.layers[1].input_preprocessor["kind"] == "CnnToFeedForwardPreProcessor"
    assert new.layers[1].input_preprocessor["inputHeight"] == 2
    assert (new.iteration, new.epoch, new.data_type, new.graph) == (7, 2, "FLOAT", False)
    old = network(True)
    for a, b in zip(new.layers, old.layers, strict=True):
        assert (a.name, a.kind, dict(a.fields), a.input_preprocessor) == (
            b.name,
            b.kind,
            dict(b.fields),
            b.input_preprocessor,
        )


def test_a_file_of_version_0_5_has_todays_fields() -> None:
    """Fields as in the original's own regression file ``050_ModelSerializer_Regression_MLP_2``."""
    old = {
        "activationFunction": "leakyrelu",
        "adamMeanDecay": "NaN",
        "dropOut": 0.6,
        "l1": 0.1,
        "l2": 0.2,
        "layerName": None,
        "learningRate": 0.15,
        "lossFunction": "MSE",
        "momentum": "NaN",
        "nin": 3,
        "nout": 4,
        "rmsDecay": 0.96,
        "updater": "RMSPROP",
    }
    (layer,) = parsed(
        {"confs": [{"layer": {"output": old}, "useDropConnect": False, "iterationCount": 3}]}
    ).layers
    assert layer.kind == "OutputLayer"
    assert layer.fields["activationFn"][CLASS] == ACTIVATIONS + "LReLU"
    assert layer.fields["lossFn"][CLASS].endswith(".LossMSE")
    expected = {CLASS: CONFIG + "RmsProp", "learningRate": 0.15, "rmsDecay": 0.96, "epsilon": 1e-8}
    assert layer.fields["iUpdater"] == expected
    assert layer.fields["iDropout"]["p"] == 0.6
    kinds = [term[CLASS].rpartition(".")[2] for term in layer.fields["regularization"]]
    assert kinds == ["L1Regularization", "WeightDecay"]
    assert parsed({"confs": [{"layer": {"output": old}, "iterationCount": 3}]}).iteration == 3


def test_drop_connect_is_no_dropout() -> None:
    conf = {"layer": {"dense": {"dropOut": 0.5, "nin": 1, "nout": 1}}, "useDropConnect": True}
    assert parsed({"confs": [conf]}).layers[0].fields.get("iDropout") is None


@pytest.mark.parametrize(
    ("variables", "field", "expected"),
    [
        (["gamma", "beta", "mean", "var"], True, False),
        (["mean", "log10stdev"], False, True),
        ([], True, True),
        ([], None, False),
    ],
)
def test_names_of_parameters_say_in_which_form_a_variance_is(
    variables: list[str], field: bool | None, expected: bool
) -> None:
    fields = {} if field is None else {"useLogStd": field}
    network = writer.layer_network(
        [writer.layer("BatchNormalization", nOut=2, **fields)], variables={0: variables}
    )
    assert parsed(network).layers[0].fields["useLogStd"] is expected


def test_layers_inside_layers_are_had_in_the_newest_form() -> None:
    lstm = writer.layer("LSTM", activation="TanH", old=True, nIn=2, nOut=3)
    (layer,) = parsed(
        writer.layer_network([writer.layer("Bidirectional", fwd=lstm, bwd=lstm, mode="ADD")])
    ).layers
    inner = layer.inner("fwd")
    assert inner is not None
    assert (inner.kind, inner.fields["nOut"], inner.name) == ("LSTM", 3, "layer0.fwd")
    assert layer.inner("underlying") is None


def test_a_class_of_somebody_else_is_known_by_its_full_name() -> None:
    (layer,) = parsed({"confs": [{"layer": {CLASS: "com.acme.DenseLayer"}}]}).layers
    assert layer.kind == layer.source == "com.acme.DenseLayer"


def test_equal_names_of_layers_are_told_apart() -> None:
    network = parsed(writer.layer_network([writer.layer("DenseLayer", layerName="a")] * 2))
    assert [layer.name for layer in network.layers] == ["layer0", "layer1"]


def test_more_layers_than_any_network_has_are_refused_at_once() -> None:
    layers = b'{"layer": {"dense": {}}},' * 100_000
    for text in (b'{"confs": [' + layers[:-1] + b"]}", b'{"confs": [' + b"0," * 5_000_000 + b"0]}"):
        started = time.monotonic()
        with pytest.raises(UserError, match="expected at most 10000 layers or vertices"):
            parse_configuration(text)
        assert time.monotonic() - started < 5


def test_names_that_stay_equal_are_refused() -> None:
    twice = [writer.layer("DenseLayer", layerName=name) for name in ("a", "layer0", "a")]
    with pytest.raises(UserError, match="layers of different names"):
        parsed(writer.layer_network([twice[0], twice[1], twice[2]]))


def graph(order: list[str] | None = None, old: bool = False) -> dict[str, Any]:
    dense = writer.layer("DenseLayer", old=old, nIn=1, nOut=1, layerName="ignored")
    vertices = {
        "merge": writer.vertex("MergeVertex", old=old),
        "a": writer.layer_vertex(dense, old=old),
        "b": writer.layer_vertex(
            dense, old=old, preprocessor=writer.preprocessor("RnnToFeedForwardPreProcessor", old=old)
        ),
    }
    edges = {"merge": ["a", "b"], "a": ["x"], "b": ["y"]}
    extra = {} if order is None else {"topologicalOrderStr": order}
    return writer.graph_network(vertices, edges, inputs=["x", "y"], outputs=["merge"], **extra)


@pytest.mark.parametrize("old", [False, True])
def test_a_graph_has_its_vertices_in_topological_order(old: bool) -> None:
    network = parsed(graph(old=old))
    assert [(vertex.name, vertex.kind, vertex.inputs) for vertex in network.vertices] == [
        ("a", "LayerVertex", ("x",)),
        ("b", "LayerVertex", ("y",)),
        ("merge", "MergeVertex", ("a", "b")),
    ]
    assert [layer.name for layer in network.layers] == ["a", "b"]
    assert network.vertices[1].preprocessor == network.layers[1].input_preprocessor
    assert network.vertices[1].preprocessor["kind"] == "RnnToFeedForwardPreProcessor"
    assert (network.inputs, network.outputs, network.graph) == (("x", "y"), ("merge",), True)


def test_the_order_that_a_file_names_counts() -> None:
    assert [v.name for v in parsed(graph(["y", "x", "b", "a", "merge"])).vertices] == ["b", "a", "merge"]


@pytest.mark.parametrize(
    "order",
    [["x", "y", "a", "b"], ["x", "y", "merge", "a", "b"], ["x", "y", "a", "b", "merge", "a"], "abc", [1]],
)
def test_an_order_that_is_none_of_the_graph_is_refused(order: Any) -> None:
    with pytest.raises(UserError, match="topologicalOrderStr"):
        parsed(graph(order))


def test_without_a_named_order_numbers_go_as_in_a_hash_set_of_java() -> None:
    """A table of 16 places: number 17 lies in place 1, before number 3; with 13 numbers the table has 32."""
    chain = {f"c{i}": [f"c{i - 1}" if i else "in"] for i in range(15)}
    order = topological_order(["in"], {**chain, "late": ["in"]})
    assert order[:2] == ("late", "c0")
    wide = {f"v{i}": ["in"] for i in range(20)}
    assert topological_order(["in"], wide) == tuple(wide)


def test_a_cycle_and_an_unknown_name_are_refused() -> None:
    with pytest.raises(UserError, match="without a cycle"):
        topological_order(["x"], {"a": ["b"], "b": ["a"]})
    with pytest.raises(UserError, match="'a': expected inputs that there are, received \\['z'\\]"):
        topological_order(["x"], {"a": ["z"]})
    with pytest.raises(UserError, match="a name twice"):
        topological_order(["a"], {"a": []})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"confs": 3}',
        b'{"confs": [3]}',
        b'{"confs": [{"layer": {}}]}',
        b'{"confs": [{"layer": {"@class": 3}}]}',
        b'{"vertices": {}, "networkInputs": 3}',
        b'{"vertices": {"a": 3}, "networkInputs": [], "networkOutputs": [], "vertexInputs": {}}',
        b'{"confs": [], "iterationCount": -1}',
        b'{"confs": [], "iterationCount": NaN}',
        b'{"confs": [], "inputPreProcessors": []' + b"," * 9,
        b"[" * 200_000,
        b'{"confs": [{"layer": ' + b'{"layer":' * 5_000 + b"{}" + b"}" * 5_000 + b"}]}",
        b"\xff\xfe",
        b'{"confs": [], "epochCount": ' + b"9" * 10_000 + b"}",
    ],
)
def test_json_that_is_no_network_is_refused(text: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"configuration.json: .*\nhint: pass a file that"):
        parse_configuration(text)
    assert time.monotonic() - started < 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["layer", "@class", "dense", "nin", "activationFn", "updater", "l2"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=3), JSON)
def test_no_json_makes_the_parser_raise_anything_else(confs: list[Any], before: Any) -> None:
    try:
        network = parsed({"confs": confs, "inputPreProcessors": before})
        assert len(network.layers) == len(confs)
    except UserError:
        pass


NETWORK = writer.layer_network([writer.layer("DenseLayer", activation="ReLU", nIn=3, nOut=2)])
PARAMETERS = [np.arange(6, dtype=np.float32).reshape(3, 2), np.array([[7, 8]], np.float32)]


def test_a_file_is_read_and_the_rest_is_left_alone(tmp_path: Path) -> None:
    extra = {"objects/thing": b"\xac\xed java", "../../evil": b"x", "preprocessor.bin": b"\xac\xed"}
    writer.write_network(tmp_path / "net.zip", NETWORK, PARAMETERS, np.arange(16.0), b"n", extra=extra)
    with open(tmp_path / "net.zip", "rb") as file:
        saved = read_file(file, "net.zip")
        assert not file.closed
    np.testing.assert_array_equal(saved.parameters, [0, 2, 4, 1, 3, 5, 7, 8])
    np.testing.assert_array_equal(saved.updater_state, np.arange(16.0))
    assert (saved.normalizer, saved.ignored) == (b"n", tuple(extra))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.zip"]


def test_a_network_without_parameters_has_an_empty_vector() -> None:
    file = io.BytesIO()
    writer.write_network(file, NETWORK, [])
    assert read_file(file, "it").parameters.shape == (0,)


def zipped(**entries: bytes) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("_", "."), content)
    return file


VECTOR = writer.array_bytes(np.zeros((1, 4), np.float32))


@pytest.mark.parametrize(
    ("file", "match"),
    [
        (io.BytesIO(b""), "expected a zip file"),
        (io.BytesIO(b"PK\x03\x04" + bytes(100)), "expected a zip file"),
        (zipped(other=b"x"), "expected one entry configuration.json"),
        (
            zipped(configuration_json=b"{}"),
            "coefficients.bin: expected the parameters, received no such entry",
        ),
        (
            zipped(configuration_json=b"{}", coefficients_bin=b""),
            "coefficients.bin: expected the parameters, received nothing",
        ),
        (zipped(configuration_json=b"{}", coefficients_bin=b"abc"), "coefficients.bin: array of ND4J"),
        (zipped(configuration_json=b"{}", coefficients_bin=VECTOR + b"x"), "1 bytes more"),
        (
            zipped(
                configuration_json=b"{}", coefficients_bin=writer.array_bytes(np.zeros((2, 2), np.float32))
            ),
            "expected a row of floating numbers, received shape",
        ),
        (
            zipped(configuration_json=b"{}", coefficients_bin=writer.array_bytes(np.zeros((1, 2), np.int32))),
            "expected a row of floating numbers, received shape",
        ),
    ],
)
def test_a_file_that_is_no_network_is_refused(file: io.BytesIO, match: str) -> None:
    with pytest.raises(DamagedError, match=rf"old.zip: .*{match}"):
        read_file(file, "old.zip")


def test_an_entry_twice_is_refused() -> None:
    file = zipped(configuration_json=b"{}", coefficients_bin=VECTOR)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("coefficients.bin", VECTOR)
    with pytest.raises(DamagedError, match=r"expected one entry coefficients\.bin"):
        read_file(file, "old.zip")


@pytest.mark.parametrize("entry", ["configuration.json", "coefficients.bin", "updaterState.bin"])
def test_a_zip_bomb_is_refused_before_memory_is_taken(entry: str) -> None:
    file = io.BytesIO()
    content = {"configuration.json": b"{}", "coefficients.bin": VECTOR, "updaterState.bin": VECTOR}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, own in content.items():
            with archive.open(name, "w") as target:
                if name != entry:
                    target.write(own)
                else:
                    for _ in range(200):
                        target.write(bytes(1 << 20))
    assert len(file.getvalue()) < 1 << 20
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(DamagedError, match=f"old.zip: {entry}: expected at most"):
            read_file(file, "old.zip")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20
    assert time.monotonic() - started < 1


@given(st.data())
def test_an_altered_byte_never_gives_other_parameters(data: st.DataObject) -> None:
    file = io.BytesIO()
    writer.write_network(file, NETWORK, PARAMETERS)
    content = bytearray(file.getvalue())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    try:
        saved = read_file(io.BytesIO(bytes(content)), "old.zip")
    except FatwoodError:
        return
    np.testing.assert_array_equal(saved.parameters, [0, 2, 4, 1, 3, 5, 7, 8])
