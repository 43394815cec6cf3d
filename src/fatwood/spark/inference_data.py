"""Rows to predict, evaluate or score, of whatever form the caller gave: what the tasks are sent, and how it looks.

Their lengths of arrays are not counted first, as those of a training job are: a task finds them in its own rows, see
:mod:`fatwood.spark.inference_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeGuard

import pyarrow as pa
from pyspark import RDD
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
from pyspark.sql.types import IntegerType, LongType, StringType, StructField, StructType

from fatwood.data import Decoder, Layout
from fatwood.errors import OptionError
from fatwood.files import Files
from fatwood.pieces import divided
from fatwood.spark.batches import rows_of_rdd
from fatwood.spark.columns import ROW_ID, Columns, find_field, named_column, resolve_columns
from fatwood.spark.connect import is_connect
from fatwood.spark.feeds import FrameFeed, PiecesFeed, Reader, SharesReader
from fatwood.spark.given import ParquetReader, Selection, feed_of, require_no_columns, session
from fatwood.spark.inference_rows import SIZE
from fatwood.spark.packing import Packed
from fatwood.spark.session import available_slots

__all__ = ["InferenceData", "inference_data"]

_NUMBERED = "these rows have no columns; without key=, they are told by two new ones, {} and row"


@dataclass(frozen=True, kw_only=True, eq=False)
class InferenceData:
    """Rows, found to be of the right kind as far as that is known without a job."""

    frame: DataFrame
    """Keys, row id, fields, and lengths of arrays; or numbers of tasks, where there is a reader."""
    names: tuple[str, ...] = ()
    """Of its columns in the tasks: ``key_0, ..., row_id, features, ...``. ``mapInArrow`` takes no names with dots in them."""
    layout: Layout
    """Of the rows, without decoders."""
    keys: tuple[StructField, ...] = ()
    """The columns that stay beside the rows."""
    key_types: tuple[pa.DataType, ...] | None = None
    """What they are in Arrow, where they do not come from Spark."""
    numbered: Literal["partition", "file"] | None = None
    """What the keys are made of, where rows have no columns."""
    measured: Mapping[str, int]
    """See `InferenceOrder`."""
    decoders: Mapping[str, Decoder]
    reader: Reader | None = None
    numbering: bool = False
    """Whether tasks have to number the rows themselves."""

    @property
    def spark(self) -> SparkSession:
        """That works on them."""
        return self.frame.sparkSession


def inference_data(
    data: object, selection: Selection, key: object = None, *, keyed: bool = True
) -> InferenceData:
    """The data as tasks of inference take it.

    Args:
        data: Of any form that `fit` takes.
        selection: Of columns.
        key: Column or columns that stay beside the rows; None where rows have no columns, and are then told by partition or
            file, and number.
        keyed: Whether anything stays beside the rows.

    Raises:
        OptionError: The data or the key is of another form.
        SchemaError: A column is missing or of a type that cannot be used.
        DataError: There are no rows, where they had to be counted.
    """
    if isinstance(data, RDD):
        return _of_rdd(data, selection, key, keyed=keyed)
    names = _key_names(key, data) if keyed else ()
    if keyed and _is_stream(data):
        return _of_stream(data, selection, names)
    feed = feed_of(data, replace(selection, keys=names))
    if isinstance(feed, FrameFeed):
        return _of_frame(feed.df, feed.columns, names)
    assert isinstance(feed, PiecesFeed)  # noqa: S101  there are no others
    return _of_pieces(feed, names, keyed=keyed)


def _of_frame(df: DataFrame, columns: Columns, names: Sequence[str]) -> InferenceData:
    keys = tuple(find_field(df, name) for name in names)
    # a key may itself be called "features" or "row_id"
    selected = [named_column(field.name).alias(f"key_{i}") for i, field in enumerate(keys)]
    packed = columns.packed
    if df.isStreaming:  # Spark numbers none of its rows
        packed[0] = F.lit(0).cast("bigint").alias(ROW_ID)
    frame = df.select(*selected, *packed, *_lengths(columns))
    found = {item.name: _measured(item) for item in columns.items}
    layout = columns.layout([size for item in columns.items for size in _sizes(item)])
    return InferenceData(
        frame=_without_dots(frame),
        names=tuple(frame.columns),
        layout=replace(layout, decoders={}),
        keys=keys,
        measured={name: count for name, count in found.items() if count is not None},
        decoders=columns.decoders,
        numbering=df.isStreaming,
    )


def _is_stream(data: object) -> TypeGuard[DataFrame]:
    return (isinstance(data, DataFrame) or is_connect(data)) and bool(data.isStreaming)  # type: ignore[attr-defined]


def _of_stream(df: DataFrame, selection: Selection, names: Sequence[str]) -> InferenceData:
    """A stream's rows, whose numbers begin again with every micro-batch."""
    if selection.features is None:
        text = "features: expected the columns that the network is called with, received None"
        raise OptionError(text, hint="features='pixels', or a list of columns")
    columns = resolve_columns(df, selection.features, selection.label, selection.weight, text=selection.text)
    return _of_frame(df, columns, names)


