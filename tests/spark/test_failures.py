"""How a fit fails: with the cause first, soon, before it starts if it can be known then, and leaving nothing."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from pyspark import TaskContext
from pyspark.sql import functions as F
from torch import nn

from fatwood import AllReduce, GradientSharing, SparkModel
from fatwood.errors import (
    ClusterError,
    DataError,
    DivergenceError,
    ExchangeError,
    OptionError,
    PeerLost,
    SchemaError,
    ShippingError,
    UserCodeError,
    WorkerLost,
)
from fatwood.spark import feeds as feeds_module
from fatwood.spark.failures import describe_failure, failure_of_spark, rebuild_failure, severity

SGD = partial(torch.optim.SGD, lr=0.1)
LOSS = nn.CrossEntropyLoss()


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(1, classes)

    def forward(self, x):
        return self.linear(x)


class FailingOnOneWorker(Net):
    def forward(self, x):
        if TaskContext.get().partitionId() == 1:
            raise KeyError("only here")
        return super().forward(x)


class FailingSGD(torch.optim.SGD):
    def step(self, closure=None):
        raise ZeroDivisionError("in step")


def failing_loss(output, label):
    raise RuntimeError("my loss\nis broken")


def verbose_loss(output, label):
    raise ValueError("9" * 3_000_000)


def leaving_loss(output, label):
    sys.exit(3)


def interrupted_loss(output, label):
    raise KeyboardInterrupt


class Marking:
    """A loss that leaves a file when it is called."""

    def __init__(self, path: Path, seconds: float = 0.0) -> None:
        self.path, self.seconds = str(path), seconds

    def __call__(self, output, label):
        Path(self.path, str(os.getpid())).touch()
        time.sleep(self.seconds)
        return nn.functional.cross_entropy(output, label)

    @property
    def pids(self) -> list[int]:
        return [int(name) for name in os.listdir(self.path)]


@pytest.fixture(scope="module")
def df(spark):
    return spark.range(0, 40, 1, 4).selectExpr("id / 40 x", "int(id % 3) y").cache()


def fit(df, network=None, *, loss=LOSS, optimizer=SGD, features="x", label="y", strategy=None, **options):
    model = SparkModel(network or Net(), loss=loss, optimizer=optimizer, strategy=strategy or AllReduce())
    options = {"workers": 2, "batch_size": 5, "progress": False} | options
    return model.fit(df, features=features, label=label, **options)


USERS = [
    (None, failing_loss, SGD, "RuntimeError: my loss", "failing_loss", "raised by the loss"),
    (FailingOnOneWorker(), LOSS, SGD, "KeyError: 'only here'", "forward", "raised by the network's forward"),
    (
        None,
        LOSS,
        partial(FailingSGD, lr=0.1),
        "ZeroDivisionError: in step",
        "step",
        "raised by the optimizer",
    ),
    (None, leaving_loss, SGD, "SystemExit: 3", "leaving_loss", "on worker"),
    (None, interrupted_loss, SGD, "KeyboardInterrupt", "interrupted_loss", "on worker"),
]


@pytest.mark.spark
@pytest.mark.parametrize(
    ("network", "loss", "optimizer", "first", "function", "part"), USERS, ids=[u[3] for u in USERS]
)
def test_the_users_own_error_comes_first(
    df, nothing_left, network, loss, optimizer, first, function, part
) -> None:
    with pytest.raises(UserCodeError) as caught:
        fit(df, network, loss=loss, optimizer=optimizer)
    message, trace = caught.value.message.split("Traceback (most recent call last):\n")
    assert message.splitlines()[0] == first
    assert part in message
    assert "\non worker 1 on host 127.0.0.1" in message.replace("worker 0", "worker 1")
    assert trace.startswith(f'  File "{__file__}", line ')
    assert trace.splitlines()[0].endswith(f"in {function}")
    assert "fatwood/spark" not in trace
    assert "fatwood/train" not in trace


@pytest.mark.spark
def test_an_endless_message_is_shortened(df, nothing_left) -> None:
    with pytest.raises(UserCodeError, match=r"^ValueError: 9999") as caught:
        fit(df, loss=verbose_loss)
    assert "characters left out" in str(caught.value)
    assert len(str(caught.value)) < 100_000


@pytest.mark.spark
@pytest.mark.parametrize("when", ["counted", "trained"])
def test_an_error_of_the_frames_own_plan_comes_first(df, nothing_left, monkeypatch, tmp_path, when) -> None:
    marker = tmp_path / "fails"

    class Broken(Exception):
        """Not named as most exceptions are; here, so that workers need not import this file."""

    def function(x):
        if os.path.exists(marker):
            raise Broken(f"cannot parse\n{x}")
        return x

    def balanced(*args, **kwargs):
        marker.touch()
        return original(*args, **kwargs)

    original = feeds_module.balanced
    if when == "counted":
        marker.touch()
    monkeypatch.setattr(feeds_module, "balanced", balanced)
    with pytest.raises(UserCodeError) as caught:
        fit(df.withColumn("x", F.udf(function, "double")("x")))
    lines = caught.value.message.splitlines()
    assert lines[0] == "Broken: cannot parse"
    assert lines[2].startswith("raised by the DataFrame's own plan")
    assert f'  File "{__file__}"' in caught.value.message
    assert "org.apache" not in caught.value.message


@pytest.mark.spark
def test_an_error_of_the_plan_without_python_comes_first_too(df, nothing_left) -> None:
    with pytest.raises(
        UserCodeError, match=r"^ArithmeticException: \[DIVIDE_BY_ZERO\].*\nraised by the DataFr"
    ):
        fit(df.selectExpr("1 / (y - 1) x", "y"))


@pytest.mark.spark
def test_the_last_worker_that_is_killed_is_named_and_the_session_goes_on(
    spark, df, nothing_left, meanwhile, tmp_path
) -> None:
    tmp_path.joinpath("pids").mkdir()
    loss = Marking(tmp_path / "pids", seconds=0.05)
    killed_at: list[float] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not loss.pids and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(loss.pids[0], signal.SIGKILL)
        killed_at.append(time.monotonic())

    meanwhile(kill)
    with pytest.raises(
        WorkerLost, match=r"worker 0 on host 127.0.0.1 was lost: .*closed the connection"
    ) as caught:
        fit(df, loss=loss, epochs=10_000, workers=1)
    seconds = time.monotonic() - killed_at[0]
    assert seconds < 5
    assert caught.value.hint
    assert list(spark.sparkContext.statusTracker().getActiveJobsIds()) == []
    calls = {pid: os.stat(tmp_path / "pids" / str(pid)).st_mtime_ns for pid in loss.pids}
    assert fit(df, Net(classes=4)).stats.rows_trained == 40
    assert calls == {pid: os.stat(tmp_path / "pids" / str(pid)).st_mtime_ns for pid in loss.pids}


@pytest.mark.spark
def test_a_fit_and_another_network_after_it_leave_nothing(df, nothing_left) -> None:
    assert fit(df).stats.rows_trained == 40
    assert fit(df, nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 3))).stats.rows_trained == 40


@pytest.mark.spark
def test_other_threads_jobs_are_not_touched(spark, df, nothing_left, meanwhile, tmp_path) -> None:
    cue = str(tmp_path / "cue")

    def slow(x):
        deadline = time.monotonic() + 100
        while not os.path.exists(cue) and time.monotonic() < deadline:
            time.sleep(0.02)
        return x

    sums: list[int] = []
    query = spark.range(0, 2, 1, 1).select(F.sum(F.udf(slow, "bigint")("id")))
    meanwhile(lambda: sums.append(query.collect()[0][0]))
    try:
        with pytest.raises(UserCodeError, match=r"^RuntimeError: my loss"):
            fit(df, loss=failing_loss)
        assert fit(df).stats.rows_trained == 40
        assert sums == []
    finally:
        Path(cue).touch()
    deadline = time.monotonic() + 60
    while not sums and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sums == [1]


# --- before the job ---------------------------------------------------------------------------------------------


class Speculation:
    """Switches the setting on for the driver's eyes; it cannot be changed in a session that runs."""

    def __init__(self, spark) -> None:
        self.conf = spark.sparkContext._conf

    def __enter__(self) -> None:
        self.conf.set("spark.speculation", "true")

    def __exit__(self, *_) -> None:
        self.conf.set("spark.speculation", "false")


