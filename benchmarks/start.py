"""Seconds from the call of `fit` to the end of the first step on a running session, beside TorchDistributor's.

    python benchmarks/start.py [--workers 2] [--repetitions 3] [--json]

A local session that has run a job before; both train the demo's network on as many digits. TorchDistributor's function has its
digits with it, makes a process group of gloo and trains by DistributedDataParallel; ours gets a DataFrame that lies in Spark's
cache. Each is run once before it counts (`first_s`), then in turns. Times are those of the slowest worker, by the machine's clock.
`over_torchdistributor` is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fatwood.train import StepRecord, WorkerCallback, WorkerContext

ROWS = 2048


class FirstStep(WorkerCallback):
    """Writes down when the first step was over.

    Args:
        folder: Of one file for each worker.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def after_agreement(self, worker: WorkerContext, record: StepRecord) -> None:
        """Once."""
        if record.step == 1:
            Path(self.folder, str(worker.rank)).write_text(repr(time.time()))


def ours(data: Any, workers: int, folder: str) -> None:
    """One fit of an epoch."""
    from torch import nn

    from fatwood import SparkModel
    from fatwood.demo.run import BATCH_SIZE, network, optimizer, strategy

    model = SparkModel(network(), loss=nn.CrossEntropyLoss(), optimizer=optimizer, strategy=strategy())
    model.fit(
        data,
        features="pixels",
        label="digit",
        batch_size=BATCH_SIZE,
        workers=workers,
        callbacks=[FirstStep(folder)],
        heartbeat_timeout_seconds=60,
        progress=False,
    )


def theirs(pixels: Any, labels: Any, workers: int, folder: str) -> None:
    """One run of TorchDistributor, of one step."""
    from pyspark.ml.torch.distributor import TorchDistributor

    def train() -> int:
        import time
        from pathlib import Path

        import torch
        import torch.distributed as dist
        from torch import nn

        from fatwood.demo.run import BATCH_SIZE, network, optimizer

        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        called = nn.parallel.DistributedDataParallel(network())
        rows = slice(dist.get_rank() * BATCH_SIZE, (dist.get_rank() + 1) * BATCH_SIZE)
        stepper = optimizer(called.parameters())
        nn.functional.cross_entropy(called(pixels[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
        stepper.step()
        Path(folder, str(dist.get_rank())).write_text(repr(time.time()))
        dist.destroy_process_group()
        return 0

    TorchDistributor(num_processes=workers, local_mode=False, use_gpu=False).run(train)


def timed(call: Callable[[str], None], workers: int) -> float:
    """Seconds until the last worker's first step was over."""
    with tempfile.TemporaryDirectory(prefix="fatwood-start-") as folder:
        begun = time.time()
        call(folder)
        ends = [float(path.read_text()) for path in Path(folder).iterdir()]
    assert len(ends) == workers, ends
    return max(ends) - begun


def measure(workers: int, repetitions: int) -> dict[str, Any]:
    """Both, in turns."""
    import torch

    from fatwood.demo.digits import arrays, digits
    from fatwood.spark.local import local_session

    images, labels = arrays("train")
    pixels = torch.from_numpy(images[:ROWS].reshape(ROWS, -1)).float() / 255
    classes = torch.from_numpy(labels[:ROWS]).long()
    found: dict[str, list[float]] = {"ours": [], "torchdistributor": []}
    with local_session(workers) as spark:
        data = digits(spark)[0].limit(ROWS).cache()
        data.count()
        calls: dict[str, Callable[[str], None]] = {
            "ours": lambda folder: ours(data, workers, folder),
            "torchdistributor": lambda folder: theirs(pixels, classes, workers, folder),
        }
        for turn in range(repetitions + 1):
            for name in list(calls)[:: -1 if turn % 2 else 1]:
                found[name].append(timed(calls[name], workers))
                print(f"{name:18} {'first' if not turn else 'warm':6} {found[name][-1]:6.2f} s", flush=True)
    warm = {name: statistics.median(seconds[1:]) for name, seconds in found.items()}
    return {
        "over_torchdistributor": warm["torchdistributor"] / warm["ours"],
        **{f"{name}_s": seconds for name, seconds in warm.items()},
        "first_s": {name: seconds[0] for name, seconds in found.items()},
        "warm_s": {name: seconds[1:] for name, seconds in found.items()},
        "workers": workers,
    }


def main() -> None:
    """Print the seconds, or JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    found = measure(arguments.workers, arguments.repetitions)
    print(json.dumps(found) if arguments.json else f"{found['over_torchdistributor']:.1f} times sooner")


if __name__ == "__main__":
    main()
