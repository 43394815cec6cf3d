"""What workers log and warn of reaches the driver, bounded, and neither breaks a fit nor changes it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from fatwood import AllReduce, SparkModel
from fatwood.errors import OptionError, PeerLost, UserCodeError
from fatwood.spark.worker_logs import KeptLogs, LogWriter
from fatwood.train.logs import Allowance, WorkerLogs, checked_level, shortened

NAMED = logging.getLogger("my.network")


class Listener:
    """Stands for a `Member`: keeps what is reported."""

    rank = 1

    def __init__(self, error: BaseException | None = None) -> None:
        self.stopped: str | None = None
        self.finished = False
        self.error = error
        self.bodies: list[dict] = []

    def report(self, kind: str, body: dict) -> None:
        assert kind == "log"
        if self.error is not None:
            raise self.error
        self.bodies.append(body)

    @property
    def lines(self) -> list[tuple[int, str, str]]:
        return [tuple(line) for body in self.bodies for line in body["lines"]]

    @property
    def more(self) -> int:
        return sum(body["more"] for body in self.bodies)


@pytest.fixture(autouse=True)
def nothing_changed():
    """Loggers and warnings are afterwards as they were, and no thread is left."""
    root = logging.getLogger()
    before = list(root.handlers), root.level, warnings.showwarning
    yield
    assert (list(root.handlers), root.level, warnings.showwarning) == before
    assert [t.name for t in threading.enumerate() if t.name.startswith("fatwood-logs")] == []


def told(level: int | None = logging.WARNING, **options) -> tuple[Listener, WorkerLogs]:
    listener = Listener()
    return listener, WorkerLogs(listener, level, **options)


# --- on the worker ----------------------------------------------------------------------------------------------


def test_records_and_warnings_of_the_level_are_told(recwarn) -> None:
    listener, logs = told()
    with logs:
        NAMED.warning("row %d is odd", 7)
        NAMED.info("not so high")
        warnings.warn("take care", UserWarning, stacklevel=1)
        try:
            raise KeyError("x")
        except KeyError:
            NAMED.exception("failed")
    NAMED.error("too late")
    first, second, third = listener.lines
    assert first == (logging.WARNING, "my.network", "row 7 is odd")
    assert second[:2] == (logging.WARNING, "warnings")
    assert second[2].startswith(f"UserWarning: take care ({__file__}:")
    assert third[2].startswith("failed\nTraceback")
    assert third[2].endswith("KeyError: 'x'")
    assert [str(w.message) for w in recwarn] == ["take care"]  # it goes where it went before, too


def test_a_lower_level_reaches_loggers_that_have_none() -> None:
    listener, logs = told(logging.INFO)
    with logs:
        NAMED.info("hello")
        NAMED.debug("not so high")
    assert listener.lines == [(logging.INFO, "my.network", "hello")]


def test_a_higher_level_leaves_warnings_alone(recwarn) -> None:
    listener, logs = told(logging.ERROR)
    with logs:
        warnings.warn("take care", UserWarning, stacklevel=1)
        NAMED.warning("not so high")
        NAMED.error("high")
    assert listener.lines == [(logging.ERROR, "my.network", "high")]
    assert len(recwarn) == 1


def test_none_tells_nothing_and_changes_nothing() -> None:
    listener, logs = told(None)
    with logs:
        assert logging.getLogger().handlers.count(logs) == 0
        NAMED.critical("help")
    assert listener.bodies == []


@pytest.mark.filterwarnings("always")
def test_captured_warnings_are_told_once() -> None:
    listener, logs = told()
    logging.captureWarnings(True)
    try:
        with logs:
            warnings.warn("take care", UserWarning, stacklevel=1)
    finally:
        logging.captureWarnings(False)
    ((_, logger, text),) = listener.lines
    assert logger == "py.warnings"
    assert "take care" in text


def test_a_flood_is_cut_and_counted_and_what_comes_later_passes() -> None:
    now = [0.0]
    allowance = Allowance(10, 10_000, seconds=10.0, clock=lambda: now[0])
    listener, logs = told(allowance=allowance)
    with logs:
        for i in range(1_244):
            NAMED.warning("flood %d", i)
        logs.flush()
        assert [text for *_, text in listener.lines] == [f"flood {i}" for i in range(10)]
        assert listener.more == 1_234
        now[0] = 5.0
        for i in range(7):
            NAMED.warning("later %d", i)
    assert [text for *_, text in listener.lines[10:]] == [f"later {i}" for i in range(5)]
    assert listener.more == 1_236


def test_bytes_and_lengths_are_bounded() -> None:
    listener, logs = told(allowance=Allowance(100, 5_000, seconds=1e9))
    with logs:
        for _ in range(4):
            NAMED.warning("x" * 3_000_000)
    assert len(listener.lines) == 2
    assert listener.more == 2
    assert all(text == "x" * 2_000 + "... [2998000 characters more]" for *_, text in listener.lines)
    assert shortened("\ud800") == "?"


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_a_message_that_cannot_be_made_is_told_without_it(capsys) -> None:
    listener, logs = told()
    record = logging.LogRecord("a", logging.WARNING, __file__, 1, "%s", (Unprintable(),), None)
    with logs:
        logs.handle(record)  # pytest's own handler would raise
    assert [text for *_, text in listener.lines] == ["(a message that cannot be shown)"]
    assert "Logging error" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [PeerLost("gone"), OptionError("too long"), RuntimeError("broken")])
def test_what_cannot_be_sent_is_not_raised(error) -> None:
    logs = WorkerLogs(Listener(error), logging.WARNING)
    with logs:
        NAMED.warning("hello")
        logs.flush()
        NAMED.warning("again")


def test_nobody_is_told_who_does_not_listen_any_more() -> None:
    for over in ("stopped", "finished"):
        listener, logs = told()
        with logs:
            setattr(listener, over, "yes")
            NAMED.warning("hello")
        assert listener.bodies == []


def test_the_users_own_error_passes_and_its_lines_come_before_it() -> None:
    listener, logs = told()

    def work() -> None:
        with logs:
            NAMED.warning("soon")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert [text for *_, text in listener.lines] == ["soon"]


def test_a_thread_sends_while_the_work_goes_on() -> None:
    listener, logs = told()
    with logs:
        NAMED.warning("hello")
        deadline = time.monotonic() + 30
        while not listener.bodies and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [text for *_, text in listener.lines] == ["hello"]


def test_a_forked_process_tells_nothing() -> None:
    listener, logs = told()
    with logs:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                NAMED.warning("from the child")
                code = len(logs._lines)
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        NAMED.warning("from the parent")
    assert [text for *_, text in listener.lines] == ["from the parent"]


def test_standard_error_gets_what_it_got_before() -> None:
    program = (
        "import logging, warnings\n"
        "from fatwood.train.logs import WorkerLogs\n"
        "class Listener:\n"
        "    rank, stopped, finished = 0, None, False\n"
        "    def report(self, kind, body): print(len(body['lines']))\n"
        "with WorkerLogs(Listener(), logging.INFO):\n"
        "    logging.getLogger('a').warning('seen')\n"
        "    logging.getLogger('a').info('not seen')\n"
        "    warnings.warn('take care')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True
    )
    lines = done.stderr.splitlines()
    assert lines[0] == "seen"
    assert "UserWarning: take care" in lines[1]
    assert "not seen" not in done.stderr
    assert sum(map(int, done.stdout.split())) == 3


@pytest.mark.parametrize(
    ("given", "level"), [("info", 20), ("ERROR", 40), (15, 15), (0, 1), (None, None)], ids=str
)
def test_levels(given, level) -> None:
    assert checked_level(given) == level


@pytest.mark.parametrize("given", ["loud", True, -1, 1.5])
def test_levels_that_are_none(given) -> None:
    with pytest.raises(OptionError, match="worker_logs: expected a level of logging"):
        checked_level(given)


# --- on the driver ----------------------------------------------------------------------------------------------


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fatwood.worker"]


def test_the_driver_logs_with_rank_and_host(caplog) -> None:
    caplog.set_level(logging.INFO, "fatwood.worker")
    LogWriter()(1, "h", {"lines": [[20, "my.network", "hello"], [40, "warnings", "no"]], "more": 1234})
    assert [record.levelno for record in caplog.records] == [20, 40, 30]
    assert messages(caplog) == [
        "worker 1 on host h: my.network: hello",
        "worker 1 on host h: warnings: no",
        "worker 1 on host h: and 1,234 more lines",
    ]


def test_many_workers_do_not_flood_the_driver(caplog) -> None:
    writer = LogWriter(Allowance(5, 10_000, seconds=1e9))
    for rank in range(4):
        writer(rank, "h", {"lines": [[30, "a", str(i)] for i in range(3)], "more": 0})
    assert len([text for text in messages(caplog) if "more lines" not in text]) == 5
    assert messages(caplog)[-1] == "worker 3 on host h: and 3 more lines"


@pytest.mark.parametrize("body", [{}, {"lines": 3, "more": 0}, {"lines": [[30]], "more": 0}, {"more": "x"}])
def test_what_makes_no_sense_is_left_out(caplog, body) -> None:
    LogWriter()(0, "h", body)
    KeptLogs()(0, "h", body)
    assert messages(caplog) == []


def test_what_is_kept_is_bounded_and_told_at_the_end(caplog) -> None:
    kept = KeptLogs()
    for _ in range(6):
        kept(1, "h", {"lines": [[30, "a", "b"]] * 100, "more": 0})
    KeptLogs.tell(kept.to_json())
    assert len(messages(caplog)) == 501
    assert messages(caplog)[-1] == "worker 1 on host h: and 100 more lines"
    KeptLogs.tell([["nonsense"]])


# --- in a real fit ----------------------------------------------------------------------------------------------


class Talking(nn.Module):
    """Logs and warns as it is called."""

    def __init__(self, times: int = 0, *, fails: bool = False) -> None:
        super().__init__()
        self.linear, self.times, self.fails = nn.Linear(1, 2), times, fails

    def forward(self, x):
        for i in range(self.times):
            logging.getLogger("my.network").warning("call %d", i)
        if self.times:
            warnings.warn("x is odd", UserWarning, stacklevel=1)
        if self.fails:
            raise KeyError("after what was said")
        return self.linear(x)


def fit(df, network, **options):
    torch.manual_seed(3)
    network.linear.reset_parameters()
    optimizer = partial(torch.optim.SGD, lr=0.1)
    model = SparkModel(network, loss=nn.CrossEntropyLoss(), optimizer=optimizer, strategy=AllReduce())
    options = {"workers": 2, "batch_size": 5, "progress": False} | options
    return model.fit(df, features="x", label="y", **options)


@pytest.fixture(scope="module")
def df(spark):
    return spark.range(0, 40, 1, 4).selectExpr("id / 40 x", "int(id % 2) y").cache()


@pytest.mark.spark
def test_workers_are_heard_in_a_fit_whose_bits_stay_the_same(df, nothing_left, caplog) -> None:
    silent = fit(df, Talking()).stats
    assert messages(caplog) == []
    loud = fit(df, Talking(times=300)).stats
    assert {w.digest for w in loud.workers} == {w.digest for w in silent.workers}
    found = messages(caplog)
    for rank in (0, 1):
        own = [text for text in found if text.startswith(f"worker {rank} on host 127.0.0.1: ")]
        assert own[0] == f"worker {rank} on host 127.0.0.1: my.network: call 0"
        lines = [text for text in own if "more lines" not in text]
        assert 100 <= len(lines) < 300
        cut = sum(int(text.split()[-3].replace(",", "")) for text in own if text.endswith("more lines"))
        # 4 minibatches with 300 lines each; Python shows the warning once
        assert len(lines) + cut == 4 * 300 + 1
    caplog.clear()
    fit(df, Talking(times=1), worker_logs=None)
    assert messages(caplog) == []
    assert fit(df, Talking()).stats.rows_trained == 40  # in the same processes: nobody listens there any more
    assert messages(caplog) == []


@pytest.mark.spark
def test_what_was_said_before_an_error_is_heard(df, nothing_left, caplog) -> None:
    with pytest.raises(UserCodeError, match=r"^KeyError: 'after what was said'"):
        fit(df, Talking(times=1, fails=True))
    assert any(text.endswith("my.network: call 0") for text in messages(caplog))


@pytest.mark.spark
def test_over_connect_they_come_at_the_end(spark, connect, caplog) -> None:
    del spark  # it does not start once the process is a client
    df = connect.range(0, 40, 1, 4).selectExpr("id / 40 x", "int(id % 2) y")
    fit(df, Talking(times=2))
    assert {
        "worker 0 on host 127.0.0.1: my.network: call 1",
        "worker 1 on host 127.0.0.1: my.network: call 1",
    } <= set(messages(caplog))
    caplog.clear()
    with pytest.raises(UserCodeError, match=r"^KeyError: 'after what was said'"):
        fit(df, Talking(times=1, fails=True))
    assert any(text.endswith("my.network: call 0") for text in messages(caplog))
