"""One attempt at being a rank: a process that runs the real `ElasticTeam`, with simulated sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, final

from fatwood.errors import ExchangeError, PeerLost
from fatwood.exchange.contract import Exchange
from fatwood.exchange.elastic import ElasticTeam
from fatwood.exchange.membership import Seated
from fatwood.exchange.roster import Roster
from fatwood.exchange.view import Peer, View
from fatwood.testing.simulation.network import SWAP_SECONDS, SimulatedExchange
from fatwood.testing.simulation.training import Toy

if TYPE_CHECKING:
    from fatwood.testing.simulation.baton import Actor
    from fatwood.testing.simulation.world import World

__all__ = ["Frame", "Process"]

_ABOVE_ALL: Final = 1 << 64
_SWAP: Final = 5  # the upper byte of the tag of `Exchange.swap`

Frame = tuple[str, Any]
"""What goes over a control connection: a kind and its body."""


def _always() -> bool:
    return True


@final
class Process:
    """A member of the job, from its first instruction to its last."""

    def __init__(self, world: World, member: int, rank: int, *, stateless: bool) -> None:
        self.world: Final = world
        self.member: Final = member
        self.rank: Final = rank
        self.stateless: Final = stateless
        self.pace = world.plan.pace(world.chooser)
        """How willingly it, its frames and its messages are chosen, 0 .. 1."""
        self.ready = False
        self.joined = False
        """Whether the coordinator knows it."""
        self.known = False
        """Whether the coordinator knows that it is ready."""
        self.dead = False
        self.hung = False
        self.cut = False
        """Whether its control connection carries nothing."""
        self.ended = False
        self.removed = False
        """Whether the coordinator has given it up."""
        self.failure: Exception | None = None
        self.up: deque[Frame] = deque()
        self.down: deque[Frame] = deque()
        self.views: set[int] = set()
        """Those that it has begun to connect."""
        self.exchange: SimulatedExchange | None = None
        self.roster = SimulatedRoster(self)
        self.team = ElasticTeam(self.roster, self._connect)
        self.toy = Toy(world.plan, rank, member, world.laws.of(self), world.count)
        self.actor: Actor | None = None
        self._until: Callable[[], bool] = _always
        self._deadline = float("inf")

    def __repr__(self) -> str:
        return f"{self.rank}#{self.member}"

    @property
    def now(self) -> float:
        """The world's clock, seconds."""
        return self.world.now

    @property
    def gone(self) -> bool:
        """Whether it does nothing any more."""
        return self.dead or self.ended

    @property
    def has_state(self) -> bool:
        """Whether it has the training's state."""
        return self.toy.restored or self.roster.began_with_state

    @property
    def is_levelling(self) -> bool:
        """Whether it is in the first exchanges of a view, in which state is handed on."""
        return self.exchange is not None and self.exchange.tag >> 56 == _SWAP

    @property
    def deadline(self) -> float:
        """When it gives up waiting."""
        return self._deadline

    def can_run(self) -> bool:
        """Whether it has something to do."""
        return not self.hung and (self._until() or self.world.now >= self._deadline)

    def block(self, until: Callable[[], bool], deadline: float = float("inf")) -> None:
        """Wait; returns when the condition holds or the clock has reached the deadline."""
        if until() and not self.world.interferes():
            return
        self._until, self._deadline = until, deadline
        self._pause()
        self._until, self._deadline = _always, float("inf")

    def glance(self) -> None:
        """A moment at which something may happen meanwhile."""
        if self.world.interferes():
            self._pause()

    def live(self) -> None:
        """Its thread: train, and be there for others until the job is over."""
        try:
            if self.team.start(self.toy):
                self.toy.train(self.team, self)
        except ExchangeError as error:
            if not self.roster.is_out:
                self.failure = error
        except Exception as error:
            self.failure = error
        if self.failure is not None:
            self.world.failed = self
        self.ended = True
        if not self.removed:
            self.world.freed(self.rank)
        self.team.close()
        if self.roster.gone is None:
            self.up.append(("bye", None))

    def die(self) -> None:
        """Stop at this point; what it has sent last may be lost."""
        self.dead = True
        if not self.removed:
            self.world.freed(self.rank)
        if self.actor is not None:
            self.actor.aborted = True
            self.world.aborted.append(self.actor)
        chooser = self.world.chooser
        self.pace = min(self.pace, chooser.choice((1.0, 0.1)))  # the coordinator hears of it sooner or later
        for _ in range(chooser.randint(0, len(self.up)) if chooser.random() < 0.5 else 0):
            self.up.pop()
        self.up.append(("end", None))
        network = self.world.network
        if self.exchange is not None:
            for peer in self.exchange.peers.values():
                network.hang_up(self.exchange.number, self, peer, losing=True)
        for other in self.world.processes:
            if other.exchange is not None and self in other.exchange.peers.values():
                network.hang_up(other.exchange.number, self, other, losing=True)

    def _pause(self) -> None:
        if self.actor is not None:
            self.actor.pause()

    def _connect(self, view: View) -> Exchange:
        members = [self.world.processes[peer.port] for peer in view.peers]
        self.views.add(view.number)
        self.exchange = exchange = SimulatedExchange(
            self, view, members, self.world.network, self.world.plan.two_level_from
        )
        impatient = self.world.chooser.random() < 0.5

        def superseded() -> bool:
            return self.roster.is_out or not self.roster.is_current(view.number)

        def absent(*, refusing: bool) -> list[int]:
            """Positions of those that are not connected; or of those that never will."""
            found = []
            for position, peer in exchange.peers.items():
                reachable = self.world.network.connects(self, peer)
                if position < exchange.position:
                    away = peer.gone or not reachable or (peer.hung and not refusing)
                else:
                    away = not refusing and (view.number not in peer.views or not reachable)
                if away:
                    found.append(position)
            return found

        def settled() -> bool:
            return superseded() or not absent(refusing=False) or (impatient and bool(absent(refusing=True)))

        self.block(settled, self.now + SWAP_SECONDS)
        missing = absent(refusing=False)
        if superseded() or missing:
            exchange.close()
        if superseded():
            message = f"rank {self.rank}: view {view.number} was superseded"
            raise ExchangeError(message)
        if missing:
            rank = view.ranks[missing[0]]
            message = f"rank {self.rank}: cannot reach rank {rank} in view {view.number}"
            raise PeerLost(message, rank=rank)
        self.glance()
        return exchange


