"""What one tensor of a minibatch is made of (`Field`), and how several belong together (`Group`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from fatwood.data.batch import Tensors
from fatwood.errors import OptionError

__all__ = ["Dtype", "Field", "Form", "Group"]

Dtype = Literal["float32", "int64", "uint8"]
Form = Literal["one", "tuple", "dict"]
"""A single tensor, several by position, or several by name."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """A column of the rows that becomes one tensor."""

    name: str
    """Of the Arrow column: ``features``, ``features/0``, ``features/image``, ``label``, ``label/side``, ``weight``.

    No dot is in it: Spark would look for a field of a struct."""
    title: str
    """The user's name for it, for messages."""
    dtype: Dtype = "float32"
    """In ``"float32"``, null, NaN and infinities are faults; in the others null is."""
    shape: tuple[int, ...] = ()
    """Of one row, or of one step where rows have steps; ``()`` for a number."""
    ragged: bool = False
    """Whether a row has any number of steps, at least one."""
    least: float | None = None
    """A smaller number is a fault; None where any is fine. Numbers only."""
    divisor: float | None = None
    """What the numbers are divided by, as float32, when they become a tensor; None to leave them as they are."""

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            message = f"field {self.name!r}: expected one of the types {', '.join(get_args(Dtype))}, received {self.dtype!r}"
            raise OptionError(message)
        if any(size < 1 for size in self.shape):
            message = f"field {self.name!r}: expected a shape of numbers of at least 1, received {self.shape}"
            raise OptionError(message)

    @property
    def width(self) -> int:
        """Numbers of one row, or of one step."""
        return math.prod(self.shape)

    @property
    def listed(self) -> bool:
        """Whether a row is a list in Arrow, and not a number."""
        return self.ragged or bool(self.shape)

    @property
    def key(self) -> str:
        """Its position or name within its group; empty for the only one."""
        return self.name.partition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The fields that the network is called with, or that the loss compares its outputs with."""

    form: Form = "one"
    fields: tuple[Field, ...]

    @property
    def keys(self) -> int | tuple[str, ...] | None:
        """None for a single tensor, the number of tensors by position, or their names."""
        if self.form == "one":
            return None
        names = tuple(field.key for field in self.fields)
        return names if self.form == "dict" else len(names)

    def collected(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """The tensors of this group in its form.

        Args:
            tensors: By the fields' names.
        """
        found = {field.key: tensors[field.name] for field in self.fields}
        if self.form == "one":
            return found[""]
        return found if self.form == "dict" else tuple(found.values())

    def masks(self, masks: Mapping[str, torch.Tensor]) -> Any:
        """The masks of the fields with steps, in this group's form; None where no field has any.

        Args:
            masks: By the fields' names, of those with steps alone.
        """
        found = {field.key: masks.get(field.name) for field in self.fields}
        if not any(mask is not None for mask in found.values()):
            return None
        if self.form == "one":
            return found[""]
        if self.form == "dict":
            return {key: mask for key, mask in found.items() if mask is not None}
        return tuple(found.values())
