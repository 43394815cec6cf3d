"""A minibatch as tensors (`Batch`), and checked rows as arrays (`Rows`) on their way to one.

Shapes: ``n`` or ``B`` rows, ``T`` steps of the longest sequence among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fatwood.errors import OptionError

__all__ = [
    "ROW_BITS",
    "Array",
    "Batch",
    "Masks",
    "Ragged",
    "Rows",
    "Tensors",
    "describe_row",
    "each",
    "mapped",
]

ROW_BITS = 33
"""A row id keeps the row's number in the low 33 bits, that of the partition or file above them."""

Tensors: TypeAlias = "torch.Tensor | tuple[torch.Tensor, ...] | dict[str, torch.Tensor]"
"""One tensor, several by position, or several by name: as ``forward`` takes them or returns them."""

Masks: TypeAlias = "torch.Tensor | tuple[torch.Tensor | None, ...] | dict[str, torch.Tensor] | None"
"""``(B, T)`` bool for each tensor of steps, True where a step is real; in the form of the tensors. None where nothing is padded."""


@dataclass(frozen=True)
class Batch:
    """One minibatch; its tensors are writable and share memory with nothing else."""

    features: Tensors
    """``(B, ...)`` each: what the network is called with."""
    label: Tensors | None = None
    """``(B,)`` int64, or ``(B, ...)`` float32, or ``(B, T)`` and ``(B, T, ...)`` for steps; None without labels."""
    row_ids: NDArray[np.int64] | None = None
    """``(B,)`` which row of the user's data each one is; see `describe_row`. Made up where none are given."""
    weight: torch.Tensor | None = None
    """``(B,)`` float32, how much each row counts in the loss, at least 0; None without weights."""
    feature_mask: Masks = None
    """Which steps of the features are real."""
    label_mask: Masks = None
    """Which steps of the labels are real."""
    places: Sequence[str] = field(default=(), repr=False)
    """Names of files by number, where rows come from files; see `describe_row`."""

    def __post_init__(self) -> None:
        if self.row_ids is None:
            first = next(each(self.features), None)
            if first is None:
                text = f"Batch: features: expected at least one tensor, received {self.features!r}"
                raise OptionError(text)
            object.__setattr__(self, "row_ids", np.arange(len(first[1]), dtype=np.int64))

    def __len__(self) -> int:
        assert self.row_ids is not None  # noqa: S101  set in __post_init__
        return len(self.row_ids)

    def rows(self, chosen: slice | torch.Tensor) -> Batch:
        """Some of the rows.

        Args:
            chosen: A slice, or ``(B,)`` booleans.

        Returns:
            A minibatch that shares memory with this one where `chosen` is a slice.
        """
        assert self.row_ids is not None  # noqa: S101

        def cut(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[chosen]

        return Batch(
            features=mapped(cut, self.features),
            label=None if self.label is None else mapped(cut, self.label),
            row_ids=self.row_ids[chosen if isinstance(chosen, slice) else chosen.cpu().numpy()],
            weight=None if self.weight is None else cut(self.weight),
            feature_mask=mapped(cut, self.feature_mask),
            label_mask=mapped(cut, self.label_mask),
            places=self.places,
        )

    def describe(self, row: int) -> str:
        """Where one of the rows is in the user's data, in words; see `describe_row`.

        Args:
            row: Its index in this minibatch.
        """
        assert self.row_ids is not None  # noqa: S101
        return describe_row(int(self.row_ids[row]), self.places)


def describe_row(row_id: int, places: Sequence[str] = ()) -> str:
    """Where a row is in the user's data, in words.

    Args:
        row_id: ``partition << 33 | row``, or its complement for a row of the validation data.
        places: Names by number, where rows come from files and not from partitions.

    Returns:
        Text such as ``partition 3, row 17``, ``validation DataFrame, partition 3, row 17`` or ``s3://b/x.npz, row 17``, counted
        from zero.
    """
    if row_id < 0:
        kind = "validation data" if places else "validation DataFrame"
        return f"{kind}, {describe_row(~row_id, places)}"
    number, row = row_id >> ROW_BITS, row_id & ((1 << ROW_BITS) - 1)
    return f"{places[number] if number < len(places) else f'partition {number}'}, row {row}"


def each(tensors: Any) -> Iterator[tuple[int | str | None, torch.Tensor]]:
    """The tensors one by one, each with its position or name; a single one with None. Missing masks are left out."""
    if isinstance(tensors, Mapping):
        yield from tensors.items()
    elif isinstance(tensors, tuple | list):
        yield from ((i, tensor) for i, tensor in enumerate(tensors) if tensor is not None)
    elif tensors is not None:
        yield None, tensors


def mapped(change: Callable[[torch.Tensor], torch.Tensor], tensors: Any) -> Any:
    """The same form with every tensor changed; None stays None."""
    if isinstance(tensors, Mapping):
        return {name: change(tensor) for name, tensor in tensors.items()}
    if isinstance(tensors, tuple | list):
        return tuple(None if tensor is None else change(tensor) for tensor in tensors)
    return None if tensors is None else change(tensors)


@dataclass(frozen=True)
class Ragged:
    """A column whose rows have different numbers of steps."""

    values: NDArray[Any]
    """(steps of all rows together, ...) one row's steps after another's."""
    lengths: NDArray[np.int64]
    """(n,) steps of each row."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: slice) -> Ragged:
        start, stop, _ = rows.indices(len(self))
        begin = int(self.lengths[:start].sum())
        own = self.lengths[start:stop]
        return Ragged(self.values[begin : begin + int(own.sum())], own)

    def copy(self) -> Ragged:
        """The same in memory of its own."""
        return Ragged(self.values.copy(), self.lengths.copy())

    def padded(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """All rows as long as the longest.

        Returns:
            The values (n, T, ...), zero behind each row's end, and the mask (n, T) of real steps.
        """
        longest = int(self.lengths.max(initial=0))
        mask = np.arange(longest) < self.lengths[:, None]
        padded = np.zeros((len(self), longest, *self.values.shape[1:]), self.values.dtype)
        padded[mask] = self.values
        return padded, mask


Array: TypeAlias = "NDArray[Any] | Ragged"
"""A column of n rows."""


@dataclass(frozen=True)
class Rows:
    """Rows that passed every check; the arrays may be read-only views of Arrow memory."""

    row_ids: NDArray[np.int64]
    """(n,) which row of the user's data each one is; see `describe_row`."""
    columns: Mapping[str, Array]
    """By the name of the field: (n, ...) arrays, or steps."""

    def __len__(self) -> int:
        return len(self.row_ids)

    def part(self, start: int, stop: int) -> Rows:
        """The rows ``start <= i < stop``, as views."""
        rows = slice(start, stop)
        return Rows(self.row_ids[rows], {name: column[rows] for name, column in self.columns.items()})

    def copy(self) -> Rows:
        """The same rows in memory of their own."""
        return Rows(self.row_ids.copy(), {name: column.copy() for name, column in self.columns.items()})

    @classmethod
    def joined(cls, pieces: Sequence[Rows]) -> Rows:
        """Copy pieces, in their order, into one.

        Args:
            pieces: At least one; all of the same layout.
        """
        columns = {name: _joined([piece.columns[name] for piece in pieces]) for name in pieces[0].columns}
        return cls(np.concatenate([piece.row_ids for piece in pieces]), columns)

    def to_arrow(self) -> pa.RecordBatch:
        """The same rows as a record batch, without a copy; see `Spill`."""
        columns = {"row_id": pa.array(self.row_ids)}
        columns |= {name: _column(column) for name, column in self.columns.items()}
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _joined(columns: Sequence[Any]) -> Array:
    if isinstance(columns[0], Ragged):
        lengths = np.concatenate([column.lengths for column in columns])
        return Ragged(np.concatenate([column.values for column in columns]), lengths)
    return np.concatenate(columns)


def _column(column: Array) -> Any:
    """An Arrow column: numbers, fixed-size lists of all of a row's numbers, or lists of fixed-size lists by step."""
    if isinstance(column, Ragged):
        offsets = np.concatenate([[0], np.cumsum(column.lengths)])
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), _column(column.values))
    values = pa.array(column.reshape(-1))
    width = int(np.prod(column.shape[1:]))
    return values if column.ndim == 1 else pa.FixedSizeListArray.from_arrays(values, width)
