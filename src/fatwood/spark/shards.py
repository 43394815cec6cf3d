"""Write a DataFrame as a shard directory: prepared once, trained on many times.

Two passes over the frame, as for training (:mod:`fatwood.spark.balance`): one counts the rows of each partition, the other
deals each row to its shard by its index over the whole frame. Which rows a shard has, and in what order, is a function of
the rows in their order and of the seed, and not of how the frame is cut. So a task that is started twice writes the same
bytes under the same name, and it does not matter which of the two is the last.

A run is known by its mark, a file ``_writing-...`` that the driver writes first and deletes last; without it a task
publishes nothing (:mod:`fatwood.spark.shards_task`). The manifest comes before the mark goes.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
from pyspark.ml.functions import vector_to_array
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructField, StructType, UserDefinedType

from fatwood import storage
from fatwood.errors import DataError, OptionError, SchemaError, StorageError
from fatwood.shards import (
    MANIFEST,
    ShardFile,
    ShardSet,
    is_data_file,
    open_parquet,
    shard_name,
    write_manifest,
)
from fatwood.spark.action import BackgroundAction
from fatwood.spark.balance import dealt, partition_key, row_index
from fatwood.spark.columns import find_field, named_column
from fatwood.spark.connect import require_classic
from fatwood.spark.failures import spark_errors
from fatwood.spark.partitions import has_fixed_partitions
from fatwood.spark.session import require_spark
from fatwood.spark.shards_task import REPORT_SCHEMA, ShardOrder, write_shard

__all__ = ["write_shards"]

LOG = logging.getLogger("fatwood.shards")

_OURS = re.compile(r"part-[0-9]{5,}-of-[0-9]{5,}\.parquet")
_MARK = "_writing-"
_SHARED_HINT = (
    "give a place that all machines see: hdfs://..., s3://..., or a network disk at the same path everywhere"
)
_SAME_ROWS_HINT = (
    "write it to storage, or df.persist() it, first: rand(), limit() and the like give other rows each time"
)


def write_shards(
    df: DataFrame,
    uri: storage.URI,
    *,
    rows_per_shard: int = 100_000,
    columns: Sequence[str] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> ShardSet:
    """Write the rows of a DataFrame as Parquet files of nearly equal size, with a manifest.

    There are ``ceil(rows / rows_per_shard)`` shards, and their rows differ by at most one. Equal rows in equal order,
    options and versions of pyarrow give equal bytes. Vectors of ``pyspark.ml``, sparse ones too, become ``array<float>``;
    all other columns stay as they are. The frame is computed twice: once to count its rows.

    Args:
        df: The rows; at least one.
        uri: A directory that all machines see: ``hdfs://...``, ``s3://...``; a plain path is each machine's own.
        rows_per_shard: Rows of a shard, at most. 100,000 rows of 784 floats are 300 MB.
        columns: Names of those to write, in this order; None for all.
        shuffle: Whether rows are dealt out and ordered by a hash of their index over the frame; without it they keep
            their order.
        seed: Of the hash; any 64-bit signed integer.
        overwrite: Whether shards that are there may be deleted, which happens before the first new one is written.
        storage_options: Arguments of the store's fsspec class, by name: address, credentials; they travel to the executors.

    Returns:
        What was written. The rows in it were counted when they were written, and are as many as the frame has.

    Raises:
        OptionError: An option cannot work, or the directory has files and `overwrite` is False, or has files that are no shards.
        SchemaError: A column is missing, double, or of a type that Arrow does not know.
        DataError: The frame is empty, or gave other rows the second time.
        ClusterError: It is one of Spark Connect.
        StorageError: Something cannot be written, or the executors do not write to the directory that the driver sees.

    After an error, a Ctrl-C included, the directory holds nothing of this run.
    """
    if not isinstance(rows_per_shard, int) or isinstance(rows_per_shard, bool) or rows_per_shard < 1:
        message = f"rows_per_shard: expected a whole number of at least 1, received {rows_per_shard!r}"
        raise OptionError(message)
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        message = f"seed: expected a 64-bit signed integer, received {seed!r}"
        raise OptionError(message)
    spark = require_classic(require_spark(df), "write_shards")
    fields = _fields(df, columns)
    # By number: mapInArrow does not take a name such as "x.y".
    rows = df.select(*(_arrow_column(field).alias(f"c{i}") for i, field in enumerate(fields)))
    folder = storage.absolute(storage.location(uri, storage_options))
    old = _old_files(folder, overwrite=overwrite)
    with spark_errors():
        counts = _counted(rows)
    total = sum(counts)
    if total == 0:
        message = "the DataFrame: expected at least one row, received none"
        raise DataError(message, hint="check the path it was read from and its filters")
    order = ShardOrder(
        folder=folder,
        mark=f"{_MARK}{secrets.token_hex(8)}",
        shards=-(-total // rows_per_shard),
        names=tuple(field.name for field in fields),
    )
    dealt_out = _dealt_out(spark, rows, counts, order.shards, seed=seed, shuffle=shuffle)
    try:
        for name in old:
            storage.delete(storage.join(folder, name))
        storage.write_atomic(storage.join(folder, order.mark), _nothing)
        files = _written(spark, dealt_out, order)
        _require_rows(files, total, order)
        shards = ShardSet(uri=folder, files=tuple(files), schema=_schema_of(folder, files))
        write_manifest(shards)
    except BaseException:
        _clean(order)
        raise
    storage.delete(storage.join(folder, order.mark))
    storage.delete_leftovers(folder, older_than_seconds=0.0)  # of tasks that were started twice
    return shards


def _fields(df: DataFrame, columns: Sequence[str] | None) -> list[StructField]:
    """The columns to write."""
    if columns is not None and (isinstance(columns, str) or not columns):
        message = f"columns: expected a list of names, received {columns!r}"
        raise OptionError(message, hint='columns=["pixels", "digit"]; None writes all')
    fields = df.schema.fields if columns is None else [find_field(df, name) for name in columns]
    repeated = sorted(name for name, count in Counter(field.name for field in fields).items() if count > 1)
    if repeated:
        message = f"columns: expected every name once, received {repeated} more than once"
        raise SchemaError(message, hint="rename or drop the others, e.g. after a join")
    return fields


def _arrow_column(field: StructField) -> Column:
    """A column as Arrow can have it: vectors are arrays."""
    column = named_column(field.name)
    kind = field.dataType
    if isinstance(kind, UserDefinedType) and type(kind).__name__ == "VectorUDT":
        return F.when(column.isNotNull(), vector_to_array(column, "float32"))
    if _contains(kind, UserDefinedType) or kind.typeName() in ("void", "interval"):
        message = f"column {field.name!r}: expected a type that Arrow knows, received {kind.simpleString()}"
        raise SchemaError(message, hint="convert it, or leave it out with columns=[...]")
    return column


def _contains(kind: DataType, wanted: type[DataType]) -> bool:
    if isinstance(kind, ArrayType):
        inner: list[DataType] = [kind.elementType]
    elif isinstance(kind, MapType):
        inner = [kind.keyType, kind.valueType]
    else:
        inner = [field.dataType for field in kind.fields] if isinstance(kind, StructType) else []
    return isinstance(kind, wanted) or any(_contains(part, wanted) for part in inner)


def _old_files(folder: storage.URI, *, overwrite: bool) -> list[str]:
    """What an earlier run left, to be deleted in this order."""
    names = storage.list_folder(folder)
    foreign = [name for name in names if is_data_file(name) and not _OURS.fullmatch(name)]
    if foreign or (names and not overwrite):
        what = "no files but shards" if overwrite else "an empty or a new directory"
        shown = ", ".join((foreign or names)[:5])
        message = f"{folder}: expected {what}, found {len(foreign or names)} files ({shown})"
        hint = "choose another directory" if foreign else "overwrite=True deletes the shards that are there"
        raise OptionError(message, hint=hint)
    ours = [name for name in names if name == MANIFEST or name.startswith(_MARK) or _OURS.fullmatch(name)]
    return sorted(ours, key=lambda name: name != MANIFEST)


def _counted(rows: DataFrame) -> list[int]:
    """Rows of each partition. Where the plan moves rows, all columns are read: adaptive execution then cuts it as it will again."""
    # Spark hashes no maps.
    hashed = [
        F.col(field.name).cast("string") if _contains(field.dataType, MapType) else F.col(field.name)
        for field in ([] if has_fixed_partitions(rows) else rows.schema.fields)
    ]
    touched = rows.select(
        F.spark_partition_id().alias("partition"), F.xxhash64(F.lit(0), *hashed).alias("touched")
    )
    found = touched.groupBy("partition").agg(F.count(F.lit(1)).alias("rows"), F.max("touched")).collect()
    known = {row["partition"]: row["rows"] for row in found}
    return [known.get(partition, 0) for partition in range(max(known, default=-1) + 1)]


def _dealt_out(
    spark: SparkSession, rows: DataFrame, counts: Sequence[int], shards: int, *, seed: int, shuffle: bool
) -> DataFrame:
    """The rows with each shard in the partition of its number, in order."""
    row_id = F.col("row_id")
    index = row_index(row_id, counts)
    if shuffle:
        shard = dealt(index, shards, seed=seed, shuffle=True)
        order = [F.xxhash64(index, F.lit(seed).cast("bigint")), row_id]
    else:  # the first `more` shards have `each` + 1 rows, the others `each`
        each, more = divmod(sum(counts), shards)
        late = index - more * (each + 1)
        shard = (
            F.when(late < 0, _over(index, each + 1)).otherwise(more + _over(late, max(each, 1))).cast("int")
        )
        order = [row_id]
    numbered = rows.select("*", F.monotonically_increasing_id().alias("row_id"))
    moved = numbered.repartition(shards, partition_key(spark, shard, shards))
    return moved.sortWithinPartitions(*order).select(*rows.columns)


def _over(number: Column, divisor: int) -> Column:
    """Whole-number division of a number that is not negative."""
    return ((number - number % divisor) / divisor).cast("bigint")


def _written(spark: SparkSession, rows: DataFrame, order: ShardOrder) -> list[ShardFile]:
    """Run the job that writes; by number what the tasks wrote."""
    answers: list[Row] = []

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return write_shard(batches, order)

    reports = rows.mapInArrow(task, REPORT_SCHEMA)
    action = BackgroundAction(spark.sparkContext, "fatwood-shards", lambda: answers.extend(reports.collect()))
    try:
        action.start()
        while not action.finished:
            action.join(1.0)
    finally:
        action.end(0.0)
    with spark_errors():
        if action.failed is not None:
            raise action.failed
    for answer in answers:
        if answer["error"]:
            raise StorageError(answer["error"], hint=_SHARED_HINT)
    return [
        ShardFile(
            name=shard_name(answer["shard"], order.shards),
            rows=answer["rows"],
            bytes=answer["bytes"],
            sha256=answer["sha256"],
        )
        for answer in sorted(answers, key=lambda answer: int(answer["shard"]))
    ]


def _require_rows(files: Sequence[ShardFile], total: int, order: ShardOrder) -> None:
    """As many rows out as in, in the shards that were planned, and these where the driver sees them."""
    each, more = divmod(total, order.shards)
    counts = sorted((file.rows for file in files), reverse=True)
    if counts != [each + 1] * more + [each] * (order.shards - more):
        message = f"the DataFrame: expected the {total} rows that were counted, {sum(counts)} rows in {len(counts)} uneven shards were written"
        raise DataError(message, hint=_SAME_ROWS_HINT)
    missing = sorted({file.name for file in files} - set(storage.list_folder(order.folder)))
    if missing:
        message = f"{order.folder}: expected {len(files)} files that tasks wrote, the driver does not see {len(missing)} of them ({missing[0]})"
        raise StorageError(message, hint=_SHARED_HINT)


def _schema_of(folder: storage.URI, files: Sequence[ShardFile]) -> pa.Schema:
    with open_parquet(storage.join(folder, files[0].name)) as parquet:
        return parquet.schema_arrow.remove_metadata()


def _clean(order: ShardOrder) -> None:
    """Delete what this run wrote; what cannot be deleted is logged, as another error is on its way."""
    ours = {MANIFEST, *(shard_name(number, order.shards) for number in range(order.shards))}
    try:
        storage.delete(storage.join(order.folder, order.mark))  # first: without it no task publishes any more
        for name in storage.list_folder(order.folder):
            if name in ours:
                storage.delete(storage.join(order.folder, name))
        storage.delete_leftovers(order.folder, older_than_seconds=0.0)
    except StorageError as error:
        LOG.warning("%s: shards of a run that failed could not be deleted: %s", order.folder, error.message)


def _nothing(file: BinaryIO) -> None:
    """Write an empty file."""
