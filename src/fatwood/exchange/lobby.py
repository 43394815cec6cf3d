"""Where peers wait for the view that they connect for.

Workers hear of a new view at different times: a fast one connects while the slow one still trains in the view before.
Every connection says which view it is for, right after the handshake, and the lobby keeps it until its view is claimed
or superseded. The first bytes of a connection between workers, big-endian::

    0   4 bytes  magic "FWm2"
    4   u64      number of the view
    12  u32      the caller's rank
    16  u32      the rank that is called
    20  8 bytes  digest of the view
"""

from __future__ import annotations

import selectors
import socket
import ssl
import struct
import threading
import time
from typing import Final, NamedTuple, final

from fatwood.errors import ExchangeError
from fatwood.exchange.auth import HANDSHAKE_SECONDS
from fatwood.exchange.listener import Listener
from fatwood.exchange.view import View

__all__ = ["Lobby", "hello"]

_HELLO: Final = struct.Struct(">4sQII8s")
_MAGIC: Final = b"FWm2"
_MAX_WAITING: Final = 1024
_GLANCE_SECONDS: Final = 0.02  # how long a caller that has not said its hello may keep others waiting

_NOT_YET: Final = (BlockingIOError, ssl.SSLWantReadError)


def hello(view: View, rank: int) -> bytes:
    """The first bytes on a connection from the holder of this view to the worker `rank`."""
    return _HELLO.pack(_MAGIC, view.number, view.rank, rank, view.digest())


class _Caller(NamedTuple):
    """A connection that has said its hello."""

    number: int
    rank: int
    called: int
    digest: bytes
    connection: socket.socket


@final
class _Mute:
    """A connection whose hello has not come yet."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.deadline = time.monotonic() + HANDSHAKE_SECONDS
        self._data = b""

    def hear(self) -> _Caller | None:
        """Read what has come, never beyond the hello; None while it is not complete.

        Raises:
            OSError: The connection is broken, or what came is no hello.
        """
        while len(self._data) < _HELLO.size:
            try:
                piece = self.connection.recv(_HELLO.size - len(self._data))
            except _NOT_YET:
                return None
            if not piece:
                raise ConnectionResetError
            self._data += piece
        magic, number, rank, called, digest = _HELLO.unpack(self._data)
        if magic != _MAGIC:
            raise ConnectionAbortedError
        return _Caller(number, rank, called, digest, self.connection)


@final
class Lobby:
    """The connections of a worker's peers for the present view and for views yet to come.

    One thread claims; the others may be called from any thread at any moment.

    Args:
        listener: Where peers connect; owned from now on.

    Attributes:
        listener: As above.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener: Final = listener
        self._claiming = threading.Lock()  # held during claim; guards _mute
        self._mute: list[_Mute] = []
        self._state = threading.Lock()  # guards what follows
        self._waiting: list[_Caller] = []
        self._lowest = 0
        self._closed = False

    def claim(self, view: View, timeout_seconds: float) -> tuple[int, socket.socket] | None:
        """Return the next connection from a worker after the own position in this view, with its rank.

        Connections for later views are kept, all others are closed.

        Args:
            view: The view to be connected.
            timeout_seconds: How long to wait for a connection.

        Returns:
            The caller's rank and its non-blocking socket, which belong to the claimer; None when nobody came in time.

        Raises:
            ExchangeError: The view is superseded, or the lobby was closed.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._claiming:
            while True:
                self._hear_all()
                caller = self._take(view)
                if caller is not None:
                    return caller.rank, caller.connection
                seconds = deadline - time.monotonic()
                if seconds <= 0:
                    return None
                self._await_callers(seconds)

    def supersede(self, number: int) -> None:
        """End all views below `number`: their connections are closed, and whoever claims or will claim for one gets an error."""
        with self._state:
            self._lowest = max(self._lowest, number)
            self._drop_superseded()
        self.listener.interrupt()

    def is_superseded(self, number: int) -> bool:
        """Whether the view of this number is over, or the lobby is closed."""
        with self._state:
            return self._closed or number < self._lowest

    def check(self, view: View) -> None:
        """Do nothing while the view may be connected.

        Raises:
            ExchangeError: The view is superseded, or the lobby was closed.
        """
        with self._state:
            self._check(view)

    def close(self) -> None:
        """Close the listener and all connections that wait; a blocked `claim` raises. Idempotent."""
        with self._state:
            self._closed = True
            self._drop_superseded()
        self.listener.close()
        with self._claiming:  # a claim has been woken by the listener's end
            while self._mute:
                self._mute.pop().connection.close()

    def __enter__(self) -> Lobby:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, view: View) -> None:
        if self._closed:
            host, port = self.listener.address
            message = f"rank {view.rank}: the lobby at {host}:{port} was closed while view {view.number} was connected"
            raise ExchangeError(message)
        if view.number < self._lowest:
            message = (
                f"rank {view.rank}: view {view.number} was superseded: views below {self._lowest} are over"
            )
            raise ExchangeError(message)

    def _take(self, view: View) -> _Caller | None:
        """The oldest caller for this view; whoever names its number but is not of it is hung up on."""
        callers = view.ranks[view.position + 1 :]
        with self._state:
            self._check(view)
            for caller in [waiting for waiting in self._waiting if waiting.number == view.number]:
                self._waiting.remove(caller)
                if (caller.called, caller.digest) == (view.rank, view.digest()) and caller.rank in callers:
                    return caller
                caller.connection.close()
        return None

    def _await_callers(self, timeout_seconds: float) -> None:
        """Return soon after a connection, a hello or an end has come, or after the timeout."""
        if self._mute:
            with selectors.DefaultSelector() as selector:
                for mute in self._mute:
                    selector.register(mute.connection, selectors.EVENT_READ)
                selector.select(min(timeout_seconds, _GLANCE_SECONDS))
            timeout_seconds = 0.0
        newcomer = self.listener.accept(timeout_seconds)
        if newcomer is not None:
            self._mute.append(_Mute(newcomer[0]))
            if len(self._mute) > _MAX_WAITING:
                self._mute.pop(0).connection.close()

    def _hear_all(self) -> None:
        """Let those wait who have said their hello; hang up on those who never will."""
        now = time.monotonic()
        for mute in list(self._mute):
            try:
                caller = mute.hear()
            except OSError:
                self._mute.remove(mute)
                mute.connection.close()
                continue
            if caller is not None:
                self._mute.remove(mute)
                self._admit(caller)
            elif mute.deadline <= now:
                self._mute.remove(mute)
                mute.connection.close()

    def _admit(self, caller: _Caller) -> None:
        with self._state:
            self._waiting.append(caller)
            self._drop_superseded()
            if len(self._waiting) > _MAX_WAITING:
                # views of low numbers are over first
                dropped = min(self._waiting, key=lambda waiting: waiting.number)
                self._waiting.remove(dropped)
                dropped.connection.close()

    def _drop_superseded(self) -> None:
        waiting, self._waiting = self._waiting, []
        for caller in waiting:
            if self._closed or caller.number < self._lowest:
                caller.connection.close()
            else:
                self._waiting.append(caller)
