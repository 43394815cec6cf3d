"""The recorder: what it keeps is true, bounded, and complete in sum."""

from __future__ import annotations

import json
import math
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fatwood.data import Layout
from fatwood.errors import ProtocolError
from fatwood.exchange import ClockOffset
from fatwood.testing.threads import shard, train_in_threads
from fatwood.train import (
    AllReduce,
    GradientSharing,
    ParameterAveraging,
    Recipe,
    Strategy,
    TrainingJob,
    read_trace,
)
from fatwood.train.clock import PhaseClock
from fatwood.train.series import FIGURES, StepSeries, StepTrace
from fatwood.train.spans import Spans
from fatwood.train.tables import job_time
from fatwood.train.trace import Trace

PARTS = st.tuples(st.sampled_from("abc"), st.floats(0, 40), st.floats(0, 3))


def unpacked(window: list[int]) -> list[tuple[int, int, int]]:
    """Phase, start and duration, in microseconds."""
    packed = np.array(window).reshape(-1, 3)
    return list(
        zip(packed[:, 0].tolist(), packed[:, 1].cumsum().tolist(), packed[:, 2].tolist(), strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(PARTS, max_size=700), repeat=st.integers(1, 3))
def test_bins_hold_every_second_of_every_span(parts: list[tuple[str, float, float]], repeat: int) -> None:
    spans, now = Spans(), 0.0
    totals = dict.fromkeys("abc", 0.0)
    busy: list[tuple[float, float]] = []
    for phase, seconds, pause in parts * repeat:
        spans.add(phase, now, now + seconds)
        busy.append((now, now + seconds))
        totals[phase] += seconds
        now += seconds + pause
    found = spans.to_json()
    width, phases = found["bins"]["width"], found["bins"]["phases"]
    rounding = 0.5 * max((len(values) for values in phases), default=0) + 1
    for name, values in zip(found["phases"], phases, strict=True):
        assert sum(values) == pytest.approx(1e6 * totals[name], abs=rounding)
    assert all(sum(column) <= width + 2 for column in zip(*phases, strict=True))
    assert all(len(values) <= 1024 for values in phases)
    if now > 0 and phases:
        used = math.floor(busy[-1][1] * 1e6 / width) + 1
        assert len(phases[0]) <= used
    assert math.log2(width / 1e6).is_integer()


@settings(max_examples=20, deadline=None)
@given(count=st.integers(0, 9_000), seconds=st.sampled_from([1e-4, 0.02, 1.0]))
def test_windows_hold_the_first_and_the_last_spans_exactly(count: int, seconds: float) -> None:
    spans = Spans()
    for i in range(count):
        spans.add("ab"[i % 2], i * seconds, (i + 0.5) * seconds)
    found = spans.to_json()
    windows = [unpacked(window) for window in found["windows"]]
    kept = []
    for window in windows:
        numbers = [round(start / 1e6 / seconds) for _, start, _ in window]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        for number, (phase, start, duration) in zip(numbers, window, strict=True):
            assert found["phases"][phase] == "ab"[number % 2]
            assert start == pytest.approx(number * seconds * 1e6, abs=1)
            assert duration == pytest.approx(seconds * 5e5, abs=1)
        kept += numbers
    assert kept == sorted(set(kept))
    assert kept[: min(count, 2048)] == list(range(min(count, 2048)))
    assert kept[-(count % 256 or min(count, 256)) :] == list(
        range(count - (count % 256 or min(count, 256)), count)
    )
    assert len(kept) <= 26 * 256


def test_a_long_run_is_bounded_and_its_middle_is_sampled_evenly() -> None:
    spans = Spans()
    for i in range(150_000):
        spans.add("abcdefgh"[i % 8], i * 0.01, i * 0.01 + 0.009)
    found = spans.to_json()
    assert len(json.dumps(found)) < 300_000
    starts = [unpacked(window)[0][1] / 1e6 for window in found["windows"]][8:-1]
    gaps = np.diff(starts)
    assert len(starts) >= 8
    assert gaps.max() == pytest.approx(gaps.min(), abs=1e-3)


def test_what_was_read_once_is_still_there_later() -> None:
    spans = Spans()
    for i in range(300):
        spans.add("a", i, i + 0.5)
    first = spans.to_json()
    assert spans.to_json()["bins"] == first["bins"]
    for i in range(300, 600):
        spans.add("a", i, i + 0.5)
    assert sum(spans.to_json()["bins"]["phases"][0]) == pytest.approx(300e6, abs=600)


def test_two_threads_lose_nothing() -> None:
    spans = Spans()

    def add(phase: str) -> None:
        for i in range(20_000):
            spans.add(phase, i * 1e-3, i * 1e-3 + 5e-4)

    threads = [threading.Thread(target=add, args=(phase,)) for phase in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = spans.to_json()
    assert sorted(found["phases"]) == ["a", "b"]
    for values in found["bins"]["phases"]:
        assert sum(values) == pytest.approx(10e6, rel=1e-4)


VALUES = st.one_of(st.floats(-1e6, 1e6), st.just(math.nan))


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.tuples(VALUES, st.one_of(st.none(), st.floats(1e-9, 1e9))), max_size=30),
    first=st.integers(1, 10**12),
    repeat=st.sampled_from([1, 150]),
)
def test_a_series_has_the_mean_and_the_extremes(
    values: list[tuple[float, float | None]], first: int, repeat: int
) -> None:
    series, values = StepSeries(), values * repeat
    for i, (loss, tau) in enumerate(values):
        step = StepTrace(
            step=first + i, epoch=i // 9, rows=i, loss=loss, message_bytes=8, tau=tau, seconds=0.5
        )
        series.add(float(i), step)
    found = series.to_json()
    width = found["width"]
    assert len(found["steps"]) == math.ceil(len(values) / width) <= 512
    assert sum(found["steps"]) == len(values)
    for name, column in (("loss", 0), ("tau", 1)):
        figure = found["figures"].get(name)
        for i in range(len(found["steps"])):
            part = [v[column] for v in values[i * width : (i + 1) * width]]
            there = [v for v in part if v is not None and math.isfinite(v)]
            if figure is None or not there:
                assert not there
                assert figure is None or figure["mean"][i] is None
                continue
            scale = max(map(abs, there))
            assert figure["mean"][i] == pytest.approx(np.mean(there), rel=2e-5, abs=1e-5 * scale)
            assert figure.get("least", figure["mean"])[i] == pytest.approx(min(there), rel=1e-5)
            assert figure.get("most", figure["mean"])[i] == pytest.approx(max(there), rel=1e-5)
    assert found["epoch"] == sorted(found["epoch"])
    if values:
        assert found["first"] == first
        assert found["end"][-1] == len(values) - 1


