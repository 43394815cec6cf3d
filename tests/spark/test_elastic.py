"""A fit goes on when workers are killed, hang, or come twice; and ends with one clear error when it cannot."""

from __future__ import annotations

import logging
import os
import signal
import socket
import ssl
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from fatwood import (
    AllReduce,
    DiLoCo,
    FixedThreshold,
    GradientSharing,
    LookAhead,
    ParameterAveraging,
    SparkModel,
)
from fatwood.errors import AuthenticationError, OptionError, StorageError, UserCodeError, WorkerLost
from fatwood.exchange import Event
from fatwood.exchange.auth import CONTROL, dial
from fatwood.spark import elasticity as elasticity_module
from fatwood.spark import job as job_module
from fatwood.spark.action import BackgroundAction
from fatwood.spark.watch import Watch
from fatwood.spark.workers import WorkerJobs
from fatwood.testing.faults import Faults

WORKERS, ROWS, BATCH = 3, 120, 5
CALLS = ROWS // WORKERS // BATCH
"""Minibatches of a worker in an epoch."""

STRATEGIES = {
    "all-reduce": AllReduce(),
    "averaging": ParameterAveraging(every=3),
    "sharing": GradientSharing(threshold=FixedThreshold(tau=1e-3)),
    "stale": GradientSharing(threshold=FixedThreshold(tau=1e-3), staleness=1),
    "diloco": DiLoCo(every=2, threshold=FixedThreshold(tau=1e-3), ahead=LookAhead()),
}
on_spark = pytest.mark.spark


def make_network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1))


def distance(output, label):
    return nn.functional.mse_loss(output, label / 100)


def numbers(output, label):
    """The label is the row's number."""
    return [int(number) for number in label.reshape(-1)]


class Gate:
    """A loss that waits at one worker's minibatch until the test lets it go on."""

    def __init__(self, folder: Path, loss, *, rank: int, call: int) -> None:
        self.folder, self.loss, self.rank, self.call, self.calls = str(folder), loss, rank, call, 0

    def __call__(self, output, label):
        from fatwood.train import current_rank

        if current_rank() == self.rank:
            self.calls += 1
            deadline = time.monotonic() + 100
            while self.calls == self.call and not self.is_open and time.monotonic() < deadline:
                Path(self.folder, "waits").touch()
                time.sleep(0.01)
        return self.loss(output, label)

    @property
    def is_open(self) -> bool:
        return Path(self.folder, "open").exists()

    def let_go(self) -> None:
        Path(self.folder, "open").touch()


class Late:
    """Makes the optimizer; a worker that comes after a fault waits with it until the test lets it go on."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self, parameters):
        deadline = time.monotonic() + 100
        while (
            any(Path(self.folder).glob("kill-*"))
            and not Path(self.folder, "come").exists()
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    def let_come(self) -> None:
        Path(self.folder, "come").touch()


class Busy:
    """A cluster that has no slot for a lost worker's job until it is let go; a local session always has one."""

    def __init__(self, monkeypatch) -> None:
        self._held: list[tuple[WorkerJobs, int]] = []
        self._restart = WorkerJobs.restart
        monkeypatch.setattr(WorkerJobs, "restart", lambda jobs, rank: self._held.append((jobs, rank)))

    def let_go(self) -> None:
        for jobs, rank in self._held:
            self._restart(jobs, rank)


@pytest.fixture
def busy(monkeypatch) -> Busy:
    return Busy(monkeypatch)


@pytest.fixture(scope="module")
def df(spark):
    return spark.range(0, ROWS, 1, 4).selectExpr("float(id / 120) x", "float(id) y").cache()


@pytest.fixture
def faults(tmp_path) -> Faults:
    tmp_path.joinpath("faults").mkdir()
    return Faults(tmp_path / "faults").record(numbers)


def make_model(loss=distance, *, network=None, strategy=None, optimizer=None) -> SparkModel:
    return SparkModel(
        network or make_network(),
        loss=loss,
        optimizer=optimizer or partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        strategy=strategy or STRATEGIES["sharing"],
    )


def fit(df, loss=distance, *, model=None, network=None, strategy=None, optimizer=None, **options):
    model = model or make_model(loss, network=network, strategy=strategy, optimizer=optimizer)
    options = {"workers": WORKERS, "batch_size": BATCH, "progress": False} | options
    return model.fit(df, features="x", label="y", **options)


