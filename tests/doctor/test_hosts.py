"""Five hosts on this machine, each with a network, a name, mounts and limits of its own, and sick in its own ways."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fatwood.errors import ClusterError
from fatwood.testing.network import Network, host_network, on_host

sys.path.insert(0, str(Path(__file__).parent))
from sick import REAL, SICK

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(900)]
ROWS = {name: (title, status, hint) for name, _, title, status, _, _, hint in SICK}
MBIT = 40
JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
LATE = "import time\nreal = time.time\ntime.time = lambda: real() + 90.0\n"
NVIDIA_SMI = "#!/bin/sh\necho '| NVIDIA-SMI 580.65   Driver Version: 580.65   CUDA Version: 13.0 |'\n"
SMALL, OTHER, ODD, WALLED, BARE, EDGE = "small", "other", "odd", "walled", "bare", "edge"
FOUND = [
    # name of the table, host, in what was received; the title, the status and the hint are the table's
    ("full temp disk", SMALL, "0 bytes free"),
    ("small shared memory", SMALL, "64 MiB"),
    ("256 open files", SMALL, "700"),
    ("logind kills", SMALL, "KillUserProcesses=yes"),
    ("a slow network", SMALL, "Mbit/s"),
    ("another Python", OTHER, "3."),
    ("fatwood missing", OTHER, "fatwood missing"),
    ("torch missing", OTHER, "torch missing"),
    ("one package more", OTHER, "(driver: "),
    ("read-only local dir", OTHER, "Read-only file system"),
    ("old pyarrow", ODD, "pyarrow 12.0.1"),
    ("broken library", ODD, "file too short"),
    ("CPU build beside a GPU", SMALL, "a build for CPU"),
    ("too many threads", ODD, "MKL_NUM_THREADS=64"),
    ("a clock 90 s ahead", ODD, "90.0 s ahead of the driver"),
    ("storage that one host cannot reach", ODD, "fatwood-doctor-sample-"),
    ("executors kept apart", ODD, "task "),
    ("blocked port of the driver", WALLED, "the driver"),
    ("no Python", BARE, "/nowhere/bin/python"),
    ("speculation", EDGE, "second copy"),
]


@dataclass
class Sick:
    """The cluster, and what the command is told."""

    master: str
    network: Network
    folder: Path

    def doctor(self, *more: str, wait_seconds: int = 180, **settings: str) -> tuple[int, dict[str, Any]]:
        """Exit code and JSON of the command, run on the driver's host."""
        given = {
            "spark.driver.host": self.network.driver_host,
            "spark.driver.bindAddress": self.network.driver_host,
            "spark.driver.port": "7100",
            "spark.blockManager.port": "7200",
            "spark.cores.max": "5",
            "spark.scheduler.minRegisteredResourcesRatio": "1.0",  # all hosts are there
            "spark.scheduler.maxRegisteredResourcesWaitingTime": f"{wait_seconds}s",
            "spark.executor.memory": "512m",
            "spark.driver.extraJavaOptions": JVM,
            "spark.executor.extraJavaOptions": JVM,
            "spark.pyspark.python": str(self.folder / "python"),
        } | {name.replace("__", "."): value for name, value in settings.items()}
        command = [
            *on_host(
                self.network.driver, f"hostname {EDGE}; export SPARK_LOCAL_IP={self.network.driver_host}"
            ),
            sys.executable,
            "-m",
            "fatwood",
            "doctor",
        ]
        command += ["--json", "--master", self.master, *more]
        command += [part for name, value in given.items() for part in ("--conf", f"{name}={value}")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
        assert done.stdout, done.stderr[-3000:]
        return done.returncode, json.loads(done.stdout)


@cache
def other_python() -> Path | None:
    """A Python of this machine that is of another version, and runs."""
    names = [f"python3.{minor}" for minor in range(8, 15) if minor != sys.version_info.minor]
    found = [Path(path) for path in map(shutil.which, names) if path]
    found += [path for name in names for path in Path(sys.base_prefix).parent.glob(f"*/bin/{name}")]
    runs = (path for path in found if not subprocess.run([path, "-V"], capture_output=True).returncode)
    return next(runs, None)


def write(path: Path, text: str, *, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def python(path: Path, program: object) -> Path:
    return write(path, f'#!/bin/sh\nexec {program} "$@"\n', mode=0o755)


def setups(folder: Path) -> list[str]:
    """What makes the hosts what they are."""
    import torch

    for name in ("full", "readonly", "share"):
        folder.joinpath(name).mkdir()
    python(folder / "python", sys.executable)
    python(folder / "other", f"{other_python() or '/usr/bin/python3'} -I")
    python(folder / "absent", "/nowhere/bin/python")
    write(folder / "systemd" / "logind.conf", "[Login]\nKillUserProcesses=yes\n")
    write(folder / "odd" / "sitecustomize.py", LATE)
    metadata = "Metadata-Version: 2.1\nName: pyarrow\nVersion: 12.0.1\n"
    write(folder / "odd" / "pyarrow-12.0.1.dist-info" / "METADATA", metadata)
    write(folder / "bin" / "nvidia-smi", NVIDIA_SMI, mode=0o755)
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    in_memory = "mount -t tmpfs -o"
    return [
        f"hostname {SMALL}; {in_memory} size=64m none /dev/shm; ulimit -n 700; mount --bind {folder}/systemd /etc/systemd; "
        f"{in_memory} size=64k none {folder}/full; export PATH={folder}/bin:$PATH; head -c 65536 /dev/zero > {folder}/full/x; export TMPDIR={folder}/full",
        f"hostname {OTHER}; mount --bind {folder}/other {folder}/python; {in_memory} ro none {folder}/readonly; "
        f"export TMPDIR={folder}/readonly",
        f"hostname {ODD}; mount --bind /dev/null {library}; {in_memory} size=1m none {folder}/share; "
        f"export PYTHONPATH={folder}/odd MKL_NUM_THREADS=64",
        f"hostname {WALLED}",
        f"hostname {BARE}; mount --bind {folder}/absent {folder}/python",
    ]


def wall(network: Network, master: str) -> None:
    """Shut the way of one host to the driver's high ports but the Master's, and that of another to a third."""
    driver, port = network.driver_host, master.rpartition(":")[2]
    small, odd, walled = network.worker_hosts[0], network.workers[2], network.workers[3]
    rule = ["ip", "-n", walled, "rule", "add", "to", driver, "ipproto", "tcp"]
    for command in (
        [*rule, "pref", "10", "dport", port, "lookup", "main"],
        [*rule, "pref", "11", "dport", "32768-60999", "unreachable"],
        ["ip", "-n", odd, "route", "add", "unreachable", f"{small}/32"],
    ):
        subprocess.run(command, check=True, timeout=30)


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sick]:
    pytest.importorskip("pyspark")
    from fatwood.testing.cluster import standalone_cluster

    folder = tmp_path_factory.mktemp("hosts")
    network = host_network(5, mbit=[MBIT, None, None, None, None])
    try:
        there = network.__enter__()
    except ClusterError as error:
        pytest.skip(str(error))
    try:
        with standalone_cluster(5, network=there, setups=setups(folder), parent=folder) as cluster:
            wall(there, cluster.master)
            yield Sick(cluster.master, there, folder)
    finally:
        network.__exit__(None, None, None)


def test_each_sick_host_is_named_with_what_it_has(sick: Sick) -> None:
    code, found = sick.doctor("--storage", str(sick.folder / "share"), spark__speculation="true")
    assert code == 1
    rows: dict[tuple[str, str], list[dict[str, str]]] = {}
    for finding in found["findings"]:
        if finding["status"] != "ok":
            rows.setdefault((finding["title"], finding["where"].split(" (")[0]), []).append(finding)
    missed = []
    for name, host, received in FOUND:
        title, status, hint = ROWS[name]
        right = [
            one
            for one in rows.get((title, host), ())
            if one["status"] == status and received in one["received"] and hint in one["hint"]
        ]
        if not right and not (name == "another Python" and other_python() is None):
            missed.append((name, host, rows.get((title, host))))
    answered = [process["hostname"] for process in found["facts"]["executors"]]
    assert missed == [], "\n".join(map(str, [*missed, sorted(rows), answered, found["facts"]["failures"]]))
    known = {(ROWS[name][0], host) for name, host, _ in FOUND}
    # the other end of the way that is shut, and what else is said of an old pyarrow
    known |= {("way between executors", SMALL), ("clashing packages", ODD)}
    assert {(title, host) for title, host in rows if title != "network speed"} <= known
    assert list((sick.folder / "share").iterdir()) == []


def test_a_driver_whose_address_is_loopback_is_told_so(sick: Sick) -> None:
    code, found = sick.doctor(
        "--timeout-seconds",
        "15",
        wait_seconds=1,
        spark__driver__host="127.0.0.1",
        spark__driver__bindAddress="127.0.0.1",
    )
    assert code == 1
    wrong = {one["title"]: one for one in found["findings"] if one["status"] == "wrong"}
    for name in ("no executor", "loopback as the driver's address"):
        title, _, hint = ROWS[name]
        assert hint in wrong[title]["hint"]
        assert wrong[title]["where"] == f"{EDGE} (driver)"


def test_the_table_says_which_clusters_are_real() -> None:
    here = {name for name, file in REAL.items() if file == Path(__file__).name}
    assert here == {name for name, *_ in FOUND} | {"no executor", "loopback as the driver's address"}
