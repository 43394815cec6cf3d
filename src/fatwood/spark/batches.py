"""Minibatches that the user made, as rows: an RDD of `Batch` as a DataFrame, and files with a loader, counted.

An RDD is read twice, like any DataFrame that is trained on: once to count and to find out what its minibatches are made of, and
once for its rows. For these every task packs its minibatches into Arrow streams of some hundred kilobytes; a stream crosses to the
JVM as one value of bytes and comes back to Python to be unpacked into columns::

    RDD of Batch --_pack--> RDD of bytes --createDataFrame--> column "stream" --mapInArrow--> row_id, features, ...

So no row is ever a Python object. Row ids are ``partition << 33 | row``, as for a DataFrame.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
from pyspark import RDD
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    DataType,
    FloatType,
    LongType,
    StringType,
    StructField,
    StructType,
)

from fatwood.data import ROW_BITS, Batch, Field
from fatwood.data.batch_parts import devices, tell_of_devices
from fatwood.data.batches import BatchSchema, pieces
from fatwood.errors import DataError, OptionError, SchemaError, UserError
from fatwood.files import Files
from fatwood.spark.connect import is_connect
from fatwood.spark.delivery import hand_to_tasks
from fatwood.spark.failures import describe_failure, rebuild_failure, spark_errors
from fatwood.spark.session import available_slots
from fatwood.spark.shipping import ship, unship
from fatwood.spark.streams import packed, unpacked
from fatwood.storage import Location

__all__ = ["BatchRows", "CountedFiles", "count_files", "rows_of_rdd"]

_TASKS_PER_SLOT = 4  # files differ in size: who is done early takes another task
_BYTES_LIMIT = "spark.sql.execution.arrow.maxBytesPerBatch"
_STREAM_BYTES = 1 << 20
_STREAM_BYTES_WITHOUT_LIMIT = 128 << 10
"""Spark before it had the limit above puts 10,000 values into one Arrow batch, however long they are."""


class BatchRows(NamedTuple):
    """The rows of an RDD of minibatches."""

    df: DataFrame
    """``row_id`` and a column for each field, in the partitions of the RDD and the order of its rows."""
    schema: BatchSchema
    partition_rows: tuple[int, ...]
    """Rows of each partition, by its number."""


class CountedFiles(NamedTuple):
    """What one pass over files found."""

    rows: tuple[int, ...]
    """Of each file, in their order."""
    schema: BatchSchema


def rows_of_rdd(rdd: RDD[Any], spark: SparkSession) -> BatchRows:
    """The rows of an RDD of minibatches; runs one job, which reads the RDD once.

    Args:
        rdd: Of `Batch`, each of any number of rows.
        spark: A session of the context that the RDD is of.

    Raises:
        OptionError: It is no RDD, or one of another context.
        DataError: An element is no `Batch` or cannot be used, or there are no rows.
        SchemaError: The minibatches differ in their tensors, types or shapes.
        UserCodeError: The RDD's own functions raised.
        ClusterError: The job failed otherwise.
    """
    if not isinstance(rdd, RDD) or is_connect(spark) or rdd.ctx is not spark.sparkContext:
        received = type(rdd).__name__ if not isinstance(rdd, RDD) else "one of another"
        message = f"the data: expected an RDD of Batch of the running Spark context, received {received}"
        raise OptionError(message)
    with spark_errors():
        answers = _frame(rdd.mapPartitionsWithIndex(_look), spark, "facts", StringType()).collect()
    facts = sorted((json.loads(answer.facts) for answer in answers), key=lambda fact: int(fact["number"]))
    schema = _agreed("the RDD", [(f"partition {fact['number']}", fact) for fact in facts])
    stream_bytes = _STREAM_BYTES if spark.conf.get(_BYTES_LIMIT, None) else _STREAM_BYTES_WITHOUT_LIMIT
    text = schema.to_json()

    def pack(index: int, elements: Iterable[Any]) -> Iterator[tuple[bytes]]:
        return _pack(index, elements, BatchSchema.from_json(text), stream_bytes)

    streams = _frame(rdd.mapPartitionsWithIndex(pack), spark, "stream", BinaryType())
    return BatchRows(
        df=streams.mapInArrow(unpacked, _struct(schema)),
        schema=schema,
        partition_rows=tuple(int(fact["rows"]) for fact in facts),
    )


def count_files(spark: SparkSession, files: Files, uris: Sequence[str | Location]) -> CountedFiles:
    """The rows of each file and what its minibatch is made of, in one job that calls the loader once for each.

    Args:
        spark: Of either kind.
        files: Whose loader is called.
        uris: From `Files.expand`, at least one.

    Raises:
        DataError: A file's minibatch cannot be used, or no file has a row.
        SchemaError: The minibatches differ in their tensors, types or shapes.
        UserCodeError: The loader raised.
        StorageError: The storage is not known on the executors.
        ShippingError: The loader cannot be sent to them.
        ClusterError: The job failed otherwise.
    """
    tasks = min(len(uris), _TASKS_PER_SLOT * max(1, available_slots(spark)))
    given = hand_to_tasks(spark, (ship({"loader": files.loader}), tuple(uris)))

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return _count(batches, *given.value)

    try:
        with spark_errors():
            answers = spark.range(0, len(uris), 1, tasks).mapInArrow(task, "facts string").collect()
    finally:
        given.destroy()
    facts = sorted((json.loads(answer.facts) for answer in answers), key=lambda fact: int(fact["number"]))
    schema = _agreed("the files", [(str(uris[fact["number"]]), fact) for fact in facts])
    return CountedFiles(tuple(int(fact["rows"]) for fact in facts), schema)


def _agreed(data: str, facts: Sequence[tuple[str, Any]]) -> BatchSchema:
    """The one schema of all parts of the data, or the first failure among them.

    Args:
        data: What the data is, for messages.
        facts: Each with the name of its part.
    """
    for _, fact in facts:
        if "failure" in fact:
            raise rebuild_failure(fact["failure"], f"host {fact['host']}")
    tell_of_devices(frozenset(device for _, fact in facts for device in fact.get("devices", ())))
    schema = None
    for where, fact in facts:
        if fact["schema"] is not None:
            with _named(where):
                schema = _merged(schema, BatchSchema.from_json(fact["schema"]))
    if schema is None:
        message = f"{data}: expected at least one row, received none"
        raise DataError(message, hint="check where the minibatches come from")
    return schema


def _frame(rdd: RDD[Any], spark: SparkSession, name: str, kind: DataType) -> DataFrame:
    """A DataFrame of one column of an RDD of tuples of one value; runs no job."""
    return spark.createDataFrame(
        rdd, StructType([StructField(name, kind, nullable=False)]), verifySchema=False
    )


def _struct(schema: BatchSchema) -> StructType:
    """What Spark calls the columns of `BatchSchema.to_arrow`."""
    fields = [StructField(field.name, _kind(field), nullable=False) for field in schema.fields]
    return StructType([StructField("row_id", LongType(), nullable=False), *fields])


def _kind(field: Field) -> DataType:
    if field.dtype == "uint8":
        return BinaryType()
    element = FloatType() if field.dtype == "float32" else LongType()
    return ArrayType(element, containsNull=False) if field.listed else element


# What follows runs on the executors.


def _look(index: int, elements: Iterable[Any]) -> Iterator[tuple[str]]:
    """What a partition's minibatches are made of, as JSON."""
    rows, schema = 0, None
    found: set[str] = set()
    try:
        for number, element in enumerate(elements):
            with _named(f"partition {index}, element {number}"):
                batch = _batch(element)
                rows += len(batch)
                found |= devices(batch)
                if len(batch):
                    schema = _merged(schema, BatchSchema.of(batch))
    except UserError as error:
        yield (_failed(index, error),)
        return
    yield (_facts(index, rows, schema, found),)


