"""The ledger: every row once an epoch by count, whoever is lost, late or given up; the same after a trip through JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.errors import ProtocolError
from fatwood.train.header import Header
from fatwood.train.ledger import Ledger, Stage
from fatwood.train.records import ValidationRecord


def new(workers: int = 2, *, epochs: int = 1, first: int = 0, with_buffers: bool = False) -> Ledger:
    return Ledger(workers=workers, epoch=first, end=first + epochs, with_buffers=with_buffers)


def header(
    rows: int, *, more: bool, position: int = 0, consumed: int | None = None, loss: float = 0.0
) -> Header:
    consumed = rows if consumed is None else consumed
    return Header(rows=rows, loss_sum=loss, more=more, position=position, consumed=consumed)


@dataclass
class Partitions:
    """Workers with rows, of which every third cannot be trained; they go on where the ledger says."""

    rows: list[int]
    batch: int

    def message(self, ledger: Ledger, rank: int) -> Header:
        at, left = ledger.positions[rank], self.rows[rank] - ledger.positions[rank]
        consumed = min(self.batch, left)
        good = [row for row in range(at, at + consumed) if row % 3 < 2]
        return Header(
            rows=len(good),
            loss_sum=float(len(good)),
            more=left > consumed,
            position=at,
            consumed=consumed,
        )

    @property
    def good(self) -> list[int]:
        return [sum(row % 3 < 2 for row in range(rows)) for rows in self.rows]


@st.composite
def runs(draw):
    workers = draw(st.integers(1, 4))
    rows = draw(st.lists(st.integers(0, 12), min_size=workers, max_size=workers))
    return Partitions(rows, draw(st.integers(1, 5))), draw(st.integers(1, 3)), draw(st.booleans())


def play_round(ledger: Ledger, partitions: Partitions, ranks: list[int], abandoned: set[int]) -> None:
    if ledger.stage is Stage.TRAIN:
        headers = [partitions.message(ledger, rank) for rank in ranks]
        ledger.enter(ranks, abandoned, headers, steps=1, seconds=1.0)
    elif ledger.stage is Stage.BUFFERS:
        ledger.enter_buffers(1.0)
    elif ledger.stage is Stage.VALIDATE:
        ledger.enter_validation(validation(ledger), 1.0)
    else:
        ledger.enter_digests()


def validation(ledger: Ledger, loss: float = 1.0) -> ValidationRecord:
    return ValidationRecord(step=ledger.agreements, epoch=ledger.epoch, loss=loss, accuracy=None, rows=1)


@settings(deadline=None)
@given(runs(), st.data())
def test_every_row_counts_once_an_epoch_whoever_is_away_for_a_while(run, data) -> None:
    partitions, epochs, with_buffers = run
    workers = len(partitions.rows)
    ledger = new(workers, epochs=epochs, first=4, with_buffers=with_buffers)
    everybody = list(range(workers))
    rounds = 0
    while ledger.stage is not Stage.OVER:
        rounds += 1
        assert rounds < 1000, "it comes to an end"
        ranks = sorted(data.draw(st.sets(st.sampled_from(everybody), min_size=1), label="there"))
        if ledger.must_wait(ranks, ()):
            missing = set(everybody) - set(ranks)
            assert all(ledger.exhausted[rank] for rank in ranks)
            assert any(not ledger.exhausted[rank] for rank in missing)
            ranks = everybody
            assert not ledger.must_wait(ranks, ())
        ledger = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))  # a newcomer's is as good
        play_round(ledger, partitions, ranks, set())
    assert [record.epoch for record in ledger.records] == list(range(4, 4 + epochs))
    for record in ledger.records:
        assert list(record.rows_of_worker) == partitions.good
        assert record.rows == sum(partitions.good)
        assert record.loss == 1.0 if record.rows else math.isnan(record.loss)
    assert ledger.rows_trained == [epochs * rows for rows in partitions.good]
    skipped = [rows - good for rows, good in zip(partitions.rows, partitions.good, strict=True)]
    assert ledger.rows_skipped == skipped
    assert (ledger.rows_twice, ledger.rows_passed_over) == (0, 0)


@settings(deadline=None)
@given(runs(), st.data())
def test_rows_that_are_given_up_are_the_only_ones_that_are_missing(run, data) -> None:
    partitions, epochs, with_buffers = run
    workers = len(partitions.rows)
    ledger = new(workers, epochs=epochs, with_buffers=with_buffers)
    stays = data.draw(st.integers(0, workers - 1))
    leaves = {
        rank: data.draw(st.integers(0, 6), label=f"rounds of {rank}")
        for rank in range(workers)
        if rank != stays
    }
    rounds = 0
    while ledger.stage is not Stage.OVER:
        ranks = sorted([stays, *(rank for rank, last in leaves.items() if rounds < last)])
        abandoned = set(range(workers)) - set(ranks)
        assert not ledger.must_wait(ranks, abandoned)
        play_round(ledger, partitions, ranks, abandoned)
        rounds += 1
        assert rounds < 200
    assert ledger.rows_trained[stays] == epochs * partitions.good[stays]
    for rank, good in enumerate(partitions.good):
        assert ledger.rows_trained[rank] <= epochs * good
    assert sum(record.rows for record in ledger.records) == sum(ledger.rows_trained)
    assert (ledger.rows_twice, ledger.rows_passed_over) == (0, 0)


def test_an_epoch_waits_for_the_rows_of_who_is_missing() -> None:
    ledger = new()
    assert not ledger.must_wait([0], ())
    ledger.enter([0], (), [header(3, more=False)], steps=1, seconds=1.0)
    assert ledger.stage is Stage.TRAIN
    assert ledger.must_wait([0], ())
    assert not ledger.must_wait([0], [1])
    assert not ledger.must_wait([0, 1], ())
    ledger.enter([0, 1], (), [header(0, more=False, position=3), header(2, more=False)], steps=1, seconds=1.0)
    assert ledger.stage is Stage.DIGESTS
    assert not ledger.must_wait([0], ())


def test_what_is_given_up_ends_the_epoch_at_the_next_agreement() -> None:
    ledger = new()
    ledger.enter([0], (), [header(3, more=False)], steps=1, seconds=1.0)
    ledger.enter([0], [1], [header(0, more=False, position=3)], steps=1, seconds=1.0)
    assert ledger.stage is Stage.DIGESTS
    assert [record.rows_of_worker for record in ledger.records] == [(3, 0)]


def test_buffers_and_digests_have_rounds_of_their_own() -> None:
    ledger = new(1, epochs=2, with_buffers=True)
    for epoch in (0, 1):
        assert (ledger.stage, ledger.epoch) == (Stage.TRAIN, epoch)
        ledger.enter([0], (), [header(2, more=False, loss=1.0)], steps=1, seconds=1.5)
        assert (ledger.stage, ledger.epoch) == (Stage.BUFFERS, epoch)
        assert ledger.rows == [2], "the buffers' weights"
        ledger.enter_buffers(2.5)
    assert ledger.stage is Stage.DIGESTS
    ledger.enter_digests()
    assert ledger.stage is Stage.OVER
    assert [(r.epoch, r.loss, r.rows, r.seconds) for r in ledger.records] == [
        (0, 0.5, 2, 2.5),
        (1, 0.5, 2, 2.5),
    ]
    assert ledger.agreements == 2


def test_rows_that_come_twice_or_never_are_counted() -> None:
    ledger = new(1)
    ledger.enter([0], (), [header(5, more=True)], steps=1, seconds=1.0)
    ledger.enter([0], (), [header(5, more=True, position=2)], steps=1, seconds=1.0)
    assert (ledger.rows_twice, ledger.rows_passed_over) == (3, 0)
    ledger.enter([0], (), [header(1, more=True, position=0)], steps=1, seconds=1.0)
    assert ledger.rows_twice == 4
    ledger.enter([0], (), [header(2, more=False, position=8)], steps=1, seconds=1.0)
    assert (ledger.rows_twice, ledger.rows_passed_over) == (4, 7)


def test_a_step_is_recorded_with_the_loss_of_its_rows_and_of_the_epoch() -> None:
    ledger = Ledger(workers=1, epoch=0, end=2, with_buffers=False)
    first = ledger.enter([0], (), [header(4, more=True, loss=2.0)], steps=1, seconds=1.0)
    assert (first.step, first.epoch, first.rows, first.rows_of_epoch) == (1, 0, 4, 4)
    assert (first.loss, first.mean_loss) == (0.5, 0.5)
    second = ledger.enter([0], (), [header(1, more=False, position=4, loss=3.0)], steps=2, seconds=1.0)
    assert (second.step, second.epoch, second.rows_of_epoch, second.loss, second.mean_loss) == (
        2,
        0,
        5,
        3.0,
        1.0,
    )
    third = ledger.enter([0], (), [header(0, more=True)], steps=1, seconds=1.0)
    assert third.epoch == 1
    assert math.isnan(third.loss)
    assert ledger.steps == 4


def test_weights_count_in_the_loss_and_not_in_the_rows() -> None:
    ledger = Ledger(workers=2, epoch=0, end=1, with_buffers=False)
    headers = [header(4, more=False, loss=3.0)._replace(weight=1.0), header(2, more=False, loss=1.0)]
    record = ledger.enter([0, 1], (), headers, steps=1, seconds=1.0)
    assert record.loss == pytest.approx(4 / 3)
    assert ledger.records[0].loss == pytest.approx(4 / 3)
    assert ledger.records[0].rows == 6


@pytest.mark.parametrize("with_buffers", [False, True])
def test_validations_come_when_they_are_due(with_buffers: bool) -> None:
    ledger = Ledger(
        workers=1, epoch=0, end=2, with_buffers=with_buffers, with_validation=True, validate_every=2
    )
    stages = []
    position = 0
    while ledger.stage is not Stage.OVER:
        stages.append(ledger.stage.value)
        if ledger.stage is Stage.TRAIN:
            message = header(1, more=position < 2, position=position)
            ledger.enter([0], (), [message], steps=1, seconds=1.0)
            position = (position + 1) % 3
        else:
            play_round(ledger, Partitions([3], 1), [0], set())
    between = ["buffers", "validate"] if with_buffers else ["validate"]
    ends = ["buffers"] if with_buffers else []
    expected = [
        "train",
        "train",
        *between,
        "train",
        *ends,
        "train",
        *between,
        "train",
        "train",
        *between,
        "digests",
    ]
    assert stages == expected
    assert [v.step for v in ledger.validations] == [2, 4, 6]
    assert [r.validation and r.validation.step for r in ledger.records] == [None, 6]


def test_a_stop_in_an_epoch_closes_it_and_ends_the_fit() -> None:
    ledger = Ledger(workers=1, epoch=3, end=9, with_buffers=True, with_validation=True, validate_every=1)
    ledger.enter([0], (), [header(4, more=True)], steps=1, seconds=1.0)
    ledger.enter_buffers(1.0)
    record = validation(ledger)
    ledger.enter_validation(record, 1.0)
    assert ledger.stage is Stage.TRAIN
    ledger.stop("enough", 2.0)
    assert (ledger.stage, ledger.stopped, ledger.epoch) == (Stage.DIGESTS, "enough", 4)
    assert [(r.rows, r.validation) for r in ledger.records] == [(4, record)]
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))) == ledger


@pytest.mark.parametrize("flag", ["stop", "not_finite"])
def test_a_flag_of_one_worker_stops_all(flag: str) -> None:
    ledger = Ledger(workers=2, epoch=0, end=9, with_buffers=False)
    headers = [header(4, more=True), header(4, more=True)._replace(**{flag: True})]
    ledger.enter([0, 1], (), headers, steps=1, seconds=1.0)
    assert ledger.stage is Stage.DIGESTS
    assert ledger.stopped is not None
    assert ("worker 1" in ledger.stopped) == (flag == "not_finite")
    assert ledger.records[0].rows == 8


def test_a_rank_of_another_job_is_an_error() -> None:
    ledger = new()
    for ranks in ([2], [-1], [0, 5]):
        with pytest.raises(ProtocolError, match="expected ranks below 2"):
            ledger.enter(ranks, (), [header(1, more=True)] * len(ranks), steps=1, seconds=1.0)
    assert ledger == new()


@pytest.mark.parametrize("change", ["no stage", "wrong stage", "unknown field", "records", "nothing"])
def test_what_is_no_ledger_is_a_protocol_error(change) -> None:
    values = new().to_json()
    if change == "no stage":
        del values["stage"]
    elif change == "wrong stage":
        values["stage"] = "party"
    elif change == "unknown field":
        values["more"] = 1
    elif change == "records":
        values["records"] = [{"epoch": 1}]
    else:
        values = {}
    with pytest.raises(ProtocolError, match="expected the fields of a ledger"):
        Ledger.from_json(values)
