"""Both ends of a connection prove that they know the job's secret, before anything else is said.

Mutual challenge and response with HMAC-SHA256 over fresh nonces. All messages have fixed sizes::

    connector -> acceptor   hello     8 bytes magic and version | 32 bytes nonce C
    acceptor  -> connector  answer    8 bytes magic and version | 32 bytes nonce A | 32 bytes proof
                                      proof = HMAC(secret, "acceptor"  | purpose | C | A)
    connector -> acceptor   proof     32 bytes
                                      proof = HMAC(secret, "connector" | purpose | C | A)
    acceptor  -> connector  welcome   1 byte

The connector checks the acceptor's proof before it sends its own, and before it sends anything about the job.
The roles in the proofs make a reflected message worthless, both nonces make a recorded one worthless, and the
purpose keeps a proof for a worker's listener from being used at the coordinator's. In a job that asks for encryption
all this and what follows it is said inside TLS (`tls`). In others what follows the handshake is neither encrypted nor
signed: the secret keeps strangers out of a network whose wires are trusted.

An acceptor that encrypts answers a newcomer that does not with 8 bytes, the name and version 0, and the other way round.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, final

from fatwood.errors import AuthenticationError, OptionError, PeerLost, ProtocolError
from fatwood.exchange.connecting import Patience, connect, never
from fatwood.exchange.tls import Identity, TlsSide

__all__ = [
    "CONTROL",
    "HANDSHAKE_SECONDS",
    "MESH",
    "OTHER_KIND",
    "AcceptorHandshake",
    "checked_secret",
    "connector_handshake",
    "dial",
    "new_secret",
]

HANDSHAKE_SECONDS: Final = 5.0
"""How long a whole handshake may take."""

CONTROL: Final = b"control"
"""The purpose of a member's connection to the coordinator."""

MESH: Final = b"mesh"
"""The purpose of a connection between two workers."""

_NAME: Final = b"FATWOOD"
_VERSION: Final = 1
_MAGIC: Final = _NAME + bytes([_VERSION])
_NONCE_BYTES: Final = 32
_PROOF_BYTES: Final = 32
_SECRET_BYTES: Final = 32
_WELCOME: Final = b"+"
_RETRY_PAUSES_SECONDS: Final = (0.1, 0.3, 0.5, 0.5)

OTHER_KIND: Final = _NAME + b"\0"
"""What an acceptor answers a newcomer that encrypts when it does not itself, or the other way round."""

_KIND_HINT: Final = "all members of a job encrypt or none does; it may belong to another job"


def new_secret() -> bytes:
    """Return a fresh secret for one job: 32 random bytes."""
    return secrets.token_bytes(_SECRET_BYTES)


def checked_secret(secret: bytes) -> bytes:
    """Return the secret if it can be one, else raise `OptionError` (which does not show it)."""
    if not isinstance(secret, bytes) or len(secret) != _SECRET_BYTES:
        received = f"{len(secret)} bytes" if isinstance(secret, bytes) else type(secret).__name__
        message = f"secret: expected {_SECRET_BYTES} random bytes, received {received}"
        raise OptionError(message, hint="make one per job with fatwood.exchange.new_secret()")
    return secret


def _proof(
    secret: bytes, role: bytes, purpose: bytes, connector_nonce: bytes, acceptor_nonce: bytes
) -> bytes:
    text = b"|".join((_MAGIC, role, purpose)) + b"|" + connector_nonce + acceptor_nonce
    return hmac.digest(secret, text, "sha256")


def _check_magic(magic: bytes, peer: str) -> None:
    if magic == OTHER_KIND:
        message = f"{peer}: it asks for encryption, and this side does not encrypt"
        raise AuthenticationError(message, hint=_KIND_HINT)
    if magic[: len(_NAME)] != _NAME:
        message = f"{peer}: expected a handshake that begins with {_NAME!r}, received {bytes(magic)!r}"
        raise AuthenticationError(message, hint="another program uses this address")
    if magic != _MAGIC:
        message = f"{peer}: expected version {_VERSION} of the handshake, received version {magic[-1]}"
        raise ProtocolError(
            message, hint="install the same version of fatwood on the driver and all executors"
        )


@final
class AcceptorHandshake:
    """The acceptor's side as a state machine without a socket, so that one thread can serve many newcomers.

    Args:
        secret: The job's secret.
        purpose: What the connection is for; both sides must name the same.
        peer: The newcomer in words, for messages.

    Attributes:
        wanted: How many bytes the next `advance` must be given; 0 when the newcomer has proved the secret.
    """

    def __init__(self, secret: bytes, purpose: bytes, peer: str) -> None:
        self._secret = secret
        self._purpose = purpose
        self._peer = peer
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._expected: bytes | None = None
        self._has_magic = False
        self.wanted = len(_MAGIC)

    def advance(self, data: bytes) -> bytes:
        """Take exactly `wanted` bytes from the newcomer and return what to send to it.

        Raises:
            AuthenticationError: The newcomer speaks another language or does not know the secret.
            ProtocolError: The newcomer speaks another version.
        """
        if not self._has_magic:
            _check_magic(data, self._peer)
            self._has_magic, self.wanted = True, _NONCE_BYTES
            return b""
        if self._expected is None:
            nonces = data, self._nonce
            self._expected = _proof(self._secret, b"connector", self._purpose, *nonces)
            self.wanted = _PROOF_BYTES
            return _MAGIC + self._nonce + _proof(self._secret, b"acceptor", self._purpose, *nonces)
        if not hmac.compare_digest(data, self._expected):
            message = f"{self._peer}: the newcomer does not know this job's secret"
            raise AuthenticationError(message)
        self.wanted = 0
        return _WELCOME


