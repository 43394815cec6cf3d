"""Checkpoints during a fit, and a fit that goes on from one as if nothing had been."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fatwood import (
    AllReduce,
    Checkpoints,
    DiLoCo,
    FixedThreshold,
    GradientSharing,
    LookAhead,
    ParameterAveraging,
    SparkModel,
    latest_checkpoint,
)
from fatwood.errors import OptionError, StorageError, UserCodeError, WorkerLost
from fatwood.snapshots import list_snapshots, read_snapshot, snapshot_uri, write_snapshot
from fatwood.spark.checkpointing import CheckpointWriter, resume
from fatwood.testing.faults import Faults

WORKERS, ROWS, BATCH = 2, 100, 5
CALLS = ROWS // WORKERS // BATCH
"""Minibatches of a worker in an epoch."""
LOSS = nn.CrossEntropyLoss()
ADAM = partial(torch.optim.Adam, lr=0.02)
SHARING = GradientSharing(threshold=FixedThreshold(tau=1e-3))
STRATEGIES = {
    "all-reduce": (AllReduce(), 3),
    "averaging": (ParameterAveraging(every=3), 1),
    "sharing": (SHARING, 3),
    "stale and ahead": (
        GradientSharing(threshold=FixedThreshold(tau=1e-3), staleness=1, ahead=LookAhead()),
        3,
    ),
    "diloco": (DiLoCo(every=2, outer_momentum=0.5), 2),
}
"""With how many steps between two checkpoints."""

on_spark = pytest.mark.spark


def make_network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.25), nn.Linear(8, 3))


def make_model(loss=LOSS, strategy=SHARING, *, network=None, optimizer=ADAM) -> SparkModel:
    return SparkModel(network or make_network(), loss=loss, optimizer=optimizer, strategy=strategy)


def fit(model, df, **options):
    options = {"workers": WORKERS, "batch_size": BATCH, "epochs": 2, "progress": False} | options
    return model.fit(df, features="x", label="y", **options)


def bits(model) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.network.state_dict().items()}


def losses(fit) -> list[tuple[int, float, int, tuple[int, ...]]]:
    return [(r.epoch, r.loss, r.rows, r.rows_of_worker) for r in fit.history]


def assert_nothing_lost(fit, epochs: int = 2) -> None:
    stats = fit.stats
    assert stats.rows_trained == stats.rows_expected == ROWS * epochs
    assert (stats.rows_lost, stats.rows_trained_twice) == (0, 0)
    assert stats.digest_equal


@pytest.fixture(scope="module")
def df(spark):
    return spark.range(0, ROWS, 1, 4).selectExpr("id / 100 x", "int(id % 3) y").cache()


@pytest.fixture
def folder(tmp_path) -> str:
    return str(tmp_path / "checkpoints")


@pytest.fixture
def broken_off(df, tmp_path, folder):
    """Lets a fit write checkpoints and fail at a minibatch of worker 0."""

    def run(call: int, strategy=SHARING, *, every_steps: int = 3, keep: int = 1000, **options) -> None:
        marks = tmp_path / f"marks-{call}"
        marks.mkdir()
        loss = Faults(marks).fail(KeyError("broken off"), rank=0, call=call).wrap(LOSS)
        policy = Checkpoints(uri=folder, every_steps=every_steps, keep=keep)
        with pytest.raises(UserCodeError, match="broken off"):
            fit(make_model(loss, strategy), df, checkpoints=policy, **options)

    return run


# --- the same bits ----------------------------------------------------------------------------------------------


@on_spark
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_to_stop_and_go_on_gives_the_same_bits_as_not_to_stop(
    df, nothing_left, tmp_path, folder, broken_off, name
) -> None:
    strategy, every_steps = STRATEGIES[name]
    undisturbed = make_model(strategy=strategy)
    first = losses(fit(undisturbed, df))
    first_bits = bits(undisturbed)
    second = losses(fit(undisturbed, df, epochs=1))
    for epoch, call in ((0, CALLS), (1, 2 * CALLS - 2)):  # late enough for one to have come
        broken_off(call, strategy, every_steps=every_steps)
        where = resume(str(latest_checkpoint(folder)), tmp_path / f"look-{call}").ledger
        assert (where.epoch, where.agreements % every_steps) == (epoch, 0)
        assert 0 < where.positions[0] < ROWS // WORKERS, "in the middle of an epoch"
        model = make_model(strategy=strategy, network=make_network())
        nn.init.ones_(model.network[0].weight)  # whatever it was
        resumed = fit(model, df, resume_from=folder)
        assert_nothing_lost(resumed)
        assert losses(resumed) == first
        assert bits(model) == first_bits
        assert model.epochs_trained == 2
        assert losses(fit(model, df, epochs=1)) == second
        assert bits(model) == bits(undisturbed)
        shutil.rmtree(folder)


@on_spark
def test_a_fit_goes_on_from_any_of_its_checkpoints_given_as_a_file(
    df, nothing_left, folder, broken_off
) -> None:
    undisturbed = make_model()
    fit(undisturbed, df)
    broken_off(CALLS + 6, every_steps=4)
    snapshots = list_snapshots(folder)
    assert [step for step, _ in snapshots][:3] == [4, 8, 12]
    for _, uri in snapshots[:3]:
        model = make_model()
        assert_nothing_lost(fit(model, df, resume_from=Path(uri)))
        assert bits(model) == bits(undisturbed)


@on_spark
def test_a_fit_that_goes_on_writes_on_in_the_same_folder_and_may_go_on_again(
    df, nothing_left, tmp_path, folder, broken_off
) -> None:
    undisturbed = make_model()
    fit(undisturbed, df)
    broken_off(6, every_steps=2)
    first = max(step for step, _ in list_snapshots(folder))
    marks = tmp_path / "again"
    marks.mkdir()
    loss = Faults(marks).fail(KeyError("again"), rank=1, call=6).wrap(LOSS)
    policy = Checkpoints(uri=folder, every_steps=2, keep=1000)
    with pytest.raises(UserCodeError, match="again"):
        fit(make_model(loss), df, checkpoints=policy, resume_from=folder)
    second = max(step for step, _ in list_snapshots(folder))
    assert first < second <= first + 6
    model = make_model()
    fitted = fit(model, df, checkpoints=policy, resume_from=folder)
    assert bits(model) == bits(undisturbed)
    assert max(step for step, _ in list_snapshots(folder)) == 2 * CALLS
    assert fitted.stats.checkpoints == (2 * CALLS - second) // 2


@on_spark
def test_a_second_fit_goes_on_from_its_checkpoint(df, nothing_left, tmp_path, folder) -> None:
    undisturbed = make_model()
    fit(undisturbed, df)
    second = losses(fit(undisturbed, df))
    tmp_path.joinpath("marks").mkdir()
    model = make_model()
    fit(model, df)
    model.loss = Faults(tmp_path / "marks").fail(KeyError("broken off"), rank=0, call=CALLS + 6).wrap(LOSS)
    with pytest.raises(UserCodeError, match="broken off"):
        fit(model, df, checkpoints=Checkpoints(uri=folder, every_steps=3))
    elsewhere = make_model()
    assert losses(fit(elsewhere, df, resume_from=folder)) == second
    assert [epoch for epoch, *_ in second] == [2, 3]
    assert bits(elsewhere) == bits(undisturbed)
    assert elsewhere.epochs_trained == 4


@on_spark
def test_checkpoints_do_not_change_the_training(df, nothing_left, folder) -> None:
    without, having = make_model(), make_model()
    fit(without, df)
    fit(having, df, checkpoints=Checkpoints(uri=folder, every_steps=1))
    assert bits(having) == bits(without)


# --- when and how many ------------------------------------------------------------------------------------------


@on_spark
def test_every_so_many_steps_and_the_last_ones_stay(df, nothing_left, folder) -> None:
    fitted = fit(make_model(), df, checkpoints=Checkpoints(uri=folder, every_steps=3, keep=2))
    assert fitted.stats.checkpoints == 2 * CALLS // 3
    assert [step for step, _ in list_snapshots(folder)] == [15, 18]
    assert sorted(os.listdir(folder)) == [os.path.basename(uri) for _, uri in list_snapshots(folder)]


@on_spark
def test_every_so_many_seconds(df, nothing_left, tmp_path, folder) -> None:
    tmp_path.joinpath("faults").mkdir()
    loss = Faults(tmp_path / "faults").delay(0.1).wrap(LOSS)
    policy = Checkpoints(uri=folder, every_seconds=0.35, keep=1000)
    fitted = fit(make_model(loss), df, checkpoints=policy)
    assert 2 <= fitted.stats.checkpoints <= fitted.stats.seconds / 0.35
    assert len(list_snapshots(folder)) == fitted.stats.checkpoints
    seldom = Checkpoints(uri=tmp_path / "seldom", every_seconds=1000)
    assert fit(make_model(), df, checkpoints=seldom).stats.checkpoints == 0
    assert list_snapshots(tmp_path / "seldom") == []


# --- what cannot work -------------------------------------------------------------------------------------------


def jobs_of(spark) -> set[int]:
    return set(spark.sparkContext.statusTracker().getJobIdsForGroup(None))


WRONG = [
    ({"batch_size": 7}, "batch_size: expected 5 as in .*, received 7"),
    ({"epochs": 3}, "epochs: expected 2 as in .*, received 3"),
    ({"seed": 1}, "seed: expected 0 as in .*, received 1"),
    ({"shuffle": False}, "shuffle: expected True as in .*, received False"),
    ({"on_bad_row": "skip"}, "on_bad_row: expected 'error' as in .*, received 'skip'"),
    ({"workers": 3}, "workers: expected 2 .* received 3"),
]


@on_spark
def test_a_run_goes_on_only_as_it_began(spark, df, nothing_left, folder, broken_off) -> None:
    broken_off(6, every_steps=2)
    for options, text in WRONG:
        with pytest.raises(OptionError, match=text):
            fit(make_model(), df, resume_from=folder, **options)
    with pytest.raises(OptionError, match=r"strategy: expected .*GradientSharing.*, received .*AllReduce"):
        fit(make_model(strategy=AllReduce()), df, resume_from=folder)
    with pytest.raises(OptionError, match=rf"rows: expected {ROWS} as in .*, received {ROWS - 10}"):
        fit(make_model(), df.limit(ROWS - 10), resume_from=folder)
    other = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 3))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(OptionError, match="do not fit the network"):
        fit(make_model(network=other), df, resume_from=folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@on_spark
def test_where_there_is_nothing_to_go_on_from(spark, df, nothing_left, tmp_path) -> None:
    before = jobs_of(spark)
    for place in (tmp_path, tmp_path / "not there"):
        with pytest.raises(
            StorageError, match=r"resume_from: expected a checkpoint or a folder with one"
        ) as caught:
            fit(make_model(), df, resume_from=place)
        assert "latest_checkpoint" in str(caught.value.hint)
    with pytest.raises(StorageError, match="fatwood-checkpoint-000000000009"):
        fit(make_model(), df, resume_from=snapshot_uri(tmp_path, 9))
    assert jobs_of(spark) == before


@on_spark
def test_a_damaged_checkpoint_is_named(spark, df, nothing_left, folder, broken_off) -> None:
    broken_off(6, every_steps=2)
    path = Path(str(latest_checkpoint(folder)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = jobs_of(spark)
    with pytest.raises(StorageError):
        fit(make_model(), df, resume_from=folder)
    assert jobs_of(spark) == before


@on_spark
def test_a_folder_that_cannot_be_written_is_said_before_any_job(spark, df, nothing_left, tmp_path) -> None:
    tmp_path.joinpath("file").touch()
    before = jobs_of(spark)
    with pytest.raises(StorageError, match="file"):
        fit(make_model(), df, checkpoints=Checkpoints(uri=tmp_path / "file" / "folder", every_steps=1))
    assert jobs_of(spark) == before


@on_spark
def test_a_folder_with_checkpoints_of_another_run_is_refused(
    spark, df, nothing_left, folder, broken_off
) -> None:
    broken_off(8, every_steps=2)
    policy = Checkpoints(uri=folder, every_steps=2)
    snapshots = list_snapshots(folder)
    before, names = jobs_of(spark), sorted(os.listdir(folder))
    with pytest.raises(OptionError, match="checkpoints: expected a folder without checkpoints") as caught:
        fit(make_model(), df, checkpoints=policy)
    assert snapshots[-1][1] in str(caught.value.hint)
    with pytest.raises(OptionError, match="checkpoints: expected a folder without checkpoints"):
        fit(make_model(), df, checkpoints=policy, resume_from=snapshots[0][1])
    assert jobs_of(spark) == before
    assert sorted(os.listdir(folder)) == names


# --- when things break ------------------------------------------------------------------------------------------


class Once(logging.Handler):
    """Calls a function at the first message that begins with a word."""

    def __init__(self, word: str, call: Callable[[], None]) -> None:
        super().__init__()
        self.word, self.call, self.called = word, call, False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.called and record.getMessage().startswith(self.word):
            self.called = True
            self.call()


@on_spark
def test_a_store_that_fails_later_is_only_a_warning(df, nothing_left, folder, caplog) -> None:
    def lose() -> None:
        shutil.rmtree(folder)
        Path(folder).touch()

    log, losing = logging.getLogger("fatwood.checkpoints"), Once("wrote", lose)
    log.addHandler(losing)
    try:
        with caplog.at_level(logging.INFO, logger=log.name):
            fitted = fit(make_model(), df, checkpoints=Checkpoints(uri=folder, every_steps=4))
    finally:
        log.removeHandler(losing)
    assert_nothing_lost(fitted)
    assert fitted.stats.checkpoints == 1
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert sum("was not written: " in text for text in warnings) == 2 * CALLS // 4 - 1
    assert any("checkpoint after 8 agreements was not written" in text for text in warnings)


@on_spark
def test_a_killed_worker_and_checkpoints_all_the_time(df, nothing_left, tmp_path, folder) -> None:
    tmp_path.joinpath("faults").mkdir()
    faults = Faults(tmp_path / "faults").kill(rank=1, call=5)
    policy = Checkpoints(uri=folder, every_steps=1, keep=1000)
    fitted = fit(make_model(faults.wrap(LOSS)), df, checkpoints=policy)
    assert_nothing_lost(fitted)
    assert fitted.stats.rejoined == 1
    snapshots = list_snapshots(folder)
    assert fitted.stats.checkpoints == len(snapshots)
    for step, uri in (snapshots[3], snapshots[len(snapshots) // 2], snapshots[-1]):
        model = make_model()
        resumed = fit(model, df, resume_from=uri)
        assert_nothing_lost(resumed)
        assert resumed.stats.incidents == ()
        assert resumed.stats.workers[0].agreements <= fitted.stats.workers[0].agreements - step + CALLS


@on_spark
def test_a_checkpoint_without_the_part_of_a_lost_worker_is_enough(
    df, nothing_left, tmp_path, folder, broken_off
) -> None:
    broken_off(CALLS + 6)
    uri = str(latest_checkpoint(folder))
    with open(uri, "rb") as file:
        snapshot = read_snapshot(file, tmp_path / "parts")
    assert set(snapshot.parts) == {"shared", "worker-0", "worker-1"}
    for lost in (0, 1):
        parts = {name: path for name, path in snapshot.parts.items() if name != f"worker-{lost}"}
        without = snapshot_uri(tmp_path / "parts", lost)
        with open(without, "wb") as file:
            write_snapshot(file, manifest=snapshot.manifest, parts=parts)
        model = make_model()
        assert_nothing_lost(fit(model, df, resume_from=without))
        assert_nothing_lost(fit(model, df, epochs=1), epochs=1)


@on_spark
def test_when_nobody_is_left_the_error_says_how_to_go_on(df, nothing_left, tmp_path, folder) -> None:
    tmp_path.joinpath("faults").mkdir()
    faults = Faults(tmp_path / "faults")
    for rank in range(WORKERS):
        faults.kill(rank=rank, call=CALLS + 5)
    with pytest.raises(WorkerLost, match="no worker is left") as caught:
        fit(make_model(faults.wrap(LOSS)), df, checkpoints=Checkpoints(uri=folder, every_steps=4))
    assert f"resume_from={str(folder)!r}" in str(caught.value.hint)
    undisturbed, model = make_model(), make_model()
    fit(undisturbed, df)
    assert_nothing_lost(fit(model, df, resume_from=folder))
    assert bits(model) == bits(undisturbed)


SCRIPT = """
import sys, time
from functools import partial
import torch
from torch import nn
from pyspark.sql import SparkSession
from fatwood import Checkpoints, FixedThreshold, GradientSharing, SparkModel

