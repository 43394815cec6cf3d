"""What is to be submitted, checked before anything runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from fatwood.errors import OptionError
from fatwood.submission.cluster import Kind, cluster_of
from fatwood.submission.memory import ASSUMED_PARAMETERS, DriverMemory, ExecutorMemory, worker_mib

__all__ = ["Submission", "is_local_file", "pairs"]

_CLUSTERS = frozenset(Kind) - {Kind.LOCAL}
_CONTAINERS = _CLUSTERS - {Kind.STANDALONE}
_K8S = frozenset({Kind.K8S_CLIENT, Kind.K8S_CLUSTER})
_WORKS_ON: Mapping[str, tuple[str, frozenset[Kind]]] = {
    "archive": ("--archive", _CLUSTERS),
    "workers_per_executor": ("--workers-per-executor", _CLUSTERS),
    "memory_per_worker_mib": ("--memory-per-worker", _CLUSTERS),
    "executor_memory_total_mib": ("--executor-memory-total", _CLUSTERS),
    "gpus_per_worker": ("--gpus-per-worker", _CLUSTERS),
    "gpu_discovery_script": ("--gpu-discovery-script", _CONTAINERS),
    "node_label": ("--node-label", _CONTAINERS),
    "image": ("--image", _K8S),
    "namespace": ("--namespace", _K8S),
}
_WHY_NOT = {
    "archive": "local workers run with this Python: install there what the script needs",
    "gpus_per_worker": "Spark's local mode never starts a task that asks for a GPU",
    "gpu_discovery_script": "a standalone Worker tells its GPUs itself, with spark.worker.resource.gpu.discoveryScript",
}
_UPLOAD = "spark.kubernetes.file.upload.path"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A script, and how it is to run on a cluster. Errors are raised when it is made."""

    script: str
    """Path or URI of the Python script."""
    arguments: tuple[str, ...] = ()
    """Of the script."""
    master: str = "local"
    """As :func:`fatwood.submission.cluster_of` reads it."""
    deploy_mode: str | None = None
    """``client``, ``cluster``, or None for the usual one."""
    workers: int = 2
    """Tasks that train together."""
    cores_per_worker: int = 1
    """Cores, and threads, of each."""
    workers_per_executor: int | None = None
    """Of which `workers` is a multiple; by default 1."""
    parameters: int | None = None
    """Of the network: memory follows it. By default 20 million are assumed."""
    memory_per_worker_mib: int | None = None
    """Of a Python worker; by default from `parameters`."""
    executor_memory_total_mib: int | None = None
    """What one executor may take in all; by default what it needs."""
    archive: str | None = None
    """Path or URI of an environment, a ``.tar.gz`` with ``bin/python`` in it."""
    python: str | None = None
    """Of the executors where there is no archive, and of a driver in the cluster."""
    driver_python: str = "python3"
    """Of a driver outside the cluster."""
    gpus_per_worker: float | None = None
    """Whole GPUs, or a part of one of at most 0.5."""
    gpu_discovery_script: str | None = None
    """Absolute path on the executors' machines or in their image; by default one that is there or is sent."""
    node_label: str | None = None
    """Where executors may run: a node label expression of YARN, ``name=value`` of a Kubernetes node."""
    image: str | None = None
    """Container image, Kubernetes."""
    namespace: str | None = None
    """Kubernetes."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the driver and of executors."""
    conf: Mapping[str, str] = field(default_factory=dict)
    """Settings of Spark that win over the computed ones."""

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, (option, kinds) in _WORKS_ON.items():
            if getattr(self, name) is not None and self.kind not in kinds:
                text = (
                    f"{option}: it has no effect with --master {self.master}, received {getattr(self, name)}"
                )
                raise OptionError(text, hint=_WHY_NOT.get(name, f"leave {option} out"))
        self._check_names()
        self._check_files()
        _ = self.executor_memory  # says what does not fit

    @property
    def kind(self) -> Kind:
        """Of cluster."""
        return cluster_of(self.master, self.deploy_mode)

    @property
    def per_executor(self) -> int:
        """Workers of each executor; all of them in local mode."""
        return self.workers if self.kind is Kind.LOCAL else self.workers_per_executor or 1

    @property
    def executors(self) -> int:
        """Number of executors."""
        return self.workers // self.per_executor

    @property
    def gpus_per_executor(self) -> int:
        """Whole GPUs that an executor must be given."""
        gpus = self.gpus_per_worker or 0.0
        if gpus >= 1 or gpus == 0:
            return int(gpus) * self.per_executor
        return math.ceil(self.per_executor / int(1 / gpus + 1e-9))

    @property
    def worker_mib(self) -> int:
        """Memory of a Python worker."""
        return self.memory_per_worker_mib or worker_mib(
            self._parameters, cuda=self.gpus_per_worker is not None
        )

    @property
    def executor_memory(self) -> ExecutorMemory:
        """Of one executor."""
        return ExecutorMemory.of(self.per_executor, self.worker_mib, self.executor_memory_total_mib)

    @property
    def driver_memory(self) -> DriverMemory:
        """Of the driver; in local mode without the part of an executor."""
        return DriverMemory.of(self._parameters, self.workers)

    @property
    def _parameters(self) -> int:
        return ASSUMED_PARAMETERS if self.parameters is None else self.parameters

    def require_cluster_files(self, environ: Mapping[str, str]) -> None:
        """Check what the submitting machine must have of the cluster.

        Args:
            environ: Its environment.

        Raises:
            OptionError: It lacks the configuration of YARN.
        """
        if not self.kind.yarn:
            return
        folders = {name: environ[name] for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR") if environ.get(name)}
        if not any(Path(folder).is_dir() for folder in folders.values()):
            text = f"--master yarn: expected HADOOP_CONF_DIR or YARN_CONF_DIR to name a folder, received {folders or 'neither'}"
            raise OptionError(
                text, hint="set one to the folder with the cluster's core-site.xml and yarn-site.xml"
            )

    def _check_numbers(self) -> None:
        counts = {
            "--workers": self.workers,
            "--cores-per-worker": self.cores_per_worker,
            "--workers-per-executor": self.workers_per_executor,
            "--parameters": self.parameters,
        }
        for option, value in counts.items():
            if value is not None and value < 1:
                text = f"{option}: expected at least 1, received {value}"
                raise OptionError(text)
        if self.workers % (self.workers_per_executor or 1):
            text = f"--workers: expected a multiple of --workers-per-executor {self.workers_per_executor}, received {self.workers}"
            raise OptionError(text)
        if (
            self.memory_per_worker_mib is not None
            and self.memory_per_worker_mib < 512
            and self.kind is not Kind.LOCAL
        ):
            text = (
                f"--memory-per-worker: expected at least 512 MiB, received {self.memory_per_worker_mib} MiB"
            )
            raise OptionError(text, hint="PyTorch alone, imported, is 285 MB")
        gpus = self.gpus_per_worker
        if gpus is not None and not (0 < gpus <= 0.5 or (gpus >= 1 and float(gpus).is_integer())):
            text = f"--gpus-per-worker: expected a whole number, or a part of a GPU of at most 0.5, received {gpus:g}"
            raise OptionError(text, hint="so Spark wants it; 0.5 lets two workers share a GPU")
        cores = re.fullmatch(r"local\[(\d+)\]", self.master)
        if cores is not None and int(cores.group(1)) < self.workers * self.cores_per_worker:
            wanted = self.workers * self.cores_per_worker
            text = f"--master: expected at least local[{wanted}] for {self.workers} workers, received {self.master}"
            raise OptionError(text, hint="write --master local, or lower --workers or --cores-per-worker")

    def _check_names(self) -> None:
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                text = f"--env: expected NAME=VALUE with a name of letters, digits and _, received {name!r}"
                raise OptionError(text)
        own = {"spark.master": "--master", "spark.submit.deployMode": "--deploy-mode"}
        for key in self.conf:
            if key in own:
                text = f"--conf: expected no {key}, received {self.conf[key]!r}"
                raise OptionError(text, hint=f"use {own[key]}")
            if not key.startswith("spark."):
                text = f"--conf: expected a setting that begins with spark., received {key!r}"
                raise OptionError(
                    text, hint="Spark ignores others; for one of Hadoop write spark.hadoop.NAME"
                )
        if self.archive is not None and self.python is not None:
            text = f"--python: expected none beside --archive, whose Python is used, received {self.python!r}"
            raise OptionError(text)
        if self.gpu_discovery_script is not None and self.gpus_per_worker is None:
            text = f"--gpu-discovery-script: expected --gpus-per-worker with it, received {self.gpu_discovery_script!r} alone"
            raise OptionError(text)
        if (
            self.node_label is not None
            and self.kind.k8s
            and not re.fullmatch(r"[^=]+=[^=]*", self.node_label)
        ):
            text = f"--node-label: expected name=value, received {self.node_label!r}"
            raise OptionError(text)
        images = [f"spark.kubernetes.{part}container.image" for part in ("", "driver.", "executor.")]
        if self.kind.k8s and self.image is None and not any(name in self.conf for name in images):
            text = "--image: expected a container image for Kubernetes, received none"
            raise OptionError(text, hint="its Python needs torch and fatwood, or give --archive beside it")

    def _check_files(self) -> None:
        for option, name in (("script", self.script), ("--archive", self.archive)):
            if name is None:
                continue
            if is_local_file(name) and not Path(_path(name)).is_file():
                text = f"{option}: expected a file, received {name!r}, which is none"
                raise OptionError(text)
            if self.kind is Kind.K8S_CLUSTER and is_local_file(name) and _UPLOAD not in self.conf:
                text = f"{option}: expected one that the cluster's containers can read, received {name!r}"
                hint = f"pass --conf {_UPLOAD}=URI, to which Spark copies it; or its URI; or local:///PATH of the image"
                raise OptionError(text, hint=hint)
        if not urlsplit(self.script).path.endswith(".py"):
            text = f"script: expected a Python script, *.py, received {self.script!r}"
            raise OptionError(text)
        if self.archive is not None and not re.fullmatch(r"[^,#]+\.(tar\.gz|tgz)", self.archive):
            text = (
                f"--archive: expected a .tar.gz or .tgz file, without ',' and '#', received {self.archive!r}"
            )
            raise OptionError(
                text, hint="Spark loses modes and links of other archives: bin/python would not start"
            )


def is_local_file(name: str) -> bool:
    """Whether a path or URI is of the machine that submits."""
    return urlsplit(name).scheme in ("", "file")


def _path(name: str) -> str:
    return urlsplit(name).path if urlsplit(name).scheme else name


def pairs(option: str, values: Iterable[str]) -> dict[str, str]:
    """What was given as ``NAME=VALUE``, several times; of one name the last counts, as with ``spark-submit``.

    Args:
        option: For the error.
        values: What was given.

    Raises:
        OptionError: One has no ``=``.
    """
    found = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            message = f"{option}: expected NAME=VALUE, received {text!r}"
            raise OptionError(message)
        found[name] = value
    return found
