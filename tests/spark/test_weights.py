"""Weights of large networks: one file on a host that all Python workers map; turns of workers; memory that does not suffice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fatwood import SparkModel
from fatwood.data import Batch
from fatwood.errors import ClusterError, OptionError, ShippingError
from fatwood.spark import delivery
from fatwood.spark.delivery import deliver, rebuilt
from fatwood.spark.memory import Halving, is_out_of_memory
from fatwood.spark.turns import Turns

spark_test = pytest.mark.spark
MB = 1 << 20


class Context:
    """Of a Spark that sends files to itself."""

    def __init__(self) -> None:
        self.applicationId = f"application {id(self)}"
        self.files: list[str] = []

    def addFile(self, path: str) -> None:  # noqa: N802
        self.files.append(path)


def session() -> SimpleNamespace:
    return SimpleNamespace(sparkContext=Context())


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 23)),
        max_size=8,
    )
)
def test_tensors_come_back_as_they_were(described) -> None:
    tensors = []
    for dtype, shape, turn in described:
        tensor = torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)
        dims = list(range(tensor.dim()))
        for i in range(len(dims)):  # of other strides
            dims.insert(turn % len(dims), dims.pop(i))
        tensors.append(tensor.permute(dims))
    spark = session()
    delivered = deliver(spark, {"network": tensors}, least_bytes=1)
    assert (delivered.file is None) == all(tensor.numel() == 0 for tensor in tensors)
    found = rebuilt(delivered, *spark.sparkContext.files)["network"]
    for before, after in zip(tensors, found, strict=True):
        assert torch.equal(before, after)
        assert (before.dtype, before.stride()) == (after.dtype, after.stride())


class Own(torch.Tensor):
    """A class of the user's."""


def odd_network() -> nn.Module:
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Conv2d(3, 5, 3))
    network.to(memory_format=torch.channels_last)
    network[1].weight = network[0].weight  # shared
    network[1].bias.requires_grad_(False)
    network.register_buffer("view", torch.arange(12.0)[::3])
    network.register_buffer("wide", torch.ones(1).expand(7))
    network.register_buffer("complex", torch.ones(3, dtype=torch.complex64))
    network.register_buffer("empty", torch.zeros(0, 3))
    network.register_buffer("sparse", torch.eye(3).to_sparse())
    network.register_buffer("own", torch.ones(2).as_subclass(Own))
    network.register_buffer("tagged", torch.ones(2))
    network.tagged.tag = "kept"
    return network


def test_shared_parameters_stay_shared_and_what_is_odd_goes_by_value() -> None:
    network, spark = odd_network(), session()
    found = rebuilt(deliver(spark, {"network": network}, least_bytes=1), *spark.sparkContext.files)["network"]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor.to_dense(), found.state_dict()[name].to_dense()), name
    assert found[1].weight is found[0].weight
    assert isinstance(found[0].weight, nn.Parameter)
    assert found[0].weight.requires_grad
    assert not found[1].bias.requires_grad
    assert type(found.own) is Own
    assert found.tagged.tag == "kept"
    # what one process writes, no other sees
    with torch.no_grad():
        found[0].weight.zero_()
    again = rebuilt(deliver(spark, {"network": network}, least_bytes=1), *spark.sparkContext.files)["network"]
    assert torch.equal(again[0].weight, network[0].weight)


def test_sent_once_for_each_content_and_session_and_not_when_small() -> None:
    network, first, second = nn.Linear(600, 600), session(), session()
    deliver(first, {"network": nn.Linear(100, 100)})
    assert first.sparkContext.files == []
    one = deliver(first, {"network": network})
    assert len(one.shipped) < 5_000
    assert deliver(first, {"network": network, "loss": nn.MSELoss()}).file == one.file
    assert len(first.sparkContext.files) == 1
    assert deliver(second, {"network": network}).file == one.file
    assert len(second.sparkContext.files) == 1
    with torch.no_grad():
        network.bias[0] += 1
    assert deliver(first, {"network": network}).file != one.file
    assert len(first.sparkContext.files) == 2


def test_a_file_that_is_not_there_or_not_whole_is_an_error(tmp_path) -> None:
    spark = session()
    delivered = deliver(spark, {"network": nn.Linear(600, 600)})
    with pytest.raises(
        ClusterError, match=rf"weights: expected a file of {delivered.size} bytes .*received none"
    ):
        rebuilt(delivered, tmp_path / "nowhere")
    part = tmp_path / "part"
    part.write_bytes(Path(spark.sparkContext.files[0]).read_bytes()[:-1])
    with pytest.raises(ClusterError, match=f"received {delivered.size - 1} bytes"):
        rebuilt(delivered, part)


def test_what_does_not_pickle_is_named() -> None:
    network = nn.Linear(600, 600)
    network.lock = threading.Lock()
    with pytest.raises(ShippingError, match=r"network\.lock: cannot be sent"):
        deliver(session(), {"network": network})


