"""``python -m fatwood.testing.simulation``: run schedules by the thousand, or one again."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence

from fatwood.testing.simulation.baton import Theatre
from fatwood.testing.simulation.exploring import explore

_FAILURES_SHOWN = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the schedules; return 1 when a law was broken in one.

    Args:
        arguments: Of the command; the process's own by default.
    """
    parser = argparse.ArgumentParser(prog="python -m fatwood.testing.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000, help="how many to run")
    parser.add_argument("--first-seed", type=int, default=0, help="the seed of the first")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--trace", action="store_true", help="print every step")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    outcomes: Counter[str] = Counter()
    events: Counter[str] = Counter()
    failures: dict[int, str] = {}
    rounds = steps = 0
    with Theatre() as theatre:
        for seed in range(options.first_seed, options.first_seed + options.schedules):
            try:
                report = explore(seed, theatre=theatre, keep_trace=options.trace)
            except AssertionError as error:
                failures[seed] = str(error)
                continue
            outcomes[report.outcome] += 1
            events += report.events
            rounds, steps = rounds + report.rounds, steps + report.steps
            if options.trace:
                print(*report.trace, sep="\n")  # noqa: T201
    seconds = time.perf_counter() - start
    result = {
        "schedules": options.schedules,
        "first_seed": options.first_seed,
        "failed_seeds": list(failures),
        "outcomes": dict(outcomes),
        "rounds": rounds,
        "steps": steps,
        "seconds": round(seconds, 1),
        "events": dict(sorted(events.items())),
    }
    for message in list(failures.values())[:_FAILURES_SHOWN]:
        print(message, file=sys.stderr)  # noqa: T201
    print(json.dumps(result, indent=None if options.json else 2))  # noqa: T201
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
