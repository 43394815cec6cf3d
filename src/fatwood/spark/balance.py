"""Equal shares of a DataFrame for W workers, the same rows in the same order whenever the job is run.

Two steps. `inspect` counts the rows of each partition of the user's frame in one cheap aggregate, and measures
the arrays on the way. `balanced` then knows each row's index over the whole frame without a shuffle of its own::

    row_id = partition << 33 | row        Spark's monotonically_increasing_id: two facts in one number
    index  = rows of all earlier partitions + row
    worker = (index + turn) % W           so the shares differ by at most one row

Every W rows in a row go to W different workers. With `shuffle` their turn is drawn anew for each block of W, or
rows that alternate between classes would give each worker a class of its own.

A row is sent to its worker by Spark's ordinary hash partitioning: `repartition(W, key)` puts a row into
partition ``pmod(hash(key), W)``, and `_keys` looks up, for each worker, a key that lands there. Within a worker
rows are sorted by a seeded hash of the index, or by the index itself. So what a worker gets depends on the order of
the rows in the frame, and not on how they are cut into partitions.

Where the frame's partitions differ from one evaluation to the next (say, after a shuffle whose fetch order is
left open, or with `rand()` in a filter), the counts do not fit any more: the shares are then uneven, but every
row still goes to exactly one worker.

Validation rows, of a second DataFrame, take the same way: they are counted in the same aggregate and share the
shuffle, dealt out in the same manner by an index of their own. Their row ids are complements, so negative, and within a
worker they come first. The rows to train on lie where they would lie without them. Both frames are read as one union in
either step, since adaptive execution may cut a frame's partitions otherwise beside another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import NamedTuple

from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from fatwood.data import ROW_BITS
from fatwood.errors import DataError, OptionError, SchemaError
from fatwood.spark.columns import ROW_ID, Columns
from fatwood.spark.partitions import has_fixed_partitions

__all__ = [
    "Inspection",
    "Source",
    "balanced",
    "dealt",
    "inspect",
    "partition_key",
    "row_index",
]

_TITLES = ("the DataFrame", "the validation DataFrame")


class Source(NamedTuple):
    """A DataFrame of the user's, and what is read of it."""

    df: DataFrame
    columns: Columns


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What one pass over the user's frames found before the job."""

    partition_rows: tuple[int, ...]
    """Rows of each partition of the user's frame, by partition id."""
    sizes: tuple[int, ...]
    """The one length of each of the columns' measures, in their order."""
    validation_partition_rows: tuple[int, ...] = ()
    """Rows of each partition of the validation DataFrame; empty where there is none."""

    @property
    def rows(self) -> int:
        """Rows to train on."""
        return sum(self.partition_rows)

    @property
    def validation_rows(self) -> int:
        """Rows of the whole validation DataFrame; 0 where there is none."""
        return sum(self.validation_partition_rows)


def inspect(df: DataFrame, columns: Columns, validation: Source | None = None) -> Inspection:
    """Counts rows by partition and measures arrays, in one aggregate over all frames.

    Args:
        df: The user's DataFrame.
        columns: Its resolved columns.
        validation: The validation DataFrame, with columns as in `df`.

    Raises:
        DataError: A frame has no rows, or a column of arrays is null in every one.
        SchemaError: The arrays of a column are empty or of more than one length, or of another in the second frame.
    """
    sources = [Source(df, columns)] if validation is None else [Source(df, columns), validation]
    lengths = range(len(columns.measures))
    # Where the plan moves rows, every column that training reads is read here too: with fewer columns its shuffles
    # would carry fewer bytes, adaptive execution could cut them into other partitions, and the counts not fit.
    touch = not all(has_fixed_partitions(source.df) for source in sources)
    measured = reduce(
        DataFrame.union, (_measured(*source, frame, touch=touch) for frame, source in enumerate(sources))
    )
    found = measured.groupBy("frame", "partition").agg(
        F.count(F.lit(1)).alias("rows"),
        F.max("touched"),
        *(F.min(f"least_{i}").alias(f"min_{i}") for i in lengths),
        *(F.max(f"most_{i}").alias(f"max_{i}") for i in lengths),
    )
    partitions: list[dict[int, Row]] = [{} for _ in sources]
    for row in found.collect():
        partitions[row["frame"]][row["partition"]] = row
    for title, rows in zip(_TITLES, partitions, strict=False):
        if not rows:
            message = f"{title}: expected at least one row, received none"
            raise DataError(message, hint="check the path it was read from and its filters")
    sizes = tuple(
        _size(measure.title, i, [list(rows.values()) for rows in partitions])
        for i, measure in enumerate(columns.measures)
    )
    counts = [_counts(rows) for rows in partitions]
    return Inspection(
        partition_rows=counts[0],
        sizes=sizes,
        validation_partition_rows=() if validation is None else counts[1],
    )


def _measured(df: DataFrame, columns: Columns, frame: int, *, touch: bool) -> DataFrame:
    """A row for each of `df`: which frame and partition it is of, and how long its arrays are."""
    lengths = []
    for i, measure in enumerate(columns.measures):
        lengths += [measure.least.alias(f"least_{i}"), measure.most.alias(f"most_{i}")]
    touched = F.xxhash64(F.lit(0), *(columns.read_exprs if touch else ())).alias("touched")
    where = F.lit(frame).alias("frame"), F.spark_partition_id().alias("partition")
    return df.select(*where, touched, *lengths)


def _counts(rows: Mapping[int, Row]) -> tuple[int, ...]:
    return tuple(rows[p]["rows"] if p in rows else 0 for p in range(max(rows) + 1))


