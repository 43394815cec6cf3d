"""One pass over checked rows in which preprocessing is fitted; knows no Spark.

Only good rows count: a row that training leaves out as bad is left out here, too, whichever of its columns is bad.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fatwood.data.batch import Ragged
from fatwood.data.layout import Layout, OnBadRow
from fatwood.data.preprocessing import Chain, Tally, Transform, is_text
from fatwood.data.preprocessing.counts import is_list, nested
from fatwood.data.preprocessing.numbers import damaged
from fatwood.errors import OptionError, UserError

__all__ = ["Fitting", "all_fitted"]


def all_fitted(transforms: Mapping[str, Transform]) -> bool:
    """Whether no pass is needed (any more): a chain may need several."""
    return all(transform.fitted for transform in transforms.values())


class Fitting:
    """Counts rows for all transforms that are not fitted.

    Args:
        layout: Of the rows; its own transforms do not matter.
        transforms: By the name of the field.

    Raises:
        OptionError: A transform is for no field of the layout.
        SchemaError: One that is fitted was fitted with rows of another shape.
    """

    def __init__(self, layout: Layout, transforms: Mapping[str, Transform]) -> None:
        self._fields = {field.name: field for field in layout.fields}
        for name, transform in transforms.items():
            if name not in self._fields:
                message = (
                    f"preprocessing: expected one of the fields {', '.join(self._fields)}, received {name!r}"
                )
                raise OptionError(message)
            with _named(self._fields[name].title):
                transform.require_fits(self._fields[name].shape)
        self._layout = layout
        self._transforms = dict(transforms)
        self._tallies = self._empty()

    def update(self, batch: pa.RecordBatch, *, on_bad_row: OnBadRow) -> int:
        """Count the good rows of a record batch, in place.

        Args:
            batch: The columns of the layout.
            on_bad_row: ``"error"`` raises at the first bad row, ``"skip"`` leaves bad rows out.

        Returns:
            How many rows were left out.

        Raises:
            DataError: A row is bad and ``on_bad_row`` is ``"error"``, or there are more different texts than can be kept.
            SchemaError: A column is missing, or has a type that it or its transform does not take.
        """
        texts = {name for name in self._transforms if self._is_text(name, batch)}
        reading = {
            name: transform if _can_encode(transform) else _Texts()
            for name, transform in self._transforms.items()
            if name in texts
        }
        rows, kept = replace(self._layout, transforms=reading).check(batch, on_bad_row=on_bad_row)
        for name, tally in self._tallies.items():
            if name in texts:
                values: Any = batch.column(name)
                values = values if kept.all() else values.filter(pa.array(kept))
            else:
                column = rows.columns[name]
                values = self._scaled(name, column.values if isinstance(column, Ragged) else column)
            with _named(self._fields[name].title):
                tally.update(values)
        return int((~kept).sum())

    def to_json(self) -> str:
        """What was counted, as text."""
        return json.dumps({name: tally.to_json() for name, tally in self._tallies.items()})

    def merge_json(self, text: str) -> None:
        """Add what another pass with the same layout and transforms counted, in place.

        Args:
            text: From its `to_json`.

        Raises:
            DataError: There are more different texts than can be kept.
            SchemaError: Its rows had another shape.
            UserError: It is something else.
        """
        where = "tallies"
        try:
            state = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise damaged(where, "JSON text", f"{text!r:.60}: {error}") from error
        if not isinstance(state, dict) or set(state) != set(self._tallies):
            raise damaged(where, f"an object of {', '.join(sorted(self._tallies))}", f"{text!r:.60}")
        for name, tally in self._tallies.items():
            with _named(self._fields[name].title):
                self._tallies[name] = tally.merge(Tally.from_json(state[name]))

    def fitted(self) -> dict[str, Transform]:
        """All transforms, those that were counted for fitted: a chain by one member.

        Raises:
            DataError: No row was counted, or no text occurs often enough.
        """
        found = dict(self._transforms)
        for name, tally in self._tallies.items():
            with _named(self._fields[name].title):
                found[name] = found[name].fitted_by(tally)
        return found

    def _empty(self) -> dict[str, Tally]:
        tallies = {name: transform.tally() for name, transform in self._transforms.items()}
        return {name: tally for name, tally in tallies.items() if tally is not None}

    def _is_text(self, name: str, batch: pa.RecordBatch) -> bool:
        if name in self._layout.decoders or name not in batch.schema.names:
            return False
        return is_text(batch.schema.field(name).type)

    def _scaled(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """As `Layout.batch` makes them: what a transform is applied to."""
        divisor = self._fields[name].divisor
        if divisor is None:
            return values
        # by torch, so that not a bit differs; the copy is writable, else torch warns
        scaled: NDArray[Any] = (torch.from_numpy(values.astype(np.float32)) / divisor).numpy()
        return scaled


def _can_encode(transform: Transform) -> bool:
    first = transform.members[0] if isinstance(transform, Chain) else transform
    return first.fitted and first.encodes


class _Texts(Transform):
    """Stands for a transform of texts that is not fitted: lets a layout find the rows with nulls."""

    @property
    def encodes(self) -> bool:
        """The column holds texts."""
        return True

    def encode(self, column: Any) -> Any:
        """As many numbers as there are texts, null where a text is."""
        if not is_list(column.type):
            return _zeros(column)
        return nested(_zeros(column.flatten()), column)

    def apply(self, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Never called."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Never called."""
        raise NotImplementedError

    @classmethod
    def from_state(cls, state: dict[str, Any], where: str) -> Transform:
        """Never called."""
        raise NotImplementedError


def _zeros(texts: Any) -> Any:
    nulls = texts.is_null().to_numpy(zero_copy_only=False)
    return pa.array(np.zeros(len(texts), np.int64), mask=nulls)


@contextmanager
def _named(title: str) -> Iterator[None]:
    """Say in an error's message which column it is about."""
    try:
        yield
    except UserError as error:
        message = f"column {title!r}: {error.message}"
        raise type(error)(message, hint=error.hint) from error
