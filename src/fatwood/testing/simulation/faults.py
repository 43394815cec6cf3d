"""What goes wrong in a schedule, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, final

from fatwood.testing.simulation.plan import NEVER

if TYPE_CHECKING:
    from fatwood.testing.simulation.process import Process
    from fatwood.testing.simulation.world import World

__all__ = ["HEARTBEAT_SECONDS", "Faults"]

HEARTBEAT_SECONDS: Final = 10.0
"""After so much silence the coordinator gives a process up."""


@final
class Faults:
    """The faults of a plan, one after the other; each one's end is a timer of the world."""

    def __init__(self, world: World) -> None:
        self.pending = list(world.plan.faults)
        self._world = world
        self._at = 0.0
        self._wait()

    def viewed(self) -> None:
        """A view was made."""
        if self.pending and self._at == NEVER:
            self._at = self._world.steps + self.pending[0].steps

    def inject(self) -> bool:
        """Let the next fault happen, if it is time."""
        if not self.pending or self._world.steps < self._at:
            return False
        kind = self.pending.pop(0).kind
        self._wait()
        world = self._world
        living = [p for p in world.processes if not p.gone]
        if not living:
            return False
        if kind == "kill":
            self._kill([self._victim(living)])
        elif kind == "kill levelling":
            self._kill([world.chooser.choice([p for p in living if p.is_levelling] or living)])
        elif kind == "kill several":
            self._kill(world.chooser.sample(living, world.chooser.randint(1, max(1, len(living) - 1))))
        elif kind == "kill all":
            self._kill(living)
        elif kind == "hang":
            self._hang(self._victim(living))
        elif kind == "cut":
            self._cut(self._victim(living))
        elif kind in ("sever", "mute"):
            self._part(world.chooser.choice(living), world.chooser.choice(living), kind)
        elif kind == "spare":
            world.attempt(world.chooser.choice(living).rank)
        elif world.next_moment() is not None:
            world.leap()
        return True

    def _wait(self) -> None:
        if self.pending:
            fault = self.pending[0]
            self._at = NEVER if fault.after_view else self._world.steps + fault.steps

    def _victim(self, living: Sequence[Process]) -> Process:
        """Anybody; or where it hurts: who hands state on, whose message not all have, who has no state yet."""
        chooser = self._world.chooser
        mode = chooser.random()
        if mode < 0.35:
            levelling = [p for p in living if p.is_levelling]
            return chooser.choice(levelling or living)
        if mode < 0.6:
            sending = {source for _, source, _ in self._world.network.busy}
            return chooser.choice([p for p in living if p.member in sending] or living)
        if mode < 0.75:
            return chooser.choice([p for p in living if not p.has_state] or living)
        return chooser.choice(living)

    def _kill(self, victims: Sequence[Process]) -> None:
        for process in victims:
            self._world.note("kill", process)
            if process.is_levelling:
                self._world.count("killed while levelling")
            process.die()

    def _hang(self, process: Process) -> None:
        world = self._world
        if process.hung:
            return
        world.note("hang", process)
        process.hung = True

        def lose() -> None:
            if process.hung and process.joined and not process.removed:
                world.coordinator.lose(process)

        def wake() -> None:
            process.hung = False

        def end() -> None:
            if not process.gone:
                process.die()

        self._later(HEARTBEAT_SECONDS, "silent", lose)
        seconds = world.chooser.choice((3.0, 12.0, 60.0))
        if world.chooser.random() < 0.7:
            self._later(seconds, "wake", wake)
        else:
            self._later(seconds, "end", end)

    def _cut(self, process: Process) -> None:
        """Nothing passes between a process and the coordinator."""
        world = self._world
        if process.cut:
            return
        world.note("cut", process)
        process.cut = True

        def lose() -> None:
            if process.cut and process.joined and not process.removed:
                world.coordinator.lose(process)

        def heal() -> None:
            process.cut = False

        self._later(HEARTBEAT_SECONDS, "silent", lose)
        self._later(world.chooser.choice((3.0, 12.0, 60.0)), "heal", heal)

    def _part(self, first: Process, second: Process, kind: str) -> None:
        """Two processes lose their connections, or nothing passes between them for a while."""
        world = self._world
        if first is second:
            return
        world.note(kind, first, second)
        pair = min(first.member, second.member), max(first.member, second.member)
        pairs = world.network.severed if kind == "sever" else world.network.muted
        pairs.add(pair)
        if kind == "sever":
            world.network.sever(first, second)
        self._later(world.chooser.choice((0.1, 1.0, 20.0, 100.0)), "heal", lambda: pairs.discard(pair))

    def _later(self, seconds: float, name: str, call: Callable[[], None]) -> None:
        self._world.timers.append((self._world.now + seconds, name, call))
