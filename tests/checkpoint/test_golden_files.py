"""Files of every version of the formats are read for ever: these were written by the code of their time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fatwood import SparkModel
from fatwood.checkpoint import FORMAT_VERSION, read_model
from fatwood.snapshots import read_snapshot
from fatwood.storage import open_read

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = range(1, FORMAT_VERSION + 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_of_a_class_with_frozen_parameters_and_preprocessing(version) -> None:
    model = SparkModel.load(GOLDEN / f"model-{version}.fatwood")
    assert isinstance(model.network, nn.Sequential)
    for i, parameter in enumerate(model.network.parameters()):
        expected = (torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape) + i) / 8
        assert torch.equal(parameter, expected)
    assert [p.requires_grad for p in model.network.parameters()] == [False] + [True] * 5
    output = model.network.eval()(torch.arange(6.0).reshape(2, 3))
    torch.testing.assert_close(
        output, torch.tensor([[6.4922, 10.4297], [16.7929, 27.1991]]), atol=1e-4, rtol=0
    )
    standardized = model.preprocessing["features"].apply(torch.tensor([[2.0, 2.0, 6.0]]))
    assert standardized.tolist() == [[1.0, 0.0, 2.0]]
    model.network(torch.zeros(2, 3)).sum().backward()
    with torch.no_grad():
        model.network[3].bias.add_(1.0)


@pytest.mark.parametrize("version", VERSIONS)
def test_tensors_of_many_types_and_shared_ones(version) -> None:
    with open_read(GOLDEN / f"tensors-{version}.fatwood") as file:
        saved = read_model(file)
    expected = {
        "encoder": torch.arange(6.0).reshape(2, 3),
        "decoder": torch.arange(6.0).reshape(2, 3),
        "steps": torch.tensor(7),
        "half": torch.tensor([0.5, -2.0], dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 5),
        "name ä": torch.tensor([1, 2], dtype=torch.int16),
    }
    assert list(saved.state_dict) == list(expected)
    for name, tensor in expected.items():
        assert saved.state_dict[name].dtype == tensor.dtype
        assert torch.equal(saved.state_dict[name], tensor)
    assert saved.state_dict["encoder"] is saved.state_dict["decoder"]
    assert (saved.blueprint, saved.extra) == (None, {"classes": ["a", "b"], "loss": 0.25})
    assert saved.manifest["format_version"] == version


@pytest.mark.parametrize("version", VERSIONS)
def test_a_checkpoint(version, tmp_path) -> None:
    with open_read(GOLDEN / f"checkpoint-{version}.fwc") as file:
        snapshot = read_snapshot(file, tmp_path)
    assert snapshot.manifest == {"step": 7, "about": {"seed": 3}}
    contents = {name: path.read_bytes() for name, path in snapshot.parts.items()}
    assert contents == {"shared": bytes(range(256)), "worker-0": b"state", "worker-1": b""}


@pytest.mark.parametrize("format_version", [2, 3])
def test_a_network_without_its_class(format_version) -> None:
    model = SparkModel.load(GOLDEN / f"exported-{format_version}.fatwood")
    with torch.no_grad():
        output = model.network(torch.tensor([[1.0, -1.0], [2.0, 0.5], [0.0, 0.0]]))
    assert output.tolist() == [[3.0], [4.5], [2.0]]
