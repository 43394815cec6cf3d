"""The command as a stranger runs it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FATWOOD = [sys.executable, "-m", "fatwood"]


def fatwood(
    *arguments: str, cwd: Path, timeout: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FATWOOD, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=timeout,
        check=False,
    )


def test_help_and_version(tmp_path: Path) -> None:
    done = fatwood("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "demo" in done.stdout
    assert "0.1.0" in fatwood("--version", cwd=tmp_path).stdout


def test_wrong_usage_ends_with_2_and_nothing_on_stdout(tmp_path: Path) -> None:
    done = fatwood("demo", "--jsn", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "--json" in done.stderr


def test_without_java_the_demo_says_how_to_get_it(tmp_path: Path) -> None:
    done = fatwood("demo", cwd=tmp_path, PATH=str(tmp_path), JAVA_HOME="")
    assert done.returncode == 1
    assert "error: Java: expected version 17" in done.stderr
    assert "hint: install Java 17" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.spark
@pytest.mark.timeout(600)
def test_the_demo(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    done = fatwood("demo", "--json", cwd=work, timeout=580, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {
        "accuracy",
        "bytes_per_step",
        "dense_bytes_per_step",
        "rows_trained",
        "rows_expected",
        "digest_equal",
        "seconds",
    }
    assert result["accuracy"] >= 0.97
    assert 100 * result["bytes_per_step"] <= result["dense_bytes_per_step"] == 4 * 54_362
    assert result["rows_trained"] == result["rows_expected"] == 60_000
    assert result["digest_equal"] is True
    assert "Ten predictions" in done.stderr
    assert [path.name for path in work.iterdir()] == ["digits.fatwood"]
    with zipfile.ZipFile(work / "digits.fatwood") as saved:
        assert sorted(Path(name).suffix for name in saved.namelist()) == [".json", ".safetensors"]
    assert [path.name for path in temporary.iterdir() if "fatwood" in path.name] == []
