"""How rows look: which columns, of which type and shape; the check that they do, and what becomes of them.

The record batches have the columns ``row_id`` (int64) and one for every field: ``features`` (a list per row; several are
``features/0``, ``features/1`` or ``features/image``, ``features/age``) and, when there are labels or weights, ``label`` and
``weight``. Other columns are ignored. A row id is ``partition << 33 | row``, as Spark's
``monotonically_increasing_id`` makes it; partitions and rows count from zero. A row of the validation DataFrame has
the bitwise complement of such a number, so that its id is negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fatwood.data.batch import Array, Batch, Ragged, Rows, describe_row
from fatwood.data.columns import Column
from fatwood.data.decoding import Decoder
from fatwood.data.fields import Dtype, Field, Group
from fatwood.data.preprocessing import Transform
from fatwood.errors import DataError, OptionError, SchemaError

OnBadRow = Literal["error", "skip"]

SKIP_HINT = 'fix the row, or pass on_bad_row="skip" to leave such rows out; skipped rows are counted'


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The columns of a training, evaluation or prediction row, and how they become a minibatch."""

    features: Group
    label: Group | None = None
    weight: Field | None = None
    decoders: Mapping[str, Decoder] = field(default_factory=dict)
    """By the name of the field: what makes its values of a column of bytes, text or anything else."""
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    """By the name of the field: fitted preprocessing."""
    places: tuple[str, ...] = ()
    """Names of files by number, where rows come from files."""

    @classmethod
    def of(
        cls,
        *,
        feature_width: int,
        feature_dtype: Dtype,
        feature_name: str,
        label_dtype: Literal["int64", "float32"] | None = None,
        label_width: int | None = None,
        label_name: str | None = None,
        weight_name: str | None = None,
    ) -> Layout:
        """Of one list of features a row, and at most one label.

        Args:
            feature_width: Values per row in the features column.
            feature_dtype: ``"int64"`` for indices into an embedding, else ``"float32"``.
            feature_name: The user's name for the features column, for messages.
            label_dtype: ``"int64"`` for classes, ``"float32"`` for regression, None without labels.
            label_width: Values per label of a list column; None for scalar labels.
            label_name: The user's name for the label column.
            weight_name: The user's name for the column of sample weights; None without weights.

        Raises:
            OptionError: A type or width that cannot be, or a label's width or name without a type.
        """
        if label_dtype is None and (label_width is not None or label_name is not None):
            message = (
                "label_dtype: expected a type beside label_width or label_name, "
                f"received None with label_width={label_width}, label_name={label_name!r}"
            )
            raise OptionError(message)
        features = Field(name="features", title=feature_name, dtype=feature_dtype, shape=(feature_width,))
        label = None
        if label_dtype is not None:
            shape = () if label_width is None else (label_width,)
            label = Group(
                fields=(Field(name="label", title=label_name or "label", dtype=label_dtype, shape=shape),)
            )
        return cls(
            features=Group(fields=(features,)),
            label=label,
            weight=None if weight_name is None else weight_field(weight_name),
        )

    @property
    def fields(self) -> tuple[Field, ...]:
        """All of them: features, labels, weight."""
        label = () if self.label is None else self.label.fields
        return (*self.features.fields, *label, *(() if self.weight is None else (self.weight,)))

    def without_label(self) -> Layout:
        """The same rows for prediction: label and weight are neither expected nor looked at."""
        return replace(self, label=None, weight=None)

    def check(self, batch: pa.RecordBatch, *, on_bad_row: OnBadRow) -> tuple[Rows, NDArray[np.bool_]]:
        """Find bad rows and turn the good ones into arrays.

        Args:
            batch: A record batch of n rows; slices of larger batches are fine.
            on_bad_row: ``"error"`` raises at the first bad row, ``"skip"`` leaves bad rows out.

        Returns:
            The good rows (views of the batch where nothing was left out) and the mask (n,) of rows kept.

        Raises:
            DataError: A row is bad and ``on_bad_row`` is ``"error"``; names partition, row, column and fault.
            SchemaError: A column is missing or has the wrong type.
        """
        rules = [Column(field) for field in self.fields]
        row_ids = row_ids_of(batch)
        columns, faults = self._read(rules, batch)
        arrays = [rule.dense(column) for rule, column in zip(rules, columns, strict=True)]
        kept = np.ones(batch.num_rows, dtype=np.bool_)
        if any(array is None for array in arrays):
            for rule, column in zip(rules, columns, strict=True):
                kept &= rule.good(column)
            if on_bad_row == "error":
                row = int(np.argmin(kept))
                rule, column = next(
                    (rule, column)
                    for rule, column in zip(rules, columns, strict=True)
                    if not rule.good(column.slice(row, 1))[0]
                )
                fault = faults.get((rule.field.name, row)) or self._strange(rule, batch, row)
                fault = fault or rule.complaint(column, row)
                message = f"{describe_row(int(row_ids[row]), self.places)}: {fault}"
                raise DataError(message, hint=SKIP_HINT)
            row_ids = row_ids[kept]
            mask = pa.array(kept)
            arrays = [rule.dense(column.filter(mask)) for rule, column in zip(rules, columns, strict=True)]
        named = {rule.field.name: array for rule, array in zip(rules, arrays, strict=True)}
        # every row that `good` calls bad was left out, so no array is missing
        return Rows(row_ids, {name: array for name, array in named.items() if array is not None}), kept

    def _read(
        self, rules: list[Column], batch: pa.RecordBatch
    ) -> tuple[list[Any], dict[tuple[str, int], str]]:
        """The columns, decoded and encoded where they must be, and by column and row what was wrong with that."""
        columns: list[Any] = []
        faults: dict[tuple[str, int], str] = {}
        for rule in rules:
            name = rule.field.name
            decoder, transform = self.decoders.get(name), self.transforms.get(name)
            if decoder is not None:
                raw = batch.column(name) if name in batch.schema.names else rule.of(batch)
                column, found = decoder.decoded(raw, rule.field)
                faults |= {(name, row): fault for row, fault in found.items()}
            elif transform is not None and transform.encodes and name in batch.schema.names:
                column = transform.encode(batch.column(name))
                rule.require_type(column.type)
            else:
                column = rule.of(batch)
            columns.append(column)
        return columns, faults

    def _strange(self, rule: Column, batch: pa.RecordBatch, row: int) -> str | None:
        """Why a text has no number, if that is what is wrong with a row."""
        transform = self.transforms.get(rule.field.name)
        if transform is None or not transform.encodes:
            return None
        fault = transform.complaint(batch.column(rule.field.name)[row].as_py())
        return None if fault is None else f"column {rule.field.title!r}: {fault}"

    def batch(self, rows: Rows) -> Batch:
        """A minibatch of rows that nobody else holds: their arrays are taken over without a copy where that is possible.

        Args:
            rows: B of them, writable.
        """
        tensors: dict[str, torch.Tensor] = {}
        masks: dict[str, torch.Tensor] = {}
        for of in self.fields:
            tensors[of.name], mask = self._tensor(of, rows.columns[of.name])
            if mask is not None:
                masks[of.name] = mask
        return Batch(
            features=self.features.collected(tensors),
            label=None if self.label is None else self.label.collected(tensors),
            row_ids=rows.row_ids,
            weight=None if self.weight is None else tensors["weight"],
            feature_mask=self.features.masks(masks),
            label_mask=None if self.label is None else self.label.masks(masks),
            places=self.places,
        )

    def batch_of(self, columns: Mapping[str, Array]) -> Batch:
        """A minibatch of columns such as `Spill.take` gives back, which it takes over.

        Args:
            columns: By the names of `Rows.to_arrow`, (B,), (B, width), or steps; writable, held by nobody else.
        """
        shaped: dict[str, Array] = {}
        for of in self.fields:
            column = columns[of.name]
            if isinstance(column, Ragged):
                shaped[of.name] = Ragged(column.values.reshape(-1, *of.shape), column.lengths)
            else:
                shaped[of.name] = column.reshape(len(column), *of.shape)
        row_ids = columns["row_id"]
        assert isinstance(row_ids, np.ndarray)  # noqa: S101  a column of numbers
        return self.batch(Rows(row_ids, shaped))

    def _tensor(self, of: Field, column: Array) -> tuple[torch.Tensor, torch.Tensor | None]:
        mask = None
        if isinstance(column, Ragged):
            column, real = column.padded()
            mask = torch.from_numpy(real)
        tensor = torch.from_numpy(column)
        if of.divisor is not None:
            tensor = tensor.to(torch.float32).div_(of.divisor)  # in place: the arrays are ours
        transform = self.transforms.get(of.name)
        return (tensor if transform is None else transform.apply(tensor, mask)), mask


