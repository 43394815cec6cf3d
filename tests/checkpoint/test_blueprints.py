from __future__ import annotations

import json
import random
import sys
import time
from itertools import pairwise

import pytest
import torch
from torch import nn

from fatwood.blueprint import Budget, build, describe
from fatwood.errors import UserError


class Net(nn.Module):
    """A network that keeps to the convention: every argument is stored under its own name."""

    def __init__(
        self, inputs: int, hidden: tuple[int, ...] = (8, 4), *, act: type = nn.ReLU, bias: bool = True
    ) -> None:
        super().__init__()
        self.inputs, self.hidden, self.act, self.bias = inputs, hidden, act, bias
        sizes = [inputs, *hidden]
        layers = [nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.act()(layer(x))
        return x


class Wrapper(nn.Module):
    def __init__(
        self, body: nn.Module, options: dict | None = None, scale: float = 1.0, device: str = "cpu"
    ) -> None:
        super().__init__()
        self.body, self.options, self.scale = body, options, scale


class NoInit(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OwnBias(nn.Module):
    def __init__(self, size: int, bias: bool = True) -> None:
        super().__init__()
        self.size = size
        if bias:
            self.bias = nn.Parameter(torch.zeros(size))
        else:
            self.register_parameter("bias", None)


class Tied(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.a, self.b = nn.Linear(size, size), nn.Linear(size, size)
        self.b.weight = self.a.weight


class Outer:
    class Inner(NoInit):
        pass


class Forgets(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size)


class Changes(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size * 2
        self.layer = nn.Linear(size, size)


class Star(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes


class KeyStar(nn.Module):
    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.sizes = sizes


class TrainingArgument(nn.Module):
    def __init__(self, training: bool) -> None:
        super().__init__()


class Angry(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()

    def __getattr__(self, name: str):
        raise ZeroDivisionError(name)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, 1, 3), nn.Sigmoid()


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.number = random.random()


LAYERS = [
    nn.Linear(3, 2),
    nn.Linear(3, 2, bias=False),
    nn.Bilinear(2, 3, 4, bias=False),
    nn.Conv1d(1, 2, 3, padding="same"),
    nn.Conv2d(
        4, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=2, groups=2, bias=False, padding_mode="reflect"
    ),
    nn.Conv3d(1, 2, 3),
    nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1, bias=False),
    nn.BatchNorm1d(4, eps=1e-3, momentum=None),
    nn.BatchNorm2d(4, affine=False),
    nn.BatchNorm2d(4, track_running_stats=False),
    nn.InstanceNorm2d(4, affine=True),
    nn.LayerNorm((3, 4), elementwise_affine=False),
    nn.LayerNorm(5, bias=False),
    nn.GroupNorm(2, 4),
    nn.RMSNorm(4),
    nn.Embedding(10, 3, padding_idx=0, max_norm=2.0),
    nn.EmbeddingBag(10, 3, mode="sum"),
    nn.Dropout(0.25),
    nn.Dropout2d(0.1),
    nn.MaxPool2d(2),
    nn.MaxPool2d((2, 3), stride=(1, 2), padding=1, ceil_mode=True),
    nn.AvgPool2d(2, count_include_pad=False),
    nn.AdaptiveAvgPool2d((1, None)),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    nn.Flatten(1, 2),
    nn.Unflatten(1, (2, 2)),
    nn.ZeroPad2d((1, 2, 3, 4)),
    nn.Identity(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.Hardtanh(-2.0, 2.0),
    nn.LeakyReLU(0.2),
    nn.GELU("tanh"),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Softmax(dim=1),
    nn.Softplus(beta=2.0),
    nn.PReLU(3, init=0.1),
    nn.GLU(dim=1),
    nn.PixelShuffle(2),
    nn.LocalResponseNorm(2),
    nn.CosineSimilarity(dim=2),
    nn.RNN(3, 4, nonlinearity="relu"),
    nn.GRU(3, 4, num_layers=2, dropout=0.5, batch_first=True),
    nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2, bias=False),
    nn.LSTMCell(3, 4, bias=False),
    nn.MultiheadAttention(8, 2, bias=False, kdim=3, vdim=5, batch_first=True),
    nn.MultiheadAttention(8, 2, add_bias_kv=True),
    nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.2, activation="gelu", batch_first=True),
    nn.TransformerDecoderLayer(8, 2, norm_first=True, bias=False),
    nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 3, norm=nn.LayerNorm(8)),
    nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2), 2),
    nn.Transformer(8, 2, 1, 2, 16, batch_first=True),
    nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Sequential(nn.Tanh())),
    nn.ModuleDict({"z": nn.Linear(1, 1), "a": nn.ModuleList([nn.Tanh(), nn.ReLU()])}),
    nn.Sequential(),
    Net(3),
    Net(3, hidden=(5,), act=nn.Tanh, bias=False),
    Wrapper(nn.Sequential(Net(2)), {"z": [1, None, "x"], "a": (True, 2.5), 3: {}}, scale=0.1),
    NoInit(),
    OwnBias(3),
    OwnBias(3, bias=False),
    Tied(3),
    Outer.Inner(),
    Parts(),
]


