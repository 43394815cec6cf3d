"""What a process finds out of its machine, from files as systems have them and from real folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from fatwood.doctor import probe
from fatwood.doctor.errand import try_storage
from fatwood.doctor.finding import size, spark_bytes
from fatwood.doctor.finding import version as numbers


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_facts_of_this_process_are_json_and_true() -> None:
    facts = json.loads(json.dumps(probe.gather({})))
    assert facts["executable"] == sys.executable
    assert facts["packages"]["torch"] == version("torch")
    assert facts["distributions"]["torch"] == version("torch")
    assert facts["imports"]["error"] is None
    assert all(disk["writable"] and disk["free_bytes"] > 0 for disk in facts["disks"])
    assert 1 <= facts["cores"] <= (os.cpu_count() or 1)


def test_the_probe_needs_nothing_but_python(tmp_path) -> None:
    code = f"exec(open({probe.__file__!r}).read())\nimport json; print(json.dumps(gather({{'quick': True}})))"
    bare = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(bare, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert set(facts["packages"].values()) == {None}
    assert facts["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"etc/systemd/logind.conf": "[Login]\n#KillUserProcesses=yes\n"}, "no"),
        ({"etc/systemd/logind.conf": "[Login]\nKillUserProcesses=yes\n"}, "yes"),
        (
            {
                "etc/systemd/logind.conf": "[Login]\nKillUserProcesses=no\n",
                "etc/systemd/logind.conf.d/10-site.conf": "[Login]\nKillUserProcesses = yes\n",
            },
            "yes",
        ),
    ],
)
def test_logind_s_setting_is_that_of_its_last_file(tmp_path, files, expected) -> None:
    for name, text in files.items():
        write(tmp_path, name, text)
    facts = probe.gather({"quick": True}, root=str(tmp_path))
    assert facts["kill_user_processes"] == expected
    if expected == "yes":
        write(tmp_path, f"var/lib/systemd/linger/{facts['user']}", "")
        lingering = probe.gather({"quick": True}, root=str(tmp_path))
        assert lingering["kill_user_processes"] == "lingering"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("sys/fs/cgroup/memory.max", "max\n", None),
        ("sys/fs/cgroup/memory.max", "2147483648\n", 2 << 30),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n", 1 << 30),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n", None),
    ],
)
def test_the_container_s_memory(tmp_path, name, text, expected) -> None:
    write(tmp_path, name, text)
    assert probe.gather({"quick": True}, root=str(tmp_path))["cgroup_bytes"] == expected


def test_the_executor_is_read_from_its_command_line(tmp_path) -> None:
    words = ["java", "-cp", "x", "--executor-id", "7", "--hostname", "10.0.0.3"]
    write(tmp_path, "proc/4000/cmdline", "\0".join(words) + "\0")
    facts = probe.gather({"quick": True, "jvm": 4000}, root=str(tmp_path))
    assert (facts["executor"], facts["address"]) == ("7", "10.0.0.3")


def test_a_folder_that_is_not_there_cannot_be_written_to(tmp_path, monkeypatch) -> None:
    for name in ("SPARK_EXECUTOR_DIRS", "LOCAL_DIRS", "SPARK_LOCAL_DIRS"):
        monkeypatch.delenv(name, raising=False)
    order = {"quick": True, "local_dirs": [str(tmp_path), str(tmp_path / "none")]}
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    disks = probe.gather(order)["disks"]
    assert [disk["writable"] for disk in disks] == [False, True, False]
    assert "No such file" in disks[0]["error"]


def test_storage_is_left_as_it_was(tmp_path) -> None:
    assert try_storage(str(tmp_path))["error"] is None
    assert list(tmp_path.iterdir()) == []
    assert "sample: FileNotFoundError" in try_storage(str(tmp_path), "sample")["error"]
    (tmp_path / "file").write_text("")
    assert "cannot write" in try_storage(str(tmp_path / "file" / "below"))["error"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2g", 2 << 30),
        ("512m", 512 << 20),
        ("512", 512 << 20),
        ("1gb", 1 << 30),
        (None, 1 << 30),
        ("x", 1 << 30),
    ],
)
def test_sizes_as_spark_writes_them(text, expected) -> None:
    assert spark_bytes(text, "1g") == expected


def test_numbers_as_they_are_shown() -> None:
    assert size(1536 << 20) == "1.5 GiB"
    assert size(700) == "700 bytes"
    assert numbers("2.13.0+cpu") == (2, 13, 0)
    assert numbers(None) == ()


SMI = """#!/bin/sh
echo '+-----------------------------------------------------------------------------------------+'
echo '| NVIDIA-SMI 550.54.15              Driver Version: 550.54.15      CUDA Version: 12.4     |'
exit {code}
"""


@pytest.mark.parametrize(("code", "expected"), [(0, {"driver": "550.54.15", "cuda": "12.4"}), (9, None)])
def test_the_driver_of_gpus_is_read_from_its_own_program(tmp_path, monkeypatch, code, expected) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI.format(code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert probe.gather({})["nvidia"] == expected


def test_a_package_that_crashes_is_told_and_does_not_end_the_probe(tmp_path, monkeypatch) -> None:
    (tmp_path / "torch.py").write_text("import os\nos.write(1, b'illegal instruction')\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "illegal instruction" in probe.gather({})["imports"]["error"]
    (tmp_path / "torch.py").write_text("raise ImportError('libc.so.6: GLIBC_2.38 not found')\n")
    assert probe.gather({})["imports"]["error"] == "ImportError: libc.so.6: GLIBC_2.38 not found"
