"""What all workers know of the run, equal on all of them after every round: the epoch, and whose rows are trained.

The ledger is what makes "every row once an epoch" a matter of counting: a message says from which position of the
partition to which its rows go, and is entered only when its round is completed. A worker that takes over a rank goes
on at the ledger's position, whatever its predecessor had begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

from fatwood.errors import ProtocolError
from fatwood.train.header import Header
from fatwood.train.records import EpochRecord, StepRecord, ValidationRecord, epoch_record

__all__ = ["Ledger", "Stage"]


class Stage(Enum):
    """Which kind of round comes next."""

    TRAIN = "train"
    """Minibatches, and an agreement on them."""
    BUFFERS = "buffers"
    """The epoch's end, or before a validation: float buffers are averaged."""
    VALIDATE = "validate"
    """Every worker measures its validation rows."""
    DIGESTS = "digests"
    """The fit's end: the replicas are compared."""
    OVER = "over"
    """No more rounds."""


@dataclass(kw_only=True)
class Ledger:
    """The state after some number of rounds. Lists have one entry for each rank."""

    workers: int
    epoch: int
    end: int
    """The epoch after the last one."""
    with_buffers: bool
    """Whether the network has float buffers."""
    with_validation: bool = False
    """Whether there are validation rows."""
    validate_every: int | None = None
    """Agreements between two validations; None for one at each epoch's end."""
    agreements: int = 0
    """Agreements over the model's whole life."""
    steps: int = 0
    """Optimizer steps over the model's whole life: of an agreement, those of the worker that made the most."""
    stage: Stage = Stage.TRAIN
    closing: bool = False
    """Whether the epoch ends after the stages before the next agreement."""
    stopped: str | None = None
    """Why the fit ends before its last epoch."""
    positions: list[int] = field(default_factory=list)
    """Rows read of this epoch."""
    exhausted: list[bool] = field(default_factory=list)
    """Whether all rows of this epoch are read."""
    rows: list[int] = field(default_factory=list)
    """Rows trained of this epoch."""
    loss_sum: float = 0.0
    """Over the rows trained of this epoch, times their weights."""
    weight: float = 0.0
    """Of the rows trained of this epoch."""
    rows_trained: list[int] = field(default_factory=list)
    """Over the fit."""
    rows_skipped: list[int] = field(default_factory=list)
    """Rows read and not trained in one epoch, because of their labels; the most of all epochs."""
    rows_twice: int = 0
    """Rows that an agreement counted although an earlier one of the epoch had."""
    rows_passed_over: int = 0
    """Rows between two messages of a rank that no message had."""
    records: list[EpochRecord] = field(default_factory=list)
    """The epochs of this fit that are over; the last may have been broken off by `stopped`."""
    validations: list[ValidationRecord] = field(default_factory=list)
    """Of this fit."""

    def __post_init__(self) -> None:
        for name in ("positions", "rows", "rows_trained", "rows_skipped"):
            if not getattr(self, name):
                setattr(self, name, [0] * self.workers)
        if not self.exhausted:
            self.exhausted = [False] * self.workers

    def must_wait(self, ranks: Sequence[int], abandoned: Iterable[int]) -> bool:
        """Whether only ranks that are missing, and waited for, can bring this stage to its end.

        Those that are there have no rows left to train in this epoch; or a validation lacks rows.
        """
        if self.stage is Stage.VALIDATE:
            return self.lacks(ranks, abandoned)
        if self.stage is not Stage.TRAIN or not all(self.exhausted[rank] for rank in ranks):
            return False
        return not all(self.exhausted[rank] or rank in abandoned for rank in self._absent(ranks))

    def lacks(self, ranks: Sequence[int], abandoned: Iterable[int]) -> bool:
        """Whether ranks are missing that are waited for."""
        return not self._absent(ranks) <= set(abandoned)

    def enter(
        self,
        ranks: Sequence[int],
        abandoned: Iterable[int],
        headers: Sequence[Header],
        *,
        steps: int,
        seconds: float,
    ) -> StepRecord:
        """Count a completed agreement, and see what comes next.

        Args:
            ranks: That took part, in the order of the headers.
            abandoned: Ranks whose rows were not waited for.
            headers: Of their messages.
            steps: Optimizer steps in it.
            seconds: Wall seconds since the epoch's beginning, on this worker.

        Raises:
            ProtocolError: A rank is none of the job's.
        """
        if not all(0 <= rank < self.workers for rank in ranks):
            text = f"agreement {self.agreements}: expected ranks below {self.workers}, received {list(ranks)}"
            raise ProtocolError(text)
        for rank, header in zip(ranks, headers, strict=True):
            self._count(rank, header)
        self.agreements += 1
        self.steps += steps
        record = self._step_record(headers)
        for rank, header in zip(ranks, headers, strict=True):
            if header.not_finite:
                self.stopped = self.stopped or f"loss or update of worker {rank} was not finite"
            elif header.stop:
                self.stopped = self.stopped or "its time is over"
        absent_done = all(self.exhausted[rank] or rank in abandoned for rank in self._absent(ranks))
        self.closing = self.stopped is not None or (
            absent_done and all(self.exhausted[rank] for rank in ranks)
        )
        if not self.closing and not self.validates_after(self.agreements):
            return record
        if self.with_buffers:
            self.stage = Stage.BUFFERS
        else:
            self._validate_or_go_on(seconds)
        return record

    def validates_after(self, agreements: int) -> bool:
        """Whether a validation follows an agreement although the epoch may go on."""
        return bool(self.with_validation and self.validate_every and agreements % self.validate_every == 0)

    def enter_buffers(self, seconds: float) -> None:
        """Count a completed round that averaged the buffers."""
        self._validate_or_go_on(seconds)

    def enter_validation(self, record: ValidationRecord, seconds: float) -> None:
        """Count a completed validation."""
        self.validations.append(record)
        self._go_on(seconds, record)

    def enter_digests(self) -> None:
        """Count the round that has compared the replicas."""
        self.stage = Stage.OVER

    def stop(self, reason: str, seconds: float) -> None:
        """End the fit after the rounds until now."""
        self.stopped = reason
        if self.stage is Stage.TRAIN and any(self.positions):
            now = [record for record in self.validations[-1:] if record.step == self.agreements]
            self._close_epoch(seconds, now[0] if now else None)
        self.stage = Stage.DIGESTS

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        lists = {name: [r.to_json() for r in getattr(self, name)] for name in ("records", "validations")}
        return {**asdict(self), "stage": self.stage.value, **lists}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ledger:
        """From the values of :meth:`to_json`.

        Raises:
            ProtocolError: They are something else.
        """
        try:
            records = [EpochRecord.from_json(record) for record in values["records"]]
            validations = [ValidationRecord.from_json(record) for record in values["validations"]]
            stage = Stage(values["stage"])
            ledger = cls(**{**values, "stage": stage, "records": records, "validations": validations})
            by_rank = (
                ledger.positions,
                ledger.exhausted,
                ledger.rows,
                ledger.rows_trained,
                ledger.rows_skipped,
            )
            if any(len(entries) != ledger.workers for entries in by_rank):
                raise ValueError(ledger.workers)
            return ledger
        except (KeyError, TypeError, ValueError) as error:
            text = f"the state of a run: expected the fields of a ledger, received {values!r:.200}"
            raise ProtocolError(text, hint="all workers must run the same version of fatwood") from error

    def _absent(self, ranks: Sequence[int]) -> set[int]:
        return set(range(self.workers)) - set(ranks)

    def _count(self, rank: int, header: Header) -> None:
        ahead = header.position - self.positions[rank]
        if ahead > 0:
            self.rows_passed_over += ahead
        else:
            self.rows_twice += min(-ahead, header.consumed)
        self.positions[rank] = header.position + header.consumed
        self.exhausted[rank] = not header.more
        self.rows[rank] += header.rows
        self.rows_trained[rank] += header.rows
        self.loss_sum += header.loss_sum
        self.weight += header.share

    def _step_record(self, headers: Sequence[Header]) -> StepRecord:
        weight, loss_sum = sum(h.share for h in headers), sum(h.loss_sum for h in headers)
        return StepRecord(
            step=self.agreements,
            epoch=self.epoch,
            rows=sum(h.rows for h in headers),
            rows_of_epoch=sum(self.rows),
            loss=loss_sum / weight if weight else float("nan"),
            mean_loss=self.loss_sum / self.weight if self.weight else float("nan"),
        )

    def _validate_or_go_on(self, seconds: float) -> None:
        ends = self.stopped is not None or self.epoch + 1 == self.end
        at_end = self.closing and (self.validate_every is None or ends)
        if self.with_validation and (at_end or self.validates_after(self.agreements)):
            self.stage = Stage.VALIDATE
        else:
            self._go_on(seconds, None)

    def _go_on(self, seconds: float, validation: ValidationRecord | None) -> None:
        if self.closing:
            self._close_epoch(seconds, validation)
        else:
            self.stage = Stage.TRAIN

    def _close_epoch(self, seconds: float, validation: ValidationRecord | None) -> None:
        record = epoch_record(self.epoch, self.rows, self.loss_sum, seconds, self.weight)
        self.records.append(replace(record, validation=validation))
        skipped = [read - trained for read, trained in zip(self.positions, self.rows, strict=True)]
        self.rows_skipped = [max(pair) for pair in zip(self.rows_skipped, skipped, strict=True)]
        self.positions = [0] * self.workers
        self.rows = [0] * self.workers
        self.exhausted = [False] * self.workers
        self.loss_sum = self.weight = 0.0
        self.closing = False
        self.epoch += 1
        self.stage = Stage.TRAIN if self.epoch < self.end and self.stopped is None else Stage.DIGESTS
