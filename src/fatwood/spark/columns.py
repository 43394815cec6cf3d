"""Which columns of a DataFrame are trained on, and how a row is packed for its journey to Python.

Everything here is read from the schema, so a wrong name or type is an error before any job starts. All feature
columns of a row are assembled into one array while the row is still in the plan: a row then crosses to Python
once, as one Arrow list, whatever the number of columns.

============================  =======================================  ================
column                        accepted                                 becomes
============================  =======================================  ================
features, all of integers     integer, array of integers               array<bigint>
features, otherwise           number, boolean, array of them, vector   array<float>
label                         integer, boolean                         bigint
label                         float, double, decimal                   float
label                         array of numbers or booleans, vector     array<float>
weight                        number, boolean                          float
============================  =======================================  ================

A vector is a ``VectorUDT`` of pyspark.ml or pyspark.mllib. Nulls stay nulls: a null number is a null element
of the array, a null array or vector makes the whole assembled array null.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from pyspark.ml.functions import vector_to_array
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DateType,
    FloatType,
    IntegralType,
    NumericType,
    StringType,
    StructField,
    TimestampType,
    UserDefinedType,
)

from fatwood.data import Layout
from fatwood.errors import OptionError, SchemaError

__all__ = [
    "FEATURES",
    "LABEL",
    "ROW_ID",
    "WEIGHT",
    "Columns",
    "find_field",
    "named_column",
    "resolve_columns",
]

ROW_ID, FEATURES, LABEL, WEIGHT = "row_id", "features", "label", "weight"
"""The columns that cross to Python."""

_ACCEPTED = "a number, a boolean, an array of numbers or booleans, or a vector of pyspark.ml"
_NAMES_SHOWN = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """The columns of one training or evaluation, as expressions over the user's DataFrame.

    The widths are not known from a schema; `fatwood.spark.balance.inspect` measures them.
    """

    features_expr: Column
    """array<float> or array<bigint>, every feature column side by side; no alias."""
    features_dtype: Literal["float32", "int64"]
    """What the elements of the features are in Arrow and torch."""
    feature_names: tuple[str, ...]
    """The feature columns in their order."""
    label_expr: Column | None
    """bigint, float or array<float>; None when there is no label; no alias."""
    label_dtype: Literal["int64", "float32"] | None
    """What a label, or an element of it, is in Arrow and torch."""
    label_name: str | None
    """The label column."""
    weight_expr: Column | None
    """float; None when there are no sample weights; no alias."""
    weight_name: str | None
    """The column of sample weights."""
    size_exprs: Mapping[str, Column]
    """By name of each variable-length column (arrays and vectors, the label included): its length, or null."""
    scalar_exprs: tuple[Column, ...]
    """The columns of one value a row, as they are."""

    @property
    def packed(self) -> list[Column]:
        """What crosses to Python, with its names: row id (partition << 33 | row), features, label and weight if any."""
        return self._packed(F.monotonically_increasing_id())

    @property
    def packed_to_validate(self) -> list[Column]:
        """The same for rows that only validate: their ids are the bitwise complement, so that they are negative."""
        return self._packed(F.bitwise_not(F.monotonically_increasing_id()))

    def _packed(self, row_id: Column) -> list[Column]:
        further = ((self.label_expr, LABEL), (self.weight_expr, WEIGHT))
        packed = [row_id.alias(ROW_ID), self.features_expr.alias(FEATURES)]
        return packed + [column.alias(name) for column, name in further if column is not None]

    def layout(self, feature_width: int, label_width: int | None) -> Layout:
        """How the packed rows look in Arrow, given their widths."""
        return Layout(
            feature_width=feature_width,
            feature_dtype=self.features_dtype,
            feature_name=self.feature_name,
            label_dtype=self.label_dtype,
            label_width=label_width,
            label_name=self.label_name,
            weight_name=self.weight_name,
        )

    @property
    def feature_name(self) -> str:
        """The feature columns in few words, for messages: ``pixels`` or ``age, height, 98 more``."""
        first, rest = self.feature_names[:3], len(self.feature_names) - 3
        return ", ".join(first) + (f", {rest} more" if rest > 0 else "")


def resolve_columns(
    df: DataFrame, features: str | Sequence[str], label: str | None, weight: str | None = None
) -> Columns:
    """Finds the columns in the schema of `df` and checks their types; runs no job.

    Args:
        df: The user's DataFrame.
        features: One column, or several that are assembled side by side in this order.
        label: The label column, or None.
        weight: The column of sample weights, or None.

    Returns:
        The columns as expressions for `df.select`.

    Raises:
        OptionError: `features` is empty, no name or list of names, repeats a column or holds the label; or label or
            weight is no name, or both are the same.
        SchemaError: A column is missing, ambiguous or of a type that cannot be trained on.
    """
    for argument, value in (("label", label), ("weight", weight)):
        if value is not None and not isinstance(value, str):
            message = f"{argument}: expected the name of a column, received {value!r}"
            raise OptionError(
                message, hint="name an existing column; derive a new one with df.withColumn first"
            )
    inputs = [_find(df, name) for name in _feature_list(features)]
    names = tuple(source.name for source in inputs)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        message = (
            f"features: expected every column once, received {', '.join(map(repr, repeated))} more than once"
        )
        raise OptionError(message, hint="remove the repetition")
    target = None if label is None else _find(df, label)
    if target is not None and target.name in names:
        message = f"label: expected a column that is not among the features, received {target.name!r}"
        raise OptionError(message, hint="a network that is given its label learns nothing else")
    scale = None if weight is None else _weight(df, weight, target)
    every = [source for source in (*inputs, target, scale) if source is not None]
    integral = all(isinstance(source.element, IntegralType) for source in inputs)
    return Columns(
        features_expr=_assemble(inputs, "bigint" if integral else "float"),
        features_dtype="int64" if integral else "float32",
        feature_names=names,
        label_expr=None if target is None else _label(target),
        label_dtype=None if target is None else _label_dtype(target),
        label_name=None if target is None else target.name,
        weight_expr=None if scale is None else scale.column.cast("float"),
        weight_name=None if scale is None else scale.name,
        size_exprs={source.name: _size(source) for source in every if not source.scalar},
        scalar_exprs=tuple(source.column for source in every if source.scalar),
    )


@dataclass(frozen=True, eq=False)
class _Input:
    """One accepted column: `column` holds numbers or booleans, or arrays of them, where `scalar` is False."""

    name: str
    column: Column
    element: DataType
    scalar: bool


def _feature_list(features: object) -> list[str]:
    names = [features] if isinstance(features, str) else features
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        message = f"features: expected the name of a column or a list of names, received {features!r}"
        raise OptionError(message, hint="name existing columns; derive new ones with df.withColumn first")
    if not names:
        message = "features: expected at least one column, received an empty list"
        raise OptionError(message, hint="name the column or columns that the network is given")
    return list(names)


def find_field(df: DataFrame, name: str) -> StructField:
    """The field called `name` in the schema of `df`; upper and lower case are the same where they are to Spark.

    Raises:
        SchemaError: There is none, or more than one.
    """
    exact = df.sparkSession.conf.get("spark.sql.caseSensitive") == "true"
    found = [f for f in df.schema.fields if f.name == name or (not exact and f.name.lower() == name.lower())]
    if not found:
        raise _unknown(df, name)
    if len(found) > 1:
        message = f"column {name!r}: expected one column of this name, received {len(found)} ({_listed(df.columns)})"
        raise SchemaError(message, hint="rename or drop the others, e.g. after a join")
    return found[0]


def named_column(field: StructField) -> Column:
    """The column of a field, whatever characters its name has."""
    return F.col("`" + field.name.replace("`", "``") + "`")


def _find(df: DataFrame, name: str) -> _Input:
    """The column called `name`, its type checked."""
    field = find_field(df, name)
    kind, column = field.dataType, named_column(field)
    if isinstance(kind, UserDefinedType) and type(kind).__name__ == "VectorUDT":
        return _Input(field.name, _dense(column), FloatType(), scalar=False)
    scalar = not isinstance(kind, ArrayType)
    element = kind.elementType if isinstance(kind, ArrayType) else kind
    if not isinstance(element, NumericType | BooleanType):
        raise _unusable(field)
    return _Input(field.name, column, element, scalar=scalar)


def _weight(df: DataFrame, name: str, target: _Input | None) -> _Input:
    """The column of sample weights, found to be one number a row and not the label."""
    found = _find(df, name)
    if not found.scalar:
        kind = find_field(df, name).dataType.simpleString()
        message = f"column {found.name!r}: expected a number as weight, received {kind}"
        raise SchemaError(message, hint="a weight is one number for each row, at least 0")
    if target is not None and target.name == found.name:
        message = f"weight: expected another column than the label, received {name!r}"
        raise OptionError(message, hint="name the column that says how much each row counts")
    return found


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


def _unusable(field: StructField) -> SchemaError:
    kind, name = field.dataType, field.name
    if isinstance(kind, StringType):
        hint = f"convert it, e.g. F.col({name!r}).cast('float'), or index it with pyspark.ml.feature.StringIndexer"
    elif isinstance(kind, DateType | TimestampType):
        hint = f"convert it to a number, e.g. F.unix_timestamp({name!r})"
    elif isinstance(kind, ArrayType) and isinstance(kind.elementType, ArrayType):
        hint = f"make it one array, e.g. F.flatten({name!r}); the network can reshape it"
    else:
        hint = "compute columns of numbers from it first"
    message = f"column {name!r}: expected {_ACCEPTED}, received {kind.simpleString()}"
    return SchemaError(message, hint=hint)


def _dense(vector: Column) -> Column:
    """A vector column as array<float>; null stays null, where vector_to_array alone would fail the job."""
    return F.when(vector.isNotNull(), vector_to_array(vector, "float32"))


def _assemble(inputs: Sequence[_Input], element: str) -> Column:
    """All inputs side by side in one array<element>, as VectorAssembler does."""
    parts: list[Column] = []
    for scalar, run in groupby(inputs, key=lambda source: source.scalar):
        if scalar:
            parts.append(F.array(*(source.column.cast(element) for source in run)))
        else:
            parts.extend(source.column.cast(f"array<{element}>") for source in run)
    return parts[0] if len(parts) == 1 else F.concat(*parts)


def _label(target: _Input) -> Column:
    kind = {"int64": "bigint", "float32": "float"}[_label_dtype(target)]
    return target.column.cast(kind if target.scalar else f"array<{kind}>")


def _label_dtype(target: _Input) -> Literal["int64", "float32"]:
    classes = target.scalar and isinstance(target.element, IntegralType | BooleanType)
    return "int64" if classes else "float32"


def _size(source: _Input) -> Column:
    # size(null) is -1 or null depending on the session's settings.
    return F.when(source.column.isNotNull(), F.size(source.column))
