"""A real Spark standalone cluster on this machine, for tests and benchmarks that kill parts of it.

::

    this process --- pipe ---> guard ---> Master (JVM)
                 --- pipe ---> guard ---> Worker (JVM) ---> executor (JVM) ---> pyspark.daemon ---> Python workers
                                          ...

A guard is a small process that kills its daemon when the pipe closes: nothing outlives this process, also when it is
killed itself. Needs an installed PySpark, Java and psutil.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import psutil

from fatwood.errors import ClusterError, OptionError
from fatwood.testing.network import Network, on_host

__all__ = ["StandaloneCluster", "executor_of", "python_workers", "standalone_cluster"]

_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.05
_HOST = "127.0.0.1"
_MASTER = "org.apache.spark.deploy.master.Master"
_WORKER = "org.apache.spark.deploy.worker.Worker"
_EXECUTOR = "CoarseGrainedExecutorBackend"
_GUARD = """
import subprocess, sys, threading
daemon = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def watch():
    sys.stdin.buffer.read()
    daemon.kill()
threading.Thread(target=watch, daemon=True).start()
sys.exit(daemon.wait())
"""
_SPARK_CLASS = 'exec "$SPARK_HOME/bin/spark-class" "$@"'
_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto"
"""Only the quick compiler and the smallest collector: these JVMs live for a minute."""


@dataclass(kw_only=True)
class StandaloneCluster:
    """A running cluster, from :func:`standalone_cluster`."""

    folder: Path
    """Logs of the daemons (``master.log``, ``worker-0.log``, ...), and what Workers and executors write."""
    cores: int
    """Of each Worker."""
    memory: str
    """Of each Worker, as Spark writes it: the executors on it share it."""
    network: Network | None = None
    """Whose hosts the daemons run on: the Master on the driver's; None for loopback."""
    setups: Sequence[str] = ()
    """What :func:`fatwood.testing.network.on_host` runs before each Worker, by its number."""
    master: str = ""
    """The URL, as for ``SparkSession.builder.master``."""
    _guards: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_worker(self) -> str:
        """Start one more Worker and return its name once the Master knows it.

        Raises:
            ClusterError: It did not come up.
        """
        name = f"worker-{len(self._guards) - 1}"
        self._begin_worker(name)
        self._await_worker(name)
        return name

    def pid(self, name: str) -> int:
        """The process of a daemon: ``master``, ``worker-0``, ...

        Raises:
            KeyError: There is none of that name, or it has ended.
        """
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._guards[name].pid).children():
                return int(child.pid)
        raise KeyError(name)

    def executors(self) -> dict[str, int]:
        """The process of each executor JVM that runs, by application and number, such as ``app-20260101-0000/0``."""
        found = {}
        for process in self._family():
            with suppress(psutil.NoSuchProcess):
                line = process.cmdline()
                if any(part.endswith(_EXECUTOR) for part in line):
                    options = dict(pairwise(line))
                    found[f"{options['--app-id']}/{options['--executor-id']}"] = int(process.pid)
        return found

    def close(self) -> None:
        """Kill what is left of the cluster, wait for its end, and remove the folder; idempotent.

        Raises:
            TimeoutError: A process does not die.
        """
        for guard in self._guards.values():
            with suppress(psutil.NoSuchProcess):
                for daemon in psutil.Process(guard.pid).children():
                    daemon.suspend()  # so that it starts nothing more
        family = self._family() + self._strays()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for guard in self._guards.values():
            if guard.stdin is not None:
                guard.stdin.close()
        for guard in self._guards.values():
            guard.wait(_STOP_SECONDS)
        self._guards.clear()
        _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
        if alive:
            text = f"processes of the Spark cluster did not die within {_STOP_SECONDS:.0f} s: {alive}"
            raise TimeoutError(text)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _family(self) -> list[psutil.Process]:
        found = []
        for guard in self._guards.values():
            with suppress(psutil.NoSuchProcess):
                found += psutil.Process(guard.pid).children(recursive=True)
        return found

    def _strays(self) -> list[psutil.Process]:
        """What killed executors left behind: their folder is where they were started."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if self.folder in Path(process.cwd()).parents:
                    found.append(process)
        return found

    def _begin_master(self) -> None:
        self._begin("master", [_MASTER], {})
        self.master = self._await("master", r"Starting Spark master at (spark://\S+)")
        self._await("master", r"elected leader")

    def _begin_worker(self, name: str) -> None:
        command = [_WORKER, "--cores", str(self.cores), "--memory", self.memory, self.master]
        folders = {
            "SPARK_WORKER_DIR": self.folder / name / "work",
            "SPARK_LOCAL_DIRS": self.folder / name / "local",
        }
        self._begin(name, command, {key: str(path) for key, path in folders.items()})

    def _await_worker(self, name: str) -> None:
        self._await(name, r"Successfully registered with master")

    def _begin(self, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        home = _spark_home()
        host, namespace = self._place(name)
        kind, *arguments = command
        started = [*on_host(None, self._setup(name)), "sh", "-c", _SPARK_CLASS, "sh"]
        daemon = [*started, kind, "--host", host, "--port", "0", "--webui-port", "0"]
        with self.folder.joinpath(f"{name}.log").open("wb") as log:
            self._guards[name] = subprocess.Popen(  # noqa: S603
                [*on_host(namespace), sys.executable, "-c", _GUARD, *daemon, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(home, host) | dict(environment),
            )

    def _place(self, name: str) -> tuple[str, str | None]:
        """A daemon's address and network namespace."""
        if self.network is None:
            return _HOST, None
        if name == "master":
            return self.network.driver_host, self.network.driver
        number = _number(name) % len(self.network.workers)
        return self.network.worker_hosts[number], self.network.workers[number]

    def _setup(self, name: str) -> str:
        known = name != "master" and _number(name) < len(self.setups)
        return self.setups[_number(name)] if known else ""

    def _await(self, name: str, pattern: str) -> str:
        """What the daemon's log says where it matches; of the groups, the first."""
        log, deadline = self.folder / f"{name}.log", time.monotonic() + _START_SECONDS
        while True:
            text = log.read_text(errors="replace")
            found = re.search(pattern, text)
            if found is not None:
                return found.group(found.lastindex or 0)
            ended = self._guards[name].poll() is not None
            if ended or time.monotonic() >= deadline:
                how = "ended" if ended else f"did not start within {_START_SECONDS:.0f} s"
                message = f"the {name} of the Spark cluster on {self._place(name)[0]} {how}, its log:\n{text[-4000:]}"
                raise ClusterError(message, hint="it needs a Java that this PySpark can run on, and memory")
            time.sleep(_POLL_SECONDS)


