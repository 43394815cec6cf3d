"""What tests share, each started when it is asked for: a Spark session, a server of Spark Connect, an HDFS, an S3 server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from fatwood.testing.hdfs import Hdfs
    from fatwood.testing.s3 import S3


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
        # What PySpark 3.5 does by itself.
        for text in ("distutils Version classes are deprecated", "is_datetime64tz_dtype is deprecated"):
            config.addinivalue_line("filterwarnings", f"ignore:{text}:DeprecationWarning")


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
        "spark.python.daemon.module": "fatwood.spark.daemon",
        # A worker that crashes says where. Once, in thousands of tasks, one of a test without PyTorch was gone without a word.
        "spark.python.worker.faulthandler.enabled": "true",
        "spark.sql.execution.pyspark.udf.faulthandler.enabled": "true",
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


@pytest.fixture(scope="session")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    """A real HDFS on loopback: ``uri`` of its root, ``options`` for its store, ``web`` of the root by WebHDFS."""
    from fatwood.errors import ClusterError
    from fatwood.testing.hdfs import hdfs_cluster, hdfs_jars

    pytest.importorskip("hdfs_native", reason="HDFS: pip install 'fatwood[hdfs]'")
    pytest.importorskip("pyspark", reason="HDFS: what finds Java is a part of fatwood.spark")
    from fatwood.spark.session import find_java

    if find_java() is None:
        pytest.skip("HDFS: no Java on PATH or in JAVA_HOME")
    try:
        hdfs_jars()
    except ClusterError as error:
        pytest.skip(str(error))
    with hdfs_cluster(parent=tmp_path_factory.mktemp("hdfs")) as running:
        yield running


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server on loopback: ``uri`` of an empty bucket, ``options`` for its store."""
    from fatwood.testing.s3 import s3_server

    for name in ("s3fs", "moto", "flask", "flask_cors"):
        pytest.importorskip(name, reason="S3: pip install s3fs 'moto[s3]' flask flask-cors")
    with s3_server(parent=tmp_path_factory.mktemp("s3")) as running:
        yield running


_SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"
_SERVER_SECONDS = 150.0
_UNTIL_STDIN_ENDS = '"$@" </dev/null & server=$!; cat >/dev/null; kill $server; wait $server'
"""Runs a command until whoever holds the other end of its input ends, by whatever way."""


@pytest.fixture(scope="session")
def connect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Spark Connect server ``local[2]`` in a process of its own, which ends with this one."""
    import pyspark

    from fatwood.spark.session import require_java

    for name in ("grpc", "grpc_status", "google.rpc", "zstandard"):
        pytest.importorskip(name, reason='Spark Connect: pip install "pyspark[connect]"')
    if int(pyspark.__version__.split(".")[0]) < 4:
        pytest.skip("Spark Connect is supported with PySpark 4 or later")
    require_java()
    folder = tmp_path_factory.mktemp("connect")
    home = Path(pyspark.__file__).parent
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": port,
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.extraJavaOptions": f"-XX:TieredStopAtLevel=1 -Djava.io.tmpdir={folder}",
        "spark.driver.memory": "3g",
        "spark.local.dir": folder / "local",
        "spark.log.level": "ERROR",
        "spark.sql.catalogImplementation": "in-memory",
        "spark.sql.shuffle.partitions": 2,
        "spark.sql.warehouse.dir": folder / "warehouse",
        "spark.ui.enabled": "false",
    }
    settings = [part for name, value in options.items() for part in ("--conf", f"{name}={value}")]
    submit = [home / "bin" / "spark-submit", "--class", _SERVER, "--master", "local[2]", *settings]
    ours = ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_CONNECT_MODE": "0",
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            ["sh", "-c", _UNTIL_STDIN_ENDS, "sh", *map(str, submit)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _SERVER_SECONDS
        while not _listens(port):
            if keeper.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start: {log.read_text()[-4000:]}")
            time.sleep(0.1)
        yield f"sc://127.0.0.1:{port}"
    finally:
        keeper.stdin.close()
        try:
            keeper.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(keeper.pid, signal.SIGKILL)
            keeper.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def connect(connect_server: str) -> Iterator[SparkSession]:
    """A session of Spark Connect, for a module of tests that have no classic one.

    While the module runs, functions of ``pyspark.sql`` make columns for Connect, as they do for users of it.
    """
    from pyspark.sql.connect.session import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_CONNECT_MODE_ENABLED", "1")
        session = SparkSession.builder.remote(connect_server).create()
        yield session
        session.stop()
