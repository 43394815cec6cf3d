"""Where rows come from, and how they reach the workers: every form of data ends here, and the rest is one path.

::

    DataFrame, pandas, Arrow, RDD of Batch    Spark sends each task its rows, packed in the plan      FrameFeed
    Parquet, Files                            each task is sent nothing, and reads its own pieces     PiecesFeed

A feed is made and checked without a Spark job; `opened` counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa
from pyspark import RDD
from pyspark.sql import DataFrame, SparkSession

from fatwood.data import ROW_BITS, Decoder, Layout
from fatwood.errors import DataError, OptionError, SchemaError
from fatwood.pieces import Piece, divided
from fatwood.spark.balance import Inspection, Source, balanced, inspect
from fatwood.spark.batches import BatchRows, rows_of_rdd
from fatwood.spark.columns import Columns, columns_of_fields
from fatwood.spark.failures import spark_errors
from fatwood.spark.session import available_slots
from fatwood.spark.staying import Repartition, as_it_lies, stays
from fatwood.storage import Location

__all__ = [
    "BatchesFeed",
    "Feed",
    "FileList",
    "FrameFeed",
    "OpenFeed",
    "PieceReader",
    "PiecesFeed",
    "Reader",
    "Shares",
]


class Reader(Protocol):
    """Reads a task's rows where Spark sends none; it travels to the executors."""

    def batches(self, task: int) -> Iterator[pa.RecordBatch]:
        """The packed rows of one task, as a `Layout` wants them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shares:
    """Every worker's rows."""

    frame: DataFrame
    """A partition for each worker: its rows, or nothing of interest where there is a reader."""
    reader: Reader | None = None


class OpenFeed(ABC):
    """Rows that have been counted."""

    layout: Layout
    rows: int
    validation_rows: int

    @abstractmethod
    def shares(
        self, *, workers: int, seed: int, shuffle: bool, repartition: Repartition = "always"
    ) -> Shares:
        """Deal them out, in shares that differ by at most one row if they are moved.

        Args:
            workers: How many shares.
            seed: Decides the order, where `shuffle` is True.
            shuffle: Whether rows come in a pseudo-random order.
            repartition: Whether they are moved.

        Raises:
            OptionError: They cannot stay where they are.
        """

    @abstractmethod
    def spread(self) -> Shares:
        """The rows to train on as they lie, for a pass over them in which order and balance do not matter."""


class Feed(ABC):
    """Rows of the user's, found to be of the right kind as far as that is known without a job."""

    @property
    @abstractmethod
    def spark(self) -> SparkSession:
        """The session that works on them."""

    @property
    @abstractmethod
    def decoders(self) -> Mapping[str, Decoder]:
        """What has to be sent to the tasks by cloudpickle, by the name of the field."""

    @abstractmethod
    def require_alike(self, validation: Feed) -> None:
        """Check that rows to validate on can be fed beside these.

        Raises:
            SchemaError: They are of another kind.
        """

    @abstractmethod
    def opened(self, validation: Feed | None) -> OpenFeed:
        """Count the rows, and measure what no schema tells.

        Args:
            validation: Rows to validate on, which are counted with them.

        Raises:
            DataError: There are no rows.
            SchemaError: They are not all alike.
        """


@dataclass(frozen=True, eq=False)
class FrameFeed(Feed):
    """Rows of a DataFrame."""

    df: DataFrame
    columns: Columns

    @property
    def spark(self) -> SparkSession:
        """Of the DataFrame."""
        return self.df.sparkSession

    @property
    def decoders(self) -> Mapping[str, Decoder]:
        """Of the columns."""
        return self.columns.decoders

    def require_alike(self, validation: Feed) -> None:
        """Compare what is known by now."""
        _require_same_kind(self, validation)
        assert isinstance(validation, FrameFeed)  # noqa: S101
        _require_alike(self.columns, validation.columns)

    def opened(self, validation: Feed | None) -> OpenFeed:
        """One aggregate over all frames."""
        held_out = None
        if isinstance(validation, FrameFeed):
            held_out = Source(validation.df, validation.columns)
        with spark_errors():
            inspection = inspect(self.df, self.columns, held_out)
        return _OpenFrame(self, inspection, held_out)