def connector_handshake(connection: socket.socket, secret: bytes, purpose: bytes, patience: Patience) -> None:
    """Verify the acceptor, then prove the secret to it.

    Args:
        connection: A connected socket on which nothing has been said; its timeout is changed.
        secret: The job's secret.
        purpose: What the connection is for; both sides must name the same.
        patience: How long the whole handshake may take, and who the acceptor is.

    Raises:
        AuthenticationError: The acceptor speaks another language or does not know the secret.
        ProtocolError: The acceptor speaks another version.
        PeerLost: The acceptor closed the connection or was silent.
    """
    peer = patience.peer
    nonce = secrets.token_bytes(_NONCE_BYTES)
    with _explained(peer):
        _send(connection, _MAGIC + nonce, patience)
        _check_magic(_receive(connection, len(_MAGIC), patience), peer)
        answer = _receive(connection, _NONCE_BYTES + _PROOF_BYTES, patience)
        nonces = nonce, answer[:_NONCE_BYTES]
        if not hmac.compare_digest(answer[_NONCE_BYTES:], _proof(secret, b"acceptor", purpose, *nonces)):
            message = f"{peer}: the program at this address does not know this job's secret"
            raise AuthenticationError(
                message, hint="it may belong to another job, or to an earlier run of this one"
            )
        _send(connection, _proof(secret, b"connector", purpose, *nonces), patience)
        welcome = _receive(connection, len(_WELCOME), patience)
    if welcome != _WELCOME:
        message = f"{peer}: expected the end of the handshake, received other bytes"
        raise ProtocolError(message)


def dial(
    host: str,
    port: int,
    secret: bytes,
    purpose: bytes,
    *,
    peer: str,
    timeout_seconds: float,
    cancelled: Callable[[], bool] = never,
    tls: Identity | None = None,
) -> socket.socket:
    """Connect and authenticate; a refused or dropped connection is tried again a few times.

    Args:
        host: Where to connect.
        port: Where to connect.
        secret: The job's secret.
        purpose: What the connection is for; both sides must name the same.
        peer: Who is expected there, for messages; host and port are added.
        timeout_seconds: How long all attempts together may take.
        cancelled: Says whether the connection is no longer wanted; asked twice a second or more often.
        tls: The job's identity if its connections are encrypted.

    Returns:
        A connected socket with TCP_NODELAY, in blocking mode without a timeout; with `tls` an `ssl.SSLSocket`.

    Raises:
        AuthenticationError: Somebody else listens there, or only one side encrypts.
        ProtocolError: Another version of fatwood listens there.
        PeerLost: Nobody listens there, or it closed the connection or was silent, or `cancelled` said True.
        OptionError: The identity is not one.
    """
    side = None if tls is None else TlsSide.connecting(tls)
    patience = Patience(f"{peer} at {host}:{port}", timeout_seconds, cancelled)
    pauses = iter(_RETRY_PAUSES_SECONDS)
    while True:
        try:
            return _dial_once(host, port, secret, purpose, side, patience)
        except PeerLost:
            pause = next(pauses, None)
            if pause is None or patience.ends_within(pause):
                raise
            time.sleep(pause)


def _dial_once(
    host: str, port: int, secret: bytes, purpose: bytes, side: TlsSide | None, patience: Patience
) -> socket.socket:
    connection = connect(host, port, patience)
    patience = patience.part(HANDSHAKE_SECONDS)
    try:
        if side is not None:
            with _explained(patience.peer):
                connection = side.wrap(connection)
                _shake_hands(connection, side, patience)
        connector_handshake(connection, secret, purpose, patience)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def _shake_hands(connection: ssl.SSLSocket, side: TlsSide, patience: Patience) -> None:
    while True:
        connection.settimeout(patience.next_wait())
        try:
            connection.do_handshake()
        except TimeoutError:
            continue
        side.check(connection, patience.peer)
        return


def _send(connection: socket.socket, data: bytes, patience: Patience) -> None:
    """Send a few bytes, for which a fresh connection always has room."""
    connection.settimeout(patience.next_wait())
    connection.sendall(data)


def _receive(connection: socket.socket, count: int, patience: Patience) -> bytes:
    """Read exactly `count` bytes."""
    data = b""
    while len(data) < count:
        connection.settimeout(patience.next_wait())
        try:
            piece = connection.recv(count - len(data))
        except TimeoutError:
            continue
        if not piece:
            message = "it closed the connection"
            raise ConnectionResetError(message)
        data += piece
    return data


@contextmanager
def _explained(peer: str) -> Iterator[None]:
    """Tell an acceptor that cannot be a member of this job from one that went away."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ssl.SSLError) and not isinstance(
            error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)
        ):
            message = f"{peer}: it does not encrypt as the members of this job do: {error}"
            raise AuthenticationError(message, hint=_KIND_HINT) from error
        message = f"{peer}: the handshake was not finished: {error}"
        raise PeerLost(message) from error