class Watching(nn.Module):
    """A network of some megabytes that says what its process takes of memory, and what of a mapped file is its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(2)))
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = self.layers(x[:, :1].expand(-1, self.width))
        own, shared = mapped_bytes()
        facts = torch.tensor([os.getpid(), own, shared], dtype=torch.float64).expand(len(x), 3)
        return torch.cat([values[:, :1] * 0, facts], 1)


def mapped_bytes() -> tuple[int, int]:
    """Of files of weights that this process maps: its own copies of pages, and pages in memory at all."""
    own = resident = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            inside = "/weights-" in line
        elif inside and line.startswith("Anonymous:"):
            own += int(line.split()[1]) * 1024
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return own, resident


@spark_test
def test_workers_share_the_weights_of_their_host(spark) -> None:
    network = Watching(2000)  # 32 MB
    size = sum(p.numel() * 4 for p in network.parameters())
    df = spark.range(0, 8, 1, 4).selectExpr("id", "array(float(id), 1f) x")
    model = SparkModel(network)
    rows = model.predict(df, key="id", features="x", batch_size=1).collect()
    assert len({row.prediction[1] for row in rows}) > 1
    for row in rows:
        _, _, own, resident = row.prediction
        assert own == 0
        assert resident >= 0.9 * size
    sent = len(delivery._SENT[spark.sparkContext.applicationId])
    model.predict(df, key="id", features="x")
    assert len(delivery._SENT[spark.sparkContext.applicationId]) == sent


class Logging(nn.Module):
    """Writes when it was called, and takes its time."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = str(folder)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = time.time()
        time.sleep(0.05)
        with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False) as file:
            json.dump([start, time.time()], file)
        return x


def most_at_a_time(folder: Path) -> int:
    spans = [json.loads(file.read_text()) for file in folder.iterdir()]
    return max(sum(start <= begin < stop for start, stop in spans) for begin, _ in spans)


@spark_test
@pytest.mark.parametrize("limit", [1, 2])
def test_so_many_workers_of_a_host_compute_at_a_time(spark, tmp_path, limit) -> None:
    df = spark.range(0, 24, 1, 4).selectExpr("id", "array(float(id), 1f) x")
    model = SparkModel(Logging(tmp_path))
    found = model.predict(df, key="id", features="x", batch_size=2, workers_per_node=limit).collect()
    assert len(found) == 24
    assert most_at_a_time(tmp_path) == limit
    assert list(Path(tempfile.gettempdir()).glob("fatwood-*.lock")) == []


@pytest.mark.parametrize("limit", [0, True, 1.5, "2"])
def test_workers_per_node_is_a_number(limit) -> None:
    from fatwood.spark.inference_order import _require_count

    with pytest.raises(
        OptionError, match="workers_per_node: expected a whole number of at least 1, received"
    ):
        _require_count("workers_per_node", limit)


HOLDER = """
import sys, time
from fatwood.spark.turns import Turns
with Turns(sys.argv[1], 1).taken():
    print("taken", flush=True)
    time.sleep(60)
"""


def test_a_holder_that_dies_gives_its_turn_back() -> None:
    turns = Turns(f"test-{os.getpid()}", 1)
    command = [sys.executable, "-c", HOLDER, turns.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "taken\n"
            text = r"workers_per_node: expected one of 1 turns on host .* in time"
            with pytest.raises(ClusterError, match=text), turns.taken(wait_seconds=0.1):
                pass
            holder.kill()
            holder.wait(10)
            with turns.taken(wait_seconds=10):
                pass
        finally:
            holder.kill()


def test_turns_are_taken_by_one_thread_after_the_other() -> None:
    turns, at_once, most = Turns(f"threads-{os.getpid()}", 2), [], []

    def work() -> None:
        for _ in range(20):
            with turns.taken():
                at_once.append(0)
                most.append(len(at_once))
                time.sleep(0.001)
                at_once.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 120
    assert max(most) == 2


def batch(rows: int) -> Batch:
    return Batch(features=torch.arange(float(rows)).reshape(rows, 1))


def limited(most: int, error: Exception):
    sizes = []

    def work(part: Batch) -> list[float]:
        sizes.append(len(part))
        if len(part) > most:
            raise error
        return part.features[:, 0].tolist()

    return work, sizes


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=repr)
def test_a_minibatch_is_halved_once(error, caplog) -> None:
    halving, (work, sizes) = Halving(11), limited(6, error)
    assert list(chain.from_iterable(halving(batch(11), work))) == list(range(11))
    assert sizes == [11, 6, 5]
    assert halving.rows == 6
    assert "11 rows do not fit into memory; going on with minibatches of 6" in caplog.text
    halving, (work, sizes) = Halving(11), limited(5, error)
    with pytest.raises(
        OptionError, match=r"batch_size: .* received 11, and 6 rows do not fit.*(?s:.)*hint: pass a smaller"
    ):
        halving(batch(11), work)
    assert sizes == [11, 6]
    with pytest.raises(OptionError, match="received 1, and 1 rows do not fit"):
        Halving(1)(batch(1), limited(0, error)[0])


def test_other_errors_are_not_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        Halving(4)(batch(4), limited(2, RuntimeError("shapes"))[0])
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
    wrapped = ValueError("the network raised")
    wrapped.__cause__ = caught.value
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(RuntimeError("out of luck"))


class Greedy(nn.Module):
    """Asks for more memory than there is when it is given many rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            torch.empty(1 << 50)
        return 2 * x


@spark_test
def test_a_job_goes_on_with_half_the_rows(spark) -> None:
    df = spark.range(0, 40, 1, 2).selectExpr("id", "array(float(id)) x", "float(id) y")
    model = SparkModel(Greedy(9), loss=nn.MSELoss())
    found = model.predict(df, key="id", features="x", batch_size=16).collect()
    assert [row.prediction for row in found] == [[2.0 * i] for i in range(40)]
    found = model.score(df, key="id", features="x", label="y", batch_size=16).collect()
    assert [row.score for row in found] == [float(i * i) for i in range(40)]
    with pytest.raises(Exception, match="batch_size: expected minibatches that fit into memory, received 32"):
        model.predict(df, key="id", features="x", batch_size=32).collect()
