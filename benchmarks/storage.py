"""What saving and loading a large model costs beside a plain copy of the same bytes, on the local disk.

    python benchmarks/storage.py [--megabytes 1024] [--rounds 5] [--folder FOLDER] [--json]

In turns: `SparkModel.save` to a path where nothing is, and a copy of its file with `shutil.copyfile` to another such path, both synced to
the disk as `save` does; the same where a file of the same size is replaced, the copy by a temporary file that is renamed and whose folder is synced, as by `save`; then
`SparkModel.load`, and a copy that is not synced, since loading writes nothing. Every checksum is computed, and after loading
every tensor is compared with the original, outside of the time. The file is in the system's cache in all of them. A figure is
the median of the rounds: `save_over_copy`, `replace_over_copy` and `load_over_copy` say how many times as fast as the copy it was. `load_mb` is
the memory that loading took for itself: tensors of a mapped file are shared by all processes of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fatwood import SparkModel

WIDTH = 4096  # a layer of 64 MiB


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def network(megabytes: int) -> nn.Module:
    """Dense layers of random numbers."""
    torch.manual_seed(0)
    layers = max(megabytes * 2**20 // (4 * WIDTH * WIDTH), 1)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))


def copy(source: Path, target: Path, *, synced: bool) -> None:
    """A plain copy."""
    shutil.copyfile(source, target)
    if synced:
        with open(target, "rb+") as file:
            os.fsync(file.fileno())


def copy_replacing(source: Path, target: Path) -> None:
    """A copy that is there whole or not at all."""
    new = target.with_suffix(".new")
    copy(source, new, synced=True)
    new.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def private_mb() -> float:
    """Memory of this process that no other shares."""
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    lines = [line for line in rollup if line.startswith(("Private_Dirty", "Swap:"))]
    return sum(int(line.split()[1]) for line in lines) / 1024


def measured(megabytes: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Save, load and copy in turns."""
    model = SparkModel(network(megabytes))
    saved, copied, fresh = (folder / name for name in ("model.fatwood", "copy", "fresh.fatwood"))
    times: dict[str, list[float]] = defaultdict(list)
    taken = []
    model.save(saved)
    for _ in range(rounds):
        for path in (fresh, copied):
            path.unlink(missing_ok=True)
        times["save"].append(seconds(lambda: model.save(fresh)))
        times["synced_copy"].append(seconds(lambda: copy(saved, copied, synced=True)))
        times["replace"].append(seconds(lambda: model.save(fresh)))
        times["synced_copy_replacing"].append(seconds(lambda: copy_replacing(saved, copied)))
    for _ in range(rounds):
        before, start = private_mb(), time.perf_counter()
        loaded = SparkModel.load(saved)
        times["load"].append(time.perf_counter() - start)
        taken.append(private_mb() - before)
        pairs = zip(loaded.network.parameters(), model.network.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        del loaded, pairs
        copied.unlink(missing_ok=True)
        times["copy"].append(seconds(lambda: copy(saved, copied, synced=False)))
    median = {name: statistics.median(of) for name, of in times.items()}
    return {
        "save_over_copy": median["synced_copy"] / median["save"],
        "replace_over_copy": median["synced_copy_replacing"] / median["replace"],
        "load_over_copy": median["copy"] / median["load"],
        "load_mb": statistics.median(taken),
        "file_mb": saved.stat().st_size / 2**20,
        "seconds": {name: [round(value, 4) for value in of] for name, of in times.items()},
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fatwood-storage-", dir=given.folder) as folder:
        found = measured(given.megabytes, given.rounds, Path(folder))
    if given.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:16} {value if isinstance(value, dict) else format(value, '.2f')}")


if __name__ == "__main__":
    main()
