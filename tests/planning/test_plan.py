"""A plan of real steps: its arithmetic, its recommendation, its errors; and the command."""

from __future__ import annotations

import json
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fatwood
from fatwood.cli import cli
from fatwood.errors import OptionError, UserCodeError
from fatwood.planning import Cluster, Plan, StrategyPlan
from fatwood.planning.measuring import Together
from fatwood.train import AllReduce, GradientSharing

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "plan.md"


def strategy(name: str, speedup: float, every: int = 1, step_seconds: float = 0.1) -> StrategyPlan:
    measured = Together(
        compute=0.05,
        encode=0.0,
        swap=0.0,
        apply=0.0,
        other=0.0,
        rounds=(1000,),
        peak_bytes=400 << 20,
        base_bytes=300 << 20,
        address_bytes=1 << 30,
        agreements=5,
    )
    return StrategyPlan(
        name=name,
        every=every,
        staleness=0,
        measured=measured,
        network_seconds=0.05,
        step_seconds=step_seconds,
        rows_per_second=1.0,
        speedup=speedup,
        worker_mib=432,
    )


def made(*strategies: StrategyPlan, rows: int | None = None) -> Plan:
    return Plan(
        parameters=1000,
        batch_size=32,
        rows=rows,
        cluster=Cluster(workers=2),
        alone_seconds=0.05,
        alone_mib=350,
        strategies=strategies,
        gpu=None,
    )


def test_the_first_that_is_nearly_the_fastest_is_recommended() -> None:
    found = made(strategy("A", 1.5), strategy("B", 1.8), strategy("C", 1.9, every=10))
    assert found.recommended is found.strategies[0]
    assert found.fastest is found.strategies[1]
    assert not found.hardly_pays
    text = str(found)
    assert "A: 1.5 times the rows of one process a second, with 2 workers (B: 1.8 times)" in text
    assert "C trains 1.9 times the rows, and agrees once in 10 steps" in text


def test_where_one_process_is_faster_the_plan_says_so() -> None:
    found = made(strategy("A", 0.5), strategy("B", 0.7), strategy("C", 1.9, every=10))
    assert found.recommended is None
    assert found.to_json()["recommended"] is None
    assert (
        "Train in one process. With 2 workers the fastest that agrees so often, B, trains 0.7 times"
        in str(found)
    )


def test_a_small_gain_is_called_one_and_strategies_that_agree_rarely_count_where_there_are_no_others() -> (
    None
):
    assert "That is hardly worth a cluster" in str(made(strategy("A", 1.1)))
    only = made(strategy("C", 1.9, every=10))
    assert only.recommended is only.strategies[0]


def test_memory_is_that_of_a_submission_with_the_measured_worker() -> None:
    found = made(strategy("A", 1.5))
    assert found.executor.python == 432
    memory = found.to_json()["memory_mib"]
    assert memory["worker"] == 432
    assert memory["executor"]["total"] == memory["executor"]["heap"] + memory["executor"]["overhead"]
    assert found.epoch_seconds(0.1, 2) is None
    assert made(strategy("A", 1.5), rows=6400).epoch_seconds(0.1, 2) == pytest.approx(10)


@pytest.fixture(scope="module")
def real() -> Plan:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 10))
    return fatwood.plan(
        net,
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        features=torch.randn(40, 64),
        label=torch.randint(0, 10, (40,)),
        batch_size=16,
        workers=3,
        mbit=1.0,
        round_trip_seconds=0.0,
        strategies=[AllReduce(), AllReduce(staleness=1), GradientSharing()],
        steps=4,
        timeout_seconds=150,
    )


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_plan_of_real_steps_adds_up(real: Plan) -> None:
    n = 64 * 500 + 500 + 5000 + 10
    assert real.parameters == n
    dense, stale, sparse = real.strategies
    # 2 n (W - 1) / W x 4 bytes, and what is in front of them
    assert sum(dense.measured.rounds) == pytest.approx(2 * 4 * n * 2 / 3, abs=1000)
    assert dense.network_seconds == pytest.approx(8 * sum(dense.measured.rounds) / 0.94e6)
    assert sum(sparse.measured.rounds) < sum(dense.measured.rounds) / 3
    m = dense.measured
    assert dense.step_seconds == pytest.approx(
        m.compute + m.encode + m.apply + m.other + m.swap + dense.network_seconds
    )
    assert stale.step_seconds < dense.step_seconds + stale.measured.encode + stale.measured.apply + 0.1
    assert real.recommended is None  # a megabit a second
    for found in real.strategies:
        assert found.measured.peak_bytes > found.measured.base_bytes > 100 << 20
        assert found.rows_per_second == pytest.approx(3 * 16 / found.step_seconds)
    assert json.loads(json.dumps(real.to_json()))["parameters"] == n
    assert "Train in one process" in real.to_text()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_what_a_step_raises_is_an_error_with_its_words() -> None:
    with pytest.raises(UserCodeError, match=r"plan: a step raised: .*mat1 and mat2"):
        fatwood.plan(
            nn.Linear(3, 2),
            loss=nn.CrossEntropyLoss(),
            optimizer=partial(torch.optim.SGD, lr=0.1),
            features=torch.randn(4, 5),
            label=torch.zeros(4, dtype=torch.int64),
            strategies=[AllReduce()],
            steps=1,
        )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"network": nn.Linear}, "network: expected a torch.nn.Module"),
        ({"strategies": []}, "strategies: expected at least one"),
        ({"workers": 1}, "workers: expected a whole number of at least 2"),
        ({"batch_size": 0}, "batch_size: expected a whole number"),
        ({"features": torch.randn(0, 3)}, "features: expected at least one row"),
    ],
    ids=["class", "strategies", "workers", "batch", "rows"],
)
def test_arguments_that_cannot_work_are_refused_before_any_step(given: dict[str, Any], text: str) -> None:
    options: dict[str, Any] = {
        "network": nn.Linear(3, 2),
        "loss": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.Adam,
        "features": torch.randn(4, 3),
        "label": torch.zeros(4, dtype=torch.int64),
    } | given
    with pytest.raises(OptionError, match=text):
        fatwood.plan(options.pop("network"), **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--classes", "2"], "--features-shape: expected the shape of a row"),
        (["--features-shape", "3"], "labels: expected one of --classes and --label-shape, received none"),
        (["--features-shape", "3x", "--classes", "2"], "--features-shape: expected sizes such as"),
        (["--features-shape", "3", "--classes", "2", "--link", "fast"], "--link: expected a speed"),
    ],
    ids=["features", "labels", "shape", "link"],
)
def test_the_command_refuses_what_it_cannot_read(
    options: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "networks_here.py").write_text(
        "import torch\ndef made():\n    return torch.nn.Linear(3, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["plan", "networks_here:made", *options])
    assert isinstance(done.exception, OptionError)
    assert text in str(done.exception)


def blocks(kind: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_pages_commands_and_code_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec"), names)
    commands = [
        line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")
    ]
    assert len(commands) == 2
    for command in commands:
        _, *words = shlex.split(command)
        done = CliRunner().invoke(cli, words)
        assert done.exception is None, done.output
        assert ("Memory, MiB" in done.output) != ("--json" in words)
        if "--json" in words:
            assert json.loads(done.output)["cluster"]["mbit"] == 100
