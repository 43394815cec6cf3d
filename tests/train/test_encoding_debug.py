"""What encoding_debug leaves in the statistics, and updates that are no numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fatwood.codec import EncodingRecord, FixedThreshold, Multiples
from fatwood.data import Layout
from fatwood.errors import NotFiniteError
from fatwood.exchange import Exchange, FixedTeam, in_process_group
from fatwood.exchange.frames import MAX_BODY_BYTES
from fatwood.testing.threads import shard, train_in_threads, training_job
from fatwood.train import (
    AllReduce,
    FitStats,
    GradientSharing,
    ParameterAveraging,
    Replica,
    Strategy,
    TrainingJob,
    WorkerStats,
)
from fatwood.train.header import HEADER_BYTES
from fatwood.train.stats import EncodingLog

LAYOUT = Layout.of(
    feature_width=4, feature_dtype="float32", feature_name="x", label_dtype="int64", label_name="y"
)
FIXED = GradientSharing(threshold=FixedThreshold(tau=0.02), encoding_debug=True)
LONGEST = -2.2250738585072014e-308
RECORD = EncodingRecord(
    step=7,
    tau=0.02,
    n=50_000,
    count=0,
    bytes=19,
    clipped_mass=0.0,
    residual_norm=0.3,
    multiples=Multiples(0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
)
WORKER = WorkerStats(
    rank=0,
    rows_trained=9,
    rows_skipped=0,
    minibatches=3,
    agreements=3,
    message_bytes=300,
    bytes_sent=400,
    digest=1,
    seconds={"read": 0.5},
)


def make_job(strategy: Strategy, **changes: object) -> TrainingJob:
    torch.manual_seed(1)
    options: dict[str, object] = {
        "network": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
        "loss": nn.CrossEntropyLoss(),
        "optimizer": partial(torch.optim.SGD, lr=0.1),
        "strategy": strategy,
        "batch_size": 5,
        "epochs": 2,
    }
    return training_job(**{**options, **changes})  # type: ignore[arg-type]


def shards(rows: int, workers: int) -> list[list[pa.RecordBatch]]:
    x = np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)
    y = (np.abs(x).argmax(axis=1) % 3).astype(np.int64)
    return [shard(x, y, np.arange(rank, rows, workers)) for rank in range(workers)]


def test_every_message_is_measured_on_every_worker() -> None:
    outcomes = train_in_threads(make_job(FIXED), shards(40, 2), LAYOUT)
    for outcome in outcomes:
        records = outcome.stats.encoding
        assert [record.step for record in records] == list(range(outcome.stats.agreements)) == list(range(8))
        assert {record.n for record in records} == {67}
        assert {record.tau for record in records} == {float(np.float32(0.02))}
        assert sum(record.bytes + HEADER_BYTES for record in records) == outcome.stats.message_bytes
        for record in records:
            assert (record.multiples.max >= 1.0) == (record.count > 0)
            assert record.multiples.p50 <= record.multiples.p99 <= record.multiples.max
    residual = np.asarray(outcomes[1].state["sharing"]["reducer"]["arrays"]["residual"], np.float64)
    assert outcomes[1].stats.encoding[-1].residual_norm == pytest.approx(np.linalg.norm(residual), rel=1e-5)
    assert outcomes[0].stats.encoding != outcomes[1].stats.encoding


def test_measuring_changes_nothing_and_is_off_unless_asked_for() -> None:
    with_debug = train_in_threads(make_job(FIXED), shards(40, 2), LAYOUT)
    without = train_in_threads(make_job(replace(FIXED, encoding_debug=False)), shards(40, 2), LAYOUT)
    assert with_debug[0].stats.digest == without[0].stats.digest
    assert without[0].stats.encoding == ()
    assert train_in_threads(make_job(AllReduce()), shards(40, 2), LAYOUT)[0].stats.encoding == ()


def test_a_step_without_rows_sends_nothing_and_measures_nothing() -> None:
    outcomes = train_in_threads(make_job(FIXED, epochs=1), [*shards(20, 1), []], LAYOUT)
    assert [len(outcome.stats.encoding) for outcome in outcomes] == [4, 0]
    assert outcomes[1].stats.agreements == 4


def test_records_are_told_as_they_come(tmp_path: Path) -> None:
    told: list[EncodingRecord] = []
    job = make_job(FIXED)
    (exchange,) = in_process_group(1)
    with exchange, job.partition(shards(20, 1)[0], LAYOUT, 0, tmp_path) as data:
        replica = Replica(job, FixedTeam(exchange), workers=1, on_encoding=told.extend)
        seen: list[int] = []
        replica.train(data, lambda *_: seen.append(len(told)))
        stats = replica.stats(data)
    assert seen == list(range(1, 9))
    assert tuple(told) == stats.encoding


@pytest.mark.parametrize(
    ("tau", "says"), [(1e-6, "at tens or hundreds of tau"), (10.0, "fewer than 1 value in 10 000")]
)
def test_a_threshold_far_off_is_a_finding_of_every_worker(tau: float, says: str) -> None:
    strategy = GradientSharing(threshold=FixedThreshold(tau=tau), clipping=None, encoding_debug=True)
    network = nn.Sequential(nn.Linear(4, 1500), nn.Tanh(), nn.Linear(1500, 3))
    outcomes = train_in_threads(make_job(strategy, network=network, epochs=5), shards(40, 2), LAYOUT)
    stats = FitStats(
        workers=tuple(outcome.stats for outcome in outcomes),
        rows_trained=200,
        rows_expected=200,
        parameters=0,
        seconds=1.0,
    )
    assert [finding.split(":")[0] for finding in stats.findings] == ["worker 0", "worker 1"]
    for finding in stats.findings:
        assert says in finding
        assert f"finding: {finding}" in str(stats).splitlines()


def test_a_healthy_run_has_no_findings() -> None:
    outcomes = train_in_threads(make_job(FIXED, epochs=12), shards(40, 2), LAYOUT)
    stats = FitStats(
        workers=tuple(outcome.stats for outcome in outcomes),
        rows_trained=480,
        rows_expected=480,
        parameters=67,
        seconds=1.0,
    )
    assert len(stats.workers[0].encoding) == 48
    assert stats.findings == []
    assert "finding" not in str(stats)


@settings(max_examples=80, deadline=None)
@given(most=st.integers(1, 9), count=st.integers(0, 300), chunk=st.integers(1, 7))
def test_a_log_is_bounded_even_and_begins_with_the_first(most: int, count: int, chunk: int) -> None:
    log = EncodingLog(most)
    for start in range(0, count, chunk):
        log.extend(range(start, min(count, start + chunk)))  # type: ignore[arg-type]
    kept = list(log.records)
    assert len(kept) <= most
    stride = 1
    while len(range(0, count, stride)) > most:
        stride *= 2
    assert kept == list(range(0, count, stride))


def test_statistics_survive_json_and_fit_into_a_report() -> None:
    worst = replace(
        RECORD,
        step=2**63,
        n=10**10,
        count=10**10,
        bytes=10**10,
        tau=-LONGEST,
        clipped_mass=LONGEST,
        residual_norm=LONGEST,
        multiples=Multiples(*[LONGEST] * 7),
    )
    log = EncodingLog()
    log.extend([worst] * 100_000)
    stats = replace(WORKER, encoding=log.records)
    text = json.dumps({"stats": stats.to_json()})
    assert 500 <= len(stats.encoding) <= 1000
    assert len(text) < 0.6 * MAX_BODY_BYTES
    assert WorkerStats.from_json(json.loads(text)["stats"]) == stats
    assert WorkerStats.from_json(json.loads(json.dumps(WORKER.to_json()))) == WORKER


class Root(nn.Module):
    """Has an infinite gradient at one element, from the root of a zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3))
        self.squared = nn.ParameterDict({"bias": torch.ones(2, 3)})
        with torch.no_grad():
            self.squared["bias"][1, 2] = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) + self.squared["bias"].sqrt().sum(0)


