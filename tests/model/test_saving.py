"""Save, load and reset: what comes back is the same network, and the file holds tensors and JSON alone."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fatwood import AllReduce, FixedThreshold, GradientSharing, ParameterAveraging, SparkModel
from fatwood.errors import OptionError, StorageError, UserError


class Importable(nn.Module):
    """Keeps its constructor's arguments under their own names."""

    def __init__(self, hidden: int, *, activation: str = "relu") -> None:
        super().__init__()
        self.hidden = hidden
        self.activation = activation
        self.first = nn.Linear(3, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(getattr(torch, self.activation)(self.norm(self.first(x))))


class Forgetful(nn.Module):
    """Does not say what it was built with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def sequential() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.25), nn.Tanh(), nn.Linear(8, 2))


def used(network: nn.Module) -> nn.Module:
    """With batch statistics that are not those of a new network."""
    network.train()
    network(torch.randn(16, 3))
    return network.eval()


NETWORKS = {
    "sequential": sequential,
    "a class": lambda: Importable(hidden=5, activation="tanh"),
    "frozen layers": lambda: sequential().requires_grad_(False),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_load_gives_the_same_network_and_saves_to_the_same_bytes(tmp_path: Path, kind: str) -> None:
    network = used(NETWORKS[kind]())
    first, second = tmp_path / "first.fatwood", tmp_path / "second.fatwood"
    SparkModel(network).save(first)
    loaded = SparkModel.load(first)
    assert type(loaded.network) is type(network)
    x = torch.randn(9, 3)
    assert torch.equal(loaded.network.eval()(x), network(x))
    assert [p.requires_grad for p in loaded.network.parameters()] == [
        p.requires_grad for p in network.parameters()
    ]
    loaded.save(second)
    assert second.read_bytes() == first.read_bytes()


def test_load_into_a_network_of_ones_own(tmp_path: Path) -> None:
    network = Forgetful(2)
    SparkModel(network).save(tmp_path / "net")
    with pytest.raises(
        UserError, match=r"does not say how to rebuild.*\nhint: SparkModel.load\(uri, network="
    ):
        SparkModel.load(tmp_path / "net")
    mine = Forgetful(2)
    loss, sgd = nn.MSELoss(), partial(torch.optim.SGD, lr=0.1)
    loaded = SparkModel.load(tmp_path / "net", network=mine, loss=loss, optimizer=sgd, strategy=AllReduce())
    assert loaded.network is mine
    assert torch.equal(mine.layer.weight, network.layer.weight)
    assert (loaded.loss, loaded.optimizer, loaded.strategy) == (loss, sgd, AllReduce())
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "net").read_bytes()


@pytest.mark.parametrize(
    ("network", "error", "text"),
    [
        (Forgetful(4), UserError, r"do not fit the network.*size mismatch for layer.weight.*hint: "),
        (sequential(), UserError, r"do not fit the network.*Missing key.*Unexpected key.*hint: "),
        (Forgetful, OptionError, r"expected a torch.nn.Module, received <class .*hint: .*instance"),
    ],
    ids=["another width", "another class", "no instance"],
)
def test_a_network_that_does_not_fit(tmp_path: Path, network, error, text) -> None:
    SparkModel(Forgetful(2)).save(tmp_path / "net")
    with pytest.raises(error, match=f"(?s){text}"):
        SparkModel.load(tmp_path / "net", network=network)


def test_a_network_that_does_not_fit_is_left_as_it_was(tmp_path: Path) -> None:
    SparkModel(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).save(tmp_path / "net")
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 7))
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(UserError, match="do not fit"):
        SparkModel.load(tmp_path / "net", network=network)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_no_file_and_a_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing-here"):
        SparkModel.load(tmp_path / "nothing-here")
    (tmp_path / "text").write_text("not a model")
    with pytest.raises(StorageError, match=r"expected a saved model"):
        SparkModel.load(tmp_path / "text")


def test_a_failed_save_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "net"
    SparkModel(sequential()).save(path)
    before = path.read_bytes()
    network = nn.Sequential(nn.Linear(3, 2))
    network.register_buffer("odd", torch.eye(2).to_sparse())
    with pytest.raises(UserError, match="'odd': expected a dense tensor"):
        SparkModel(network).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_another_process_loads_it_with_the_code_on_its_path(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "fatwood_test_nets.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, hidden):\n"
        "        super().__init__()\n"
        "        self.hidden = hidden\n"
        "        self.layer = torch.nn.Linear(3, hidden)\n"
    )
    script = (
        "import sys, torch, fatwood, fatwood_test_nets\n"
        "torch.manual_seed(1)\n"
        "fatwood.SparkModel(fatwood_test_nets.Net(4)).save(sys.argv[1])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(code), *filter(None, sys.path)])}
    uri = tmp_path / "net"
    subprocess.run([sys.executable, "-c", script, str(uri)], check=True, env=environment, timeout=100)
    with pytest.raises(UserError, match=r"(?s)cannot import 'fatwood_test_nets'.*hint: make .*importable"):
        SparkModel.load(uri)
    torch.manual_seed(1)
    network = nn.Module()
    network.layer = nn.Linear(3, 4)
    expected = network.layer.weight.clone()
    with torch.no_grad():
        network.layer.weight.zero_()
    assert torch.equal(SparkModel.load(uri, network=network).network.layer.weight, expected)


class Forward(io.RawIOBase):
    """A stream that only goes forward, and takes at most 1,000 bytes at a time."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, content) -> int:
        self.content += bytes(content[:1000])
        return min(len(content), 1000)


def test_streams_hold_the_same_bytes_as_files(tmp_path: Path) -> None:
    model = SparkModel(used(sequential()))
    model.save(tmp_path / "net")
    stream, forward = io.BytesIO(), Forward()
    model.save(stream)
    model.save(forward)
    expected = (tmp_path / "net").read_bytes()
    assert stream.getvalue() == bytes(forward.content) == expected
    assert not stream.closed
    x = torch.randn(4, 3)
    assert torch.equal(SparkModel.load(stream).network.eval()(x), model.network(x))
    assert not stream.closed
    with (tmp_path / "net").open("rb") as file:
        assert torch.equal(SparkModel.load(file).network.eval()(x), model.network(x))


def test_a_pipe_is_read_by_way_of_a_temporary_file(tmp_path: Path, monkeypatch) -> None:
    model = SparkModel(nn.Sequential(nn.Linear(3, 8192)))
    ends = os.pipe()
    reader, writer = os.fdopen(ends[0], "rb"), os.fdopen(ends[1], "wb")

    def save() -> None:
        with writer:
            model.save(writer)

    thread = threading.Thread(target=save)
    thread.start()
    with reader:
        loaded = SparkModel.load(reader)
    thread.join()
    assert torch.equal(loaded.network[0].weight, model.network[0].weight)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2 << 20}))
    with (
        open("/dev/zero", "rb", buffering=0) as endless,
        pytest.raises(StorageError, match="at most 1048576 bytes, half of what is free"),
    ):
        SparkModel.load(io.BufferedReader(Unseekable(endless)))


