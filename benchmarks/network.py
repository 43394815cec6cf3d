"""Time to a fixed quality on a real Spark cluster with slow links, beside PyTorch's and Deeplearning4j's ways.

    python benchmarks/network.py --mnist FOLDER --json                       # four workers, 11 M parameters, 100 Mbit/s and 1 Gbit/s
    python benchmarks/network.py --parts links --steps-of FILE               # times alone, on a quiet machine
    python benchmarks/network.py --quick                                     # few steps, to see that all of it runs
    python benchmarks/network.py --workers 2 --mbit 100 1000 0 --task cnn    # other cells; 0 is a link that is not shaped
    python benchmarks/network.py --mnist FOLDER --tune --methods dl4j --rates 1 2    # times the rate of the table

Each worker is an executor on a host of its own (a network namespace, both ends of its link shaped), with one thread; all methods
train the same rows in the same order and are looked at on the same held-out rows at the same steps. Rivals run in jobs of
PySpark's TorchDistributor (`network_rivals.py`), ours as `SparkModel.fit` (`network_ours.py`), tasks are in `network_tasks.py`,
methods and tuned learning rates in `network_cells.py`.

Time to quality is (steps until the share of wrong answers on held-out rows, for the language model
the loss, is the task's `target`, as a mean of three looks) x (median step time on that link). Looks,
start-up and the first steps are left out for all. Ours is run to the end on each link (`how`: "run"). A rival's arithmetic does not
depend on the link, so its steps are counted once, without shaping, and its step time is that of real steps on the link (`how`:
"steps x step time"). Steps are timed in turns (`--turns`), all methods but PyTorch's own in each, and the median turn counts; the dense
steps with which PowerSGD and Deeplearning4j's scheme begin count as the others, which is kind to them. Of several variants of a
rival the fastest counts. `overhead_1gbit` is our step with one in a thousand sent over that of workers
which exchange nothing, less 1, with the task's minibatches; `overhead_1gbit_large` with three times as many rows. `quality_gaps` are what we lose, in points of accuracy (of a language model in per cent of loss), to one
process that trains the same rows, at a learning rate that falls to zero; one for each of ``--seeds``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from network_cells import METHODS, OURS, RATES, RIVALS, Cell, Measured
from network_driver import Told
from network_tasks import TASKS

from fatwood.testing.cluster import standalone_cluster
from fatwood.testing.network import host_network

LOOK = 10
TIMED, TIMED_SLOW, TIMED_QUICK = 30, 16, 8
"""Steps of a run that is timed only; of one whose steps take seconds; with ``--quick``."""
LIMIT_SECONDS = 3600.0
PARTS = ("steps", "gaps", "links")
"""Steps that rivals need, what is lost in the end, and times on links."""
_OVERHEAD = ("ours-0.1%", "compute")
_SELDOM = ("topk-1%", "ours-1%", "ours-0.5%-ahead", "ours-0.1%-ahead", "ours-0.1%-stale")
"""Run only when they are asked for: exact top-k takes several times as long as from a sample."""


def run(cells: Sequence[Cell], workers: int, mbit: float | None) -> list[Measured]:
    """Cells on a cluster of its own; those that failed are missing or have an error."""
    driver = Path(__file__).with_name("network_driver.py")
    with (
        tempfile.TemporaryDirectory(prefix="fatwood-network-") as folder,
        host_network(workers, mbit=mbit) as net,
        standalone_cluster(workers, network=net) as cluster,
    ):
        output, spec = Path(folder, "measured.jsonl"), Path(folder, "told.json")
        told = Told(
            master=cluster.master,
            host=net.driver_host,
            workers=workers,
            cells=[cell.to_json() for cell in cells],
            output=str(output),
        )
        spec.write_text(json.dumps(told.to_json()))
        command = ["ip", "netns", "exec", net.driver, sys.executable, str(driver), str(spec)]
        own = {"SPARK_LOCAL_IP": net.driver_host, "OMP_NUM_THREADS": "1", "PYSPARK_PYTHON": sys.executable}
        process = subprocess.Popen(command, env=os.environ | own, stdout=sys.stderr)
        try:
            process.wait(LIMIT_SECONDS)
        finally:
            process.kill()
            process.wait()
        lines = output.read_text().splitlines() if output.exists() else []
    found = [Measured.from_json(json.loads(line)) for line in lines]
    for one in found:
        print(
            json.dumps(
                {
                    "mbit": mbit,
                    **one.to_json(),
                    "step_seconds": one.step_median,
                    "cpu_seconds": one.cpu_median,
                }
            ),
            flush=True,
        )
    return found


def curve_cells(base: Cell, methods: Sequence[str], target: float | None) -> list[Cell]:
    """Runs that show how many steps each rival needs."""
    rates = RATES[base.task]
    return [
        replace(base, method=name, rate=rates[name], every=LOOK, until=target)
        for name in methods
        if METHODS[name]["kind"] not in ("compute", "ours")
    ]


def timed_cells(
    base: Cell, methods: Sequence[str], steps: int, *, turns: int, whole: bool, slow: bool
) -> list[Cell]:
    """Runs that show how long a step takes, all methods in turn; ours are whole in the first turn, where asked.

    PyTorch's own and one process are run once: noise is small beside how far they are from the rest.
    """
    cells = []
    for turn in range(turns):
        for name in methods:
            settings, rate = METHODS[name], RATES[base.task].get(name, 0.01)
            dense = slow and settings["kind"] == "ddp" and "rank" not in settings
            if turn == 0 and whole and name in OURS[base.task]:
                cells.append(replace(base, method=name, rate=rate, every=LOOK))
            elif turn == 0 or settings["kind"] not in ("ddp", "alone"):
                few = TIMED_SLOW if dense else steps
                cells.append(replace(base, method=name, rate=rate, steps=min(steps, few)))
    return cells


def gap_cells(base: Cell) -> list[Cell]:
    """One process and ours at a falling rate, looked at after the last step on all rows that are held out."""
    names = ("alone", OURS[base.task][0])
    rows = 2000 if base.task == "transformer" else 10_000
    falling = replace(base, falling=True, every=base.steps, held_out=rows)
    return [replace(falling, method=name, rate=RATES[base.task][name]) for name in names]


def step_of(turns: Sequence[Measured]) -> float:
    """Seconds of a step: the median of the turns' medians; NaN when none was timed."""
    medians = [one.step_median for one in turns if one.step_seconds]
    return statistics.median(medians) if medians else math.nan


