"""A job per worker: one falls alone, comes again, is killed even when it hangs, and all end without a trace."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from pyspark import TaskContext
from pyspark.sql import functions as F

from fatwood.errors import ClusterError, UserCodeError
from fatwood.spark import workers as workers_module
from fatwood.spark.action import BackgroundAction
from fatwood.spark.failures import failure_of_spark
from fatwood.spark.workers import JobEnded, PlanFailed, WorkerJobs

pytestmark = pytest.mark.spark

WORKERS = 3


class Stage:
    """What the tasks of a test do: they say that they are there, and wait for their cue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def task(self) -> Callable[[Iterator], Iterator]:
        folder = str(self.folder)

        def run(batches):  # by value: executors cannot import this file
            import pyarrow as pa

            rank = TaskContext.get().partitionId()
            rows = sum(batch.num_rows for batch in batches)
            name = f"{rank}-{rows}-{os.getpid()}-{TaskContext.get().taskAttemptId()}"
            with open(os.path.join(folder, f"here-{name}"), "x"):
                pass
            deadline = time.monotonic() + 60
            while not os.path.exists(os.path.join(folder, f"cue-{rank}")) and time.monotonic() < deadline:
                time.sleep(0.01)
            yield pa.RecordBatch.from_pydict({"rank": pa.array([rank], pa.int32())})

        return run

    def entries(self, rank: int) -> list[tuple[int, int]]:
        """Rows and process of each attempt of a worker."""
        names = sorted(
            (p.name for p in self.folder.glob(f"here-{rank}-*")), key=lambda n: int(n.split("-")[4])
        )
        return [(int(name.split("-")[2]), int(name.split("-")[3])) for name in names]

    def wait_for(self, rank: int, attempts: int = 1) -> int:
        """The worker's process, once it is there for the `attempts`-th time."""
        wait_until(lambda: len(self.entries(rank)) >= attempts, f"attempt {attempts} of worker {rank}")
        return self.entries(rank)[-1][1]

    def cue(self, *ranks: int) -> None:
        for rank in ranks:
            self.folder.joinpath(f"cue-{rank}").touch()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture(scope="module")
def keys(spark) -> dict[int, int]:
    """A number for each partition that Spark's hash sends there."""
    found = (
        spark.range(20).selectExpr("int(id) id").select(F.pmod(F.hash("id"), F.lit(WORKERS)), "id").collect()
    )
    return dict(found)


@pytest.fixture
def rows(spark, keys):
    """100 rows in three partitions, the last of them empty."""
    key = F.when(F.col("id") < 30, keys[0]).otherwise(keys[1])
    return spark.range(0, 100, 1, 2).repartition(WORKERS, key).sortWithinPartitions("id")


@pytest.fixture
def started(spark) -> Iterator[Callable[..., WorkerJobs]]:
    """Starts the jobs of a frame, and sees to it that no thread and no job of them is left."""
    threads = set(threading.enumerate())
    made: list[WorkerJobs] = []

    def start(frame, stage: Stage, workers: int = WORKERS) -> WorkerJobs:
        jobs = WorkerJobs(
            spark.sparkContext, frame.mapInArrow(stage.task(), "rank int"), workers, "fatwood.test"
        )
        made.append(jobs)
        jobs.start()
        return jobs

    yield start
    for jobs in made:
        jobs.end(0.0)
    assert {t for t in threading.enumerate() if t.name.startswith("fatwood")} <= threads
    wait_until(lambda: not spark.sparkContext.statusTracker().getActiveJobsIds(), "no active job")


def event(jobs: WorkerJobs) -> JobEnded | PlanFailed:
    found = jobs.next_event(60.0)
    assert found is not None
    return found


def test_every_partition_is_a_job_the_empty_one_too(spark, rows, stage, started) -> None:
    jobs = started(rows, stage)
    for rank in range(WORKERS):
        stage.wait_for(rank)
    assert [stage.entries(rank)[0][0] for rank in range(WORKERS)] == [30, 70, 0]
    assert len(spark.sparkContext.statusTracker().getActiveJobsIds()) == WORKERS
    assert jobs.next_event() is None
    for rank in (2, 0, 1):
        assert jobs.is_running(rank)
        stage.cue(rank)
        assert event(jobs) == JobEnded(rank, None, killed=False)
        assert not jobs.is_running(rank)
    jobs.end(5.0)


