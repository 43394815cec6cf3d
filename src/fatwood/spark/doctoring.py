"""What the examination of a cluster asks of Spark: the facts of a session, and a job that needs no PySpark on the executors.

The job runs a command beside each executor's JVM, as ``RDD.pipe`` of Spark's Java does, and not a Python worker of Spark's: so
it comes back with an answer also where that would not start (another Python, none, no Arrow).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import pyspark
from pyspark.sql import SparkSession

from fatwood.errors import ClusterError
from fatwood.spark.action import BackgroundAction
from fatwood.spark.caching import harm_of, level_name, level_of
from fatwood.spark.connect import is_connect, require_classic
from fatwood.spark.failures import failure_of_spark
from fatwood.spark.session import available_slots, driver_address, require_java

__all__ = ["pipe_job", "python_of_executors", "session_facts", "settled_slots", "start_session"]

_MAX_TASKS = 256
_QUIET = {
    "spark.log.level": "ERROR",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
_STABLE_SECONDS = 3.0
_PREFIXES = (
    "spark.dynamicAllocation.",
    "spark.executor.",
    "spark.driver.",
    "spark.memory.",
    "spark.python.",
    "spark.pyspark.",
    "spark.speculation",
    "spark.task.",
    "spark.archives",
    "spark.local.dir",
    "spark.locality.wait",
    "spark.kubernetes.memoryOverheadFactor",
    "spark.yarn.dist.archives",
)
"""Settings that are facts; others may hold secrets."""
_SECRET = ("password", "secret", "token", "javaoptions", "credential")


def start_session(master: str | None, settings: dict[str, str]) -> SparkSession:
    """A classic session for an examination.

    Args:
        master: As for ``SparkSession.builder.master``; None for what the configuration says.
        settings: More of them, by name.

    Raises:
        ClusterError: There is no Java, or the session does not start.
    """
    require_java()
    python = settings.get("spark.pyspark.python")
    if python is not None:
        os.environ["PYSPARK_PYTHON"] = (
            python  # as spark-submit does; a session that is started here only sees this
        )
    elif (master or "").startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # otherwise workers run the python3 of PATH
    options: dict[str, bool | float | int | str | None] = {**_QUIET, **settings}
    builder = SparkSession.builder.appName("fatwood doctor").config(map=options)
    if master is not None:
        builder = builder.master(master)
    try:
        return builder.getOrCreate()
    except Exception as error:
        message = f"the session does not start: {str(error).strip().splitlines()[0]}"
        raise ClusterError(
            message, hint="check --master, and that this machine reaches it; the log of Spark says more"
        ) from error


def settled_slots(spark: SparkSession, wait_seconds: float = 60.0) -> int:
    """How many tasks can run at once, when for some seconds no more executors have come; at most 256, 0 if none has come.

    Args:
        spark: A classic session.
        wait_seconds: How long to wait at most.
    """
    context = spark.sparkContext
    profile = context._jsc.sc().resourceProfileManager().defaultResourceProfile()
    if str(context.master).startswith("local") and not str(context.master).startswith("local-cluster"):
        return min(available_slots(spark), _MAX_TASKS)
    grows = context.getConf().get("spark.dynamicAllocation.enabled") == "true"
    deadline, last, since = time.monotonic() + wait_seconds, 0, time.monotonic()
    while time.monotonic() < deadline:
        now = int(context._jsc.sc().maxNumConcurrentTasks(profile))
        if now != last:
            last, since = now, time.monotonic()
        if (last or grows) and time.monotonic() - since >= _STABLE_SECONDS:
            break
        time.sleep(0.2)
    if grows and not last:  # executors come when there is a job that wants them
        last = min(available_slots(spark), int(context.defaultParallelism))
    return min(last, _MAX_TASKS)


def session_facts(spark: SparkSession) -> dict[str, Any]:
    """What the driver knows of the session, as JSON values; runs no job.

    Args:
        spark: Of either kind; of one of Connect little is known.
    """
    if is_connect(spark):
        return {
            "kind": "connect", "master": None, "pyspark": pyspark.__version__, "spark": spark.version,
            "java": None, "conf": {}, "driver_host": None, "driver_bind": None, "caches": [],
        }  # fmt: skip
    context = spark.sparkContext
    java: Any = context._jvm
    bound, advertised = driver_address(spark)
    return {
        "kind": "classic",
        "master": str(context.master),
        "pyspark": pyspark.__version__,
        "spark": spark.version,
        "java": str(java.java.lang.System.getProperty("java.version")),
        "conf": _known(dict(context.getConf().getAll())),
        "driver_host": advertised,
        "driver_bind": bound,
        "caches": _caches(spark),
    }


def _known(conf: dict[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in sorted(conf.items())
        if name.startswith(_PREFIXES) and not any(word in name.lower() for word in _SECRET)
    }


def _caches(spark: SparkSession) -> list[dict[str, str]]:
    """What is cached at a level that does harm."""
    java: Any = spark.sparkContext._jsc
    off_heap = spark.sparkContext.getConf().get("spark.memory.offHeap.enabled") == "true"
    found = []
    for rdd in java.getPersistentRDDs().values():
        level = level_of(rdd.getStorageLevel())
        harm = harm_of(level, off_heap=off_heap)
        if harm:
            found.append({"name": str(rdd.name())[:100], "level": level_name(level), "harm": harm})
    return found


def python_of_executors(spark: SparkSession) -> tuple[str, list[str]]:
    """The Python that Spark starts on executors, and the names of files that were given to it as code."""
    context: Any = spark.sparkContext
    return str(context.pythonExec), [str(name) for name in context._python_includes]


def pipe_job(
    spark: SparkSession, command: Sequence[str], lines: Sequence[str], *, timeout_seconds: float
) -> list[str]:
    """Run a command once for each line, in a task of its own, and return the lines that all have written.

    Args:
        spark: A classic session.
        command: Started without a shell in the executor's folder; must end with code 0.
        lines: Each is what one command reads.
        timeout_seconds: After this the job is cancelled.

    Raises:
        ClusterError: The job failed or did not end in time.
    """
    context: Any = require_classic(spark, "doctor").sparkContext
    found: list[str] = []

    def act() -> None:
        rows = context._jsc.parallelize(list(lines), len(lines)).pipe(list(command), {})
        found.extend(rows.collect())

    action = BackgroundAction(context, "fatwood.doctor", act)
    action.start()
    try:
        action.join(timeout_seconds)
        finished = action.finished
    finally:
        action.end(0.0)
    if not finished:
        message = f"the examination's job: expected its end within {timeout_seconds:.0f} s, received none"
        raise ClusterError(message, hint="are there executors, and are they free? see Spark's user interface")
    if action.failed is not None:
        raise failure_of_spark(action.failed) from action.failed
    return found