class Locked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, 1)
        self.encoder.lock = threading.Lock()


EARLY: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"features": "z"}, SchemaError, "column 'z'"),
    ({"label": "name"}, SchemaError, "column 'name'.*string"),
    ({"features": "name"}, SchemaError, "column 'name'.*string"),
    ({"network": Locked()}, ShippingError, "network.encoder.lock: cannot be sent"),
    ({"workers": 0}, OptionError, "workers: expected .* at least 1.* received 0"),
    ({"workers": 5}, ClusterError, "workers: expected at most 4.* received 5"),
    ({"batch_size": 0}, OptionError, "batch_size: expected .* at least 1, received 0"),
    ({"batch_size": 2.5}, OptionError, "batch_size"),
    ({"epochs": 0}, OptionError, "epochs"),
    ({"on_bad_row": "drop"}, OptionError, "on_bad_row.*'drop'"),
    ({"loss": nn.CrossEntropyLoss}, OptionError, "loss"),
    ({"loss": "mse"}, OptionError, "loss.*'mse'"),
    ({"loss": nn.CrossEntropyLoss(reduction="sum")}, OptionError, "reduction"),
    ({"optimizer": SGD(Net().parameters())}, OptionError, "optimizer: expected a function"),
    ({"optimizer": torch.optim.SGD(Net().parameters(), lr=1).step}, OptionError, "optimizer"),
    ({"optimizer": list}, OptionError, "optimizer.*received list"),
    ({"strategy": "all-reduce"}, OptionError, "strategy: expected a Strategy"),
    ({"strategy": AllReduce}, OptionError, "strategy: expected a Strategy"),
]


