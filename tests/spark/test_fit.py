"""A whole fit on real Spark: every row once, equal bits, equal to one process."""

from __future__ import annotations

import copy
import json
import logging
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fatwood import AllReduce, FixedThreshold, GradientSharing, ParameterAveraging, SparkModel
from fatwood.codec import EncodingRecord, Multiples
from fatwood.errors import NotFiniteError, OptionError, ProtocolError
from fatwood.exchange import Event
from fatwood.exchange.frames import MAX_BODY_BYTES
from fatwood.spark.watch import Watch
from fatwood.train.reports import EncodingReports

pytestmark = pytest.mark.spark

SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.Adam, lr=0.01)
STRATEGIES = [AllReduce(), ParameterAveraging(every=3), GradientSharing(threshold=FixedThreshold(tau=0.02))]

RECORD = EncodingRecord(
    step=0,
    tau=1 / 3,
    n=10**9,
    count=10**7,
    bytes=10**7,
    clipped_mass=1 / 7,
    residual_norm=1 / 7,
    multiples=Multiples(*[-1e-300 / 3] * 7),
)


def make_network(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))


def frame(spark, sizes):
    """Partitions of these sizes; features are functions of the id alone."""
    step = max(*sizes, 1)
    ids = spark.range(0, step * len(sizes), 1, len(sizes))
    ids = ids.filter(f"id % {step} < get(array({', '.join(map(str, sizes))}), int(id DIV {step}))")
    return ids.selectExpr(
        "id", "array(float(sin(id)), float(cos(id)), float(sin(id * 3))) x", "int(sin(id) > 0) y"
    )


def rows_of(df) -> tuple[torch.Tensor, torch.Tensor]:
    rows = df.collect()
    return torch.tensor([row.x for row in rows]), torch.tensor([row.y for row in rows])


def parameters(network: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()]).numpy().copy()


