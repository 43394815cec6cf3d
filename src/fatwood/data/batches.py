r"""Minibatches that the user made, taken apart into rows: what they are made of, and their rows in Arrow.

::

    Batch of any size --BatchSchema.of--> names, types, shapes --merge--> one schema for all of them
          \-------------------------------to_arrow------------------------> record batch, one row each

Shapes: ``B`` rows, ``T`` steps of the longest sequence among them. A field is ragged where a mask is given: its Arrow rows
hold the real steps alone, so minibatches that were padded to different lengths fit together.

============================================  ==========================================
a tensor or NumPy array of                    becomes
============================================  ==========================================
float64, float32, float16, bfloat16           float32
int64, int32, int16, int8, uint16, uint32     int64
uint8, several numbers a row of the features  uint8, a binary column
uint8, otherwise                              int64
bool, features or several numbers a label     float32
bool, one number a label                      int64, the class
============================================  ==========================================
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fatwood.data.batch import Batch
from fatwood.data.batch_parts import Part, devices, form_of, parts_of, tell_of_devices
from fatwood.data.fields import Field, Group
from fatwood.data.layout import weight_field
from fatwood.errors import SchemaError

__all__ = ["BatchSchema", "pieces"]

_ARROW = {"float32": pa.float32(), "int64": pa.int64(), "uint8": pa.uint8()}
_NUMPY = {"float32": np.float32, "int64": np.int64, "uint8": np.uint8}
_TORCH = {"float32": torch.float32, "int64": torch.int64, "uint8": torch.uint8}
_MOST_IN_A_LIST_ARRAY = 2**31 - 1  # Arrow's offsets of lists are 32-bit; those of large lists are not
_STEPS_HINT = "where rows have different numbers of steps, give their masks: Batch(..., feature_mask=..., label_mask=...)"


@dataclass(frozen=True, kw_only=True)
class BatchSchema:
    """What a minibatch is made of, whatever its size: enough for a `Layout` of its rows."""

    features: Group
    label: Group | None = None
    weight: Field | None = None

    @classmethod
    def of(cls, batch: Batch) -> BatchSchema:
        """What a minibatch is made of; no value is looked at but those of masks.

        Args:
            batch: Tensors or NumPy arrays, of B rows each.

        Raises:
            DataError: The numbers of rows differ, or a mask is not one of real steps before padding.
            SchemaError: A tensor is missing, or of a type or shape that cannot be trained on.
        """
        return cls._of(batch, parts_of(batch))

    @classmethod
    def _of(cls, batch: Batch, parts: list[Part]) -> BatchSchema:
        def group(name: str, tensors: Any) -> Group | None:
            fields = tuple(part.field for part in parts if part.field.name.partition("/")[0] == name)
            return Group(form=form_of(tensors), fields=fields) if fields else None

        features = group("features", batch.features)
        assert features is not None  # noqa: S101  see parts_of
        weight = parts[-1].field if batch.weight is not None else None
        return cls(features=features, label=group("label", batch.label), weight=weight)

    @property
    def fields(self) -> tuple[Field, ...]:
        """All of them: features, labels, weight."""
        label = () if self.label is None else self.label.fields
        return (*self.features.fields, *label, *(() if self.weight is None else (self.weight,)))

    def merge(self, other: BatchSchema) -> BatchSchema:
        """What both are made of. A field without a mask in one of them has nothing padded there.

        Raises:
            SchemaError: They differ; the message names the field.
        """
        features = _merged("features", self.features, other.features)
        assert features is not None  # noqa: S101  both have features
        label = _merged("label", self.label, other.label)
        _require_both("weight", self.weight, other.weight)
        return BatchSchema(features=features, label=label, weight=self.weight)

    def require(self, other: BatchSchema) -> None:
        """Check that minibatches of another schema can be read as some of this one.

        Raises:
            SchemaError: They cannot; the message names the field.
        """
        for own, merged in zip(self.fields, self.merge(other).fields, strict=True):
            if own != merged:
                raise _differ(own.name, _spelled(own), _spelled(merged))

    @property
    def arrow(self) -> pa.Schema:
        """Of the record batches that `to_arrow` makes."""
        return pa.schema(
            [("row_id", pa.int64()), *((field.name, _arrow_type(field)) for field in self.fields)]
        )

    def to_arrow(self, batch: Batch, first_row_id: int) -> pa.RecordBatch:
        """The rows of a minibatch in their order. Whether their values can be used is for `Layout.check` to say.

        Args:
            batch: B rows, none of whose tensors is changed while the result is used: memory may be shared. A minibatch of no
                rows fits every schema.
            first_row_id: Of its first row; the others count on from there.

        Returns:
            B rows: ``row_id``, and for each field a number, a list of the row's numbers, or a list of those of its real steps;
            bytes for uint8.

        Raises:
            DataError: As for `of`.
            SchemaError: As for `of` and `require`.
        """
        names = self.arrow.names
        if not len(batch):
            return pa.RecordBatch.from_arrays([pa.array([], kind) for kind in self.arrow.types], names=names)
        parts = parts_of(batch)
        self.require(self._of(batch, parts))
        tell_of_devices(devices(batch))
        by_name = {part.field.name: part for part in parts}
        row_ids = np.arange(first_row_id, first_row_id + len(batch), dtype=np.int64)
        columns = [_column(field, by_name[field.name]) for field in self.fields]
        return pa.RecordBatch.from_arrays([pa.array(row_ids), *columns], names=names)

    def to_json(self) -> str:
        """As text, for `from_json`."""
        label = None if self.label is None else _described(self.label)
        return json.dumps(
            {"features": _described(self.features), "label": label, "weight": self.weight is not None}
        )

    @classmethod
    def from_json(cls, text: str) -> BatchSchema:
        """The schema that `to_json` wrote."""
        found = json.loads(text)
        label = None if found["label"] is None else _rebuilt("label", found["label"])
        weight = weight_field("weight") if found["weight"] else None
        return cls(features=_rebuilt("features", found["features"]), label=label, weight=weight)


def pieces(rows: pa.RecordBatch, most_bytes: int) -> Iterator[pa.RecordBatch]:
    """Rows in slices of at most so many bytes, or of one row where a row has more.

    Args:
        rows: Any number, none included.
        most_bytes: At least 1.
    """
    step = max(1, most_bytes * rows.num_rows // max(1, rows.nbytes))
    for start in range(0, rows.num_rows, step):
        yield rows.slice(start, step)


def _column(field: Field, part: Part) -> Any:
    """An Arrow column of B rows, without a copy where the numbers need no conversion."""
    tensor, lengths = part.tensor, part.lengths
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.detach().to("cpu", _TORCH[field.dtype]).numpy()
    # What float32 cannot hold becomes infinite, which the check of the rows finds.
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(tensor, _NUMPY[field.dtype])
    if not field.listed:
        return pa.array(array)
    counts = np.full(len(array), array.shape[1] if field.ragged else 1, np.int64)
    if lengths is not None:
        array, counts = array[np.arange(array.shape[1]) < lengths[:, None]], lengths
    starts = np.concatenate([[0], np.cumsum(counts * field.width)])
    large = starts[-1] > _MOST_IN_A_LIST_ARRAY
    offsets, values = pa.array(starts, pa.int64() if large else pa.int32()), pa.array(array.reshape(-1))
    if field.dtype == "uint8":
        kind = pa.large_binary() if large else pa.binary()
        return pa.Array.from_buffers(kind, len(counts), [None, offsets.buffers()[1], values.buffers()[1]])
    return (pa.LargeListArray if large else pa.ListArray).from_arrays(offsets, values)


def _arrow_type(field: Field) -> Any:
    if field.dtype == "uint8":
        return pa.binary()
    return pa.list_(_ARROW[field.dtype]) if field.listed else _ARROW[field.dtype]


def _merged(name: str, own: Group | None, other: Group | None) -> Group | None:
    _require_both(name, own, other)
    if own is None or other is None:
        return None
    found = {field.key: field for field in other.fields}
    if own.form != other.form or {field.key for field in own.fields} != found.keys():
        raise _differ(name, _listed(own), _listed(other))
    return Group(form=own.form, fields=tuple(_merged_field(field, found[field.key]) for field in own.fields))


def _merged_field(own: Field, other: Field) -> Field:
    if own == other:
        return own
    ragged, dense = (own, other) if own.ragged else (other, own)
    same = own.dtype == other.dtype and ragged.ragged and not dense.ragged
    if same and dense.shape[:1] and dense.shape[1:] == ragged.shape:
        return ragged
    steps = (
        own.dtype == other.dtype and own.shape[1:] == other.shape[1:] and len(own.shape) == len(other.shape)
    )
    raise _differ(own.name, _spelled(own), _spelled(other), _STEPS_HINT if steps and own.shape else None)


def _differ(name: str, expected: str, received: str, hint: str | None = None) -> SchemaError:
    message = f"{name}: expected {expected} as in the minibatches before, received {received}"
    return SchemaError(
        message, hint=hint or "all minibatches of a data set have the same tensors, types and shapes of rows"
    )


def _require_both(name: str, own: object, other: object) -> None:
    if (own is None) != (other is None):
        raise _differ(name, _presence(own), _presence(other))


def _presence(found: object) -> str:
    return "none" if found is None else "one"


def _listed(group: Group) -> str:
    if group.form == "one":
        return "a single tensor"
    if group.form == "tuple":
        return f"{len(group.fields)} tensors by position"
    return f"tensors by the names {', '.join(sorted(field.key for field in group.fields))}"


def _spelled(field: Field) -> str:
    if field.ragged:
        return f"steps of {field.dtype} of shape {field.shape} with a mask"
    return f"rows of {field.dtype} of shape {field.shape}"


def _described(group: Group) -> dict[str, Any]:
    fields = [
        {"key": field.key, "dtype": field.dtype, "shape": field.shape, "ragged": field.ragged}
        for field in group.fields
    ]
    return {"form": group.form, "fields": fields}


def _rebuilt(name: str, found: Mapping[str, Any]) -> Group:
    fields = []
    for of in found["fields"]:
        own = f"{name}/{of['key']}" if of["key"] else name
        fields.append(
            Field(name=own, title=own, dtype=of["dtype"], shape=tuple(of["shape"]), ragged=of["ragged"])
        )
    return Group(form=found["form"], fields=tuple(fields))
