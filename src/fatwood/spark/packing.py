"""How the columns of one tensor are packed for their journey to Python: an expression, and what has to be measured.

All columns of a tensor are assembled into one array while the row is still in the plan: a row then crosses to Python
once, as one Arrow list a tensor, whatever the number of columns.

============================  =======================================  ================
described as                  accepted columns                         becomes
============================  =======================================  ================
numbers, all of integers      integer, array of integers               array<bigint>
numbers, otherwise            number, boolean, array of them, vector   array<float>
one column of arrays of       array of arrays, to any depth            array<float> or array<bigint>, flattened
numbers
one column of bytes           binary                                   binary, a byte a number
a sequence                    array of numbers or of arrays of them    array<float> or array<bigint>, flattened
text with a vocabulary        string, array of string                  as it is
an image, a decoded column    anything                                 as it is
============================  =======================================  ================

A vector is a ``VectorUDT`` of pyspark.ml or pyspark.mllib. Nulls stay nulls: a null number is a null element
of the array, a null array or vector makes the whole assembled array null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal

from pyspark.ml.functions import vector_to_array
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    FloatType,
    IntegralType,
    NumericType,
    StringType,
    StructField,
    UserDefinedType,
)

from fatwood.data import Decoder, Field
from fatwood.data.assembly import Assembled
from fatwood.data.fields import Dtype
from fatwood.errors import SchemaError

__all__ = ["Measure", "Packed", "Source", "named_column", "pack_as_it_is", "pack_numbers", "pack_steps"]


@dataclass(frozen=True, eq=False)
class Measure:
    """How long the arrays of a column are, at one depth: null where the array is."""

    title: str
    """The column."""
    least: Column
    most: Column


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """One column of the user's, found in the schema."""

    name: str
    kind: DataType
    """Of the column; of a vector ``array<float>``."""
    vector: bool = False

    @cached_property
    def column(self) -> Column:
        """The column, a vector as an array. Each costs some calls to the JVM."""
        column = named_column(self.name)
        if not self.vector:
            return column
        # null stays null, where vector_to_array alone would fail the job
        return F.when(column.isNotNull(), vector_to_array(column, "float32"))

    @property
    def depth(self) -> int:
        """How many arrays are in each other."""
        depth, kind = 0, self.kind
        while isinstance(kind, ArrayType):
            depth, kind = depth + 1, kind.elementType
        return depth

    @property
    def element(self) -> DataType:
        """What the arrays are of in the end."""
        kind = self.kind
        while isinstance(kind, ArrayType):
            kind = kind.elementType
        return kind

    @property
    def numeric(self) -> bool:
        """Whether it holds numbers or booleans, or arrays of them."""
        return isinstance(self.element, NumericType | BooleanType)

    @property
    def text(self) -> bool:
        """Whether it holds text, or arrays of it."""
        return isinstance(self.element, StringType)

    @classmethod
    def of(cls, field: StructField) -> Source:
        """The column of a field of the schema."""
        kind = field.dataType
        if isinstance(kind, UserDefinedType) and type(kind).__name__ == "VectorUDT":
            return cls(name=field.name, kind=ArrayType(FloatType()), vector=True)
        return cls(name=field.name, kind=kind)


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """One tensor's columns in the plan."""

    name: str
    """Of the field."""
    sources: tuple[Source, ...]
    expr: Column
    """What crosses to Python; no alias."""
    dtype: Dtype
    measures: tuple[Measure, ...] = ()
    """Of what no schema tells, in the order of the shape."""
    scalars: int = 0
    """Numbers a row that come from columns of one number."""
    alone: bool = False
    """Whether a row is a number and no array."""
    nested: bool = False
    """Whether each measure is a size of its own in the shape; else they are lengths side by side."""
    shape: tuple[int, ...] | None = None
    """As the caller wrote it."""
    steps: bool = False
    divisor: float | None = None
    decoder: Decoder | None = None
    least: float | None = None
    known: Field | None = None
    """The field itself, where nothing has to be found out."""
    as_it_is: bool = False
    """Whether the column crosses as it is: bytes, text, what a decoder takes."""

    @property
    def assembled(self) -> Assembled:
        """The same for columns of a file."""
        names = tuple(source.name for source in self.sources)
        return Assembled(
            name=self.name, columns=names, dtype=self.dtype, as_it_is=self.as_it_is, alone=self.alone
        )

    @property
    def title(self) -> str:
        """The columns in few words, for messages: ``pixels`` or ``age, height, 98 more``."""
        names = [source.name for source in self.sources]
        return ", ".join(names[:3]) + (f", {len(names) - 3} more" if len(names) > 3 else "")

    def field(self, sizes: Sequence[int]) -> Field:
        """The field, given what was measured.

        Args:
            sizes: One for each of the measures.

        Raises:
            SchemaError: The caller wrote a shape with another number of numbers.
        """
        if self.known is not None:
            return self.known
        if self.alone:
            shape: tuple[int, ...] = ()
        elif self.nested or self.steps or self.decoder is not None:
            shape = tuple(sizes) if self.decoder is None else self.shape or ()
        else:
            shape = (self.scalars + sum(sizes),)
        field = Field(
            name=self.name,
            title=self.title,
            dtype=self.dtype,
            shape=shape,
            ragged=self.steps,
            least=self.least,
            divisor=self.divisor,
        )
        if self.shape is None or self.decoder is not None:
            return field
        given = Field(
            name=self.name, title=self.title, dtype=self.dtype, shape=self.shape, divisor=self.divisor
        )
        if given.width != field.width:
            text = f"column {self.title!r}: expected {given.width} numbers a row for the shape {self.shape}, received {field.width}"
            raise SchemaError(text, hint="correct the shape, or the column")
        return given


