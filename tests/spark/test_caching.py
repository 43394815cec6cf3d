"""Rows are kept at the level that suits them, and a level that hurts is named, with what to do."""

from __future__ import annotations

import logging

import pytest
import torch
from pyspark import StorageLevel
from pyspark.sql import functions as F

import fatwood.spark
from fatwood.data import Batch
from fatwood.errors import OptionError
from fatwood.spark.caching import persist, warn_of_caching

pytestmark = pytest.mark.spark


@pytest.fixture(autouse=True)
def _all_lines(caplog):
    caplog.set_level(logging.INFO, "fatwood.data")


def _warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def kept(spark):
    """Caches, and gives everything back at the end."""
    caches = []

    def keep(data, level=None):
        caches.append(data)
        return persist(data) if level is None else data.persist(level)

    yield keep
    for data in caches:
        data.unpersist()


def test_a_frame_is_kept_as_columns(spark, kept, caplog) -> None:
    df = spark.range(7).withColumn("x", F.col("id") * 2.5)
    assert kept(df) is df
    assert df.storageLevel == StorageLevel.MEMORY_AND_DISK_DESER
    (line,) = caplog.messages
    assert line.startswith("DataFrame kept at MEMORY_AND_DISK_DESER: its columns are compressed bytes")
    assert df.agg(F.sum("x")).first()[0] == 52.5
    warn_of_caching(df.filter("id > 3"))
    warn_of_caching(spark.range(7))
    assert _warnings(caplog) == []


def test_an_rdd_is_kept_on_disk_where_memory_ends(spark, kept, caplog) -> None:
    rdd = spark.sparkContext.parallelize(range(5), 2).map(lambda x: x * x)
    assert kept(rdd) is rdd
    assert rdd.getStorageLevel() == StorageLevel.MEMORY_AND_DISK
    (line,) = caplog.messages
    assert line.startswith("RDD kept at MEMORY_AND_DISK: Python objects are pickled bytes")
    assert rdd.sum() == 30
    warn_of_caching(rdd.map(lambda x: x + 1))
    assert _warnings(caplog) == []


@pytest.mark.parametrize(
    ("level", "harm"),
    [
        ("MEMORY_ONLY", "what does not fit into memory is computed again"),
        ("MEMORY_AND_DISK_2", "2 copies take memory, disk and network"),
        ("OFF_HEAP", "spark.memory.offHeap.enabled is not set"),
        ("DISK_ONLY", None),
    ],
)
def test_levels_that_hurt_are_named(spark, kept, caplog, level: str, harm: str | None) -> None:
    """Also where they are of something that the rows are computed from."""
    wanted = getattr(StorageLevel, level)
    df = kept(spark.range(9).filter(F.col("id") != len(level)), wanted)  # a plan of its own for each level
    rdd = kept(spark.sparkContext.parallelize(range(3), 1).map(str), wanted)
    for derived in (df, df.select(F.col("id") + 1).repartition(2), rdd, rdd.map(len)):
        caplog.clear()
        warn_of_caching(derived)
        if harm is None:
            assert caplog.messages == []
        else:
            (line,) = _warnings(caplog)
            assert line.startswith(f"rows cached at {level}: {harm}")
            assert line.endswith("call unpersist() and then fatwood.spark.persist(...)")


def test_what_is_cached_stays_as_it_is(spark, kept, caplog) -> None:
    df = kept(spark.range(4).filter("id <> 2"), StorageLevel.MEMORY_ONLY)
    assert fatwood.spark.persist(df).storageLevel == StorageLevel.MEMORY_ONLY
    stays, warning = caplog.messages
    assert stays.startswith("DataFrame stays cached at MEMORY_ONLY")
    assert warning.startswith("rows cached at MEMORY_ONLY: ")


def test_tensors_elsewhere_are_named(spark, caplog) -> None:
    """The meta device stands for CUDA."""
    rdd = spark.sparkContext.parallelize([1], 1)
    here, there = torch.zeros(2, 3), torch.zeros(2, device="meta")
    warn_of_caching(rdd, sample=Batch(features={"a": here}, label=here))
    assert caplog.messages == []
    warn_of_caching(rdd, sample=Batch(features=(here, there), label=there))
    (line,) = _warnings(caplog)
    assert line.startswith("rows that hold tensors on meta: ")


def test_other_objects_are_refused() -> None:
    with pytest.raises(OptionError, match="expected a DataFrame or an RDD, received list"):
        persist([1])
    with pytest.raises(AttributeError, match="no attribute 'persists'"):
        _ = fatwood.spark.persists
