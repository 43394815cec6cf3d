"""`fatwood migrate` as a stranger runs it, and the file it writes."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.migrate import writer

from fatwood.errors import FatwoodError
from fatwood.migrate import from_dl4j
from fatwood.model import SparkModel

UPDATER = writer.updater("Adam", learningRate=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8)
LAYERS = [
    writer.layer(
        "DenseLayer", activation="ReLU", layerName="hidden", nIn=3, nOut=4, hasBias=True, iUpdater=UPDATER
    ),
    writer.layer(
        "OutputLayer",
        activation="Softmax",
        layerName="out",
        nIn=4,
        nOut=2,
        hasBias=True,
        iUpdater=UPDATER,
        lossFn={"@class": "org.nd4j.linalg.lossfunctions.impl.LossMCXENT"},
    ),
]


def parameters() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape).astype(np.float32) for shape in [(3, 4), (1, 4), (4, 2), (1, 2)]]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.zip"
    normalizer = writer.standardize_normalizer(np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.5, 2.0]))
    writer.write_network(
        path,
        writer.layer_network(LAYERS, iteration=9, epoch=2),
        parameters(),
        np.zeros(52, np.float32),
        normalizer,
        extra={"objects/thing": b"\xac\xed"},
    )
    return path


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fatwood", "migrate", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=dict(os.environ),
        timeout=60,
        check=False,
    )


def expected(rows: np.ndarray) -> np.ndarray:
    """The network's output by its formula."""
    weights, bias, out, out_bias = parameters()
    z = np.maximum(rows @ weights + bias, 0) @ out + out_bias
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_table_has_a_line_for_each_layer_and_says_what_is_not_read(old: Path) -> None:
    done = run("old.zip", cwd=old.parent)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "layer",
        "class",
        "in",
        "the",
        "file",
        "module",
        "parameters",
        "shapes",
        "note",
    ]
    assert lines[1].startswith("hidden  DenseLayer ")
    assert "16  W (3, 4) b (4,)" in lines[1]
    assert lines[2].startswith("out     OutputLayer ")
    assert lines[3].split() == ["total", "26"]
    assert "not read: 'objects/thing'; entries that Java has serialised are never read" in lines[-1]
    assert sorted(path.name for path in old.parent.iterdir()) == ["old.zip"]