def row(
    turns: Sequence[Measured], curve: Measured | None, target: float, mbit: float | None
) -> dict[str, Any]:
    """A method on a link."""
    timed = turns[0]
    own = timed.steps_to(target) if timed.points else None
    steps = own if own is not None else (None if curve is None else curve.steps_to(target))
    step = step_of(turns)
    return {
        "method": timed.cell["method"],
        "mbit": mbit,
        "rate": timed.cell["rate"],
        "steps": steps,
        "step_s": step if math.isfinite(step) else None,
        "cpu_s": timed.cpu_median if timed.cpu_seconds else None,
        "seconds": None if steps is None or not math.isfinite(step) else steps * step,
        "how": "run" if own is not None else "steps x step time",
        "sent_bytes": timed.sent_bytes,
        "phases": dict(timed.phases),
        "steps_timed": sum(len(one.step_seconds) for one in turns),
        "turns_s": [one.step_median for one in turns if one.step_seconds],
        "error": next((one.error for one in turns if one.error), None),
    }


def split(rows: Sequence[dict[str, Any]]) -> None:
    """DDP's step in computing alone, as measured of workers that exchange nothing, and the rest, which does not overlap it."""
    alone = next((one["step_s"] for one in rows if one["method"] == "compute"), None)
    for one in rows:
        if METHODS[one["method"]]["kind"] == "ddp" and None not in (alone, one["step_s"]):
            one["phases"] = {"compute": alone, "codec, exchange and wait": max(0.0, one["step_s"] - alone)}


