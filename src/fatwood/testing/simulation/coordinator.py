"""The driver's side of a schedule: the real `Membership`, with frames that the world delivers."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, final

from fatwood.exchange.membership import Applicant, Evicted, Held, Membership, Notice, Seated
from fatwood.testing.simulation.plan import NEVER

if TYPE_CHECKING:
    from fatwood.testing.simulation.process import Frame, Process
    from fatwood.testing.simulation.world import World

__all__ = ["START_SECONDS", "WAIT_SECONDS", "SimulatedCoordinator"]

START_SECONDS: Final = 120.0
WAIT_SECONDS: Final = 100.0
"""How long missing ranks are waited for."""

_ENDS: Final = frozenset({"extinct", "starved", "missing"})


@final
class SimulatedCoordinator:
    """Turns what processes say into inputs of the membership, and its actions into frames."""

    def __init__(self, world: World) -> None:
        plan = world.plan
        self.membership = Membership(
            plan.workers,
            min_workers=plan.min_workers,
            start_seconds=START_SECONDS,
            rejoin_seconds=WAIT_SECONDS,
        )
        self.outcome: str | None = None
        """How the job ended: "over", or the membership's last notice."""
        self.finishers: list[int] = []
        """Members that were there when the job was over."""
        self.owes = False
        """Whether something has happened that has not been decided on."""
        self._world = world
        self.reports: deque[tuple[str, Any]] = deque()
        """What the driver has not heard of yet: members of views, and who is done."""
        self._seated: frozenset[int] = frozenset()
        self._abandoned: tuple[int, ...] = ()
        self._held_since = NEVER
        self._done: set[int] = set()

    def is_due(self, now: float) -> bool:
        """Whether a decision is due."""
        deadline = self.membership.next_deadline()
        return self.owes or (deadline is not None and deadline <= now)

    def hear(self, process: Process, frame: Frame) -> None:
        """A frame from a process, in the order it was sent; "end" is its connection's."""
        kind, body = frame
        membership, member, now = self.membership, process.member, self._world.now
        if process.removed:
            return
        if kind == "join":
            if self.outcome is not None:
                self._world.removed(process, "the job has ended")
                return
            applicant = Applicant(member, process.rank, "sim", member, process.stateless)
            assert membership.join(applicant, now) is None
            process.joined = True
        elif kind == "ready":
            membership.ready(member)
            process.known = True
        elif kind == "suspect":
            number, accused = body
            membership.suspect(member, number, accused, now)
        elif kind == "waiting":
            membership.waiting(member, body, now)
        elif kind == "synced":
            membership.synced(member, *body)
        elif kind == "done":
            self.reports.append(("done", member))
        else:
            self.lose(process)
        self.owes = True

    def lose(self, process: Process) -> None:
        """Give a process up."""
        self.membership.leave(process.member)
        self._world.removed(process, "hung up")
        self.owes = True

    def decide(self) -> None:
        """Ask the membership what to do, and do it."""
        self.owes = False
        now, membership = self._world.now, self.membership
        for action in membership.take(now):
            self._act(action)
        deadline = membership.next_deadline()
        assert deadline is None or deadline > now, (
            f"the deadline {deadline} has passed and nothing came of it"
        )

    def watch(self) -> None:
        """Let the driver hear the next report; it ends the job when all of the newest view are done."""
        kind, body = self.reports.popleft()
        if kind == "done":
            self._done.add(body)
        else:
            self._seated = body
        if self.outcome is None and self._seated and self._seated <= self._done:
            self.membership.finish()
            self.finishers = sorted(self._seated)
            self._finish("over", "over")

    def _act(self, action: Seated | Held | Evicted | Notice) -> None:
        world = self._world
        if isinstance(action, Seated):
            world.note("view", action.number, _names(action), action.newcomers, action.abandoned)
            world.laws.seated(action, world.processes, world.plan.min_workers)
            for rank in set(action.abandoned) - set(self._abandoned):
                assert world.is_missing(rank, WAIT_SECONDS), f"rank {rank} is abandoned early"
            for rank in set(self._abandoned) & {a.rank for a in action.members}:
                world.note("returned", rank)
            for rank in set(action.abandoned) - set(self._abandoned):
                world.note("abandoned", rank)
                world.hurry(rank)
            self._abandoned, self._held_since = action.abandoned, NEVER
            self.reports.append(("view", frozenset(a.member for a in action.members)))
            for applicant in action.members:
                world.processes[applicant.member].down.append(("view", action))
            world.viewed()
        elif isinstance(action, Held):
            self._held_since = world.now
            world.note("held", action.number, [a.rank for a in action.members])
            for applicant in action.members:
                world.processes[applicant.member].down.append(("held", action.number))
        elif isinstance(action, Evicted):
            world.note("evicted", action.member.rank)
            world.removed(world.processes[action.member.member], action.reason)
        elif action.kind in _ENDS:
            world.note(action.kind, action.body)
            self._check_end(action)
            self._finish(action.kind, "stop")

    def _check_end(self, notice: Notice) -> None:
        world = self._world
        if notice.kind == "extinct":
            left = [p for p in world.processes if p.has_state and not p.gone and not p.removed]
            assert not left, f"extinct, but {left} have the state"
        elif notice.kind == "starved":
            held = world.now - self._held_since > WAIT_SECONDS - 1e-6
            missing = any(world.is_missing(rank, WAIT_SECONDS) for rank in notice.body["ranks"])
            assert held or missing, "starved early"
        else:
            assert world.now >= START_SECONDS, "missing before the deadline"

    def _finish(self, outcome: str, frame: str) -> None:
        self.outcome = outcome
        self.reports.clear()
        self._world.closed()
        for process in self._world.processes:
            if not process.removed:
                process.down.append((frame, outcome))


def _names(seated: Seated) -> str:
    return " ".join(f"{a.rank}#{a.member}" for a in seated.members)
