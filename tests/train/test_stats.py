"""Statistics of a fit: text, file, tables."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from fatwood.errors import OptionError, StorageError
from fatwood.exchange import ClockOffset
from fatwood.testing.runs import synthetic_stats
from fatwood.train import EpochRecord, FitStats, History, WorkerStats
from fatwood.train.trace import Trace

RUN = synthetic_stats(workers=3, seconds=30.0)
WORKER = WorkerStats(
    rank=0, rows_trained=7, rows_skipped=0, minibatches=2, agreements=2, message_bytes=100, bytes_sent=50, digest=2**64 - 1,
    seconds={"read": 1.0, "batch": 0.5, "compute": 2.0, "encode": 0.25, "exchange": 4.0, "apply": 0.125, "validate": 9.0},
)  # fmt: skip
PLAIN = FitStats(workers=(WORKER,), rows_trained=7, rows_expected=7, parameters=10, seconds=1.0)


def test_they_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    RUN.save(path)
    assert FitStats.load(path) == RUN
    assert str(FitStats.load(path)) == str(RUN)
    assert json.loads(path.read_text())["figures"]["bytes_per_step"] == RUN.bytes_per_step


def test_they_survive_any_store() -> None:
    PLAIN.save("memory://stats/run.json")
    try:
        assert FitStats.load("memory://stats/run.json") == PLAIN
    finally:
        fsspec.filesystem("memory").rm("/stats", recursive=True)


def test_numbers_that_json_does_not_have_survive(tmp_path: Path) -> None:
    record = EpochRecord(epoch=0, loss=math.nan, rows=0, seconds=math.inf, rows_of_worker=(0,))
    replace(PLAIN, history=History([record])).save(tmp_path / "s")
    assert json.loads((tmp_path / "s").read_text())["history"][0]["loss"] == "NaN"
    (found,) = FitStats.load(tmp_path / "s").history
    assert math.isnan(found.loss)
    assert found.seconds == math.inf


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "as JSON"),
        (b"{}", "format None"),
        (b"[1]", "format None"),
        (b'{"format":"fatwood-stats","version":2}', "version 2"),
        (b'{"format":"fatwood-stats","version":"1"}', "version '1'"),
        (b'{"format":"fatwood-stats","version":1}', "received something else"),
        (b'{"format":"fatwood-stats","version":1,"workers":[{"rank":0}]}', "received something else"),
    ],
    ids=["empty", "object", "list", "newer", "text", "bare", "half"],
)
def test_other_files_are_refused_by_name(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=says) as caught:
        FitStats.load(path)
    assert str(path) in str(caught.value)


def test_the_text_adds_up_phases_to_its_columns() -> None:
    line = str(PLAIN).splitlines()[4]
    assert line.split() == ["0", "7", "2", "50", "1.5", "2.0", "4.2", "0.1"]
    assert "worker 0 also spent 9.0 s in validate" in str(PLAIN)
    assert "clock" not in str(PLAIN)


def test_a_clock_that_was_not_asked_for_is_told_once_for_all_workers() -> None:
    trace = Trace()
    trace.clock(ClockOffset(seconds=0.0, error_seconds=0.001, remark="ntp: no answer"))
    worker = replace(WORKER, trace=trace.to_json())
    stats = replace(PLAIN, workers=(worker, replace(worker, rank=1)))
    assert str(stats).splitlines()[-1] == "clock: workers [0, 1]: ntp: no answer"
    assert stats.to_json()["figures"]["clock_remarks"] == ["workers [0, 1]: ntp: no answer"]


def test_tables_say_what_the_statistics_say() -> None:
    tables = RUN.to_arrow()
    assert list(tables) == ["workers", "phases", "waits", "epochs", "incidents", "steps", "spans"]
    assert tables["workers"].column("rank").to_pylist() == [0, 1, 2]
    assert sum(tables["phases"].column("seconds").to_pylist()) == pytest.approx(
        sum(sum(worker.seconds.values()) for worker in RUN.workers)
    )
    assert tables["waits"].num_rows == 6
    assert tables["epochs"].column("validation_loss").to_pylist() == [v.loss for v in RUN.validations]
    assert tables["incidents"].column("kind").to_pylist() == ["lost", "rejoined"]
    steps = tables["steps"].to_pylist()
    assert sum(row["steps"] for row in steps) == sum(worker.agreements for worker in RUN.workers)
    assert all(row["loss_least"] <= row["loss"] <= row["loss_most"] for row in steps)
    spans = tables["spans"].to_pylist()
    for worker in RUN.workers:  # a short run is kept whole
        for name, seconds in worker.seconds.items():
            own = [row["seconds"] for row in spans if (row["rank"], row["phase"]) == (worker.rank, name)]
            assert sum(own) == pytest.approx(seconds, abs=2e-6 * len(own))
    assert all(abs(row["start"] - time.time()) < 3600 for row in spans)


def test_tables_of_statistics_without_a_trace_are_empty_not_absent() -> None:
    tables = PLAIN.to_arrow()
    assert tables["steps"].num_rows == tables["spans"].num_rows == 0
    assert tables["steps"].schema == RUN.to_arrow()["steps"].schema
    assert tables["workers"].column("digest").to_pylist() == [2**64 - 1]


def test_pandas_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    frames = RUN.to_pandas()
    assert frames["phases"].groupby("rank").seconds.sum().loc[0] == pytest.approx(
        sum(RUN.workers[0].seconds.values())
    )
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(OptionError, match="pandas is not installed"):
        RUN.to_pandas()


def test_the_page_goes_to_any_store() -> None:
    PLAIN.to_html("memory://page/run.html", title="A <run>")
    try:
        text = fsspec.filesystem("memory").cat("/page/run.html").decode()
        assert "<title>A &lt;run&gt;</title>" in text
    finally:
        fsspec.filesystem("memory").rm("/page", recursive=True)
