"""What the caller gave as data, of whatever form, as a feed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark import RDD
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from fatwood.data import Layout
from fatwood.data.assembly import Assembled, assemble
from fatwood.data.batches import BatchSchema
from fatwood.data.inputs import InputSpec
from fatwood.data.preprocessing import Transform
from fatwood.errors import DataError, OptionError, SchemaError
from fatwood.files import Files, Parquet
from fatwood.pieces import Piece, parquet_files, parquet_schema, read_piece
from fatwood.shards import ShardSet
from fatwood.spark.batches import count_files
from fatwood.spark.caching import warn_of_caching
from fatwood.spark.columns import Columns, resolve_columns
from fatwood.spark.feeds import BatchesFeed, Feed, FileList, FrameFeed, PieceReader, PiecesFeed
from fatwood.spark.packing import Packed
from fatwood.spark.session import require_spark

__all__ = ["ParquetReader", "Selection", "feed_of", "require_no_columns", "session", "texts_of"]

_FORMS = (
    "a DataFrame of Spark or pandas, an Arrow table, Parquet(uri), Files(paths, loader), or an RDD of Batch"
)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which columns of a table are used."""

    features: InputSpec | None
    label: InputSpec | None = None
    weight: str | None = None
    text: Collection[str] = ()
    """Names of the fields that have preprocessing which takes text."""
    keys: Sequence[str] = ()
    """Columns that stay beside the rows, untouched."""


def texts_of(transforms: Mapping[str, Transform]) -> frozenset[str]:
    """The fields whose preprocessing takes text."""
    return frozenset(name for name, transform in transforms.items() if transform.takes_text)


def feed_of(data: object, selection: Selection) -> Feed:
    """The data as a feed; runs no Spark job.

    Args:
        data: Of any form that `fit` takes.
        selection: Of columns; none of a table's where the data comes as minibatches.

    Raises:
        OptionError: It is none of the forms, or columns are missing or given where there are none.
        SchemaError: A column is missing or of a type that cannot be used.
        StorageError: Files cannot be listed or read.
    """
    if isinstance(data, RDD):
        require_no_columns(selection, "an RDD of Batch")
        warn_of_caching(data)
        return BatchesFeed(data, session())
    if isinstance(data, Files):
        require_no_columns(selection, "Files")
        return _files(data)
    if isinstance(data, Parquet | ShardSet):
        return _parquet(data.uri, selection)
    if isinstance(data, DataFrame):
        require_spark(data)
        warn_of_caching(data)
        return FrameFeed(data, _columns(data, selection))
    made = _small(data)
    if made is not None:
        return FrameFeed(made, _columns(made, selection))
    try:
        require_spark(data)  # says what is wrong with a frame of Spark Connect, for an older PySpark
    except OptionError as error:
        text = f"data: expected {_FORMS}, received {type(data).__module__}.{type(data).__qualname__}"
        raise OptionError(text, hint=error.hint) from error
    raise AssertionError


def session() -> SparkSession:
    """The session of this thread or process.

    Raises:
        OptionError: There is none.
    """
    found = SparkSession.getActiveSession()
    if found is None:
        text = "data: expected a running Spark session, received none"
        raise OptionError(text, hint="SparkSession.builder.getOrCreate() first")
    return found


def _columns(df: DataFrame, selection: Selection) -> Columns:
    if selection.features is None:
        text = "features: expected the columns that the network is called with, received None"
        raise OptionError(text, hint="features='pixels', or a list of columns")
    return resolve_columns(df, selection.features, selection.label, selection.weight, text=selection.text)


def require_no_columns(selection: Selection, form: str) -> None:
    """Refuse columns for data that has none.

    Args:
        selection: Of columns.
        form: The data, in words.

    Raises:
        OptionError: There are some.
    """
    for name in ("features", "label", "weight"):
        if getattr(selection, name) is not None:
            text = f"{name}: expected None for {form}, whose minibatches say what is what, received {getattr(selection, name)!r}"
            raise OptionError(text, hint="leave it out")