@contextmanager
def standalone_cluster(
    workers: int = 4,
    *,
    cores: int = 1,
    memory: str = "1g",
    network: Network | None = None,
    setups: Sequence[str] = (),
    parent: Path | None = None,
) -> Iterator[StandaloneCluster]:
    """A standalone cluster on loopback, or on the hosts of a network: a Master and `workers` Workers; on exit it is gone with all its executors.

    Executors die with the cluster, so stop the session first. They should run the Python of this process: give the
    session ``spark.pyspark.python=sys.executable`` where that is not the ``python3`` of PATH, and
    ``spark.driver.host=127.0.0.1``.

    Args:
        workers: Number of Workers. On loopback all have the same host, so that Spark's scheduler sees no locality.
        cores: Slots of each.
        memory: Of each. An executor takes ``spark.executor.memory`` (1g) of it.
        network: From :func:`fatwood.testing.network.host_network`: Workers take its worker hosts in turns. The driver
            has to run inside ``network.driver``, with ``spark.driver.host`` and ``spark.driver.bindAddress`` its address.
        setups: Of each Worker, what its host runs first; see :func:`fatwood.testing.network.on_host`. It may also set
            SPARK_HOME.
        parent: Where its folder is made; None for that of temporary files.

    Raises:
        OptionError: `workers` or `cores` is less than 1.
        ClusterError: PySpark is not installed, or a daemon did not come up.
    """
    if workers < 1 or cores < 1:
        text = f"a Spark cluster: expected at least 1 worker and 1 core, received {workers} and {cores}"
        raise OptionError(text)
    folder = Path(tempfile.mkdtemp(prefix="fatwood-cluster-", dir=parent))
    cluster = StandaloneCluster(folder=folder, cores=cores, memory=memory, network=network, setups=setups)
    try:
        cluster._begin_master()
        names = [f"worker-{number}" for number in range(workers)]
        for name in names:
            cluster._begin_worker(name)
        for name in names:
            cluster._await_worker(name)
        yield cluster
    finally:
        cluster.close()


def python_workers(pid: int) -> list[int]:
    """The Python worker processes of an executor's JVM, or of a local session's, oldest first.

    Args:
        pid: Of the JVM; one that has ended has none.
    """
    found = []
    with suppress(psutil.NoSuchProcess):
        for daemon in psutil.Process(pid).children():
            with suppress(psutil.NoSuchProcess):
                if any(part.endswith(".daemon") for part in daemon.cmdline()):
                    found += daemon.children()
    return [
        process.pid for process in sorted(found, key=lambda process: (process.create_time(), process.pid))
    ]


def executor_of(pid: int) -> int:
    """The process of the JVM whose Python worker `pid` is.

    Raises:
        psutil.NoSuchProcess: The worker has ended.
    """
    daemon = psutil.Process(psutil.Process(pid).ppid())
    return int(daemon.ppid())


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def _spark_home() -> Path:
    spec = find_spec("pyspark")
    if spec is None or spec.origin is None:
        message = "a Spark cluster: PySpark is not installed"
        raise ClusterError(message, hint='pip install "fatwood[spark]"')
    return Path(os.environ.get("SPARK_HOME") or Path(spec.origin).parent)


def _environment(home: Path, host: str) -> dict[str, str]:
    """The daemons' own, without what this process's environment says of other clusters."""
    others = ("SPARK_", "PYSPARK_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | {
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": host,
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": _JVM,
        "SPARK_LAUNCHER_OPTS": _JVM,
        "PYSPARK_PYTHON": sys.executable,
    }
