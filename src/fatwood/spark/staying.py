"""Whether rows are dealt out anew before training, or stay in the frame's own partitions."""

from __future__ import annotations

import logging
from typing import Final, Literal

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fatwood.errors import OptionError
from fatwood.spark.balance import Inspection
from fatwood.spark.columns import ROW_ID, Columns
from fatwood.spark.partitions import has_fixed_partitions, partition_count

__all__ = ["Repartition", "as_it_lies", "stays"]

LOG = logging.getLogger("fatwood.data")

Repartition = Literal["auto", "never", "always"]

_UNEVEN: Final = 0.01
"""How much less than the largest the smallest partition may have, for rows to stay."""


def stays(
    inspection: Inspection, repartition: Repartition, *, workers: int, shuffle: bool, with_validation: bool
) -> bool:
    """Whether the rows stay in the frame's own partitions; says why in one line of the log.

    Args:
        inspection: What was counted.
        repartition: What the caller wants.
        workers: How many partitions there must be.
        shuffle: Whether rows are to meet in a random order.
        with_validation: Whether there are rows to validate on, which are dealt out in any case.

    Raises:
        OptionError: They were to stay, and cannot.
    """
    rows = inspection.partition_rows
    least, most = min(rows), max(rows)
    found = f"{inspection.rows:,} rows lie in {len(rows)} partitions of {least:,} to {most:,}"
    if repartition == "never":
        if with_validation or len(rows) < workers:
            wanted = "no validation data" if with_validation else f"at least {workers} partitions with rows"
            text = (
                f"repartition='never': expected {wanted}, received {'some' if with_validation else len(rows)}"
            )
            raise OptionError(text, hint="repartition='auto' deals the rows out")
        LOG.info("%s; they stay there, as repartition='never' says", found)
        return True
    even = len(rows) == workers and most - least <= most * _UNEVEN
    if repartition == "auto" and even and not shuffle and not with_validation:
        LOG.info("%s, one for each worker, and are not to be shuffled: they stay there", found)
        return True
    reason = ", as repartition='always' says" if repartition == "always" else ", in random order" * shuffle
    LOG.info("%s; they are dealt out to %d workers in equal shares%s", found, workers, reason)
    return False


def as_it_lies(df: DataFrame, columns: Columns, *, workers: int, seed: int, shuffle: bool) -> DataFrame:
    """The rows of `df` in exactly `workers` partitions, made of its own without moving a row to another machine.

    Args:
        df: With at least as many partitions.
        columns: Its resolved columns.
        workers: Number of partitions.
        seed: Decides the order within a partition, where `shuffle` is True.
        shuffle: Whether rows come in a pseudo-random order.

    Returns:
        A DataFrame like that of :func:`fatwood.spark.balance.balanced`, but for the shares.
    """
    rows, row_id = df.select(*columns.packed), F.col(ROW_ID)
    if not shuffle and has_fixed_partitions(df) and partition_count(df) == workers:
        return rows  # in order already; a sort would copy every row, and give none before it has read all
    order = [F.xxhash64(row_id, F.lit(seed).cast("bigint"))] if shuffle else []
    return rows.coalesce(workers).sortWithinPartitions(*order, row_id)