def _key(network: nn.Module) -> list:
    return [(name, value.shape, value.dtype) for name, value in network.state_dict().items()]


@pytest.mark.parametrize("network", LAYERS, ids=lambda network: type(network).__name__)
def test_describe_and_build(network) -> None:
    blueprint = json.loads(json.dumps(describe(network), sort_keys=True, allow_nan=False))
    assert blueprint is not None
    rebuilt = build(blueprint)
    assert type(rebuilt) is type(network)
    assert repr(rebuilt) == repr(network)
    assert _key(rebuilt) == _key(network)
    rebuilt.load_state_dict(network.state_dict())
    assert describe(rebuilt) == blueprint


def test_arguments_come_back_with_their_types() -> None:
    options = {"z": [1, None, "x"], "a": (True, 2.5), 3: {}}
    rebuilt = build(describe(Wrapper(nn.Tanh(), options, scale=0.1)))
    assert rebuilt.options == options
    assert list(rebuilt.options) == ["z", "a", 3]
    assert type(rebuilt.options["a"]) is tuple


def test_defaults_of_torch_are_left_out_and_ours_are_kept() -> None:
    assert describe(nn.Linear(3, 2)) == {
        "class": "torch.nn:Linear",
        "arguments": {"in_features": 3, "out_features": 2},
    }
    assert describe(Net(3))["arguments"]["bias"] is True


def test_frozen_parameters_stay_frozen() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    blueprint = describe(network)
    assert blueprint["frozen"] == ["0.weight", "0.bias"]
    assert [p.requires_grad for p in build(blueprint).parameters()] == [False, False, True, True]


def test_ties_are_kept() -> None:
    rebuilt = build(describe(Tied(3)))
    assert rebuilt.b.weight is rebuilt.a.weight


def _twice() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer)


def _tied_by_hand() -> nn.Module:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    return network


def _changed(change) -> nn.Module:
    network = nn.Sequential(Net(3), nn.Dropout(0.5), nn.Linear(4, 4))
    change(network)
    return network


def _other_dropout() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2)
    layer.dropout2.p = 0.9
    return layer


def _parts(**parts: nn.Module) -> nn.Module:
    network = Parts()
    for name, part in parts.items():
        setattr(network, name, part)
    return network


def _in_a_function() -> nn.Module:
    class Local(nn.Module):
        pass

    return Local()


def _of_main() -> nn.Module:
    main = type("Net", (nn.Module,), {"__module__": "__main__"})
    return main()