def _without_dots(frame: DataFrame) -> DataFrame:
    return frame.toDF(*(f"column_{i}" for i in range(len(frame.columns))))


def _of_rdd(rdd: RDD[Any], selection: Selection, key: object, *, keyed: bool) -> InferenceData:
    require_no_columns(selection, "an RDD of Batch")
    if key not in ((), None):
        text = f"key: expected None, received {key!r}"
        raise OptionError(text, hint=_NUMBERED.format("partition"))
    spark = session()
    rows = rows_of_rdd(rdd, spark)
    schema = rows.schema
    numbered = _numbered("partition") if keyed else ()
    return InferenceData(
        frame=_without_dots(rows.df),
        names=tuple(rows.df.columns),
        layout=Layout(features=schema.features, label=schema.label, weight=schema.weight),
        keys=numbered,
        numbered="partition" if numbered else None,
        measured={},
        decoders={},
    )


def _of_pieces(feed: PiecesFeed, names: Sequence[str], *, keyed: bool) -> InferenceData:
    files, layout, reader = feed.find()
    keys: tuple[StructField, ...] = ()
    kinds = None
    if isinstance(reader, ParquetReader):
        like = feed.spark.createDataFrame([], from_arrow_schema(reader.schema))
        keys = tuple(find_field(like, name) for name in names)
        reader = replace(reader, keys=tuple(field.name for field in keys))
        kinds = tuple(to_arrow_schema(StructType(list(keys))).types)
    elif keyed:
        keys = _numbered("file")
    rows = sum(count for _, count in files)
    tasks = max(1, min(rows, available_slots(feed.spark)))
    return InferenceData(
        frame=feed.spark.range(0, tasks, 1, tasks),
        layout=replace(layout, decoders={}, places=tuple(str(uri) for uri, _ in files)),
        keys=keys,
        key_types=kinds,
        numbered="file" if keys and kinds is None else None,
        measured={},
        decoders=feed.decoders,
        reader=SharesReader(reader, divided(files, tasks, shuffle=False, seed=0)),
    )


def _numbered(first: Literal["partition", "file"]) -> tuple[StructField, ...]:
    kind = IntegerType() if first == "partition" else StringType()
    return StructField(first, kind, nullable=False), StructField("row", LongType(), nullable=False)


def _key_names(key: Any, data: object) -> tuple[str, ...]:
    if key is None and isinstance(data, Files):
        return ()
    names = [key] if isinstance(key, str) else key
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        text = f"key: expected the name of a column or a list of names, received {key!r}"
        hint = "name the columns that tell rows apart; df.withColumn('id', F.monotonically_increasing_id()) makes one"
        raise OptionError(text, hint=hint)
    if isinstance(data, Files):
        text = f"key: expected None, received {key!r}"
        raise OptionError(text, hint=_NUMBERED.format("file"))
    return tuple(names)


def _lengths(columns: Columns) -> list[Column]:
    """The lengths of arrays that no list in Arrow tells, null where a row has several."""
    lengths = []
    for item in columns.items:
        for i in range(_measured(item) or 0):
            measure = item.measures[i]
            size = measure.least
            if measure.most is not size:
                size = F.when(measure.least == measure.most, size)
            lengths.append(size.alias(f"{SIZE}/{item.name}/{i}"))
    return lengths


def _measured(item: Packed) -> int | None:
    """How many columns of lengths a task needs to find the shape; 0 where the lists tell it; None where it is known."""
    if not item.measures or item.shape is not None:
        return None
    return len(item.measures) if item.nested or item.steps else 0


def _sizes(item: Packed) -> list[int]:
    """Lengths that fit the shape that the caller wrote, or 1 each until the task finds them."""
    if not item.measures or item.shape is None:
        return [1] * len(item.measures)
    rest = len(item.measures) - 1
    return [math.prod(item.shape) - item.scalars - (0 if item.nested else rest), *([1] * rest)]