def kinds(fit) -> list[str]:
    return [incident.kind for incident in fit.stats.incidents]


def assert_nothing_lost(fit, epochs: int) -> None:
    stats = fit.stats
    assert stats.rows_trained == stats.rows_expected == ROWS * epochs
    assert (stats.rows_lost, stats.rows_trained_twice) == (0, 0)
    assert [record.rows for record in fit.history] == [ROWS] * epochs
    assert [worker.rank for worker in stats.workers] == list(range(WORKERS))
    assert stats.digest_equal


# --- killed -----------------------------------------------------------------------------------------------------


@on_spark
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("all-reduce", 4),
        ("averaging", 4),
        ("sharing", 4),
        ("sharing", CALLS + 4),
        ("stale", CALLS + 4),
        ("diloco", CALLS + 4),
    ],
)
def test_a_killed_worker_is_replaced_and_no_row_is_lost(df, nothing_left, faults, name, call) -> None:
    faults.kill(rank=1, call=call)
    fitted = fit(df, faults.wrap(distance), strategy=STRATEGIES[name], epochs=2)
    assert faults.struck == {f"kill-rank1-call{call}"}
    assert_nothing_lost(fitted, epochs=2)
    assert kinds(fitted) == ["lost", "rejoined"]
    assert (fitted.stats.workers_lost, fitted.stats.rejoined) == (1, 1)
    lost, back = fitted.stats.incidents
    assert (lost.rank, back.rank) == (1, 1)
    assert lost.text.startswith("worker 1 on host 127.0.0.1 was lost: ")
    assert lost.seconds <= back.seconds
    calls = list(faults.calls())
    computed = Counter(key for each in calls for key in each.keys)
    assert set(computed) == set(range(ROWS))
    assert min(computed.values()) == 2
    again = sum(computed.values()) - 2 * ROWS
    in_flight = BATCH * (STRATEGIES[name].every + STRATEGIES[name].staleness)
    assert 0 <= again <= in_flight, "what is computed again is at most what was not agreed on"
    assert len({each.pid for each in calls if each.rank == 1}) == 2
    assert all(len({each.pid for each in calls if each.rank == rank}) == 1 for rank in (0, 2))


@on_spark
def test_the_leader_and_another_are_killed_at_once(df, nothing_left, faults) -> None:
    faults.kill(rank=0, call=4).kill(rank=2, call=4)
    fitted = fit(df, faults.wrap(distance), epochs=2)
    assert_nothing_lost(fitted, epochs=2)
    assert Counter(kinds(fitted)) == {"lost": 2, "rejoined": 2}
    assert {incident.rank for incident in fitted.stats.incidents} == {0, 2}


@on_spark
def test_bad_rows_of_a_killed_worker_are_counted_once(spark, nothing_left, tmp_path) -> None:
    df = spark.range(0, ROWS, 1, 4).selectExpr(
        "if(id % 40 = 7, double('nan'), float(id / 120)) x", "if(id % 30 = 11, 3, int(id % 3)) y"
    )
    bad = ROWS // 40 + ROWS // 30
    faults = Faults(tmp_path).kill(rank=1, call=CALLS + 2)
    loss = nn.CrossEntropyLoss()
    network = nn.Sequential(nn.Linear(1, 3))
    fitted = fit(df, faults.wrap(loss), network=network, epochs=2, on_bad_row="skip")
    stats = fitted.stats
    assert kinds(fitted) == ["lost", "rejoined"]
    assert (stats.rows_skipped, stats.rows_lost, stats.rows_trained_twice) == (bad, 0, 0)
    assert stats.rows_trained == 2 * (ROWS - bad)
    assert stats.digest_equal


@on_spark
def test_the_leader_is_killed_while_it_delivers(df, nothing_left, seen) -> None:
    def kill(event: Event) -> None:
        if event.kind == "blob" and event.body["name"] == "shared" and event.rank == 0:
            with suppress(ProcessLookupError):
                os.kill(seen.pids(0)[-1], signal.SIGKILL)

    seen.call = kill
    model = make_model()
    stats = fit(df, model=model).stats
    assert stats.rows_trained == stats.rows_expected == ROWS
    assert (stats.rows_lost, stats.rows_trained_twice) == (0, 0)
    assert stats.digest_equal
    seen.call = None
    again = fit(df, model=model)  # whoever has no state of its own gets another's
    assert_nothing_lost(again, epochs=1)
    assert [record.epoch for record in again.history] == [1]


