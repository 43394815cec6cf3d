"""Files that the original itself wrote, with the outputs it had.

They are resources of its own tests, published as ``dl4j-test-resources`` under the Apache licence 2.0. Some lie in ``originals``; for
all of them name a folder that has ``regression_testing`` and ``dl4j-integration-tests`` in ``FATWOOD_DL4J_FILES``.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fatwood.migrate import from_dl4j
from fatwood.migrate.file import read_file
from fatwood.migrate.layers import layer_module
from fatwood.migrate.parsing import parse_configuration
from fatwood.nd4j import read_array

ALL = os.environ.get("FATWOOD_DL4J_FILES")
FOLDER = Path(ALL or Path(__file__).parent / "originals")
OUTPUTS = {
    "100b6/SyntheticCNN_100b6": ("100b6/SyntheticCNN_Input_100b6", "100b6/SyntheticCNN_Output_100b6"),
    **{
        f"100b{v}/{name}_100b{v}": (f"100b{v}/{name}_Input_100b{v}", f"100b{v}/{name}_Output_100b{v}")
        for v, name in [(4, "SyntheticBidirectionalRNNGraph"), (6, "SyntheticBidirectionalRNNGraph")]
    },
}
if ALL:
    OUTPUTS["100a/upsampling/net"] = ("100a/upsampling/in", "100a/upsampling/out")
OLD = [
    f"{v}/{v}_ModelSerializer_Regression_{name}"
    for v in ("050", "060", "071", "080")
    for name in ("MLP_1", "MLP_2", "CNN_1", "LSTM_1", "CG_LSTM_1")
    if (v != "050" or "LSTM" not in name) and (ALL or (v != "060" and (v == "080" or name != "CNN_1")))
]
TRAINED = ["MLPMoon", "RnnCsvSequenceClassification1", "RnnCsvSequenceClassification2"]
if ALL:
    TRAINED += ["CNN1dCharacterTestCase", "LenetMnist", "MLPMnist", "RnnCharacterTestCase"]


def array(path: Path) -> np.ndarray:
    content = path.read_bytes()
    found, end = read_array(content)
    assert end == len(content)
    return np.ascontiguousarray(found, np.float64)


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_those_that_the_original_had(name: str) -> None:
    rows, expected = (array(FOLDER / "regression_testing" / f"{file}.bin") for file in OUTPUTS[name])
    old = from_dl4j(FOLDER / "regression_testing" / f"{name}.bin", dtype=torch.float64)
    with torch.no_grad():
        found = old.network(torch.from_numpy(rows))
    np.testing.assert_allclose(found[0] if isinstance(found, tuple) else found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OLD)
def test_files_of_versions_0_5_to_0_8_are_read_with_their_optimizers(name: str) -> None:
    """The original's own tests hold that parameters are 1, 2, 3, ... and the state likewise."""
    old = from_dl4j(FOLDER / "regression_testing" / f"{name}.zip")
    assert old.optimizer is not None
    assert old.optimizer.state is not None
    kept = torch.cat(
        [value.flatten() for own in old.optimizer.state for key, value in own.items() if key != "step"]
    )
    assert kept.numel() == sum(row.parameters for row in old.layers)


@pytest.mark.parametrize("name", TRAINED)
def test_the_flat_vector_is_cut_as_the_original_cuts_its_gradients(name: str) -> None:
    """The folder has the flat vector of gradients, and the gradients of each parameter by name."""
    folder = FOLDER / "dl4j-integration-tests" / name
    with open(folder / "Model_RANDOM_INIT_UNTRAINED.zip", "rb") as file:
        conf = parse_configuration(read_file(file, name).configuration)
    flat, at = array(folder / "flattenedGradients.bin").ravel(), 0
    for i, layer in enumerate(conf.layers):
        for spec in layer_module(layer).parameters:
            own = flat[at : at + spec.length].reshape(spec.shape, order="F" if spec.order == "f" else "C")
            at += spec.length
            expected = array(folder / "gradients" / f"{layer.name if conf.graph else i}_{spec.key}.bin")
            np.testing.assert_array_equal(own, expected.reshape(spec.shape))
    assert at == flat.size
