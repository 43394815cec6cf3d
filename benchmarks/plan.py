"""What `fatwood.plan` predicts beside what is measured: memory of workers, and the time of a step.

    python benchmarks/plan.py [--parts memory time] [--networks mlp cnn transformer] [--workers 2 4] [--mbit 100 1000] [--json]

* memory: each network is fitted on a local Spark session with two workers; the peak of a Python worker (``VmHWM``) is read
  afterwards, beside the plan's figure for it.
* time (needs root, `ip` and `tc`): every worker is a process on a host of its own (a network namespace) whose link is shaped, with
  Fatwood's own exchange and coordinator and without Spark, as in `staleness.py`. Seconds of a step are those of the second of two epochs.
  The plan is told how many workers share a core of this machine.

Errors are (predicted - measured) / measured. Run it on a quiet machine: the plan measures steps, and what else runs is in them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import psutil
import torch
from torch import nn

import fatwood
from fatwood.data import Layout
from fatwood.errors import ClusterError
from fatwood.planning import Plan
from fatwood.testing.network import host_network
from fatwood.testing.threads import shard, training_job
from fatwood.train import (
    AllReduce,
    DiLoCo,
    GradientSharing,
    ParameterAveraging,
    Strategy,
)

CLASSES = 10
TOKENS, STEPS_OF_ROW = 1000, 32
WORKERS_OF_MEMORY = 2


class Transformer(nn.Module):
    """Classifies rows of token ids."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, 10)`` of ids ``(B, T)``."""
        output: torch.Tensor = self.head(self.layers(self.embedding(tokens)).mean(1))
        return output


def mlp() -> nn.Module:
    """2.1 million parameters."""
    return nn.Sequential(
        nn.Linear(784, 1000),
        nn.ReLU(),
        nn.Linear(1000, 1000),
        nn.ReLU(),
        nn.Linear(1000, 300),
        nn.ReLU(),
        nn.Linear(300, CLASSES),
    )


def cnn() -> nn.Module:
    """Little to send, much to compute."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, CLASSES)),
    )


def numbers(rows: int, rank: int) -> np.ndarray[Any, Any]:
    """Rows of 784 numbers."""
    return np.random.default_rng(rank).standard_normal((rows, 784), np.float32)


def ids(rows: int, rank: int) -> np.ndarray[Any, Any]:
    """Rows of 32 token ids."""
    return np.random.default_rng(rank).integers(0, TOKENS, (rows, STEPS_OF_ROW))


@dataclass(frozen=True)
class Case:
    """A network and its rows."""

    network: Callable[[], nn.Module]
    rows: Callable[[int, int], np.ndarray[Any, Any]]
    width: int
    batch_size: int = 32


CASES = {
    "mlp": Case(mlp, numbers, 784),
    "cnn": Case(cnn, numbers, 784),
    "transformer": Case(Transformer, ids, STEPS_OF_ROW),
}
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "AllReduce": AllReduce,
    "GradientSharing": GradientSharing,
    "ParameterAveraging": ParameterAveraging,
    "DiLoCo": partial(DiLoCo, every=10),
}
LOSS = nn.CrossEntropyLoss()
OPTIMIZER = partial(torch.optim.Adam, lr=1e-3)


def made(case: Case) -> nn.Module:
    """The network, always the same."""
    torch.manual_seed(0)
    return case.network()


def labels(rows: int, rank: int) -> np.ndarray[Any, Any]:
    """Classes."""
    return np.random.default_rng(1000 + rank).integers(0, CLASSES, rows)


def planned(case: Case, strategies: list[str], **cluster: Any) -> Plan:
    """The prediction."""
    rows = 8 * case.batch_size
    return fatwood.plan(
        made(case),
        loss=LOSS,
        optimizer=OPTIMIZER,
        features=torch.from_numpy(case.rows(rows, 0)),
        label=torch.from_numpy(labels(rows, 0)),
        batch_size=case.batch_size,
        strategies=[STRATEGIES[name]() for name in strategies],
        **cluster,
    )


def work(told: Mapping[str, Any], rank: int) -> hosts.Work:
    """A worker's part of a case."""
    case = CASES[told["case"]]
    rows = told["steps"] * case.batch_size
    job = training_job(
        network=made(case),
        loss=LOSS,
        optimizer=OPTIMIZER,
        strategy=STRATEGIES[told["strategy"]](),
        batch_size=case.batch_size,
        epochs=2,
    )
    layout = Layout.of(
        feature_width=case.width,
        feature_dtype="int64" if case.rows is ids else "float32",
        feature_name="x",
        label_dtype="int64",
        label_name="y",
    )
    return hosts.Work(job, layout, shard(case.rows(rows, rank), labels(rows, rank), np.arange(rows)))


