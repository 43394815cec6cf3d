"""A toy that trains: the loop and the ledger of a real worker, with a checksum of all outcomes as its parameters."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

import numpy as np

from fatwood.errors import ExchangeError
from fatwood.exchange.contract import Buffer, Exchange
from fatwood.exchange.elastic import ElasticTeam
from fatwood.exchange.outcome import Outcome
from fatwood.exchange.team import Trainee
from fatwood.train.header import Header, join, split
from fatwood.train.ledger import Ledger, Stage
from fatwood.train.records import ValidationRecord

if TYPE_CHECKING:
    from fatwood.testing.simulation.plan import Plan
    from fatwood.testing.simulation.process import Process

__all__ = ["Applied", "Toy"]

_PAYLOAD: Final = struct.Struct("<IIQQ")  # member, epoch, first row, row after the last


class Applied(NamedTuple):
    """A minibatch that all workers have applied."""

    epoch: int
    rank: int
    first: int
    stop: int
    member: int
    """Of the process that computed it."""


@final
class Toy(Trainee):
    """One worker's replica.

    Args:
        plan: Of the schedule.
        rank: The worker's.
        member: The process's number.
        on_round: Told the parameters after each completed round, and after a snapshot was taken up.
        count: Told what happened.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        member: int,
        on_round: Callable[[int, int, Ledger], None],
        count: Callable[[str], None],
    ) -> None:
        self.rounds = 0
        self.parameters = 0
        self.ledger = Ledger(
            workers=plan.workers,
            epoch=0,
            end=plan.epochs,
            with_buffers=plan.with_buffers,
            with_validation=plan.validate_every is not None,
            validate_every=plan.validate_every or None,
        )
        self.applied: list[Applied] = []
        self.abandoned: list[list[int]] = []
        """Epoch and rank, wherever an agreement did not wait for a rank's rows."""
        self.computed: list[Applied] = []
        """Minibatches that this process has computed, applied or not."""
        self.restored = False
        self._plan = plan
        self._rank = rank
        self._member = member
        self._on_round = on_round
        self._count = count
        self._epoch = -1
        self._next_row = 0

    def snapshot(self) -> bytes:
        """See `Trainee`."""
        self._count("snapshot")
        state = {
            "rounds": self.rounds,
            "parameters": self.parameters,
            "ledger": self.ledger.to_json(),
            "applied": self.applied,
            "abandoned": self.abandoned,
        }
        return json.dumps(state).encode()

    def restore(self, snapshot: Buffer) -> None:
        """See `Trainee`."""
        fresh = not (self.restored or self.computed or self.rounds)
        assert fresh, "restored over a state"
        self.restored = True
        self._count("restored")
        state: dict[str, Any] = json.loads(bytes(snapshot))
        self.rounds, self.parameters = state["rounds"], state["parameters"]
        self.ledger = Ledger.from_json(state["ledger"])
        self.applied = [Applied(*entry) for entry in state["applied"]]
        self.abandoned = state["abandoned"]
        self._on_round(self.rounds, self.parameters, self.ledger)

    def train(self, team: ElasticTeam, process: Process) -> None:
        """All rounds, as in `fatwood.train.replica`; then stay until the roster says that the job is over."""
        while self.ledger.stage is not Stage.OVER:
            assert team.completed == self.rounds, f"{team.completed} rounds completed, {self.rounds} applied"
            if self.ledger.must_wait(team.ranks, team.abandoned):
                if not team.wait(for_missing=True):
                    message = f"rank {self._rank}: the job was over before the training"
                    raise ExchangeError(message)
            elif self.ledger.stage is Stage.TRAIN:
                process.glance()
                self._agree(team)
            elif self.ledger.stage is Stage.BUFFERS:
                self._average_buffers(team)
            elif self.ledger.stage is Stage.VALIDATE:
                self._validate(team)
            else:
                self._compare(team)
        process.roster.tell("done", None)
        while team.wait(for_missing=False):
            assert team.completed == self.rounds, "a round after the last"

    def _agree(self, team: ElasticTeam) -> None:
        leads = team.ranks[0] == self._rank
        header, payload = self._prepare(leads=leads)
        message, vector = join(header, payload), np.full(3, header.consumed, np.float32)
        number = self.ledger.agreements

        def move(exchange: Exchange) -> list[Buffer]:
            parts: list[Buffer] = list(exchange.gather(number, message))
            if self._plan.dense:
                parts.append(exchange.mean(vector, float(header.rows)).tobytes())
            return parts

        outcome = team.play(move)
        parts = outcome.parts[:-1] if self._plan.dense else outcome.parts
        headers = []
        for rank, part in zip(outcome.ranks, parts, strict=True):
            found, body = split(rank, part)
            headers.append(found)
            member, epoch, first, stop = _PAYLOAD.unpack(body)
            assert epoch == self.ledger.epoch, f"a message of epoch {epoch} in epoch {self.ledger.epoch}"
            if stop > first:
                self.applied.append(Applied(epoch, rank, first, stop, member))
        self.abandoned += [[self.ledger.epoch, rank] for rank in outcome.abandoned]
        self.ledger.enter(outcome.ranks, outcome.abandoned, headers, steps=1, seconds=0.0)
        if self.ledger.stopped is not None:
            self._epoch = -1
        self._complete(outcome)

    def _prepare(self, *, leads: bool) -> tuple[Header, bytes]:
        """The next minibatch, from where this worker's reader is."""
        ledger, rank = self.ledger, self._rank
        if self._epoch != ledger.epoch:
            self._epoch, self._next_row = ledger.epoch, ledger.positions[rank]
        first = self._next_row
        stop = min(first + self._plan.batch_rows, self._plan.rows[rank])
        self._next_row = stop
        if stop > first:
            self.computed.append(Applied(ledger.epoch, rank, first, stop, self._member))
        rows = sum(not self._plan.is_bad(rank, row) for row in range(first, stop))
        header = Header(
            rows=rows,
            loss_sum=float(rows),
            more=stop < self._plan.rows[rank],
            position=first,
            consumed=stop - first,
            stop=leads and self._plan.time is not None and ledger.agreements + 1 >= self._plan.time,
        )
        return header, _PAYLOAD.pack(self._member, ledger.epoch, first, stop)

    def _average_buffers(self, team: ElasticTeam) -> None:
        own = np.full(2, self._rank + 1, np.float32)
        weight = float(self.ledger.rows[self._rank])
        outcome = team.play(lambda exchange: (exchange.mean(own, weight).tobytes(),))
        self.ledger.enter_buffers(0.0)
        self._complete(outcome)

    def _validate(self, team: ElasticTeam) -> None:
        ledger = self.ledger
        own = struct.pack("<I", self._plan.rows[self._rank])
        outcome = team.play(lambda exchange: exchange.gather(ledger.agreements, own))
        if ledger.lacks(outcome.ranks, outcome.abandoned):
            self._complete(outcome)
            return
        rows = sum(struct.unpack("<I", part)[0] for part in outcome.parts)
        there = sum(n for rank, n in enumerate(self._plan.rows) if rank not in outcome.abandoned)
        assert rows == there, f"a validation of {rows} rows, expected {there}"
        record = ValidationRecord(
            step=ledger.agreements, epoch=ledger.epoch, loss=float(rows), accuracy=None, rows=rows
        )
        ledger.enter_validation(record, 0.0)
        if self._plan.stop_after == len(ledger.validations) and ledger.stopped is None:
            ledger.stop("judged", 0.0)
        self._complete(outcome)

    def _compare(self, team: ElasticTeam) -> None:
        digest = struct.pack("<I", self.parameters)
        outcome = team.play(lambda exchange: exchange.gather(self.ledger.agreements, digest))
        assert {bytes(part) for part in outcome.parts} == {digest}, "digests differ"
        self.ledger.enter_digests()
        self._complete(outcome)

    def _complete(self, outcome: Outcome) -> None:
        self.rounds += 1
        if any(isinstance(part, memoryview) for part in outcome.parts):
            self._count("relayed")
        self.parameters = zlib.crc32(outcome.pack(), self.parameters)
        self._on_round(self.rounds, self.parameters, self.ledger)