@on_spark
@pytest.mark.slow
def test_a_worker_is_killed_again_and_again_but_trains_in_between(df, nothing_left, faults) -> None:
    faults.delay(0.15).kill(rank=1, call=2, times=5)  # slowly, so that the driver hears of each minibatch
    fitted = fit(df, faults.wrap(distance), epochs=1)
    assert len(faults.struck) == 5
    assert_nothing_lost(fitted, epochs=1)
    assert kinds(fitted) == ["lost", "rejoined"] * 5


@on_spark
@pytest.mark.parametrize("workers", [1, 3])
def test_when_all_are_killed_at_once_nobody_knows_the_state(spark, df, nothing_left, faults, workers) -> None:
    for rank in range(workers):
        faults.kill(rank=rank, call=4)
    network = make_network()
    with pytest.raises(
        WorkerLost, match=r"(^|\n\n)no worker is left that knows the state of the training: worker"
    ) as caught:
        fit(df, faults.wrap(distance), network=network, workers=workers)
    for rank in range(workers):
        assert f"worker {rank} on host 127.0.0.1 was lost: " in caught.value.message
    assert "checkpoints=Checkpoints(uri=" in str(caught.value.hint)
    untouched = make_network().state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in network.state_dict().items())
    assert list(spark.sparkContext.statusTracker().getActiveJobsIds()) == []
    assert_nothing_lost(fit(df), epochs=1)  # its workers find the folders of the killed ones


@on_spark
def test_a_worker_that_only_dies_ends_the_fit_with_its_reason(df, nothing_left, faults) -> None:
    faults.kill(rank=1, call=1, times=9)
    text = (
        r"^a Python worker was killed or crashed: [\s\S]*"
        r"\n\nworker 1 on host 127.0.0.1 was lost: .* \(4 times in a row, without a row trained in between\)"
    )
    with pytest.raises(WorkerLost, match=text) as caught:
        fit(df, faults.wrap(distance))
    assert "pass checkpoints=Checkpoints(uri=..., every_seconds=60)" in str(caught.value.hint)
    assert len(faults.struck) == 4
    assert_nothing_lost(fit(df), epochs=1)


# --- hanging and slow -------------------------------------------------------------------------------------------


@on_spark
def test_a_stopped_worker_is_replaced_and_the_others_do_not_wait_long(df, nothing_left, seen, faults) -> None:
    faults.delay(0.1).stop(rank=1, call=4)
    limit = 2.0
    fitted = fit(df, faults.wrap(distance), epochs=2, heartbeat_timeout_seconds=limit)
    assert_nothing_lost(fitted, epochs=2)
    assert kinds(fitted) == ["lost", "rejoined"]
    assert [event.rank for event in seen.of("lost")] == [1]
    times = sorted(call.seconds for call in faults.calls() if call.rank == 0)[:CALLS]
    assert limit * 0.5 < max(b - a for a, b in pairwise(times)) < limit + 2
    stopped, replacement = seen.pids(1)
    assert stopped != replacement
    deadline = time.monotonic() + 10  # Spark destroys it when the job was killed
    while psutil.pid_exists(stopped) and psutil.Process(stopped).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@on_spark
def test_one_second_without_a_sign_of_life_is_long_enough_for_living_workers(
    df, nothing_left, faults
) -> None:
    faults.delay(0.4)
    fitted = fit(df, faults.wrap(distance), heartbeat_timeout_seconds=1.0)
    assert_nothing_lost(fitted, epochs=1)
    assert kinds(fitted) == []


@on_spark
def test_a_slow_worker_only_delays_and_is_named(df, nothing_left, faults) -> None:
    faults.delay(0.05).delay(0.15, rank=2)
    fitted = fit(df, faults.wrap(distance))
    assert_nothing_lost(fitted, epochs=1)
    assert kinds(fitted) == []
    for worker in fitted.stats.workers[:2]:
        waited = worker.waited_seconds
        assert max(waited, key=lambda rank: waited[rank]) == 2
        assert waited[2] > CALLS * 0.1 * 0.7
        assert waited[2] <= worker.seconds["exchange"] + 0.1  # the digests are compared outside of a phase
    assert fitted.stats.workers[2].waited_seconds.get(0, 0.0) < CALLS * 0.1


