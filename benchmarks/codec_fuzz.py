"""Mutated messages against the decoder, in processes of their own so that a crash is counted and not suffered.

    python benchmarks/codec_fuzz.py [--mutations 10000000] [--processes 2] [--seed 0] [--json]

The mutations are those of `fatwood.testing.fuzzing`; ``FATWOOD_KERNEL`` chooses the kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from typing import Any

import numpy as np

from fatwood.codec import kernel
from fatwood.testing.fuzzing import decodes_soundly, mutants, seed_messages

CHUNK = 250_000
"""Mutations of one process."""


def fuzz(mutations: int, processes: int = 2, seed: int = 0) -> dict[str, Any]:
    """Decode that many mutants, several processes at a time.

    Returns:
        Counts of accepted and refused mutants, and of processes that ended in any other way (each printed).
    """
    start = time.perf_counter()
    chunks = [(seed + i, min(CHUNK, mutations - i * CHUNK)) for i in range(-(-mutations // CHUNK))]
    totals = {"mutations": 0, "accepted": 0, "refused": 0, "failures": 0}
    running: list[tuple[int, subprocess.Popen[str]]] = []
    while chunks or running:
        while chunks and len(running) < processes:
            chunk_seed, count = chunks.pop()
            command = [sys.executable, __file__, "--chunk", str(count), "--seed", str(chunk_seed)]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            running.append((chunk_seed, child))
        chunk_seed, process = running.pop(0)
        output, _ = process.communicate(timeout=3600)
        if process.returncode:
            totals["failures"] += 1
            print(f"seed {chunk_seed}: exit code {process.returncode}", flush=True)
            continue
        for key, value in json.loads(output).items():
            totals[key] += value
    return {**totals, "kernel": kernel.active().name, "seconds": time.perf_counter() - start}


def _chunk(count: int, seed: int) -> dict[str, int]:
    seeds = seed_messages(np.random.default_rng(seed))
    chooser = random.Random(seed)
    accepted = sum(decodes_soundly(*mutant) for mutant in mutants(seeds, count, chooser))
    return {"mutations": count, "accepted": accepted, "refused": count - accepted}


def main() -> None:
    """Run all chunks, or one of them for a parent process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10_000_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    if arguments.chunk is not None:
        print(json.dumps(_chunk(arguments.chunk, arguments.seed)))
        return
    totals = fuzz(arguments.mutations, arguments.processes, arguments.seed)
    print(
        f"{totals['mutations']:,} mutants in {totals['seconds']:.0f} s on the {totals['kernel']} kernel: "
        f"{totals['accepted']:,} accepted and sound, {totals['refused']:,} refused, {totals['failures']} failures"
    )
    if arguments.json:
        print(json.dumps(totals))
    sys.exit(1 if totals["failures"] else 0)


if __name__ == "__main__":
    main()