DOUBTFUL = {
    "argument that is no attribute": lambda: Forgets(3),
    "argument that was changed": lambda: Changes(3),
    "*args": lambda: Star(1, 2),
    "**kwargs": lambda: KeyStar(a=1),
    "argument with a name of nn.Module": lambda: TrainingArgument(False),
    "class of a function": _in_a_function,
    "class of __main__": _of_main,
    "one layer twice": _twice,
    "tied by hand": _tied_by_hand,
    "float64": lambda: nn.Linear(2, 2).double(),
    "an argument of another kind": lambda: Wrapper(nn.Tanh(), {"x": torch.zeros(1)}),
    "not finite": lambda: Wrapper(nn.Tanh(), scale=float("inf")),
    "attribute set afterwards": lambda: _changed(lambda n: setattr(n[0], "extra", 1)),
    "plain attribute changed": lambda: _changed(lambda n: setattr(n[0], "inputs", 4)),
    "dropout changed inside a layer": _other_dropout,
    "activation replaced": lambda: _parts(act=nn.Tanh()),
    "stride replaced": lambda: _parts(conv=nn.Conv2d(1, 1, 3, stride=2)),
    "layer added": lambda: _changed(lambda n: n[0].layers.append(nn.Linear(1, 1))),
    "forward replaced": lambda: _changed(lambda n: setattr(n[2], "forward", lambda x: x)),
    "hook": lambda: _changed(lambda n: n[2].register_forward_hook(lambda *_: None)),
    "weight norm": lambda: _changed(lambda n: nn.utils.parametrizations.weight_norm(n[2])),
    "lazy": lambda: nn.LazyLinear(3),
    "random": Random,
    "raises": lambda: Angry(3),
    "no module": lambda: torch.zeros(1),
}


