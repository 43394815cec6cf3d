"""What `staleness=1` gains on a slow network, and what it costs in accuracy.

    python benchmarks/staleness.py [--parts speed accuracy] [--mbit 100] [--workers 3] [--repetitions 3] [--seeds 3] [--json]

* speed (needs root): every worker is a process on a host of its own (a network namespace), on links that are shaped both
  ways (`hosts.py`), with Fatwood's own exchange and coordinator and without Spark. The two settings take turns.
  Where a case has a `device_ms`, the forward pass sleeps so long as a stand-in for an accelerator's work: this machine's cores
  are shared by all workers, so with work on the cores alone they and not the network are measured. In the cases named
  "cores" all work is real. Each worker computes with one thread. Steps per second are those of the second of two epochs.
  `exchange_share` is the part of the step that the exchange took with `staleness=0`, of the worker where that is least:
  others also wait for slower ones there. `possible` is the ratio if a step took the longer of the exchange and the rest.
  `mbit_per_s` is what a worker sent while it exchanged.
* accuracy: the demo's network on its digits in threads of this process (`convergence.py`), by strategy and staleness, with
  the demo's constant learning rate and with a falling one. `cost_points` is the mean accuracy that `staleness=1` loses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

import convergence
import hosts
import torch
from torch import nn

from fatwood.codec import AdaptiveThreshold, TargetSparsityThreshold
from fatwood.testing.network import Network, host_network
from fatwood.train import (
    AllReduce,
    GradientSharing,
    Strategy,
)

FEATURES, CLASSES = 64, 10
EPOCHS = 2
RATES = {"constant": None, "falling": 0.05}

Staleness = Literal[0, 1]
STALENESS: tuple[Staleness, Staleness] = (0, 1)


@dataclass(frozen=True)
class Case:
    """A network and how its workers train together."""

    strategy: Literal["GradientSharing", "AllReduce"]
    width: int
    """Of two hidden layers."""
    steps: int
    """Of an epoch."""
    batch_size: int = 8
    device_ms: float = 0.0
    density: float = 0.01
    """Share of the parameters in a sparse message."""

    def made(self, staleness: Staleness) -> Strategy:
        """The strategy."""
        if self.strategy == "AllReduce":
            return AllReduce(staleness=staleness)
        threshold = TargetSparsityThreshold(initial="quantile", target=self.density)
        return GradientSharing(threshold=threshold, staleness=staleness)


CASES = {
    "sharing-1%-cores": Case("GradientSharing", 1000, 150),
    "sharing-1%-5ms": Case("GradientSharing", 1000, 150, device_ms=5.0),
    "sharing-5%-5ms": Case("GradientSharing", 1000, 100, device_ms=5.0, density=0.05),
    "allreduce-120ms": Case("AllReduce", 280, 20, device_ms=120.0),
    "allreduce-40ms": Case("AllReduce", 280, 40, device_ms=40.0),
    "allreduce-10ms": Case("AllReduce", 280, 60, device_ms=10.0),
    "allreduce-cores": Case("AllReduce", 280, 40, batch_size=1024),
}


class Device(nn.Module):
    """Takes its time, as an accelerator would, and changes nothing."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The same, later."""
        if self.seconds:
            time.sleep(self.seconds)
        return features


def network(case: Case) -> nn.Module:
    """A multilayer perceptron."""
    torch.manual_seed(0)
    w = case.width
    layers = [nn.Linear(FEATURES, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, CLASSES)]
    return nn.Sequential(Device(case.device_ms / 1000), *layers)


def work(told: Mapping[str, Any], rank: int) -> hosts.Work:
    """A worker's part of a case."""
    case = CASES[told["case"]]
    return hosts.random_work(
        rank,
        rows=case.steps * case.batch_size,
        width=FEATURES,
        classes=CLASSES,
        network=network(case),
        optimizer=partial(
            torch.optim.SGD, lr=0.02
        ),  # momentum would begin with some steps of fuller messages
        strategy=case.made(told["staleness"]),
        batch_size=case.batch_size,
        epochs=EPOCHS,
    )


def train(net: Network, processes: hosts.Processes, name: str, staleness: Staleness) -> dict[str, Any]:
    """One run of a case."""
    run = hosts.run(net, processes, {"case": name, "staleness": staleness})
    workers, epochs = run.workers, run.epochs
    assert len(epochs) == EPOCHS
    least = min(workers, key=lambda stats: stats.seconds["exchange"])
    return {
        "steps_per_s": CASES[name].steps / epochs[-1].seconds,
        "exchange_ms": 1000 * least.seconds["exchange"] / least.agreements,
        "exchange_share": least.seconds["exchange"] / sum(epoch.seconds for epoch in epochs),
        "mbit_per_s": 8e-6 * least.bytes_sent / least.seconds["exchange"],
        "message_bytes": least.message_bytes / least.agreements,
        "digest_equal": len({stats.digest for stats in workers}) == 1,
    }


