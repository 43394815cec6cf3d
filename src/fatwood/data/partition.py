r"""One worker's rows as minibatches, epoch after epoch.

::

    Arrow batches --+--> ValidationRows (negative row ids, which come first; a Spill of their own)
                    |
    epoch 0:        +--check--> Rows --+--> minibatches, in the order of arrival
                                       \--> Spill (when more epochs follow, or keep=True)
    epoch e >= 1: Spill --Permutation(n, key(seed, rank, e))--> minibatches

A worker that takes up an epoch in the middle names the row position to start at. One that comes late calls `keep_all`
first: all rows go to the Spill, and epoch 0 is read from there as well.

Memory stays at one minibatch and one Arrow batch, however many rows there are; with `prefetch` a thread reads that many
minibatches more.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa

from fatwood.data.ahead import Prefetched
from fatwood.data.batch import Batch, Rows
from fatwood.data.bucketing import STRETCH_MINIBATCHES, bucketed
from fatwood.data.layout import Layout, OnBadRow
from fatwood.data.order import Permutation, permutation_key
from fatwood.data.spill import Spill
from fatwood.data.validation import ValidationRows
from fatwood.errors import DataError, OptionError

_KEEP_HINT = "announce more epochs, or pass keep=True, so that the rows are kept on disk"
_ORDER_BLOCK_ROWS = 1 << 15  # positions shuffled at once: NumPy's cost per call vanishes, 256 KiB are held


class PartitionData:
    """The rows of one worker, cut into minibatches of exactly ``batch_size`` rows (the last may be smaller).

    Every good row is in exactly one minibatch of every epoch. The rows of epoch 0 come in the order of arrival; those
    of epoch e >= 1 in a pseudo-random order of the arrival order that depends on ``(seed, rank, e)`` alone, so that two
    fits of one epoch read what one fit of two epochs reads. One epoch is read at a time: asking for another ends the
    one before. A context manager.

    Rows of the validation DataFrame have negative ids and must come before all others. They are in no epoch and change
    none; see `validation`.

    Args:
        batches: The rows as they arrive, read once; see `Layout` for the columns.
        layout: What a row must look like.
        batch_size: Rows per minibatch.
        seed: Selects the orders.
        rank: This worker's number; workers shuffle differently.
        first_epoch: The number of the first epoch that will be read, over the model's whole life.
        epochs: How many epochs will be read.
        shuffle: False reads every epoch in the order of arrival.
        on_bad_row: ``"error"`` raises DataError at the first bad row; ``"skip"`` leaves bad rows out and counts them.
        spill_directory: A directory on a local disk; used only when rows are kept.
        keep: True keeps the rows on disk even when a single epoch 0 is announced, so that it can be read again.
        prefetch: How many minibatches a thread reads ahead; 0 reads each when it is asked for. Minibatches and their
            order are the same either way.
        prefetch_bytes: How many bytes of them may wait.
        pin: Whether they wait in page-locked memory, from where a GPU fetches them.
        bucket_by: The name of a field with steps: minibatches are made of rows of similar length. The first epoch then
            begins when all rows have arrived.
    """

    def __init__(
        self,
        batches: Iterable[pa.RecordBatch],
        layout: Layout,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        first_epoch: int,
        epochs: int,
        shuffle: bool,
        on_bad_row: OnBadRow,
        spill_directory: Path | str,
        keep: bool = False,
        prefetch: int = 0,
        prefetch_bytes: int | None = None,
        pin: bool = False,
        bucket_by: str | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("first_epoch", first_epoch, 0),
            ("epochs", epochs, 1),
            ("prefetch", prefetch, 0),
        ):
            if value < least:
                message = f"{name}: expected at least {least}, received {value}"
                raise OptionError(message)
        if on_bad_row not in get_args(OnBadRow):
            message = f"on_bad_row: expected 'error' or 'skip', received {on_bad_row!r}"
            raise OptionError(message)
        self._layout = layout
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._epochs = range(first_epoch, first_epoch + epochs)
        self._shuffle = shuffle
        self._on_bad_row: OnBadRow = on_bad_row
        kept = keep or self._epochs != range(1) or bucket_by is not None
        self._spill = Spill(spill_directory) if kept else None
        self._bucket_by = bucket_by
        self._validation = ValidationRows(
            layout, batch_size=batch_size, on_bad_row=on_bad_row, directory=spill_directory
        )
        self._prefetch = prefetch
        self._prefetch_bytes = prefetch_bytes
        self._pin = pin
        self._prefetched: Prefetched | None = None
        self._arriving: Iterator[Rows] = self._arrivals(batches)
        self._first: list[Rows] = []  # rows to train on that came when validation rows were looked for
        self._begun = False
        self._beginning = threading.Lock()
        self._streamed = False
        self._failure: Exception | None = None
        self._closed = False
        self.rows = 0
        """Good rows that have arrived so far; all of them once an epoch was read whole, or after `keep_all`."""
        self.rows_skipped = 0
        """Bad rows left out so far, counted once each."""

    @property
    def validation_rows(self) -> int:
        """Good validation rows; all of them once `validation` was called or a minibatch was read."""
        return self._validation.rows

    @property
    def validation_skipped(self) -> int:
        """Bad validation rows left out, counted once each."""
        return self._validation.skipped

    def validation(self) -> Iterator[Batch]:
        """The validation rows as minibatches, in the order of arrival; any number of times, also within an epoch.

        The first call may have to wait for them to arrive. It reads no row to train on but those of the Arrow batch
        with the last of them, or the next one.

        Returns:
            An iterator of minibatches; none when this worker has no good validation row.

        Raises:
            OptionError: The data is closed.
            DataError: A row that came before or in that batch is bad and ``on_bad_row`` is ``"error"``.
            StorageError: The spill directory is full or cannot be written.
        """
        self._check_open("validation")
        self._begin()
        return self._validation.batches()

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The minibatches of one epoch, or of the rest of one.

        Args:
            number: The epoch, counted from 0 over the model's whole life; one of those announced.
            start: How many good rows of this epoch's order to leave out at its beginning. When that is a sum of
                minibatches, what follows are the minibatches that a whole reading gives from there on.

        Returns:
            An iterator of minibatches; none when no good rows are left.

        Raises:
            OptionError: The epoch was not announced, its rows are gone, the start is negative, or the data is closed.
            DataError: A row is bad and ``on_bad_row`` is ``"error"``, or there are fewer good rows than ``start``
                (while iterating).
            StorageError: The spill directory is full or cannot be written (while iterating).
        """
        self._check_open(f"epoch {number}")
        if number not in self._epochs:
            message = (
                f"epoch: expected one of {self._epochs.start} to {self._epochs.stop - 1}, received {number}"
            )
            raise OptionError(message)
        if start < 0:
            message = f"epoch {number}: start: expected at least 0, received {start}"
            raise OptionError(message)
        if number == 0 and not self._streamed and self._bucket_by is None:
            self._streamed = True
            return self._read_ahead(self._from_stream(start))
        if self._spill is None:
            message = "epoch 0: expected to be read once, received a second read"
            raise OptionError(message, hint=_KEEP_HINT)
        return self._read_ahead(self._from_spill(self._spill, number, start))

    def keep_all(self) -> None:
        """Bring all rows that have not arrived yet to the local disk; afterwards every epoch is read from there.

        A worker that joins late does this before it joins, so that nobody waits for its rows.

        Raises:
            OptionError: The rows are not kept, or the data is closed.
            DataError: A row is bad and ``on_bad_row`` is ``"error"``.
            StorageError: The spill directory is full or cannot be written.
        """
        self._check_open("keep_all")
        if self._spill is None:
            message = (
                "keep_all: expected rows that are kept on disk, received one epoch that is only streamed"
            )
            raise OptionError(message, hint=_KEEP_HINT)
        self._end_reading()
        self._keep_rest()

    def close(self) -> None:
        """End the epoch that is read, drop the rows and give their disk space back; later calls change nothing."""
        self._closed = True
        self._end_reading()
        self._arriving = iter(())
        self._first.clear()
        self._validation.close()
        if self._spill is not None:
            self._spill.close()

    def __enter__(self) -> PartitionData:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self, where: str) -> None:
        if self._closed:
            message = f"{where}: expected open data, received a read after close"
            raise OptionError(message)

    def _read_ahead(self, batches: Generator[Batch]) -> Iterator[Batch]:
        self._end_reading()
        if not self._prefetch:
            return batches
        self._prefetched = Prefetched(batches, self._prefetch, max_bytes=self._prefetch_bytes, pin=self._pin)
        return self._prefetched

    def _end_reading(self) -> None:
        if self._prefetched is not None:
            self._prefetched.close()
            self._prefetched = None

    def _begin(self) -> None:
        """Read until the validation rows are there: before any other row, whichever thread comes first."""
        with self._beginning:
            if self._begun:
                return
            if self._failure is not None:
                raise self._failure
            self._first.extend(islice(self._arriving, 1))
            self._validation.finish()
            self._begun = True

    def _to_train(self) -> Generator[Rows]:
        """The rows to train on that were not read yet; leaving it early loses none but those it gave."""
        self._begin()
        while self._first:
            yield self._first.pop()
        for rows in self._arriving:
            yield rows
            del rows

    def _keep_rest(self) -> None:
        self._streamed = True
        for rows in self._to_train():
            del rows
        if self._failure is not None:
            raise self._failure

    def _arrivals(self, batches: Iterable[pa.RecordBatch]) -> Iterator[Rows]:
        """Check, count and keep rows as they come."""
        try:
            for arrived in batches:
                batch = self._validation.divert(arrived)
                rows, _ = self._layout.check(batch, on_bad_row=self._on_bad_row)
                self.rows += len(rows)
                self.rows_skipped += batch.num_rows - len(rows)
                if self._spill is not None:
                    self._spill.append(rows.to_arrow())
                if len(rows):
                    yield rows
                del arrived, batch, rows  # frees the Arrow batch before the next one is made
            if self._spill is not None:
                self._spill.finish()
        except Exception as error:
            self._failure = error
            raise

    def _from_stream(self, skip: int) -> Generator[Batch]:
        pending: list[Rows] = []
        missing = self._batch_size
        left_out = 0
        for rows in self._to_train():
            start = min(skip - left_out, len(rows))
            left_out += start
            while len(rows) - start >= missing:
                yield self._layout.batch(Rows.joined([*pending, rows.part(start, start + missing)]))
                start += missing
                pending, missing = [], self._batch_size
            if start < len(rows):
                pending.append(rows.part(start, len(rows)).copy())
                missing -= len(rows) - start
            del rows
        if pending:
            yield self._layout.batch(Rows.joined(pending))
        _check_start(0, skip, left_out)

    def _from_spill(self, spill: Spill, number: int, first: int) -> Generator[Batch]:
        self._keep_rest()
        n, step = spill.rows, self._batch_size
        _check_start(number, first, n)
        key = permutation_key(self._seed, self._rank, number) if self._shuffle else None
        order = Permutation(n, key) if key is not None and number > 0 else None
        block = max(1, _ORDER_BLOCK_ROWS // step) * step
        if self._bucket_by is not None:
            block = STRETCH_MINIBATCHES * step
        for begin in range(first - first % block, n, block):
            end = min(begin + block, n)
            indices = np.arange(begin, end, dtype=np.int64) if order is None else order[begin:end]
            if self._bucket_by is not None:
                indices = bucketed(indices, spill.lengths(self._bucket_by, indices), step, key)
            for start in range(max(first - begin, 0), len(indices), step):
                yield self._layout.batch_of(spill.take(indices[start : start + step]))


def _check_start(number: int, start: int, rows: int) -> None:
    if rows < start:
        message = f"epoch {number}: expected at least {start} good rows before the start, received {rows}"
        raise DataError(message, hint="go on with the same rows and options as before")
