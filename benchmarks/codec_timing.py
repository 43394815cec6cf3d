"""How long encoding and decoding take: the rows of the table of `codec.py`.

A cell is one n and one density. All methods of a cell work on the same buffers: an update of Laplace-distributed
numbers, a residual which is another draw of the same, and tau the exact quantile of the sum, so that the density is
met to one element. Before every repetition, outside of the timed region, the residual is put back and the update is
read once. The methods take turns, so what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import codec_peers as peers
import numpy as np
import torch
from numpy.typing import NDArray

from fatwood.codec import FixedThreshold, ThresholdEncoder, apply_messages, decode, kernel
from fatwood.codec.native import NativeKernel

Floats = NDArray[np.float32]

SCALE = 1e-3
"""Mean absolute value of the updates."""

FLOORS = ("r += g, NumPy", "r += g, torch", "r += g, our C")
"""All are compiled and vectorised; the fastest is the floor of its cell."""

MOST_REPETITIONS = 1000


class Method(NamedTuple):
    """Something to time."""

    run: Callable[[], object]
    kernel: kernel.Kernel  # that the library works with meanwhile


class Timing(NamedTuple):
    """Seconds of a method's repetitions."""

    best: float
    median: float
    repetitions: int


@contextlib.contextmanager
def using(chosen: kernel.Kernel) -> Iterator[None]:
    """Inside, the library works with that kernel."""
    before = kernel.active
    kernel.active = lambda: chosen  # type: ignore[assignment]
    try:
        yield
    finally:
        kernel.active = before


def take_turns(
    methods: Mapping[str, Method], prepare: Callable[[], object], seconds: float
) -> dict[str, Timing]:
    """Time each method until it has used its seconds, in turns, at least twice.

    Args:
        methods: What to time, by name.
        prepare: Runs before each repetition and is not timed.
        seconds: For each method.
    """
    times: dict[str, list[float]] = {name: [] for name in methods}
    pending = list(methods)
    gc.collect()
    gc.disable()
    try:
        while pending:
            for name in pending:
                with using(methods[name].kernel):
                    prepare()
                    start = time.perf_counter()
                    methods[name].run()
                    times[name].append(time.perf_counter() - start)
            pending = [name for name in pending if not _enough(times[name], seconds)]
    finally:
        gc.enable()
    return {name: Timing(min(t), statistics.median(t), len(t)) for name, t in times.items()}


def _enough(times: Sequence[float], seconds: float) -> bool:
    return len(times) >= 2 and (sum(times) >= seconds or len(times) >= MOST_REPETITIONS)


def laplace(rng: np.random.Generator, n: int) -> Floats:
    """(n,) Laplace-distributed numbers: the difference of two exponential ones."""
    values = rng.standard_exponential(n, np.float32)
    for start in range(0, n, peers.CHUNK):
        part = values[start : start + peers.CHUNK]
        part -= rng.standard_exponential(part.size, np.float32)
    values *= np.float32(SCALE)
    return values


def thresholds(total: Floats, densities: Sequence[float]) -> dict[float, float]:
    """For each density the tau that ``round(density * n)`` of the absolute values reach."""
    size = np.abs(total)
    ranks = [size.size - max(1, round(p * size.size)) for p in densities]
    size.partition(sorted(ranks))
    return {p: float(size[rank]) for p, rank in zip(densities, ranks, strict=True)}


def ours(name: str, threads: int = 1) -> str:
    """The name of the row of a kernel."""
    return f"fatwood {name}" + (f", {threads} threads" if threads > 1 else "")


def encode_table(
    n: int, densities: Sequence[float], seconds: float, seed: int, threads: Sequence[int]
) -> list[dict[str, Any]]:
    """All methods on n parameters, for each density.

    Args:
        n: How many parameters.
        densities: Shares of the parameters that reach tau.
        seconds: For each method of a cell.
        seed: Of the data.
        threads: How many threads the fastest kernel is given, one row each; all other methods run on one.

    Returns:
        One row for each density and method: n, p, method, count, bytes (None where there is no message),
        ns_per_parameter (the best), ns_median, repetitions, over_add.
    """
    rng = np.random.default_rng([seed, n])
    delta, saved = laplace(rng, n), laplace(rng, n)
    residual = np.empty_like(saved)

    def restore() -> None:
        np.copyto(residual, saved)
        delta.sum()  # so that all methods find the same in the caches, whatever ran before

    rows = []
    for p, tau in thresholds(saved + delta, densities).items():
        restore()
        count = kernel.active().extract(residual, delta, tau).positions.size
        methods = _methods(residual, delta, tau, count, threads)
        sizes = {name: _size(method, restore) for name, method in methods.items()}
        timings = take_turns(methods, restore, seconds)
        floor = min(timings[name].best for name in FLOORS if name in timings)
        for name, timing in timings.items():
            figures = {
                "count": count,
                "bytes": sizes[name],
                "ns_per_parameter": timing.best / n * 1e9,
                "ns_median": timing.median / n * 1e9,
                "repetitions": timing.repetitions,
                "over_add": timing.best / floor,
            }
            rows.append({"n": n, "p": p, "method": name, **figures})
    return rows


