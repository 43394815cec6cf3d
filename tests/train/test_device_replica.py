"""A replica that works on tensors, as on a GPU, gives the bits of one that works on arrays; here both are on the CPU."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from fatwood.codec import (
    DensityWarmup,
    FixedThreshold,
    FlatParameters,
    ResidualClipping,
    TargetSparsityThreshold,
)
from fatwood.data import Batch, Layout
from fatwood.errors import OptionError
from fatwood.testing.threads import Outcome, shard, train_in_threads, training_job
from fatwood.train import (
    AllReduce,
    DiLoCo,
    EarlyStopping,
    GradientSharing,
    LookAhead,
    ParameterAveraging,
    Strategy,
    TrainingJob,
    WorkerStats,
    pack,
    unpack,
)
from fatwood.train.device import Place
from fatwood.train.placing import brought, device_facts, moved

CPU = Place(device=torch.device("cpu"))
LAYOUT = Layout.of(
    feature_width=4, feature_dtype="float32", feature_name="x", label_dtype="int64", label_name="y"
)
TAU = FixedThreshold(tau=0.02)
STRATEGIES = {
    "all-reduce": AllReduce(),
    "all-reduce, stale": AllReduce(staleness=1),
    "averaging": ParameterAveraging(every=3),
    "sharing": GradientSharing(threshold=TAU, clipping=ResidualClipping(max_multiple=2, every=2)),
    "sharing, stale": GradientSharing(threshold=TAU, staleness=1),
    "sharing, ahead": GradientSharing(threshold=TAU, ahead=LookAhead(velocity=1.0)),
    "sharing gradients": GradientSharing(threshold=FixedThreshold(tau=0.2), exchange="gradients"),
    "warm-up": GradientSharing(
        threshold=TargetSparsityThreshold(initial="quantile", target=0.06),
        warmup=DensityWarmup(steps=3, initial=1.0, final=0.1),
        encoding_debug=True,
    ),
    "diloco": DiLoCo(every=2),
    "diloco, sparse": DiLoCo(every=3, threshold=TargetSparsityThreshold(initial="quantile", target=0.06)),
}


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 3))


def shards(rows: int = 70, validation: int = 12) -> list[list[pa.RecordBatch]]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, 4)).astype(np.float32)
    y = (np.abs(x).argmax(axis=1) % 3).astype(np.int64)
    ends = (0, 20, rows)  # unequal, so that the first worker agrees with weight 0 at the end
    return [
        [
            *shard(x, y, np.arange(rank, validation, 2), validation=True),
            *shard(x, y, np.arange(start, end)),
        ]
        for rank, (start, end) in enumerate(pairwise(ends))
    ]


def job(strategy: Strategy, **changes: object) -> TrainingJob:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), ignore_index=-1)
    options: dict[str, object] = {
        "network": network(),
        "loss": loss,
        "optimizer": partial(torch.optim.Adam, lr=0.02),
        "strategy": strategy,
        "batch_size": 5,
        "epochs": 2,
        "digest_every": 3,
        "with_validation": True,
    }
    return training_job(**{**options, **changes})


def bits(outcome: Outcome) -> bytes:
    return pack({"network": dict(outcome.network.state_dict()), "state": without_randomness(outcome.state)})


def without_randomness(state: dict[str, object]) -> dict[str, object]:
    return {name: part for name, part in state.items() if name != "generators"}


@pytest.fixture(autouse=True)
def no_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of a test are threads and share PyTorch's generator, so what they draw is up to their order."""
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_fit_on_tensors_gives_the_bits_of_a_fit_on_arrays(name: str) -> None:
    strategy = STRATEGIES[name]
    arrays = train_in_threads(job(strategy), shards(), LAYOUT)
    tensors = train_in_threads(job(strategy), shards(), LAYOUT, place=CPU)
    for one, other in zip(arrays, tensors, strict=True):
        assert bits(one) == bits(other)
        assert [r.loss for r in one.history] == [r.loss for r in other.history]
        assert [r.loss for r in one.validations] == [r.loss for r in other.validations]
        assert one.stats.digest == other.stats.digest == tensors[0].stats.digest
        assert one.stats.message_bytes == other.stats.message_bytes
        assert one.stats.encoding == other.stats.encoding
    assert not np.array_equal(vector(arrays[0].network), vector(network()))


