"""Spark's own cache: the level that is right for rows on their way to Python, and a warning about those that are not.

A fit reads its rows twice, once to count and once to train; later epochs come from the workers' own disks. So a cache pays
where computing the rows is dear, and it has to give the same rows both times.

===========================  =======================================================================================
level                        for rows that are trained on
===========================  =======================================================================================
``MEMORY_AND_DISK_DESER``    right for a DataFrame: Spark keeps it as compressed columns in byte arrays, whose size it
                             knows exactly; "deserialised" only means that these bytes are not packed a second time
``MEMORY_AND_DISK``          right for an RDD of Python objects, which are pickled bytes at every level; the same in effect
``DISK_ONLY``                fine: reading the bytes is little beside the way to Python
``OFF_HEAP``                 all of it is on disk, unless ``spark.memory.offHeap.enabled`` is set
``MEMORY_ONLY``              what does not fit is computed again, and may be other rows
``..._2``, ``..._3``         several copies of what is read twice
===========================  =======================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, TypeVar

from pyspark import RDD, StorageLevel
from pyspark.sql import DataFrame

from fatwood.data import Batch, each
from fatwood.errors import OptionError
from fatwood.spark.connect import connect_levels, is_connect
from fatwood.spark.session import require_spark

__all__ = ["harm_of", "level_name", "level_of", "persist", "warn_of_caching"]

LOG = logging.getLogger("fatwood.data")

Kept = TypeVar("Kept", DataFrame, "RDD[Any]")

_INSTEAD = "call unpersist() and then fatwood.spark.persist(...)"
_RDDS_VISITED = 100  # each costs a call to the JVM or two
_CHOICES = {
    "DataFrame": (
        StorageLevel.MEMORY_AND_DISK_DESER,
        "its columns are compressed bytes of known size, which another level would pack once more",
    ),
    "RDD": (
        StorageLevel.MEMORY_AND_DISK,
        "Python objects are pickled bytes at every level, and so of known size",
    ),
}
_WHY_DISK = "what does not fit into memory is read from disk and not computed again"


def persist(data: Kept, *, log: logging.Logger = LOG) -> Kept:
    """Keep rows in Spark's cache, at the level that is right for training on them.

    The rows are computed and kept when they are first read. ``unpersist()`` gives the memory back.

    Args:
        data: A DataFrame, or an RDD. One that is cached already stays as it is; a level that hurts is warned about.
        log: Told in one line, at level INFO, what was chosen and why.

    Returns:
        The same object.

    Raises:
        OptionError: It is neither.
        ClusterError: Its session was stopped.
    """
    kind = _kind(data)
    level, why = _CHOICES[kind]
    before = _own_level(data)
    if before == StorageLevel.NONE:
        data.persist(level)
        log.info("%s kept at %s: %s; %s", kind, level_name(level), why, _WHY_DISK)
    else:
        log.info(
            "%s stays cached at %s: Spark does not change the level of what it keeps",
            kind,
            level_name(before),
        )
        warn_of_caching(data, log=log)
    return data


def warn_of_caching(
    data: DataFrame | RDD[Any], *, sample: Batch | None = None, log: logging.Logger = LOG
) -> None:
    """Warn of a cache that does harm, with the reason and what to do; runs no job.

    Args:
        data: A DataFrame or RDD. Whatever it is computed from is looked at, too.
        sample: One of an RDD's minibatches, if it is at hand: its tensors should be on the CPU.
        log: Gets the warnings, one for each level.

    Raises:
        OptionError: It is neither.
        ClusterError: Its session was stopped.
    """
    _kind(data)
    levels = _levels_of_lineage(data) if isinstance(data, RDD) else _levels_of_plan(data)
    off_heap = _has_off_heap(data)
    for name, harm in {level_name(level): harm_of(level, off_heap=off_heap) for level in levels}.items():
        if harm:
            log.warning("rows cached at %s: %s; %s", name, harm, _INSTEAD)
    elsewhere = {} if sample is None else {str(tensor.device): None for tensor in _tensors(sample)}
    for device in elsewhere:
        if not device.startswith("cpu"):
            log.warning(
                "rows that hold tensors on %s: every process that reads one takes memory of that device, and fails "
                "where there is none; move them with tensor.cpu() before they are kept or sent",
                device,
            )


def harm_of(level: StorageLevel, *, off_heap: bool) -> str | None:
    """What is bad about a level; None when it is fine."""
    if level.useMemory and not level.useDisk:
        return (
            "what does not fit into memory is computed again whenever it is read, and a plan that is not deterministic "
            "(rand(), limit, a shuffle whose order is left open) then gives other rows than were counted"
        )
    if level.useOffHeap and not off_heap:
        return (
            "spark.memory.offHeap.enabled is not set, so there is no such memory and all of them are on disk"
        )
    if level.replication > 1:
        return f"{level.replication} copies take memory, disk and network for rows that a fit reads twice"
    return None


def _kind(data: Any) -> str:
    if isinstance(data, RDD):
        return "RDD"
    if isinstance(data, DataFrame) or is_connect(data):
        require_spark(data)
        return "DataFrame"
    message = f"persist: expected a DataFrame or an RDD, received {type(data).__name__}"
    raise OptionError(message, hint="pandas and Arrow tables are in memory already")


def _has_off_heap(data: DataFrame | RDD[Any]) -> bool:
    name = "spark.memory.offHeap.enabled"
    if is_connect(data):
        return data.sparkSession.conf.get(name, "false") == "true"  # type: ignore[union-attr]
    context = data.context if isinstance(data, RDD) else data.sparkSession.sparkContext
    return context.getConf().get(name) == "true"


def _own_level(data: DataFrame | RDD[Any]) -> StorageLevel:
    return data.getStorageLevel() if isinstance(data, RDD) else data.storageLevel


def _levels_of_plan(df: Any) -> Iterator[StorageLevel]:
    """Of everything cached that the plan reads; of a Connect DataFrame itself."""
    if is_connect(df):
        yield from connect_levels(df)
        return
    plan = df.select("*")._jdf.queryExecution().withCachedData()  # df's own may be older than its cache
    leaves = plan.collectLeaves()
    for leaf in (leaves.apply(i) for i in range(leaves.size())):
        if leaf.nodeName().startswith("InMemoryRelation"):
            yield level_of(leaf.cacheBuilder().storageLevel())


def _levels_of_lineage(rdd: Any) -> Iterator[StorageLevel]:
    """Of the RDD and those it is computed from, the nearest first; a DataFrame's cache below them is not seen."""
    waiting = [rdd._jrdd.rdd()]
    seen: set[int] = set()
    while waiting and len(seen) < _RDDS_VISITED:
        current = waiting.pop(0)
        if current.id() in seen:
            continue
        seen.add(current.id())
        level = level_of(current.getStorageLevel())
        if level != StorageLevel.NONE:
            yield level
        dependencies = current.dependencies()
        waiting.extend(dependencies.apply(i).rdd() for i in range(dependencies.size()))


def level_of(java: Any) -> StorageLevel:
    """Java's storage level as Python's."""
    flags = java.useDisk(), java.useMemory(), java.useOffHeap(), java.deserialized()
    return StorageLevel(*flags, java.replication())


def level_name(level: StorageLevel) -> str:
    """``MEMORY_ONLY`` or the like; in Spark's words where Python has no name for it."""
    known = {name: value for name, value in vars(StorageLevel).items() if isinstance(value, StorageLevel)}
    return next((name for name, value in known.items() if value == level), str(level))


def _tensors(batch: Batch) -> Iterator[Any]:
    for part in (batch.features, batch.label, batch.weight, batch.feature_mask, batch.label_mask):
        yield from (tensor for _, tensor in each(part))
