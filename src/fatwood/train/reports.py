"""What a worker tells the driver while it trains."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from fatwood.codec import EncodingRecord
from fatwood.errors import PeerLost
from fatwood.exchange import Member
from fatwood.train.replica import Replica

__all__ = ["EncodingReports", "ProgressReports"]

_PROGRESS_SECONDS = 0.1
_ENCODING_SECONDS = 0.5
_ENCODING_RECORDS = 200
"""At most so many in one report: a tenth of a megabyte, in a frame of at most one."""


class ProgressReports:
    """Tells the driver how far the job is, not more often than a person can read."""

    def __init__(self, member: Member, replica: Replica) -> None:
        self._member = member
        self._replica = replica
        self._next = 0.0

    def __call__(self, epoch: int, rows: int, loss: float) -> None:
        """As a `ProgressCallback`."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_SECONDS
            trained = self._replica.ledger.rows_trained
            self._member.report("progress", {"epoch": epoch, "rows": rows, "loss": loss, "trained": trained})


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