@pytest.mark.spark
@pytest.mark.parametrize(("options", "kind", "text"), EARLY, ids=[e[2] for e in EARLY])
def test_what_can_be_known_is_said_before_any_job(spark, df, nothing_left, options, kind, text) -> None:
    with_name = df.selectExpr("x", "y", "'a' name")
    with pytest.raises(kind, match=text) as caught:
        jobs_of(spark, lambda: fit(with_name, **options))
    assert str(caught.value).count("hint: ") <= 1


def jobs_of(spark, function: Callable[[], object]) -> None:
    """Call it, and fail if Spark began a job meanwhile."""
    tracker = spark.sparkContext.statusTracker()
    before = set(tracker.getJobIdsForGroup(None))
    try:
        function()
    finally:
        assert set(tracker.getJobIdsForGroup(None)) == before


@pytest.mark.spark
def test_speculation_is_welcome(spark, df, nothing_left) -> None:
    with Speculation(spark):
        stats = fit(df).stats
    assert stats.rows_trained == 40
    assert stats.digest_equal


@pytest.mark.spark
def test_ragged_arrays_and_no_rows_are_found_by_the_count(df, nothing_left, tmp_path) -> None:
    tmp_path.joinpath("pids").mkdir()
    loss = Marking(tmp_path / "pids")
    ragged = df.selectExpr("array_repeat(x, y + 1) x", "y")
    with pytest.raises(
        SchemaError, match="column 'x': expected arrays of one length, received lengths from 1 to 3"
    ):
        fit(ragged, loss=loss)
    with pytest.raises(DataError, match="expected at least one row"):
        fit(df.filter("y > 5"), loss=loss)
    assert loss.pids == []


# --- bad rows ---------------------------------------------------------------------------------------------------

BAD = {"null label": 3, "NaN feature": 17, "label out of range": 29}


