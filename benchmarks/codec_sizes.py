"""How many bits a non-zero costs: random masks against their entropy, and real ones from training.

The bound is that of independent positions and fair signs: ``n * H(count / n) + count`` bits, with H the binary
entropy of the density that the mask has. Sizes are those of whole messages, headers and checksums included.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import codec_peers as peers
import numpy as np
import torch
from convergence import LAYOUT
from torch import nn

import fatwood.demo.run as demo
from fatwood.codec import Coder, TargetSparsityThreshold, ThresholdEncoder, decode, encode
from fatwood.demo.digits import arrays
from fatwood.testing.threads import shard, train_in_threads, training_job
from fatwood.train import GradientSharing

DENSITIES = tuple(float(p) for p in np.geomspace(1e-4, 0.3, 72))
"""Of the random masks; neighbours differ by an eighth, so no peak of the Rice code's sawtooth is stepped over."""

STEP = 1000
"""The step in the headers: two bytes, as for most of a training run."""

TAU = 2.0**-10
"""Any float32 number: it takes four bytes whatever it is."""

EDGES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Classes of density for the real masks."""


def entropy_bits(n: int, count: int) -> float:
    """``n * H(count / n) + count``."""
    rest = n - count
    position = sum(m * math.log2(n / m) for m in (count, rest) if m)
    return position + count


def rice_bits(p: float) -> float:
    """Expected bits per non-zero, sign included, of a Rice code with the best single k on random positions."""
    return 1 + min(k + 1 / -math.expm1(2**k * math.log1p(-p)) for k in range(40))


def random_mask(rng: np.random.Generator, n: int, p: float) -> tuple[peers.Positions, peers.Signs]:
    """Each of n parameters moves with probability p, up or down alike."""
    positions = np.flatnonzero(rng.random(n, np.float32) < p)
    return positions, rng.integers(0, 2, positions.size, np.int8).view(bool)


def random_masks(sizes: tuple[int, ...], seed: int) -> list[dict[str, Any]]:
    """Our message for random masks of every size and density with at least 900 expected non-zeros.

    Returns:
        One row for each: n, p, count, bits, entropy (bits), ratio.
    """
    rows = []
    for n in sizes:
        for index, p in enumerate(DENSITIES):
            if n * p < 900:
                continue
            for repetition in range(5 if n <= 2**20 else 1):
                rng = np.random.default_rng([seed, n, index, repetition])
                positions, negative = random_mask(rng, n, p)
                bits = 8 * len(encode(STEP, n, TAU, positions, negative))
                entropy = entropy_bits(n, positions.size)
                figures = {"count": positions.size, "bits": bits, "entropy": entropy, "ratio": bits / entropy}
                rows.append({"n": n, "p": p, **figures})
    return rows


def worst(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The largest ratio to the entropy by the least number of non-zeros."""
    return {
        f"nnz>={least}": max((row["ratio"] for row in rows if row["count"] >= least), default=math.nan)
        for least in (1_000, 10_000, 100_000)
    }


