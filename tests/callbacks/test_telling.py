"""What the workers report, and in which order the driver's callbacks hear of it."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fatwood import Callback, WorkerCallback
from fatwood.errors import OptionError, StorageError, UserCodeError
from fatwood.exchange.frames import MAX_BODY_BYTES
from fatwood.train import (
    Callbacks,
    EpochRecord,
    Ledger,
    RunInfo,
    StepRecord,
    ValidationRecord,
    record_from_json,
    split_callbacks,
)
from fatwood.train.reports import ProgressReports
from fatwood.train.telling import place, record_to_json


class Line:
    """A member whose reports go over a line that may be cut: what is sent then never arrives."""

    def __init__(self, arrived: list[dict]) -> None:
        self.arrived, self.is_cut = arrived, False

    def report(self, kind: str, body: dict) -> None:
        assert kind == "progress"
        text = json.dumps({"kind": kind, "body": body})
        assert len(text) <= MAX_BODY_BYTES
        if not self.is_cut:
            self.arrived.append(json.loads(text)["body"])


class Heard(Callback):
    """Everything that a callback is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def on_start(self, run):
        self.calls.append(("start", run))

    def on_step(self, record):
        self.calls.append(("step", record))

    def on_validation(self, record):
        self.calls.append(("validation", record))

    def on_epoch(self, record):
        self.calls.append(("epoch", record))

    def on_end(self, history, stats):
        self.calls.append(("end", history))

    def on_error(self, error):
        self.calls.append(("error", error))

    def of(self, kind: str) -> list:
        return [what for name, what in self.calls if name == kind]


def step(number: int, epoch: int = 0, loss: float = 0.5) -> StepRecord:
    return StepRecord(step=number, epoch=epoch, rows=4, rows_of_epoch=4 * number, loss=loss, mean_loss=loss)


def validation(number: int, epoch: int) -> ValidationRecord:
    return ValidationRecord(step=number, epoch=epoch, loss=0.25, accuracy=None, rows=7)


def epoch_end(epoch: int, workers: int = 2) -> EpochRecord:
    return EpochRecord(epoch=epoch, loss=0.5, rows=8, seconds=1.5, rows_of_worker=(4,) * workers)


def ledger(workers: int = 2) -> Ledger:
    return Ledger(workers=workers, epoch=0, end=10_000, with_buffers=False)


RUN = RunInfo(
    workers=2,
    epochs=3,
    first_epoch=0,
    rows=8,
    batch_size=4,
    parameters=3,
    strategy="AllReduce()",
    options={"seed": 0},
    network=None,  # type: ignore[arg-type]
)


@given(
    epochs=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    validate_every=st.sampled_from([None, 1, 2, 3]),
    data=st.data(),
)
def test_every_epoch_and_validation_is_told_once_and_in_order_whoever_leads(
    epochs, validate_every, data
) -> None:
    """Leaders die with reports unsent, reports are lost on the way, and a former leader comes back."""
    arrived: list[dict] = []
    lines = [Line(arrived), Line(arrived)]
    reports = [ProgressReports(line) for line in lines]  # type: ignore[arg-type]
    known, number, leader = ledger(), 0, 0
    for epoch, steps in enumerate(epochs):
        for _ in range(steps):
            number += 1
            event = data.draw(st.sampled_from(["goes on", "flush", "is cut", "dies", "changes"]))
            lines[leader].is_cut |= event == "is cut"  # and it dies some steps later
            if event == "dies" or (event == "changes" and lines[leader].is_cut):
                lines[leader] = Line(arrived)
                reports[leader] = ProgressReports(lines[leader])  # type: ignore[arg-type]
            if event in ("dies", "changes"):
                leader = 1 - leader
            reports[leader](step(number, epoch), known)
            if event == "flush":
                reports[leader].flush()
            if validate_every is not None and number % validate_every == 0:
                known.validations.append(validation(number, epoch))
        known.records.append(epoch_end(epoch))
        known.epoch += 1
    heard = Heard()
    told = Callbacks([heard])
    told.start(RUN)
    for body in arrived:
        told.tell([record_from_json(values) for values in body["records"]])
    if data.draw(st.booleans()) and not lines[leader].is_cut:
        reports[leader].flush()
        told.tell([record_from_json(values) for values in arrived[-1]["records"]])
    told.tell(known.validations, known.records)
    assert heard.of("epoch") == known.records
    assert heard.of("validation") == known.validations
    steps = [record.step for record in heard.of("step")]
    assert steps == sorted(set(steps))
    ends = {record.epoch: heard.calls.index(("epoch", record)) for record in known.records}
    for position, (kind, record) in enumerate(heard.calls):
        if kind in ("step", "validation"):
            assert position < ends[record.epoch]
            assert all(position > at for epoch, at in ends.items() if epoch < record.epoch)


def test_what_is_told_at_once_is_in_the_order_of_events() -> None:
    heard = Heard()
    Callbacks([heard]).tell(
        [epoch_end(1), epoch_end(0)],
        [validation(2, 0), validation(3, 1)],
        [step(3, 1), step(1, 0), step(2, 0)],
    )
    names = [(kind, getattr(record, "step", None)) for kind, record in heard.calls]
    assert names == [
        ("step", 1),
        ("step", 2),
        ("validation", 2),
        ("epoch", None),
        ("step", 3),
        ("validation", 3),
        ("epoch", None),
    ]


