"""The statistics of a fit as a text of a screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fatwood.train.stats import FitStats

__all__ = ["clock_remarks", "summary"]

_COLUMNS = (("read", "batch"), ("compute",), ("send", "encode", "exchange"), ("apply",))
_OTHERS = ("validate", "checkpoint", "missing")


def summary(stats: FitStats) -> str:
    """Rows, bytes, equality, a line for each worker, and what went wrong."""
    sent = stats.bytes_per_step
    times = stats.dense_bytes_per_step / sent if sent else 0
    ratio = f", {times:,.0f} times fewer than dense float32" if times >= 2 else ""
    lines = [
        f"{len(stats.workers)} workers, {stats.seconds:.1f} s, {stats.rows_trained:,} of {stats.rows_expected:,} rows trained"
        + (f", {stats.rows_skipped:,} skipped" if stats.rows_skipped else "")
        + (f", {stats.rows_lost:,} LOST" if stats.rows_lost else "")
        + (f", {stats.rows_trained_twice:,} trained TWICE" if stats.rows_trained_twice else ""),
        f"{sent:,.0f} bytes a step and worker{ratio}",
        "replicas bitwise equal" if stats.digest_equal else "replicas DIFFER",
        "rank       rows  minibatches        sent    read s  compute s    send s   apply s",
    ]
    for w in stats.workers:
        phases = [sum(w.seconds.get(name, 0.0) for name in names) for names in _COLUMNS]
        lines.append(
            f"{w.rank:>4} {w.rows_trained:>10,} {w.minibatches:>12,} {w.bytes_sent:>11,} "
            f"{phases[0]:>9.1f} {phases[1]:>10.1f} {phases[2]:>9.1f} {phases[3]:>9.1f}"
        )
    lines += [f"worker {w.rank} computed on {_gpu(w.device)}" for w in stats.workers if w.device]
    lines += [f"worker {w.rank} also spent {text}" for w in stats.workers if (text := _others(w.seconds))]
    lines += [f"worker {w.rank} waited {text}" for w in stats.workers if (text := _waits(w.waited_seconds))]
    if stats.incidents:
        lines.append(
            f"{stats.workers_lost} workers lost, {stats.rejoined} replaced; residuals of lost workers are gone"
        )
        lines += [str(incident) for incident in stats.incidents]
    lines += [f"clock: {remark}" for remark in clock_remarks(stats)]
    return "\n".join([*lines, *(f"finding: {finding}" for finding in stats.findings)])


def clock_remarks(stats: FitStats) -> list[str]:
    """Why times are not by the clock that was asked for, a line for each reason; empty when they are."""
    ranks: dict[str, list[int]] = {}
    for worker in stats.workers:
        for remark in {reading["remark"] for reading in (worker.trace or {}).get("clock", ())} - {""}:
            ranks.setdefault(remark, []).append(worker.rank)
    return [f"workers {sorted(found)}: {remark}" for remark, found in ranks.items()]


def _gpu(facts: Mapping[str, Any]) -> str:
    """A GPU, and how it computes."""
    kinds = [name for name, on in facts["tf32"].items() if on]
    more = (
        f"cuDNN {facts['cudnn']}" if facts["cudnn"] else "no cuDNN",
        f"TF32 in {' and '.join(kinds)}" if kinds else "no TF32",
        f"autocast {facts['autocast']}" if facts["autocast"] else "float32",
    )
    return f"{facts['device']} ({facts['name']}), {', '.join(more)}"


def _others(seconds: Mapping[str, float]) -> str:
    """The phases without a column that took five seconds or more."""
    return ", ".join(f"{seconds[name]:.1f} s in {name}" for name in _OTHERS if seconds.get(name, 0.0) >= 5)


def _waits(seconds: Mapping[int, float]) -> str:
    """Whom a worker waited for, the longest first; nothing where it is less than five seconds in all."""
    if sum(seconds.values()) < 5:
        return ""
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{waited:.1f} s for worker {rank}" for rank, waited in longest if waited >= 0.1)
