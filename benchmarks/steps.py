"""Steps per second of the demo's fit, by this Fatwood and by another one, in turns.

    python benchmarks/steps.py [--against PYTHON] [--epochs 10] [--repetitions 3] [--json]

PYTHON is the interpreter of an environment with the other version. Both train the demo's network on its digits with two
workers on `local[2]`; the first epoch, which waits for the rows, is left out. The best repetition counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any


def one(epochs: int) -> float:
    """Seconds of all epochs but the first."""
    from torch import nn

    from fatwood import SparkModel
    from fatwood.demo.digits import digits
    from fatwood.demo.run import BATCH_SIZE, WORKERS, network, optimizer, strategy
    from fatwood.spark.local import local_session

    with local_session(WORKERS) as spark:
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
        )
    return sum(record.seconds for record in fit.history[1:])


def timed(python: str, epochs: int) -> float:
    """The same in a process of its own, by the Fatwood of this interpreter."""
    command = [python, __file__, "--one", "--epochs", str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Run both in turns and print steps per second, or JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="PYTHON")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(one(arguments.epochs))
        return
    pythons = {"this": sys.executable} | ({"other": arguments.against} if arguments.against else {})
    seconds: dict[str, list[float]] = {name: [] for name in pythons}
    for _ in range(arguments.repetitions):
        for name, python in pythons.items():
            seconds[name].append(timed(python, arguments.epochs))
    steps = (arguments.epochs - 1) * -(
        -6_000 // 32
    )  # each of two workers has 6,000 rows, in minibatches of 32
    found: dict[str, Any] = {"steps_per_s": {name: steps / min(times) for name, times in seconds.items()}}
    if arguments.against:
        found["this_over_other"] = min(seconds["other"]) / min(seconds["this"])
    print(json.dumps({**found, "seconds": seconds}) if arguments.json else found)


if __name__ == "__main__":
    main()