def fitted(df, strategy, *, workers, optimizer=SGD, seed=0, batch_size=8, epochs=1, network=None):
    model = SparkModel(
        network or make_network(), loss=nn.CrossEntropyLoss(), optimizer=optimizer, strategy=strategy
    )
    fit = model.fit(
        df,
        features="x",
        label="y",
        workers=workers,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        progress=False,
    )
    return model, fit


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(
    "sizes", [(0, 1, 7, 10_000), (0, 0, 1), (7,), (1, 1, 1, 1, 1, 1, 1), (0, 10_000)], ids=str
)
def test_every_row_is_trained_once_an_epoch(spark, sizes, workers) -> None:
    rows = sum(sizes)
    _, fit = fitted(frame(spark, sizes), GradientSharing(), workers=workers, epochs=2, batch_size=64)
    assert [record.rows for record in fit.history] == [rows, rows]
    assert fit.stats.rows_trained == fit.stats.rows_expected == 2 * rows
    shares = [worker.rows_trained // 2 for worker in fit.stats.workers]
    assert len(shares) == workers
    assert max(shares) - min(shares) <= 1
    assert fit.stats.digest_equal


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_the_same_seed_and_workers_give_the_same_bits(spark, strategy) -> None:
    df = frame(spark, (40, 3, 30))
    first, fit = fitted(df, strategy, workers=3, epochs=2)
    again, _ = fitted(df, strategy, workers=3, epochs=2)
    other, _ = fitted(df, strategy, workers=3, epochs=2, seed=5)
    assert fit.stats.digest_equal
    assert parameters(first.network).tobytes() == parameters(again.network).tobytes()
    assert parameters(first.network).tobytes() != parameters(other.network).tobytes()


def test_the_same_bits_however_the_frame_is_cut(spark) -> None:
    one, _ = fitted(frame(spark, (73,)), AllReduce(), workers=2, epochs=2)
    two = frame(spark, (73,)).orderBy("id").repartitionByRange(5, "id").sortWithinPartitions("id")
    other, _ = fitted(two, AllReduce(), workers=2, epochs=2)
    assert parameters(one.network).tobytes() == parameters(other.network).tobytes()


def test_the_same_bits_after_a_shuffle_of_the_users(spark) -> None:
    """What a shuffle's fetch order leaves open is open in the user's frame too; a sort closes it."""
    df = frame(spark, (40, 3, 30)).repartition(3).orderBy("id")
    first, _ = fitted(df, AllReduce(), workers=2)
    again, _ = fitted(df, AllReduce(), workers=2)
    assert parameters(first.network).tobytes() == parameters(again.network).tobytes()


@pytest.mark.parametrize("strategy", [AllReduce(), ParameterAveraging(every=1)], ids=str)
def test_one_step_over_equal_shards_equals_one_process(spark, strategy) -> None:
    df = frame(spark, (20, 16))
    model, _ = fitted(df, strategy, workers=3, batch_size=12)
    single = make_network()
    optimizer = SGD(single.parameters())
    nn.functional.cross_entropy(single(rows_of(df)[0]), rows_of(df)[1].long()).backward()
    optimizer.step()
    np.testing.assert_allclose(parameters(model.network), parameters(single), atol=1e-6, rtol=0)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_two_fits_of_one_epoch_equal_one_fit_of_two(spark, strategy) -> None:
    df = frame(spark, (40, 33))
    whole, whole_fit = fitted(df, strategy, workers=2, epochs=2, optimizer=ADAM)
    parts, _ = fitted(df, strategy, workers=2, optimizer=ADAM)
    second = parts.fit(df, features="x", label="y", workers=2, batch_size=8, progress=False)
    assert parts.epochs_trained == 2
    assert second.history[0].epoch == 1
    assert second.history[0].loss == whole_fit.history[1].loss
    assert parameters(parts.network).tobytes() == parameters(whole.network).tobytes()


def test_what_goes_on_must_fit_and_reset_begins_anew(spark) -> None:
    df = frame(spark, (12,))
    model, _ = fitted(df, AllReduce(), workers=2, optimizer=ADAM)
    with pytest.raises(OptionError, match="workers: expected 2 as in the last fit"):
        model.fit(df, features="x", label="y", workers=3, progress=False)
    model.strategy = GradientSharing()
    with pytest.raises(OptionError, match="strategy: the last fit was made with AllReduce"):
        model.fit(df, features="x", label="y", workers=2, progress=False)
    model.reset()
    assert model.epochs_trained == 0
    fit = model.fit(df, features="x", label="y", workers=3, progress=False)
    assert len(fit.stats.workers) == 3


def test_several_columns_of_several_kinds_are_one_input(spark) -> None:
    df = frame(spark, (30,)).selectExpr("x", "double(id % 3) d", "id % 5 = 0 b", "float(id % 7) target")
    torch.manual_seed(0)
    model = SparkModel(nn.Linear(5, 1), loss=nn.MSELoss(), optimizer=SGD, strategy=AllReduce())
    before = copy.deepcopy(model.network)
    fit = model.fit(df, features=["d", "x", "b"], label="target", workers=2, batch_size=15, progress=False)
    rows = df.collect()
    x = torch.tensor([[row.d, *row.x, float(row.b)] for row in rows])
    loss = nn.functional.mse_loss(before(x), torch.tensor([[row.target] for row in rows]))
    assert fit.history[0].loss == pytest.approx(loss.item(), rel=1e-5)


def test_integers_arrive_as_integers(spark) -> None:
    df = spark.range(40).selectExpr("array(int(id % 7), int(id % 5)) tokens", "int(id % 7 > 3) y")
    network = nn.Sequential(nn.Embedding(8, 4), nn.Flatten(), nn.Linear(8, 2))
    model = SparkModel(network, loss=nn.CrossEntropyLoss(), optimizer=ADAM)
    fit = model.fit(df, features="tokens", label="y", workers=2, batch_size=5, epochs=3, progress=False)
    assert fit.stats.rows_trained == 120


def test_vectors_of_pyspark_ml(spark) -> None:
    from pyspark.ml.linalg import Vectors

    rows = [
        (Vectors.sparse(3, {i % 3: 1.0}) if i % 2 else Vectors.dense(1.0, 2.0, float(i)), i % 2)
        for i in range(20)
    ]
    df = spark.createDataFrame(rows, ["x", "y"])
    _, fit = fitted(df, AllReduce(), workers=2)
    assert fit.stats.rows_trained == 20


def test_by_default_all_slots_work(spark) -> None:
    _, fit = fitted(frame(spark, (16,)), AllReduce(), workers=None)
    assert len(fit.stats.workers) == 4


def test_frozen_parameters_stay_and_the_mode_of_the_network_too(spark) -> None:
    network = make_network()
    network[0].requires_grad_(False)
    network.eval()
    frozen = network[0].weight.detach().clone()
    model, fit = fitted(
        frame(spark, (16,)), GradientSharing(threshold=FixedThreshold(tau=1e-4)), workers=2, network=network
    )
    assert torch.equal(network[0].weight, frozen)
    assert not torch.equal(network[2].weight, make_network()[2].weight)
    assert not model.network.training
    assert fit.stats.parameters == 14
    assert fit.stats.dense_bytes_per_step == 56


def test_encoding_debug_reaches_the_log_and_the_statistics(spark, caplog) -> None:
    strategy = GradientSharing(threshold=FixedThreshold(tau=1e-6), clipping=None, encoding_debug=True)
    with caplog.at_level(logging.INFO, logger="fatwood.encoding"):
        _, fit = fitted(frame(spark, (130,)), strategy, workers=2, epochs=3, batch_size=5)
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    for worker in fit.stats.workers:
        assert (
            [record.step for record in worker.encoding] == list(range(worker.agreements)) == list(range(39))
        )
        own = [line for line in lines if line.startswith(f"worker {worker.rank}, ")]
        assert own == [f"worker {worker.rank}, {record}" for record in worker.encoding]
    assert len(fit.stats.findings) == 2
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == fit.stats.findings
    assert {r.name for r in caplog.records} == {"fatwood.encoding"}
    assert str(fit.stats).endswith(fit.stats.findings[-1])


def test_an_update_that_is_no_number_names_the_parameter(spark, caplog) -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([4.0, 1.0]))
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + self.bias.sqrt()  # exactly zero after a few steps

    model = SparkModel(
        Root(),
        loss=lambda output, label: output[:, 1].mean(),
        optimizer=partial(torch.optim.SGD, lr=1.0),
        strategy=GradientSharing(threshold=FixedThreshold(tau=0.25), encoding_debug=True),
    )
    with (
        caplog.at_level(logging.INFO, logger="fatwood.encoding"),
        pytest.raises(
            NotFiniteError, match=r"the update of parameter bias\[1\]: expected .* received -inf"
        ) as caught,
    ):
        model.fit(
            frame(spark, (200,)), features="x", label="y", workers=2, batch_size=5, epochs=2, progress=False
        )
    assert (caught.value.position, caught.value.n) == (1, 10)
    rank = caught.value.message.split("\non worker ")[1].split()[0]
    assert caught.value.hint
    assert torch.equal(model.network.bias.detach(), torch.tensor([4.0, 1.0]))
    steps = [r for r in caplog.records if r.getMessage().startswith(f"worker {rank}, step ")]
    assert len(steps) > 1, "the steps before are what one wants to see"