def test_steps_between_two_reports_are_thinned_evenly_and_the_last_is_told(monkeypatch) -> None:
    monkeypatch.setattr("fatwood.train.reports._PROGRESS_SECONDS", 1e9)
    arrived: list[dict] = []
    reports, known = ProgressReports(Line(arrived)), ledger()  # type: ignore[arg-type]
    for number in range(1, 1002):
        reports(step(number), known)
    reports.flush()
    first, second = ([values["step"] for _, values in body["records"]] for body in arrived)
    assert first == [1]
    assert second == list(range(11, 1002, 10))
    reports.flush()
    assert len(arrived) == 2


def test_reports_come_ten_times_a_second(monkeypatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    arrived: list[dict] = []
    reports, known = ProgressReports(Line(arrived)), ledger()  # type: ignore[arg-type]
    for number in range(1, 201):
        reports(step(number), known)
        now += 0.01
    assert 19 <= len(arrived) <= 21
    assert [values["step"] for body in arrived for _, values in body["records"]][:20] == list(range(1, 21))


def test_a_leader_that_takes_over_late_fits_its_reports_into_frames() -> None:
    arrived: list[dict] = []
    reports, known = ProgressReports(Line(arrived)), ledger(workers=500)  # type: ignore[arg-type]
    known.records += [epoch_end(epoch, workers=500) for epoch in range(300)]
    reports(step(1, 300), known)
    assert len(arrived) > 1
    told = [record_from_json(values) for body in arrived for values in body["records"]]
    assert told == [*known.records, step(1, 300)]


@pytest.mark.parametrize(
    "record", [step(3, loss=float("inf")), validation(3, 1), epoch_end(2)], ids=lambda r: type(r).__name__
)
def test_records_cross_as_json(record) -> None:
    assert record_from_json(json.loads(json.dumps(record_to_json(record)))) == record
    assert place(record)[0] == record.epoch


class Raising(Callback):
    """Raises in one of its hooks."""

    def __init__(self, hook: str, error: Exception) -> None:
        def fail(*_args: object) -> None:
            raise error

        setattr(self, hook, fail)


@pytest.mark.parametrize("hook", ["on_step", "on_validation", "on_epoch"])
def test_an_error_names_class_and_hook(hook) -> None:
    told = Callbacks([Raising(hook, KeyError("x"))])
    told.start(RUN)
    with pytest.raises(UserCodeError) as caught:
        told.tell([validation(1, 0)], [epoch_end(0)], [step(1)])
    assert caught.value.message == f"KeyError: 'x'\nraised by the callback Raising.{hook}"
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_of_ours_keeps_its_hint() -> None:
    with pytest.raises(UserCodeError) as caught:
        Callbacks([Raising("on_start", StorageError("no disk", hint="buy one"))]).start(RUN)
    assert caught.value.message == "StorageError: no disk\nraised by the callback Raising.on_start"
    assert caught.value.hint == "buy one"


def test_whoever_was_started_is_ended_once(caplog) -> None:
    before, after = Heard(), Heard()
    told = Callbacks([before, Raising("on_start", OSError("no")), after])
    with pytest.raises(UserCodeError, match=r"Raising\.on_start") as caught:
        told.start(RUN)
    told.error(caught.value)
    assert before.calls == [("start", RUN), ("error", caught.value)]
    assert after.calls == []


def test_all_are_ended_although_one_raises(caplog) -> None:
    last = Heard()
    told = Callbacks([Raising("on_end", OSError("first")), Raising("on_end", OSError("second")), last])
    told.start(RUN)
    with caplog.at_level(logging.WARNING), pytest.raises(UserCodeError, match=r"OSError: first"):
        told.end((), None)  # type: ignore[arg-type]
    assert last.of("end") == [()]
    assert ["OSError: second" in record.message for record in caplog.records] == [True]


def test_an_error_in_on_error_hides_nothing(caplog) -> None:
    last, error = Heard(), ValueError("the first")
    told = Callbacks([Raising("on_error", OSError("later")), last])
    told.start(RUN)
    with caplog.at_level(logging.WARNING):
        told.error(error)
    assert last.of("error") == [error]
    assert "Raising.on_error" in caplog.text


class Both(Callback, WorkerCallback):  # type: ignore[misc]
    """Cannot be: its hooks have two meanings."""


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (
            [Heard(), print],
            r"callbacks\[1\]: expected a Callback or a WorkerCallback, received builtin_function",
        ),
        ([Heard], r"callbacks\[0\]: .*received the class Heard\nhint: pass an instance"),
        ([Both()], r"callbacks\[0\]: .*which is both"),
        (Heard(), r"callbacks: expected a list of callbacks, received Heard .*\nhint: put it in a list"),
        ("tensorboard", r"callbacks: expected a list"),
        (None, r"callbacks: expected a list"),
    ],
    ids=["function", "class", "both", "alone", "text", "none"],
)
def test_what_is_no_callback_is_refused(callbacks, message) -> None:
    with pytest.raises(OptionError, match=message):
        split_callbacks(callbacks)


def test_a_list_may_hold_both_kinds() -> None:
    first, worker, second = Heard(), WorkerCallback(), Heard()
    assert split_callbacks([first, worker, second]) == ((first, second), (worker,))
    assert split_callbacks(()) == ((), ())