def curve(n: int, seed: int) -> list[dict[str, Any]]:
    """Bits per non-zero of all formats on the same random masks, by density.

    Returns:
        One row for each density: p and the bits by format; a format that is not installed is left out.
    """
    zstd = peers.zstd_compressor()
    rows = []
    for index, p in enumerate(DENSITIES):
        positions, negative = random_mask(np.random.default_rng([seed, n, index]), n, p)
        count = positions.size
        message = encode(STEP, n, TAU, positions, negative)
        row = {
            "p": p,
            "count": count,
            "coder": decode(message, n).coder.name,
            "entropy": entropy_bits(n, count) / count,
            "fatwood": 8 * len(message) / count,
            "Rice, one k (theory)": rice_bits(count / n),
            "DL4J int32": 32 * (peers.DL4J_HEADER_INTS + count) / count,
            "DL4J bitmap": 32 * (n // 16 + 1 + peers.DL4J_HEADER_INTS) / count,
            "DL4J as sent": 8 * peers.dl4j_bytes(n, count) / count,
            "top-k, int32 + float32": 64.0,
        }
        if zstd is not None:
            entries = {
                "zstd of int32": peers.int32_entries(positions, negative),
                "zstd of deltas": peers.delta_entries(positions, negative, shuffled=False),
                "zstd of shuffled deltas": peers.delta_entries(positions, negative, shuffled=True),
            }
            row |= {name: 8 * len(zstd.compress(data)) / count for name, data in entries.items()}
        rows.append(row)
    return rows


class Sent(NamedTuple):
    """What is kept of a message that was sent in training."""

    n: int
    count: int
    bits: int
    coder: Coder


def mlp(seed: int = 0) -> nn.Module:
    """784-512-512-10 with ReLU."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"CNN": demo.network, "MLP": mlp}

TARGETS = (1e-2, 1e-3)
"""Densities of the trainings besides those with the demo's own threshold."""

TARGET_DECAY = 0.8
"""With momentum the updates grow about tenfold in the first steps; tau follows in as many steps."""


def real_masks(epochs: int, seed: int) -> dict[str, Any]:
    """Bits over the i.i.d. bound of all messages of short trainings on the demo's digits.

    Args:
        epochs: Of each training.
        seed: Of networks and order of rows.

    Returns:
        ``CNN`` and ``MLP``: the ratio of the sums over all messages, with the demo's own strategy; ``by_density``: the
        same by class of density; ``messages``: figures of all runs, also of those that steer to a density.
    """
    strategies = {"default": demo.strategy()}
    for p in TARGETS:
        strategies[f"target {p:g}"] = GradientSharing(
            threshold=TargetSparsityThreshold(initial="quantile", target=p, decay=TARGET_DECAY)
        )
    headline, classes, described = {}, {}, {}
    for name, make in NETWORKS.items():
        for kind, chosen in strategies.items():
            sent = _train(make(seed), chosen, epochs, seed)
            described[f"{name}, {kind}"] = _described(sent)
            if kind == "default":
                headline[name], classes[name] = _ratio(sent), _by_density(sent)
    return {**headline, "by_density": classes, "messages": described}


def _train(network: nn.Module, chosen: GradientSharing, epochs: int, seed: int) -> list[Sent]:
    images, labels = arrays("train")
    order = np.random.default_rng(seed).permutation(len(labels))
    features = images.astype(np.float32) / 255
    shards = [
        shard(features, labels.astype(np.int64), order[rank :: demo.WORKERS]) for rank in range(demo.WORKERS)
    ]
    job = training_job(
        network=network,
        loss=nn.CrossEntropyLoss(),
        optimizer=demo.optimizer,
        strategy=chosen,
        batch_size=demo.BATCH_SIZE,
        epochs=epochs,
        seed=seed,
    )
    with _listening() as sent:
        train_in_threads(job, shards, LAYOUT, timeout_seconds=1800)
    return sent


@contextlib.contextmanager
def _listening() -> Iterator[list[Sent]]:
    """The messages that encoders return meanwhile, of all threads."""
    encode_update = ThresholdEncoder.encode
    sent: list[Sent] = []

    def listen(encoder: ThresholdEncoder, *arguments: Any, **options: Any) -> bytes:
        message = encode_update(encoder, *arguments, **options)
        read = decode(message, encoder.n)
        count = read.positions.size if read.values is None else read.n
        sent.append(Sent(encoder.n, count, 8 * len(message), Coder(read.coder)))
        return message

    ThresholdEncoder.encode = listen  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        ThresholdEncoder.encode = encode_update  # type: ignore[method-assign]


def _ratio(sent: list[Sent]) -> float:
    bound = sum(entropy_bits(message.n, message.count) for message in sent)
    return sum(message.bits for message in sent) / bound if bound else math.nan


def _by_density(sent: list[Sent]) -> dict[str, dict[str, float]]:
    classes = {}
    for low, high in itertools.pairwise(EDGES):
        mine = [message for message in sent if low < message.count / message.n <= high]
        if mine:
            classes[f"{low:g}-{high:g}"] = {"ratio": _ratio(mine), "messages": len(mine)}
    return classes


def _described(sent: list[Sent]) -> dict[str, Any]:
    nonzeros = sum(message.count for message in sent)
    return {
        "ratio": _ratio(sent),
        "n": sent[0].n,
        "messages": len(sent),
        "empty": sum(not message.count for message in sent),
        "mean_density": nonzeros / sum(message.n for message in sent),
        "bits_per_nonzero": sum(message.bits for message in sent) / nonzeros,
        "coders": {coder.name: sum(message.coder is coder for message in sent) for coder in Coder},
    }