@pytest.mark.parametrize("adaptive", ["true", "false"])
def test_a_killed_worker_falls_alone_and_comes_again(spark, rows, stage, started, adaptive) -> None:
    spark.conf.set("spark.sql.adaptive.enabled", adaptive)
    try:
        jobs = started(rows, stage)
        pids = {rank: stage.wait_for(rank) for rank in range(WORKERS)}
    finally:
        spark.conf.unset("spark.sql.adaptive.enabled")
    with pytest.raises(RuntimeError, match="worker 1: expected its job to have ended"):
        jobs.restart(1)
    os.kill(pids[1], signal.SIGKILL)
    ended = event(jobs)
    assert (ended.rank, ended.killed) == (1, False)
    assert "Python worker exited unexpectedly" in str(ended.error)
    jobs.restart(1)
    assert jobs.is_running(1)
    assert stage.wait_for(1, attempts=2) != pids[1]
    assert stage.entries(1)[1][0] == 70, "the replacement reads the same rows"
    assert jobs.next_event() is None
    stage.cue(0, 1, 2)
    assert {(event(jobs).rank) for _ in range(WORKERS)} == {0, 1, 2}
    assert [len(stage.entries(rank)) for rank in range(WORKERS)] == [1, 2, 1]
    assert stage.entries(0)[0][1] == pids[0]


def test_a_stopped_worker_is_killed_and_comes_again(rows, stage, started) -> None:
    jobs = started(rows, stage)
    pids = {rank: stage.wait_for(rank) for rank in range(WORKERS)}
    os.kill(pids[0], signal.SIGSTOP)
    began = time.monotonic()
    jobs.kill(0)
    ended = event(jobs)
    assert time.monotonic() - began < 5
    assert (ended.rank, ended.killed) == (0, True)
    assert "cancelled" in str(ended.error)
    jobs.restart(0)
    wait_until(lambda: gone(pids[0]), "the stopped process is gone", seconds=10)
    assert stage.wait_for(0, attempts=2) != pids[0]
    jobs.kill(2)
    jobs.kill(2)
    assert event(jobs).rank == 2
    assert jobs.next_event() is None
    stage.cue(0, 1)
    assert [e.error for e in (event(jobs), event(jobs))] == [None, None]


def test_an_error_of_the_plan_below_comes_once_and_as_itself(spark, rows, stage, started) -> None:
    def broken(x):
        if x == 77:
            raise ZeroDivisionError("my parser")
        return x

    jobs = started(rows.withColumn("id", F.udf(broken, "bigint")("id")).repartition(WORKERS, "id"), stage)
    failed = event(jobs)
    assert isinstance(failed, PlanFailed)
    error = failure_of_spark(failed.error)
    assert isinstance(error, UserCodeError)
    assert error.message.startswith("ZeroDivisionError: my parser\nraised by the DataFrame's own plan")
    assert jobs.next_event(0.2) is None
    assert not any(jobs.is_running(rank) for rank in range(WORKERS))


def test_an_error_above_the_shuffle_is_its_workers_own(rows, stage, started) -> None:
    def broken(x):
        if x == 7:
            raise ZeroDivisionError("my parser")
        return x

    jobs = started(rows.withColumn("id", F.udf(broken, "bigint")("id")), stage)
    failed = event(jobs)
    assert isinstance(failed, JobEnded)
    assert failed.rank == 0
    assert "ZeroDivisionError: my parser" in failure_of_spark(failed.error).message
    assert {jobs.is_running(1), jobs.is_running(2)} == {True}


def test_another_number_of_partitions_is_found_before_any_worker_runs(rows, stage, started) -> None:
    failed = event(started(rows, stage, workers=WORKERS + 1))
    assert isinstance(failed, PlanFailed)
    assert isinstance(failed.error, ClusterError)
    assert "expected 4 partitions, received 3" in str(failed.error)
    assert list(stage.folder.iterdir()) == []


