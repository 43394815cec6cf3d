"""The exchange over TCP: one connection per pair of workers, everything to everybody in one round trip.

Non-blocking sockets and `selectors` in the caller's thread: sends and receives advance at the same time, so messages
larger than the sockets' buffers cannot block each other, and no thread per peer is needed.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterable, Mapping
from typing import final

from fatwood.errors import OptionError, PeerLost
from fatwood.exchange.auth import HANDSHAKE_SECONDS, MESH, checked_secret, dial
from fatwood.exchange.contract import Buffer, Exchange, describe_tag, is_bundle
from fatwood.exchange.grid import TWO_LEVEL_FROM, longest_bundle
from fatwood.exchange.link import Link
from fatwood.exchange.lobby import Lobby, hello
from fatwood.exchange.tls import Identity
from fatwood.exchange.view import View

__all__ = ["TcpExchange"]


@final
class TcpExchange(Exchange):
    """One worker's end of a full TCP mesh; make it with `connect`.

    Args:
        view: The group and this worker's rank in it.
        sockets: An authenticated connection to each peer by rank.
        timeout_seconds: How long a peer may be silent while its message is awaited, or take nothing of ours.
        max_message_bytes: The longest message, in either direction.
        two_level_from: See `Exchange`.
    """

    def __init__(
        self,
        view: View,
        sockets: Mapping[int, socket.socket],
        *,
        timeout_seconds: float,
        max_message_bytes: int,
        two_level_from: int,
    ) -> None:
        super().__init__(view.rank, view.ranks, two_level_from=two_level_from)
        self._timeout_seconds = timeout_seconds
        self._max_message_bytes = max_message_bytes
        self._max_bundle_bytes = longest_bundle(self.size, max_message_bytes)
        # begin with the next worker, so that not all send to the first one first
        order = (*range(view.position + 1, view.size), *range(view.position))
        peers = {position: view.peers[position] for position in order}
        self._links = {p: Link(peer, sockets[peer.rank]) for p, peer in peers.items()}
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)

    @classmethod
    def connect(
        cls,
        view: View,
        lobby: Lobby,
        secret: bytes,
        *,
        timeout_seconds: float,
        max_message_bytes: int,
        tls: Identity | None = None,
        two_level_from: int = TWO_LEVEL_FROM,
    ) -> TcpExchange:
        """Connect this worker to all others of a view; every worker calls this once it knows the view.

        A worker connects to those before its own position and accepts those after it. `lobby.supersede` of a later
        view ends the attempt at any moment.

        Args:
            view: The group and this worker's rank in it.
            lobby: Of this worker's listener, at the address that the view gives for it. It stays open.
            secret: The job's secret.
            timeout_seconds: How long connecting may take, and later how long a peer may be silent in a call.
            max_message_bytes: The longest message, in either direction: at least the longest payload of `gather`
                or `swap`, and 4 n / W + 20 bytes for `mean` of n elements among W workers.
            tls: The job's identity, when connections are encrypted; the listener must have the same.
            two_level_from: See `Exchange`.

        Raises:
            PeerLost: A peer cannot be reached or did not come in time; names rank, host and port.
            AuthenticationError: A program that does not know the secret uses a peer's address.
            ExchangeError: The view was superseded, or the lobby was closed.
            OptionError: A limit is not positive or the secret is not 32 bytes.
        """
        checked_secret(secret)
        if not timeout_seconds > 0 or max_message_bytes < 1:
            message = (
                "TcpExchange.connect: expected timeout_seconds > 0 and max_message_bytes >= 1, received "
                f"{timeout_seconds} and {max_message_bytes}"
            )
            raise OptionError(message)
        deadline = time.monotonic() + timeout_seconds
        sockets: dict[int, socket.socket] = {}
        try:
            _dial_lower(view, lobby, secret, tls, deadline, sockets)
            _accept_higher(view, lobby, deadline, sockets)
            lobby.check(view)
            return cls(
                view,
                sockets,
                timeout_seconds=timeout_seconds,
                max_message_bytes=max_message_bytes,
                two_level_from=two_level_from,
            )
        except BaseException:
            _close_all(sockets.values())
            raise

    def _swap(self, tag: int, outgoing: Mapping[int, Buffer]) -> dict[int, Buffer]:
        limit = self._max_bundle_bytes if is_bundle(tag) else self._max_message_bytes
        self._check_sizes(outgoing.values(), limit)
        start, latest = time.monotonic(), None
        links = {p: link for p, link in self._links.items() if p in outgoing}
        for position, link in links.items():
            link.begin(tag, outgoing[position], limit)
            self._push(link, tag)
            self._selector.register(link.connection, _events(link), link)
        busy = len(links)
        check_at = time.monotonic() + self._timeout_seconds
        while busy:
            for key, mask in self._selector.select(max(0.0, check_at - time.monotonic())):
                link = key.data
                if link is None:
                    raise self._closed_error(tag)
                if mask & selectors.EVENT_WRITE:
                    self._push(link, tag)
                if mask & selectors.EVENT_READ:
                    self._pull(link, tag)
                    if link.body is not None:
                        latest = link.peer.rank, link.progress
                events = _events(link)
                if not events:
                    # a peer that is already in the next call would wake the select again and again
                    self._selector.unregister(link.connection)
                    busy -= 1
                elif events != key.events:
                    self._selector.modify(link.connection, events, link)
            if busy and time.monotonic() >= check_at:
                check_at = self._oldest_progress(links.values(), tag) + self._timeout_seconds
        if latest is not None:
            self._waited_for(latest[0], latest[1] - start)
        received = {p: outgoing[p] for p in outgoing if p == self.position}
        for position, link in links.items():
            if link.body is not None:
                received[position] = link.body
            link.body = None  # nothing is kept
        return received

    def _push(self, link: Link, tag: int) -> None:
        try:
            self.bytes_sent += link.push()
        except OSError as error:
            raise self._lost(link, tag, f"sending to it failed ({error or 'connection closed'})") from error

    def _pull(self, link: Link, tag: int) -> None:
        try:
            count, received_tag = link.pull()
        except OSError as error:
            raise self._lost(link, tag, f"it closed the connection ({link.awaited()})") from error
        self.bytes_received += count
        if received_tag is not None and received_tag != tag:
            raise self._mismatch(link.peer.rank, tag, received_tag)

    def _oldest_progress(self, links: Iterable[Link], tag: int) -> float:
        """When the slowest busy peer last moved; raise `PeerLost` if that is too long ago."""
        slowest = min((link for link in links if _events(link)), key=lambda link: link.progress)
        if slowest.progress + self._timeout_seconds <= time.monotonic():
            doing = slowest.awaited() if slowest.body is None else "it took nothing of our message"
            raise self._lost(slowest, tag, f"it was silent for {self._timeout_seconds:g} seconds ({doing})")
        return slowest.progress

    def _lost(self, link: Link, tag: int, why: str) -> PeerLost:
        peer = link.peer
        message = f"rank {self.rank} lost rank {peer.rank} at {peer.host}:{peer.port}: {why}; awaited: {describe_tag(tag)}"
        return PeerLost(message, rank=peer.rank)

    def _check_sizes(self, outgoing: Iterable[Buffer], limit: int) -> None:
        longest = max(map(len, outgoing), default=0)
        if longest > limit:
            message = (
                f"rank {self.rank}: expected messages of at most max_message_bytes={limit}, "
                f"received one of {longest} bytes"
            )
            raise OptionError(message, hint="raise max_message_bytes on all workers")

    def _close(self) -> None:
        self._wake_writer.send(b"\0")
        with self._swapping:
            _close_all(link.connection for link in self._links.values())
            self._selector.close()
            self._wake_reader.close()
            self._wake_writer.close()


def _events(link: Link) -> int:
    """What a link still waits for in this swap."""
    reading = selectors.EVENT_READ if link.body is None else 0
    return reading if link.sent else reading | selectors.EVENT_WRITE


def _close_all(sockets: Iterable[socket.socket]) -> None:
    for connection in sockets:
        connection.close()


def _dial_lower(
    view: View,
    lobby: Lobby,
    secret: bytes,
    tls: Identity | None,
    deadline: float,
    sockets: dict[int, socket.socket],
) -> None:
    """Connect to all workers before the own position and tell each who is calling, for which view."""
    for peer in view.peers[: view.position]:
        lobby.check(view)
        name = f"rank {view.rank}: rank {peer.rank}"
        try:
            sockets[peer.rank] = connection = dial(
                peer.host,
                peer.port,
                secret,
                MESH,
                peer=name,
                timeout_seconds=max(0.01, deadline - time.monotonic()),
                cancelled=lambda: lobby.is_superseded(view.number),
                tls=tls,
            )
            connection.settimeout(HANDSHAKE_SECONDS)
            connection.sendall(hello(view, peer.rank))
        except PeerLost as error:
            lobby.check(view)  # says more than that dialling was given up
            raise PeerLost(error.message, hint=error.hint, rank=peer.rank) from error
        except OSError as error:
            message = f"{name} at {peer.host}:{peer.port}: it closed the connection while the mesh was built: {error}"
            raise PeerLost(message, rank=peer.rank) from error


def _accept_higher(view: View, lobby: Lobby, deadline: float, sockets: dict[int, socket.socket]) -> None:
    """Accept all workers after the own position in any order."""
    while missing := [peer for peer in view.peers[view.position + 1 :] if peer.rank not in sockets]:
        caller = lobby.claim(view, deadline - time.monotonic())
        if caller is None:
            names = ", ".join(f"rank {peer.rank} at {peer.host}:{peer.port}" for peer in missing)
            message = f"rank {view.rank}: did not connect in time while the mesh was built: {names}"
            raise PeerLost(message, rank=missing[0].rank)
        rank, connection = caller
        if rank in sockets:
            connection.close()
        else:
            sockets[rank] = connection
