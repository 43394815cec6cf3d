"""What a step costs as the work grows: rows, parameters, workers; and a simulation of more workers than a machine holds.

    python benchmarks/scale.py [--parts parameters workers simulated rows] [--json]

* ``parameters``: four workers, 0.1 to 100 million parameters, one of a thousand sent: milliseconds of a step by phase.
* ``workers``: 1 to 16 workers on links of 1 Gbit/s, a million parameters; messages directly to all ("mesh"), and by rows and
  columns of a grid ("grid", `fatwood.exchange.grid`).
* ``simulated``: up to 1024 workers with a core each, on the mesh and on the grid. The constants are measured in ``workers``: processor
  seconds of a worker's step alone, for each round, each frame and for each message in it; bytes of a message. Each worker sends its frames one
  after the other; a frame takes its time on the sender's link, then on the receiver's, then on the receiver's
  processor. The same program with the cores of this machine is checked against the measured points.
* ``rows``: `SparkModel.fit` in a local session, two workers, from 10 thousand rows on: seconds of an epoch.

The workers of the first two parts are processes, each in a network namespace (`fatwood.testing.network`), with Fatwood's own exchange
and coordinator and without Spark; they share this machine's cores. Needs root, `ip` and `tc`; ``rows`` needs Java.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import hosts
import numpy as np
import torch
from torch import nn

from fatwood.codec import TargetSparsityThreshold
from fatwood.exchange.grid import LEAST_WORKERS, Grid
from fatwood.testing.network import Network, host_network
from fatwood.train import GradientSharing

FEATURES, CLASSES = 64, 10
BATCH = 8
DENSITY = 1e-3
MBIT = 1000.0
SIMULATED = (32, 64, 128, 256, 512, 1024)
PARTS = ("parameters", "workers", "simulated", "rows")
WAYS = ("mesh", "grid")
PHASES = ("compute", "encode", "exchange", "apply")


def network(parameters: int) -> nn.Module:
    """A perceptron of about so many parameters."""
    torch.manual_seed(0)
    width = round((-FEATURES + (FEATURES**2 + 4 * parameters) ** 0.5) / 2)
    return nn.Sequential(
        nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


def work(told: Mapping[str, Any], rank: int) -> hosts.Work:
    """A worker's part of a case."""
    threshold = TargetSparsityThreshold(initial="quantile", target=DENSITY)
    return hosts.random_work(
        rank,
        rows=told["steps"] * BATCH,
        width=FEATURES,
        classes=CLASSES,
        network=network(told["parameters"]),
        optimizer=partial(torch.optim.SGD, lr=0.02),
        strategy=GradientSharing(threshold=threshold),
        batch_size=BATCH,
        epochs=2,
        two_level_from=LEAST_WORKERS if told["way"] == "grid" else 1 << 30,
    )


def train(
    net: Network, processes: hosts.Processes, parameters: int, steps: int, way: str = "mesh"
) -> dict[str, Any]:
    """One run; milliseconds are of a step, the mean of all workers."""
    run = hosts.run(net, processes, {"parameters": parameters, "steps": steps, "way": way})
    workers, count = run.workers, run.workers[0].agreements
    return {
        "workers": len(workers),
        "way": way,
        "parameters": sum(p.numel() for p in network(parameters).parameters()),
        "step_ms": 1000 * run.epochs[-1].seconds / steps,
        "phases_ms": {
            name: round(1000 * statistics.mean(w.seconds.get(name, 0.0) for w in workers) / count, 3)
            for name in PHASES
        },
        "message_bytes": statistics.mean(w.message_bytes for w in workers) / count,
        "cpu_s": statistics.mean(run.cpu_seconds),
        "agreements": count,
        "digests_equal": len({w.digest for w in workers}) == 1,
    }


def grown_parameters(sizes: list[int]) -> list[dict[str, Any]]:
    """Four workers, larger and larger networks."""
    found = []
    with host_network(4) as net, hosts.worker_processes(net, __file__) as processes:
        for size in sizes:
            found.append(train(net, processes, size, steps=60 if size < 20_000_000 else 10))
            print(json.dumps(found[-1]), flush=True)
    return found


def grown_workers(counts: list[int], parameters: int) -> list[dict[str, Any]]:
    """More and more workers, and the processor's seconds of a step, as the difference of a long and a short run."""
    found = []
    for count in counts:
        with (
            host_network(count, mbit=MBIT) as net,
            hosts.worker_processes(net, __file__) as processes,
        ):
            train(net, processes, parameters, steps=10)  # connections, caches
            for way in WAYS if count >= LEAST_WORKERS else WAYS[:1]:
                short, long = (train(net, processes, parameters, steps, way) for steps in (20, 80))
                steps = long["agreements"] - short["agreements"]
                long["cpu_ms_per_step"] = 1000 * (long["cpu_s"] - short["cpu_s"]) / steps
                found.append(long)
                print(json.dumps(long), flush=True)
    return found


@dataclass(frozen=True)
class Costs:
    """Milliseconds."""

    alone: float
    """Of a processor, for a worker's step without peers."""
    round: float
    """Of a processor, for going through a round."""
    frame: float
    """Of a processor, for a frame sent and one received."""
    message: float
    """Of a processor, for a peer's message, in whatever frame it comes."""
    wire: float
    """Of a message on a link."""