# --- too few ----------------------------------------------------------------------------------------------------


@on_spark
def test_too_few_workers_are_held_and_then_starve(df, nothing_left, busy, faults, caplog) -> None:
    faults.kill(rank=1, call=4)
    with (
        caplog.at_level(logging.INFO, logger="fatwood.job"),
        pytest.raises(
            WorkerLost, match=r"(^|\n\n)workers \[1\] of 3 did not come back within 1 s: worker 1 on host"
        ),
    ):
        fit(df, faults.wrap(distance), min_workers=WORKERS, rejoin_timeout_seconds=1.0)
    said = [record.getMessage() for record in caplog.records]
    assert "training waits: workers [0, 2] are there, min_workers=3" in said
    assert_nothing_lost(fit(df), epochs=1)


@on_spark
def test_without_min_workers_the_others_train_their_rows_and_then_starve(
    df, nothing_left, busy, faults
) -> None:
    faults.kill(rank=1, call=4)
    with pytest.raises(
        WorkerLost, match=r"(^|\n\n)workers \[1\] of 3 did not come back within 1 s: "
    ) as caught:
        fit(df, faults.wrap(distance), rejoin_timeout_seconds=1.0)
    assert "checkpoints=" in str(caught.value.hint)
    calls = Counter(call.rank for call in faults.calls())
    assert (calls[0], calls[2]) == (CALLS, CALLS)
    assert_nothing_lost(fit(df), epochs=1)


@on_spark
def test_with_min_workers_the_rows_of_who_stays_away_are_given_up_and_counted(
    df, nothing_left, busy, faults
) -> None:
    faults.kill(rank=1, call=4)
    model = make_model(faults.wrap(distance))
    fitted = fit(df, model=model, min_workers=1, rejoin_timeout_seconds=1.0, epochs=2)
    stats = fitted.stats
    assert kinds(fitted) == ["lost", "abandoned"]
    assert [worker.rank for worker in stats.workers] == [0, 2]
    given_up = (CALLS - 3) * BATCH + CALLS * BATCH
    assert (stats.rows_lost, stats.rows_trained_twice) == (given_up, 0)
    assert stats.rows_trained + stats.rows_lost == stats.rows_expected == 2 * ROWS
    assert stats.digest_equal
    assert f"{given_up} LOST" in str(stats)
    again = fit(df, model=model)  # worker 1 has no state from the first fit and gets another's
    assert_nothing_lost(again, epochs=1)
    assert [record.epoch for record in again.history] == [2]


@on_spark
def test_a_worker_that_was_given_up_may_still_come_back(
    df, nothing_left, seen, meanwhile, busy, tmp_path, faults
) -> None:
    gate = Gate(tmp_path, faults.kill(rank=1, call=4).wrap(distance), rank=0, call=CALLS + 3)

    def release() -> None:
        try:
            seen.wait(lambda: any(e.body["abandoned"] for e in seen.of("view")), "worker 1 is given up")
            busy.let_go()
            seen.wait(lambda: seen.of("view")[-1].body["ranks"] == [0, 1, 2], "worker 1 is back")
        finally:
            gate.let_go()

    meanwhile(release)
    fitted = fit(df, gate, min_workers=1, rejoin_timeout_seconds=0.5, epochs=3)
    stats = fitted.stats
    assert kinds(fitted) == ["lost", "abandoned", "rejoined"]
    assert [worker.rank for worker in stats.workers] == [0, 1, 2]
    assert stats.rows_trained + stats.rows_lost == stats.rows_expected
    assert stats.rows_lost == (CALLS - 3) * BATCH, "of the first epoch; the second waits for it again"
    assert [record.rows for record in fitted.history] == [ROWS - stats.rows_lost, ROWS, ROWS]
    assert stats.digest_equal


@on_spark
def test_a_fit_may_begin_with_fewer_workers_than_asked_for(df, nothing_left, monkeypatch, faults) -> None:
    short = partial(elasticity_module.Elasticity, start_timeout_seconds=2.0)
    monkeypatch.setattr(elasticity_module, "Elasticity", short)
    with pytest.raises(Exception, match="workers: expected at most 4"):
        fit(df, workers=5)
    fitted = fit(df, faults.delay(0.1).wrap(distance), workers=5, min_workers=2, rejoin_timeout_seconds=1.0)
    stats = fitted.stats
    assert 2 <= len(stats.workers) <= 4
    assert set(kinds(fitted)) == {"abandoned"}
    assert stats.rows_lost > 0
    assert stats.rows_trained + stats.rows_lost == stats.rows_expected == ROWS
    assert stats.digest_equal


