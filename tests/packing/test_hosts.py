"""A real cluster of several hosts: the demo's fit, submitted from the archive alone, where no other Python has what it needs.

Each host is a network namespace with a host name and mounts of its own. On all of them, the driver's too, empty folders lie over
this environment, its interpreter and the sources. The machine's own Python, that of ``/usr/bin``, is of another build.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fatwood
from fatwood.errors import ClusterError
from fatwood.packing import Packed
from fatwood.packing.checking import unpack
from fatwood.testing.cluster import StandaloneCluster, standalone_cluster
from fatwood.testing.network import host_network, on_host

pytestmark = [pytest.mark.slow, pytest.mark.spark, pytest.mark.timeout(900)]
TRAIN = Path(__file__).with_name("train.py")
HOSTS = 3
JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
SECONDS = 600.0
BY_AND_BY = {
    "spark.dynamicAllocation.enabled": "true",
    "spark.dynamicAllocation.minExecutors": "1",
    "spark.decommission.enabled": "true",
}


@dataclass
class Place:
    """Hosts with nothing but Spark and Java, and the archive unpacked on the driver's."""

    cluster: StandaloneCluster
    archive: Path
    folder: Path
    hiding: str
    """What a shell does to hide this environment."""
    environment: dict[str, str]

    def submit(
        self, *arguments: int, on_line: Callable[[str], object] = lambda _: None, **settings: str
    ) -> dict[str, Any]:
        """Run ``fatwood submit`` of the archive on the driver's host, and return what the script says at its end.

        Args:
            arguments: Workers and epochs.
            on_line: Called with every line on the way.
            settings: Of Spark.
        """
        network = self.cluster.network
        assert network is not None
        given = {
            "spark.driver.host": network.driver_host,
            "spark.driver.bindAddress": network.driver_host,
            "spark.driver.memory": "512m",
            "spark.driver.extraJavaOptions": JVM,
            "spark.executor.memory": "512m",
            "spark.executor.extraJavaOptions": JVM,
            "spark.local.dir": str(self.folder / "local"),
            "spark.log.level": "ERROR",
            "spark.ui.enabled": "false",
            **settings,
        }
        command = [
            *on_host(network.driver, f"{self.hiding}; hostname edge"),
            str(self.folder / "driver/bin/fatwood"),
        ]
        command += ["submit", "--master", self.cluster.master, "--workers", str(arguments[0])]
        command += ["--parameters", "60000", "--archive", str(self.archive)]
        command += [part for name, value in given.items() for part in ("--conf", f"{name}={value}")]
        command += [str(TRAIN), *map(str, arguments)]
        errors, deadline, last = self.folder / "errors", time.monotonic() + SECONDS, "{}"
        with (
            errors.open("w") as stream,
            subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment | {"SPARK_LOCAL_IP": network.driver_host},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            ) as process,
        ):
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    assert time.monotonic() < deadline
                    on_line(line)
                    last = line
                code = process.wait(60)
            finally:
                process.terminate()
        assert code == 0, errors.read_text()[-4000:]
        found: dict[str, Any] = json.loads(last)
        return found


@pytest.fixture(scope="module")
def place(real: tuple[Path, Packed, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    import pyspark

    from fatwood.spark.session import require_java

    folder = tmp_path_factory.mktemp("hosts")
    for name in ("driver", "spark"):
        folder.joinpath(name).mkdir()
    hidden = [Path(sys.prefix), Path(sys.base_prefix), Path(fatwood.__file__).parents[1]]
    home, spark = Path(pyspark.__file__).parent, folder / "spark"
    steps = [f"mount --bind {home} {spark}", *(f"mount -t tmpfs -o size=1m none {path}" for path in hidden)]
    steps += [f"export SPARK_HOME={spark} HIDDEN={':'.join(map(str, hidden))}"]
    hiding = "; ".join(steps)
    java = Path(require_java()).resolve().parent.parent
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder), "JAVA_HOME": str(java)}
    try:
        network = host_network(HOSTS)
        there = network.__enter__()
    except ClusterError as error:
        pytest.skip(str(error))
    try:
        unpack(real[0] / "environment.tar.gz", folder / "driver")
        setups = [f"{hiding}; hostname host-{number}" for number in range(HOSTS)]
        with standalone_cluster(HOSTS, network=there, setups=setups, parent=folder) as cluster:
            yield Place(cluster, real[0] / "environment.tar.gz", folder, hiding, environment)
    finally:
        network.__exit__(None, None, None)
        shutil.rmtree(folder)


def require_own(found: dict[str, Any], place: Place) -> None:
    """Driver and executors have run the archive's interpreter and packages, and could not see this environment."""
    driver, work = str(place.folder / "driver"), str(place.cluster.folder)
    for side in (found["driver"], *found["executors"]):
        base = driver if side is found["driver"] else f"{side['folder']}/environment"
        assert side["folder"].startswith(work) or side is found["driver"]
        assert side["sees"] == []
        assert side["base"] == base
        for name in ("executable", "fatwood", "torch"):
            assert side[name].startswith(f"{base}/")
        assert side["python"] == sys.version
        hidden = tuple(
            f"{path}/" for path in (sys.prefix, sys.base_prefix, Path(fatwood.__file__).parents[1])
        )
        others = [*side["path"], *side["pythonpath"].split(":")]
        assert [name for name in others if name.startswith(hidden)] == []


def test_hosts_without_python_train_from_the_archive(place: Place) -> None:
    found = place.submit(2, 2)
    require_own(found, place)
    assert found["first"] == 2
    assert found["rows"] == [6000, 6000]
    assert found["equal"]
    assert found["incidents"] == []
    assert len(set(found["hosts"])) == 2
    assert {side["host"] for side in found["executors"]} <= {f"host-{number}" for number in range(HOSTS)}
    assert found["driver"]["host"] == "edge"
    assert found["accuracy"] > 0.5
    machine = subprocess.run(["/usr/bin/python3", "-VV"], capture_output=True, text=True, check=False).stdout
    assert re.sub(r"\s+", "", machine) != re.sub(r"\s+", "", f"Python {sys.version}")


def test_executors_come_by_and_by_and_one_is_decommissioned(place: Place) -> None:
    told: list[str] = []

    def decommission(line: str) -> None:
        if line == "epoch 2\n":
            name, pid = min(place.cluster.executors().items())
            os.kill(pid, signal.SIGPWR)
            told.append(name)

    found = place.submit(HOSTS, 8, on_line=decommission, **BY_AND_BY)
    require_own(found, place)
    assert len(told) == 1
    assert found["first"] < HOSTS
    assert len(set(found["hosts"])) == HOSTS
    assert found["rows"] == [24000, 24000]
    assert found["equal"]
    assert found["accuracy"] > 0.5
