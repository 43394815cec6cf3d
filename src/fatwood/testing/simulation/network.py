"""A network in which every message waits until somebody delivers it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, final

from fatwood.errors import PeerLost
from fatwood.exchange.contract import Buffer, Exchange, describe_tag
from fatwood.exchange.view import View

if TYPE_CHECKING:
    from fatwood.testing.simulation.process import Process

__all__ = ["Channel", "Network", "SimulatedExchange"]

SWAP_SECONDS: Final = 30.0
"""How long a worker waits for a message, and for its mesh."""


@final
class Channel:
    """One direction of one connection: first in, first out. None among the messages is the connection's end."""

    def __init__(self, source: Process, target: Process) -> None:
        self.source = source
        self.target = target
        self.transit: deque[tuple[int, bytes] | None] = deque()
        self.inbox: deque[tuple[int, bytes] | None] = deque()
        self.shut = False
        """Nothing can be put in any more."""
        self.deaf = False
        """Nobody will take anything out any more."""


class Network:
    """All connections between processes, one for each pair and view, made when first used."""

    def __init__(self, chooser: random.Random) -> None:
        self.chooser = chooser
        self.busy: dict[tuple[int, int, int], Channel] = {}
        """Channels with something to deliver."""
        self.severed: set[tuple[int, int]] = set()
        """Pairs of processes that cannot connect, the smaller first."""
        self.muted: set[tuple[int, int]] = set()
        """Pairs of processes between which nothing moves."""
        self._channels: dict[tuple[int, int, int], Channel] = {}

    def channel(self, number: int, source: Process, target: Process) -> Channel:
        """The direction from one process to another in a view."""
        key = (number, source.member, target.member)
        found = self._channels.get(key)
        if found is None:
            found = self._channels[key] = Channel(source, target)
        return found

    def send(self, number: int, source: Process, target: Process, message: tuple[int, bytes] | None) -> None:
        """Put a message on its way, or the connection's end, after which nothing more goes in."""
        channel = self.channel(number, source, target)
        if not channel.shut and not channel.deaf:
            channel.transit.append(message)
            self.busy[number, source.member, target.member] = channel
        channel.shut = channel.shut or message is None

    def deliverable(self) -> list[tuple[int, int, int]]:
        """Keys of channels whose first message may be delivered now."""
        if not self.muted:
            return list(self.busy)
        return [key for key in self.busy if _pair(*key[1:]) not in self.muted]

    def deliver(self, key: tuple[int, int, int]) -> None:
        """Let the channel's first message arrive."""
        channel = self.busy[key]
        message = channel.transit.popleft()
        if not channel.deaf:
            channel.inbox.append(message)
        if not channel.transit:
            del self.busy[key]

    def hang_up(self, number: int, source: Process, target: Process, *, losing: bool) -> None:
        """End both directions as seen from `source`, which reads no more; of what it sent the rest may be lost."""
        back = self.channel(number, target, source)
        back.deaf = True
        back.transit.clear()
        self.busy.pop((number, target.member, source.member), None)
        if losing:
            self._lose_tail(number, source, target)
        self.send(number, source, target, None)

    def sever(self, first: Process, second: Process) -> None:
        """Break all connections between two processes; both see their end, and what was on its way may be lost."""
        for number in sorted({n for n, a, b in self._channels if {a, b} == {first.member, second.member}}):
            for source, target in ((first, second), (second, first)):
                self._lose_tail(number, source, target)
                self.send(number, source, target, None)

    def connects(self, first: Process, second: Process) -> bool:
        """Whether a new connection can be made between two processes."""
        pair = _pair(first.member, second.member)
        return pair not in self.severed and pair not in self.muted

    def _lose_tail(self, number: int, source: Process, target: Process) -> None:
        channel = self.channel(number, source, target)
        if channel.transit and self.chooser.random() < 0.5:
            for _ in range(self.chooser.randint(1, len(channel.transit))):
                channel.transit.pop()
            if not channel.transit:
                del self.busy[number, source.member, target.member]
            channel.shut = False  # the end may have been among them


def _pair(first: int, second: int) -> tuple[int, int]:
    return (first, second) if first < second else (second, first)


@final
class SimulatedExchange(Exchange):
    """A process's end of a view's mesh."""

    def __init__(
        self,
        process: Process,
        view: View,
        members: Sequence[Process],
        network: Network,
        two_level_from: int,
    ) -> None:
        super().__init__(view.rank, view.ranks, two_level_from=two_level_from)
        self.number: Final = view.number
        self.peers: Final = {i: p for i, p in enumerate(members) if i != self.position}
        self.tag = 0
        self._process = process
        self._network = network
        self._inboxes = {
            i: network.channel(view.number, peer, process).inbox for i, peer in self.peers.items()
        }
        self._awaited = self._inboxes

    def _swap(self, tag: int, outgoing: Mapping[int, Buffer]) -> dict[int, Buffer]:
        self.tag = tag
        self._awaited = {i: self._inboxes[i] for i in outgoing if i != self.position}
        chooser = self._network.chooser
        for position in self._awaited:
            peer = self.peers[position]
            gone = self._inboxes[position] and self._inboxes[position][-1] is None
            if gone and chooser.random() < 0.5:
                raise self._lost(position, tag)  # sending to it fails before its last message is read
            self._network.send(self.number, self._process, peer, (tag, bytes(outgoing[position])))
        deadline = self._process.now + SWAP_SECONDS
        if self._awaited:
            self._process.block(self._can_go_on, deadline)
        if self._closed and (chooser.random() < 0.5 or not self._complete()):
            raise self._closed_error(tag)
        ended = [i for i, inbox in self._awaited.items() if inbox and inbox[0] is None]
        silent = ended or [i for i, inbox in self._awaited.items() if not inbox]
        if silent:
            raise self._lost(chooser.choice(silent), tag)
        received = dict(outgoing)
        for position, inbox in self._awaited.items():
            peer_tag, body = inbox.popleft() or (0, b"")
            if peer_tag != tag:
                raise self._mismatch(self.ranks[position], tag, peer_tag)
            received[position] = body
        self._process.glance()
        return received

    def _complete(self) -> bool:
        return all(inbox and inbox[0] is not None for inbox in self._awaited.values())

    def _can_go_on(self) -> bool:
        if self._closed:
            return True
        missing = False
        for inbox in self._awaited.values():
            if not inbox:
                missing = True
            elif inbox[0] is None:
                return True
        return not missing

    def _lost(self, position: int, tag: int) -> PeerLost:
        rank = self.ranks[position]
        return PeerLost(
            f"rank {self.rank} lost rank {rank} in view {self.number}: {describe_tag(tag)}", rank=rank
        )

    def _close(self) -> None:
        for position, peer in self.peers.items():
            back = self._network.channel(self.number, peer, self._process)
            unread = bool(self._inboxes[position]) or bool(back.transit)
            self._network.hang_up(self.number, self._process, peer, losing=unread)