@pytest.fixture
def frame_with_bad_rows(spark):
    """Three partitions of the user's, ten rows each; and where each row lies in them."""

    def make(*bad: str):
        ids = {name: BAD[name] if name in bad else -1 for name in BAD}
        frame = spark.range(0, 30, 1, 3).selectExpr(
            "id",
            f"if(id = {ids['NaN feature']}, double('NaN'), id / 30) x",
            f"case when id = {ids['null label']} then null when id = {ids['label out of range']} then 3 else int(id % 3) end y",
        )
        places, rows = {}, [0, 0, 0]
        for row in frame.select("id", F.spark_partition_id().alias("partition")).collect():
            places[row.id] = f"partition {row.partition}, row {rows[row.partition]}"
            rows[row.partition] += 1
        return frame, places

    return make


@pytest.mark.spark
@pytest.mark.parametrize(
    ("bad", "text"),
    [("null label", "'y'.*null"), ("NaN feature", "'x'.*(NaN|nan)"), ("label out of range", "received 3")],
)
def test_a_bad_row_is_named_by_the_users_partition(nothing_left, frame_with_bad_rows, bad, text) -> None:
    frame, places = frame_with_bad_rows(bad)
    with pytest.raises(DataError, match=text) as caught:
        fit(frame)
    assert caught.value.message.startswith(f"{places[BAD[bad]]}: ")
    assert "on worker" in caught.value.message
    assert "skip" in str(caught.value.hint)


@pytest.mark.spark
def test_bad_rows_are_skipped_and_counted_once(nothing_left, frame_with_bad_rows) -> None:
    frame, _ = frame_with_bad_rows(*BAD)
    stats = fit(frame, on_bad_row="skip", epochs=2).stats
    assert stats.rows_skipped == 3
    assert stats.rows_trained == 2 * 27
    assert stats.digest_equal


# --- strangers, and large results -------------------------------------------------------------------------------


def listening_ports(pids: list[int]) -> set[tuple[str, int]]:
    found: set[tuple[str, int]] = set()
    for pid in [os.getpid(), *pids]:
        found.update(
            c.laddr for c in psutil.Process(pid).net_connections(kind="inet") if c.status == "LISTEN"
        )
    return found


@pytest.mark.spark
def test_strangers_change_nothing_and_hold_up_nothing(df, nothing_left, tmp_path) -> None:
    tmp_path.joinpath("pids").mkdir()
    tmp_path.joinpath("undisturbed").mkdir()
    loss = Marking(tmp_path / "pids", seconds=0.02)
    before = listening_ports([])
    attacked: set[tuple[str, int]] = set()
    held: list[socket.socket] = []

    def attack() -> None:
        deadline = time.monotonic() + 60
        while len(loss.pids) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        for address in listening_ports(loss.pids) - before:
            attacked.add(tuple(address))
            for data in (os.urandom(4096), struct.pack(">2sBI", b"FW", 1, 2**32 - 1) + b"x" * 4096, b""):
                held.append(socket.create_connection(address, timeout=5))
                held[-1].sendall(data)

    def digest(loss) -> int:
        torch.manual_seed(5)
        return fit(df, loss=loss, epochs=10, strategy=GradientSharing()).stats.workers[0].digest

    undisturbed = digest(Marking(tmp_path / "undisturbed"))
    stranger = threading.Thread(target=attack)
    stranger.start()
    try:
        assert digest(loss) == undisturbed
    finally:
        stranger.join()
        for connection in held:
            connection.close()
    assert len(attacked) == 3, "the coordinator and two workers"


