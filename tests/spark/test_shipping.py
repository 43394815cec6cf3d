"""What of the user's travels to the executors, and what is said when it cannot."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fatwood import AllReduce, SparkModel
from fatwood.errors import ShippingError
from fatwood.spark.shipping import ship, unship

HELPERS = """
import {layers}
import threading

OFFSET = 1.0
{lock}

def shifted(x):
    return x + OFFSET + {layers}.ZERO
"""

LAYERS = """
import importlib.util
import torch
from torch import nn
import {helpers}
from {helpers} import shifted

ZERO = 0.0

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, x):
        if importlib.util.find_spec("{layers}") is not None:
            raise ImportError("executors must not be able to import the user's module in this test")
        return self.linear({call}(x))
"""


@pytest.fixture
def user_modules(tmp_path, monkeypatch):
    """Two modules that import each other, in a folder that only this process has on its path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def make(name: str, *, lock: str = "", call: str = "shifted"):
        names = {"layers": f"{name}_layers", "helpers": f"{name}_helpers"}
        (tmp_path / f"{name}_helpers.py").write_text(HELPERS.format(lock=lock, **names))
        (tmp_path / f"{name}_layers.py").write_text(LAYERS.format(call=call.format(**names), **names))
        made.extend(names.values())
        return importlib.import_module(names["layers"])

    yield make
    for name in made:
        sys.modules.pop(name, None)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.lock = threading.Lock()


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()


class Settings:
    def __init__(self) -> None:
        self.guards = {"log": threading.Lock()}


def refusal(**parts) -> str:
    with pytest.raises(ShippingError, match="cannot be sent to the executors") as caught:
        ship(parts)
    assert caught.value.hint
    return caught.value.message.split(": cannot be sent")[0]


def test_what_does_not_pickle_is_named_by_its_place() -> None:
    lock = threading.Lock()
    nested = Nested()

    def loss(output, label):
        with lock:
            return output.mean()

    assert refusal(loss=print, network=nested) == "network.encoder.lock"
    assert refusal(network=nn.Sequential(nn.Linear(1, 1), nested)) == "network.1.encoder.lock"
    assert refusal(loss=loss) == "loss (variable 'lock' of the enclosing function)"
    assert refusal(loss=functools.partial(print, file=[lock])) == "loss.keywords['file'][0]"
    assert refusal(loss=nested.encoder.forward) == "loss.__self__.lock"


def test_what_installed_classes_are_made_of_is_not_the_users_to_change() -> None:
    network = nn.Linear(1, 1)
    network.settings = Settings()
    assert refusal(network=network) == "network.settings.guards['log']"
    network.settings = threading.Condition()
    assert refusal(network=network) == "network.settings"


def test_a_global_of_the_users_module_is_named(user_modules) -> None:
    layers = user_modules("locked", lock="import threading; OFFSET = threading.Lock()")
    place = refusal(network=layers.Net())
    assert place == "network.forward (global 'shifted' of locked_layers) (global 'OFFSET' of locked_helpers)"


def test_a_global_of_a_module_that_is_used_by_name_is_named(user_modules) -> None:
    layers = user_modules("named", lock="GUARD = threading.Lock()", call="{helpers}.shifted")
    assert refusal(network=layers.Net()) == "network.forward (global 'named_helpers' of named_layers).GUARD"


@pytest.mark.parametrize("call", ["shifted", "{helpers}.shifted"], ids=["from-import", "import"])
def test_modules_that_import_each_other_travel_by_value(user_modules, tmp_path, call) -> None:
    """Into a process that has neither of them."""
    layers = user_modules("far", call=call)
    (tmp_path / "far" / "shipped").parent.mkdir()
    (tmp_path / "far" / "shipped").write_bytes(ship({"network": layers.Net()}))
    code = (
        "import sys, pathlib, torch; from fatwood.spark.shipping import unship\n"
        "network = unship(pathlib.Path(sys.argv[1]).read_bytes())['network']\n"
        "print(tuple(network(torch.ones(3, 1)).shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "far" / "shipped"], capture_output=True, text=True, cwd="/"
    )
    assert done.stdout.strip() == "(3, 2)", done.stderr


def test_what_cannot_be_rebuilt_says_what_is_missing(tmp_path, monkeypatch) -> None:
    """A C extension of the user's cannot travel by value; here its stand-in is gone when it is to be imported."""
    shipped = ship({"loss": torch.nn.functional.mse_loss})
    monkeypatch.setitem(sys.modules, "torch.nn.functional", None)
    with pytest.raises(ShippingError, match=r"cannot be rebuilt on an executor: ModuleNotFoundError"):
        unship(shipped)


def test_shipping_leaves_cloudpickle_as_it_was() -> None:
    import cloudpickle

    before = cloudpickle.list_registry_pickle_by_value()
    ship({"network": nn.Linear(1, 1)})
    refusal(network=Nested())
    assert cloudpickle.list_registry_pickle_by_value() == before


@pytest.mark.spark
def test_a_network_of_the_users_own_modules_trains(spark, user_modules) -> None:
    layers = user_modules("trained", call="{helpers}.shifted")
    df = spark.range(20).selectExpr("id / 20 x", "int(id % 2) y")
    model = SparkModel(
        layers.Net(),
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        strategy=AllReduce(),
    )
    fit = model.fit(df, features="x", label="y", workers=2, progress=False)
    assert fit.stats.rows_trained == 20


@pytest.mark.spark
def test_a_session_is_named(spark, user_modules) -> None:
    layers = user_modules("session")
    sys.modules["session_helpers"].OFFSET = spark
    place = refusal(network=layers.Net())
    assert (
        place == "network.forward (global 'shifted' of session_layers) (global 'OFFSET' of session_helpers)"
    )
    assert refusal(loss=lambda output, label: spark) == "loss (variable 'spark' of the enclosing function)"


def test_paths_of_this_file_are_the_users() -> None:
    from fatwood.spark.shipping import installed_folders, is_within

    assert not is_within(__file__, installed_folders())
    assert is_within(torch.__file__, installed_folders())
    assert is_within(str(Path(threading.__file__)), installed_folders())
