"""Runs schedules by their seeds."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fatwood.testing.simulation.baton import Theatre
from fatwood.testing.simulation.plan import Plan, draw
from fatwood.testing.simulation.world import World

__all__ = ["Report", "explore", "explore_many"]

_LINES = 60


@dataclass(frozen=True)
class Report:
    """One schedule that held all laws."""

    seed: int
    outcome: str
    """"over": the training was finished; "starved", "extinct", "missing": see `Membership`."""
    rounds: int
    steps: int
    events: Counter[str]
    """What happened how often: "kill", "view", "relay", ..."""
    trace: tuple[str, ...]
    """Every step in words, where it was asked for."""


def explore(
    seed: int, *, plan: Plan | None = None, theatre: Theatre | None = None, keep_trace: bool = False
) -> Report:
    """Run one schedule; the same seed gives the same schedule.

    Args:
        seed: Of the plan and of every choice.
        plan: Of the schedule, instead of the one drawn from the seed.
        theatre: Whose threads to use; its own by default.
        keep_trace: Whether the report has the trace.

    Raises:
        AssertionError: A law is broken, or the schedule does not end; names the seed and the last steps.
    """
    if theatre is None:
        with Theatre() as own:
            return explore(seed, plan=plan, theatre=own, keep_trace=keep_trace)
    chooser = random.Random(seed)  # noqa: S311
    drawn = draw(chooser)
    plan = plan or drawn
    world = World(plan, chooser, theatre)
    try:
        world.run()
        outcome = world.coordinator.outcome
        if outcome == "over":
            world.laws.finished(world.processes, world.coordinator.finishers)
    except Exception as error:
        lines = "\n".join(_line(entry) for entry in world.trace[-_LINES:])
        message = f"seed {seed}: {error or error!r}\n{plan}\n{lines}"
        raise AssertionError(message) from error
    rounds = max(process.toy.rounds for process in world.processes)
    trace = tuple(map(_line, world.trace)) if keep_trace else ()
    return Report(seed, outcome or "", rounds, world.steps, world.events, trace)


def explore_many(first: int, count: int) -> Iterator[Report]:
    """Run the schedules of `count` seeds from `first` on, with the same threads."""
    with Theatre() as theatre:
        for seed in range(first, first + count):
            yield explore(seed, theatre=theatre)


def _line(entry: tuple[object, ...]) -> str:
    return " ".join(map(str, entry))
