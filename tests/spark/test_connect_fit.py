"""Training from a client of a real Spark Connect server gives what a classic session gives."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
from torch import nn

from fatwood import (
    AllReduce,
    Callback,
    Checkpoints,
    DiLoCo,
    GradientSharing,
    SparkModel,
    Standardize,
    latest_checkpoint,
)
from fatwood.errors import ClusterError, OptionError, UserCodeError
from fatwood.spark.shards import write_shards
from fatwood.testing.faults import Faults
from fatwood.train import current_rank

pytestmark = [pytest.mark.spark, pytest.mark.timeout(300)]

ROWS = 90
WORKERS = 2


def make_model(strategy=None, *, loss=None, width: int = 8, momentum: float = 0.9, **options) -> SparkModel:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=momentum)
    return SparkModel(
        network,
        loss=loss or nn.CrossEntropyLoss(),
        optimizer=optimizer,
        strategy=strategy or AllReduce(),
        **options,
    )


def make_table(session):
    """In three partitions of which one is empty."""
    ids = session.range(0, ROWS * 3 // 2, 1, 3).filter(f"id < {ROWS}")
    return ids.selectExpr("id", "array(float(sin(id)), float(cos(id * 2))) x", "int(pmod(hash(id), 3)) y")


@pytest.fixture(scope="module")
def table(spark, connect):  # the classic session first: it does not start once the process is a client
    return make_table(connect)


@pytest.fixture
def fit_classic(spark, monkeypatch):
    """Fits a model on the same rows of a classic session."""

    def fitted(model: SparkModel, **options):
        with monkeypatch.context() as patch:
            patch.delenv(
                "SPARK_CONNECT_MODE_ENABLED"
            )  # pyspark.sql.functions then make columns of the classic kind
            return fit(model, make_table(spark), **options)

    return fitted


def fit(model: SparkModel, table, **options):
    return model.fit(table, features="x", label="y", batch_size=5, workers=WORKERS, **options)


@pytest.mark.parametrize(
    "strategy", [AllReduce(), GradientSharing(), DiLoCo(every=3)], ids=["all-reduce", "sharing", "diloco"]
)
def test_the_same_bits_as_in_a_classic_session(fit_classic, table, strategy) -> None:
    there, here = (
        make_model(strategy, preprocessing=Standardize()),
        make_model(strategy, preprocessing=Standardize()),
    )
    held_out = {"validation": table.limit(20)}
    for _ in range(2):  # the second goes on with the states of the first
        expected = fit_classic(here, epochs=2)
        found = fit(there, table, epochs=2, **held_out)
        held_out = {}
        assert [record.loss for record in found.history] == [record.loss for record in expected.history]
        assert {w.digest for w in found.stats.workers} == {w.digest for w in expected.stats.workers}
        assert found.stats.rows_trained == 2 * ROWS
    for ours, theirs in zip(
        there.network.state_dict().values(), here.network.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_network_larger_than_a_function_may_be(connect, table) -> None:
    model = make_model(
        width=6_000_000, momentum=0.0
    )  # with it, more would come back than the server's memory holds
    assert sum(p.nbytes for p in model.network.parameters()) > 128 << 20
    fitted = fit(model, table.limit(10), epochs=1)
    assert fitted.stats.rows_trained == 10


def test_callbacks_hear_of_all_epochs_in_order(table) -> None:
    heard = []

    class Told(Callback):
        def on_start(self, run) -> None:
            heard.append(run.workers)

        def on_epoch(self, record) -> None:
            heard.append(record.epoch)

    model = make_model()
    model.fit(table, features="x", label="y", batch_size=5, workers=WORKERS, epochs=3, callbacks=[Told()])
    assert heard == [WORKERS, 0, 1, 2]


def wrong(outputs, labels):
    raise KeyError("no such thing")


def test_the_users_error_comes_back_by_name(table) -> None:
    with pytest.raises(UserCodeError, match=r"^KeyError: 'no such thing'\n[\s\S]*in wrong"):
        fit(make_model(loss=wrong), table)


def test_what_a_classic_session_is_needed_for(table, tmp_path) -> None:
    with pytest.raises(OptionError, match="min_workers: expected None in Spark Connect"):
        fit(make_model(), table, min_workers=1)
    with pytest.raises(ClusterError, match=r"write_shards: [\s\S]*classic session"):
        write_shards(table, tmp_path / "shards")
    with pytest.raises(ClusterError, match="workers: expected at most 2, the tasks that the server can run"):
        make_model().fit(table, features="x", label="y", workers=3)


def test_a_killed_worker_and_all_others_go_on_from_the_newest_checkpoint(
    fit_classic, table, tmp_path
) -> None:
    tmp_path.joinpath("faults").mkdir()
    faults = Faults(tmp_path / "faults").record(lambda outputs, labels: labels.tolist()).kill(rank=1, call=20)
    policy = Checkpoints(uri=str(tmp_path / "run"), every_steps=4)
    model = make_model(loss=faults.wrap(nn.CrossEntropyLoss()))
    fitted = fit(model, table, epochs=4, checkpoints=policy)
    undisturbed = fit_classic(make_model(), epochs=4)
    assert {w.digest for w in fitted.stats.workers} == {w.digest for w in undisturbed.stats.workers}
    calls = [call for call in faults.calls() if call.rank == 1]
    assert len({call.pid for call in calls}) == 2
    assert len(calls) < 20 + 36, "it did not begin anew"


def test_a_run_is_resumed(table, tmp_path) -> None:
    policy = Checkpoints(uri=str(tmp_path / "run"), every_steps=3)
    model = make_model()
    expected = fit(model, table, epochs=2, checkpoints=policy)
    assert expected.stats.checkpoints > 1
    again = make_model()
    found = fit(again, table, epochs=2, resume_from=latest_checkpoint(tmp_path / "run"))
    assert {w.digest for w in found.stats.workers} == {w.digest for w in expected.stats.workers}


def slow_then_wrong(outputs, labels):
    if current_rank() == 1:
        raise KeyError("no such thing")
    time.sleep(600)


def test_a_worker_that_hangs_does_not_keep_the_others_error(table) -> None:
    with pytest.raises(UserCodeError, match="KeyError: 'no such thing'"):
        fit(make_model(loss=slow_then_wrong), table, heartbeat_timeout_seconds=5.0)