class Wide(nn.Module):
    """60 MB of parameters that cost nothing to use."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 3)
        self.wide = nn.Parameter(torch.zeros(15_000_000))

    def forward(self, x):
        return self.linear(x) + self.wide[0]


@pytest.mark.spark
def test_large_results_come_back_without_filling_the_driver(spark, nothing_left) -> None:
    df = spark.range(0, 6, 1, 2).selectExpr("id / 6 x", "int(id % 3) y")
    network = Wide()
    size = sum(p.nbytes for p in network.parameters())
    process, peak, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    before = process.memory_info().rss
    watcher.start()
    try:
        stats = fit(
            df, network, optimizer=partial(torch.optim.Adam, lr=0.1), strategy=GradientSharing()
        ).stats
    finally:
        done.set()
        watcher.join()
    assert stats.digest_equal
    assert network.wide[0] != 0
    assert peak[0] - before < 5 * size, f"{(peak[0] - before) / size:.1f} times the parameters"


# --- without Spark ----------------------------------------------------------------------------------------------


def test_causes_come_before_consequences() -> None:
    ordered = [DataError, WorkerLost, DivergenceError, ClusterError, ExchangeError, PeerLost]
    severities = [severity(kind("x")) for kind in ordered]
    assert severities == [0, 1, 1, 2, 3, 4]


JVM = """An error occurred while calling o99.collectToPython.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 1.0 failed 4 times, most recent \
failure: Lost task 0.3 in stage 1.0 (TID 7) (10.0.0.3 executor 1): {}

Driver stacktrace:
\tat org.apache.spark.scheduler.DAGScheduler.failJobAndIndependentStages(DAGScheduler.scala:2856)
"""
PYTHON = """org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "/opt/spark/worker.py", line 1, in main
    process()
  File "/home/me/udf.py", line 2, in parse
    at = x
{}

\tat org.apache.spark.api.python.BasePythonRunner$ReaderIterator.handlePythonException(PythonRunner.scala:572)"""


def said(inner: str):
    return failure_of_spark(RuntimeError(JVM.format(inner)))


def test_what_spark_says_of_a_python_error() -> None:
    error = said(PYTHON.format("my.errors.Broken: first line\nsecond: line"))
    assert isinstance(error, UserCodeError)
    assert error.message.startswith(
        "Broken: first line\nsecond: line\nraised by the DataFrame's own plan "
        "(Lost task 0.3 in stage 1.0 (TID 7) (10.0.0.3 executor 1))\n\nTraceback"
    )
    assert "org.apache" not in error.message


def test_our_own_error_in_a_task_comes_back_as_itself() -> None:
    error = said(
        PYTHON.format("fatwood.errors.ClusterError: this worker cannot reach the driver\nhint: firewall")
    )
    assert type(error) is ClusterError
    assert error.message.startswith("this worker cannot reach the driver\nin the Spark job (Lost task")
    assert error.hint == "firewall"


def test_executors_without_fatwood_are_told_from_the_users_errors() -> None:
    error = said(PYTHON.format("ModuleNotFoundError: No module named 'fatwood'"))
    assert isinstance(error, ClusterError)
    assert error.message.startswith("fatwood cannot be imported by the executors")
    assert isinstance(said(PYTHON.format("ModuleNotFoundError: No module named 'mine'")), UserCodeError)


def test_what_spark_says_without_python_is_in_the_first_line() -> None:
    error = said("ExecutorLostFailure (executor 1 exited) Reason: exit code 137")
    assert isinstance(error, ClusterError)
    assert "ExecutorLostFailure" in error.message.split("\n\n")[1].splitlines()[0]
    assert failure_of_spark(RuntimeError()).message == "the Spark job failed: RuntimeError"


def test_errors_that_are_nobodys_code_are_the_worlds() -> None:
    try:
        os.open("/nowhere/at/all", os.O_RDONLY)
    except OSError as error:
        error.__traceback__ = None
        failure = describe_failure(error)
    rebuilt = rebuild_failure(failure, "worker 0 on host h")
    assert type(rebuilt) is ClusterError
    assert rebuilt.message.startswith("FileNotFoundError: [Errno 2]")


def test_a_failure_from_the_network_is_taken_with_care() -> None:
    for kind in ("SystemExit", "os", "annotations", None, 3):
        assert type(rebuild_failure({"type": kind, "message": "m"}, "worker 0")) is UserCodeError
    assert type(rebuild_failure({"type": "DataError", "message": "m", "hint": "h"}, "w")) is DataError


def test_an_error_that_cannot_be_shown_still_arrives() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    try:
        raise Mute
    except Mute as error:
        failure = describe_failure(error)
    assert failure["message"] == "Mute: (its message cannot be shown)"
    assert failure["type"] == "UserCodeError"