def speedups(rows: Sequence[Mapping[str, Any]], ours: Sequence[str]) -> dict[str, float | None]:
    """By rival: its fastest variant over our fastest; by step time where no quality was asked for."""
    measure = "seconds" if any(one["steps"] is not None for one in rows) else "step_s"

    def fastest(names: Sequence[str]) -> float | None:
        known = [one[measure] for one in rows if one["method"] in names and one[measure] is not None]
        return min(known, default=None)

    mine = fastest(ours)
    found: dict[str, float | None] = {}
    for rival, variants in RIVALS.items():
        theirs = fastest(variants)
        found[rival] = None if mine is None or theirs is None else theirs / mine
    alone = fastest(("alone",))
    return {**found, "alone": None if mine is None or alone is None else alone / mine}


def link_name(mbit: float | None) -> str:
    """As in the names of results."""
    if mbit is None:
        return "unshaped"
    return f"{mbit / 1000:g}gbit" if mbit >= 1000 else f"{mbit:g}mbit"


def gaps(found: Sequence[Measured], *, language: bool) -> list[dict[str, float]]:
    """What ours loses to one process, by seed; see the module."""
    ends = {
        (one.cell["seed"], METHODS[one.cell["method"]]["kind"]): one.points[-1][1]
        for one in found
        if one.points and one.cell["falling"]
    }
    both = [seed for seed, kind in ends if kind == "ours" and (seed, "alone") in ends]
    rows = []
    for seed in both:
        ours, alone = ends[seed, "ours"], ends[seed, "alone"]
        lost = 100 * (ours - alone) / (alone if language else 1.0)
        rows.append({"seed": seed, "ours": ours, "alone": alone, "lost": lost})
    return rows


def large_cells(base: Cell, rows: int, steps: int, turns: int) -> list[Cell]:
    """Our sparsest step and computing alone, with larger minibatches."""
    large = replace(base, batch_size=rows, steps=steps)
    return [replace(large, method=name, rate=RATES[base.task]["alone"]) for name in _OVERHEAD] * turns


