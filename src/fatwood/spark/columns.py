"""Which columns of a DataFrame are trained on.

Everything here is read from the schema, so a wrong name or type is an error before any job starts. What can be said of a
column is in :mod:`fatwood.data.inputs`; how it crosses to Python in :mod:`fatwood.spark.packing`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    DateType,
    IntegralType,
    NullType,
    StringType,
    StructField,
    TimestampType,
)

from fatwood.data import Decoder, Field, Group, Layout, image_decoder
from fatwood.data.fields import Form
from fatwood.data.inputs import (
    ColumnSpec,
    DecodedColumn,
    DenseColumn,
    ImageColumn,
    InputSpec,
    read_specs,
)
from fatwood.errors import OptionError, SchemaError
from fatwood.spark.packing import (
    Measure,
    Packed,
    Source,
    named_column,
    pack_as_it_is,
    pack_numbers,
    pack_steps,
)

__all__ = [
    "ROW_ID",
    "Columns",
    "PackedGroup",
    "columns_of_fields",
    "find_field",
    "named_column",
    "resolve_columns",
]

ROW_ID = "row_id"
"""The column of row ids that crosses to Python beside the fields."""

_ACCEPTED = "a number, a boolean, an array of numbers or booleans, bytes, or a vector of pyspark.ml"
_NAMES_SHOWN = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedGroup:
    """The features, or the labels."""

    form: Form
    items: tuple[Packed, ...]

    def group(self, sizes: Iterator[int]) -> Group:
        """The fields, given what was measured, in order."""
        fields = tuple(item.field([next(sizes) for _ in item.measures]) for item in self.items)
        return Group(form=self.form, fields=fields)


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """The columns of one training or evaluation, as expressions over the user's DataFrame.

    Lengths of arrays are not known from a schema; `fatwood.spark.balance.inspect` measures them.
    """

    features: PackedGroup
    label: PackedGroup | None
    weight: Packed | None

    @property
    def items(self) -> tuple[Packed, ...]:
        """Features, labels and weight, one after another."""
        label = () if self.label is None else self.label.items
        return (*self.features.items, *label, *(() if self.weight is None else (self.weight,)))

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Of all of them."""
        return tuple(measure for item in self.items for measure in item.measures)

    @property
    def read_exprs(self) -> tuple[Column, ...]:
        """Every column of the user's that is not measured, as it is."""
        return tuple(
            source.column
            for item in self.items
            for source in item.sources
            if not item.measures or not (source.depth or item.dtype == "uint8")
        )

    @property
    def packed(self) -> list[Column]:
        """What crosses to Python, with its names: row id (partition << 33 | row), features, label and weight if any."""
        return self._packed(F.monotonically_increasing_id())

    @property
    def packed_to_validate(self) -> list[Column]:
        """The same for rows that only validate: their ids are the bitwise complement, so that they are negative."""
        return self._packed(F.bitwise_not(F.monotonically_increasing_id()))

    def _packed(self, row_id: Column) -> list[Column]:
        return [row_id.alias(ROW_ID), *(item.expr.alias(item.name) for item in self.items)]

    def layout(self, sizes: Sequence[int]) -> Layout:
        """How the packed rows look in Arrow.

        Args:
            sizes: What was measured, one for each of :attr:`measures`.

        Raises:
            SchemaError: They do not fit a shape that the caller wrote.
        """
        left = iter(sizes)
        return Layout(
            features=self.features.group(left),
            label=None if self.label is None else self.label.group(left),
            weight=None if self.weight is None else self.weight.field(()),
            decoders=self.decoders,
        )

    @property
    def decoders(self) -> dict[str, Decoder]:
        """By the names of their fields."""
        return {item.name: item.decoder for item in self.items if item.decoder is not None}

    @property
    def feature_name(self) -> str:
        """The feature columns in few words, for messages."""
        return "; ".join(item.title for item in self.features.items)


def columns_of_fields(features: Group, label: Group | None, weight: Field | None) -> Columns:
    """The columns of a frame that has a column for each field, of its name.

    Args:
        features: What the network is called with.
        label: What its outputs are compared with.
        weight: The sample weights.
    """

    def packed(field: Field) -> Packed:
        source = Source(name=field.name, kind=NullType())
        return Packed(name=field.name, sources=(source,), expr=source.column, dtype=field.dtype, known=field)

    def group(of: Group) -> PackedGroup:
        return PackedGroup(form=of.form, items=tuple(packed(field) for field in of.fields))

    return Columns(
        features=group(features),
        label=None if label is None else group(label),
        weight=None if weight is None else packed(weight),
    )


