"""Spark's settings for a submission, each with its reason.

``spark.executor.pyspark.memory`` is left alone: it bounds a worker's address space, of which PyTorch and CUDA take many times
what they use. The container's own limit is the sum of heap and overhead. No serializer is set, since neither rows nor parameters
travel as Java or Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fatwood.submission.cluster import Kind
from fatwood.submission.options import Submission

__all__ = ["Setting", "settings_of"]

_ENVIRONMENT = "environment"
_SPARK_IMAGE_SCRIPT = "/opt/spark/examples/src/main/scripts/getGpusResources.sh"
_Pairs = Iterator[tuple[str, object, str]]


@dataclass(frozen=True)
class Setting:
    """One setting of Spark."""

    key: str
    """As ``spark.executor.cores``."""
    value: str
    """As Spark reads it."""
    why: str
    """What it is for, in one line."""


def settings_of(submission: Submission) -> tuple[Setting, ...]:
    """All settings, in the order they are printed; those given with ``--conf`` replace computed ones."""
    found: dict[str, Setting] = {}
    topics = (_size, _memory, _python, _scheduling, _gpus, _manager, _environment)
    for topic in topics:
        for key, value, why in topic(submission):
            found[key] = Setting(key, str(value), why)
    for key, value in submission.conf.items():
        computed = found.get(key)
        note = "given with --conf"
        if computed is not None:
            note += f"; replaces {computed.value} ({computed.why})"
        found[key] = Setting(key, value, note)
    return tuple(found.values())


def _size(s: Submission) -> _Pairs:
    yield "spark.task.cpus", s.cores_per_worker, "a worker is a task; its cores"
    if s.kind is not Kind.LOCAL:
        cores = s.per_executor * s.cores_per_worker
        yield (
            "spark.executor.cores",
            cores,
            f"{s.per_executor} x {s.cores_per_worker}: the workers of an executor",
        )
        if s.kind is Kind.STANDALONE:
            yield (
                "spark.cores.max",
                s.workers * s.cores_per_worker,
                "all workers' cores: so many executors are started",
            )
        else:
            yield "spark.executor.instances", s.executors, f"{s.workers} workers, {s.per_executor} in each"
        yield (
            "spark.dynamicAllocation.enabled",
            "false",
            "the number of workers is known; clusters often have it on",
        )
        if _dynamic(s):
            yield "spark.dynamicAllocation.maxExecutors", s.executors, f"enough for {s.workers} workers"
            yield (
                "spark.dynamicAllocation.shuffleTracking.enabled",
                "true",
                "executors that hold the workers' rows are kept",
            )
    yield (
        "spark.executorEnv.OMP_NUM_THREADS",
        s.cores_per_worker,
        "threads of a worker: its cores, not the machine's",
    )


def _memory(s: Submission) -> _Pairs:
    memory, driver = s.executor_memory, s.driver_memory
    each = f"{s.per_executor} x {s.worker_mib} MiB for Python workers"
    if s.kind is Kind.LOCAL:
        yield (
            "spark.driver.memory",
            f"{driver.heap + memory.heap}m",
            f"heap of the one JVM; beside it {each}, which nothing limits",
        )
        return
    yield (
        "spark.executor.memory",
        f"{memory.heap}m",
        "the JVM's heap: rows on their way; PyTorch is outside of it",
    )
    if s.kind is not Kind.STANDALONE:
        parts = f"{each}, {memory.jvm} for the JVM" + (f", {memory.spare} to spare" if memory.spare else "")
        yield "spark.executor.memoryOverhead", f"{memory.overhead}m", parts
    what = f"{s.workers} workers' states and checkpoints pass through the driver, in pieces, to files"
    yield "spark.driver.memory", f"{driver.heap}m", f"the JVM's heap: the network as a broadcast; {what}"
    if s.kind.driver_in_cluster:
        parts = f"{driver.python} MiB for the script's Python, {driver.jvm} for the JVM"
        yield "spark.driver.memoryOverhead", f"{driver.overhead}m", parts


def _python(s: Submission) -> _Pairs:
    if s.archive is not None:
        # With spark.archives YARN would carry it, and the driver would send it to each executor once more.
        key = "spark.yarn.dist.archives" if s.kind.yarn else "spark.archives"
        where = f"unpacked as ./{_ENVIRONMENT} where each executor runs"
        yield key, f"{s.archive}#{_ENVIRONMENT}", where
    yield "spark.pyspark.python", executor_python(s), "of the Python workers" + _also_driver(s)
    if not s.kind.driver_in_cluster:
        yield "spark.pyspark.driver.python", s.driver_python, "of the script, on this machine"
    yield (
        "spark.python.daemon.module",
        "fatwood.spark.daemon",
        "imports PyTorch once for all workers of an executor",
    )
    yield "spark.python.worker.reuse", "true", "a worker keeps what it has imported"
    yield (
        "spark.sql.execution.arrow.pyspark.enabled",
        "true",
        "toPandas and createDataFrame by columns, not by rows",
    )
    yield (
        "spark.sql.execution.arrow.maxRecordsPerBatch",
        1000,
        "rows may be large; Spark 3 bounds a batch by rows alone",
    )


def _scheduling(s: Submission) -> _Pairs:
    yield "spark.locality.wait", "0s", "all workers start together; waiting for a better place delays all"
    yield "spark.speculation", "false", "a second copy of a worker would only wait"
    if s.kind is Kind.LOCAL:
        return
    if not _dynamic(
        s
    ):  # else no executor comes before there is work: a session that waits for all waits in vain
        yield (
            "spark.scheduler.minRegisteredResourcesRatio",
            "1.0",
            "the session is there when all executors are",
        )
        yield (
            "spark.scheduler.maxRegisteredResourcesWaitingTime",
            "300s",
            "fetching and unpacking an archive takes minutes",
        )
    yield "spark.network.timeout", "60s", "an executor that fell silent is replaced after a minute, not two"
    yield "spark.network.timeoutInterval", "15s", "how often that is looked at; at most the timeout"


def _gpus(s: Submission) -> _Pairs:
    if s.gpus_per_worker is None:
        return
    yield "spark.executor.resource.gpu.amount", s.gpus_per_executor, f"for {s.per_executor} workers"
    yield "spark.task.resource.gpu.amount", f"{s.gpus_per_worker:g}", "of each worker"
    script = s.gpu_discovery_script
    if s.kind.yarn and script is None:
        yield (
            "spark.yarn.dist.files",
            own_discovery_script(),
            "sent to each executor, since YARN does not tell which GPUs it gave",
        )
        script = f"./{own_discovery_script().name}"
    if s.kind.k8s:
        yield (
            "spark.executor.resource.gpu.vendor",
            "nvidia.com",
            "Kubernetes calls the resource nvidia.com/gpu",
        )
        script = script or _SPARK_IMAGE_SCRIPT
    if script is not None:
        yield "spark.executor.resource.gpu.discoveryScript", script, "prints the executor's GPUs"


def _manager(s: Submission) -> _Pairs:
    if s.image is not None:
        yield "spark.kubernetes.container.image", s.image, "of driver and executors"
    if s.namespace is not None:
        yield "spark.kubernetes.namespace", s.namespace, "where the pods are made"
    if s.node_label is not None and s.kind.yarn:
        yield "spark.yarn.executor.nodeLabelExpression", s.node_label, "where executors may run"
    elif s.node_label is not None:
        name, _, value = s.node_label.partition("=")
        yield f"spark.kubernetes.executor.node.selector.{name}", value, "where executors may run"


def _environment(s: Submission) -> _Pairs:
    prefix = {Kind.YARN_CLUSTER: "spark.yarn.appMasterEnv", Kind.K8S_CLUSTER: "spark.kubernetes.driverEnv"}
    for name, value in s.environment.items():
        yield f"spark.executorEnv.{name}", value, "given with --env, for executors"
        if s.kind in prefix:
            yield f"{prefix[s.kind]}.{name}", value, "given with --env, for the driver"


def _dynamic(s: Submission) -> bool:
    return s.conf.get("spark.dynamicAllocation.enabled", "").lower() == "true"


def executor_python(s: Submission) -> str:
    """The Python of the executors: the archive's, the one that was given, this one, or the image's."""
    if s.archive is not None:
        return f"./{_ENVIRONMENT}/bin/python"
    return s.python or ("python3" if s.kind.driver_in_cluster or s.kind.k8s else s.driver_python)


def own_discovery_script() -> Path:
    """The script that prints an executor's GPUs."""
    return Path(__file__).with_name("gpus.sh")


def _also_driver(s: Submission) -> str:
    where = "in the image" if s.kind.k8s else "on all machines"
    needed = "" if s.archive or s.kind is Kind.LOCAL else f"; it has to be {where}, with fatwood"
    return (" and of the driver" if s.kind.driver_in_cluster else "") + needed