def slow(output, label):
    time.sleep(0.1)
    return nn.functional.cross_entropy(output, label)

options = {
    "spark.driver.host": "127.0.0.1", "spark.log.level": "OFF", "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false", "spark.local.dir": sys.argv[1],
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -Djava.io.tmpdir=" + sys.argv[1],
}
spark = SparkSession.builder.master("local[2]").config(map=options).getOrCreate()
df = spark.range(0, 100, 1, 4).selectExpr("id / 100 x", "int(id % 3) y")
torch.manual_seed(1)
network = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.25), nn.Linear(8, 3))
model = SparkModel(
    network, loss=slow, optimizer=partial(torch.optim.Adam, lr=0.02),
    strategy=GradientSharing(threshold=FixedThreshold(tau=1e-3)),
)
policy = Checkpoints(uri=sys.argv[2], every_steps=2)
model.fit(df, features="x", label="y", workers=2, batch_size=5, epochs=2, checkpoints=policy, progress=False)
"""


@on_spark
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_driver_loses_only_what_came_after_the_last_checkpoint(
    df, nothing_left, tmp_path, folder
) -> None:
    work, script = tmp_path / "work", tmp_path / "train.py"
    work.mkdir()
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "TMPDIR": str(work),
        "PYSPARK_PYTHON": sys.executable,
    }
    driver = subprocess.Popen([sys.executable, str(script), str(work), folder], env=environment)
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 100
        while len(list_snapshots(folder)) < 2:
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        family = psutil.Process(driver.pid).children(recursive=True)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    assert len(family) >= 3, "JVM, Python's daemon and workers"
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
    step = max(step for step, _ in list_snapshots(folder))
    assert step < 2 * CALLS, "it was killed on the way"
    undisturbed, model = make_model(), make_model()
    expected = fit(undisturbed, df)
    resumed = fit(model, df, resume_from=folder)
    assert_nothing_lost(resumed)
    assert losses(resumed) == losses(expected)
    assert bits(model) == bits(undisturbed)


# --- what the driver collects, without Spark --------------------------------------------------------------------


RANKS = (0, 1, 2)


def sent(number: int, rank: int, leader: int) -> list[tuple[str, int, int]]:
    """What a worker sends of a checkpoint, in order."""
    return [("shared", number, rank)] * (rank == leader) + [("own", number, rank), ("report", number, rank)]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_checkpoint_is_written_when_all_that_are_left_have_sent_theirs(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("collected")
    numbers = (3, 6, 9)
    queues = {rank: [part for number in numbers for part in sent(number, rank, 0)] for rank in RANKS}
    lost = data.draw(st.sampled_from([None, 1, 2]), label="lost")
    if lost is not None:  # it sends up to somewhere, and the others may have told nothing until then
        del queues[lost][data.draw(st.integers(0, len(queues[lost])), label="after") :]
        queues[lost].append(("lost", 0, lost))
    with CheckpointWriter(Checkpoints(uri=folder, every_steps=3, keep=1000), {"workers": 3}) as writer:
        while any(queues.values()):
            rank = data.draw(st.sampled_from([r for r in RANKS if queues[r]]), label="next")
            kind, number, _ = queues[rank].pop(0)
            if kind == "lost":
                writer.lost(rank)
            elif kind == "report":
                writer.reported(rank, number, RANKS)
            else:
                path = folder / f"{kind}-{number}-{rank}"
                path.write_bytes(f"{kind} {number} {rank}".encode())
                writer.add_part(rank, f"checkpoint-{number}-{kind}", path)
    found = list_snapshots(folder)
    assert found[-1][0] == 9, "the last one is written, whatever was lost on the way"
    assert {step for step, _ in found} <= set(numbers)
    assert writer.written == len(found)
    assert writer.last == found[-1][1]
    for step, uri in found:
        with open(uri, "rb") as file:
            snapshot = read_snapshot(file, tmp_path_factory.mktemp("read"))
        assert snapshot.manifest == {"about": {"workers": 3}, "agreements": step}
        parts = {name: path.read_text() for name, path in snapshot.parts.items()}
        assert parts.pop("shared") == f"shared {step} 0"
        assert parts.items() <= {f"worker-{rank}": f"own {step} {rank}" for rank in RANKS}.items()
        assert {f"worker-{rank}" for rank in RANKS if rank != lost} <= parts.keys()
    left = {path.name for path in folder.iterdir()} - {os.path.basename(uri) for _, uri in found}
    assert left == set(), "what was collected in vain is removed"


def test_a_worker_that_is_back_is_waited_for_again(tmp_path) -> None:
    def part(rank: int, number: int, kind: str) -> None:
        path = tmp_path / f"{kind}-{number}-{rank}"
        path.write_bytes(b"x")
        writer.add_part(rank, f"checkpoint-{number}-{kind}", path)

    with CheckpointWriter(Checkpoints(uri=tmp_path / "to", every_steps=1), {}) as writer:
        writer.lost(1)
        writer.returned(1)
        part(0, 4, "shared")
        part(0, 4, "own")
        writer.reported(0, 4, (0, 1))
        part(1, 4, "own")
        writer.reported(1, 4, (0, 1))
    with open(str(writer.last), "rb") as file:
        assert set(read_snapshot(file, tmp_path / "read").parts) == {"shared", "worker-0", "worker-1"}
    assert writer.written == 1