def resolve_columns(
    df: DataFrame,
    features: InputSpec,
    label: InputSpec | None,
    weight: str | None = None,
    *,
    text: Collection[str] = (),
) -> Columns:
    """Finds the columns in the schema of `df` and checks their types; runs no job.

    Args:
        df: The user's DataFrame.
        features: What :func:`fatwood.data.inputs.read_specs` understands.
        label: Likewise, or None.
        weight: The column of sample weights, or None.
        text: Names of the fields that have preprocessing which takes text.

    Returns:
        The columns as expressions for `df.select`.

    Raises:
        OptionError: What is written as features or label says nothing, repeats a column, or a label is among the features;
            weight is no name, or is the label.
        SchemaError: A column is missing, ambiguous or of a type that cannot be trained on.
    """
    if weight is not None and not isinstance(weight, str):
        message = f"weight: expected the name of a column, received {weight!r}"
        raise OptionError(message, hint="name an existing column; derive a new one with df.withColumn first")
    inputs = _group(df, "features", features, text)
    target = None if label is None else _group(df, "label", label, text)
    names = {source.name for item in inputs.items for source in item.sources}
    for item in () if target is None else target.items:
        for source in item.sources:
            if source.name in names:
                message = f"label: expected a column that is not among the features, received {source.name!r}"
                raise OptionError(message, hint="a network that is given its label learns nothing else")
    scale = None if weight is None else _weight(df, weight, target)
    return Columns(features=inputs, label=target, weight=scale)


def _group(df: DataFrame, argument: str, given: InputSpec, text: Collection[str]) -> PackedGroup:
    read = read_specs(argument, given)
    items = tuple(_packed(df, name, spec, is_text=name in text) for name, spec in read.specs)
    return PackedGroup(form=read.form, items=items)


def _packed(df: DataFrame, name: str, spec: ColumnSpec, *, is_text: bool) -> Packed:
    if isinstance(spec, DenseColumn):
        return _dense(df, name, spec, is_text=is_text)
    source = Source.of(find_field(df, spec.column))
    if isinstance(spec, ImageColumn):
        _require(source, isinstance(source.kind, BinaryType), "bytes of encoded images")
        shape = (spec.channels, *spec.size)
        decoder = image_decoder(spec.size, spec.channels)
        return pack_as_it_is(
            name, source, dtype="uint8", shape=shape, steps=False, divisor=255.0, decoder=decoder
        )
    if isinstance(spec, DecodedColumn):
        decoder = Decoder(spec.function)
        return pack_as_it_is(
            name, source, dtype=spec.dtype, shape=spec.shape, steps=spec.steps, decoder=decoder
        )
    if is_text and source.text:
        _require(source, source.depth == 1, "an array of text")
        return pack_as_it_is(name, source, dtype="int64", shape=None, steps=True)
    _require(source, source.depth > 0 and source.numeric, "an array of numbers, or of arrays of them")
    return pack_steps(name, source, dtype=spec.dtype)


def _dense(df: DataFrame, name: str, spec: DenseColumn, *, is_text: bool) -> Packed:
    names = [spec.columns] if isinstance(spec.columns, str) else spec.columns
    sources = [Source.of(field) for field in find_fields(df, names)]
    found = [source.name for source in sources]
    repeated = sorted({column for column in found if found.count(column) > 1})
    if repeated:
        message = (
            f"{name}: expected every column once, received {', '.join(map(repr, repeated))} more than once"
        )
        raise OptionError(message, hint="remove the repetition")
    if len(sources) == 1 and isinstance(sources[0].kind, BinaryType):
        return pack_numbers(name, sources, dtype=None, shape=spec.shape, divisor=spec.divisor)
    if is_text and len(sources) == 1 and sources[0].text and sources[0].depth < 2:
        return pack_as_it_is(name, sources[0], dtype="int64", shape=None, steps=False)
    for source in sources:
        if not source.numeric or (source.depth > 1 and len(sources) > 1):
            raise _unusable(df, source, is_text=is_text)
    is_label = name.partition("/")[0] == "label"
    dtype = spec.dtype or (_label_dtype(sources) if is_label else None)
    written = isinstance(spec.columns, str)  # a list of one name is an array of one number
    return pack_numbers(
        name, sources, dtype=dtype, shape=spec.shape, divisor=spec.divisor, alone=is_label and written
    )