def _pack(
    index: int, elements: Iterable[Any], schema: BatchSchema, stream_bytes: int
) -> Iterator[tuple[bytes]]:
    """A partition's minibatches as Arrow streams, small ones together and large ones cut."""
    row, size, kinds = 0, 0, schema.arrow
    held: list[pa.RecordBatch] = []
    for number, element in enumerate(elements):
        with _named(f"partition {index}, element {number}"):
            rows = schema.to_arrow(_batch(element), index << ROW_BITS | row)
        row += rows.num_rows
        for piece in pieces(rows, stream_bytes):
            if size + piece.nbytes > stream_bytes and held:
                yield (packed(held, kinds),)
                held, size = [], 0
            held.append(piece)
            size += piece.nbytes
    if held:
        yield (packed(held, kinds),)


def _count(
    batches: Iterator[pa.RecordBatch], shipped: bytes, uris: Sequence[str | Location]
) -> Iterator[pa.RecordBatch]:
    """What the files of the numbers that come are made of, as JSON."""
    files = Files(uris, unship(shipped)["loader"])
    failed, schema = False, None
    for batch in batches:
        facts = []
        for number in batch.column(0).to_pylist():
            if failed:
                continue  # input that is left unread would cost Spark this Python process
            try:
                rows, own, found = files.inspect(uris[number])
                with _named(str(uris[number])):
                    merged = schema if own is None else _merged(schema, own)
            except UserError as error:
                failed = True
                facts.append(_failed(number, error))
                continue
            # a schema that stays the same is told once
            facts.append(_facts(number, rows, None if merged == schema else merged, found))
            schema = merged
        yield pa.RecordBatch.from_pydict({"facts": pa.array(facts, pa.string())})


def _facts(number: int, rows: int, schema: BatchSchema | None, found: Iterable[str]) -> str:
    text = None if schema is None else schema.to_json()
    return json.dumps({"number": number, "rows": rows, "schema": text, "devices": sorted(found)})


def _failed(number: int, error: UserError) -> str:
    return json.dumps({"number": number, "host": socket.gethostname(), "failure": describe_failure(error)})


def _batch(element: object) -> Batch:
    if isinstance(element, Batch):
        return element
    kind = f"{type(element).__module__}.{type(element).__qualname__}"
    message = f"expected a fatwood Batch, received {kind}"
    raise DataError(message, hint="rdd.map(lambda element: Batch(features=..., label=...)) makes Batches")


def _merged(known: BatchSchema | None, found: BatchSchema) -> BatchSchema:
    return found if known is None else known.merge(found)


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Begin messages about minibatches with the place."""
    try:
        yield
    except (DataError, SchemaError) as error:
        text = f"{where}: {error.message}"
        raise type(error)(text, hint=error.hint) from None