def times(
    names: list[str], strategies: list[str], workers: int, mbit: float, steps: int
) -> list[dict[str, Any]]:
    """Predicted and measured steps of one cluster."""
    found = []
    sharing = max(1.0, workers / len(os.sched_getaffinity(0)))
    # the bridge between the hosts is this machine's own: no time on the way
    cluster = {"workers": workers, "mbit": mbit, "round_trip_seconds": 0.0001, "sharing": sharing}
    with host_network(workers, mbit=mbit) as net, hosts.worker_processes(net, __file__) as processes:
        for name in names:
            plan = planned(CASES[name], strategies, **cluster)
            for strategy, part in zip(strategies, plan.strategies, strict=True):
                told = {"case": name, "strategy": strategy, "steps": steps}
                measured = hosts.run(net, processes, told).epochs[-1].seconds / steps
                line = {
                    "network": name,
                    "strategy": strategy,
                    "workers": workers,
                    "mbit": mbit,
                    "predicted_ms": 1000 * part.step_seconds,
                    "measured_ms": 1000 * measured,
                    "error_percent": 100 * (part.step_seconds / measured - 1),
                    "links_ms": 1000 * part.network_seconds / part.every,
                }
                found.append(line)
                print(json.dumps(line), flush=True)
    return found


def memory(names: list[str], strategies: list[str]) -> list[dict[str, Any]]:
    """Predicted and measured peaks of Python workers under Spark."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    found = []
    for name in names:
        plan = planned(CASES[name], strategies, workers=WORKERS_OF_MEMORY)
        for strategy, part in zip(strategies, plan.strategies, strict=True):
            # a session for each: a worker that is used again keeps its highest peak
            spark = (
                SparkSession.builder.master(f"local[{WORKERS_OF_MEMORY}]")
                .config("spark.ui.enabled", "false")
                .config("spark.log.level", "ERROR")
                .config("spark.driver.host", "127.0.0.1")
                .getOrCreate()
            )
            try:
                peak = peak_bytes(spark, CASES[name], strategy) / 2**20
            finally:
                spark.stop()
            line = {
                "network": name,
                "strategy": strategy,
                "parameters": plan.parameters,
                "predicted_mib": part.worker_mib,
                "measured_mib": peak,
                "error_percent": 100 * (part.worker_mib / peak - 1),
            }
            found.append(line)
            print(json.dumps(line), flush=True)
    return found


def peak_bytes(spark: Any, case: Case, strategy: str) -> int:
    """The largest peak of a Python worker that has trained."""
    import pandas as pd

    rows = 20 * case.batch_size * WORKERS_OF_MEMORY
    frame = spark.createDataFrame(pd.DataFrame({"x": list(case.rows(rows, 0)), "y": labels(rows, 0)}))
    model = fatwood.SparkModel(made(case), loss=LOSS, optimizer=OPTIMIZER, strategy=STRATEGIES[strategy]())
    model.fit(
        frame,
        features="x",
        label="y",
        batch_size=case.batch_size,
        epochs=2,
        workers=WORKERS_OF_MEMORY,
        progress=False,
    )
    model.reset()
    peaks = [0]
    for process in psutil.Process().children(recursive=True):
        try:
            parent = process.parent()
            if parent is not None and any(part.endswith(".daemon") for part in parent.cmdline()):
                text = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                peaks.append(int(text.split("VmHWM:")[1].split()[0]) << 10)
        except (psutil.Error, OSError, IndexError):
            continue
    return max(peaks)


PARTS = ("memory", "time")


def main() -> None:
    """Run the parts; print what was found, and JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--workers", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--mbit", nargs="+", type=float, default=[100.0, 1000.0])
    parser.add_argument("--steps", type=int, default=40, help="of an epoch")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        hosts.serve(arguments.worker, work)
        return
    hosts.end_by_signals()
    found: dict[str, list[dict[str, Any]]] = {}
    if "memory" in arguments.parts:
        found["memory"] = memory(arguments.networks, arguments.strategies)
    if "time" in arguments.parts:
        found["time"] = []
        for workers in arguments.workers:
            for mbit in arguments.mbit:
                try:
                    found["time"] += times(
                        arguments.networks, arguments.strategies, workers, mbit, arguments.steps
                    )
                except ClusterError as error:
                    print(error, file=sys.stderr)
    for part, lines in found.items():
        errors = [abs(line["error_percent"]) for line in lines]
        if errors:
            print(
                f"{part}: error {statistics.median(errors):.1f} % in the middle, {max(errors):.1f} % at most"
            )
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
