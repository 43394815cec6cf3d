"""Replicas on a GPU: they agree with those on the CPU, and with each other to the bit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from fatwood.codec import FixedThreshold
from fatwood.data import Batch, Layout
from fatwood.testing.threads import Outcome, shard, train_in_threads, training_job
from fatwood.train import (
    AllReduce,
    DiLoCo,
    GradientSharing,
    LookAhead,
    ParameterAveraging,
    RowLosses,
    Strategy,
    TrainingJob,
    pack,
    unpack,
)
from fatwood.train.device import DeviceOrder, Place, taken_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")

LAYOUT = Layout.of(
    feature_width=4, feature_dtype="float32", feature_name="x", label_dtype="int64", label_name="y"
)
TAU = FixedThreshold(tau=0.02)
STRATEGIES = {
    "all-reduce": AllReduce(),
    "averaging": ParameterAveraging(every=3),
    "sharing": GradientSharing(threshold=TAU),
    "sharing, stale": GradientSharing(threshold=TAU, staleness=1),
    "sharing, ahead": GradientSharing(threshold=TAU, ahead=LookAhead(velocity=1.0)),
    "diloco": DiLoCo(every=2, threshold=TAU),
}


def gpu() -> Place:
    return Place(device=torch.device("cuda", 0))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def shards(rows: int = 60) -> list[list[pa.RecordBatch]]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, 4)).astype(np.float32)
    y = (np.abs(x).argmax(axis=1) % 3).astype(np.int64)
    return [
        [
            *shard(x, y, np.arange(rank, 10, 2), validation=True),
            *shard(x, y, np.arange(rank, rows, 2)),
        ]
        for rank in range(2)
    ]


def job(strategy: Strategy, **changes: object) -> TrainingJob:
    options: dict[str, object] = {
        "network": network(),
        "loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), ignore_index=-1),
        "optimizer": partial(torch.optim.Adam, lr=0.01),
        "strategy": strategy,
        "batch_size": 5,
        "epochs": 2,
        "digest_every": 3,
        "with_validation": True,
    }
    return training_job(**{**options, **changes})


def parameters(outcome: Outcome) -> np.ndarray:
    return torch.cat([p.detach().cpu().reshape(-1) for p in outcome.network.parameters()]).numpy()


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_fit_on_a_gpu_agrees_with_the_cpu(name: str) -> None:
    # equal digests are checked on the way, so a fit that ends had equal replicas
    there = train_in_threads(job(STRATEGIES[name]), shards(), LAYOUT, place=gpu())
    here = train_in_threads(job(STRATEGIES[name]), shards(), LAYOUT)
    assert there[0].stats.digest == there[1].stats.digest
    assert np.array_equal(parameters(there[0]), parameters(there[1]))
    assert there[0].stats.device["device"] == "cuda:0"
    assert there[0].stats.device["name"] == torch.cuda.get_device_name(0)
    losses = [[record.loss for record in outcome[0].history] for outcome in (there, here)]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    if name in ("all-reduce", "averaging"):  # a threshold turns the last bit into a whole step
        np.testing.assert_allclose(parameters(there[0]), parameters(here[0]), atol=1e-3)


def test_a_fit_goes_on_from_a_gpu_to_the_cpu_and_back() -> None:
    strategy = STRATEGIES["sharing"]
    first = train_in_threads(job(strategy, epochs=1), shards(), LAYOUT, place=gpu())
    before = first
    for epoch, place in ((1, None), (2, gpu())):
        states = {rank: unpack(pack(outcome.state)) for rank, outcome in enumerate(before)}
        more = job(strategy, network=before[0].network.cpu(), epochs=1, first_epoch=epoch)
        before = train_in_threads(more, shards(), LAYOUT, states=states, place=place)
    assert before[0].history[-1].loss < first[0].history[-1].loss


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision(precision: str) -> None:
    found = train_in_threads(
        job(STRATEGIES["all-reduce"], precision=precision), shards(), LAYOUT, place=gpu()
    )
    here = train_in_threads(job(STRATEGIES["all-reduce"]), shards(), LAYOUT)
    assert found[0].stats.device["autocast"] == precision
    assert found[0].history[-1].loss == pytest.approx(here[0].history[-1].loss, abs=0.05)


def test_prefetched_minibatches_wait_in_page_locked_memory(tmp_path) -> None:
    data = job(AllReduce()).partition(shards()[0], LAYOUT, 0, tmp_path, prefetch=2, pin=True)
    with data:
        batch = next(iter(data.epoch(0)))
    assert isinstance(batch.features, torch.Tensor)
    assert batch.features.is_pinned()


def test_each_row_s_loss() -> None:
    torch.manual_seed(0)
    batch = Batch(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]), weight=torch.rand(6))
    net = network().eval()

    def whole(network: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(network(batch.features), batch.label)

    for loss in (nn.CrossEntropyLoss(), lambda x, y: nn.functional.cross_entropy(x, y), whole):
        expected, _ = RowLosses(net.cpu(), loss)(batch, lambda *_: None)
        found, _ = RowLosses(net.to("cuda"), loss, torch.device("cuda", 0))(batch, lambda *_: None)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_machine_is_asked() -> None:
    assert taken_device(DeviceOrder(asked="cuda"), (), 0).device == torch.device("cuda", 0)
    assert taken_device(DeviceOrder(), ("0",), 5).device == torch.device("cuda", 0)
