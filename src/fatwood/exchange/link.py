"""One non-blocking connection to one peer of the mesh: a frame out and a frame in, at the same time.

A frame on the wire, big-endian::

    0   4 bytes  magic "FWx1"
    4   u64      tag: operation in the upper byte, step in the rest
    12  u64      length of the body, checked before memory is allocated
    20  body

Over TLS, frames and records meet as follows: a record holds bytes of one frame only. So when a frame is complete
nothing is left that was decrypted and not read, of which a selector would not know.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from typing import Final, final

from fatwood.errors import ProtocolError
from fatwood.exchange.contract import Buffer
from fatwood.exchange.view import Peer

__all__ = ["FRAME_BYTES", "Link"]

_HEADER: Final = struct.Struct(">4sQQ")
FRAME_BYTES: Final = _HEADER.size
"""In front of each message on the wire."""
_MAGIC: Final = b"FWx1"
_RECORD_BYTES: Final = 1 << 14  # the longest record of TLS
# How much is sent or read at a time, so that one peer does not delay the others; more than a header has bytes: what
# follows it in its record has to be read in the same turn.
_TURN_RECORDS: Final = 64


@final
class Link:
    """The connection to `peer`; for each swap `begin` once, then `push` and `pull` until `sent` and `body`.

    Args:
        peer: Who is at the other end.
        connection: An authenticated socket; made non-blocking here.

    Attributes:
        sent: The whole outgoing frame was handed to the system.
        body: The peer's message, once it is complete.
        progress: When something last moved (time.monotonic).
    """

    def __init__(self, peer: Peer, connection: socket.socket) -> None:
        self.peer = peer
        self.connection = connection
        self._encrypted = connection if isinstance(connection, ssl.SSLSocket) else None
        self._max_reads = 2 if self._encrypted is None else _TURN_RECORDS  # header and body, or records
        self._max_body_bytes = 0
        connection.setblocking(False)
        self.sent = True
        self.body: Buffer | None = None
        self.progress = 0.0
        self._outgoing: list[memoryview] = []
        self._header = bytearray(_HEADER.size)
        self._incoming: bytearray | None = None
        self._filled = 0

    def begin(self, tag: int, body: Buffer, max_body_bytes: int) -> None:
        """Start a swap: the frame to send, nothing received yet, and how long what is received may be."""
        self._max_body_bytes = max_body_bytes
        header = _HEADER.pack(_MAGIC, tag, len(body))
        if self._encrypted is None:
            pieces = [memoryview(header), memoryview(body)]
        else:  # a short message is one record
            first = _RECORD_BYTES - _HEADER.size
            pieces = [memoryview(header + bytes(body[:first])), memoryview(body)[first:]]
        self._outgoing = [piece for piece in pieces if len(piece)]
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
        count = self._send_plain() if self._encrypted is None else self._send_encrypted(self._encrypted)
        self.sent = not self._outgoing
        if count:
            self.progress = time.monotonic()
        return count

    def pull(self) -> tuple[int, int | None]:
        """Read what is there, never beyond this swap's frame.

        Returns:
            How many bytes were read, and the tag once the header is complete in this call, else None.

        Raises:
            OSError: The connection is broken; `ConnectionResetError` also when the peer closed it.
            ProtocolError: Wrong magic, a length beyond the limit, or a record with bytes of two frames.
        """
        total, tag = 0, None
        for _ in range(self._max_reads):
            target = self._header if self._incoming is None else self._incoming
            try:
                count = self.connection.recv_into(memoryview(target)[self._filled :])
            except (BlockingIOError, ssl.SSLWantReadError):
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
                self._check_end()
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

    def _send_plain(self) -> int:
        try:
            count = left = self.connection.sendmsg(self._outgoing)
        except BlockingIOError:
            return 0
        while self._outgoing and left >= len(self._outgoing[0]):
            left -= len(self._outgoing.pop(0))
        if self._outgoing:
            self._outgoing[0] = self._outgoing[0][left:]
        return count

    def _send_encrypted(self, connection: ssl.SSLSocket) -> int:
        total = 0
        for _ in range(_TURN_RECORDS):
            if not self._outgoing:
                break
            # a record that could not be sent must be offered again with the same bytes; progress is seen by records
            record = self._outgoing[0][:_RECORD_BYTES]
            try:
                count = connection.send(record)
            except ssl.SSLWantWriteError:
                break
            total += count
            self._outgoing[0] = self._outgoing[0][count:]
            if not self._outgoing[0]:
                self._outgoing.pop(0)
        return total

    def _check_end(self) -> None:
        hidden = 0 if self._encrypted is None else self._encrypted.pending()
        if hidden:
            message = (
                f"rank {self.peer.rank} at {self.peer.host}:{self.peer.port}: expected a record of TLS that ends "
                f"with its frame, received {hidden} bytes after it"
            )
            raise ProtocolError(message)

    def _read_header(self) -> int:
        magic, tag, length = _HEADER.unpack(self._header)
        if magic != _MAGIC:
            message = f"rank {self.peer.rank} at {self.peer.host}:{self.peer.port}: expected a frame that begins with {_MAGIC!r}, received {magic!r}"
            raise ProtocolError(message)
        if length > self._max_body_bytes:
            message = (
                f"rank {self.peer.rank} at {self.peer.host}:{self.peer.port}: expected a message of at most "
                f"{self._max_body_bytes} bytes, received a header that announces {length}"
            )
            raise ProtocolError(message)
        self._incoming = bytearray(length)
        self._filled = 0
        return int(tag)