@pytest.mark.parametrize("name", ["averaging", "sharing, ahead", "diloco, sparse"])
def test_a_fit_goes_on_where_another_kind_of_device_stopped(name: str) -> None:
    strategy = STRATEGIES[name]

    def go_on(before: list[Outcome], epoch: int, place: Place | None) -> list[Outcome]:
        # packed, since an optimizer goes on with the tensors that it is given
        states = {rank: unpack(pack(outcome.state)) for rank, outcome in enumerate(before)}
        more = job(strategy, network=before[0].network, epochs=1, first_epoch=epoch)
        return train_in_threads(more, shards(), LAYOUT, states=states, place=place)

    first = train_in_threads(job(strategy, epochs=1), shards(), LAYOUT)
    arrays, tensors = go_on(first, 1, None), go_on(first, 1, CPU)
    assert [bits(outcome) for outcome in tensors] == [bits(outcome) for outcome in arrays]
    back = go_on(tensors, 2, None)
    assert [bits(outcome) for outcome in back] == [bits(outcome) for outcome in go_on(arrays, 2, CPU)]


def test_the_best_parameters_are_kept_where_they_are() -> None:
    stopping = EarlyStopping(patience=2, keep_best=True)
    ends = [
        train_in_threads(
            job(STRATEGIES["sharing"], early_stopping=stopping, epochs=6), shards(), LAYOUT, place=place
        )
        for place in (None, CPU)
    ]
    assert bits(ends[0][0]) == bits(ends[1][0])
    assert len(ends[0][0].history) == len(ends[1][0].history)


def test_mixed_precision_on_tensors() -> None:
    ends = [
        train_in_threads(job(STRATEGIES["sharing"], precision="bfloat16"), shards(), LAYOUT, place=place)
        for place in (None, CPU)
    ]
    assert bits(ends[0][0]) == bits(ends[1][0])


def test_parameters_elsewhere_are_refused() -> None:
    net = network()
    with pytest.raises(OptionError, match=r"expected float32 on cpu, received torch\.float32 on meta"):
        FlatParameters(net.to("meta"))
    with pytest.raises(OptionError, match="expected float32 on meta"):
        FlatParameters(network(), torch.device("meta"))


def test_minibatches_and_outputs_are_moved_in_their_form() -> None:
    meta = torch.device("meta")
    batch = Batch(
        {"a": torch.ones(2), "b": torch.ones(2, 3)},
        (torch.ones(2), torch.ones(2)),
        weight=torch.ones(2),
        feature_mask={"b": torch.ones(2, 3, dtype=torch.bool)},
        label_mask=(None, torch.ones(2, dtype=torch.bool)),
    )
    assert moved(batch, None) is batch
    there = moved(batch, meta)
    assert there.features["a"].device == there.features["b"].device == there.label[1].device == meta
    assert there.weight.device == there.feature_mask["b"].device == there.label_mask[1].device == meta
    assert there.label_mask[0] is None
    assert there.row_ids is batch.row_ids
    assert moved(batch, meta, ("features",)).label is batch.label
    x = torch.ones(2)
    found = brought({"a": (x, [x]), "b": 3})
    assert found["a"][0] is x
    assert isinstance(found["a"][1], list)
    assert found["b"] == 3


def test_statistics_have_no_device_on_the_cpu() -> None:
    assert device_facts(CPU, "float32") is None
    assert device_facts(Place(device=None), "float32") is None
    facts = {
        "device": "cuda:0",
        "name": "X",
        "address": "3",
        "cudnn": 91000,
        "tf32": {"matmul": False, "cudnn": True},
        "autocast": "bfloat16",
    }
    stats = train_in_threads(job(AllReduce(), epochs=1), shards(), LAYOUT)[0].stats
    assert stats.device is None
    values = stats.to_json() | {"device": facts}
    assert WorkerStats.from_json(values).device == facts
    del values["device"]  # of an older version
    assert WorkerStats.from_json(values).device is None


def vector(net: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy()