def test_the_end_does_not_wait_for_a_long_preparation(spark, rows, stage, started, tmp_path) -> None:
    began = str(tmp_path / "began")

    def slow(x):
        open(began, "a").close()
        time.sleep(1)
        return x

    frame = rows.withColumn("id", F.udf(slow, "bigint")("id")).repartition(WORKERS, "id")
    jobs = started(frame, stage)
    wait_until(lambda: os.path.exists(began), "the preparation runs")
    jobs.kill(0)
    at = time.monotonic()
    jobs.end(0.0)
    assert time.monotonic() - at < 5
    assert jobs.next_event(0.0) is not None
    assert not any(jobs.is_running(rank) for rank in range(WORKERS))
    jobs.end(0.0)


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.1, 0.3, 0.6])
def test_the_end_at_any_moment_of_the_start_leaves_nothing(rows, stage, started, delay) -> None:
    jobs = started(rows, stage)
    time.sleep(delay)
    jobs.end(0.0)
    assert not any(jobs.is_running(rank) for rank in range(WORKERS))
    here = {pid for rank in range(WORKERS) for _, pid in stage.entries(rank)}
    wait_until(lambda: all(map(gone, here)), "the tasks' processes are gone", seconds=10)


@pytest.mark.parametrize("moment", ["start", "launch"])
def test_the_end_after_an_interrupted_start_leaves_nothing(rows, stage, started, monkeypatch, moment) -> None:
    begin = threading.Thread.start
    interrupted = threading.Event()

    def start(thread: threading.Thread) -> None:
        begin(thread)
        if thread.name == ("fatwood.test" if moment == "start" else "fatwood.test worker 1"):
            interrupted.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start)
    if moment == "start":
        with pytest.raises(KeyboardInterrupt):
            started(rows, stage)
    else:
        failed = event(started(rows, stage))
        assert isinstance(failed, PlanFailed)
        assert isinstance(failed.error, KeyboardInterrupt)
    assert interrupted.is_set()


def test_an_interrupted_end_still_cancels(rows, stage, started, monkeypatch) -> None:
    jobs = started(rows, stage)
    stage.wait_for(0)
    pysparks = signal.signal(signal.SIGINT, signal.default_int_handler)  # PySpark's own cancels all jobs
    presser = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            jobs.end(60.0)
    finally:
        presser.join()
        signal.signal(signal.SIGINT, pysparks)
    assert not any(jobs.is_running(rank) for rank in range(WORKERS))


def test_the_users_other_jobs_are_not_touched(spark, rows, stage, started) -> None:
    sums: list[int] = []
    cue = str(stage.folder / "cue-other")

    def slow(x):
        deadline = time.monotonic() + 60
        while not os.path.exists(cue) and time.monotonic() < deadline:
            time.sleep(0.01)
        return x

    query = spark.range(0, 2, 1, 1).select(F.sum(F.udf(slow, "bigint")("id")))
    other = threading.Thread(target=lambda: sums.append(query.collect()[0][0]))
    other.start()
    jobs = started(rows, stage)
    stage.wait_for(0)
    jobs.kill(0)
    jobs.end(0.0)
    assert other.is_alive()
    stage.folder.joinpath("cue-other").touch()
    other.join()
    assert sums == [1]


def test_jobs_take_the_callers_scheduler_pool(spark, rows, stage, started, monkeypatch) -> None:
    context = spark.sparkContext
    found: list[str | None] = []
    run = WorkerJobs._run
    monkeypatch.setattr(
        workers_module.WorkerJobs,
        "_run",
        lambda jobs, rank: (found.append(context.getLocalProperty("spark.scheduler.pool")), run(jobs, rank)),
    )
    context.setLocalProperty("spark.scheduler.pool", "training")
    try:
        jobs = started(rows, stage)
        stage.cue(0, 1, 2)
        assert [event(jobs).error for _ in range(WORKERS)] == [None] * WORKERS
    finally:
        context.setLocalProperty("spark.scheduler.pool", None)
    assert found == ["training"] * WORKERS


def test_an_action_whose_thread_cannot_even_begin_says_so(spark, monkeypatch) -> None:
    ended: list[BackgroundAction] = []
    monkeypatch.setattr(BackgroundAction, "_act", lambda _: 1 / 0)
    action = BackgroundAction(spark.sparkContext, "fatwood.test", lambda: None, ended.append)
    action.start()
    action.join(10.0)
    assert isinstance(action.failed, ZeroDivisionError)
    assert ended == [action]
    action.end(0.0)

    never = BackgroundAction(spark.sparkContext, "fatwood.test", lambda: None)
    never.end(10.0)
    assert never.cancelled