def test_a_series_of_any_length_is_small() -> None:
    series = StepSeries()
    for i in range(5_000):
        step = StepTrace(
            step=i, epoch=0, rows=32, loss=1 / (i + 3), message_bytes=i, tau=1e-9 / 3, density=1e-3 / 7
        )
        series.add(i / 3, step)
    text = json.dumps(series.to_json())
    assert len(text) < 120_000
    assert set(json.loads(text)["figures"]) == set(FIGURES)


def test_the_clock_counts_blocks_that_raise_and_tells_the_trace() -> None:
    trace = Trace()
    for clock in (PhaseClock(), PhaseClock(trace)):
        with pytest.raises(KeyError), clock.phase("a"):
            _fail_late()
        assert list(clock.timed("b", iter([1, 2]))) == [1, 2]
        clock.step(StepTrace(step=1, epoch=0, rows=1, loss=2.0, message_bytes=3))
        assert clock.seconds["a"] >= 0.01
        assert set(clock.seconds) == {"a", "b"}
    found = trace.to_json()
    assert found["spans"]["phases"] == ["a", "b"]
    assert len(found["spans"]["windows"][0]) == 3 * 4  # one, then two items and the end
    assert found["steps"]["figures"]["loss"] == {"mean": [2.0]}
    assert sum(found["spans"]["bins"]["phases"][0]) == pytest.approx(1e6 * clock.seconds["a"], abs=20)


