"""The README's blocks, as they stand: the example runs and prints what is shown, the commands answer as shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fatwood import SparkModel
from fatwood.errors import SchemaError

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
EXAMPLE_SECONDS = 300


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shown_beneath(code: str) -> str:
    """The text block that follows a code block."""
    found = re.match(r"```\n+```text\n(.*?)^```$", README.split(code, 1)[1], re.MULTILINE | re.DOTALL)
    assert found is not None, "the README shows no output beneath the example"
    return found.group(1)


def environment() -> dict[str, str]:
    """That of an activated environment: Spark starts its Python workers with the python3 of PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYSPARK", "SPARK_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**kept, "PATH": path, "SPARK_LOCAL_IP": "127.0.0.1", "COLUMNS": "80", "NO_COLOR": "1"}


def masked(output: str) -> list[str]:
    """What must not vary from machine to machine: times, losses and sizes are left out, counts stay."""
    lines = []
    for line in output.strip().splitlines():
        masks = (
            (r"\[-?\d.*?(?=\|)", "[#"),
            (r"-?\d+\.\d+(e-?\d+)?", "#"),
            (r"[\d,]+ bytes a step and worker, [\d,]+ times", "# bytes a step and worker, # times"),
            (r"^( +\d+ +[\d,]+ +[\d,]+) +[\d,]+ ", r"\1 # "),
            (r" +", " "),
        )
        for pattern, mask in masks:
            line = re.sub(pattern, mask, line)
        lines.append(line.strip())
    return lines


def accuracy(output: str) -> float:
    found = re.search(r"^test accuracy (\d\.\d+)$", output, re.MULTILINE)
    assert found is not None, output
    return float(found.group(1))


def fewer(output: str) -> float:
    found = re.search(r"([\d,]+) times fewer than dense float32", output)
    assert found is not None, output
    return float(found.group(1).replace(",", ""))


def test_masks_hide_times_and_sizes_but_not_counts() -> None:
    shown = shown_beneath(blocks("python")[0])
    assert any("24,000 of 24,000 rows trained" in line for line in masked(shown))
    assert masked(shown.replace("24,000 of", "23,999 of")) != masked(shown)
    assert masked(shown.replace("12000 rows", "11999 rows")) != masked(shown)
    assert masked(shown.replace("equal", "DIFFER")) != masked(shown)
    later = re.sub(r"in \d\.\d s", "in 99.9 s", re.sub(r"loss \d\.\d", "loss 7.7", shown))
    assert later != shown
    assert masked(later) == masked(shown)


@pytest.mark.spark
@pytest.mark.timeout(EXAMPLE_SECONDS + 30)
def test_the_example_prints_what_is_shown(tmp_path: Path) -> None:
    code, *more = blocks("python")
    shown = shown_beneath(code)
    more = [
        block.replace("hdfs:///runs/digits", "checkpoints") for block in more
    ]  # what follows goes on from it
    (tmp_path / "example.py").write_text("\n".join([code, *more]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=EXAMPLE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert masked(done.stdout) == masked(shown)
    assert abs(accuracy(done.stdout) - accuracy(shown)) < 0.03
    assert accuracy(shown) > 0.85
    assert 0.5 < fewer(done.stdout) / fewer(shown) < 2
    saved = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert saved == ["digits.fatwood", "example.py", "run.html"]


def test_commands_answer_as_shown() -> None:
    """Commands that only print help; what `fatwood demo` prints takes minutes and varies."""
    fatwood = Path(sys.executable).with_name("fatwood")
    checked = []
    for block in blocks("console"):
        for command, answer in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            if "--help" in command or "--version" in command:
                name, *arguments = command.split()
                assert name == "fatwood"
                done = subprocess.run(
                    [str(fatwood), *arguments],
                    env=environment(),
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                assert (done.returncode, done.stdout.strip()) == (0, answer.strip())
                checked.append(command)
    assert checked, "the README shows no `fatwood --help`"


def test_the_demo_shown_is_the_demo_there_is() -> None:
    from fatwood.demo.run import EPOCHS, WORKERS, network

    (shown,) = [block for block in blocks("console") if block.startswith("$ fatwood demo")]
    parameters = sum(p.numel() for p in network().parameters())
    assert f"{parameters:,} parameters on 12,000 digits of MNIST, {EPOCHS} epochs" in shown
    assert f"{12_000 * EPOCHS:,} of {12_000 * EPOCHS:,} rows trained" in shown
    assert f"{WORKERS} workers, " in shown
    found = re.search(r"^Test accuracy (\d+\.\d+)%", shown, re.MULTILINE)
    assert found is not None
    assert float(found.group(1)) >= 97
    assert fewer(shown) >= 100


@pytest.mark.spark
def test_the_error_is_the_one_shown(spark) -> None:
    (shown,) = [block for block in blocks("text") if block.startswith("SchemaError")]
    df = spark.createDataFrame([(0, [0.0], 1)], "id bigint, pixels array<float>, digit bigint")
    model = SparkModel(nn.Linear(1, 2), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD)
    with pytest.raises(SchemaError) as caught:
        model.fit(df, features="pixel", label="digit")
    assert f"SchemaError: {caught.value}" == shown.strip()


def test_supported_versions_are_those_of_the_package() -> None:
    root = Path(__file__).parents[2]
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    pins = (root / "constraints.txt").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in README.splitlines() if line.startswith("|")}
    for label, pattern in (
        ("Python", r'requires-python = ">=([\d.]+)"'),
        ("PyTorch", r'"torch>=([\d.]+)"'),
        ("Apache Spark (PySpark)", r'"pyspark>=([\d.]+)"'),
    ):
        lowest = re.search(pattern, project)
        assert lowest is not None
        assert re.search(rf"\b{re.escape(lowest.group(1))}\b", rows[label].split("|")[2]), rows[label]
    for label, package in (("PyTorch", "torch"), ("Apache Spark (PySpark)", "pyspark")):
        pinned = re.search(rf"^{package}==(\d+\.\d+)", pins, re.MULTILINE)
        assert pinned is not None
        assert rows[label].split("|")[3].strip() == pinned.group(1)
