"""The whole of it: this environment packed, checked, and training on a cluster with no other Python."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fatwood.errors import ClusterError, OptionError
from fatwood.packing import Packed, check, pack
from fatwood.packing.checking import unpack
from fatwood.packing.distributions import SPARKS_OWN
from fatwood.testing.cluster import standalone_cluster
from fatwood.testing.network import host_network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
JOB = Path(__file__).with_name("job.py")


def test_the_archive_is_well_and_its_kernel_is_compiled(real: tuple[Path, Packed, list[str]]) -> None:
    folder, done, lines = real
    found = check(folder / "environment.tar.gz")
    import torch

    import fatwood

    assert found.versions["torch"] == torch.__version__
    assert found.versions["fatwood"] == fatwood.__version__
    assert found.versions["python"] == sys.version.split()[0]
    assert found.kernel == "NativeKernel"
    names = [part.name for part in done.parts]
    assert {"python", "torch", "fatwood", "pandas", "pyarrow"} <= set(names)
    assert not set(names) & (SPARKS_OWN | {"pip"})
    assert sum("Spark brings its own" in line for line in lines) == 2
    assert done.bytes == (folder / "environment.tar.gz").stat().st_size < 500e6


def test_packing_again_reuses_every_part_and_gives_the_same_bytes(
    real: tuple[Path, Packed, list[str]], unneeded: Sequence[str]
) -> None:
    folder, first, _ = real
    again = pack(folder / "again.tgz", exclude=unneeded, drop_tests=True, cache=folder / "cache")
    (folder / "again.tgz").unlink()
    made = [part.name for part in again.parts if not part.reused]
    wheels = len(list((folder / "cache" / "wheels").iterdir()))  # more than 1 when sources changed meanwhile
    assert set(made) <= {"fatwood"}
    assert len(made) < wheels
    assert (again.sha256 == first.sha256) == (made == [])


def test_the_wrong_build_of_torch_is_refused_before_anything_is_packed(tmp_path: Path) -> None:
    import torch

    wrong = "cuda" if torch.version.cuda is None else "cpu"
    with pytest.raises(OptionError, match=f"torch: expected a build for {wrong}, received the build for"):
        pack(tmp_path / "e.tar.gz", torch=wrong, cache=tmp_path / "cache")
    assert not (tmp_path / "e.tar.gz").exists()


@pytest.mark.spark
def test_a_cluster_trains_with_the_archive_alone(
    real: tuple[Path, Packed, list[str]], tmp_path: Path
) -> None:
    import pyspark

    from fatwood.spark.session import require_java

    with suppress(ClusterError), host_network(0):
        pytest.skip("test_hosts.py does this on hosts of their own")
    folder, _, _ = real
    driver = tmp_path / "driver"
    driver.mkdir()
    unpack(folder / "environment.tar.gz", driver)
    home = Path(pyspark.__file__).parent
    settings = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.log.level": "ERROR",
        "spark.local.dir": tmp_path / "local",
        "spark.pyspark.driver.python": driver / "bin" / "python",
        "spark.pyspark.python": "./environment/bin/python",
        "spark.ui.enabled": "false",
    }
    options = [part for name, value in settings.items() for part in ("--conf", f"{name}={value}")]
    archives = ["--archives", f"{folder / 'environment.tar.gz'}#environment"]
    java = Path(require_java()).resolve().parent.parent
    environment = {"PATH": "/usr/bin:/bin", "SPARK_HOME": str(home), "JAVA_HOME": str(java)}
    with standalone_cluster(workers=2, cores=1, parent=tmp_path) as cluster:
        submit = [home / "bin" / "spark-submit", "--master", cluster.master, *archives, *options, JOB]
        done = subprocess.run(
            submit,
            env=environment | {"SPARK_LOCAL_IP": "127.0.0.1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert (found["trained"], found["equal"]) == (600, True)
    assert found["driver"]["prefix"] == str(driver)
    for side in (found["driver"], *found["executors"]):
        prefix = side["prefix"]
        assert side["torch"].startswith(f"{prefix}/")
        assert side["python"]
        assert all(name.startswith(f"{prefix}/") for name in side["python"])
        ours = [
            name for name in side["path"] if not name.startswith(str(home))
        ]  # Spark's own comes from here
        assert not any(
            name.startswith((f"{sys.prefix}/lib/python", f"{sys.base_prefix}/lib")) for name in ours
        )
    for executor in found["executors"]:
        assert Path(executor["prefix"]).name == "environment"
        assert Path(executor["prefix"]).is_relative_to(tmp_path / "local") or "app-" in executor["prefix"]