WRONG = [
    ({"min_workers": 0}, r"min_workers: expected a whole number from 1 to workers=3, received 0"),
    ({"min_workers": 4}, r"min_workers: .* received 4"),
    ({"min_workers": 5, "workers": None}, r"min_workers: .* workers=4, received 5"),
    ({"min_workers": True}, r"min_workers: .* received True"),
    ({"min_workers": 1.5}, r"min_workers: .* received 1.5"),
    ({"heartbeat_timeout_seconds": 0}, r"heartbeat_timeout_seconds: expected .* above 0, received 0"),
    ({"heartbeat_timeout_seconds": float("nan")}, r"heartbeat_timeout_seconds: .* received nan"),
    ({"rejoin_timeout_seconds": -1.0}, r"rejoin_timeout_seconds: .* received -1.0"),
    ({"rejoin_timeout_seconds": "60"}, r"rejoin_timeout_seconds: .* received '60'"),
]


@on_spark
@pytest.mark.parametrize(("options", "text"), WRONG, ids=[w[1] for w in WRONG])
def test_wrong_options_are_said_before_any_job(spark, df, nothing_left, options, text) -> None:
    tracker = spark.sparkContext.statusTracker()
    before = set(tracker.getJobIdsForGroup(None))
    with pytest.raises(OptionError, match=text):
        fit(df, **options)
    assert set(tracker.getJobIdsForGroup(None)) == before


# --- encrypted --------------------------------------------------------------------------------------------------


def listening(pids: set[int]) -> set[tuple[str, int]]:
    found = [c for pid in pids for c in psutil.Process(pid).net_connections(kind="inet")]
    return {(c.laddr.ip, c.laddr.port) for c in found if c.status == "LISTEN"}


@on_spark
def test_encrypted_connections_change_nothing_but_the_bytes_on_the_wire(
    df, nothing_left, seen, meanwhile, tmp_path
) -> None:
    pytest.importorskip("cryptography")
    gate = Gate(tmp_path, distance, rank=0, call=4)
    plain = fit(df)
    before, known = listening({os.getpid()}), len(seen.events)
    spoken: set[tuple[str, int]] = set()

    def knock() -> None:
        seen.wait(lambda: "view" in {event.kind for event in seen.events[known:]}, "all workers are there")
        pids = {os.getpid(), *(seen.pids(rank)[-1] for rank in range(WORKERS))}
        try:
            for address in listening(pids) - before:
                with pytest.raises(AuthenticationError, match="encrypt"):
                    dial(*address, bytes(32), CONTROL, peer="a stranger", timeout_seconds=10)
                trusting = ssl.create_default_context()
                trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
                with (
                    socket.create_connection(address, timeout=10) as plain,
                    trusting.wrap_socket(plain) as encrypted,
                ):
                    assert encrypted.version() == "TLSv1.3"
                    with suppress(ssl.SSLError, ConnectionError):  # without the job's certificate
                        assert encrypted.recv(1) == b""
                spoken.add(address)
        finally:
            gate.let_go()

    meanwhile(knock)
    encrypted = fit(df, gate, encrypt=True)
    assert_nothing_lost(encrypted, epochs=1)
    assert encrypted.stats.workers[0].digest == plain.stats.workers[0].digest
    assert len(spoken) == 1 + WORKERS, "the coordinator and all workers"


@on_spark
def test_an_encrypted_fit_survives_a_kill(df, nothing_left, faults) -> None:
    pytest.importorskip("cryptography")
    faults.kill(rank=1, call=4)
    fitted = fit(df, faults.wrap(distance), encrypt=True)
    assert_nothing_lost(fitted, epochs=1)
    assert kinds(fitted) == ["lost", "rejoined"]


# --- ends of other kinds ----------------------------------------------------------------------------------------


