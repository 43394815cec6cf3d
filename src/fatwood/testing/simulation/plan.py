"""What a schedule is about: the job, its faults, and how its world behaves. All drawn from one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from fatwood.exchange.grid import LEAST_WORKERS, TWO_LEVEL_FROM

__all__ = ["Fault", "Plan", "draw"]

_FAULTS: Final = {
    "kill": 8,
    "kill levelling": 2,
    "kill several": 2,
    "kill all": 0.5,
    "hang": 2,
    "cut": 1,
    "sever": 4,
    "mute": 1,
    "spare": 2,
    "leap": 1,
}
"""How often each kind of fault is drawn."""

NEVER: Final = float("inf")


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong."""

    kind: str
    steps: int
    """The world's steps to it, from the fault before."""
    after_view: bool
    """The steps count only from the next view on: the moment when most can go wrong."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One schedule's job and faults."""

    workers: int
    rows: tuple[int, ...]
    """Of each rank's partition."""
    batch_rows: int
    epochs: int
    with_buffers: bool
    dense: bool
    """Whether a round is a gather and a mean, so that a worker can fall between the two."""
    min_workers: int | None
    late: tuple[float, ...]
    """When each rank's first attempt joins, seconds."""
    returns: tuple[float, ...]
    """How long each lost rank takes to come back, seconds, in turn."""
    faults: tuple[Fault, ...]
    interference: float
    """How probably something happens where a worker need not wait."""
    delivery: float
    """How willingly the network delivers; a worker's turn has 4."""
    tick: float
    """How willingly the clock moves on while there is something to do."""
    paces: tuple[float, ...]
    """Processes have one of these."""
    validate_every: int | None = None
    """Agreements between two validations; 0 for one at each epoch's end; None for none."""
    stop_after: int | None = None
    """Validations after which all judge that it is enough."""
    time: int | None = None
    """Agreements after which the worker of the lowest rank says that the time is over."""

    @property
    def two_level_from(self) -> int:
        """From how many workers on a gather goes in two rounds: of half of the plans from as few as can."""
        return LEAST_WORKERS if sum(self.rows) % 2 else TWO_LEVEL_FROM

    def is_bad(self, rank: int, row: int) -> bool:
        """Whether a row is read and not trained."""
        return (7 * row + rank) % 11 == 5

    def pace(self, chooser: random.Random) -> float:
        """How willingly a process is chosen."""
        return chooser.choice(self.paces)


def draw(chooser: random.Random) -> Plan:
    """A plan at random: a small job, up to six faults beside spares, most of them where it hurts."""
    workers = chooser.choice((1, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4))
    min_workers = None if chooser.random() < 0.5 else chooser.randint(1, workers)
    count = chooser.choices(range(7), (1, 4, 4, 4, 2, 2, 1))[0]
    kinds = chooser.choices(list(_FAULTS), list(_FAULTS.values()), k=count)
    spares = [Fault("spare", 25, after_view=False)] * chooser.choice((0, 0, 0, workers))
    never = NEVER if chooser.random() < 0.15 else 2.0
    return Plan(
        workers=workers,
        rows=tuple(chooser.randint(0, 5) for _ in range(workers)),
        batch_rows=chooser.randint(1, 2),
        epochs=chooser.choice((1, 1, 2)),
        with_buffers=chooser.random() < 0.5,
        dense=chooser.random() < 0.25,
        min_workers=min_workers,
        late=tuple(chooser.choice((0.0,) * 60 + (50.0, 50.0, 200.0)) for _ in range(workers)),
        returns=tuple(chooser.choice((0.0, 0.0, 0.0, 2.0, 9.0, 60.0, 200.0, never)) for _ in range(8)),
        faults=(*spares, *(_fault(chooser, kind) for kind in kinds)),
        interference=chooser.choice((0.05, 0.05, 0.3, 1.0)),
        delivery=chooser.choice((1.0, 3.0, 8.0)),
        tick=chooser.choice((0.0, 0.02, 0.2)),
        paces=chooser.choice(((1.0,), (1.0, 0.2), (1.0, 0.3, 0.03))),
        validate_every=chooser.choice((None, None, 0, 1, 2)),
        stop_after=chooser.choice((None, None, 1, 2)),
        time=chooser.choice((None, None, None, 1, 3)),
    )


def _fault(chooser: random.Random, kind: str) -> Fault:
    after_view = chooser.random() < 0.5
    if chooser.random() < 0.15:
        return Fault(kind, 0, after_view=after_view)
    return Fault(kind, int(chooser.expovariate(1 / chooser.choice((8, 40)))), after_view=after_view)
