"""How rows look: which columns, how wide, of which type; and the check that they do.

The record batches have the columns ``row_id`` (int64), ``features`` (a list per row) and, when there are labels or
weights, ``label`` and ``weight``. Other columns are ignored. A row id is ``partition << 33 | row``, as Spark's
``monotonically_increasing_id`` makes it; partitions and rows count from zero. A row of the validation DataFrame has
the bitwise complement of such a number, so that its id is negative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fatwood.data.batch import Batch, Rows
from fatwood.data.columns import Column
from fatwood.errors import DataError, OptionError, SchemaError

OnBadRow = Literal["error", "skip"]

_ROW_BITS = 33
SKIP_HINT = 'fix the row, or pass on_bad_row="skip" to leave such rows out; skipped rows are counted'


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The columns of a training, evaluation or prediction row."""

    feature_width: int
    """Values per row in the features column."""
    feature_dtype: Literal["float32", "int64"]
    """``"int64"`` for indices into an embedding, else ``"float32"``."""
    feature_name: str
    """The user's name for the features column, for messages."""
    label_dtype: Literal["int64", "float32"] | None = None
    """``"int64"`` for classes, ``"float32"`` for regression, None without labels."""
    label_width: int | None = None
    """Values per label of a list column (float32 only); None for scalar labels."""
    label_name: str | None = None
    """The user's name for the label column, for messages."""
    weight_name: str | None = None
    """The user's name for the column of sample weights, for messages; None without weights."""

    def __post_init__(self) -> None:
        if self.feature_width < 1:
            message = f"feature_width: expected at least 1, received {self.feature_width}"
            raise OptionError(message)
        if self.feature_dtype not in ("float32", "int64"):
            message = f"feature_dtype: expected 'float32' or 'int64', received {self.feature_dtype!r}"
            raise OptionError(message)
        if self.label_dtype not in ("float32", "int64", None):
            message = f"label_dtype: expected 'float32', 'int64' or None, received {self.label_dtype!r}"
            raise OptionError(message)
        if self.label_dtype is None and (self.label_width is not None or self.label_name is not None):
            message = (
                "label_dtype: expected a type beside label_width or label_name, "
                f"received None with label_width={self.label_width}, label_name={self.label_name!r}"
            )
            raise OptionError(message)
        if self.label_width is not None and (self.label_width < 1 or self.label_dtype != "float32"):
            message = (
                "label_width: expected None, or at least 1 with label_dtype='float32', "
                f"received {self.label_width} with label_dtype={self.label_dtype!r}"
            )
            raise OptionError(message)

    def without_label(self) -> Layout:
        """The same rows for prediction: label and weight are neither expected nor looked at."""
        return replace(self, label_dtype=None, label_width=None, label_name=None, weight_name=None)

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
        rules = self._columns()
        row_ids = row_ids_of(batch)
        columns = [rule.of(batch) for rule in rules]
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
                message = f"{describe_row(int(row_ids[row]))}: {rule.complaint(column, row)}"
                raise DataError(message, hint=SKIP_HINT)
            row_ids = row_ids[kept]
            mask = pa.array(kept)
            arrays = [rule.dense(column.filter(mask)) for rule, column in zip(rules, columns, strict=True)]
        named = {rule.name: array for rule, array in zip(rules, arrays, strict=True)}
        features = named["features"]
        assert features is not None  # noqa: S101  every row that `good` calls bad was left out
        rows = Rows(row_ids=row_ids, features=features, label=named.get("label"), weight=named.get("weight"))
        return rows, kept

    def _columns(self) -> list[Column]:
        rules = [
            Column(
                name="features", title=self.feature_name, dtype=self.feature_dtype, width=self.feature_width
            )
        ]
        if self.label_dtype is not None:
            title = self.label_name or "label"
            rules.append(Column(name="label", title=title, dtype=self.label_dtype, width=self.label_width))
        if self.weight_name is not None:
            rules.append(
                Column(name="weight", title=self.weight_name, dtype="float32", width=None, least=0.0)
            )
        return rules


def describe_row(row_id: int) -> str:
    """Where a row is in the user's DataFrame, in words.

    Args:
        row_id: ``partition << 33 | row``, or its complement for a row of the validation DataFrame.

    Returns:
        Text such as ``partition 3, row 17`` or ``validation DataFrame, partition 3, row 17``, counted from zero.
    """
    if row_id < 0:
        return f"validation DataFrame, {describe_row(~row_id)}"
    return f"partition {row_id >> _ROW_BITS}, row {row_id & ((1 << _ROW_BITS) - 1)}"


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
    return Batch.joined([rows]), kept


def row_ids_of(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """The row ids (n,) of a record batch, as a view.

    Raises:
        SchemaError: The column is missing, has the wrong type or a null.
    """
    rule = Column(name="row_id", title="row_id", dtype="int64", width=None)
    row_ids = rule.dense(rule.of(batch))
    if row_ids is None:
        message = "column 'row_id': expected an integer in every row, received null"
        raise SchemaError(message)
    return row_ids