def _label_dtype(sources: Sequence[Source]) -> Literal["float32", "int64"]:
    classes = len(sources) == 1 and isinstance(sources[0].kind, IntegralType | BooleanType)
    return "int64" if classes else "float32"


def _require(source: Source, is_so: bool, expected: str) -> None:  # noqa: FBT001
    if not is_so:
        message = f"column {source.name!r}: expected {expected}, received {source.kind.simpleString()}"
        raise SchemaError(message)


def find_field(df: DataFrame, name: str) -> StructField:
    """The field called `name` in the schema of `df`; upper and lower case are the same where they are to Spark.

    Raises:
        SchemaError: There is none, or more than one.
    """
    return find_fields(df, [name])[0]


def find_fields(df: DataFrame, names: Sequence[str]) -> list[StructField]:
    """The same of several names."""
    exact = df.sparkSession.conf.get("spark.sql.caseSensitive") == "true"
    known: dict[str, list[StructField]] = {}
    for field in df.schema.fields:
        known.setdefault(field.name if exact else field.name.lower(), []).append(field)
    fields = []
    for name in names:
        found = known.get(name if exact else name.lower(), [])
        if not found:
            raise _unknown(df, name)
        if len(found) > 1:
            message = f"column {name!r}: expected one column of this name, received {len(found)} ({_listed(df.columns)})"
            raise SchemaError(message, hint="rename or drop the others, e.g. after a join")
        fields += found
    return fields


def _weight(df: DataFrame, name: str, target: PackedGroup | None) -> Packed:
    """The column of sample weights, found to be one number a row and no label."""
    source = Source.of(find_field(df, name))
    if source.depth or not source.numeric:
        message = (
            f"column {source.name!r}: expected a number as weight, received {source.kind.simpleString()}"
        )
        raise SchemaError(message, hint="a weight is one number for each row, at least 0")
    labels = [of.name for item in (() if target is None else target.items) for of in item.sources]
    if source.name in labels:
        message = f"weight: expected another column than the label, received {name!r}"
        raise OptionError(message, hint="name the column that says how much each row counts")
    packed = pack_numbers("weight", [source], dtype="float32", shape=None, alone=True)
    return replace(packed, least=0.0)


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f", {rest} more" if rest > 0 else "")


def _unknown(df: DataFrame, name: str) -> SchemaError:
    spellings = {column.lower(): column for column in df.columns}
    near = difflib.get_close_matches(name.lower(), list(spellings), n=3)
    if name.partition(".")[0] in df.columns:
        hint = f"select a field of a struct first: df.withColumn('field', F.col({name!r}))"
    elif near:
        hint = f"did you mean {' or '.join(repr(spellings[match]) for match in near)}?"
    else:
        hint = "name one of df.columns"
    message = f"column {name!r}: expected a column of the DataFrame ({_listed(df.columns)}), received an unknown name"
    return SchemaError(message, hint=hint)


def _unusable(df: DataFrame, source: Source, *, is_text: bool) -> SchemaError:
    name = source.name
    kind: DataType = find_field(df, name).dataType
    if source.text and is_text:
        hint = "text is a tensor of its own: name this column alone, by position or by name"
    elif isinstance(kind, StringType):
        hint = f"give it a Vocabulary or OneHot as preprocessing, convert it (F.col({name!r}).cast('float')), or use DecodedColumn({name!r}, function)"
    elif isinstance(kind, DateType | TimestampType):
        hint = f"convert it to a number, e.g. F.unix_timestamp({name!r})"
    elif isinstance(kind, ArrayType) and isinstance(kind.elementType, ArrayType) and source.numeric:
        hint = f"make it one array, e.g. F.flatten({name!r}), or a tensor of its own"
    else:
        hint = "compute columns of numbers from it first, or use DecodedColumn with a function"
    message = f"column {name!r}: expected {_ACCEPTED}, received {kind.simpleString()}"
    return SchemaError(message, hint=hint)
