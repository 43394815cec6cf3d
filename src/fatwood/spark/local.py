"""A Spark session on this machine alone, with nothing for the user to set up but Java."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession

from fatwood.spark.session import require_java

__all__ = ["local_session"]


@contextmanager
def local_session(cores: int) -> Iterator[SparkSession]:
    """Start a quiet ``local[cores]`` session on loopback and stop it at the end.

    Raises:
        ClusterError: There is no Java that can run Spark; the hint says how to get one.
    """
    require_java()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # otherwise workers run the python3 of PATH
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    options: dict[str, bool | float | int | str | None] = {
        "spark.driver.host": "127.0.0.1",
        "spark.log.level": "ERROR",
        "spark.python.daemon.module": "fatwood.spark.daemon",
        "spark.sql.shuffle.partitions": str(cores),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = SparkSession.builder.master(f"local[{cores}]").appName("fatwood demo").config(map=options)
    session = builder.getOrCreate()
    try:
        yield session
    finally:
        session.stop()