@final
class SimulatedRoster(Roster):
    """A process's end of the control connection. Its reader hears a frame when the world delivers it."""

    def __init__(self, process: Process) -> None:
        self.rank = process.rank
        self.gone: str | None = None
        """Why the coordinator does not want this process any more, or cannot be reached."""
        self.over = False
        self.began_with_state = False
        """Whether it was in the first view as one that needs nobody's state."""
        self._process = process
        self._view: View | None = None
        self._announced = 0
        self._newcomer = False
        self._call: Callable[[int], None] = lambda _: None
        self._takes_stale = process.world.chooser.random() < 0.5

    @property
    def is_out(self) -> bool:
        """Whether the job is over for this process."""
        return self.over or self.gone is not None

    def hear(self, frame: Frame) -> None:
        """A frame from the coordinator."""
        kind, body = frame
        if kind == "view":
            self._take_view(body)
        elif kind == "held":
            self._change(body)
        elif kind == "over":
            self.over = True
            self._change(_ABOVE_ALL)
        else:
            self.gone = f"{kind}: {body}"
            self._change(_ABOVE_ALL)

    def view_after(self, number: int) -> View | None:
        """See `Roster`."""
        self._process.block(lambda: self.is_out or self._later(number) is not None)
        if self.gone is not None:
            message = f"rank {self.rank}: {self.gone}"
            raise ExchangeError(message)
        return self._later(number)

    def is_current(self, number: int) -> bool:
        """See `Roster`. The team may hold a lock here, so nothing happens meanwhile."""
        return self._announced <= number

    def is_newcomer(self, number: int) -> bool:  # noqa: ARG002
        """See `Roster`."""
        self._process.glance()
        self.began_with_state = not self._newcomer
        return self._newcomer

    def suspect(self, number: int, accused: int | None) -> None:
        """See `Roster`."""
        self.tell("suspect", (number, accused))

    def synced(self, number: int, completed: int) -> None:
        """See `Roster`."""
        self.tell("synced", (number, completed))

    def waiting(self, number: int) -> None:
        """See `Roster`."""
        self.tell("waiting", number)

    def on_change(self, call: Callable[[int], None]) -> None:
        """See `Roster`."""
        self._call = call

    def tell(self, kind: str, body: Any) -> None:
        """Send a frame to the coordinator."""
        self._process.glance()
        if self.gone is not None:
            message = f"rank {self.rank}: {self.gone}"
            raise PeerLost(message)
        self._process.up.append((kind, body))

    def _later(self, number: int) -> View | None:
        view = self._view
        if view is None or view.number <= number or self.over:
            return None
        return view if self._takes_stale or self.is_current(view.number) else None

    def _take_view(self, seated: Seated) -> None:
        peers = tuple(Peer(a.rank, a.host, a.port) for a in seated.members)
        assert self._view is None or seated.number > self._view.number, "a view of a lower number"
        self._view = View(seated.number, self.rank, peers, seated.abandoned)
        self._newcomer = self.rank in seated.newcomers
        self._change(seated.number)

    def _change(self, number: int) -> None:
        self._announced = max(self._announced, number)
        self._call(number)
