"""One non-blocking connection to one peer of the mesh: a frame out and a frame in, at the same time.

A frame on the wire, big-endian::

    0   4 bytes  magic "FWx1"
    4   u64      tag: operation in the upper byte, step in the rest
    12  u64      length of the body, checked before memory is allocated
    20  body
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Final, final

from fatwood.errors import ProtocolError
from fatwood.exchange.contract import Buffer
from fatwood.exchange.view import Peer

__all__ = ["Link"]

_HEADER: Final = struct.Struct(">4sQQ")
_MAGIC: Final = b"FWx1"


@final
class Link:
    """The connection to `peer`; for each swap `begin` once, then `push` and `pull` until `sent` and `body`.

    Args:
        peer: Who is at the other end.
        connection: An authenticated socket; made non-blocking here.
        max_message_bytes: The longest body that is accepted.

    Attributes:
        sent: The whole outgoing frame was handed to the system.
        body: The peer's message, once it is complete.
        progress: When something last moved (time.monotonic).
    """

    def __init__(self, peer: Peer, connection: socket.socket, max_message_bytes: int) -> None:
        self.peer = peer
        self.connection = connection
        self._max_message_bytes = max_message_bytes
        connection.setblocking(False)
        self.sent = True
        self.body: Buffer | None = None
        self.progress = 0.0
        self._outgoing: list[memoryview] = []
        self._header = bytearray(_HEADER.size)
        self._incoming: bytearray | None = None
        self._filled = 0

    def begin(self, tag: int, body: Buffer) -> None:
        """Start a swap: the frame to send, and nothing received yet."""
        header = _HEADER.pack(_MAGIC, tag, len(body))
        self._outgoing = [memoryview(header), memoryview(body)] if len(body) else [memoryview(header)]
        self.sent = False
        self.body = None
        self._incoming = None
        self._filled = 0
        self.progress = time.monotonic()

    def push(self) -> int:
        """Send what the system takes now; return how many bytes that were.

        Raises:
            OSError: The connection is broken.
        """
        try:
            count = left = self.connection.sendmsg(self._outgoing)
        except BlockingIOError:
            return 0
        while self._outgoing and left >= len(self._outgoing[0]):
            left -= len(self._outgoing.pop(0))
        if self._outgoing:
            self._outgoing[0] = self._outgoing[0][left:]
        else:
            self.sent = True
        self.progress = time.monotonic()
        return count

    def pull(self, max_reads: int = 2) -> tuple[int, int | None]:
        """Read what is there, never beyond this swap's frame.

        Returns:
            How many bytes were read, and the tag once the header is complete in this call, else None.

        Raises:
            OSError: The connection is broken; `ConnectionResetError` also when the peer closed it.
            ProtocolError: Wrong magic, or a length beyond the limit.
        """
        total, tag = 0, None
        for _ in range(max_reads):
            target = self._header if self._incoming is None else self._incoming
            try:
                count = self.connection.recv_into(memoryview(target)[self._filled :])
            except BlockingIOError:
                break
            if count == 0:
                raise ConnectionResetError
            total += count
            self._filled += count
            if self._filled < len(target):
                continue
            if self._incoming is None:
                tag = self._read_header()
            if self._incoming is not None and self._filled == len(self._incoming):
                self.body = self._incoming
                break
        if total:
            self.progress = time.monotonic()
        return total, tag

    def awaited(self) -> str:
        """Say how far the incoming frame has come, for messages."""
        if self._incoming is None:
            return f"{self._filled} of {_HEADER.size} header bytes had come"
        return f"{self._filled} of {len(self._incoming)} bytes had come"

    def _read_header(self) -> int:
        magic, tag, length = _HEADER.unpack(self._header)
        if magic != _MAGIC:
            message = f"rank {self.peer.rank} at {self.peer.host}:{self.peer.port}: expected a frame that begins with {_MAGIC!r}, received {magic!r}"
            raise ProtocolError(message)
        if length > self._max_message_bytes:
            message = (
                f"rank {self.peer.rank} at {self.peer.host}:{self.peer.port}: expected a message of at most "
                f"{self._max_message_bytes} bytes, received a header that announces {length}"
            )
            raise ProtocolError(message)
        self._incoming = bytearray(length)
        self._filled = 0
        return int(tag)
