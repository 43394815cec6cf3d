r"""One worker's rows as minibatches, epoch after epoch.

::

    epoch 0:      Arrow batches --check--> Rows --+--> minibatches, in the order of arrival
                                                  \--> Spill (when more epochs follow, or keep=True)
    epoch e >= 1: Spill --Permutation(n, key(seed, rank, e))--> minibatches

A worker that takes up an epoch in the middle names the row position to start at. One that comes late calls `keep_all`
first: all rows go to the Spill, and epoch 0 is read from there as well.

Memory stays at one minibatch and one Arrow batch, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fatwood.data.batch import Batch, Rows
from fatwood.data.layout import Layout, OnBadRow
from fatwood.data.order import Permutation, permutation_key
from fatwood.data.spill import Spill
from fatwood.errors import DataError, OptionError

_KEEP_HINT = "announce more epochs, or pass keep=True, so that the rows are kept on disk"
_ORDER_BLOCK_ROWS = 1 << 15  # positions shuffled at once: NumPy's cost per call vanishes, 256 KiB are held


class PartitionData:
    """The rows of one worker, cut into minibatches of exactly ``batch_size`` rows (the last may be smaller).

    Every good row is in exactly one minibatch of every epoch. The rows of epoch 0 come in the order of arrival; those
    of epoch e >= 1 in a pseudo-random order of the arrival order that depends on ``(seed, rank, e)`` alone, so that two
    fits of one epoch read what one fit of two epochs reads. One epoch is read at a time. A context manager.

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
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("first_epoch", first_epoch, 0),
            ("epochs", epochs, 1),
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
        self._spill = Spill(spill_directory) if keep or self._epochs != range(1) else None
        self._arriving = self._arrivals(batches)
        self._streamed = False
        self._failure: Exception | None = None
        self._closed = False
        self.rows = 0
        """Good rows that have arrived so far; all of them once an epoch was read whole, or after `keep_all`."""
        self.rows_skipped = 0
        """Bad rows left out so far, counted once each."""

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
        if number == 0 and not self._streamed:
            self._streamed = True
            return self._from_stream(start)
        if self._spill is None:
            message = "epoch 0: expected to be read once, received a second read"
            raise OptionError(message, hint=_KEEP_HINT)
        return self._from_spill(self._spill, number, start)

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
        self._streamed = True
        for rows in self._arriving:
            del rows
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Drop the rows and give their disk space back; later calls change nothing."""
        self._closed = True
        self._arriving = iter(())
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

    def _arrivals(self, batches: Iterable[pa.RecordBatch]) -> Iterator[Rows]:
        """Check, count and keep rows as they come."""
        try:
            for batch in batches:
                rows, _ = self._layout.check(batch, on_bad_row=self._on_bad_row)
                self.rows += len(rows)
                self.rows_skipped += batch.num_rows - len(rows)
                if self._spill is not None:
                    self._spill.append(_to_arrow(rows))
                yield rows
                del batch, rows  # frees the Arrow batch before the next one is made
            if self._spill is not None:
                self._spill.finish()
        except Exception as error:
            self._failure = error
            raise

    def _from_stream(self, skip: int) -> Iterator[Batch]:
        pending: list[Rows] = []
        missing = self._batch_size
        left_out = 0
        for rows in self._arriving:
            start = min(skip - left_out, len(rows))
            left_out += start
            while len(rows) - start >= missing:
                yield Batch.joined([*pending, rows.part(start, start + missing)])
                start += missing
                pending, missing = [], self._batch_size
            if start < len(rows):
                pending.append(rows.part(start, len(rows)).copy())
                missing -= len(rows) - start
            del rows
        if pending:
            yield Batch.joined(pending)
        _check_start(0, skip, left_out)

    def _from_spill(self, spill: Spill, number: int, first: int) -> Iterator[Batch]:
        self.keep_all()
        n, step = spill.rows, self._batch_size
        _check_start(number, first, n)
        shuffled = self._shuffle and number > 0
        order = Permutation(n, permutation_key(self._seed, self._rank, number)) if shuffled else None
        block = max(1, _ORDER_BLOCK_ROWS // step) * step
        for begin in range(first, n, block):
            end = min(begin + block, n)
            indices = np.arange(begin, end, dtype=np.int64) if order is None else order[begin:end]
            for start in range(0, len(indices), step):
                columns = spill.take(indices[start : start + step])
                yield Batch.owning(
                    row_ids=columns["row_id"], features=columns["features"], label=columns.get("label")
                )


def _check_start(number: int, start: int, rows: int) -> None:
    if rows < start:
        message = f"epoch {number}: expected at least {start} good rows before the start, received {rows}"
        raise DataError(message, hint="go on with the same rows and options as before")


def _to_arrow(rows: Rows) -> pa.RecordBatch:
    """Checked rows as a record batch of fixed-width columns, without a copy."""
    columns = {"row_id": rows.row_ids, "features": rows.features}
    if rows.label is not None:
        columns["label"] = rows.label
    return pa.RecordBatch.from_arrays([_column(array) for array in columns.values()], names=list(columns))


def _column(array: NDArray[Any]) -> Any:
    values = pa.array(array.reshape(-1))
    return values if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(values, array.shape[1])
