"""What `network.py` runs: methods with their settings, the tuned learning rates, and one run of one of them (`Cell`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from steps_methods import Curve

__all__ = [
    "METHODS",
    "OURS",
    "RATES",
    "RIVALS",
    "SETTLED",
    "Cell",
    "Measured",
    "factor_at",
    "intervals",
    "link_bytes",
    "sent",
]

WARMUP = 20
"""Steps in which the learning rate rises to its constant value."""
SETTLED = 4
"""First steps whose time does not count: buckets are built, memory is taken."""

METHODS: dict[str, dict[str, Any]] = {
    "alone": {"kind": "alone"},
    "compute": {"kind": "compute"},
    "ddp_fp32": {"kind": "ddp"},
    "ddp_fp16": {"kind": "ddp", "hook": "fp16"},
    "powersgd-1": {"kind": "ddp", "hook": "powersgd", "rank": 1},
    "powersgd-2": {"kind": "ddp", "hook": "powersgd", "rank": 2},
    "powersgd-4": {"kind": "ddp", "hook": "powersgd", "rank": 4},
    "topk-1%": {"kind": "topk", "density": 1e-2, "sampled": False},
    "topk-1%-sampled": {"kind": "topk", "density": 1e-2, "sampled": True},
    "topk-0.1%-sampled": {"kind": "topk", "density": 1e-3, "sampled": True},
    "dl4j": {"kind": "dl4j", "initial": 1e-3},
    "ours-1%": {"kind": "ours", "density": 1e-2},
    "ours-1%-ahead": {"kind": "ours", "density": 1e-2, "ahead": True},
    "ours-0.5%-ahead": {"kind": "ours", "density": 5e-3, "ahead": True},
    "ours-0.1%": {"kind": "ours", "density": 1e-3},
    "ours-0.1%-ahead": {"kind": "ours", "density": 1e-3, "ahead": True},
    "ours-0.1%-stale": {"kind": "ours", "density": 1e-3, "staleness": 1},
}
"""``alone``: one process with the rows of all. ``compute``: all workers, each for itself, nothing exchanged."""

RIVALS: dict[str, Sequence[str]] = {
    "ddp_fp32": ("ddp_fp32",),
    "ddp_fp16": ("ddp_fp16",),
    "powersgd": ("powersgd-1", "powersgd-2", "powersgd-4"),
    "topk": ("topk-1%", "topk-1%-sampled", "topk-0.1%-sampled"),
    "dl4j": ("dl4j",),
}
"""By the name in the results; of several variants the fastest counts."""

OURS: dict[str, tuple[str, ...]] = dict.fromkeys(("resnet", "cnn", "transformer"), ("ours-1%-ahead",))
"""Which of ours is held against the rivals."""

_DENSE = ("alone", "ddp_fp32", "ddp_fp16", "powersgd-1", "powersgd-2", "powersgd-4")
_SPARSE = tuple(name for name, of in METHODS.items() if of["kind"] in ("topk", "ours"))

RATES: dict[str, dict[str, float]] = {
    "resnet": {**dict.fromkeys(_DENSE, 0.02), **dict.fromkeys(_SPARSE, 0.01), "dl4j": 0.00125},
    "cnn": {**dict.fromkeys(_DENSE, 0.05), **dict.fromkeys(_SPARSE, 0.05), "dl4j": 0.0125},
    "transformer": {**dict.fromkeys(_DENSE, 1e-3), **dict.fromkeys(_SPARSE, 1e-3), "dl4j": 2.5e-4},
}
"""Learning rates by task and method: the best of a grid of factors of two for the fewest steps to the quality, seed 0, as
``network.py --mnist FOLDER --tune --json`` prints them; not tuned for the CNN and the transformer."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    method: str
    rate: float
    steps: int
    task: str = "resnet"
    seed: int = 0
    every: int = 0
    """Steps between two looks at the held-out rows; 0 for none."""
    held_out: int = 1000
    """Rows that are looked at."""
    falling: bool = False
    """The learning rate falls to zero with the steps."""
    until: float | None = None
    """Quality at which to stop."""
    seconds: float = 600.0
    """After which to stop, at the next look."""
    folder: str | None = None
    """Of MNIST's own files."""
    batch_size: int | None = None
    """Rows of a minibatch of a worker; by default the task's."""

    @property
    def settings(self) -> dict[str, Any]:
        """Of the method."""
        return METHODS[self.method]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of a cell."""

    cell: Mapping[str, Any]
    points: list[tuple[int, float]] = field(default_factory=list)
    """Steps and quality: the share of wrong answers, or the loss of a language model, on held-out rows."""
    step_seconds: list[float] = field(default_factory=list)
    """Of rank 0, without the first ones and without those beside a look."""
    cpu_seconds: list[float] = field(default_factory=list)
    """What rank 0 computed in the same steps, all its threads; other work on the machine is not in it."""
    first_seconds: float = 0.0
    """Of the steps before those that count, together."""
    sent_bytes: float = 0.0
    """A worker's and step's, by the counter of its link, headers of all layers included; mean of all workers."""
    phases: Mapping[str, float] = field(default_factory=dict)
    """Mean seconds of a step, by phase, over all workers; ours has its first steps and the waits after looks in it."""
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measured:
        """From the values of :meth:`to_json`."""
        return cls(**{**values, "points": [(int(step), float(value)) for step, value in values["points"]]})

    @property
    def step_median(self) -> float:
        """Seconds."""
        return _median(self.step_seconds)

    @property
    def cpu_median(self) -> float:
        """Seconds."""
        return _median(self.cpu_seconds)

    def steps_to(self, quality: float) -> float | None:
        """Where the smoothed quality first falls to a value; None if it never does."""
        return Curve(self.points, 0.0, 1).steps_to(quality) if len(self.points) > 3 else None


def factor_at(step: int, cell: Cell) -> float:
    """What the learning rate of a step is multiplied by; steps count from 0."""
    rise = min(1.0, (step + 1) / WARMUP)
    return rise * max(0.0, 1 - step / cell.steps) if cell.falling else rise


def intervals(stamps: Sequence[float], every: int) -> tuple[list[float], float]:
    """Seconds of the steps that count, and of all before them together.

    Args:
        stamps: When each step began.
        every: After every how many steps was a look; the steps before and after it do not count.
    """
    seconds = [after - before for before, after in pairwise(stamps)]
    counted = [s for i, s in enumerate(seconds) if i >= SETTLED and not (every and (i + 1) % every < 2)]
    return counted, sum(seconds[:SETTLED])


def sent(counters: Sequence[int], every: int) -> float:
    """Bytes of a step that counts; args as in `intervals`."""
    return _mean(intervals([float(c) for c in counters], every)[0])


def link_bytes() -> int:
    """Bytes that this host has sent on its link so far; 0 where there is none."""
    path = Path("/sys/class/net/eth0/statistics/tx_bytes")
    return int(path.read_text()) if path.exists() else 0


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] if values else float("nan")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