def test_the_file_that_is_written_predicts_as_the_formula_says_without_the_original(old: Path) -> None:
    done = run("old.zip", "--out", "new.fatwood", "--json", cwd=old.parent)
    assert done.returncode == 0, done.stderr
    assert "wrote new.fatwood" in done.stderr
    told = json.loads(done.stdout)
    assert (told["parameters"], told["iteration"], told["epoch"], told["optimizer"]["class"]) == (
        26,
        9,
        2,
        "Adam",
    )
    model = SparkModel.load(old.parent / "new.fatwood")
    rows = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    scaled = model.preprocessing["features"].apply(torch.from_numpy(rows))
    np.testing.assert_allclose(scaled.numpy(), (rows - [1, 2, 3]) / [1, 0.5, 2], atol=1e-6)
    with torch.no_grad():
        found = model.network.eval()(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(found, expected(rows), atol=1e-6)


def test_a_layer_that_is_not_known_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    strange = writer.layer_network([LAYERS[0], {"@class": "com.acme.Wavelet", "layerName": "wave"}])
    writer.write_network(tmp_path / "old.zip", strange, parameters()[:2])
    done = run("old.zip", "--out", "new.fatwood", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "'wave'" in done.stderr
    assert "com.acme.Wavelet" in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.zip"]


@pytest.mark.parametrize("content", [None, b"no zip"])
def test_no_file_and_no_zip_are_errors_without_a_traceback(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "old.zip").write_bytes(content)
    done = run("old.zip", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "old.zip" in done.stderr
    assert "Traceback" not in done.stderr


def test_names_of_layers_cannot_write_to_a_terminal(old: Path) -> None:
    evil = [{**LAYERS[0], "layerName": "a\x1b]0;b\x07\nc" + "d" * 1000}, LAYERS[1]]
    writer.write_network(old, writer.layer_network(evil), parameters())
    text = str(from_dl4j(old))
    assert "\x1b" not in text
    assert len(text.splitlines()) < 8
    assert max(map(len, text.splitlines())) < 500


def test_the_network_trains_on_with_its_optimizer(old: Path) -> None:
    migrated = from_dl4j(old)
    assert migrated.optimizer is not None
    network = migrated.network.train()
    optimizer = migrated.optimizer(network.parameters())
    rows = torch.from_numpy(np.random.default_rng(2).normal(size=(16, 3)).astype(np.float32))
    assert migrated.loss is not None
    labels = torch.nn.functional.one_hot((rows[:, 0] > 0).long(), 2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = migrated.loss(network(rows), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert math.isfinite(losses[-1])
    assert losses[-1] < 0.9 * losses[0]


def test_a_graph_of_two_inputs_and_outputs_keeps_their_names_and_order(tmp_path: Path) -> None:
    vertices = {
        "both": writer.vertex("MergeVertex"),
        "wide": writer.layer_vertex({**LAYERS[0], "layerName": "wide", "nin": 5}),
        "left": writer.layer_vertex({**LAYERS[1], "layerName": "left"}),
        "right": writer.layer_vertex({**LAYERS[1], "layerName": "right", "nout": 3}),
    }
    edges = {"both": ["x", "y"], "wide": ["both"], "left": ["wide"], "right": ["wide"]}
    configuration = writer.graph_network(vertices, edges, inputs=["x", "y"], outputs=["right", "left"])
    generator = np.random.default_rng(3)
    shapes = [(5, 4), (1, 4), (4, 2), (1, 2), (4, 3), (1, 3)]
    w, b, left, left_b, right, right_b = (generator.normal(size=shape).astype(np.float32) for shape in shapes)
    writer.write_network(tmp_path / "old.zip", configuration, [w, b, left, left_b, right, right_b])
    graph = from_dl4j(tmp_path / "old.zip")
    assert (graph.inputs, graph.outputs) == (("x", "y"), ("right", "left"))
    x, y = (generator.normal(size=(4, n)).astype(np.float32) for n in (2, 3))
    with torch.no_grad():
        outputs = graph.network(torch.from_numpy(x), torch.from_numpy(y))
    hidden = np.maximum(np.concatenate([x, y], axis=1) @ w + b, 0)
    for found, z in zip(outputs, [hidden @ right + right_b, hidden @ left + left_b], strict=True):
        powers = np.exp(z)
        np.testing.assert_allclose(found.numpy(), powers / powers.sum(axis=1, keepdims=True), atol=1e-6)
    SparkModel(graph.network).save(tmp_path / "new.fatwood")
    again = SparkModel.load(tmp_path / "new.fatwood").network.eval()
    with torch.no_grad():
        for found, first in zip(again(torch.from_numpy(x), torch.from_numpy(y)), outputs, strict=True):
            assert torch.equal(found, first)


ODD = [None, True, -1, 0, 3, 1e308, 2**40, 2**70, "x", "NaN", [], [1], [-1, 2**50], {}, {"@class": "x"}]


def places(value: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inner for place in places(item, (*at, key)))]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_value_anywhere_in_a_configuration_raises_anything_but_our_errors(data: st.DataObject) -> None:
    state = json.loads(json.dumps(writer.layer_network(LAYERS, iteration=9)))
    *before, last = data.draw(st.sampled_from([place for place in places(state) if place]))
    target = state
    for key in before:
        target = target[key]
    target[last] = data.draw(st.sampled_from(ODD))
    file = io.BytesIO()
    writer.write_network(file, state, parameters(), np.zeros(52, np.float32))
    with suppress(FatwoodError):
        assert sum(row.parameters for row in from_dl4j(file).layers) == 26


@pytest.mark.parametrize("size", [5, 10**9, 2**40, 2**62, -3, 0])
def test_sizes_that_do_not_fit_the_parameters_take_no_memory(tmp_path: Path, size: int) -> None:
    wrong = writer.layer_network([{**LAYERS[0], "nin": size, "nout": size}])
    writer.write_network(tmp_path / "old.zip", wrong, parameters()[:2])
    with pytest.raises((ValueError, RuntimeError), match=r"hidden|ends within layer|goes on after") as caught:
        from_dl4j(tmp_path / "old.zip")
    assert "hint: " in str(caught.value)