class Told:
    """Stands for a member of a job and keeps what it reports."""

    stopped = None

    def __init__(self) -> None:
        self.reports: list[list[dict]] = []

    def report(self, kind, body) -> None:
        assert kind == "encoding"
        assert len(json.dumps(body)) < MAX_BODY_BYTES / 4
        self.reports.append(body["records"])


def test_a_fast_worker_does_not_flood_the_driver() -> None:
    member = Told()
    start = time.monotonic()
    with EncodingReports(member) as on_encoding:
        for step in range(1, 1001):
            on_encoding([replace(RECORD, step=step)])
    most = 2 + 2 * (time.monotonic() - start)
    steps = [[values["step"] for values in report] for report in member.reports]
    assert steps[0] == [1]
    assert steps[-1][-1] == 1000
    assert 2 <= len(steps) <= most
    assert all(len(report) <= 200 for report in steps)
    flat = [step for report in steps for step in report]
    assert flat == sorted(set(flat))
    assert len(flat) > 150


def test_what_is_measured_is_told_also_when_the_job_fails_unless_it_was_called_off() -> None:
    for stopped, told in ((None, [[1], [2]]), ("the driver ended the job", [[1]])):
        member = Told()
        member.stopped = stopped
        with pytest.raises(KeyError), EncodingReports(member) as on_encoding:  # noqa: PT012
            for step in (1, 2):
                on_encoding([replace(RECORD, step=step)])
            raise KeyError
        assert [[values["step"] for values in report] for report in member.reports] == told


def test_records_that_make_no_sense_are_a_protocol_error() -> None:
    watch = Watch(
        None,
        None,
        workers=2,
        start_timeout_seconds=1,
        on_progress=lambda *_: None,
        writer=None,
        how_to_resume=lambda: "",
    )
    with pytest.raises(
        ProtocolError, match="worker 1 on host h: expected records of encoding_debug, received"
    ):
        watch._take(Event(1, "h", "encoding", {"records": [{"step": 1}]}, 7))
