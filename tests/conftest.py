"""One Spark session for all tests that are marked ``spark``; it starts when the first of them asks for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def pytest_configure(config: pytest.Config) -> None:
    """PySpark before 4.3 leaves the loopback sockets of `collect` to the garbage collector."""
    try:
        older = tuple(map(int, version("pyspark").split(".")[:2])) < (4, 3)
    except PackageNotFoundError:
        return
    if older:
        unclosed = r"Exception ignored in. <socket\.socket .*'127\.0\.0\.1'"
        config.addinivalue_line(
            "filterwarnings", f"ignore:{unclosed}:pytest.PytestUnraisableExceptionWarning"
        )


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """A classic ``local[4]`` session on loopback, so that three workers fit; small, silent, gone at the end."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    from fatwood.spark.session import require_java

    require_java()
    folder = tmp_path_factory.mktemp("spark")
    environment = {
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": "pyspark-shell",
    }
    before = {name: os.environ.get(name) for name in [*environment, "SPARK_REMOTE"]}
    os.environ.pop("SPARK_REMOTE", None)
    os.environ.update(environment)
    options = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "2g",
        # Only the quick compiler: these JVMs live for a minute, and starting them is most of the wait.
        "spark.driver.extraJavaOptions": f"-XX:TieredStopAtLevel=1 -Djava.io.tmpdir={folder}",
        "spark.local.dir": str(folder / "local"),
        "spark.sql.catalogImplementation": "in-memory",
        "spark.sql.shuffle.partitions": "4",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
    }
    session = (
        SparkSession.builder.master("local[4]").appName("fatwood-tests").config(map=options).getOrCreate()
    )
    gateway = SparkContext._gateway
    yield session
    session.stop()
    # stop() leaves the JVM to the end of this process; it is ended here, where a hang would be seen.
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(timeout=30)
    SparkContext._gateway = SparkContext._jvm = None
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
