"""Checked rows as arrays (`Rows`) and a minibatch as tensors (`Batch`).

Shapes: ``n`` or ``B`` rows, ``width`` features per row, ``k`` values per label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows that passed every check; the arrays may be read-only views of Arrow memory."""

    row_ids: NDArray[np.int64]
    """(n,) which row of the user's DataFrame each one is; see `describe_row`."""
    features: NDArray[Any]
    """(n, width) float32 or int64."""
    label: NDArray[Any] | None
    """(n,) int64, (n,) float32 or (n, k) float32; None without labels."""
    weight: NDArray[np.float32] | None = None
    """(n,) how much each row counts in the loss, at least 0; None without weights."""

    def __len__(self) -> int:
        return len(self.row_ids)

    def part(self, start: int, stop: int) -> Rows:
        """The rows ``start <= i < stop``, as views."""
        return Rows(
            row_ids=self.row_ids[start:stop],
            features=self.features[start:stop],
            label=None if self.label is None else self.label[start:stop],
            weight=None if self.weight is None else self.weight[start:stop],
        )

    def copy(self) -> Rows:
        """The same rows in memory of their own."""
        return Rows(
            row_ids=self.row_ids.copy(),
            features=self.features.copy(),
            label=None if self.label is None else self.label.copy(),
            weight=None if self.weight is None else self.weight.copy(),
        )

    def to_arrow(self) -> pa.RecordBatch:
        """The same rows as a record batch of fixed-width columns, without a copy; see `Batch.of_columns`."""
        found = {
            "row_id": self.row_ids,
            "features": self.features,
            "label": self.label,
            "weight": self.weight,
        }
        columns = {name: _column(array) for name, array in found.items() if array is not None}
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


@dataclass(frozen=True)
class Batch:
    """One minibatch; its tensors are writable and share memory with nothing else."""

    features: torch.Tensor
    """(B, width) float32 or int64."""
    label: torch.Tensor | None
    """(B,) int64, (B,) float32 or (B, k) float32; None without labels."""
    row_ids: NDArray[np.int64]
    """(B,) which row of the user's DataFrame each one is; see `describe_row`."""
    weight: torch.Tensor | None = None
    """(B,) float32, how much each row counts in the loss, at least 0; None without weights."""

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
        weight = [piece.weight for piece in pieces if piece.weight is not None]
        return cls.owning(
            row_ids=np.concatenate([piece.row_ids for piece in pieces]),
            features=np.concatenate([piece.features for piece in pieces]),
            label=np.concatenate(label) if label else None,
            weight=np.concatenate(weight) if weight else None,
        )

    @classmethod
    def of_columns(cls, columns: Mapping[str, NDArray[Any]]) -> Batch:
        """A minibatch that takes over columns such as `Spill.take` gives back.

        Args:
            columns: By the names of `Rows.to_arrow`, (B,) or (B, width), writable, held by nobody else.

        Returns:
            The minibatch.
        """
        return cls.owning(
            row_ids=columns["row_id"],
            features=columns["features"],
            label=columns.get("label"),
            weight=columns.get("weight"),
        )

    @classmethod
    def owning(
        cls,
        *,
        row_ids: NDArray[np.int64],
        features: NDArray[Any],
        label: NDArray[Any] | None,
        weight: NDArray[np.float32] | None = None,
    ) -> Batch:
        """A minibatch that takes over arrays nobody else holds, without a copy.

        Args:
            row_ids: (B,) int64.
            features: (B, width), writable.
            label: (B,) or (B, k), writable, or None.
            weight: (B,), writable, or None.

        Returns:
            The minibatch.
        """
        return cls(
            features=torch.from_numpy(features),
            label=None if label is None else torch.from_numpy(label),
            row_ids=row_ids,
            weight=None if weight is None else torch.from_numpy(weight),
        )


def _column(array: NDArray[Any]) -> Any:
    values = pa.array(array.reshape(-1))
    return values if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(values, array.shape[1])
