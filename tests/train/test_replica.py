"""The loop's laws: distributed equals single, replicas stay equal, every row counts once, nothing is lost between fits."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fatwood.codec import AdaptiveThreshold, DensityWarmup, FixedThreshold, TargetSparsityThreshold
from fatwood.data import Layout
from fatwood.errors import DataError, DivergenceError, UserCodeError
from fatwood.testing.threads import shard, train_in_threads, training_job
from fatwood.train import (
    AllReduce,
    DiLoCo,
    GradientSharing,
    LookAhead,
    ParameterAveraging,
    Strategy,
    TrainingJob,
    pack,
    unpack,
)

LAYOUT = Layout.of(
    feature_width=4, feature_dtype="float32", feature_name="x", label_dtype="int64", label_name="y"
)
STRATEGIES = [
    AllReduce(),
    ParameterAveraging(every=1),
    ParameterAveraging(every=3),
    GradientSharing(threshold=FixedThreshold(tau=0.02)),
    GradientSharing(threshold=AdaptiveThreshold(initial=0.05), clipping=None),
    GradientSharing(
        threshold=TargetSparsityThreshold(initial="quantile", target=0.06),
        warmup=DensityWarmup(steps=5, initial=1.0, final=0.1),
        encoding_debug=True,
    ),
    GradientSharing(threshold=FixedThreshold(tau=0.2), exchange="gradients"),
    GradientSharing(threshold=FixedThreshold(tau=0.02), reduction="sum"),
    GradientSharing(threshold=FixedThreshold(tau=0.02), staleness=1),
    AllReduce(staleness=1),
    ParameterAveraging(every=3, average_optimizer=False),
    GradientSharing(threshold=FixedThreshold(tau=0.02), ahead=LookAhead(velocity=1.0)),
    GradientSharing(threshold=FixedThreshold(tau=0.02), ahead=LookAhead(velocity=0.0), staleness=1),
    DiLoCo(every=2),
    DiLoCo(every=3, threshold=TargetSparsityThreshold(initial="quantile", target=0.06)),
]


def make_network(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def make_rows(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, 4)).astype(np.float32)
    return x, (np.abs(x).argmax(axis=1) % 3).astype(np.int64)


def shards(rows: int, workers: int, seed: int = 0) -> list[list[pa.RecordBatch]]:
    x, y = make_rows(rows, seed)
    return [shard(x, y, np.arange(rank, rows, workers)) for rank in range(workers)]


def make_job(strategy: Strategy, **changes: object) -> TrainingJob:
    options: dict[str, object] = {
        "network": make_network(),
        "loss": nn.CrossEntropyLoss(),
        "optimizer": partial(torch.optim.SGD, lr=0.1),
        "strategy": strategy,
        "batch_size": 5,
        "epochs": 1,
    }
    return training_job(**{**options, **changes})  # type: ignore[arg-type]


def parameters(network: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()]).numpy().copy()


@pytest.mark.parametrize("strategy", [AllReduce(), ParameterAveraging(every=1)], ids=str)
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_one_sgd_step_over_equal_shards_equals_one_step_on_the_whole_batch(
    strategy: Strategy, workers: int
) -> None:
    rows = 12 * workers
    x, y = make_rows(rows)
    job = make_job(strategy, batch_size=12)
    outcomes = train_in_threads(job, shards(rows, workers), LAYOUT)
    single = copy.deepcopy(job.network)
    optimizer = torch.optim.SGD(single.parameters(), lr=0.1)
    nn.functional.cross_entropy(single(torch.from_numpy(x)), torch.from_numpy(y)).backward()
    optimizer.step()
    np.testing.assert_allclose(parameters(outcomes[0].network), parameters(single), atol=1e-6, rtol=0)


def test_many_all_reduce_steps_with_momentum_equal_one_process_on_the_whole_batches() -> None:
    workers, rows = 3, 90
    x, y = make_rows(rows)
    optimizer_of = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    job = make_job(AllReduce(), batch_size=5, epochs=2, optimizer=optimizer_of, shuffle=False)
    outcomes = train_in_threads(job, shards(rows, workers), LAYOUT)
    single = copy.deepcopy(job.network)
    optimizer = optimizer_of(single.parameters())
    for _ in range(2):
        for start in range(0, rows, 15):  # worker r holds rows r, r + 3, ...: five of each are 15 in a row
            optimizer.zero_grad()
            batch = slice(start, start + 15)
            nn.functional.cross_entropy(
                single(torch.from_numpy(x[batch])), torch.from_numpy(y[batch])
            ).backward()
            optimizer.step()
    np.testing.assert_allclose(parameters(outcomes[0].network), parameters(single), atol=1e-6, rtol=0)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize(("rows", "workers"), [(1, 3), (2, 3), (7, 2), (16, 3), (50, 4)])
def test_every_row_is_trained_once_an_epoch_and_replicas_are_equal(
    strategy: Strategy, rows: int, workers: int
) -> None:
    job = make_job(strategy, epochs=2, digest_every=1)
    outcomes = train_in_threads(job, shards(rows, workers), LAYOUT)
    assert [record.rows for record in outcomes[0].history] == [rows, rows]
    assert sum(outcome.stats.rows_trained for outcome in outcomes) == 2 * rows
    assert [o.stats.rows_trained for o in outcomes] == [
        2 * len(range(r, rows, workers)) for r in range(workers)
    ]
    first = parameters(outcomes[0].network)
    for outcome in outcomes:
        assert parameters(outcome.network).tobytes() == first.tobytes()
    assert len({outcome.stats.digest for outcome in outcomes}) == 1
    assert not np.array_equal(first, parameters(job.network))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_the_same_seed_gives_the_same_bits(strategy: Strategy) -> None:
    job = make_job(strategy, epochs=3)
    once, again = (train_in_threads(job, shards(40, 3), LAYOUT) for _ in range(2))
    assert parameters(once[0].network).tobytes() == parameters(again[0].network).tobytes()
    other = train_in_threads(make_job(strategy, epochs=3, seed=7), shards(40, 3), LAYOUT)
    assert parameters(once[0].network).tobytes() != parameters(other[0].network).tobytes()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_two_fits_of_one_epoch_equal_one_fit_of_two(strategy: Strategy) -> None:
    optimizer = partial(torch.optim.Adam, lr=0.01)
    whole = train_in_threads(make_job(strategy, epochs=2, optimizer=optimizer), shards(31, 3), LAYOUT)
    first = train_in_threads(make_job(strategy, optimizer=optimizer), shards(31, 3), LAYOUT)
    states = {rank: unpack(pack(outcome.state)) for rank, outcome in enumerate(first)}
    job = make_job(strategy, optimizer=optimizer, first_epoch=1, network=first[0].network)
    second = train_in_threads(job, shards(31, 3), LAYOUT, states=states)
    assert parameters(second[0].network).tobytes() == parameters(whole[0].network).tobytes()
    assert second[0].history[0].loss == whole[0].history[1].loss
    without = train_in_threads(job, shards(31, 3), LAYOUT)
    assert parameters(without[0].network).tobytes() != parameters(whole[0].network).tobytes()


def test_losses_are_weighted_by_rows() -> None:
    x, y = make_rows(7)
    job = make_job(AllReduce(), batch_size=100, optimizer=partial(torch.optim.SGD, lr=0.0))
    outcomes = train_in_threads(job, [shard(x, y, np.arange(5)), shard(x, y, np.arange(5, 7))], LAYOUT)
    whole = nn.functional.cross_entropy(job.network(torch.from_numpy(x)), torch.from_numpy(y)).item()
    assert outcomes[0].history[0].loss == pytest.approx(whole, rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(sum), every=st.integers(1, 4))
def test_uneven_shards_neither_hang_nor_lose_rows(sizes: list[int], every: int) -> None:
    x, y = make_rows(sum(sizes))
    ends = np.cumsum(sizes)
    parts = [shard(x, y, np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    outcomes = train_in_threads(make_job(ParameterAveraging(every=every), batch_size=2), parts, LAYOUT)
    assert [outcome.stats.rows_trained for outcome in outcomes] == sizes


def test_batch_norm_statistics_are_averaged_and_equal() -> None:
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    outcomes = train_in_threads(make_job(AllReduce(), network=network), shards(20, 2), LAYOUT)
    means = [outcome.network[0].running_mean for outcome in outcomes]  # type: ignore[index]
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], torch.zeros(4))
    assert outcomes[0].stats.digest == outcomes[1].stats.digest


@pytest.mark.parametrize("part", ["network", "loss", "optimizer"])
def test_an_error_of_the_users_code_comes_first(part: str) -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("no such layer")

    class FailingSGD(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            raise KeyError("no such layer")

    def failing_loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such layer")

    changes: dict[str, object] = {
        "network": {"network": Failing()},
        "loss": {"loss": failing_loss},
        "optimizer": {"optimizer": partial(FailingSGD, lr=0.1)},
    }[part]  # type: ignore[assignment]
    with pytest.raises(UserCodeError, match=f"^KeyError: 'no such layer'\nraised by the {part}") as caught:
        train_in_threads(make_job(AllReduce(), **changes), shards(10, 1), LAYOUT)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_label_out_of_range_is_named_or_skipped() -> None:
    x, y = make_rows(9)
    y[4] = 3
    with pytest.raises(DataError, match=r"partition 0, row 4.*expected 0 to 2.*received 3"):
        train_in_threads(make_job(AllReduce()), [shard(x, y, np.arange(9))], LAYOUT)
    outcomes = train_in_threads(
        make_job(AllReduce(), on_bad_row="skip", epochs=2), [shard(x, y, np.arange(9))], LAYOUT
    )
    assert outcomes[0].stats.rows_trained == 16
    assert outcomes[0].stats.rows_skipped == 1


def test_a_replica_that_drifted_is_an_error_that_names_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drifting(torch.optim.SGD):
        """Steps a little differently on every worker, as hardware with another rounding would."""

        def __init__(self, params: object, lr: float) -> None:
            super().__init__(params, lr=lr)  # type: ignore[arg-type]
            made.append(self)
            self.own = len(made) * 1e-3

        def step(self, closure: object = None) -> None:  # type: ignore[override]
            super().step()
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(self.own)

    made: list[Drifting] = []
    job = make_job(AllReduce(), optimizer=partial(Drifting, lr=0.1), digest_every=1)
    with pytest.raises(
        DivergenceError, match=r"on ranks \[0\].*on ranks \[1\]|on ranks \[1\].*on ranks \[0\]"
    ):
        train_in_threads(job, shards(20, 2), LAYOUT)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_training_learns(strategy: Strategy) -> None:
    job = make_job(strategy, epochs=25, optimizer=partial(torch.optim.SGD, lr=0.3))
    history = train_in_threads(job, shards(120, 2), LAYOUT)[0].history
    assert history[-1].loss < 0.6 * history[0].loss


def test_float_labels_of_one_number_meet_outputs_of_one_column() -> None:
    layout = Layout.of(
        feature_width=4, feature_dtype="float32", feature_name="x", label_dtype="float32", label_name="y"
    )
    x, _ = make_rows(12)
    target = (2 * x.sum(axis=1)).astype(np.float32)
    torch.manual_seed(0)
    job = make_job(AllReduce(), network=nn.Linear(4, 1), loss=nn.MSELoss(), epochs=150, batch_size=12)
    outcomes = train_in_threads(job, [shard(x, target, np.arange(12))], layout)
    assert outcomes[0].history[-1].loss < 1e-3
