"""The control channel between a member and the coordinator: blocking frames with deadlines.

A frame on the wire, big-endian::

    0   2 bytes  magic "FW"
    2   u8       kind
    3   u32      length of the body, at most 1 MiB, checked before memory is allocated
    7   body     JSON, or raw bytes of a blob
"""

from __future__ import annotations

import json
import selectors
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, final

from fatwood.errors import OptionError, PeerLost, ProtocolError
from fatwood.exchange.contract import Buffer

__all__ = ["MAX_BODY_BYTES", "Frame", "FrameKind", "FramedConnection"]

MAX_BODY_BYTES: Final = 1 << 20
"""The longest body of a frame; longer things are sent in pieces."""

_HEADER: Final = struct.Struct(">2sBI")
_MAGIC: Final = b"FW"
_Selector: Final = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)  # epoll would cost a descriptor per wait


class FrameKind(IntEnum):
    """What a frame is, and who sends it."""

    JOIN = 1
    """Member: rank, listener address, facts."""
    VIEW = 2
    """Coordinator: who trains together from now on, and where."""
    REFUSED = 3
    """Coordinator: why the member cannot join."""
    HEARTBEAT = 4
    """Both: alive."""
    REPORT = 5
    """Member: kind and body of an event."""
    STOP = 6
    """Coordinator: stop, and why."""
    BYE = 7
    """Member: leaving in peace."""
    BLOB_BEGIN = 8
    """Member: name and size of a blob it wants to send."""
    BLOB_DATA = 9
    """Both: the next bytes of a blob."""
    BLOB_REPLY = 10
    """Coordinator: a blob may come, has been written, or is about to be sent; or an error."""
    FETCH = 11
    """Member: name of a blob it wants."""
    WELCOME = 12
    """Coordinator: the member has joined, and whether the job has begun."""
    READY = 13
    """Member: it has all that it needs to train."""
    HOLD = 14
    """Coordinator: views below a number are over, and there is no new one yet."""
    SUSPECT = 15
    """Member: it cannot go on in a view, and the rank that it lost, if it knows."""
    SYNCED = 16
    """Member: it has the training's state in a view, after how many rounds."""
    WAITING = 17
    """Member: the workers of a view cannot go on without those that are missing."""
    FINISHED = 18
    """Coordinator: the job is over; leave in peace."""
    SPARE = 19
    """Coordinator: another member has the rank; the wait may be long."""
    PING = 20
    """Member: what time is it? With a number."""
    PONG = 21
    """Coordinator: the number, and the time when the question came."""


