"""Steps that each method needs to the loss of tuned dense training, every method at its own best learning rate.

    python benchmarks/steps_to_loss.py [--tasks cnn lstm transformer] [--methods NAME ...] [--seeds 2] [--json]

Four workers in one process, with the library's encoder, messages and outer step (`steps_methods.py`). For each task:

1. dense training (one optimizer step on the mean gradient of the four minibatches) with every rate of the grid; the best
   one's held-out loss at the task's number of steps is the target;
2. every method with every rate of the grid on the first seed, until it reaches the target;
3. each at its best rate, on all seeds: steps over dense's own steps of that seed, to the target of that seed.

Held-out loss is measured every ten steps at the agreed parameters, smoothed over three points and interpolated. Rates
rise for 20 steps and are constant then. Bytes are those of the messages, over 4 bytes a parameter and minibatch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any, NamedTuple

import torch
from steps_methods import EVERY, METHODS, Curve, Method, run
from steps_tasks import TASKS, Task

LIMIT = 2.0
"""Times dense's steps after which a run is given up."""


class Reached(NamedTuple):
    """A method on one seed."""

    ratio: float | None
    """Steps over dense's; None when the loss was not reached."""
    share: float
    """Bytes over dense's."""


def dense_curve(task: Task, rate: float, seed: int) -> Curve:
    """Of tuned dense training, two points longer than the task so that the last one is smooth."""
    return run(task, METHODS["dense"], rate=rate, seed=seed, steps=task.steps + 2 * EVERY)


def tuned_dense(task: Task, grid: list[float], seed: int) -> tuple[float, Curve]:
    """The best rate of the grid and its curve."""
    curves = {times: dense_curve(task, times * task.rate, seed) for times in grid}
    best = min(curves, key=lambda times: curves[times].loss_at(task.steps))
    for times, curve in curves.items():
        print(f"  dense at rate x{times:g}: {curve.loss_at(task.steps):.4f} at step {task.steps}", flush=True)
    return best, curves[best]


def reach(task: Task, method: Method, rate: float, seed: int, dense: Curve) -> Reached:
    """One run of a method until it reaches dense's loss."""
    target = dense.loss_at(task.steps)
    curve = run(
        task, method, rate=rate, seed=seed, steps=round(LIMIT * task.steps / EVERY) * EVERY, target=target
    )
    mine, theirs = curve.steps_to(target), dense.steps_to(target)
    return Reached(None if mine is None or theirs is None else mine / theirs, curve.share_of_dense)


def tuned(task: Task, method: Method, grid: list[float], dense: Curve) -> tuple[float, Reached]:
    """The best rate of the grid on seed 0, and what it reached."""
    found = {times: reach(task, method, times * task.rate, 0, dense) for times in grid}
    best = min(found, key=lambda times: found[times].ratio or float("inf"))
    return best, found[best]


def measure(name: str, methods: list[str], grid: list[float], seeds: int) -> list[dict[str, Any]]:
    """All methods on one task; one row of the table each."""
    task = TASKS[name]()
    print(f"{name}:", flush=True)
    dense_rate, first = tuned_dense(task, grid, 0)
    curves = [first, *(dense_curve(task, dense_rate * task.rate, seed) for seed in range(1, seeds))]
    rows: list[dict[str, Any]] = [
        {
            "task": name,
            "method": "dense",
            "rate": dense_rate,
            "ratio": 1.0,
            "bytes_share": 1.0,
            "ratios": [1.0] * seeds,
        }
    ]
    for label in methods:
        begun, method = time.perf_counter(), METHODS[label]
        best, reached = tuned(task, method, grid, first)
        runs = [reached]
        if reached.ratio is not None:
            runs += [reach(task, method, best * task.rate, seed, curves[seed]) for seed in range(1, seeds)]
        ratios = [one.ratio for one in runs]
        known = [ratio for ratio in ratios if ratio is not None]
        rows.append(
            {
                "task": name,
                "method": label,
                "rate": best,
                "ratio": statistics.mean(known) if len(known) == len(ratios) else None,
                "ratios": ratios,
                "bytes_share": statistics.mean(one.share for one in runs),
                "loss": first.loss_at(task.steps),
                "seconds": time.perf_counter() - begun,
            }
        )
        print("  " + line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    ratio = f"> {LIMIT:g}" if row["ratio"] is None else f"{row['ratio']:.3f}"
    each = ", ".join("-" if ratio is None else f"{ratio:.3f}" for ratio in row["ratios"])
    times = 1 / row["bytes_share"]
    return f"{row['method']:20} rate x{row['rate']:<4g} steps {ratio:>6} ({each})  {times:6.1f} times fewer bytes"


def main() -> None:
    """Print the table, or JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument("--methods", nargs="+", choices=[*METHODS][1:], default=[*METHODS][1:])
    parser.add_argument("--rates", nargs="+", type=float, default=[1.0, 2.0, 4.0, 8.0], metavar="TIMES")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for name in arguments.tasks
        for row in measure(name, arguments.methods, arguments.rates, arguments.seeds)
    ]
    if arguments.json:
        print(json.dumps({**_best(rows), "table": rows, "torch": torch.__version__}))


def _best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The fewest steps of any method that sends at most 1/32 of dense's bytes, by task."""
    best: dict[str, Any] = {}
    for name in dict.fromkeys(row["task"] for row in rows):
        fit = [r for r in rows if r["task"] == name and r["bytes_share"] <= 1 / 32 and r["ratio"] is not None]
        chosen = min(fit, key=lambda row: row["ratio"], default=None)
        best[f"steps_ratio_{name}"] = None if chosen is None else chosen["ratio"]
        best[f"steps_method_{name}"] = None if chosen is None else chosen["method"]
        best[f"steps_bytes_share_{name}"] = None if chosen is None else chosen["bytes_share"]
    return best


if __name__ == "__main__":
    main()
