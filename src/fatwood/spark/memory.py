"""What a task does when a minibatch does not fit into memory: half of it, once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from fatwood.data import Batch
from fatwood.errors import OptionError

__all__ = ["Halving", "is_out_of_memory"]

_LOG = logging.getLogger("fatwood.inference")
_T = TypeVar("_T")


class Halving:
    """The rows of a task's minibatches.

    Args:
        rows: Of a minibatch, at first.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._first = rows

    def __call__(self, batch: Batch, work: Callable[[Batch], _T]) -> list[_T]:
        """What `work` returns for a minibatch; or for its halves, from the first on that does not fit into memory.

        Args:
            batch: Of at most `rows` rows.
            work: Changes nothing where memory does not suffice.

        Raises:
            OptionError: Halves do not fit, either.
        """
        try:
            return [work(batch)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self.rows < self._first or len(batch) < 2:
                text = "batch_size: expected minibatches that fit into memory, "
                text += f"received {self._first}, and {len(batch)} rows do not fit: {error}"
                raise OptionError(text, hint="pass a smaller batch_size, or workers_per_node=1") from error
        # behind the except clause: the error held on to all that was computed
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.rows = (len(batch) + 1) // 2
        _LOG.warning("%d rows do not fit into memory; going on with minibatches of %d", len(batch), self.rows)
        parts = [batch.rows(slice(i, i + self.rows)) for i in range(0, len(batch), self.rows)]
        return [result for part in parts for result in self(part, work)]


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or the one that it came of, says that memory did not suffice."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
            return True
        error = error.__cause__
    return False
