"""The commands for each kind of cluster, with GPUs and without, as they were read against Spark's documentation.

A golden file is what ``--dry-run`` prints, a shell script. After a change, look at the difference and write the new text.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fatwood.errors import OptionError
from fatwood.submission import Submission, command_of
from fatwood.submission.settings import own_discovery_script

GOLDEN = Path(__file__).parent / "golden"
SIZE = {"workers": 8, "cores_per_worker": 2, "parameters": 25_000_000}
SHARED = {"workers_per_executor": 4, "environment": {"TZ": "UTC"}}
GPU = {"gpus_per_worker": 1.0}
YARN = {"master": "yarn", "archive": "hdfs:///envs/train.tar.gz", "node_label": "gpu && fast"}
K8S = {
    "master": "k8s://https://k8s.example:6443",
    "image": "registry.example/fatwood:1",
    "namespace": "training",
    "node_label": "pool=train",
    "script": "local:///opt/job/train.py",
}
STANDALONE = {"master": "spark://head.example:7077"}
CASES: dict[str, dict[str, Any]] = {
    "local": {"environment": {"TZ": "UTC"}},
    "standalone": {**SHARED, **STANDALONE, "executor_memory_total_mib": 20 << 10},
    "standalone-gpu": {**SHARED, **STANDALONE, "gpus_per_worker": 0.5},
    "yarn-client": {**SHARED, **YARN},
    "yarn-client-gpu": {**SHARED, **YARN, **GPU},
    "yarn-cluster": {**SHARED, **YARN, "deploy_mode": "cluster", "executor_memory_total_mib": 20 << 10},
    "yarn-cluster-gpu": {
        **SHARED,
        **YARN,
        **GPU,
        "deploy_mode": "cluster",
        "conf": {"spark.yarn.queue": "gpu", "spark.network.timeout": "120s"},
    },
    "k8s": {**SHARED, **K8S},
    "k8s-gpu": {**SHARED, **K8S, "gpus_per_worker": 0.25},
}


def text_of(case: str, folder: Path) -> str:
    """What is printed for a case, with names in place of paths of this machine."""
    script = folder / "train.py"
    script.write_text("print('trained')\n")
    options = {"script": str(script), "driver_python": "/opt/python/bin/python3", **SIZE, **CASES[case]}
    command = command_of(Submission(**options, arguments=("--epochs", "3", "a b")))
    text = command.text().replace(str(folder), "/home/me")
    return text.replace(str(own_discovery_script().parent), "/opt/fatwood/submission")


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_command_is_the_one_that_was_reviewed(case: str, tmp_path: Path) -> None:
    assert text_of(case, tmp_path) == (GOLDEN / f"{case}.txt").read_text(encoding="utf-8")


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == CASES.keys()


def test_gpus_in_local_mode_are_an_error_since_spark_would_wait_for_ever(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.touch()
    with pytest.raises(OptionError, match="--gpus-per-worker: it has no effect with --master local"):
        Submission(script=str(script), gpus_per_worker=1)


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_shell_that_runs_the_printed_text_gives_the_same_arguments_and_variables(
    case: str, tmp_path: Path
) -> None:
    script, show = tmp_path / "train.py", tmp_path / "show me"
    script.touch()
    show.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv, dict(os.environ)]))\n"
    )
    show.chmod(0o755)
    submission = Submission(
        **{"script": str(script), **SIZE, **CASES[case]}, arguments=("a b", "$(x)", "'", "#y", "two\nlines")
    )
    command = command_of(submission, str(show))
    done = subprocess.run(
        ["sh"], input=command.text(), capture_output=True, text=True, timeout=30, check=True
    )
    arguments, variables = json.loads(done.stdout)
    assert arguments == command.arguments
    assert {name: variables[name] for name in command.environment} == dict(command.environment)