class NanFrom:
    """A loss that is NaN from its third call on."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return nn.functional.cross_entropy(output, label) * (1.0 if self.calls < 3 else float("nan"))


STRATEGIES = [AllReduce(), ParameterAveraging(every=1), GradientSharing(), FIXED]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_an_infinite_update_names_the_parameter(strategy: Strategy) -> None:
    with pytest.raises(NotFiniteError, match=r"parameter squared\.bias\[1, 2\]: expected a finite") as caught:
        train_in_threads(make_job(strategy, network=Root()), shards(10, 1), LAYOUT)
    assert caught.value.hint
    assert (caught.value.position, caught.value.n) == (20, 21)
    assert np.isinf(caught.value.value)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_nothing_of_the_step_is_sent(strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def recording(size: int) -> list[Exchange]:
        group = in_process_group(size)
        for exchange in group:
            for name in ("gather", "mean"):
                monkeypatch.setattr(exchange, name, partial(record, name, getattr(exchange, name)))
        return group

    def record(name: str, call: object, *arguments: object) -> object:
        sent.append(name)
        return call(*arguments)  # type: ignore[operator]

    with pytest.raises(NotFiniteError, match=r"parameter 0\.weight\[0, 0\]:.*received nan"):
        train_in_threads(make_job(strategy, loss=NanFrom()), shards(20, 1), LAYOUT, group=recording)
    assert sent.count("gather") == 2
    assert sent.count("mean") in (0, 2)