def _fail_late() -> None:
    time.sleep(0.01)
    raise KeyError


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    trace = Trace()
    trace.span("a", time.perf_counter(), time.perf_counter() + 1)
    trace.step(StepTrace(step=1, epoch=0, rows=0, loss=math.nan, message_bytes=3))
    trace.clock(ClockOffset(seconds=0.5, error_seconds=None, source="system"))
    path = tmp_path / "trace"
    path.write_bytes(trace.to_bytes())
    assert read_trace(path, "worker 0") == trace.to_json()
    assert "loss" not in trace.to_json()["steps"]["figures"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"spans":{}}', b"\xff"], ids=["empty", "list", "part", "bytes"]
)
def test_what_is_no_trace_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(ProtocolError, match="worker 3 on host h: expected a trace as JSON, received"):
        read_trace(path, "worker 3 on host h")


def test_readings_take_offset_and_drift_out_of_the_times() -> None:
    readings = [{"at": 10.0, "time": 1010.0 - 4.0}, {"at": 20.0, "time": 1020.0 - 3.0}]
    trace = {"started": 1000.0, "clock": readings}
    at = [0.0, 10.0, 15.0, 20.0, 30.0]
    assert job_time(trace, at).tolist() == [996.0, 1006.0, 1011.5, 1017.0, 1027.0]
    assert job_time({"started": 5.0, "clock": []}, [1.0]).tolist() == [6.0]


def test_a_reading_by_another_clock_is_left_out() -> None:
    trace = Trace()
    trace.clock(ClockOffset(seconds=5.0, error_seconds=0.001))
    trace.clock(ClockOffset(seconds=0.0, error_seconds=None, source="system", remark="the driver is gone"))
    trace.clock(ClockOffset(seconds=5.5, error_seconds=0.002))
    readings = trace.to_json()["clock"]
    assert [(r["offset"], r["error"], r["source"]) for r in readings] == [
        (5.0, 0.001, "job"),
        (5.5, 0.002, "job"),
    ]
    assert readings[0]["time"] - readings[0]["at"] == pytest.approx(
        trace.to_json()["started"] + 5.0, abs=0.05
    )
    for _ in range(100):
        trace.clock(ClockOffset(seconds=5.0, error_seconds=0.001))
    assert len(trace.to_json()["clock"]) == 64


LAYOUT = Layout.of(
    feature_width=4, feature_dtype="float32", feature_name="x", label_dtype="int64", label_name="y"
)


@pytest.mark.parametrize("strategy", [AllReduce(), GradientSharing(), ParameterAveraging(every=3)], ids=str)
def test_a_trace_agrees_with_what_is_counted(strategy: Strategy) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((50, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    job = TrainingJob(
        network=nn.Linear(4, 2),
        loss=nn.CrossEntropyLoss(),
        recipe=Recipe(optimizer=partial(torch.optim.SGD, lr=0.1)),
        strategy=strategy,
        batch_size=5,
        epochs=3,
    )
    shards = [shard(x, y, np.arange(rank, 50, 2)) for rank in range(2)]
    for outcome in train_in_threads(job, shards, LAYOUT, traced=True):
        stats, trace = outcome.stats, outcome.stats.trace
        assert trace is not None
        steps, spans = trace["steps"], trace["spans"]
        figures = {name: figure["mean"] for name, figure in steps["figures"].items()}
        assert len(steps["steps"]) == stats.agreements
        assert sum(figures["rows"]) == stats.rows_trained
        assert sum(figures["message_bytes"]) == stats.message_bytes
        assert steps["epoch"] == sorted(steps["epoch"])
        assert (steps["epoch"][0], steps["epoch"][-1]) == (0, 2)
        assert np.bincount(steps["epoch"]).tolist() == [stats.agreements // 3] * 3
        assert ("tau" in figures) == isinstance(strategy, GradientSharing)
        assert {name for name, seconds in stats.seconds.items() if seconds} == set(spans["phases"])
        for name, bins in zip(spans["phases"], spans["bins"]["phases"], strict=True):
            assert sum(bins) == pytest.approx(1e6 * stats.seconds[name], abs=len(bins))