@on_spark
def test_the_users_error_after_a_kill_is_still_the_users(df, nothing_left, tmp_path, faults) -> None:
    late = Late(tmp_path / "faults")
    faults.kill(rank=1, call=3).fail(KeyError("mine"), rank=0, call=5)
    with pytest.raises(UserCodeError, match=r"^KeyError: 'mine'\nraised by the loss"):
        fit(df, faults.wrap(distance), optimizer=late)
    late.let_come()
    assert_nothing_lost(fit(df), epochs=1)


@on_spark
def test_ctrl_c_while_a_worker_is_away(df, nothing_left, seen, meanwhile, tmp_path, faults) -> None:
    late = Late(tmp_path / "faults")
    faults.kill(rank=1, call=3)

    def press() -> None:
        seen.wait(lambda: len(seen.of("lost")) == 1, "worker 1 is lost")
        os.kill(os.getpid(), signal.SIGINT)

    meanwhile(press)
    with pytest.raises(KeyboardInterrupt):
        fit(df, faults.wrap(distance), optimizer=late)
    late.let_come()
    assert_nothing_lost(fit(df), epochs=1)


@on_spark
def test_the_users_error_ends_the_fit_at_once(df, nothing_left, seen, faults) -> None:
    faults.fail(KeyError("mine"), rank=1, call=3)
    with pytest.raises(UserCodeError, match=r"^KeyError: 'mine'\nraised by the loss"):
        fit(df, faults.wrap(distance), epochs=10_000)
    assert len(seen.of("joined")) == WORKERS
    assert seen.of("lost") == []


@on_spark
def test_a_full_disk_is_the_machines_fault_and_another_process_goes_on(df, nothing_left, faults) -> None:
    faults.fail(StorageError("the disk is full"), rank=1, call=4)
    fitted = fit(df, faults.wrap(distance))
    assert_nothing_lost(fitted, epochs=1)
    assert kinds(fitted) == ["lost", "rejoined"]
    assert "worker 1 on host 127.0.0.1 failed: the disk is full" in fitted.stats.incidents[0].text


# --- spares -----------------------------------------------------------------------------------------------------


@pytest.fixture
def second_process(spark, monkeypatch):
    """Starts a second process for a rank of the running fit, as Spark does when it takes a living executor for dead."""
    running: list[WorkerJobs] = []
    started: list[BackgroundAction] = []

    class Spied(WorkerJobs):
        def start(self) -> None:
            running.append(self)
            super().start()

    def start(rank: int) -> BackgroundAction:
        action = partial(running[-1]._run, rank)
        started.append(BackgroundAction(spark.sparkContext, "second process", action))
        started[-1].start()
        return started[-1]

    monkeypatch.setattr(job_module, "WorkerJobs", Spied)
    yield start
    for action in started:
        action.end(10)


@on_spark
def test_a_spare_waits_and_leaves_with_the_others(
    df, nothing_left, seen, meanwhile, second_process, tmp_path
) -> None:
    gate = Gate(tmp_path, distance, rank=0, call=4)
    second: list[BackgroundAction] = []

    def add() -> None:
        seen.wait(lambda: len(seen.of("view")) == 1, "training has begun")
        second.append(second_process(1))
        seen.wait(lambda: len(seen.of("spare")) == 1, "the spare waits")
        gate.let_go()

    meanwhile(add)
    fitted = fit(df, gate)
    assert_nothing_lost(fitted, epochs=1)
    assert kinds(fitted) == ["spare"]
    second[0].join(10)
    assert second[0].finished
    assert second[0].failed is None
    assert len(seen.pids(1)) == 2


@on_spark
def test_a_spare_takes_over_at_once(
    df, nothing_left, seen, meanwhile, second_process, tmp_path, faults
) -> None:
    gate = Gate(tmp_path, faults.wrap(distance), rank=0, call=4)

    def kill() -> None:
        seen.wait(lambda: len(seen.of("view")) == 1, "training has begun")
        try:
            second_process(1)
            seen.wait(lambda: len(seen.of("spare")) == 1, "the spare waits")
            os.kill(seen.pids(1)[0], signal.SIGKILL)
            seen.wait(lambda: len(seen.of("lost")) == 1, "the first is lost")
        finally:
            gate.let_go()

    meanwhile(kill)
    fitted = fit(df, gate, epochs=2)
    assert_nothing_lost(fitted, epochs=2)
    assert kinds(fitted)[:3] == ["spare", "lost", "rejoined"]
    assert set(kinds(fitted)[3:]) <= {"spare"}, "Spark brings a third process, which may come in time to wait"
    trained = {call.pid for call in faults.calls() if call.rank == 1}
    assert trained - {seen.pids(1)[0]} == {seen.pids(1)[1]}