def frames(workers: int, way: str) -> list[list[list[tuple[int, int]]]]:
    """Round by round and worker by worker: to whom it sends in turn, and how many messages are in the frame."""
    if way == "mesh":
        return [[[((rank + i) % workers, 1) for i in range(1, workers)] for rank in range(workers)]]
    grids = [Grid(workers, rank) for rank in range(workers)]
    rows = [
        [
            (other, 1)
            for other in sorted(grid.row, key=lambda other: (other - rank) % workers)
            if other != rank
        ]
        for rank, grid in enumerate(grids)
    ]
    bundles = [
        [
            (other, len(grid.row) if other in grid.sends_to else 0)
            for other in sorted(grid.partners, key=lambda other: (other - rank) % workers)
        ]
        for rank, grid in enumerate(grids)
    ]
    return [rows, bundles]


def simulated_step(workers: int, way: str, costs: Costs, *, sharing: float) -> float:
    """When the slowest worker has the messages of all others, in milliseconds.

    Args:
        workers: How many.
        way: "mesh" or "grid".
        costs: What each thing takes.
        sharing: How many workers have a core together, at least 1.
    """
    ready = [costs.alone * sharing] * workers
    for sends in frames(workers, way):
        arriving: list[list[tuple[float, int]]] = [[] for _ in range(workers)]
        for rank, mine in enumerate(sends):
            at = ready[rank]
            for other, messages in mine:
                at += costs.wire * messages  # on the sender's own link
                arriving[other].append((at, messages))
        for rank, coming in enumerate(arriving):
            link, core = 0.0, ready[rank] + costs.round * sharing
            for at, messages in sorted(coming):
                on_wire = costs.wire * messages
                link = max(link, at - on_wire) + on_wire
                core = max(core, link) + (costs.frame + costs.message * messages) * sharing
            ready[rank] = core
    return max(ready)


def fitted(points: list[dict[str, Any]]) -> Costs:
    """What the measured points say, by least squares."""
    counts = []
    for point in points:
        rounds = frames(point["workers"], point["way"])
        peers = point["workers"] - 1
        counts.append([1, len(rounds) if peers else 0, sum(len(sends[0]) for sends in rounds), peers])
    measured = [point["cpu_ms_per_step"] for point in points]
    found = np.linalg.lstsq(np.array(counts, float), np.array(measured), rcond=None)[0]
    message_bytes = statistics.median(p["message_bytes"] for p in points if p["workers"] > 1)
    return Costs(*map(float, found), wire=8e-3 * (message_bytes + 66) / MBIT)


def simulated(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Constants of the measured points, what they say of these points, and of more workers with a core each."""
    costs, cores = fitted(points), os.cpu_count() or 1
    checks = []
    for point in points:
        sharing = max(1.0, point["workers"] / cores)
        step = simulated_step(point["workers"], point["way"], costs, sharing=sharing)
        checks.append([point["workers"], point["way"], step / point["step_ms"]])
    steps = {
        way: {count: simulated_step(count, way, costs, sharing=1.0) for count in (4, 8, 16, *SIMULATED)}
        for way in WAYS
    }
    return {"costs_ms": asdict(costs), "predicted_over_measured": checks, "step_ms": steps}


def grown_rows(counts: list[int]) -> list[dict[str, Any]]:
    """An epoch of a fit from Spark, with more and more rows."""
    from pyspark.sql import functions as F

    from fatwood import SparkModel
    from fatwood.spark.local import local_session

    found = []
    with local_session(2) as spark:
        for count in counts:
            columns = [F.rand(seed=column).cast("float").alias(f"x{column}") for column in range(20)]
            rows = spark.range(count).select(*columns, (F.col("id") % 2).alias("y"))
            model = SparkModel(
                nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2)),
                loss=nn.CrossEntropyLoss(),
                optimizer=partial(torch.optim.SGD, lr=0.1),
            )
            begun = time.perf_counter()
            fit = model.fit(
                rows,
                features=[f"x{column}" for column in range(20)],
                label="y",
                batch_size=1024,
                epochs=2,
                workers=2,
                progress=False,
            )
            whole = time.perf_counter() - begun
            epoch = fit.history[-1].seconds
            assert fit.stats.rows_trained == 2 * count
            found.append({"rows": count, "fit_s": whole, "epoch_s": epoch, "rows_per_s": count / epoch})
            print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    """Run the parts and print what was measured, or JSON as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--parameters", nargs="+", type=float, default=[1e5, 1e6, 1e7, 1e8])
    parser.add_argument("--rows", nargs="+", type=float, default=[1e4, 1e5, 1e6, 1e7])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        hosts.serve(given.worker, work)
        return
    hosts.end_by_signals()
    found: dict[str, Any] = {}
    if "parameters" in given.parts:
        found["parameters"] = grown_parameters([int(size) for size in given.parameters])
    if {"workers", "simulated"} & set(given.parts):
        found["workers"] = grown_workers(given.workers, 1_000_000)
    if "simulated" in given.parts:
        found["simulated"] = simulated(found["workers"])
        print(json.dumps(found["simulated"]), flush=True)
    if "rows" in given.parts:
        found["rows"] = grown_rows([int(count) for count in given.rows])
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
