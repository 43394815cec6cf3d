"""Checked rows as arrays (`Rows`) and a minibatch as tensors (`Batch`).

Shapes: ``n`` or ``B`` rows, ``width`` features per row, ``k`` values per label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows that passed every check; the arrays may be read-only views of Arrow memory."""

    row_ids: NDArray[np.int64]
    """(n,) which row of the user's DataFrame each one is; see `Layout.describe_row`."""
    features: NDArray[Any]
    """(n, width) float32 or int64."""
    label: NDArray[Any] | None
    """(n,) int64, (n,) float32 or (n, k) float32; None without labels."""

    def __len__(self) -> int:
        return len(self.row_ids)

    def part(self, start: int, stop: int) -> Rows:
        """The rows ``start <= i < stop``, as views."""
        return Rows(
            row_ids=self.row_ids[start:stop],
            features=self.features[start:stop],
            label=None if self.label is None else self.label[start:stop],
        )

    def copy(self) -> Rows:
        """The same rows in memory of their own."""
        return Rows(
            row_ids=self.row_ids.copy(),
            features=self.features.copy(),
            label=None if self.label is None else self.label.copy(),
        )


@dataclass(frozen=True)
class Batch:
    """One minibatch; its tensors are writable and share memory with nothing else."""

    features: torch.Tensor
    """(B, width) float32 or int64."""
    label: torch.Tensor | None
    """(B,) int64, (B,) float32 or (B, k) float32; None without labels."""
    row_ids: NDArray[np.int64]
    """(B,) which row of the user's DataFrame each one is; see `Layout.describe_row`."""

    def __len__(self) -> int:
        return len(self.row_ids)

    @classmethod
    def joined(cls, pieces: Sequence[Rows]) -> Batch:
        """Copy pieces, in their order, into one minibatch.

        Args:
            pieces: At least one; all of the same layout.

        Returns:
            A minibatch of as many rows as the pieces have together.
        """
        label: list[NDArray[Any]] = [piece.label for piece in pieces if piece.label is not None]
        return cls.owning(
            row_ids=np.concatenate([piece.row_ids for piece in pieces]),
            features=np.concatenate([piece.features for piece in pieces]),
            label=np.concatenate(label) if label else None,
        )

    @classmethod
    def owning(
        cls, *, row_ids: NDArray[np.int64], features: NDArray[Any], label: NDArray[Any] | None
    ) -> Batch:
        """A minibatch that takes over arrays nobody else holds, without a copy.

        Args:
            row_ids: (B,) int64.
            features: (B, width), writable.
            label: (B,) or (B, k), writable, or None.

        Returns:
            The minibatch.
        """
        return cls(torch.from_numpy(features), None if label is None else torch.from_numpy(label), row_ids)


class Lookahead(Iterator[Batch]):
    """Minibatches, with the next one read ahead, so that a worker can say with a message that it was its last."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._next: Batch | None = next(batches, None)

    def has_more(self) -> bool:
        """Whether another minibatch will come."""
        return self._next is not None

    def __next__(self) -> Batch:
        if self._next is None:
            raise StopIteration
        current, self._next = self._next, next(self._batches, None)
        return current
