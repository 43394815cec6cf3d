"""What a worker tells the driver while it trains."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from fatwood.codec import EncodingRecord
from fatwood.errors import PeerLost
from fatwood.exchange import Member
from fatwood.train.records import StepRecord
from fatwood.train.telling import Record, in_order, record_to_json

if TYPE_CHECKING:
    from fatwood.train.ledger import Ledger

__all__ = ["EncodingReports", "ProgressReports"]

_PROGRESS_SECONDS = 0.1
_PROGRESS_STEPS = 100
"""At most so many steps in one report."""
_PROGRESS_NUMBERS = 25_000
"""At most so many numbers in the records of one report: half a megabyte, in a frame of at most one."""
_ENCODING_SECONDS = 0.5
_ENCODING_RECORDS = 200
"""At most so many in one report: a tenth of a megabyte, in a frame of at most one."""


class ProgressReports:
    """Tells the driver how far the job is, ten times a second.

    A report has the steps since the last one, evenly thinned to at most 100, and every epoch and validation that this
    worker has not told yet. So a worker that takes over the reports tells all of them again; the driver leaves out what it
    knows. Whatever is still untold at the end, the driver finds in the ledger.
    """

    def __init__(self, member: Member) -> None:
        self._member = member
        self._steps: list[StepRecord] = []
        self._epochs = self._validations = 0
        """How many are told."""
        self._ledger: Ledger | None = None
        self._next = 0.0

    def __call__(self, record: StepRecord, ledger: Ledger) -> None:
        """As a `ProgressCallback`."""
        self._steps.append(record)
        self._ledger = ledger
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_SECONDS
            self.flush()

    def flush(self) -> None:
        """Tell what has not been told yet; nothing where another worker makes the reports."""
        steps, self._steps = self._steps, []
        if self._ledger is None or not steps:
            return
        stride = -(-len(steps) // _PROGRESS_STEPS)
        epochs, validations = self._ledger.records, self._ledger.validations
        records = in_order(steps[-1::-stride], epochs[self._epochs :], validations[self._validations :])
        self._epochs, self._validations = len(epochs), len(validations)
        trained = self._ledger.rows_trained
        for part in _parts(records, trained):
            body = {"trained": trained, "records": [record_to_json(record) for record in part]}
            self._member.report("progress", body)


def _parts(records: Sequence[Record], trained: Sequence[int]) -> list[Sequence[Record]]:
    """One part, but for a worker that tells hundreds of epochs again."""
    most = max(1, _PROGRESS_NUMBERS // (len(trained) + 25))
    return [records[start : start + most] for start in range(0, len(records), most)]


class EncodingReports:
    """Tells the driver what ``encoding_debug`` measures, from every worker: twice a second, and at the end.

    A worker that takes more than 400 steps a second leaves some out, evenly, so that neither the connection nor the
    driver's log is flooded; what the statistics keep does not depend on it.
    """

    def __init__(self, member: Member) -> None:
        self._member = member
        self._waiting: list[EncodingRecord] = []
        self._next = 0.0

    def __call__(self, records: Sequence[EncodingRecord]) -> None:
        """As an `EncodingCallback`."""
        self._waiting.extend(records)
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _ENCODING_SECONDS
            self.flush()

    def __enter__(self) -> EncodingReports:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.flush()
        elif self._member.stopped is None:  # the last steps before an error are those that one wants to see
            with suppress(PeerLost):
                self.flush()

    def flush(self) -> None:
        """Tell what has not been told yet."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            stride = -(-len(waiting) // _ENCODING_RECORDS)
            records = [record.to_json() for record in waiting[-1::-stride]]
            self._member.report("encoding", {"records": records[::-1]})
