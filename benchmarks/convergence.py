"""Test accuracy and bytes of the strategies at equal rows and equal seeds.

    python benchmarks/convergence.py [--mnist FOLDER] [--workers 4] [--seeds 3] [--epochs 3] [--json]

FOLDER has MNIST's own four files (60,000 training and 10,000 test rows); without it, the demo's 12,000 and 5,000 rows. The
demo's network, SGD with momentum 0.9, minibatches of 32 on each worker; the learning rate falls to zero with the steps, from
`--rate`. Workers are threads of this process with the in-process exchange: the arithmetic is that of the Spark job, bit for
bit for equal orders; the seconds are not those of a cluster. Only the strategy differs between runs of one seed.
`worst_gap_points`: how far the mean accuracy of the worst strategy is below that of `AllReduce`, in points.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fatwood.codec import AdaptiveThreshold, TargetSparsityThreshold
from fatwood.data import Layout
from fatwood.demo.digits import arrays
from fatwood.demo.run import BATCH_SIZE, WORKERS, network, optimizer
from fatwood.testing.threads import shard, train_in_threads, training_job
from fatwood.train import AllReduce, DiLoCo, GradientSharing, LookAhead, ParameterAveraging, Strategy

LAYOUT = Layout.of(
    feature_width=784, feature_dtype="float32", feature_name="pixels", label_dtype="int64", label_name="digit"
)


STRATEGIES: dict[str, Strategy] = {
    "AllReduce": AllReduce(),
    "GradientSharing": GradientSharing(threshold=AdaptiveThreshold(initial=1e-3)),
    "GradientSharing, ahead": GradientSharing(threshold=AdaptiveThreshold(initial=1e-3), ahead=LookAhead()),
    "ParameterAveraging(every=5)": ParameterAveraging(every=5),
    "DiLoCo(every=20)": DiLoCo(every=20, outer_lr=0.7, outer_momentum=0.5),
    "DiLoCo(every=20), threshold": DiLoCo(
        every=20,
        outer_lr=0.7,
        outer_momentum=0.5,
        threshold=TargetSparsityThreshold(initial="quantile", target=0.05),
    ),
}


def run(
    chosen: Strategy,
    seed: int,
    epochs: int,
    *,
    workers: int = WORKERS,
    rate: float | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Train once; return accuracy, bytes and seconds. Without a rate it is the demo's, and constant."""
    images, labels = arrays("train", folder)
    features = images.astype(np.float32) / 255
    order = np.random.default_rng(seed).permutation(len(labels))
    shards = [shard(features, labels.astype(np.int64), order[rank::workers]) for rank in range(workers)]
    steps = epochs * -(-len(shards[0][0]) // BATCH_SIZE)
    falling = partial(torch.optim.lr_scheduler.PolynomialLR, total_iters=steps + 1)
    job = training_job(
        network=network(seed),
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer if rate is None else partial(torch.optim.SGD, lr=rate, momentum=0.9),
        scheduler=None if rate is None else falling,
        strategy=chosen,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
    )
    start = time.perf_counter()
    outcomes = train_in_threads(job, shards, LAYOUT, timeout_seconds=3600)
    seconds = time.perf_counter() - start
    trained = outcomes[0].network.eval()
    test_images, test_labels = arrays("t10k", folder)
    with torch.inference_mode():
        predicted = trained(torch.from_numpy(test_images.astype(np.float32) / 255)).argmax(1).numpy()
    stats = outcomes[0].stats
    return {
        "seed": seed,
        "accuracy": float((predicted == test_labels).mean()),
        "rows": sum(outcome.stats.rows_trained for outcome in outcomes),
        "bytes_per_step": stats.message_bytes / stats.agreements,
        "bytes_per_minibatch": stats.message_bytes / stats.minibatches,
        "dense_bytes": 4 * sum(p.numel() for p in trained.parameters()),
        "digest_equal": len({outcome.stats.digest for outcome in outcomes}) == 1,
        "seconds": seconds,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Each strategy over its seeds."""
    accuracies = [r["accuracy"] for r in runs]
    sent = statistics.mean(r["bytes_per_minibatch"] for r in runs)
    return {
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_min": min(accuracies),
        "accuracy_max": max(accuracies),
        "bytes_per_minibatch": sent,
        "times_fewer_bytes": runs[0]["dense_bytes"] / sent,
    }


def main() -> None:
    """Run all strategies for all seeds and print a table, or JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="folder with MNIST's own four files")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in STRATEGIES}
    options = {"workers": arguments.workers, "rate": arguments.rate, "folder": arguments.mnist}
    for seed in range(arguments.seeds):
        for name, chosen in STRATEGIES.items():
            runs[name].append(run(chosen, seed, arguments.epochs, **options))
            print(json.dumps({"strategy": name, **runs[name][-1]}), flush=True)
    found = {name: summary(mine) for name, mine in runs.items()}
    for name, figures in found.items():
        print(f"{name:30} {figures}")
    means = {name: figures["accuracy_mean"] for name, figures in found.items()}
    worst = 100 * (means["AllReduce"] - min(means.values()))
    if arguments.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__}
        print(json.dumps({"worst_gap_points": worst, "summary": found, "runs": runs, **machine}))


if __name__ == "__main__":
    main()
