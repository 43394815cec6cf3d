"""Blobs on the control channel, both sides of the conversation.

::

    member  BLOB_BEGIN {name, size} -->     coordinator     FETCH {name, max_bytes} -->
            <-- BLOB_REPLY {error}                          <-- BLOB_REPLY {error, size}
            BLOB_DATA ... -->                               <-- BLOB_DATA ...
            <-- BLOB_REPLY {error}
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, final

from fatwood.errors import ExchangeError, PeerLost, ProtocolError, StorageError
from fatwood.exchange.blob_files import BlobWriter, checked_blob_name, file_chunks
from fatwood.exchange.contract import Buffer
from fatwood.exchange.frames import Frame, FramedConnection, FrameKind

__all__ = ["BlobClient", "BlobDesk"]

_PIECE_BYTES: Final = 1 << 18
"""Small, so that on a slow connection other frames need not wait long for their turn."""

_REPLY_SECONDS: Final = 120.0
"""How long a living coordinator may take to answer: for what is on its way to it, and for its disk."""


@final
class BlobDesk:
    """The coordinator's side for one member; used by the thread that hears the member.

    Args:
        connection: To the member.
        path: Where a blob goes: the blob's name is appended to its last part.
        max_bytes: The longest blob that the member may send.
        outbox: What the member may fetch, by name.
        timeout_seconds: How long the member may take nothing.
        on_blob: Called with name, path and bytes of every blob that is in its place.
    """

    def __init__(
        self,
        connection: FramedConnection,
        *,
        path: Path,
        max_bytes: int,
        outbox: Mapping[str, Path],
        timeout_seconds: float,
        on_blob: Callable[[dict[str, Any]], None],
    ) -> None:
        self._connection = connection
        self._path = path
        self._max_bytes = max_bytes
        self._outbox = outbox
        self._timeout_seconds = timeout_seconds
        self._on_blob = on_blob
        self._writer: BlobWriter | None = None
        self._name = ""

    def begin(self, frame: Frame) -> None:
        """Answer a BLOB_BEGIN frame; a blob's size is checked before anything of it is sent.

        Raises:
            ProtocolError: It makes no sense.
            OptionError: The name cannot be used.
            PeerLost: The member is gone.
        """
        request = frame.json()
        name, size = checked_blob_name(request.get("name")), request.get("size")
        if self._writer is not None or type(size) is not int or size < 0:
            message = f"{frame.peer}: expected one blob at a time and its size, received size {size!r}"
            raise ProtocolError(message)
        if size > self._max_bytes:
            error = f"expected at most {self._max_bytes} bytes, received a blob of {size} bytes"
            self._reply(FrameKind.BLOB_REPLY, {"error": error})
            return
        writer = BlobWriter(self._path.with_name(self._path.name + name), size)
        if writer.error is None:  # before the reply, which fails when the member is gone already
            self._writer, self._name = writer, name
        self._reply(FrameKind.BLOB_REPLY, {"error": writer.error})
        self._finish()

    def take(self, frame: Frame) -> None:
        """Write the bytes of a BLOB_DATA frame; the last ones are answered.

        Raises:
            ProtocolError: They were not announced.
            PeerLost: The member is gone.
        """
        if self._writer is None:
            message = f"{frame.peer}: a piece of a blob that was not announced"
            raise ProtocolError(message)
        self._writer.write(frame.body)
        self._finish()

    def give(self, frame: Frame) -> None:
        """Answer a FETCH frame: the size, then the bytes unless there are more than the member wants.

        Raises:
            ProtocolError: It makes no sense, or the file has changed meanwhile.
            OptionError: The name cannot be used.
            PeerLost: The member is gone.
        """
        request = frame.json()
        name, max_bytes = checked_blob_name(request.get("name")), request.get("max_bytes")
        if type(max_bytes) is not int:
            message = f"{frame.peer}: expected max_bytes in a FETCH frame, received {max_bytes!r}"
            raise ProtocolError(message)
        path = self._outbox.get(name)
        try:
            size = None if path is None else path.stat().st_size
        except OSError as error:
            self._reply(FrameKind.BLOB_REPLY, {"error": str(error)})
            return
        self._reply(FrameKind.BLOB_REPLY, {"error": None, "size": size})
        if path is not None and size is not None and size <= max_bytes:
            for chunk in file_chunks(path, size, _PIECE_BYTES):
                self._reply(FrameKind.BLOB_DATA, chunk)

    def close(self) -> None:
        """Remove what there is of an incomplete blob."""
        if self._writer is not None:
            self._writer.abort()

    def _finish(self) -> None:
        writer = self._writer
        if writer is None or not writer.complete:
            return
        self._writer = None
        error = writer.finish()
        if error is None:
            self._on_blob({"name": self._name, "path": str(writer.path), "bytes": writer.size})
        self._reply(FrameKind.BLOB_REPLY, {"error": error})

    def _reply(self, kind: FrameKind, body: bytes | dict[str, Any]) -> None:
        self._connection.send(kind, body, timeout_seconds=self._timeout_seconds)


@final
class BlobClient:
    """A member's side. Any thread may send and fetch, one after the other; the reader thread delivers the answers.

    Args:
        connection: To the coordinator.
        rank: Of the member, for messages.
        timeout_seconds: How long the coordinator may take nothing.
    """

    def __init__(self, connection: FramedConnection, *, rank: int, timeout_seconds: float) -> None:
        self._connection = connection
        self._rank = rank
        self._timeout_seconds = timeout_seconds
        self._replies: queue.SimpleQueue[Frame | str] = queue.SimpleQueue()
        self._requesting = threading.Lock()

    def deliver(self, frame: Frame) -> None:
        """Take a frame of the coordinator."""
        self._replies.put(frame)

    def end(self, reason: str) -> None:
        """Let requests fail from now on: the coordinator is gone."""
        self._replies.put(reason)

    def send(self, name: str, body: Buffer) -> None:
        """See `Member.send_blob`."""
        view = memoryview(body)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        with self._requesting:
            self._request(FrameKind.BLOB_BEGIN, {"name": checked_blob_name(name), "size": len(view)})
            refusal = self._reply(FrameKind.BLOB_REPLY).json().get("error")
            if refusal is not None:
                message = f"rank {self._rank}: the coordinator did not take the blob {name!r}: {refusal}"
                raise ExchangeError(message)
            for start in range(0, len(view), _PIECE_BYTES):
                self._request(FrameKind.BLOB_DATA, view[start : start + _PIECE_BYTES])
            error = self._reply(FrameKind.BLOB_REPLY).json().get("error")
        if error is not None:
            message = f"rank {self._rank}: the coordinator could not write the blob {name!r}: {error}"
            raise StorageError(message, hint="free space on the driver's disk")

    def fetch(self, name: str, max_bytes: int) -> bytes | None:
        """See `Member.fetch_blob`."""
        with self._requesting:
            self._request(FrameKind.FETCH, {"name": checked_blob_name(name), "max_bytes": max_bytes})
            reply = self._reply(FrameKind.BLOB_REPLY).json()
            error, size = reply.get("error"), reply.get("size")
            if error is not None:
                message = f"rank {self._rank}: the driver could not read the blob {name!r}: {error}"
                raise StorageError(message)
            if size is None:
                return None
            if type(size) is not int or size < 0 or size > max_bytes:
                message = (
                    f"rank {self._rank}: blob {name!r}: expected at most {max_bytes} bytes, received {size}"
                )
                raise ExchangeError(message)
            return self._collect(name, size)

    def _collect(self, name: str, size: int) -> bytes:
        chunks: list[bytes] = []
        left = size
        while left:
            chunk = self._reply(FrameKind.BLOB_DATA).body
            if not 0 < len(chunk) <= left:
                message = (
                    f"rank {self._rank}: blob {name!r}: expected at most {left} bytes, received {len(chunk)}"
                )
                raise ProtocolError(message)
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)

    def _request(self, kind: FrameKind, body: Buffer | dict[str, Any]) -> None:
        self._connection.send(kind, body, timeout_seconds=self._timeout_seconds)

    def _reply(self, kind: FrameKind) -> Frame:
        """The next frame, which has to be of this kind; a coordinator that falls silent is the reader's affair."""
        try:
            frame = self._replies.get(timeout=_REPLY_SECONDS)
        except queue.Empty:
            self._connection.shutdown()  # an answer that comes later would be taken for another's
            frame = f"no answer for {_REPLY_SECONDS:g} seconds"
        if isinstance(frame, str):
            self._replies.put(frame)  # for the next request
            message = f"rank {self._rank} lost {self._connection.peer} while a {kind.name} frame was awaited: {frame}"
            raise PeerLost(message)
        if frame.kind is not kind:
            message = f"{frame.peer}: expected a {kind.name} frame, received {frame.kind.name}"
            raise ProtocolError(message)
        return frame