def overhead(timed: Sequence[Measured], rows: int | None) -> float | None:
    """Of our sparsest step over computing alone."""
    mine, compute = (
        step_of([one for one in timed if one.cell["method"] == name and one.cell["batch_size"] == rows])
        for name in _OVERHEAD
    )
    return mine / compute - 1 if math.isfinite(mine / compute) else None


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All that was asked for."""
    task, ours = TASKS[arguments.task], OURS[arguments.task]
    steps = arguments.steps or task.steps
    base = Cell(
        method="alone",
        rate=0.0,
        task=arguments.task,
        steps=steps,
        seed=arguments.seeds[0],
        folder=arguments.mnist,
    )
    methods = [name for name in METHODS if name in arguments.methods]
    curves: dict[str, Measured] = {}
    found: dict[str, Any] = {}
    if arguments.steps_of:
        last = Path(arguments.steps_of).read_text(encoding="utf-8").splitlines()[-1]
        curves = {name: Measured.from_json(one) for name, one in json.loads(last)["curves"].items()}
    asked: list[Cell] = []
    if not arguments.quick and "steps" in arguments.parts:
        asked += curve_cells(base, methods, task.target)
    if not arguments.quick and "gaps" in arguments.parts:
        asked += [cell for seed in arguments.seeds for cell in gap_cells(replace(base, seed=seed))]
    if asked:
        unshaped = run(asked, arguments.workers, None)
        curves |= {one.cell["method"]: one for one in unshaped if not one.cell["falling"]}
        found["quality_gaps"] = gaps(unshaped, language=arguments.task == "transformer")
    table = []
    for given in arguments.mbit if "links" in arguments.parts else ():
        mbit = given or None
        slow = mbit is not None and mbit < 500
        count = TIMED_QUICK if arguments.quick else TIMED
        turns = 1 if arguments.quick else arguments.turns
        asked = timed_cells(base, methods, count, turns=turns, whole=not arguments.quick, slow=slow)
        large = 3 * task.batch_size
        if link_name(mbit) == "1gbit" and set(_OVERHEAD) <= set(methods):
            asked += large_cells(base, large, count, turns)
        timed = run(asked, arguments.workers, mbit)
        usual: dict[str, list[Measured]] = {}
        for one in timed:
            if one.cell["batch_size"] is None:
                usual.setdefault(one.cell["method"], []).append(one)
        rows = [row(of, curves.get(name), task.target, mbit) for name, of in usual.items()]
        split(rows)
        table += rows
        found[f"speedup_{link_name(mbit)}"] = speedups(rows, ours)
        if link_name(mbit) == "1gbit":
            found["overhead_1gbit"] = overhead(timed, None)
            found["overhead_1gbit_large"] = overhead(timed, large)
    setting = {"task": arguments.task, "workers": arguments.workers, "target": task.target}
    curves_json = {name: one.to_json() for name, one in curves.items()}
    return {**found, **setting, "quick": arguments.quick, "table": table, "curves": curves_json}


def tune(arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps to the quality, and the last loss, of each method at each rate, without shaping."""
    task = TASKS[arguments.task]
    base = Cell(method="alone", rate=0.0, task=arguments.task, steps=arguments.steps or task.steps)
    base = replace(base, folder=arguments.mnist, seed=arguments.seeds[0], every=LOOK, until=task.target)
    names = [name for name in arguments.methods if METHODS[name]["kind"] != "compute"]
    usual = RATES[arguments.task]
    cells = [
        replace(base, method=name, rate=times * usual[name]) for name in names for times in arguments.rates
    ]
    found = run(cells, arguments.workers, None)
    best: dict[str, float] = {}
    for name in names:
        mine = [one for one in found if one.cell["method"] == name and one.points]
        if mine:  # of those that do not get there, the one that is nearest
            steps = {one.cell["rate"]: one.steps_to(task.target) for one in mine}
            ends = {one.cell["rate"]: one.points[-1][1] for one in mine}
            best[name] = min(steps, key=lambda rate: (steps[rate] or math.inf, ends[rate]))
    return {
        "best": best,
        "tuned": [
            {
                "method": one.cell["method"],
                "rate": one.cell["rate"],
                "steps": one.steps_to(task.target),
                "quality": one.points[-1][1] if one.points else None,
                "error": one.error,
            }
            for one in found
        ],
    }


def terminated(number: int, _: object) -> None:
    """End as after an error, so that everything is cleared away."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(f"ended by signal {number}")


def main() -> None:
    """Run and print what was measured, or JSON as the last line."""
    usual = [name for name in METHODS if name not in _SELDOM]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="resnet", choices=TASKS)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--mbit", type=float, nargs="+", default=[100.0, 1000.0], help="0: not shaped")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", default=usual)
    parser.add_argument("--steps", type=int, help="the most; by default the task's")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        help="all for the quality in the end, the first for the rest",
    )
    parser.add_argument(
        "--turns", type=int, default=3, help="in which steps are timed; PyTorch's own in the first"
    )
    parser.add_argument("--mnist", help="folder with MNIST's own four files, else the demo's 12,000 digits")
    parser.add_argument(
        "--quick", action="store_true", help="few steps; speed-ups are then of step times alone"
    )
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--steps-of", metavar="FILE", help="take the rivals' steps from what --json printed of an earlier run"
    )
    parser.add_argument("--rates", nargs="+", type=float, default=[0.5, 1.0, 2.0, 4.0], metavar="TIMES")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, terminated)
    found = tune(arguments) if arguments.tune else measure(arguments)
    for one in found.get("tuned") or found["table"]:
        print({name: value for name, value in one.items() if value is not None})
    if arguments.json:
        print(json.dumps({**found, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
