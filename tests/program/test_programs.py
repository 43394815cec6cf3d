"""Networks as operators: they compute what the network computes, for any number of rows, and a file can name nothing else."""

from __future__ import annotations

import json
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fatwood.errors import OptionError, UserError
from fatwood.program import ExportedNetwork, trace
from fatwood.program.operators import operator_at


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.recurrent = nn.LSTM(4, 3, batch_first=True, bidirectional=True)
        self.last = nn.Linear(6, 2)
        self.register_buffer("scale", torch.tensor([2.0, 0.5]), persistent=False)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        steps, _ = self.recurrent(self.embedding(ids))
        if mask is not None:
            steps = steps * mask[:, :, None]
        return {"y": self.last(steps[:, -1]) * self.scale + torch.tensor(1.5), "z": (steps.flatten(1), [ids])}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 3)
        self.outer.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.gelu(self.inner(x)))


def _images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(16, 5),
        nn.Softmax(1),
    )


NETWORKS: dict[str, tuple[Any, Any]] = {
    "dense": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        lambda n: torch.randn(n, 3),
    ),
    "images": (_images, lambda n: torch.randn(n, 3, 8, 8)),
    "recurrent": (Recurrent, lambda n: torch.randint(7, (n, 5))),
    "by name": (Recurrent, lambda n: {"ids": torch.randint(7, (n, 5)), "mask": torch.ones(n, 5)}),
    "by position": (Recurrent, lambda n: (torch.randint(7, (n, 5)), torch.ones(n, 5))),
    "attention": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
        lambda n: torch.randn(n, 6, 4),
    ),
    "tied": (Tied, lambda n: torch.randn(n, 3)),
    "gru": (lambda: nn.GRU(3, 4, batch_first=True), lambda n: torch.randn(n, 5, 3)),
}


def _call(network: nn.Module, given: Any) -> Any:
    if isinstance(given, dict):
        return network(**given)
    return network(*given) if isinstance(given, tuple) else network(given)


def _exported(network: nn.Module, example: Any) -> ExportedNetwork:
    program = trace(network, example)
    graph = json.loads(json.dumps(program.graph))
    return ExportedNetwork(graph, network.state_dict(), program.constants)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
@pytest.mark.parametrize("kind", NETWORKS)
def test_it_computes_what_the_network_does_for_any_number_of_rows(kind) -> None:
    torch.manual_seed(0)
    make, rows = NETWORKS[kind]
    network = make().train()
    exported = _exported(network, rows(1))
    assert network.training
    assert list(exported.state_dict()) == list(network.state_dict())
    network.eval()
    for count in (1, 2, 7):
        given = rows(count)
        torch.testing.assert_close(_call(exported, given), _call(network, given), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        _call(cloudpickle.loads(cloudpickle.dumps(exported)), given), _call(exported, given)
    )
    again = trace(exported, None)
    assert again.graph == trace(network, rows(1)).graph


def test_its_parameters_are_the_networks_and_have_gradients() -> None:
    exported = _exported(Tied(), torch.zeros(1, 3))
    names = [name for name, _ in exported.named_parameters()]
    assert names == ["inner.weight", "inner.bias", "outer.bias"]
    assert exported.get_parameter("outer.weight") is exported.get_parameter("inner.weight")
    exported(torch.randn(4, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in exported.parameters())


def test_names_of_a_networks_parts_do_not_meet_its_own() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.exported, self.state = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x) + self.exported(x) + self.state(x)

    network, x = Named(), torch.randn(3, 2)
    torch.testing.assert_close(_exported(network, x)(x), network(x))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 2


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.qr(x)[0]


@pytest.mark.parametrize(
    ("network", "example", "error", "words"),
    [
        (Branching(), torch.ones(2, 2), UserError, "torch.export cannot trace the network"),
        (Counting(), torch.ones(2, 2), UserError, r"changes nothing in evaluation mode.*\['calls'\]"),
        (
            Odd(),
            torch.ones(2, 2, 2),
            UserError,
            "expected operators that a file can name, received aten.linalg_qr",
        ),
        (Tied(), 5, OptionError, "export: expected a tensor"),
        (Tied(), True, OptionError, "export: expected a tensor"),
        (Tied(), (), OptionError, "export: expected a tensor"),
        (Tied(), torch.tensor(1.0), OptionError, "export: expected a tensor"),
        (Tied(), torch.ones(0, 3), OptionError, "expected at least one row"),
        (Tied(), (torch.ones(1, 3), torch.ones(2, 3)), OptionError, "as many rows in each tensor"),
    ],
)
def test_what_cannot_be_exported_is_refused(network, example, error, words) -> None:
    with pytest.raises(error, match=words):
        trace(network, example)
    assert network.training


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default",
        "aten.save.default",
        "aten.add_.Tensor",
        "aten.add.out",
        "aten.add.__class__",
        "aten.add.op",
        "aten.__class__.default",
        "prims.add.default",
        "os.system",
        "size.pow",
        "size.__import__",
        "",
    ],
)
def test_operators_that_no_file_may_name(name) -> None:
    assert operator_at(name) is None


def test_sizes_stay_sizes() -> None:
    for name, arguments in [("size.mul", ("a", 10**9)), ("size.mul", ([0], 10**9)), ("size.add", (2**70, 1))]:
        with pytest.raises(TypeError, match="expected sizes"):
            operator_at(name)(*arguments)
    with pytest.raises(TypeError, match="expected several tensors and a position"):
        operator_at("size.getitem")({"a": 1}, "a")


def test_a_call_that_is_not_the_exported_one() -> None:
    exported = _exported(Tied(), torch.zeros(1, 3))
    with pytest.raises(TypeError, match="expected 1 inputs by position"):
        exported()
    with pytest.raises(TypeError, match="expected 1 inputs by position"):
        exported(torch.zeros(1, 3), torch.zeros(1, 3))