class _OpenFrame(OpenFeed):
    def __init__(self, feed: FrameFeed, inspection: Inspection, held_out: Source | None) -> None:
        self._feed = feed
        self._inspection = inspection
        self._held_out = held_out
        self.layout = feed.columns.layout(inspection.sizes)
        self.rows = inspection.rows
        self.validation_rows = inspection.validation_rows

    def shares(
        self, *, workers: int, seed: int, shuffle: bool, repartition: Repartition = "always"
    ) -> Shares:
        """By one shuffle, or as they lie."""
        df, columns = self._feed.df, self._feed.columns
        dealt: dict[str, Any] = {"workers": workers, "seed": seed, "shuffle": shuffle}
        there = self._held_out is not None
        if stays(self._inspection, repartition, workers=workers, shuffle=shuffle, with_validation=there):
            return Shares(frame=as_it_lies(df, columns, **dealt))
        return Shares(frame=balanced(df, columns, self._inspection, **dealt, validation=self._held_out))

    def spread(self) -> Shares:
        """In the frame's own partitions."""
        return Shares(frame=self._feed.df.select(*self._feed.columns.packed))


@dataclass(frozen=True, eq=False)
class BatchesFeed(Feed):
    """Rows of an RDD of minibatches."""

    rdd: RDD[Any]
    session: SparkSession

    @property
    def spark(self) -> SparkSession:
        """The one that makes rows of it."""
        return self.session

    @property
    def decoders(self) -> Mapping[str, Decoder]:
        """None: minibatches hold numbers."""
        return {}

    def require_alike(self, validation: Feed) -> None:
        """Compare what is known by now."""
        _require_same_kind(self, validation)

    def opened(self, validation: Feed | None) -> OpenFeed:
        """Read the minibatches of each RDD once."""
        rows, layout = self._counted()
        inspection = Inspection(partition_rows=rows.partition_rows, sizes=())
        held_out = None
        if isinstance(validation, BatchesFeed):
            others, other_layout = validation._counted()
            _require_same_layout(layout, other_layout)
            inspection = replace(inspection, validation_partition_rows=others.partition_rows)
            held_out = Source(others.df, _columns_of(other_layout))
        return _OpenFrame(FrameFeed(rows.df, _columns_of(layout)), inspection, held_out)

    def _counted(self) -> tuple[BatchRows, Layout]:
        rows = rows_of_rdd(self.rdd, self.session)
        schema = rows.schema
        return rows, Layout(features=schema.features, label=schema.label, weight=schema.weight)


def _columns_of(layout: Layout) -> Columns:
    return columns_of_fields(layout.features, layout.label, layout.weight)


