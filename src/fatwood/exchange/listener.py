"""A bound socket whose newcomers prove the job's secret before anybody hears of them.

One thread serves all newcomers with non-blocking sockets. A stranger costs one socket and at most 72 bytes (with
encryption, what TLS keeps of a handshake) until its deadline; when too many are pending, the oldest is dropped: an
honest peer is done within a few round trips, so the oldest is a stranger. TLS begins only when a newcomer's first
byte is that of a TLS handshake.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections import deque
from typing import Final, final

from fatwood.errors import AuthenticationError, ExchangeError, OptionError, ProtocolError
from fatwood.exchange.auth import HANDSHAKE_SECONDS, OTHER_KIND, AcceptorHandshake, checked_secret
from fatwood.exchange.tls import Identity, TlsSide

__all__ = ["Listener"]

_BACKLOG: Final = 1024
_MAX_PENDING: Final = 128
_MAX_UNCLAIMED: Final = 1024
_ACCEPTS_PER_TURN: Final = 64
_BREATH_SECONDS: Final = 0.05  # after an accept that failed for want of descriptors
_TLS_HANDSHAKE: Final = b"\x16"  # the first byte of a TLS connection
_MAX_DRAINED_BYTES: Final = 1 << 16


@final
class _Newcomer:
    """A connection that has not proved the secret yet."""

    def __init__(
        self, connection: socket.socket, address: tuple[str, int], secret: bytes, purpose: bytes
    ) -> None:
        self.connection = connection
        self.descriptor = connection.fileno()
        self.address = address
        self.peer = f"a newcomer from {address[0]}:{address[1]}"
        self.handshake = AcceptorHandshake(secret, purpose, self.peer)
        self.greeted = False  # the first byte has come and the encryption, if any, is done
        self.data = b""
        self.deadline = time.monotonic() + HANDSHAKE_SECONDS


@final
class Listener:
    """Accepts and authenticates connections in a thread of its own; `accept` hands them out.

    Args:
        host: The address to bind.
        secret: The job's secret.
        purpose: What connections are for (`auth.CONTROL` or `auth.MESH`).
        port: The port to bind; 0 lets the system choose.
        tls: The job's identity if its connections are encrypted.

    Attributes:
        address: Host and port that are bound.
        refused: How many newcomers failed the handshake, fell silent or were dropped.

    Raises:
        ExchangeError: The address cannot be bound.
        OptionError: The secret is not 32 bytes, or the identity is not one.
    """

    def __init__(
        self, *, host: str, secret: bytes, purpose: bytes, port: int = 0, tls: Identity | None = None
    ) -> None:
        self._secret = checked_secret(secret)
        self._purpose = purpose
        self._side = None if tls is None else TlsSide(tls, accepts=True)
        self._server = _bind(host, port)
        self.address: tuple[str, int] = self._server.getsockname()[:2]
        self.refused = 0
        self._pending: dict[int, _Newcomer] = {}  # by file descriptor, oldest first
        self._ready: deque[tuple[socket.socket, tuple[str, int]]] = deque()
        self._interrupted = False
        self._changed = threading.Condition()  # guards the two above
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(
            target=self._serve, name=f"fatwood-listener-{self.address[1]}", daemon=True
        )
        self._thread.start()

    def accept(self, timeout_seconds: float) -> tuple[socket.socket, tuple[str, int]] | None:
        """Return the next authenticated connection and its address, or None after `timeout_seconds`.

        The socket is non-blocking and has TCP_NODELAY; it belongs to the caller. With encryption it is an
        `ssl.SSLSocket`. One thread at a time may wait here.

        Raises:
            ExchangeError: The listener was closed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._ready or self._interrupted or self._closed, max(0.0, timeout_seconds)
            )
            if self._closed:
                message = f"the listener at {self.address[0]}:{self.address[1]} was closed"
                raise ExchangeError(message)
            if self._interrupted:
                self._interrupted = False
                return None
            return self._ready.popleft() if self._ready else None

    def interrupt(self) -> None:
        """Make the `accept` that waits now, or else the next one, return None at once."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop listening, drop newcomers and unclaimed connections, end the thread; idempotent."""
        with self._closing:
            if self._closed:
                return
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            self._wake_writer.send(b"\0")
            self._thread.join()
            self._wake_reader.close()
            self._wake_writer.close()
            while self._ready:
                self._ready.popleft()[0].close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        try:
            while not self._closed:
                wait = HANDSHAKE_SECONDS
                if self._pending:
                    wait = next(iter(self._pending.values())).deadline - time.monotonic()
                for key, _ in self._selector.select(max(0.0, wait)):
                    if key.fileobj is self._server:
                        self._accept_some()
                    # a number may have been dropped and given to another connection since the select
                    elif isinstance(key.data, _Newcomer) and self._pending.get(key.fd) is key.data:
                        self._hear(key.data)
                self._drop_late()
        finally:
            for newcomer in list(self._pending.values()):
                self._forget(newcomer).close()
            self._selector.close()
            self._server.close()

    def _accept_some(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                connection, address = self._server.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError:  # no descriptors left: make room
                self._drop_oldest()
                time.sleep(_BREATH_SECONDS)
                return
            if len(self._pending) >= _MAX_PENDING:
                self._drop_oldest()
            self._greet(connection, address[:2])

    def _greet(self, connection: socket.socket, address: tuple[str, int]) -> None:
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            self.refused += 1
            connection.close()
            return
        newcomer = _Newcomer(connection, address, self._secret, self._purpose)
        self._pending[newcomer.descriptor] = newcomer
        self._selector.register(connection, selectors.EVENT_READ, newcomer)

    def _hear(self, newcomer: _Newcomer) -> None:
        """Read no more than the handshake still wants; what follows it belongs to whoever claims the socket."""
        handshake = newcomer.handshake
        try:
            if not newcomer.greeted:
                self._begin(newcomer)
            while handshake.wanted:
                piece = newcomer.connection.recv(handshake.wanted - len(newcomer.data))
                if not piece:
                    raise ConnectionResetError
                newcomer.data += piece
                if len(newcomer.data) < handshake.wanted:
                    continue
                answer, newcomer.data = handshake.advance(newcomer.data), b""
                if newcomer.connection.send(answer) != len(answer):
                    raise ConnectionResetError  # a fresh connection always has room for an answer
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except (OSError, AuthenticationError, ProtocolError):
            self._refuse(newcomer)
            return
        connection = self._forget(newcomer)
        with self._changed:
            if len(self._ready) < _MAX_UNCLAIMED:
                self._ready.append((connection, newcomer.address))
                self._changed.notify()
                return
        connection.close()

    def _begin(self, newcomer: _Newcomer) -> None:
        """Take the first byte for what it is, then finish the handshake of TLS if this listener encrypts."""
        connection = newcomer.connection
        if not isinstance(connection, ssl.SSLSocket):
            first = connection.recv(1, socket.MSG_PEEK)
            if (first == _TLS_HANDSHAKE) != (self._side is not None):
                connection.send(OTHER_KIND)
                # what is left unread makes the close a reset, which may overtake the answer
                connection.recv(_MAX_DRAINED_BYTES)
                raise ConnectionAbortedError
            if self._side is not None:
                newcomer.connection = connection = self._side.wrap(connection)
        if isinstance(connection, ssl.SSLSocket) and self._side is not None:
            connection.do_handshake()
            self._side.check(connection, newcomer.peer)
        newcomer.greeted = True

    def _drop_late(self) -> None:
        now = time.monotonic()
        while self._pending:
            oldest = next(iter(self._pending.values()))
            if oldest.deadline > now:
                return
            self._refuse(oldest)

    def _drop_oldest(self) -> None:
        if self._pending:
            self._refuse(next(iter(self._pending.values())))

    def _refuse(self, newcomer: _Newcomer) -> None:
        self.refused += 1
        self._forget(newcomer).close()

    def _forget(self, newcomer: _Newcomer) -> socket.socket:
        del self._pending[newcomer.descriptor]
        self._selector.unregister(newcomer.descriptor)
        return newcomer.connection


def _bind(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        message = f"port: expected 0 .. 65535, received {port}"
        raise OptionError(message)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        message = f"cannot listen at {host}:{port}: {error}"
        raise ExchangeError(
            message, hint="the host must be an address of this machine and the port free"
        ) from error
    server.setblocking(False)
    return server
