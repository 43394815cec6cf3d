"""What the driver must know of a Spark session before it starts a job: Java, slots, addresses, and its kind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyspark
from pyspark.sql import DataFrame, SparkSession

from fatwood.errors import ClusterError, OptionError
from fatwood.spark.connect import connect_slots, is_connect, is_stopped, require_connect

__all__ = [
    "allocates",
    "available_slots",
    "driver_address",
    "find_java",
    "require_java",
    "require_slots",
    "require_spark",
]

_JAVA_TIMEOUT_SECONDS = 30.0
_POLL_SECONDS = 0.2
_JAVA_HINT = (
    "install Java 17 (Debian, Ubuntu: apt-get install openjdk-17-jre-headless; macOS: brew install openjdk@17; "
    "conda install -c conda-forge openjdk=17) and set JAVA_HOME to its folder or put java on PATH"
)


def require_spark(df: object) -> SparkSession:
    """The live session of a batch DataFrame, classic or of Spark Connect.

    Args:
        df: What the user gave as a DataFrame.

    Raises:
        OptionError: `df` is no Spark DataFrame, or a streaming one.
        ClusterError: Its session was stopped; or it belongs to Spark Connect, and PySpark is older than 4.
    """
    remote = is_connect(df)
    if remote:
        require_connect()
    if not isinstance(df, DataFrame):
        kind = f"{type(df).__module__}.{type(df).__qualname__}"
        message = f"the DataFrame: expected a pyspark.sql.DataFrame, received {kind}"
        raise OptionError(
            message, hint="read the data with spark.read, or convert it with spark.createDataFrame"
        )
    spark = df.sparkSession
    if is_stopped(spark) if remote else spark.sparkContext._jsc is None:
        message = (
            "the DataFrame: expected one of a running Spark session, received one whose session was stopped"
        )
        raise ClusterError(message, hint="start a session and read the data again")
    if df.isStreaming:
        message = "the DataFrame: expected a batch of rows, received a stream"
        raise OptionError(message, hint="use foreachBatch, or spark.read in place of spark.readStream")
    return spark


def available_slots(spark: SparkSession, *, wanted: int = 1, wait_seconds: float = 0.0) -> int:
    """How many tasks the application can run at the same moment when nothing else runs.

    Executors of a cluster register some seconds after the session has started, so the number can still grow:
    it is asked for again until it reaches `wanted` or `wait_seconds` have passed.

    Args:
        spark: Of either kind; one of Connect runs a small job, and does not wait.
        wanted: Number of tasks that is enough for the caller.
        wait_seconds: How long to wait for executors.

    Returns:
        The slots of the registered executors, each ``cores // spark.task.cpus`` (fewer where a GPU is asked for).
        With dynamic allocation, those of ``spark.dynamicAllocation.maxExecutors`` executors if that is more;
        `sys.maxsize` where the configuration sets no bound.
    """
    if is_connect(spark):
        return connect_slots(spark)
    context = spark.sparkContext
    java: Any = context._jsc
    profile = java.sc().resourceProfileManager().defaultResourceProfile()
    reachable = 0 if _is_local(context.master) else _dynamic_slots(dict(context.getConf().getAll()))
    # The one executor of a local session is there from the start.
    deadline = time.monotonic() + (0.0 if _is_local(context.master) else wait_seconds)
    while True:
        # What Spark itself compares with the tasks of a barrier stage; it counts the active executors.
        slots = max(int(java.sc().maxNumConcurrentTasks(profile)), reachable)
        if slots >= wanted or time.monotonic() >= deadline:
            return slots
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def allocates(spark: SparkSession) -> bool:
    """Whether executors come and go with the work (dynamic allocation); of Spark Connect that is not known."""
    if is_connect(spark) or _is_local(spark.sparkContext.master):
        return False
    return _is_dynamic(dict(spark.sparkContext.getConf().getAll()))


def require_slots(spark: SparkSession, workers: int | None, *, wait_seconds: float = 60.0) -> int:
    """Checks that `workers` tasks can run at once, as the workers of a training job must.

    Args:
        spark: Of either kind.
        workers: Tasks that must run at the same moment; ``None`` for as many as can now.
        wait_seconds: How long to wait for executors that have not registered yet.

    Returns:
        The number of workers.

    Raises:
        ClusterError: There are fewer slots.
    """
    wanted = 1 if workers is None else workers
    slots = available_slots(spark, wanted=wanted, wait_seconds=wait_seconds)
    if slots >= wanted and (workers is not None or slots < sys.maxsize):
        return slots if workers is None else workers
    if workers is None:
        message = "workers: expected a number, since dynamic allocation sets no bound, received None"
        raise OptionError(message, hint="pass workers=..., or set spark.dynamicAllocation.maxExecutors")
    master = "the server" if is_connect(spark) else str(spark.sparkContext.master)
    if _is_local(master):
        remedy = f"start the session with master local[{workers}]"
    else:
        remedy = "give the application more executors or cores (--num-executors, --executor-cores, --total-executor-cores)"
        remedy += ", or lower spark.task.cpus"
    fewer = f"train with workers={slots}, or " if slots else ""
    message = (
        f"workers: expected at most {slots}, the tasks that {master} can run at once, received {workers}"
    )
    raise ClusterError(message, hint=fewer + remedy)


def _is_local(master: str | None) -> bool:
    """Whether driver and tasks share one JVM; ``local-cluster[...]`` is a cluster."""
    return master is not None and (master == "local" or master.startswith("local["))


def _is_dynamic(conf: Mapping[str, str]) -> bool:
    return conf.get("spark.dynamicAllocation.enabled", "false").lower() == "true"


def _dynamic_slots(conf: Mapping[str, str]) -> int:
    """The slots that dynamic allocation may grow to; 0 where it is off."""
    if not _is_dynamic(conf):
        return 0
    executors = conf.get("spark.dynamicAllocation.maxExecutors", "infinity")
    cores = conf.get("spark.executor.cores")
    if cores is None and not conf.get("spark.master", "").startswith(("spark:", "local-cluster")):
        cores = "1"
    # A standalone executor takes all cores of its machine unless told otherwise: no bound is known.
    if cores is None or not executors.isdigit() or int(executors) >= 2**31 - 1:
        return sys.maxsize
    return int(executors) * int(int(cores) // float(conf.get("spark.task.cpus", "1")))


def driver_address(spark: SparkSession) -> tuple[str, str]:
    """Where the driver listens and how executors reach it, as Spark itself does.

    Returns:
        The host to bind to (``spark.driver.bindAddress``) and the host to tell executors
        (``spark.driver.host``); they differ in containers and behind address translation.
    """
    conf = dict(spark.sparkContext.getConf().getAll())
    advertised = conf.get("spark.driver.host", "127.0.0.1")
    bound = conf.get("spark.driver.bindAddress", advertised)
    return bound.strip("[]"), advertised.strip("[]")  # Spark writes IPv6 as [::1], sockets want ::1


def find_java() -> str | None:
    """The `java` that a new Spark session would start: that of JAVA_HOME if it is set, else of PATH; or None."""
    home = os.environ.get("JAVA_HOME")
    if home:
        return shutil.which(str(Path(home) / "bin" / "java"))
    return shutil.which("java")


def require_java() -> str:
    """Checks, before a session is started, that there is a Java that this PySpark can run on.

    Returns:
        The path of its `java`.

    Raises:
        ClusterError: There is none, it does not run, or it is too old.
    """
    needed = 17 if int(pyspark.__version__.split(".")[0]) >= 4 else 8
    java, home = find_java(), os.environ.get("JAVA_HOME")
    if java is None:
        received = (
            f"none: no bin/java in JAVA_HOME ({home})" if home else "none: no java on PATH, no JAVA_HOME"
        )
    else:
        version, output = _java_version(java)
        if version is not None and version >= needed:
            return java
        received = f"{version if version is not None else output[:500]!r} from {java} -version"
    message = (
        f"Java: expected version {needed} or later for PySpark {pyspark.__version__}, received {received}"
    )
    raise ClusterError(message, hint=_JAVA_HINT)


def _java_version(java: str) -> tuple[int | None, str]:
    """The major version that `java` says it is, and what it printed."""
    try:
        done = subprocess.run(  # noqa: S603
            [java, "-version"], capture_output=True, text=True, timeout=_JAVA_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    output = (done.stderr + done.stdout).strip()
    found = re.search(r'version "(?:1\.)?(\d+)', output)
    return (int(found.group(1)) if found and done.returncode == 0 else None), output