class Unseekable(io.RawIOBase):
    def __init__(self, file) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.file.readinto(buffer)


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (lambda model: model.save(io.StringIO()), "expected a binary file"),
        (
            lambda model: model.save(io.BytesIO(), storage_options={"key": "secret"}),
            r"beside an open file.*\['key'\]",
        ),
        (lambda model: model.save("memory://x/y", run=True), "expected a model that was fitted"),
        (lambda model: model.save("memory://x/y", export=5), "export: expected a tensor"),
        (lambda model: type(model).load(io.StringIO("x")), "expected a binary file"),
    ],
)
def test_arguments_that_cannot_work(save, words) -> None:
    with pytest.raises(OptionError, match=words):
        save(SparkModel(sequential()))


def test_a_network_whose_class_is_gone_comes_back_by_its_operators(tmp_path: Path) -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.layer(x))

    network, x = Local(), torch.randn(5, 3)
    SparkModel(network).save(tmp_path / "net", export=x[:1])
    model = SparkModel.load(tmp_path / "net")
    assert torch.equal(model.network(x), network(x))
    model.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "net").read_bytes()
    own = Local()
    assert SparkModel.load(tmp_path / "net", network=own).network is own
    assert torch.equal(own(x), network(x))


def test_the_error_says_what_each_of_the_three_ways_lacks(tmp_path: Path) -> None:
    SparkModel(Forgetful(2)).save(tmp_path / "net")
    with pytest.raises(UserError) as caught:
        SparkModel.load(tmp_path / "net")
    for words in (
        "network=: none was given",
        "class path: the file does not say how to rebuild its network",
        "export: the file holds no exported network",
        "hint: ",
    ):
        assert words in str(caught.value)


def test_a_loaded_network_maps_the_file_and_does_not_change_it(tmp_path: Path) -> None:
    path = tmp_path / "net"
    SparkModel(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))).save(path)
    before = path.read_bytes()
    model = SparkModel.load(path)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) in maps.read_text()
    with torch.no_grad():
        model.network[0].weight.fill_(7.0)
    assert path.read_bytes() == before
    model.save(path)  # onto the file that it is read from
    assert torch.equal(SparkModel.load(path).network[0].weight, torch.full((64, 64), 7.0))
    assert torch.equal(model.network[1].weight, SparkModel.load(path).network[1].weight)


class TiedLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.held = [self.first.weight]


@pytest.mark.parametrize("make", [TiedLayers, lambda: nn.LSTM(3, 4), lambda: nn.MultiheadAttention(4, 2)])
def test_parameters_that_are_shared_or_held_elsewhere_stay_so(tmp_path: Path, make) -> None:
    network = make()
    SparkModel(network).save(tmp_path / "net")
    loaded = SparkModel.load(tmp_path / "net").network
    names = [name for name, _ in network.named_parameters()]
    assert [name for name, _ in loaded.named_parameters()] == names
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))
    if isinstance(loaded, TiedLayers):
        assert loaded.held[0] is loaded.first.weight is loaded.second.weight
    elif isinstance(loaded, nn.LSTM):
        x = torch.randn(5, 2, 3)
        assert torch.equal(loaded(x)[0], network(x)[0])


