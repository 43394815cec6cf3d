"""One schedule: who acts next is drawn, until the job has ended."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, final

from fatwood.testing.simulation.baton import Actor, Theatre
from fatwood.testing.simulation.coordinator import SimulatedCoordinator
from fatwood.testing.simulation.faults import Faults
from fatwood.testing.simulation.laws import Laws
from fatwood.testing.simulation.network import Network
from fatwood.testing.simulation.plan import NEVER, Plan
from fatwood.testing.simulation.process import Process

__all__ = ["World"]

_MOST_STEPS: Final = 20_000
_WEIGHTS: Final = {
    "run": 4, "up": 2, "down": 2, "ready": 1, "attempt": 1, "timer": 1, "decide": 2,
    "watch": 2,
}  # fmt: skip
"""How often each kind of step is chosen among those that are possible."""
_ONE: Final = (None,)
_OF_PROCESSES: Final = frozenset({"run", "up", "down", "ready"})


@final
class World:
    """Processes, network, coordinator, clock and faults.

    Args:
        plan: What is to happen.
        chooser: Decides on everything.
        theatre: Lends the threads.
    """

    def __init__(self, plan: Plan, chooser: random.Random, theatre: Theatre) -> None:
        self.plan: Final = plan
        self.chooser: Final = chooser
        self.now = 0.0
        self.network = Network(chooser)
        self.laws = Laws(plan)
        self.processes: list[Process] = []
        """All that ever were, by member."""
        self.coordinator = SimulatedCoordinator(self)
        self.trace: list[tuple[object, ...]] = []
        self.events: Counter[str] = Counter()
        """What happened how often."""
        self.steps = 0
        self.aborted: list[Actor] = []
        """Whose threads have to end now."""
        self.timers: list[tuple[float, str, Callable[[], None]]] = []
        """What happens at or after a time."""
        self.failed: Process | None = None
        """A process that ended with an error."""
        self._active: list[Process] = []
        """Those that may still do something or be heard of."""
        self._theatre = theatre
        self._weights = {**_WEIGHTS, "deliver": plan.delivery}
        self._faults = Faults(self)
        self._returns = list(plan.returns)
        self._free_at = list(plan.late)
        """When each rank's next attempt may begin."""
        self._unmanned = list(range(plan.workers))
        """Ranks without a living process, as far as the cluster knows."""
        self._missing_since = [0.0] * plan.workers

    def run(self) -> None:
        """Play the schedule to its end.

        Raises:
            AssertionError: A law is broken, or the schedule does not end.
        """
        self._theatre.play(self._choose)

    def interferes(self) -> bool:
        """Whether others go on at a point where the present process need not wait."""
        return self.chooser.random() < self.plan.interference

    def note(self, *entry: object) -> None:
        """Put a line into the trace, and count what it is about."""
        self.trace.append((self.steps, round(self.now, 2), *entry))
        self.events[str(entry[0])] += 1

    def count(self, what: str) -> None:
        """Something happened."""
        self.events[what] += 1

    def viewed(self) -> None:
        """A new view was made."""
        self._faults.viewed()

    def attempt(self, rank: int) -> None:
        """Start a process for a rank."""
        stateless = self.coordinator.membership.started and self.chooser.random() < 0.5
        process = Process(self, len(self.processes), rank, stateless=stateless)
        self.processes.append(process)
        self._active.append(process)
        self.note("attempt", process.member, rank, stateless)
        process.actor = self._theatre.hire(process.live)
        process.up.append(("join", None))
        if rank in self._unmanned:
            self._unmanned.remove(rank)

    def freed(self, rank: int) -> None:
        """A process of this rank is no more; the next attempt comes some time later."""
        if self.coordinator.outcome is None and all(
            p.dead or p.ended or p.removed for p in self.processes if p.rank == rank
        ):
            self._unmanned.append(rank)
        wait = self._returns.pop(0) if self._returns else 0.0
        self._free_at[rank] = max(self._free_at[rank], self.now + wait)

    def hurry(self, rank: int) -> None:
        """A rank was abandoned; most come back all the same, at once."""
        if self.chooser.random() < 0.7:
            self._free_at[rank] = self.now

    def removed(self, process: Process, reason: str) -> None:
        """The coordinator has given a process up, and hangs up."""
        process.removed = True
        process.down.append(("gone", reason))
        if not process.gone:
            self.freed(process.rank)
        rank = process.rank
        if process.known and not any(p.rank == rank and p.known and not p.removed for p in self.processes):
            self._missing_since[rank] = self.now

    def closed(self) -> None:
        """The job has ended: nobody comes any more."""
        self._unmanned.clear()

    def is_missing(self, rank: int, seconds: float) -> bool:
        """Whether a rank has had no process that the coordinator knew to be ready for so long."""
        there = any(p.rank == rank and p.known and not p.removed for p in self.processes)
        return not there and self.now - self._missing_since[rank] > seconds - 1e-6

    def next_moment(self) -> float | None:
        """When something is due next."""
        moments = [at for at, _, _ in self.timers]
        moments += [p.deadline for p in self.processes if not p.gone and not p.hung]
        moments += [self._free_at[rank] for rank in self._unmanned]
        deadline = self.coordinator.membership.next_deadline()
        moments += [] if deadline is None else [deadline]
        return min((at for at in moments if self.now < at < NEVER), default=None)

    def leap(self) -> None:
        """Move the clock to that moment."""
        moment = self.next_moment()
        assert moment is not None, "nothing can happen any more"
        self.now = moment + self.chooser.choice((0.0, 0.0, 0.5))
        self.note("leap")

    def _choose(self) -> Actor | None:
        while True:
            if self.aborted:
                return self.aborted.pop()
            self._check()
            if self.coordinator.outcome is None:
                if self._faults.inject():
                    continue
            elif not self._active or all(p.gone for p in self._active):
                return None
            actor = self._step()
            if actor is not None:
                return actor

    def _check(self) -> None:
        self.steps += 1
        assert self.steps < _MOST_STEPS, "the schedule does not end"
        if self.failed is not None:
            message = f"{self.failed} failed: {self.failed.failure!r}"
            raise AssertionError(message) from self.failed.failure

    def _step(self) -> Actor | None:
        """Do something that is possible; return the actor whose turn that makes it."""
        options = self._options()
        if not options:
            self.leap()
            return None
        if self._faults.pending and self.chooser.random() < self.plan.tick:
            self.now += 0.15
            return None
        kind, item = self._draw(options)
        if kind == "run":
            self.trace.append((self.steps, "run", item))
            return self.processes[int(item)].actor
        if kind == "deliver":
            self.trace.append((self.steps, "deliver", item))
            self.network.deliver(item)
        elif kind == "up":
            self._hear(self.processes[item])
        elif kind == "down":
            process = self.processes[item]
            frame = process.down.popleft()
            self.trace.append((self.steps, "down", process, frame[0]))
            process.roster.hear(frame)
        elif kind == "ready":
            self.processes[item].ready = True
            self.processes[item].up.append(("ready", None))
        elif kind == "decide":
            self.coordinator.decide()
        elif kind == "watch":
            self.coordinator.watch()
        elif kind == "attempt":
            self.attempt(item)
        else:
            _, name, call = self.timers.pop(item)
            self.note(name)
            call()
        return None

    def _hear(self, process: Process) -> None:
        frame = process.up.popleft()
        self.note(frame[0], process, frame[1])
        self.coordinator.hear(process, frame)
        if self.chooser.random() < 0.8:
            self.coordinator.decide()

    def _options(self) -> dict[str, Sequence[Any]]:
        """What is possible, by kind: members, channels, ranks or timers."""
        run, up, down, ready = [], [], [], []
        silent = 0
        for process in self._active:
            if process.up and not process.cut:
                up.append(process.member)
            if process.dead or process.ended:
                silent += not process.up
                continue
            if process.hung:
                continue
            if process.down and not process.cut:
                down.append(process.member)
            if not process.ready:
                ready.append(process.member)
            if process.can_run():
                run.append(process.member)
        if silent:
            self._active = [p for p in self._active if p.up or not p.gone]
        options: dict[str, Sequence[Any]] = {}
        if run:
            options["run"] = run
        if self.network.busy and (channels := self.network.deliverable()):
            options["deliver"] = channels
        if up:
            options["up"] = up
        if down:
            options["down"] = down
        if ready:
            options["ready"] = ready
        if self._unmanned and (ranks := [r for r in self._unmanned if self._free_at[r] <= self.now]):
            options["attempt"] = ranks
        if self.timers and (due := [i for i, timer in enumerate(self.timers) if timer[0] <= self.now]):
            options["timer"] = due
        if self.coordinator.is_due(self.now):
            options["decide"] = _ONE
        if self.coordinator.reports:
            options["watch"] = _ONE
        return options

    def _draw(self, options: dict[str, Sequence[Any]]) -> tuple[str, Any]:
        """A kind by its weight and one of its items, those of slow processes more rarely."""
        draw = self.chooser.random
        weights = self._weights
        total = sum(map(weights.__getitem__, options))
        for _ in range(8):
            left = draw() * total
            for kind in options:
                left -= weights[kind]
                if left < 0:
                    break
            items = options[kind]
            item = items[int(draw() * len(items))]
            if kind == "deliver":
                pace = self.processes[item[1]].pace
            else:
                pace = self.processes[item].pace if kind in _OF_PROCESSES else 1.0
            if pace == 1.0 or draw() < pace:
                break
        return kind, item
