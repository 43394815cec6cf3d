"""Records of ``encoding_debug``, in bounded memory however long the run."""

from __future__ import annotations

from collections.abc import Iterable

from fatwood.codec import EncodingRecord

__all__ = ["EncodingLog"]

_ENCODING_RECORDS = 1000
"""At most so many of a worker are kept: half a megabyte on their way to the driver, in a frame of at most one."""


class EncodingLog:
    """Keeps the records of a run of any length in bounded memory, evenly thinned.

    Of the records that come it keeps every one until there are too many; then it lets every second one go and from
    there on keeps only every second that comes, then every fourth, and so on. The first is always among them.

    Args:
        most: How many are kept at most.

    >>> log = EncodingLog(most=4)
    >>> log.extend(range(11))
    >>> log.records
    (0, 4, 8)
    """

    def __init__(self, most: int = _ENCODING_RECORDS) -> None:
        self._most = most
        self._every = 1
        self._seen = 0
        self._kept: list[EncodingRecord] = []

    @property
    def records(self) -> tuple[EncodingRecord, ...]:
        """What was kept, in order."""
        return tuple(self._kept)

    def extend(self, records: Iterable[EncodingRecord]) -> None:
        """Take up the next records."""
        for record in records:
            if self._seen % self._every == 0:
                if len(self._kept) == self._most:
                    self._kept = self._kept[::2]
                    self._every *= 2
                if self._seen % self._every == 0:
                    self._kept.append(record)
            self._seen += 1