@pytest.mark.parametrize("make", DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_what_is_doubtful_is_not_described_and_does_not_raise(make) -> None:
    assert describe(make()) is None


def test_describe_leaves_random_states_and_defaults_alone() -> None:
    network, by_chance = nn.Sequential(Net(3), nn.Linear(4, 1)), Random()
    before = torch.random.get_rng_state(), random.getstate()
    assert describe(network) is not None
    assert describe(by_chance) is None
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_build_does_not_depend_on_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert build(
            {"class": "torch.nn:Linear", "arguments": {"in_features": 1, "out_features": 1}}
        ).weight.dtype is (torch.float32)
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


class _CalledError(Exception):
    pass


def _bomb(*_, **__):
    raise _CalledError


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("subprocess:Popen", {"args": ["touch", "PROOF"]}),
        ("subprocess:run", {"args": ["touch", "PROOF"]}),
        ("os:system", {"command": "touch PROOF"}),
        ("os:mkdir", {"path": "PROOF"}),
        ("builtins:eval", {"source": "open('PROOF', 'w')"}),
        ("builtins:open", {"file": "PROOF", "mode": "w"}),
        ("pathlib:Path", {}),
        ("torch:load", {"f": "PROOF"}),
        ("torch.nn:Module.register_buffer", {}),
        ("torch.nn:functional", {}),
        ("fatwood.blueprint:importlib.import_module", {"name": "this"}),
        ("fatwood.blueprint:build", {"blueprint": {}}),
    ],
)
@pytest.mark.parametrize("shape", ["top", "child", "module", "type", "children"])
def test_nothing_but_networks_is_called(path, arguments, shape, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module, name in [("subprocess", "Popen"), ("subprocess", "run"), ("os", "system"), ("os", "mkdir")]:
        original = getattr(sys.modules[module], name)
        spy = type(name, (original,), {"__init__": _bomb}) if isinstance(original, type) else _bomb
        monkeypatch.setattr(f"{module}.{name}", spy)
    node = {"class": path, "arguments": arguments}
    here = f"{__name__}:Wrapper"
    blueprint = {
        "top": node,
        "child": {"class": "torch.nn:Sequential", "children": [["0", node]]},
        "module": {"class": here, "arguments": {"body": {"module": node}}},
        "type": {"class": here, "arguments": {"body": {"type": path}}},
        "children": {"class": path, "children": [["0", node]]},
    }[shape]
    with pytest.raises(UserError, match=r"expected a subclass of torch\.nn\.Module") as caught:
        build(blueprint)
    assert "importable" in str(caught.value)
    assert "network=" in str(caught.value)
    assert "load_state_dict" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


LINEAR = {"class": "torch.nn:Linear", "arguments": {"in_features": 1, "out_features": 1}}


def _nested(depth: int) -> dict:
    node = LINEAR
    for _ in range(depth):
        node = {"class": "torch.nn:Sequential", "children": [["0", node]]}
    return node


@pytest.mark.parametrize(
    ("blueprint", "words"),
    [
        (None, "received None"),
        ([], r"received \[\]"),
        ({}, "'class'"),
        ({"class": "torch.nn:Linear"}, "'arguments' or 'children'"),
        (LINEAR | {"children": []}, "'arguments' or 'children'"),
        (LINEAR | {"more": 1}, "'arguments' or 'children'"),
        (LINEAR | {"arguments": [1, 1]}, "JSON object"),
        (LINEAR | {"arguments": {"in_features": 1}}, r"constructor of torch\.nn:Linear raised TypeError"),
        (LINEAR | {"arguments": {"in_features": -1, "out_features": 1}}, "constructor .* raised"),
        (LINEAR | {"arguments": {"in_features": {"list": [1]}}}, "known kind"),
        (LINEAR | {"arguments": {"in_features": {"tuple": 1}}}, "known kind"),
        (LINEAR | {"arguments": {"in_features": {"dict": [1]}}}, "known kind"),
        (LINEAR | {"arguments": {"in_features": {"function": "os:system"}}}, "known kind"),
        (LINEAR | {"arguments": {"in_features": {"function": []}}}, "known kind"),
        (LINEAR | {"arguments": {"in_features": {"dict": [[1]]}}}, "known kind"),
        (LINEAR | {"arguments": {"in_features": {"dict": [[[], 1]]}}}, "known kind"),
        (LINEAR | {"class": "torch.nn.Linear"}, "class path"),
        (LINEAR | {"class": 5}, "class path"),
        (LINEAR | {"class": "torch.nn:"}, "class path"),
        (LINEAR | {"class": "../evil:Net"}, "class path"),
        (LINEAR | {"class": "torch.nn:NoSuchLayer"}, "nothing of that name"),
        (
            LINEAR | {"class": "no_such_package_of_mine.nets:Net"},
            "cannot import 'no_such_package_of_mine.nets'",
        ),
        (LINEAR | {"frozen": ["nothing"]}, "'frozen'"),
        (LINEAR | {"frozen": 5}, "'frozen'"),
        (LINEAR | {"frozen": [5]}, "'frozen'"),
        ({"class": "torch.nn:Linear", "children": []}, "received Linear"),
        ({"class": "torch.nn:Sequential", "children": {}}, "received Sequential"),
        ({"class": "torch.nn:Sequential", "children": [LINEAR]}, r"\[name, blueprint\]"),
        ({"class": "torch.nn:Sequential", "children": [["a.b", LINEAR]]}, "name for a child"),
        ({"class": "torch.nn:ModuleDict", "children": [["keys", LINEAR]]}, "name for a child"),
        ({"class": "torch.nn:Sequential", "children": [["0", LINEAR | {"frozen": []}]]}, r"blueprint\['0'\]"),
        (_nested(5000), "nested without end"),
    ],
    ids=range(32),
)
def test_blueprint_that_cannot_be_built(blueprint, words) -> None:
    with pytest.raises(UserError, match=words):
        build(blueprint)


def test_a_module_level_getattr_is_not_asked(tmp_path, monkeypatch) -> None:
    (tmp_path / "lazy_for_blueprints.py").write_text("def __getattr__(name):\n    raise SystemExit(name)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="nothing of that name"):
        build({"class": "lazy_for_blueprints:Net", "arguments": {}})
    sys.modules.pop("lazy_for_blueprints", None)


def test_an_unfilled_network_has_its_buffers_and_no_more_than_its_budget() -> None:
    class_of = {"class": "torch.nn:BatchNorm1d", "arguments": {"num_features": 4}}
    network = build(class_of, filled=False, budget=Budget(tensor_bytes=100, calls=100))
    assert torch.equal(network.running_var, torch.ones(4))
    assert network.weight.shape == (4,)
    for budget in (Budget(tensor_bytes=50, calls=100), Budget(tensor_bytes=100, calls=3)):
        with pytest.raises(UserError, match="expected a network of at most"):
            build(class_of, filled=False, budget=budget)


def test_an_unfilled_network_does_not_touch_the_memory_of_its_parameters() -> None:
    node = {"class": "torch.nn:Linear", "arguments": {"in_features": 2**14, "out_features": 2**14}}
    start = time.process_time()
    network = build(node, filled=False)
    assert time.process_time() - start < 0.4  # a GiB takes longer to be filled
    assert network.weight.shape == (2**14, 2**14)