def _small(data: object) -> DataFrame | None:
    """A table in the driver's memory as a DataFrame."""
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        spark = session()
        try:
            return spark.createDataFrame(data)
        except TypeError:  # before Spark 4, where pandas could not say what arrays of arrays are, either
            rows = [tuple(row.values()) for row in data.to_pylist()]
            return spark.createDataFrame(rows, from_arrow_schema(data.schema))
    if type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns"):
        return session().createDataFrame(data)
    return None


def _files(files: Files) -> PiecesFeed:
    spark, uris = session(), files.expand()

    def find() -> tuple[FileList, Layout, PieceReader]:
        counted = count_files(spark, files, uris)
        schema = counted.schema
        layout = Layout(features=schema.features, label=schema.label, weight=schema.weight)
        found = tuple(zip(uris, counted.rows, strict=True))
        return found, layout, FilesReader(files, schema, counted.rows)

    return PiecesFeed(spark, find, {})


@dataclass(frozen=True, eq=False)
class FilesReader:
    """Reads pieces of files with the user's loader."""

    files: Files
    schema: BatchSchema
    rows: Sequence[int]
    """Of each file when it was counted."""

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """The packed rows of a piece."""
        rows = self.rows[piece.file]
        return self.files.read(piece.uri, piece.start, piece.stop, piece.file, self.schema, rows=rows)


def _parquet(uri: Any, selection: Selection) -> PiecesFeed:
    spark = session()
    files = parquet_files(uri)
    schema = parquet_schema(files[0][0])
    like = spark.createDataFrame([], from_arrow_schema(schema))
    columns = _columns(like, selection)

    def find() -> tuple[FileList, Layout, PieceReader]:
        reader = ParquetReader(
            fields=tuple(item.assembled for item in columns.items),
            keys=tuple(selection.keys),
            schema=schema,
        )
        return files, columns.layout(_first_sizes(files, columns)), reader

    return PiecesFeed(spark, find, columns.decoders)


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetReader:
    """Reads pieces of Parquet files as packed rows, behind the columns that are kept."""

    fields: tuple[Assembled, ...]
    keys: tuple[str, ...]
    schema: pa.Schema

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """The packed rows of a piece."""
        names = dict.fromkeys([*self.keys, *(name for of in self.fields for name in of.columns)])
        wanted = pa.schema([self.schema.field(name) for name in names])
        for batch in read_piece(piece, list(names), schema=wanted):
            yield assemble(batch, self.fields, self.keys)


def _first_sizes(files: FileList, columns: Columns) -> list[int]:
    """What the first rows tell of the lengths of arrays; another length makes a row a bad one."""
    if not columns.measures:
        return []
    names = [source.name for item in columns.items if item.measures for source in item.sources]
    for number, (uri, rows) in enumerate(files):
        piece = Piece(uri=uri, file=number, start=0, stop=rows)
        for batch in read_piece(piece, list(dict.fromkeys(names))) if rows else ():
            return [size for item in columns.items for size in _sizes(batch, item)]
    message = f"the data: expected at least one row, received none in {len(files)} files"
    raise DataError(message, hint="check the path")


def _sizes(batch: pa.RecordBatch, item: Packed) -> list[int]:
    sizes: list[int] = []
    for source in item.sources if item.measures else ():
        if not source.depth and item.dtype != "uint8":
            continue
        valid = batch.column(source.name).drop_null()
        if not len(valid):
            text = f"column {source.name!r}: expected arrays of numbers, received null in the first {len(batch)} rows"
            raise DataError(text, hint="check the join or the cast that the column comes from")
        value = valid[0].as_py()
        found = [len(value)]
        for _ in range(source.depth - 1):
            value = next((part for part in value if part is not None), ())
            found.append(len(value))
        sizes += found[1:] if item.steps else found
    if any(size == 0 for size in sizes):
        text = f"column {item.title!r}: expected arrays of at least one number, received empty ones"
        raise SchemaError(text, hint="leave the column out, or check how it is computed")
    return sizes
