"""How stages are saved: Spark ML's metadata, and beside it the network's file, on any file system that Hadoop knows.

::

    path/metadata            Spark ML's: class, uid, Params; and under "fatwood" the parts that JSON can say
    path/network.fatwood     a saved model, which `fatwood.SparkModel.load` reads as well
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyspark
from pyspark.ml.param import Params
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter
from pyspark.sql import SparkSession

from fatwood.errors import StorageError
from fatwood.spark.connect import is_connect, require_classic

__all__ = ["network_file", "read_metadata", "write_metadata", "write_network"]

_NETWORK = "network.fatwood"
_HINT = "check that the path is on a file system that Spark's driver and executors see, and that this user may use it"


def write_metadata(instance: Params, path: str, spark: SparkSession, extra: dict[str, Any]) -> None:
    """Write a stage's Params and parts.

    Args:
        instance: The stage.
        path: Of its folder.
        spark: Session to write with.
        extra: The parts, as JSON.
    """
    DefaultParamsWriter.saveMetadata(instance, path, _context(spark), extraMetadata={"fatwood": extra})


def read_metadata(path: str, spark: SparkSession) -> tuple[dict[str, Any], dict[str, Any]]:
    """A stage's metadata, and the parts in it.

    Raises:
        StorageError: They are not those of a stage of this package.
    """
    metadata = DefaultParamsReader.loadMetadata(path, _context(spark))
    extra = metadata.get("fatwood")
    if not isinstance(extra, dict) or not isinstance(extra.get("parts"), dict):
        text = f"{path}: expected a saved stage of fatwood.ml, received one of {metadata.get('class')}"
        raise StorageError(text, hint="load it with the class that saved it")
    return metadata, extra


def write_network(local: Path, path: str, spark: SparkSession) -> None:
    """Copy the file of a network into a stage's folder.

    Raises:
        StorageError: The file system refuses it.
        ClusterError: The session is one of Spark Connect, which has no way to write a file.
    """
    require_classic(spark, "save")
    with _explained("write", path):
        system, target, jvm = _hadoop(f"{path}/{_NETWORK}", spark)
        system.copyFromLocalFile(False, False, jvm.org.apache.hadoop.fs.Path(local.as_uri()), target)


@contextmanager
def network_file(path: str, spark: SparkSession) -> Iterator[Path]:
    """The file of a stage's network, on the local disk for as long as the context lasts.

    Raises:
        StorageError: There is none, or it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="fatwood-ml-") as folder:
        local = Path(folder) / _NETWORK
        with _explained("read", path):
            if is_connect(spark):
                rows = spark.read.format("binaryFile").load(f"{path}/{_NETWORK}").select("content").collect()
                local.write_bytes(rows[0][0])
            else:
                system, source, jvm = _hadoop(f"{path}/{_NETWORK}", spark)
                # without a checksum file of its own beside the copy
                system.copyToLocalFile(False, source, jvm.org.apache.hadoop.fs.Path(local.as_uri()), True)
        yield local


def _hadoop(uri: str, spark: SparkSession) -> tuple[Any, Any, Any]:
    """File system, path and JVM; the session's options of Hadoop hold, as for Spark ML's own files."""
    jvm: Any = spark._jvm
    path = jvm.org.apache.hadoop.fs.Path(uri)
    return path.getFileSystem(spark._jsparkSession.sessionState().newHadoopConf()), path, jvm


@contextmanager
def _explained(operation: str, path: str) -> Iterator[None]:
    from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
    from pyspark.errors import PySparkException

    try:
        yield
    except (Py4JJavaError, PySparkException, OSError) as error:
        cause = error.java_exception.toString() if isinstance(error, Py4JJavaError) else str(error)
        text = f"cannot {operation} {path}/{_NETWORK}: {cause}"
        raise StorageError(text, hint=_HINT) from error


def _context(spark: SparkSession) -> Any:
    """What Spark ML's own functions take: a session from PySpark 4 on, a context before."""
    return spark if int(pyspark.__version__.split(".")[0]) >= 4 else spark.sparkContext