def test_a_model_loads_and_predicts_where_pyspark_is_not_installed(tmp_path: Path) -> None:
    model = SparkModel(used(sequential()))
    model.save(tmp_path / "net", export=torch.zeros(1, 3))
    script = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('pyspark', 'py4j'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import torch, fatwood\n"
        "model = fatwood.SparkModel.load(sys.argv[1])\n"
        "torch.manual_seed(3)\n"
        "print(model.network.eval()(torch.randn(4, 3)).tolist())\n"
        "model.save(sys.argv[1] + '-again', export=torch.zeros(1, 3))\n"
        "assert not any(name.partition('.')[0] in ('pyspark', 'py4j') for name in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script, str(tmp_path / "net")]
    done = subprocess.run(command, check=True, env=environment, timeout=100, capture_output=True, text=True)
    torch.manual_seed(3)
    assert json.loads(done.stdout) == model.network(torch.randn(4, 3)).tolist()
    assert (tmp_path / "net-again").read_bytes() == (tmp_path / "net").read_bytes()


def small_frame(spark):
    ids = spark.range(0, 200, 1, 2)
    return ids.selectExpr(
        "id", "array(float(sin(id)), float(cos(id)), float(sin(id * 3))) x", "int(sin(id) > 0) y"
    )


@pytest.mark.spark
def test_a_fitted_model_saved_loaded_and_reset(spark, tmp_path: Path) -> None:
    df, network = small_frame(spark), sequential()
    initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model = SparkModel(network, loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.Adam, lr=0.01))
    fit = partial(model.fit, df, features="x", label="y", workers=1, progress=False)
    fit()
    trained = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert not torch.equal(trained["0.weight"], initial["0.weight"])

    model.save(tmp_path / "net")
    with zipfile.ZipFile(tmp_path / "net") as archive:
        assert sorted(archive.namelist()) == ["manifest.json", "weights.safetensors"]
        schema = json.loads(archive.read("manifest.json"))["schema"]
    (features,) = schema["features"]["fields"]
    assert (features["column"], features["dtype"], features["shape"]) == ("x", "float32", [3])
    (label,) = schema["label"]["fields"]
    assert (label["column"], label["dtype"], label["shape"]) == ("y", "int64", [])
    loaded = SparkModel.load(tmp_path / "net", loss=nn.CrossEntropyLoss())
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "net").read_bytes()
    predicted = [m.predict(df, key="id", features="x").collect() for m in (model, loaded)]
    assert predicted[0] == predicted[1]
    assert loaded.evaluate(df, features="x", label="y") == model.evaluate(df, features="x", label="y")

    # A second fit would go on with Adam's moments and another order; after a reset it is the first one again.
    assert model.epochs_trained == 1
    model.reset()
    assert model.epochs_trained == 0
    assert torch.equal(network.state_dict()["0.weight"], trained["0.weight"])
    network.load_state_dict(initial)
    fit()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in network.state_dict().items())


@pytest.mark.spark
def test_a_reset_removes_the_run_from_the_disk(spark, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = SparkModel(sequential(), loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.1))
    model.fit(small_frame(spark), features="x", label="y", workers=1, progress=False)
    assert len(list(tmp_path.glob("fatwood-run-*/*"))) > 0
    model.reset()
    assert list(tmp_path.glob("fatwood-run-*")) == []


@pytest.mark.spark
@pytest.mark.parametrize(
    "strategy", [GradientSharing(threshold=FixedThreshold(tau=1e-2)), AllReduce()], ids=["sharing", "dense"]
)
def test_fit_save_load_fit_is_two_epochs(spark, tmp_path: Path, strategy) -> None:
    df = small_frame(spark)
    parts = {
        "loss": nn.CrossEntropyLoss(),
        "optimizer": partial(torch.optim.Adam, lr=0.01),
        "strategy": strategy,
    }
    once, twice = (SparkModel(sequential(), **parts) for _ in range(2))
    fitted = {"features": "x", "label": "y", "workers": 2, "progress": False}
    once.fit(df, epochs=2, **fitted)
    twice.fit(df, **fitted)
    twice.save(tmp_path / "net", run=True)
    loaded = SparkModel.load(tmp_path / "net", **parts)
    assert loaded.epochs_trained == 1
    loaded.save(tmp_path / "again", run=True)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "net").read_bytes()
    loaded.fit(df, **fitted)
    expected = once.network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.network.state_dict().items())
    with pytest.raises(
        OptionError, match=r"strategy: expected .* as in the saved run, received ParameterAveraging"
    ):
        SparkModel.load(tmp_path / "net", strategy=ParameterAveraging())
    anew = SparkModel.load(tmp_path / "net", strategy=ParameterAveraging(), run=False)
    assert anew.epochs_trained == 0
