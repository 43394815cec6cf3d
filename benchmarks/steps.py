"""Steps per second of the demo's fit: plain, with checkpoints, with statistics, and by another Fatwood, in turns.

    python benchmarks/steps.py [--against PYTHON] [--variants plain stats] [--epochs 10] [--repetitions 3] [--json]

PYTHON is the interpreter of an environment with the other version. "checkpoints" writes one every five seconds, "stats" has
`collect_stats=True`. All train the demo's network on its digits with two workers on `local[2]`; the first epoch, which waits
for the rows, is left out. Ratios are of the best repetitions, and
`median_ratio` is the median of the ratios within a turn, since a shared machine drifts; every
second turn runs in the opposite order.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from typing import Any

VARIANTS = ("plain", "checkpoints", "stats")


def one(epochs: int, variant: str) -> float:
    """Seconds of all epochs but the first."""
    from torch import nn

    from fatwood import SparkModel
    from fatwood.demo.digits import digits
    from fatwood.demo.run import BATCH_SIZE, WORKERS, network, optimizer, strategy
    from fatwood.spark.local import local_session

    with local_session(WORKERS) as spark, tempfile.TemporaryDirectory(prefix="fatwood-steps-") as folder:
        options: dict[str, Any] = {"collect_stats": True} if variant == "stats" else {}
        if variant == "checkpoints":  # the other version may not know them
            from fatwood import Checkpoints

            options["checkpoints"] = Checkpoints(uri=folder, every_seconds=5.0)
        train, _ = digits(spark)
        model = SparkModel(network(), loss=nn.CrossEntropyLoss(), optimizer=optimizer, strategy=strategy())
        fit = model.fit(
            train,
            features="pixels",
            label="digit",
            batch_size=BATCH_SIZE,
            epochs=epochs,
            workers=WORKERS,
            progress=False,
            **options,
        )
    return sum(record.seconds for record in fit.history[1:])


def timed(command: list[str]) -> float:
    """The same in a process of its own, by the Fatwood of that interpreter."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Run all in turns and print steps per second, or JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="PYTHON")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(one(arguments.epochs, arguments.one))
        return
    once = [__file__, "--epochs", str(arguments.epochs), "--one"]
    commands = {name: [sys.executable, *once, name] for name in arguments.variants}
    if arguments.against:
        commands["other"] = [arguments.against, *once, "plain"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(arguments.repetitions):
        for name in list(commands)[:: -1 if turn % 2 else 1]:  # whoever is last meets a warmer machine
            seconds[name].append(timed(commands[name]))
    steps = (arguments.epochs - 1) * -(
        -6_000 // 32
    )  # each of two workers has 6,000 rows, in minibatches of 32
    found: dict[str, Any] = {"steps_per_s": {name: steps / min(times) for name, times in seconds.items()}}
    for base in ("plain", "other"):
        for name in seconds.keys() - {"other", base} if base in seconds else ():
            found[f"{name}_over_{base}"] = min(seconds[base]) / min(seconds[name])
            pairs = zip(seconds[base], seconds[name], strict=True)
            found[f"{name}_over_{base}_median_ratio"] = statistics.median(b / n for b, n in pairs)
    print(json.dumps({**found, "seconds": seconds}) if arguments.json else found)


if __name__ == "__main__":
    main()
