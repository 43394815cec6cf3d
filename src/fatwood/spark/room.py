"""Whether the memory that a cluster gives a Python worker can hold its training: asked before the first step.

What is known on the driver::

    spark.executor.pyspark.memory / spark.executor.cores      of each Python worker
    YARN, Kubernetes: heap + overhead [+ off-heap + pyspark]  of a container, for its JVM and all its Python workers

and on an executor the limit of the control group that the worker is in. Each is compared with the least that the training takes
(:mod:`fatwood.train.memory`); less is an error with the figures. A container that suffices only while the heap stays empty is
a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fatwood.errors import OptionError
from fatwood.train import TrainingJob
from fatwood.train.memory import PYTORCH_BYTES, least_worker_bytes

__all__ = ["cgroup_limit", "require_cgroup", "require_settings"]

_LOG = logging.getLogger("fatwood.memory")
_UNITS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_MIB = 1 << 20
_LEAST_OVERHEAD_MIB = 384
_YARN_FACTOR, _K8S_FACTOR = 0.1, 0.4
_JVM_BYTES = 256 << 20
"""The least that an executor's JVM takes, whatever its heap may grow to."""
_PLAN_HINT = "`fatwood plan` measures what it needs"


@dataclass(frozen=True)
class _Container:
    """An executor's memory, in bytes."""

    heap: int
    overhead: int
    pyspark: int

    @property
    def total(self) -> int:
        return self.heap + self.overhead + self.pyspark


def require_settings(conf: Mapping[str, str], job: TrainingJob, workers: int) -> None:
    """Compare the settings of a session with the least that a worker of the job takes on the CPU.

    Args:
        conf: Spark's settings.
        job: What is trained.
        workers: That train together.

    Raises:
        OptionError: There is less.
    """
    if "spark.executor.pyspark.memory" not in conf and not _contained(conf):
        return
    least = least_worker_bytes(job, workers)
    slots = max(1, _number(conf, "spark.executor.cores", 1) // _number(conf, "spark.task.cpus", 1))
    each = _bytes(conf, "spark.executor.pyspark.memory", 0, _MIB) // _number(conf, "spark.executor.cores", 1)
    if 0 < each < least:
        text = (
            f"memory: expected at least {_mib(least)} MiB for a Python worker, received {_mib(each)} MiB "
            "(spark.executor.pyspark.memory / spark.executor.cores)"
        )
        hint = "unset it: it bounds the address space, of which PyTorch takes more than it uses; the container has its own limit"
        raise OptionError(text, hint=hint)
    if not _contained(conf):
        return
    slots = min(slots, workers)
    container = _container(conf)
    python = PYTORCH_BYTES + slots * (least - PYTORCH_BYTES)  # a daemon may have PyTorch for all of them
    parts = (
        f"heap {_mib(container.heap)}, overhead {_mib(container.overhead)}, pyspark {_mib(container.pyspark)}"
    )
    if container.total < _JVM_BYTES + python:
        text = (
            f"memory: expected at least {_mib(_JVM_BYTES + python)} MiB for an executor with {slots} workers, "
            f"{_mib(python)} of them for Python, received {_mib(container.total)} MiB ({parts})"
        )
        raise OptionError(text, hint=f"raise spark.executor.memoryOverhead; {_PLAN_HINT}")
    if container.total - container.heap < python:
        _LOG.warning(
            "an executor has %d MiB beside its heap (%s), and %d Python workers take at least %d MiB: it may be killed when its heap "
            "fills up; raise spark.executor.memoryOverhead, %s",
            _mib(container.total - container.heap),
            parts,
            slots,
            _mib(python),
            _PLAN_HINT,
        )


def require_cgroup(job: TrainingJob, workers: int, limit: int | None) -> None:
    """Compare a limit with the least that a worker of the job takes on the CPU.

    Args:
        job: What is trained.
        workers: That train together.
        limit: Bytes, from :func:`cgroup_limit`; None for no limit.

    Raises:
        OptionError: There is less.
    """
    if limit is None:
        return
    least = least_worker_bytes(job, workers)
    if limit < least:
        text = f"memory: expected at least {_mib(least)} MiB for a Python worker, received {_mib(limit)} MiB, the limit of its control group"
        raise OptionError(text, hint=f"give the executor's container more memory; {_PLAN_HINT}")


def cgroup_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The least limit of memory of this process's control group and those above it, in bytes; None without one.

    Args:
        root: Where control groups are mounted, of version 2, or of version 1 with a folder for memory.
        own: The file that says which this process is in.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        inner = Path(path.lstrip("/"))
        for folder in (
            inner,
            *inner.parents,
        ):  # in a container the path may be that of the host: then only the top is there
            try:
                text = (base / folder / name).read_text(encoding="ascii").strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < 1 << 60:
                limits.append(int(text))
    return min(limits, default=None)


def _contained(conf: Mapping[str, str]) -> bool:
    master = conf.get("spark.master", "")
    return master == "yarn" or master.startswith("k8s")


def _container(conf: Mapping[str, str]) -> _Container:
    """As Spark asks YARN or Kubernetes for it."""
    heap = _bytes(conf, "spark.executor.memory", 1 << 30, _MIB)
    factor = _factor(conf)
    least = _bytes(conf, "spark.executor.minMemoryOverhead", _LEAST_OVERHEAD_MIB << 20, _MIB)
    overhead = _bytes(conf, "spark.executor.memoryOverhead", 0, _MIB) or max(least, int(heap * factor))
    if conf.get("spark.memory.offHeap.enabled", "false").lower() == "true":
        overhead += _bytes(conf, "spark.memory.offHeap.size", 0, 1)
    return _Container(heap, overhead, _bytes(conf, "spark.executor.pyspark.memory", 0, _MIB))


def _factor(conf: Mapping[str, str]) -> float:
    own = conf.get("spark.executor.memoryOverheadFactor")
    of_k8s = conf.get("spark.kubernetes.memoryOverheadFactor")
    if conf.get("spark.master", "").startswith("k8s"):
        return float(own or of_k8s or _K8S_FACTOR)
    return float(own or _YARN_FACTOR)


def _bytes(conf: Mapping[str, str], key: str, default: int, unit: int) -> int:
    """A size as Spark writes it; without a letter it is of the setting's own unit. What cannot be read is Spark's own error."""
    found = re.fullmatch(r"(\d+)([bkmgtp]?)b?", conf.get(key, "").strip().lower())
    if found is None:
        return default
    return int(found[1]) * (unit if not found[2] else 1 << _UNITS[found[2]])


def _number(conf: Mapping[str, str], key: str, default: int) -> int:
    text = conf.get(key, "")
    return int(text) if text.isdigit() and int(text) else default


def _mib(octets: int) -> int:
    return octets >> 20