def weight_field(title: str) -> Field:
    """The field of sample weights.

    Args:
        title: The user's name for the column.
    """
    return Field(name="weight", title=title, least=0.0)


def tensors_of(
    record_batch: pa.RecordBatch, layout: Layout, *, on_bad_row: OnBadRow = "error"
) -> tuple[Batch, NDArray[np.bool_]]:
    """Check one Arrow batch and copy it into tensors, for evaluation and prediction.

    Args:
        record_batch: n rows with the columns of the layout; use `Layout.without_label` where there are no labels.
        layout: What the rows must look like.
        on_bad_row: ``"error"`` raises at the first bad row, ``"skip"`` leaves bad rows out.

    Returns:
        The good rows in their order (possibly none) and the mask (n,) of rows kept, to select keys by.

    Raises:
        DataError: A row is bad and ``on_bad_row`` is ``"error"``.
        SchemaError: A column is missing or has the wrong type.
    """
    rows, kept = layout.check(record_batch, on_bad_row=on_bad_row)
    return layout.batch(rows.copy()), kept


def row_ids_of(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """The row ids (n,) of a record batch, as a view.

    Raises:
        SchemaError: The column is missing, has the wrong type or a null.
    """
    rule = Column(Field(name="row_id", title="row_id", dtype="int64"))
    row_ids = rule.dense(rule.of(batch))
    if row_ids is None:
        message = "column 'row_id': expected an integer in every row, received null"
        raise SchemaError(message)
    assert isinstance(row_ids, np.ndarray)  # noqa: S101  a field without steps
    return row_ids