def speed(names: list[str], workers: int, mbit: float, repetitions: int) -> dict[str, Any]:
    """Cases, the two settings in turns."""
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {name: {0: [], 1: []} for name in names}
    with host_network(workers, mbit=mbit) as net, hosts.worker_processes(net, __file__) as processes:
        for repetition in range(repetitions):
            for name, staleness in product(names, STALENESS[:: 1 if repetition % 2 == 0 else -1]):
                runs[name][staleness].append(train(net, processes, name, staleness))
                print(
                    json.dumps({"case": name, "staleness": staleness, **runs[name][staleness][-1]}),
                    flush=True,
                )
    return {name: compared(CASES[name], *of.values()) for name, of in runs.items()}


def compared(case: Case, synchronous: list[dict[str, Any]], stale: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the repetitions; the ratios are those within a turn."""

    def median(name: str, of: list[dict[str, Any]]) -> float:
        return float(statistics.median(run[name] for run in of))

    share = median("exchange_share", synchronous)
    turns = zip(synchronous, stale, strict=True)
    ratios = [new["steps_per_s"] / old["steps_per_s"] for old, new in turns]
    return {
        "parameters": sum(p.numel() for p in network(case).parameters()),
        "message_bytes": median("message_bytes", synchronous),
        "exchange_ms": median("exchange_ms", synchronous),
        "exchange_share": share,
        "steps_per_s": [median("steps_per_s", synchronous), median("steps_per_s", stale)],
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "possible": 1 / max(share, 1 - share),
        "mbit_per_s": median("mbit_per_s", synchronous),
        "digests_equal": all(run["digest_equal"] for run in synchronous + stale),
    }


def strategy(name: str, staleness: Staleness) -> Strategy:
    """As in `convergence.py`, with a staleness."""
    if name == "AllReduce":
        return AllReduce(staleness=staleness)
    return GradientSharing(threshold=AdaptiveThreshold(initial=1e-3), staleness=staleness)


def accuracy(seeds: int, epochs: int) -> dict[str, Any]:
    """Mean accuracies over the seeds, and what `staleness=1` costs."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, (schedule, rate) in product(("AllReduce", "GradientSharing"), RATES.items()):
        accuracies: dict[int, list[float]] = {0: [], 1: []}
        for seed, staleness in product(range(seeds), STALENESS):
            run = convergence.run(strategy(name, staleness), seed, epochs, workers=4, rate=rate)
            assert run["digest_equal"]
            accuracies[staleness].append(run["accuracy"])
            line = {"strategy": name, "rate": schedule, "staleness": staleness, **run}
            print(json.dumps(line), flush=True)
        means = [statistics.mean(accuracies[staleness]) for staleness in STALENESS]
        found[f"{name}, {schedule} rate"] = {
            "accuracy_mean": means,
            "accuracies": [accuracies[staleness] for staleness in STALENESS],
            "cost_points": 100 * (means[0] - means[1]),
            "costs_points": [100 * (a - b) for a, b in zip(*accuracies.values(), strict=True)],
        }
    return found


PARTS = ("speed", "accuracy")


def main() -> None:
    """Run the parts and print what was measured, or JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--mbit", type=float, default=100.0, help="of each worker's link, in both directions")
    parser.add_argument("--workers", type=int, default=3, help="of the part `speed`")
    parser.add_argument("--repetitions", type=int, default=3, help="of the part `speed`")
    parser.add_argument("--seeds", type=int, default=3, help="of the part `accuracy`")
    parser.add_argument("--epochs", type=int, default=3, help="of the part `accuracy`")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        hosts.serve(arguments.worker, work)
        return
    hosts.end_by_signals()
    found: dict[str, Any] = {}
    if "speed" in arguments.parts:
        found["speed"] = speed(arguments.cases, arguments.workers, arguments.mbit, arguments.repetitions)
    if "accuracy" in arguments.parts:
        found["accuracy"] = accuracy(arguments.seeds, arguments.epochs)
    for part, cases in found.items():
        for name, figures in cases.items():
            print(f"{part}: {name:26} {json.dumps(figures)}")
    if arguments.json:
        print(json.dumps({**found, "workers": arguments.workers, "mbit": arguments.mbit}))


if __name__ == "__main__":
    main()