@dataclass(frozen=True)
class Frame:
    """One frame as it came."""

    kind: FrameKind
    body: bytes
    peer: str

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object.

        Raises:
            ProtocolError: The body is something else.
        """
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            message = f"{self.peer}: expected JSON in a {self.kind.name} frame: {error}"
            raise ProtocolError(message) from error
        if not isinstance(value, dict):
            message = f"{self.peer}: expected a JSON object in a {self.kind.name} frame, received {type(value).__name__}"
            raise ProtocolError(message)
        return value

    def count(self, name: str) -> int:
        """Return a whole number of the body that is at least 0.

        Raises:
            ProtocolError: There is something else.
        """
        value = self.json().get(name)
        if type(value) is not int or value < 0:
            message = f"{self.peer}: expected a count as {name} in a {self.kind.name} frame, received {value!r:.200}"
            raise ProtocolError(message)
        return value


@final
class FramedConnection:
    """Frames over an authenticated socket. Any thread may send; one thread receives.

    Args:
        connection: The socket; owned from now on.
        peer: The other side in words with host and port, for messages.
    """

    def __init__(self, connection: socket.socket, peer: str) -> None:
        connection.setblocking(False)
        self._connection = connection
        self.peer = peer
        self._sending = threading.Lock()
        self._using = threading.Lock()  # TLS must not send and receive at the very same time
        self._open = True

    def send(self, kind: FrameKind, body: Buffer | dict[str, Any] = b"", *, timeout_seconds: float) -> None:
        """Send one frame; a dict goes as JSON.

        Args:
            kind: What the frame is.
            body: Bytes, or a JSON object.
            timeout_seconds: How long the other side may take nothing, or another thread's frame may take.

        Raises:
            OptionError: The body is not JSON or longer than 1 MiB.
            PeerLost: The connection is closed or takes nothing.
        """
        data = _encoded(kind, body)
        if not self._sending.acquire(timeout=timeout_seconds):
            message = f"{self.peer} takes nothing: another frame waited for {timeout_seconds:g} seconds"
            raise PeerLost(message)
        try:
            self._send_all(memoryview(data), timeout_seconds)
        finally:
            self._sending.release()

    def receive(self, timeout_seconds: float) -> Frame:
        """Return the next frame.

        Args:
            timeout_seconds: How long the other side may send nothing; any byte starts the time anew.

        Raises:
            PeerLost: The connection was closed or silent.
            ProtocolError: Bytes that are no frame.
        """
        header = self._receive_exactly(_HEADER.size, timeout_seconds)
        magic, kind, length = _HEADER.unpack(header)
        if magic != _MAGIC or length > MAX_BODY_BYTES:
            message = (
                f"{self.peer}: expected a frame that begins with {_MAGIC!r} and has at most {MAX_BODY_BYTES} bytes, "
                f"received {magic!r} and {length} bytes"
            )
            raise ProtocolError(message)
        try:
            known = FrameKind(kind)
        except ValueError:
            message = f"{self.peer}: expected a known kind of frame, received {kind}"
            raise ProtocolError(
                message, hint="install the same version of fatwood on the driver and all executors"
            ) from None
        return Frame(known, self._receive_exactly(length, timeout_seconds), self.peer)

    def shutdown(self) -> None:
        """End the conversation from any thread; a blocked `receive` raises `PeerLost`."""
        try:
            # not ssl.SSLSocket.shutdown: that takes TLS off, and a thread that reads would take cipher for text
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)
        except OSError:
            return  # already closed by the other side

    def close(self) -> None:
        """Free the socket; called by the thread that receives, or after it has ended. Idempotent."""
        self._open = False
        self.shutdown()
        with self._sending, self._using:
            self._connection.close()

    def _send_all(self, data: memoryview, timeout_seconds: float) -> None:
        while data:
            if not self._open:
                message = f"{self.peer}: the connection was closed"
                raise PeerLost(message)
            try:
                with self._using:
                    data = data[self._connection.send(data) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(selectors.EVENT_WRITE, timeout_seconds, "took nothing")
            except OSError as error:
                self.shutdown()  # half a frame may be out: nothing after it could be read
                message = f"{self.peer} closed the connection: {error}"
                raise PeerLost(message) from error

    def _receive_exactly(self, count: int, timeout_seconds: float) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            try:
                with self._using:
                    received = self._connection.recv_into(view)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(selectors.EVENT_READ, timeout_seconds, "was silent")
                continue
            except OSError as error:
                message = f"{self.peer} closed the connection: {error}"
                raise PeerLost(message) from error
            if received == 0:
                message = f"{self.peer} closed the connection"
                raise PeerLost(message)
            view = view[received:]
        return bytes(data)

    def _wait(self, event: int, timeout_seconds: float, what: str) -> None:
        deadline = time.monotonic() + timeout_seconds
        with _Selector() as selector:
            try:
                selector.register(self._connection, event)
            except (ValueError, OSError) as error:
                message = f"{self.peer}: the connection was closed"
                raise PeerLost(message) from error
            if not selector.select(max(0.0, deadline - time.monotonic())):
                self.shutdown()
                message = f"{self.peer} {what} for {timeout_seconds:g} seconds"
                raise PeerLost(message, silent=True)


def _encoded(kind: FrameKind, body: Buffer | dict[str, Any]) -> bytes:
    if isinstance(body, dict):
        try:
            body = json.dumps(body).encode()
        except (TypeError, ValueError, RecursionError) as error:
            message = f"the body of a {kind.name} frame must be JSON: {error}"
            raise OptionError(message, hint="use str, int, float, bool, None, lists and dicts") from error
    if len(body) > MAX_BODY_BYTES:
        message = (
            f"the body of a {kind.name} frame: expected at most {MAX_BODY_BYTES} bytes, received {len(body)}"
        )
        raise OptionError(message, hint="send large things with send_blob")
    return b"".join((_HEADER.pack(_MAGIC, kind, len(body)), body))
