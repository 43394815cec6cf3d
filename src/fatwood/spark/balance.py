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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from fatwood.errors import DataError, OptionError, SchemaError
from fatwood.spark.columns import ROW_ID, Columns

__all__ = ["ROW_BITS", "Inspection", "balanced", "inspect"]

ROW_BITS = 33
"""monotonically_increasing_id keeps the row's number in the low 33 bits, the partition above them."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What one pass over the user's frame found before the job."""

    partition_rows: tuple[int, ...]
    """Rows of each partition of the user's frame, by partition id."""
    feature_width: int
    """Numbers in the assembled features of one row."""
    label_width: int | None
    """Numbers in one label; None where the label is a single number, or where there is none."""

    @property
    def rows(self) -> int:
        """Rows of the whole frame."""
        return sum(self.partition_rows)


def inspect(df: DataFrame, columns: Columns) -> Inspection:
    """Counts rows by partition and measures arrays, in one aggregate over `df`.

    Args:
        df: The user's DataFrame.
        columns: Its resolved columns.

    Raises:
        DataError: There are no rows, or a column of arrays is null in every one.
        SchemaError: The arrays of a column are empty or of more than one length.
    """
    lengths = [size.alias(f"size_{i}") for i, size in enumerate(columns.size_exprs.values())]
    # Every column that training reads is read here too: with fewer columns the shuffles inside the user's plan
    # would carry fewer bytes, adaptive execution could cut them into other partitions, and the counts not fit.
    touched = F.xxhash64(F.lit(0), *columns.scalar_exprs).alias("touched")
    measured = df.select(F.spark_partition_id().alias("partition"), touched, *lengths)
    found = measured.groupBy("partition").agg(
        F.count(F.lit(1)).alias("rows"),
        F.max("touched"),
        *(F.min(f"size_{i}").alias(f"min_{i}") for i in range(len(lengths))),
        *(F.max(f"size_{i}").alias(f"max_{i}") for i in range(len(lengths))),
    )
    partitions = {row["partition"]: row for row in found.collect()}
    if not partitions:
        message = "the DataFrame: expected at least one row, received none"
        raise DataError(message, hint="check the path it was read from and its filters")
    widths = {name: _width(name, i, list(partitions.values())) for i, name in enumerate(columns.size_exprs)}
    label_width = None if columns.label_name is None else widths.pop(columns.label_name, None)
    scalars = len(columns.feature_names) - len(widths)
    return Inspection(
        partition_rows=tuple(
            partitions[p]["rows"] if p in partitions else 0 for p in range(max(partitions) + 1)
        ),
        feature_width=scalars + sum(widths.values()),
        label_width=label_width,
    )


def _width(name: str, i: int, partitions: Sequence[Row]) -> int:
    """The one length of column `name`, which is the `i`-th of the measured ones."""
    known = [row for row in partitions if row[f"min_{i}"] is not None]
    if not known:
        message = f"column {name!r}: expected arrays of numbers, received null in every row"
        raise DataError(message, hint="check the join or the cast that the column comes from")
    least, most = min(row[f"min_{i}"] for row in known), max(row[f"max_{i}"] for row in known)
    if least != most:
        message = f"column {name!r}: expected arrays of one length, received lengths from {least} to {most}"
        raise SchemaError(
            message,
            hint=f"pad or cut them, or keep those of one length: df.filter(F.size({name!r}) == {most})",
        )
    if most == 0:
        message = f"column {name!r}: expected arrays of at least one number, received empty ones"
        raise SchemaError(message, hint="leave the column out, or check how it is computed")
    return int(most)


def balanced(
    df: DataFrame, columns: Columns, inspection: Inspection, *, workers: int, seed: int, shuffle: bool
) -> DataFrame:
    """The rows of `df` in exactly `workers` partitions of equal size, one per worker.

    Args:
        df: The user's DataFrame.
        columns: Its resolved columns.
        inspection: What `inspect` found in it.
        workers: Number of partitions.
        seed: Decides the order within a partition, where `shuffle` is True; any 64-bit signed integer.
        shuffle: Whether rows come in a pseudo-random order rather than in that of `df`.

    Returns:
        A DataFrame of the columns ``row_id`` (bigint), ``features`` and, if there is one, ``label``. Partition,
        order and content are a function of the rows of `df` in their order, of `workers` and of `seed` alone.

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
    partition, row = F.shiftright(row_id, ROW_BITS), row_id.bitwiseAND(2**ROW_BITS - 1)
    # get() answers null for a partition that was not there when rows were counted.
    offsets = list(accumulate(inspection.partition_rows, initial=0))
    index = F.coalesce(F.get(_literal(offsets), partition.cast("int")), F.lit(0)) + row
    turn = F.xxhash64(index - index % workers, F.lit(seed).cast("bigint")) if shuffle else F.lit(0)
    worker = F.pmod(index % workers + F.pmod(turn, F.lit(workers)), F.lit(workers)).cast("int")
    key = F.get(_literal(_keys(df.sparkSession, workers)), worker)
    order = [F.xxhash64(index, F.lit(seed).cast("bigint")), row_id] if shuffle else [row_id]
    return df.select(*columns.packed).repartition(workers, key).sortWithinPartitions(*order)


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