def named_column(name: str) -> Column:
    """The column called `name`, whatever characters that has."""
    return F.col(_quoted(name))


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def pack_numbers(
    name: str,
    sources: Sequence[Source],
    *,
    dtype: Literal["float32", "int64"] | None,
    shape: tuple[int, ...] | None,
    divisor: float | None = None,
    alone: bool = False,
) -> Packed:
    """Columns side by side, as VectorAssembler does.

    Args:
        name: Of the field.
        sources: Columns of numbers or arrays of them; or a single one of nested arrays, or of bytes.
        dtype: Of the tensor; None for int64 where all are integers.
        shape: As the caller wrote it.
        divisor: Of the field.
        alone: Whether a single number stays a number.
    """
    first = sources[0]
    if isinstance(first.kind, BinaryType):
        size = F.octet_length(first.column)
        measured = (Measure(first.name, size, size),)
        return Packed(
            name=name,
            sources=(first,),
            expr=first.column,
            dtype="uint8",
            measures=measured,
            shape=shape,
            divisor=divisor,
            as_it_is=True,
        )
    integral = all(isinstance(source.element, IntegralType) for source in sources)
    dtype = dtype or ("int64" if integral else "float32")
    element = "bigint" if dtype == "int64" else "float"
    alone = alone or shape == ()
    if alone and len(sources) == 1 and first.depth == 0:
        return Packed(
            name=name,
            sources=(first,),
            expr=first.column.cast(element),
            dtype=dtype,
            alone=True,
            divisor=divisor,
        )
    nested = first.depth > 1
    return Packed(
        name=name,
        sources=tuple(sources),
        expr=_flat(first, element) if nested else _assembled(sources, element),
        dtype=dtype,
        measures=tuple(
            measure for source in sources if source.depth for measure in _sizes(source, outermost=0)
        ),
        scalars=sum(not source.depth for source in sources),
        nested=nested,
        shape=shape or None,
        divisor=divisor,
    )


def pack_steps(name: str, source: Source, *, dtype: Literal["float32", "int64"] | None) -> Packed:
    """An array of any length, of numbers or of arrays of them.

    Args:
        name: Of the field.
        source: An array of numbers, to any depth.
        dtype: Of the tensor; None for int64 where all are integers.
    """
    dtype = dtype or ("int64" if isinstance(source.element, IntegralType) else "float32")
    return Packed(
        name=name,
        sources=(source,),
        expr=_flat(source, "bigint" if dtype == "int64" else "float"),
        dtype=dtype,
        measures=tuple(_sizes(source, outermost=1)),
        steps=True,
    )


def pack_as_it_is(
    name: str,
    source: Source,
    *,
    dtype: Dtype,
    shape: tuple[int, ...] | None,
    steps: bool,
    divisor: float | None = None,
    decoder: Decoder | None = None,
) -> Packed:
    """A column that becomes numbers in the task: text with a vocabulary, or what a decoder makes of it.

    Args:
        name: Of the field.
        source: Any column.
        dtype: Of the tensor.
        shape: Of one row, or of one step; None where the arrays tell.
        steps: Whether rows have steps.
        divisor: Of the field.
        decoder: What makes the numbers; None for text.
    """
    measured = tuple(_sizes(source, outermost=0)) if decoder is None and source.depth and not steps else ()
    return Packed(
        name=name,
        sources=(source,),
        expr=source.column,
        dtype=dtype,
        measures=measured,
        alone=not shape and not steps and (decoder is not None or not source.depth),
        shape=shape,
        steps=steps,
        divisor=divisor,
        decoder=decoder,
        as_it_is=True,
    )


def _assembled(sources: Sequence[Source], element: str) -> Column:
    parts: list[Column] = []
    for scalar, run in groupby(sources, key=lambda source: not source.depth):
        if scalar:  # as text: hundreds of columns one by one would be thousands of calls to the JVM
            casts = ", ".join(f"CAST({_quoted(source.name)} AS {element})" for source in run)
            parts.append(F.expr(f"array({casts})"))
        else:
            parts.extend(source.column.cast(f"array<{element}>") for source in run)
    return parts[0] if len(parts) == 1 else F.concat(*parts)


def _flat(source: Source, element: str) -> Column:
    """An array of arrays as one array; null where any of them is."""
    column = source.column
    for _ in range(source.depth - 1):
        column = F.flatten(column)
    return column.cast(f"array<{element}>")


def _sizes(source: Source, outermost: int) -> list[Measure]:
    """The lengths of a column's arrays, from one depth on: the shortest and the longest of the row."""
    measures, column = [], source.column
    for depth in range(source.depth):
        if depth == 0:
            size = _size(column)
            measure = Measure(source.name, size, size)
        else:
            sizes = F.transform(column, _size)
            measure = Measure(source.name, F.array_min(sizes), F.array_max(sizes))
            if depth + 1 < source.depth:
                column = F.flatten(column)
        if depth >= outermost:
            measures.append(measure)
    return measures


def _size(column: Column) -> Column:
    # size(null) is -1 or null depending on the session's settings.
    return F.when(column.isNotNull(), F.size(column))
