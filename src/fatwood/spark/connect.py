"""Spark Connect: what a driver without a JVM of its own is told, where a classic one asks the JVM.

Evaluation, prediction and scores send one task to each partition and read its answer. Workers that train call back to the driver,
which a client behind one gRPC port is not to them, so there the job's first task takes the driver's part (:mod:`fatwood.spark.barrier`).

=========================  ==================================  ============================================
asked                      classic session                     Connect
=========================  ==================================  ============================================
tasks at the same moment   the scheduler                       the default parallelism, by one small job
what tasks are told        a broadcast                         part of the function that is sent
levels of caches           the plan, and all that it reads     the DataFrame's own
whether partitions stay    the plan                            no: not known
training                   a job for each worker               one barrier stage
=========================  ==================================  ============================================
"""

from __future__ import annotations

from typing import Final

import pyspark
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from fatwood.errors import ClusterError

__all__ = [
    "connect_levels",
    "connect_slots",
    "is_connect",
    "is_service_failure",
    "is_stopped",
    "require_classic",
    "require_connect",
]

_MODULE: Final = "pyspark.sql.connect"
_ROWS: Final = 1 << 16
"""More than there are slots in any cluster, and nothing to count."""
_CLASSIC_HINT: Final = (
    "use a classic session: SparkSession.builder.master(...) without .remote(...), "
    "SPARK_REMOTE unset and spark.api.mode=classic"
)
_WORKS: Final = "fit, evaluate, predict and score work in Spark Connect; for this, "
_ERRORS: Final = "pyspark.errors.exceptions.connect"
_OF_SERVICE: Final = ("SparkConnectGrpcException", "SparkException", "UnknownException")
"""What a lost server and a job that failed otherwise are raised as; the others have names in Spark's catalogue of errors."""


def is_connect(thing: object) -> bool:
    """Whether it is a DataFrame or a session of Spark Connect."""
    return any(kind.__module__.startswith(_MODULE) for kind in type(thing).__mro__)


def is_service_failure(error: BaseException) -> bool:
    """Whether it is an error of Spark Connect that is not the plan's own: a job or a server that was lost."""
    kind = type(error)
    return kind.__module__ == _ERRORS and kind.__name__ in _OF_SERVICE


def is_stopped(spark: SparkSession) -> bool:
    """Whether a Connect session was stopped by this client, or given up by its server."""
    return bool(spark.is_stopped)  # type: ignore[attr-defined]


def require_connect() -> None:
    """Check that this PySpark can do what is done with DataFrames of Spark Connect.

    Raises:
        ClusterError: It is too old.
    """
    if int(pyspark.__version__.split(".")[0]) < 4:
        message = (
            f"PySpark: expected 4 or later for DataFrames of Spark Connect, received {pyspark.__version__}"
        )
        raise ClusterError(message, hint=_CLASSIC_HINT)


def require_classic(spark: SparkSession, where: str) -> SparkSession:
    """Refuse a Connect session where there has to be a driver that tasks can reach.

    Args:
        spark: Of either kind.
        where: What was called.

    Returns:
        The same session.

    Raises:
        ClusterError: It is one of Spark Connect.
    """
    if is_connect(spark):
        message = f"{where}: expected data of a classic Spark session, received data of Spark Connect, where it is not supported"
        raise ClusterError(message, hint=_WORKS + _CLASSIC_HINT)
    return spark


def connect_slots(spark: SparkSession) -> int:
    """How many tasks can run at the same moment, as far as a client can find out: the default parallelism.

    Args:
        spark: A Connect session; runs one job of nothing.
    """
    partitions = spark.range(_ROWS).select(F.spark_partition_id().alias("partition"))
    return int(partitions.agg(F.max("partition")).collect()[0][0]) + 1


def connect_levels(df: DataFrame) -> list[StorageLevel]:
    """The level of a Connect DataFrame's own cache, if it has one; those below it are not seen."""
    level = df.storageLevel
    return [] if level == StorageLevel.NONE else [level]
