"""Whether a DataFrame's rows lie in the same partitions whichever of its columns are read.

Rows are counted before they are trained on, and the counts say which row goes to which worker. Where a plan moves rows (a
join, an aggregate, a repartition), fewer columns are fewer bytes, and adaptive execution may cut fewer bytes into other
partitions: the count then has to read all that training reads. Where rows are only read and changed one by one, the
count can leave the columns alone, and costs next to nothing.
"""

from __future__ import annotations

from typing import Any, Final

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fatwood.spark.connect import is_connect

__all__ = ["has_fixed_partitions", "partition_count"]

_ROW_BY_ROW: Final = frozenset({
    "Filter",
    "Generate",
    "InMemoryRelation",
    "LocalRelation",
    "LogicalRDD",
    "MapInArrow",
    "MapInPandas",
    "Project",
    "PythonMapInArrow",  # Spark 3.5's name
    "Range",
    "SubqueryAlias",
    "Union",
    "View",
})  # fmt: skip
"""Logical operators that leave each row in the partition that it is read in."""


def has_fixed_partitions(df: DataFrame) -> bool:
    """Whether the same rows lie in the same partitions, in the same order, whichever columns are read; runs no job.

    Args:
        df: Any DataFrame.

    Returns:
        False also where it is not known, as in Spark Connect, whose plans are the server's.
    """
    if is_connect(df):
        return False
    plan = df.select("*")._jdf.queryExecution().withCachedData()  # df's own may be older than its cache
    subquery = df.sparkSession._jvm.org.apache.spark.sql.catalyst.trees.TreePattern.PLAN_EXPRESSION()  # type: ignore[union-attr]
    return not plan.containsPattern(subquery) and _fixed(plan)


def _fixed(plan: Any) -> bool:
    name = plan.nodeName().split(" ")[0]  # a cached table's has the table's name behind it
    if name == "LogicalRelation":
        return _plain_files(plan.relation())
    children = plan.children()
    return name in _ROW_BY_ROW and all(_fixed(children.apply(i)) for i in range(children.size()))


def _plain_files(relation: Any) -> bool:
    """Whether it is files, whose sizes alone decide how they are cut; buckets are used only if their columns are read."""
    return bool(relation.getClass().getSimpleName() == "HadoopFsRelation" and relation.bucketSpec().isEmpty())


def partition_count(df: DataFrame) -> int:
    """How many partitions a frame has whose partitions are fixed; runs no job but one that its cache needs."""
    return int(df.select(F.lit(0))._jdf.queryExecution().toRdd().getNumPartitions())
