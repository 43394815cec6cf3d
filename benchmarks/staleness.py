"""What `staleness=1` gains on a slow network, and what it costs in accuracy.

    python benchmarks/staleness.py [--parts speed accuracy] [--mbit 100] [--workers 3] [--repetitions 3] [--seeds 3] [--json]

* speed (needs root): every worker is a process on a host of its own (a network namespace), on links that are shaped both
  ways (`fatwood.testing.network`), with Fatwood's own exchange and coordinator and without Spark. The two settings take turns.
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
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import convergence
import numpy as np
import torch
from torch import nn

from fatwood.codec import AdaptiveThreshold, TargetSparsityThreshold
from fatwood.data import Layout
from fatwood.exchange import Coordinator, new_secret
from fatwood.testing.network import Network, host_network, inside
from fatwood.testing.threads import shard, training_job
from fatwood.train import (
    AllReduce,
    EpochRecord,
    GradientSharing,
    Rendezvous,
    Strategy,
    WorkerStats,
    WorkOrder,
    join_job,
    record_from_json,
    run_member,
)

FEATURES, CLASSES = 64, 10
EPOCHS = 2
STATE_BYTES = 1 << 28
RUN_SECONDS = 120.0
"""The longest that one run may take."""
END_SECONDS = 10.0
POLL_SECONDS = 0.5
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


def worker(rank: int) -> None:
    """Train what the lines of standard input say, until its end."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        told = json.loads(line)
        case = CASES[told["case"]]
        rows = case.steps * case.batch_size
        generator = np.random.default_rng(rank)
        features = generator.standard_normal((rows, FEATURES), np.float32)
        batches = shard(features, generator.integers(0, CLASSES, rows), np.arange(rows))
        job = training_job(
            network=network(case),
            loss=nn.CrossEntropyLoss(),
            optimizer=partial(
                torch.optim.SGD, lr=0.02
            ),  # momentum would begin with some steps of fuller messages
            strategy=case.made(told["staleness"]),
            batch_size=case.batch_size,
            epochs=EPOCHS,
        )
        order = WorkOrder(
            workers=told["workers"],
            layout=Layout.of(
                feature_width=FEATURES,
                feature_dtype="float32",
                feature_name="x",
                label_dtype="int64",
                label_name="y",
            ),
            rendezvous=Rendezvous(
                address=tuple(told["address"]),
                secret=bytes.fromhex(told["secret"]),
                patience_seconds=RUN_SECONDS,
                exchange_timeout_seconds=RUN_SECONDS,
                heartbeat_timeout_seconds=RUN_SECONDS,
                state_bytes=STATE_BYTES,
            ),
        )
        with join_job(order, rank, {}) as member:
            run_member(job, order, member, batches, Path(told["folder"]))


@contextmanager
def worker_processes(net: Network, script: str = __file__) -> Iterator[list[subprocess.Popen[str]]]:
    """One on each host; they end with their standard input, so also when this process is killed."""
    processes: list[subprocess.Popen[str]] = []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        for rank, host in enumerate(net.workers):
            command = [sys.executable, script, "--worker", str(rank)]
            with inside(host):
                processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment))
        yield processes
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def train(
    net: Network, processes: list[subprocess.Popen[str]], name: str, staleness: Staleness
) -> dict[str, Any]:
    """One run of a case."""
    secret = new_secret()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fatwood-staleness-"))
        stack.enter_context(inside(net.driver))
        coordinator = stack.enter_context(
            Coordinator(
                workers=len(processes),
                secret=secret,
                host=net.driver_host,
                start_timeout_seconds=RUN_SECONDS,
                heartbeat_timeout_seconds=RUN_SECONDS,
                inbox=Path(folder),
                max_blob_bytes=STATE_BYTES,
            )
        )
        told: dict[str, Any] = {
            "case": name,
            "staleness": staleness,
            "workers": len(processes),
            "folder": folder,
        }
        told |= {"address": coordinator.address, "secret": secret.hex()}
        for process in processes:
            assert process.stdin is not None
            print(json.dumps(told), file=process.stdin, flush=True)
        workers, epochs = heard(coordinator, processes)
        coordinator.finish()
    least = min(workers, key=lambda stats: stats.seconds["exchange"])
    return {
        "steps_per_s": CASES[name].steps / epochs[-1].seconds,
        "exchange_ms": 1000 * least.seconds["exchange"] / least.agreements,
        "exchange_share": least.seconds["exchange"] / sum(epoch.seconds for epoch in epochs),
        "mbit_per_s": 8e-6 * least.bytes_sent / least.seconds["exchange"],
        "message_bytes": least.message_bytes / least.agreements,
        "digest_equal": len({stats.digest for stats in workers}) == 1,
    }


def heard(
    coordinator: Coordinator, processes: list[subprocess.Popen[str]]
) -> tuple[list[WorkerStats], list[EpochRecord]]:
    """What the workers say until all are done."""
    done: dict[int, WorkerStats] = {}
    epochs: list[EpochRecord] = []
    deadline = time.monotonic() + RUN_SECONDS
    while len(done) < len(processes):
        event = coordinator.next_event(POLL_SECONDS)
        if event is None:
            ended = [rank for rank, process in enumerate(processes) if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                why = f"workers {ended} ended" if ended else f"not after {RUN_SECONDS:.0f} s"
                text = f"expected {len(processes)} workers to be done, {len(done)} are: {why}"
                raise RuntimeError(text)
            continue
        if event.kind == "progress":
            records = [record_from_json(values) for values in event.body["records"]]
            epochs += [record for record in records if isinstance(record, EpochRecord)]
        elif event.kind == "done":
            done[event.rank] = WorkerStats.from_json(event.body["stats"])
        elif event.kind == "lost":
            text = f"worker {event.rank} was lost: {event.body['reason']}"
            raise RuntimeError(text)
    assert len(epochs) == EPOCHS
    return [done[rank] for rank in sorted(done)], epochs


def speed(names: list[str], workers: int, mbit: float, repetitions: int) -> dict[str, Any]:
    """Cases, the two settings in turns."""
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {name: {0: [], 1: []} for name in names}
    with host_network(workers, mbit=mbit) as net, worker_processes(net) as processes:
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


def terminated(number: int, _: object) -> None:
    """End as after an error, so that everything is cleared away, undisturbed by more of these signals."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(f"ended by signal {number}")


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
        worker(arguments.worker)
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, terminated)
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
