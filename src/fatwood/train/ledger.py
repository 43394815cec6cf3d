"""What all workers know of the run, equal on all of them after every round: the epoch, and whose rows are trained.

The ledger is what makes "every row once an epoch" a matter of counting: a message says from which position of the
partition to which its rows go, and is entered only when its round is completed. A worker that takes over a rank goes
on at the ledger's position, whatever its predecessor had begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from fatwood.errors import ProtocolError
from fatwood.train.header import Header
from fatwood.train.records import EpochRecord, epoch_record

__all__ = ["Ledger", "Stage"]


class Stage(Enum):
    """Which kind of round comes next."""

    TRAIN = "train"
    """Minibatches, and an agreement on them."""
    BUFFERS = "buffers"
    """The epoch's end: float buffers are averaged."""
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
    agreements: int = 0
    """Agreements over the model's whole life."""
    stage: Stage = Stage.TRAIN
    positions: list[int] = field(default_factory=list)
    """Rows read of this epoch."""
    exhausted: list[bool] = field(default_factory=list)
    """Whether all rows of this epoch are read."""
    rows: list[int] = field(default_factory=list)
    """Rows trained of this epoch."""
    loss_sum: float = 0.0
    """Over the rows trained of this epoch."""
    rows_trained: list[int] = field(default_factory=list)
    """Over the fit."""
    rows_skipped: list[int] = field(default_factory=list)
    """Rows read and not trained in one epoch, because of their labels; the most of all epochs."""
    rows_twice: int = 0
    """Rows that an agreement counted although an earlier one of the epoch had."""
    rows_passed_over: int = 0
    """Rows between two messages of a rank that no message had."""
    records: list[EpochRecord] = field(default_factory=list)
    """The epochs of this fit that are over."""

    def __post_init__(self) -> None:
        for name in ("positions", "rows", "rows_trained", "rows_skipped"):
            if not getattr(self, name):
                setattr(self, name, [0] * self.workers)
        if not self.exhausted:
            self.exhausted = [False] * self.workers

    def must_wait(self, ranks: Sequence[int], abandoned: Iterable[int]) -> bool:
        """Whether the ranks that are there have nothing left in this epoch, and others that are waited for have."""
        if self.stage is not Stage.TRAIN or not all(self.exhausted[rank] for rank in ranks):
            return False
        return not all(self.exhausted[rank] or rank in abandoned for rank in self._absent(ranks))

    def enter(
        self, ranks: Sequence[int], abandoned: Iterable[int], headers: Sequence[Header], seconds: float
    ) -> None:
        """Count a completed agreement, and see whether the epoch is over.

        Args:
            ranks: That took part, in the order of the headers.
            abandoned: Ranks whose rows were not waited for.
            headers: Of their messages.
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
        absent_done = all(self.exhausted[rank] or rank in abandoned for rank in self._absent(ranks))
        if absent_done and all(self.exhausted[rank] for rank in ranks):
            if self.with_buffers:
                self.stage = Stage.BUFFERS
            else:
                self._close_epoch(seconds)

    def next_stage(self, seconds: float) -> None:
        """Count a completed round other than an agreement."""
        if self.stage is Stage.BUFFERS:
            self._close_epoch(seconds)
        elif self.stage is Stage.DIGESTS:
            self.stage = Stage.OVER

    @property
    def progress(self) -> tuple[int, int, float]:
        """The epoch, the rows trained of it, and their mean loss."""
        rows = sum(self.rows)
        if not rows and self.records:  # it has only just begun
            last = self.records[-1]
            return last.epoch, last.rows, last.loss
        return self.epoch, rows, self.loss_sum / max(1, rows)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        records = [record.to_json() for record in self.records]
        return {**asdict(self), "stage": self.stage.value, "records": records}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ledger:
        """From the values of :meth:`to_json`.

        Raises:
            ProtocolError: They are something else.
        """
        try:
            records = [EpochRecord.from_json(record) for record in values["records"]]
            return cls(**{**values, "stage": Stage(values["stage"]), "records": records})
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

    def _close_epoch(self, seconds: float) -> None:
        self.records.append(epoch_record(self.epoch, self.rows, self.loss_sum, seconds))
        skipped = [read - trained for read, trained in zip(self.positions, self.rows, strict=True)]
        self.rows_skipped = [max(pair) for pair in zip(self.rows_skipped, skipped, strict=True)]
        self.positions = [0] * self.workers
        self.rows = [0] * self.workers
        self.exhausted = [False] * self.workers
        self.loss_sum = 0.0
        self.epoch += 1
        self.stage = Stage.TRAIN if self.epoch < self.end else Stage.DIGESTS
