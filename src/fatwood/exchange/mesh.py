"""The exchange over TCP: one connection per pair of workers, everything to everybody in one round trip.

Non-blocking sockets and `selectors` in the caller's thread: sends and receives advance at the same time, so messages
larger than the sockets' buffers cannot block each other, and no thread per peer is needed.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import final

from fatwood.errors import OptionError, PeerLost
from fatwood.exchange.auth import HANDSHAKE_SECONDS, MESH, checked_secret, dial
from fatwood.exchange.contract import Buffer, Exchange, describe_tag
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
    """

    def __init__(
        self,
        view: View,
        sockets: Mapping[int, socket.socket],
        *,
        timeout_seconds: float,
        max_message_bytes: int,
    ) -> None:
        super().__init__(view.rank, view.ranks)
        self._timeout_seconds = timeout_seconds
        self._max_message_bytes = max_message_bytes
        self._positions = {rank: position for position, rank in enumerate(view.ranks)}
        # begin with the next worker, so that not all send to the first one first
        peers = view.peers[view.position + 1 :] + view.peers[: view.position]
        self._links = [Link(peer, sockets[peer.rank], max_message_bytes) for peer in peers]
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
            return cls(view, sockets, timeout_seconds=timeout_seconds, max_message_bytes=max_message_bytes)
        except BaseException:
            _close_all(sockets.values())
            raise

    def _swap(self, tag: int, outgoing: Sequence[Buffer]) -> list[Buffer]:
        self._check_sizes(outgoing)
        start, latest = time.monotonic(), None
        for link in self._links:
            link.begin(tag, outgoing[self._positions[link.peer.rank]])
            self._push(link, tag)
            self._selector.register(link.connection, _events(link), link)
        busy = len(self._links)
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
                check_at = self._oldest_progress(tag) + self._timeout_seconds
        if latest is not None:
            self._waited_for(latest[0], latest[1] - start)
        return self._take(outgoing[self.position])

    def _take(self, own: Buffer) -> list[Buffer]:
        """Return the messages by position and keep none of them."""
        received: list[Buffer] = [own] * self.size
        for link in self._links:
            if link.body is not None:
                received[self._positions[link.peer.rank]] = link.body
            link.body = None
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

    def _oldest_progress(self, tag: int) -> float:
        """When the slowest busy peer last moved; raise `PeerLost` if that is too long ago."""
        slowest = min((link for link in self._links if _events(link)), key=lambda link: link.progress)
        if slowest.progress + self._timeout_seconds <= time.monotonic():
            doing = slowest.awaited() if slowest.body is None else "it took nothing of our message"
            raise self._lost(slowest, tag, f"it was silent for {self._timeout_seconds:g} seconds ({doing})")
        return slowest.progress

    def _lost(self, link: Link, tag: int, why: str) -> PeerLost:
        peer = link.peer
        message = f"rank {self.rank} lost rank {peer.rank} at {peer.host}:{peer.port}: {why}; awaited: {describe_tag(tag)}"
        return PeerLost(message, rank=peer.rank)

    def _check_sizes(self, outgoing: Sequence[Buffer]) -> None:
        longest = max(len(body) for body in outgoing)
        if longest > self._max_message_bytes:
            message = (
                f"rank {self.rank}: expected messages of at most max_message_bytes={self._max_message_bytes}, "
                f"received one of {longest} bytes"
            )
            raise OptionError(message, hint="raise max_message_bytes on all workers")

    def _close(self) -> None:
        self._wake_writer.send(b"\0")
        with self._swapping:
            _close_all(link.connection for link in self._links)
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
