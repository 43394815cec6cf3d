"""The validation rows among a worker's rows: they come first, go to a file of their own, and are read again and again."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pyarrow as pa

from fatwood.data.batch import Batch
from fatwood.data.layout import Layout, OnBadRow, row_ids_of
from fatwood.data.spill import Spill
from fatwood.errors import DataError

__all__ = ["ValidationRows"]


class ValidationRows:
    """Takes the rows with negative ids out of what arrives, checks them and keeps them on local disk.

    Args:
        layout: What a row must look like, as for the rows to train on.
        batch_size: Rows per minibatch.
        on_bad_row: ``"error"`` raises DataError at the first bad row; ``"skip"`` leaves bad rows out and counts them.
        directory: For the file, which is made when the first row comes.
    """

    def __init__(
        self, layout: Layout, *, batch_size: int, on_bad_row: OnBadRow, directory: Path | str
    ) -> None:
        self._layout = layout
        self._batch_size = batch_size
        self._on_bad_row: OnBadRow = on_bad_row
        self._spill = Spill(directory)
        self._complete = False
        self.skipped = 0
        """Bad rows left out so far."""

    @property
    def rows(self) -> int:
        """Good rows that have come so far."""
        return self._spill.rows

    def divert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Keep the validation rows of a record batch.

        Args:
            batch: What arrived next.

        Returns:
            The other rows, possibly none; a view.

        Raises:
            DataError: A validation row is bad and ``on_bad_row`` is ``"error"``, or comes after a row to train on.
            SchemaError: A column is missing or has the wrong type.
            StorageError: The disk is full or the directory cannot be written.
        """
        negative = row_ids_of(batch) < 0
        count = int(np.count_nonzero(negative))
        if count and (self._complete or not negative[:count].all()):
            message = "validation rows: expected before the first row to train on, received one after it"
            raise DataError(message, hint="sort each worker's rows: those with negative row ids first")
        if count:
            rows, _ = self._layout.check(batch.slice(0, count), on_bad_row=self._on_bad_row)
            self.skipped += count - len(rows)
            self._spill.append(rows.to_arrow())
        if count < batch.num_rows:
            self.finish()
        return batch.slice(count)

    def finish(self) -> None:
        """End writing: all rows are there; later calls change nothing."""
        self._complete = True
        self._spill.finish()

    def batches(self) -> Generator[Batch]:
        """Minibatches of all rows in the order of arrival, the last one possibly smaller; after `finish`, any number of times."""
        step = self._batch_size
        for start in range(0, self.rows, step):
            indices = np.arange(start, min(start + step, self.rows), dtype=np.int64)
            yield self._layout.batch_of(self._spill.take(indices))

    def close(self) -> None:
        """Give the disk space back; later calls change nothing."""
        self._spill.close()