def _size(name: str, i: int, frames: Sequence[Sequence[Row]]) -> int:
    """The one length of column `name`, which is the `i`-th of the measured ones, in all frames."""
    sizes = [_size_in(name, i, rows, title) for title, rows in zip(_TITLES, frames, strict=False)]
    if len(set(sizes)) > 1:
        message = f"column {name!r}: expected arrays of {sizes[0]} numbers in {_TITLES[1]} as in {_TITLES[0]}, received {sizes[1]}"
        raise SchemaError(message, hint="compute the column in the same way in both")
    return sizes[0]


def _size_in(name: str, i: int, rows: Sequence[Row], title: str) -> int:
    where = f"column {name!r}" if title == _TITLES[0] else f"{title}, column {name!r}"
    known = [row for row in rows if row[f"min_{i}"] is not None]
    if not known:
        message = f"{where}: expected arrays of numbers, received null in every row"
        raise DataError(message, hint="check the join or the cast that the column comes from")
    least, most = min(row[f"min_{i}"] for row in known), max(row[f"max_{i}"] for row in known)
    if least != most:
        message = f"{where}: expected arrays of one length, received lengths from {least} to {most}"
        raise SchemaError(
            message,
            hint=f"SequenceColumn({name!r}) takes any length; or keep those of one: df.filter(F.size({name!r}) == {most})",
        )
    if most == 0:
        message = f"{where}: expected arrays of at least one number, received empty ones"
        raise SchemaError(message, hint="leave the column out, or check how it is computed")
    return int(most)


def balanced(
    df: DataFrame,
    columns: Columns,
    inspection: Inspection,
    *,
    workers: int,
    seed: int,
    shuffle: bool,
    validation: Source | None = None,
) -> DataFrame:
    """The rows of `df` in exactly `workers` partitions of equal size, one per worker.

    Args:
        df: The user's DataFrame.
        columns: Its resolved columns.
        inspection: What `inspect` found in it, and in the validation DataFrame.
        workers: Number of partitions.
        seed: Decides the order within a partition, where `shuffle` is True; any 64-bit signed integer.
        shuffle: Whether rows come in a pseudo-random order rather than in that of `df`.
        validation: The validation DataFrame, as it was inspected. Each worker gets an equal share of its rows, too:
            with negative row ids, and before all others.

    Returns:
        A DataFrame of the columns ``row_id`` (bigint), ``features`` and, if there are any, ``label`` and ``weight``.
        Partition, order and content of the rows of `df` are a function of these rows in their order, of `workers` and
        of `seed` alone.

    Raises:
        OptionError: `workers` is less than 1 or `seed` needs more than 64 bits.
    """
    if workers < 1:
        message = f"workers: expected at least 1, received {workers}"
        raise OptionError(message)
    if not -(2**63) <= seed < 2**63:
        message = f"seed: expected a 64-bit signed integer, received {seed}"
        raise OptionError(message)
    row_id = F.col(ROW_ID)
    rows, index, place = df.select(*columns.packed), row_index(row_id, inspection.partition_rows), row_id
    if validation is not None:
        rows = rows.union(validation.df.select(*validation.columns.packed_to_validate))
        there = F.bitwise_not(row_id)
        place = F.when(row_id < 0, there).otherwise(row_id)
        index = F.when(row_id < 0, row_index(there, inspection.validation_partition_rows)).otherwise(index)
    key = partition_key(df.sparkSession, dealt(index, workers, seed=seed, shuffle=shuffle), workers)
    order = [F.xxhash64(index, F.lit(seed).cast("bigint")), place] if shuffle else [place]
    if validation is not None:
        order.insert(0, row_id >= 0)
    return rows.repartition(workers, key).sortWithinPartitions(*order)


def dealt(index: Column, workers: int, *, seed: int, shuffle: bool) -> Column:
    """Which of `workers` gets the row of an index over the whole frame, so that shares differ by at most one row."""
    turn = F.xxhash64(index - index % workers, F.lit(seed).cast("bigint")) if shuffle else F.lit(0)
    return F.pmod(index % workers + F.pmod(turn, F.lit(workers)), F.lit(workers)).cast("int")


def partition_key(spark: SparkSession, partition: Column, partitions: int) -> Column:
    """What to hand to ``repartition(partitions, key)`` so that a row lands in the partition of this number."""
    return F.get(_literal(_keys(spark, partitions)), partition)


def row_index(row_id: Column, partition_rows: Sequence[int]) -> Column:
    """The number of a row over its whole frame, from its id and the rows of each partition."""
    partition, row = F.shiftright(row_id, ROW_BITS), row_id.bitwiseAND(2**ROW_BITS - 1)
    # get() answers null for a partition that was not there when rows were counted.
    offsets = list(accumulate(partition_rows, initial=0))
    return F.coalesce(F.get(_literal(offsets), partition.cast("int")), F.lit(0)) + row


def _literal(numbers: Sequence[int]) -> Column:
    """An array<bigint> constant as one string, which thousands of numbers parse from faster than as so many literals."""
    return F.split(F.lit(",".join(map(str, numbers))), ",").cast("array<bigint>")


def _keys(spark: SparkSession, workers: int) -> list[int]:
    """One number per worker that Spark's hash partitioning sends to that worker's partition; runs no job."""
    keys: dict[int, int] = {}
    candidates = 16 * workers
    while len(keys) < workers:
        # Over VALUES, and not without FROM, the optimizer evaluates it to a constant.
        query = (
            f"SELECT transform(sequence(0L, {candidates}L), x -> pmod(hash(x), {workers})) FROM VALUES (0)"  # noqa: S608
        )
        for key, partition in enumerate(spark.sql(query).collect()[0][0]):
            keys.setdefault(partition, key)
        candidates *= 2
    return [keys[partition] for partition in range(workers)]