class PieceReader(Protocol):
    """Reads pieces of files into packed rows."""

    def read(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """The packed rows of a piece; row ids are ``file << 33 | row``."""


FileList = Sequence[tuple[str | Location, int]]
"""URI and rows of each file."""


@dataclass(frozen=True, eq=False)
class PiecesFeed(Feed):
    """Rows of files that the tasks read themselves."""

    session: SparkSession
    find: Callable[[], tuple[FileList, Layout, PieceReader]]
    """Lists and counts the files; says how their rows look and what reads them."""
    known_decoders: Mapping[str, Decoder]

    @property
    def spark(self) -> SparkSession:
        """The one that the tasks belong to."""
        return self.session

    @property
    def decoders(self) -> Mapping[str, Decoder]:
        """Of the columns."""
        return self.known_decoders

    def require_alike(self, validation: Feed) -> None:
        """Compare what is known by now."""
        _require_same_kind(self, validation)

    def opened(self, validation: Feed | None) -> OpenFeed:
        """List and count the files."""
        files, layout, reader = self.find()
        others: FileList = ()
        other_reader = reader
        if isinstance(validation, PiecesFeed):
            others, other_layout, other_reader = validation.find()
            _require_same_layout(layout, other_layout)
        _require_rows("the data", files)
        if validation is not None:
            _require_rows("the validation data", others)
        return _OpenPieces(self.session, layout, (reader, other_reader), files, others)


class _OpenPieces(OpenFeed):
    def __init__(
        self,
        spark: SparkSession,
        layout: Layout,
        readers: tuple[PieceReader, PieceReader],
        files: FileList,
        others: FileList,
    ) -> None:
        self._spark = spark
        self._reader, self._other_reader = readers
        self._files = files
        self._others = others
        self.layout = replace(layout, places=tuple(str(uri) for uri, _ in (*files, *others)))
        self.rows = sum(rows for _, rows in files)
        self.validation_rows = sum(rows for _, rows in others)

    def shares(
        self, *, workers: int, seed: int, shuffle: bool, repartition: Repartition = "always"
    ) -> Shares:
        """As runs of rows of the files, laid end to end."""
        if repartition == "never":
            text = "repartition: expected 'auto' or 'always' for files, received 'never'"
            raise OptionError(text, hint="workers read their shares of files themselves: nothing is moved")
        pieces = divided(self._files, workers, shuffle=shuffle, seed=seed)
        held_out = divided(self._others, workers, shuffle=False, seed=seed)
        frame = self._spark.range(0, workers, 1, workers)
        reader = SharesReader(self._reader, pieces)
        if self._others:
            reader = replace(
                reader, other_reader=self._other_reader, held_out=held_out, places=len(self._files)
            )
        return Shares(frame=frame, reader=reader)

    def spread(self) -> Shares:
        """A task for each slot."""
        tasks = max(1, min(self.rows, available_slots(self._spark)))
        pieces = divided(self._files, tasks, shuffle=False, seed=0)
        return Shares(frame=self._spark.range(0, tasks, 1, tasks), reader=SharesReader(self._reader, pieces))


@dataclass(frozen=True, eq=False)
class SharesReader:
    """Reads each task's pieces, those to validate on first and with negative row ids."""

    reader: PieceReader
    pieces: Sequence[Sequence[Piece]]
    """Of each task."""
    other_reader: PieceReader | None = None
    held_out: Sequence[Sequence[Piece]] = ()
    places: int = 0
    """How many files there are to train on: those to validate on are numbered behind them in row ids."""

    def batches(self, task: int) -> Iterator[pa.RecordBatch]:
        """The packed rows of one task."""
        if self.other_reader is not None:
            for piece in self.held_out[task]:
                for batch in self.other_reader.read(piece):
                    yield _to_validate(batch, self.places)
        for piece in self.pieces[task]:
            yield from self.reader.read(piece)


def _to_validate(batch: pa.RecordBatch, places: int) -> pa.RecordBatch:
    index = batch.schema.get_field_index("row_id")
    ids = ~(batch.column(index).to_numpy() + (places << ROW_BITS))
    return batch.set_column(index, "row_id", pa.array(ids))


def _require_same_kind(feed: Feed, validation: Feed) -> None:
    if type(feed) is not type(validation):
        text = (
            "expected data of the same form as the data to train on: tables, files, or an RDD of minibatches"
        )
        raise OptionError(
            text, hint="read one of them as the other: spark.read.parquet(...), or write_shards(df, uri)"
        )


def _require_alike(columns: Columns, found: Columns) -> None:
    """What the schemas tell: types, and which columns hold arrays."""
    pairs: list[tuple[str, str, str]] = []
    for expected, received in zip(columns.items, found.items, strict=True):
        of_label = received.name.startswith("label")
        where = f"{received.name} {received.title!r}" if of_label else received.name
        pairs.append((where, expected.dtype, received.dtype))
        for wanted, there in zip(expected.sources, received.sources, strict=True):
            kinds = [
                "an array or vector" if source.depth else "one number a row" for source in (wanted, there)
            ]
            pairs.append((f"column {there.name!r}", kinds[0], kinds[1]))
    for where, wanted_kind, kind in pairs:
        if wanted_kind != kind:
            message = f"{where}: expected {wanted_kind} as in the DataFrame to train on, received {kind}"
            raise SchemaError(
                message, hint="cast the column in one of the DataFrames: both must be of one kind"
            )


def _require_same_layout(layout: Layout, other: Layout) -> None:
    for field, received in zip(layout.fields, other.fields, strict=False):
        if (field.name, field.dtype, field.shape, field.ragged) != (
            received.name,
            received.dtype,
            received.shape,
            received.ragged,
        ):
            text = (
                f"validation data, {field.name}: expected {field.dtype} of shape {field.shape} as in the data to train on, "
                f"received {received.dtype} of shape {received.shape}"
            )
            raise SchemaError(text, hint="both must be of one kind")


def _require_rows(title: str, files: FileList) -> None:
    if not sum(rows for _, rows in files):
        message = f"{title}: expected at least one row, received none in {len(files)} files"
        raise DataError(message, hint="check the path")