@on_spark
def test_a_lost_spare_is_no_lost_worker(df, nothing_left, seen, meanwhile, second_process, tmp_path) -> None:
    gate = Gate(tmp_path, distance, rank=0, call=4)

    def kill() -> None:
        seen.wait(lambda: len(seen.of("view")) == 1, "training has begun")
        try:
            second_process(1)
            seen.wait(lambda: len(seen.of("spare")) == 1, "the spare waits")
            os.kill(seen.pids(1)[1], signal.SIGKILL)
            seen.wait(lambda: len(seen.of("lost")) == 1, "the spare is lost")
        finally:
            gate.let_go()

    meanwhile(kill)
    fitted = fit(df, gate)
    assert_nothing_lost(fitted, epochs=1)
    assert kinds(fitted) == ["spare"]
    assert (fitted.stats.workers_lost, fitted.stats.rejoined) == (0, 0)


# --- what the driver makes of it, without Spark -----------------------------------------------------------------


class NoJobs:
    """Stands for the Spark jobs; only writes down what it is told."""

    def __init__(self) -> None:
        self.killed: list[int] = []

    def kill(self, rank: int) -> None:
        self.killed.append(rank)


def watch(workers: int = 2) -> tuple[Watch, NoJobs]:
    jobs = NoJobs()
    made = Watch(
        None,  # type: ignore[arg-type]
        jobs,  # type: ignore[arg-type]
        workers=workers,
        start_timeout_seconds=1,
        on_progress=lambda *_: None,
        writer=None,
        how_to_resume=lambda: "",
    )
    return made, jobs


def event(kind: str, rank: int = -1, member: int = -1, **body) -> Event:
    return Event(rank, "h", kind, body, member)


def view(*members: tuple[int, int]) -> Event:
    """Of (member, rank)."""
    return event("view", ranks=[r for _, r in members], members=[m for m, _ in members], abandoned=[])


def begin(watched: Watch) -> None:
    for member, rank in ((10, 0), (11, 1)):
        watched._take(event("joined", rank, member, facts={}))
    watched._take(view((10, 0), (11, 1)))


def test_a_silent_workers_job_is_killed_but_not_for_a_silent_spare() -> None:
    watched, jobs = watch()
    begin(watched)
    watched._take(event("joined", 1, 12, facts={}))
    watched._take(event("spare", 1, 12))
    watched._take(event("lost", 1, 12, reason="silent", silent=True))
    assert jobs.killed == []
    watched._take(event("lost", 1, 11, reason="closed", silent=False))
    assert jobs.killed == []
    watched._take(event("lost", 0, 10, reason="silent", silent=True))
    assert jobs.killed == [0]
    assert [incident.kind for incident in watched._result.incidents] == ["spare", "lost", "lost"]


def test_a_replacement_that_dies_before_it_is_seated_counts() -> None:
    watched, _ = watch()
    begin(watched)
    watched._take(event("lost", 1, 11, reason="closed", silent=False))
    watched._take(view((10, 0)))
    for member in (12, 13):
        watched._take(event("joined", 1, member, facts={}))
        watched._take(event("lost", 1, member, reason="closed", silent=False))
    assert watched._failures == []
    watched._take(event("joined", 1, 14, facts={}))
    watched._take(event("lost", 1, 14, reason="the fourth", silent=False))
    (error,) = watched._failures
    assert str(error.message).startswith("worker 1 on host h was lost: the fourth (4 times in a row, ")


def test_the_last_reason_of_a_loss_is_told() -> None:
    watched, _ = watch()
    begin(watched)
    watched._take(event("stumbled", 1, 11, type="StorageError", message="the disk is full", hint=None))
    watched._take(view((10, 0), (12, 1)))
    watched._take(event("lost", 1, 12, reason="closed", silent=False))
    watched._take(event("lost", 0, 10, reason="closed too", silent=False))
    watched._take(event("extinct", completed=3))
    told = watched._failures[-1].message
    assert "worker 1 on host h was lost: closed; " not in told.split(": ", 1)[0]
    assert "the disk is full" not in told
    assert "worker 0 on host h was lost: closed too; worker 1 on host h was lost: closed" in told
