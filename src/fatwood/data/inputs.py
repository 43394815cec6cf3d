"""Which columns of a table become which tensor: what `fit`, `evaluate`, `predict` and `score` are told as features and label.

A name stands for one column, a list of names for several side by side in one tensor. A description of this module says more
about a column. Several tensors are given by position, as a list of such things, or by name, as a dict::

    features="pixels"                                          network(pixels)
    features=["age", "height"]                                 network(x)                x is (B, 2)
    features=[["age", "height"], SequenceColumn("visits")]     network(x, visits)
    features={"image": ImageColumn("jpeg", size=(224, 224)),   network(image=image, age=age)
              "age": "age"}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from fatwood.data.fields import Dtype, Form
from fatwood.errors import OptionError

__all__ = [
    "ColumnSpec",
    "DecodedColumn",
    "DenseColumn",
    "ImageColumn",
    "InputSpec",
    "SequenceColumn",
    "Specs",
    "read_specs",
]


@dataclass(frozen=True)
class DenseColumn:
    """Numbers, as many in every row.

    Args:
        columns: A column (number, array, array of arrays, vector, or bytes, each byte a number), or several to be put side by side.
        shape: Of one row; by default that of the arrays, or ``(numbers,)``. ``()`` for one number.
        dtype: ``"float32"`` or ``"int64"``; by default int64 where all are integers.
        divisor: What the numbers are divided by: 255 makes bytes of an image numbers from 0 to 1.
    """

    columns: str | Sequence[str]
    shape: tuple[int, ...] | None = field(default=None, kw_only=True)
    dtype: Literal["float32", "int64"] | None = field(default=None, kw_only=True)
    divisor: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _require_shape(self, self.shape)
        _require_dtype(self, self.dtype, ("float32", "int64", None))
        if self.divisor is not None and not (isinstance(self.divisor, int | float) and self.divisor > 0):
            text = f"{self!r}: divisor: expected a number above 0, received {self.divisor!r}"
            raise OptionError(text)


@dataclass(frozen=True)
class SequenceColumn:
    """An array whose length differs from row to row: padded with zeros to the longest of each minibatch, with a mask.

    The network is given the mask ``(B, T)`` where its ``forward`` has a parameter for it: ``mask``, or ``<name>_mask`` for an
    input by name. A loss leaves padded steps of a label out.

    Args:
        column: An array of numbers ``(T,)``, or of arrays of numbers ``(T, k)``.
        dtype: As in `DenseColumn`.
    """

    column: str
    dtype: Literal["float32", "int64"] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _require_name(self, self.column)
        _require_dtype(self, self.dtype, ("float32", "int64", None))


@dataclass(frozen=True)
class ImageColumn:
    """Encoded images (PNG, JPEG, whatever Pillow reads), decoded in the task to ``(channels, height, width)``, from 0 to 1.

    Args:
        column: Of bytes.
        size: Height and width in pixels; images of another size are scaled.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
    """

    column: str
    size: tuple[int, int] = field(kw_only=True)
    channels: Literal[1, 3, 4] = field(default=3, kw_only=True)

    def __post_init__(self) -> None:
        _require_name(self, self.column)
        _require_shape(self, self.size)
        if len(self.size) != 2:
            text = f"{self!r}: size: expected height and width, received {self.size!r}"
            raise OptionError(text)
        if self.channels not in (1, 3, 4):
            text = f"{self!r}: channels: expected 1, 3 or 4, received {self.channels!r}"
            raise OptionError(text)


@dataclass(frozen=True)
class DecodedColumn:
    """What a function makes of each row's value, in the task: of text, of bytes, of anything.

    Args:
        column: Of any type.
        function: Given the value, returns numbers: a tensor, an array, a list, or one number. What it raises makes the row a bad one.
        shape: Of what it returns; of one step with ``steps=True``.
        dtype: Of the tensor.
        steps: Whether it returns any number of steps, ``(T, *shape)``.
    """

    column: str
    function: Callable[[Any], Any]
    shape: tuple[int, ...] = field(default=(), kw_only=True)
    dtype: Dtype = field(default="float32", kw_only=True)
    steps: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _require_name(self, self.column)
        if not callable(self.function):
            text = f"{self!r}: expected a function as second argument, received {self.function!r}"
            raise OptionError(text)
        _require_shape(self, self.shape)
        _require_dtype(self, self.dtype, get_args(Dtype))


ColumnSpec: TypeAlias = DenseColumn | SequenceColumn | ImageColumn | DecodedColumn

InputSpec: TypeAlias = "str | Sequence[Any] | Mapping[str, Any] | ColumnSpec"
"""A name, a list of names, a description; or several of these by position or name."""


@dataclass(frozen=True, kw_only=True)
class Specs:
    """What `read_specs` understood."""

    form: Form
    specs: tuple[tuple[str, ColumnSpec], ...]
    """Each with its name as a field: ``features``, ``features/0``, ``features/image``."""

    @property
    def keys(self) -> int | tuple[str, ...] | None:
        """None for a single tensor, the number of tensors by position, or their names."""
        if self.form == "one":
            return None
        names = tuple(name.partition("/")[2] for name, _ in self.specs)
        return names if self.form == "dict" else len(names)


def read_specs(argument: str, given: object) -> Specs:
    """Take apart what the caller wrote as features or label.

    Args:
        argument: ``"features"`` or ``"label"``.
        given: What was written.

    Raises:
        OptionError: It is nothing of what the module's page shows.
    """
    hint = "a column's name, a list of names, or descriptions such as SequenceColumn('visits')"
    if isinstance(given, str | ColumnSpec):
        return Specs(form="one", specs=((argument, _spec(argument, given)),))
    if isinstance(given, Mapping):
        for name in given:
            if not isinstance(name, str) or not name.isidentifier():
                text = f"{argument}: expected names of parameters as keys, received {name!r}"
                raise OptionError(text, hint="the network is called with these names")
        found = {f"{argument}/{name}": _spec(f"{argument}[{name!r}]", spec) for name, spec in given.items()}
    elif isinstance(given, Sequence) and all(
        isinstance(spec, str | list | tuple | ColumnSpec) for spec in given
    ):
        if given and all(isinstance(name, str) for name in given):
            return Specs(form="one", specs=((argument, _spec(argument, given)),))
        for i, spec in enumerate(given):
            if isinstance(spec, str):
                text = f"{argument}[{i}]: expected a list or a description beside others, received the name {spec!r}"
                raise OptionError(text, hint=f"write [{spec!r}] for a tensor of its own")
        found = {f"{argument}/{i}": _spec(f"{argument}[{i}]", spec) for i, spec in enumerate(given)}
    else:
        text = f"{argument}: expected the name of a column or a list of names, received {given!r}"
        raise OptionError(text, hint=hint)
    if not found:
        text = f"{argument}: expected at least one column, received {given!r}"
        raise OptionError(text, hint=hint)
    return Specs(form="dict" if isinstance(given, Mapping) else "tuple", specs=tuple(found.items()))


def _spec(where: str, given: object) -> ColumnSpec:
    if isinstance(given, ColumnSpec):
        if isinstance(given, DenseColumn):
            _require_names(where, given.columns)
        return given
    _require_names(where, given)
    return DenseColumn(given if isinstance(given, str) else tuple(given))  # type: ignore[arg-type]


def _require_names(where: str, given: object) -> None:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        text = f"{where}: expected the name of a column or a list of names, received {given!r}"
        raise OptionError(text, hint="name existing columns; derive new ones with df.withColumn first")
    if not names:
        text = f"{where}: expected at least one column, received an empty list"
        raise OptionError(text, hint="name the column or columns that the network is given")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        text = (
            f"{where}: expected every column once, received {', '.join(map(repr, repeated))} more than once"
        )
        raise OptionError(text, hint="remove the repetition")


def _require_name(of: object, column: object) -> None:
    if not isinstance(column, str):
        text = f"{type(of).__name__}: expected the name of a column, received {column!r}"
        raise OptionError(text)


def _require_shape(of: object, shape: object) -> None:
    sizes = shape if isinstance(shape, tuple) else (None,)
    if shape is not None and not all(type(size) is int and size > 0 for size in sizes):
        text = f"{type(of).__name__}: expected a tuple of whole numbers of at least 1 as shape or size, received {shape!r}"
        raise OptionError(text)


def _require_dtype(of: object, dtype: object, known: tuple[object, ...]) -> None:
    if dtype not in known:
        names = ", ".join(repr(name) for name in known if name)
        text = f"{type(of).__name__}: dtype: expected one of {names}, received {dtype!r}"
        raise OptionError(text)
