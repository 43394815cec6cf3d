"""Where the count of rows need not read them: what is found to be fixed has the same partitions whatever is read."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F

from fatwood.spark import persist
from fatwood.spark.partitions import has_fixed_partitions, partition_count

pytestmark = pytest.mark.spark


@pytest.fixture
def files(spark, tmp_path):
    """Wide rows in files of many sizes, cut and joined into partitions by Spark."""
    for number, rows in enumerate((4000, 10, 900, 1, 2500)):
        columns = {f"c{i}": pa.array(range(i, rows + i)) for i in range(20)}
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet", row_group_size=300)
    spark.conf.set("spark.sql.files.maxPartitionBytes", "150k")
    spark.conf.set("spark.sql.files.openCostInBytes", "1k")
    yield spark.read.parquet(str(tmp_path))
    spark.conf.unset("spark.sql.files.maxPartitionBytes")
    spark.conf.unset("spark.sql.files.openCostInBytes")


def rows_by_partition(df, *read):
    where = F.spark_partition_id().alias("partition"), F.xxhash64(F.lit(0), *read).alias("read")
    found = df.select(*where).groupBy("partition").agg(F.count(F.lit(1)).alias("rows"), F.max("read"))
    return {row["partition"]: row["rows"] for row in found.collect()}


def doubled(batches):
    for batch in batches:
        yield batch.take(pa.array([*range(batch.num_rows)] * 2))


FIXED = {
    "files": lambda df: df,
    "row by row": lambda df: df.filter("c3 % 2 = 0").withColumn("x", F.explode(F.sequence("c3", F.lit(5)))),
    "python": lambda df: df.mapInArrow(doubled, df.schema),
    "union": lambda df: df.union(df.filter("c1 > 10")),
    "cached": lambda df: persist(df.repartition(7).sort("c1")),
    "a function of Python": lambda df: df.withColumn("x", F.udf(lambda x: x + 1, "long")("c3")),
    "a cached view": lambda df: _view(df, cache=True),
    "a view": lambda df: _view(df, cache=False),
}

MOVED = {
    "join": lambda df: df.join(df.select("c1"), "c1"),
    "aggregate": lambda df: df.groupBy("c1").agg(F.max("c2").alias("c2")),
    "repartition": lambda df: df.repartition(7),
    "sort": lambda df: df.sort("c1"),
    "limit": lambda df: df.limit(100),
    "subquery": lambda df: _with_subquery(df),
}


def _view(df, *, cache):
    df.createOrReplaceTempView("some_rows")
    if cache:
        df.sparkSession.catalog.cacheTable("some_rows")
    return df.sparkSession.table("some_rows")


def _with_subquery(df):
    df.createOrReplaceTempView("some")
    return df.sparkSession.sql("SELECT * FROM some WHERE c1 IN (SELECT c2 FROM some)")


@pytest.mark.parametrize("kind", FIXED)
def test_a_count_of_what_is_fixed_reads_nothing_and_fits(spark, files, kind) -> None:
    df = FIXED[kind](files)
    try:
        assert has_fixed_partitions(df)
        counted = rows_by_partition(df)
        assert counted == rows_by_partition(df, *(name for name in df.columns))
        assert max(counted) < partition_count(df)
        assert len(counted) > 3
    finally:
        spark.catalog.clearCache()
        spark.catalog.dropTempView("some_rows")


@pytest.mark.parametrize("kind", MOVED)
def test_what_moves_rows_is_not_fixed(spark, files, kind) -> None:
    assert not has_fixed_partitions(MOVED[kind](files))
    spark.catalog.dropTempView("some")


def test_buckets_are_used_only_if_their_columns_are_read(spark, files) -> None:
    files.write.bucketBy(3, "c1").saveAsTable("bucketed")
    try:
        assert not has_fixed_partitions(spark.table("bucketed"))
    finally:
        spark.sql("DROP TABLE bucketed")
