"""The page docs/how-to/migrate.md: its blocks run, its table is what the command prints; and the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
from tests.migrate import writer

import fatwood.migrate
from fatwood.migrate import from_dl4j
from fatwood.migrate.layers import _LAYERS, _WRAPPERS

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "migrate.md"
TEXT = PAGE.read_text(encoding="utf-8")


def write_old(path: Path) -> None:
    generator = np.random.default_rng(0)
    adam = writer.updater("Adam", learningRate=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8)
    loss = {"@class": "org.nd4j.linalg.lossfunctions.impl.LossMCXENT"}
    dense = {"hasBias": True, "iUpdater": adam}
    layers = [
        writer.layer("DenseLayer", activation="ReLU", layerName="hidden", nIn=3, nOut=4, **dense),
        writer.layer(
            "OutputLayer", activation="Softmax", layerName="out", nIn=4, nOut=2, lossFn=loss, **dense
        ),
    ]
    shapes = [(3, 4), (1, 4), (4, 2), (1, 2)]
    parameters = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    normalizer = writer.standardize_normalizer(np.zeros(3), np.ones(3))
    writer.write_network(path, writer.layer_network(layers), parameters, np.zeros(52, np.float32), normalizer)


def test_the_table_of_the_page_is_what_is_printed(tmp_path: Path) -> None:
    write_old(tmp_path / "old.zip")
    (block,) = re.findall(
        r"^```console\n\$ fatwood migrate [^\n]*\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL
    )
    assert str(from_dl4j(tmp_path / "old.zip")).splitlines() == block.splitlines()


@pytest.mark.spark
@pytest.mark.timeout(300)
def test_the_blocks_run(spark, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_old(tmp_path / "old.zip")
    names = {"__name__": "__main__", "spark": spark}
    for block in re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    history = names["fit"].history
    assert history[-1].loss < history[0].loss
    assert (tmp_path / "new.fatwood").exists()


def test_every_layer_that_maps_is_on_the_page() -> None:
    other_names = {"Convolution1D", "Convolution2D", "Pooling1D", "Pooling2D"}
    assert {kind for kind in {*_LAYERS, *_WRAPPERS} - other_names if f"`{kind}`" not in TEXT} == set()


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(fatwood.migrate.__path__)])
def test_examples_in_docstrings_print_what_they_say(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"fatwood.migrate.{name}"))
    assert results.failed == 0
