"""A TCP connection whose making is bounded in time and can be called off from another thread."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import time
from collections.abc import Callable
from typing import Final, final

from fatwood.errors import PeerLost

__all__ = ["Patience", "connect", "never"]

_GLANCE_SECONDS: Final = 0.5


def never() -> bool:
    """Nothing cancels this."""
    return False


@final
class Patience:
    """How long an attempt to connect may still wait, and whether it should.

    Args:
        peer: The acceptor in words with host and port, for messages.
        seconds: How long all waits together may take.
        cancelled: Says whether the connection is no longer wanted; asked twice a second or more often.
    """

    def __init__(self, peer: str, seconds: float, cancelled: Callable[[], bool] = never) -> None:
        self.peer = peer
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._cancelled = cancelled

    def next_wait(self) -> float:
        """Return how many seconds to wait before this is asked again.

        Raises:
            PeerLost: The time is over or the connection is no longer wanted.
        """
        if self._cancelled():
            message = f"{self.peer}: the attempt to connect was superseded"
            raise PeerLost(message)
        left = self._deadline - time.monotonic()
        if left <= 0:
            message = f"{self.peer}: no answer in {self._seconds:.1f} seconds"
            raise PeerLost(message, hint="is it alive, and does a firewall let this port through?")
        return min(left, _GLANCE_SECONDS)

    def ends_within(self, seconds: float) -> bool:
        """Return whether nothing would be left of it after so many seconds."""
        return self._cancelled() or time.monotonic() + seconds >= self._deadline

    def part(self, seconds: float) -> Patience:
        """Return the patience for a part of the attempt, which may take at most so many seconds."""
        left = max(0.01, self._deadline - time.monotonic())
        return Patience(self.peer, min(seconds, left), self._cancelled)


def connect(host: str, port: int, patience: Patience) -> socket.socket:
    """Connect to the first of the host's addresses that answers.

    Returns:
        A connected non-blocking socket with TCP_NODELAY.

    Raises:
        PeerLost: None of them answers in time, or the connection is no longer wanted.
    """
    failure: OSError | None = None
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        places, failure = [], error
    for family, kind, protocol, _, address in places:
        patience.next_wait()
        connection = socket.socket(family, kind, protocol)
        try:
            _reach(connection, address, patience)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    message = f"{patience.peer}: cannot connect: {failure}"
    raise PeerLost(message, hint="is it alive, and does a firewall let this port through?") from failure


def _reach(connection: socket.socket, address: tuple[object, ...], patience: Patience) -> None:
    connection.setblocking(False)
    code = connection.connect_ex(address)
    if code == errno.EINPROGRESS:
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_WRITE)
            while not selector.select(patience.next_wait()):
                pass
        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
