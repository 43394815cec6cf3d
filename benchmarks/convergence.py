"""Test accuracy and bytes of the strategies on the demo's task, at equal rows and equal seeds.

    python benchmarks/convergence.py [--seeds 3] [--epochs N] [--json]

Real MNIST digits (the 12,000 training and 5,000 test rows of the demo), the demo's network, optimizer and batch
size, two workers as threads of this process with the in-process exchange: the arithmetic is that of the Spark job, bit
for bit for equal orders; the seconds are not those of a cluster. Only the strategy differs between runs of one seed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from fatwood.data import Layout
from fatwood.demo.digits import arrays
from fatwood.demo.run import BATCH_SIZE, EPOCHS, WORKERS, network, optimizer, strategy
from fatwood.testing.threads import shard, train_in_threads, training_job
from fatwood.train import AllReduce, ParameterAveraging, Strategy

LAYOUT = Layout(
    feature_width=784, feature_dtype="float32", feature_name="pixels", label_dtype="int64", label_name="digit"
)


def run(chosen: Strategy, seed: int, epochs: int) -> dict[str, Any]:
    """Train once; return accuracy, bytes and seconds."""
    images, labels = arrays("train")
    features = images.astype(np.float32) / 255
    order = np.random.default_rng(seed).permutation(len(labels))
    shards = [shard(features, labels.astype(np.int64), order[rank::WORKERS]) for rank in range(WORKERS)]
    job = training_job(
        network=network(seed),
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        strategy=chosen,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
    )
    start = time.perf_counter()
    outcomes = train_in_threads(job, shards, LAYOUT, timeout_seconds=1800)
    seconds = time.perf_counter() - start
    trained = outcomes[0].network.eval()
    test_images, test_labels = arrays("t10k")
    with torch.inference_mode():
        predicted = trained(torch.from_numpy(test_images.astype(np.float32) / 255)).argmax(1).numpy()
    stats = outcomes[0].stats
    return {
        "strategy": type(chosen).__name__,
        "seed": seed,
        "accuracy": float((predicted == test_labels).mean()),
        "rows": sum(outcome.stats.rows_trained for outcome in outcomes),
        "bytes_per_step": stats.message_bytes / stats.agreements,
        "bytes_per_minibatch": stats.message_bytes / stats.minibatches,
        "dense_bytes": 4 * sum(p.numel() for p in trained.parameters()),
        "digest_equal": len({outcome.stats.digest for outcome in outcomes}) == 1,
        "seconds": seconds,
    }


def main() -> None:
    """Run all strategies for all seeds and print a table, or JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in range(arguments.seeds):
        for chosen in (AllReduce(), strategy(), ParameterAveraging(every=5)):
            runs.append(run(chosen, seed, arguments.epochs))
            print(json.dumps(runs[-1]), flush=True)
    summary = {}
    for name in dict.fromkeys(r["strategy"] for r in runs):
        mine = [r for r in runs if r["strategy"] == name]
        accuracies = [r["accuracy"] for r in mine]
        summary[name] = {
            "accuracy_mean": statistics.mean(accuracies),
            "accuracy_min": min(accuracies),
            "accuracy_max": max(accuracies),
            "times_fewer_bytes": mine[0]["dense_bytes"]
            / statistics.mean(r["bytes_per_minibatch"] for r in mine),
        }
        print(f"{name:20} {summary[name]}")
    if arguments.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__}
        print(json.dumps({"summary": summary, "runs": runs, **machine}))


if __name__ == "__main__":
    main()