def _size(method: Method, restore: Callable[[], None]) -> int | None:
    restore()
    with using(method.kernel):
        sent = method.run()
    return len(sent) if isinstance(sent, bytes) else None


def _methods(
    residual: Floats, delta: Floats, tau: float, count: int, threads: Sequence[int]
) -> dict[str, Method]:
    """What is timed in a cell. A method of encoding returns its message."""
    n = residual.size
    r, g = torch.from_numpy(residual), torch.from_numpy(delta)
    copy, half = np.empty_like(delta), torch.empty(n, dtype=torch.float16)
    kernels = list(kernel.available().values())
    fastest = kernels[0]
    methods = {
        FLOORS[0]: Method(lambda: np.add(residual, delta, out=residual), fastest),
        FLOORS[1]: Method(lambda: r.add_(g), fastest),
    }
    if isinstance(fastest, NativeKernel):
        methods[FLOORS[2]] = Method(functools.partial(fastest.add, residual, delta), fastest)
    for one in kernels:
        for workers in threads if one is fastest else (1,):
            methods[ours(one.name, workers)] = Method(_encode(residual, delta, tau, workers), one)
    rivals: dict[str, Callable[[], object]] = {
        "memcpy": lambda: np.copyto(copy, delta),
        "float16 cast": lambda: half.copy_(g),
        "torch, naive": lambda: peers.naive_torch(r, g, tau),
        "torch.topk": lambda: peers.topk_torch(r, g, count),
        "DL4J bitmap in NumPy": lambda: _dl4j(residual, delta, tau, dense=True),
    }
    if peers.DL4J_HEADER_INTS + count < n // 16:
        rivals["DL4J int32 in NumPy"] = lambda: _dl4j(residual, delta, tau, dense=False)
    zstd = peers.zstd_compressor()
    if zstd is not None:
        rivals["ours + zstd of int32"] = lambda: zstd.compress(
            peers.int32_entries(*_extract(residual, delta, tau))
        )
        rivals["ours + zstd of deltas"] = lambda: zstd.compress(
            peers.delta_entries(*_extract(residual, delta, tau), shuffled=True)
        )
    return methods | {name: Method(run, fastest) for name, run in rivals.items()}


def _encode(residual: Floats, delta: Floats, tau: float, threads: int) -> Callable[[], bytes]:
    """The whole of it: extract, choose the coder, pack, header, checksum."""
    encoder = ThresholdEncoder(residual.size, FixedThreshold(tau=tau), None, threads=threads)
    encoder.residual = residual  # the same buffer as all methods of the cell
    return lambda: encoder.encode(delta, 0)


def _extract(residual: Floats, delta: Floats, tau: float) -> tuple[peers.Positions, peers.Signs]:
    found = kernel.active().extract(residual, delta, tau)
    return found.positions, found.negative


def _dl4j(residual: Floats, delta: Floats, tau: float, *, dense: bool) -> bytes:
    np.add(residual, delta, out=residual)
    message = peers.dl4j_bitmap(residual, tau)[0] if dense else peers.dl4j_flexible(residual, tau)
    return b"" if message is None else message.tobytes()


def decode_table(
    n: int, p: float, peers_count: int, seconds: float, seed: int, threads: Sequence[int]
) -> dict[str, Any]:
    """Messages of several peers decoded and added to a vector in one call, with each kernel.

    Args:
        n: How many parameters.
        p: Density of each message.
        peers_count: How many messages.
        seconds: For each kernel.
        seed: Of the messages.
        threads: How many threads the fastest kernel is given, one figure each.

    Returns:
        Best nanoseconds per non-zero by method, and what was decoded.
    """
    rng = np.random.default_rng([seed, n, peers_count])
    messages = []
    for _ in range(peers_count):
        delta = laplace(rng, n)
        encoder = ThresholdEncoder(n, FixedThreshold(tau=thresholds(delta, [p])[p]), None)
        messages.append(encoder.encode(delta, 0))
    decoded = [decode(message, n) for message in messages]
    count = sum(message.positions.size for message in decoded)
    target, scales = np.zeros(n, np.float32), [1.0 / peers_count] * peers_count
    tensor = torch.from_numpy(target)
    signed = [
        (torch.from_numpy(message.positions), torch.from_numpy(np.where(message.negative, -1, 1)).float())
        for message in decoded
    ]

    def index_add() -> None:
        for positions, signs in signed:
            tensor.index_add_(0, positions, signs, alpha=SCALE)

    kernels = list(kernel.available().values())
    methods = {"torch.index_add_, nothing to decode": Method(index_add, kernels[0])}
    for one in kernels:
        for workers in threads if one is kernels[0] else (1,):
            methods[ours(one.name, workers)] = Method(_apply(messages, target, scales, workers), one)
    timings = take_turns(methods, lambda: None, seconds)
    figures = {name: timing.best / count * 1e9 for name, timing in timings.items()}
    return {"n": n, "p": p, "messages": peers_count, "nonzeros": count, "ns_per_nonzero": figures}


def _apply(messages: list[bytes], target: Floats, scales: list[float], threads: int) -> Callable[[], object]:
    return lambda: apply_messages(messages, target, scales, 0, threads=threads)
