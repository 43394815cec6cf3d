"""The driver's side of the control channel: who is there, what they report, and who is lost.

One thread accepts authenticated members and one thread serves each member; the driver reads `Event`s. A member's
socket that closes without a goodbye is a lost worker at once, a silent one after the heartbeat timeout.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from fatwood.errors import ExchangeError, OptionError, PeerLost, ProtocolError
from fatwood.exchange.auth import CONTROL, HANDSHAKE_SECONDS
from fatwood.exchange.blobs import BlobWriter, checked_blob_name, file_chunks
from fatwood.exchange.frames import MAX_BODY_BYTES, Frame, FramedConnection, FrameKind
from fatwood.exchange.listener import Listener

__all__ = ["RESERVED_KINDS", "Coordinator", "Event"]

RESERVED_KINDS: Final = frozenset({"joined", "started", "lost", "missing", "blob"})
"""Kinds of events that only the coordinator makes."""

_EVERYBODY: Final = -1
_IDLE_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 1.0
_JOIN_THREAD_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Event:
    """Something that happened to a worker.

    The coordinator makes these kinds: "joined" (body: facts, port), "started" (all are there; rank -1; body:
    peers), "lost" (body: reason), "missing" (not all came in time; rank -1; body: ranks), "blob" (body: name, path,
    bytes). Every other kind is what a member reported with `Member.report`.
    """

    rank: int
    host: str
    kind: str
    body: dict[str, Any]


@dataclass(eq=False)
class _Member:
    """A member that was admitted."""

    rank: int
    host: str
    port: int
    facts: dict[str, Any]
    connection: FramedConnection
    blob: BlobWriter | None = field(default=None)
    blob_name: str = ""


@final
class Coordinator:
    """Waits for `workers` members, gives each the view of all, and turns what happens into events.

    Args:
        workers: How many members the job has; their ranks are 0 .. workers - 1.
        secret: The job's secret, 32 bytes; see `auth.new_secret`.
        host: The address to bind.
        advertise_host: What the members are told instead of `host`; needed when `host` means all interfaces.
        port: The port to bind; 0 lets the system choose.
        start_timeout_seconds: This long after the first member a "missing" event names the ranks that have not come.
        heartbeat_timeout_seconds: How long a member may be silent before it is lost.
        inbox: A folder that exists, for the blobs that members send.
        max_blob_bytes: The longest blob that a member may send.
        outbox: Files that a member may fetch, by (rank, name).

    Attributes:
        address: Host and port that the members are told.

    Raises:
        OptionError: An argument that cannot work.
        ExchangeError: The address cannot be bound.
    """

    def __init__(
        self,
        *,
        workers: int,
        secret: bytes,
        host: str,
        advertise_host: str | None = None,
        port: int = 0,
        start_timeout_seconds: float = 120.0,
        heartbeat_timeout_seconds: float = 10.0,
        inbox: Path,
        max_blob_bytes: int,
        outbox: Mapping[tuple[int, str], Path] | None = None,
    ) -> None:
        _check(workers, host, advertise_host, start_timeout_seconds, heartbeat_timeout_seconds, inbox)
        self._workers = workers
        self._start_timeout_seconds = start_timeout_seconds
        self._heartbeat_timeout_seconds = heartbeat_timeout_seconds
        self._inbox = inbox
        self._max_blob_bytes = max_blob_bytes
        self._outbox = dict(outbox or {})
        self._events: queue.Queue[Event] = queue.Queue()
        self._lock = threading.Lock()
        self._members: dict[int, _Member] = {}
        self._connections: set[FramedConnection] = set()
        self._threads: list[threading.Thread] = []
        self._started = False
        self._stop_reason: str | None = None
        self._closed = False
        self._listener = Listener(host=host, port=port, secret=secret, purpose=CONTROL)
        self.address: tuple[str, int] = (advertise_host or host, self._listener.address[1])
        self._acceptor = threading.Thread(target=self._accept, name="fatwood-coordinator", daemon=True)
        self._acceptor.start()

    def next_event(self, timeout_seconds: float) -> Event | None:
        """Return the next event, or None when none comes within `timeout_seconds`."""
        try:
            return self._events.get(timeout=max(0.0, timeout_seconds))
        except queue.Empty:
            return None

    def cancel(self, reason: str) -> None:
        """Tell all members, and those still to come, to stop; the first reason counts."""
        with self._lock:
            if self._stop_reason is not None:
                return
            self._stop_reason = reason
            members = list(self._members.values())
        for member in members:
            try:
                member.connection.send(FrameKind.STOP, {"reason": reason}, timeout_seconds=_STOP_SECONDS)
            except PeerLost:
                member.connection.shutdown()  # it will see that the coordinator is gone

    def close(self) -> None:
        """Hang up on everybody and end all threads; idempotent. Members that are still there stop."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._listener.close()
        self._acceptor.join(_JOIN_THREAD_SECONDS)
        with self._lock:
            connections, threads = list(self._connections), list(self._threads)
        for connection in connections:
            connection.shutdown()
        for thread in threads:
            thread.join(_JOIN_THREAD_SECONDS)

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        """Give each authenticated newcomer a thread, and say once who is missing at the start's deadline.

        The clock starts with the first newcomer: before that the cluster may be busy for hours with what the
        workers' rows are computed from.
        """
        deadline: float | None = None
        reported = False
        while True:
            left = _IDLE_SECONDS if deadline is None or reported else deadline - time.monotonic()
            try:
                newcomer = self._listener.accept(left)
            except ExchangeError:
                return
            if newcomer is not None:
                self._receive_newcomer(*newcomer)
                if deadline is None:
                    deadline = time.monotonic() + self._start_timeout_seconds
            elif deadline is not None and not reported:
                self._report_missing()
                reported = True

    def _receive_newcomer(self, connection: socket.socket, address: tuple[str, int]) -> None:
        framed = FramedConnection(connection, f"the member at {address[0]}:{address[1]}")
        thread = threading.Thread(
            target=self._serve, args=(framed,), name=f"fatwood-member-{address[1]}", daemon=True
        )
        with self._lock:
            self._connections.add(framed)
            self._threads = [known for known in self._threads if known.is_alive()] + [thread]
            thread.start()

    def _report_missing(self) -> None:
        with self._lock:
            missing = [rank for rank in range(self._workers) if rank not in self._members]
            if missing and not self._started and self._stop_reason is None:
                self._emit(_EVERYBODY, "", "missing", {"ranks": missing})

    def _emit(self, rank: int, host: str, kind: str, body: dict[str, Any]) -> None:
        self._events.put(Event(rank, host, kind, body))

    def _serve(self, connection: FramedConnection) -> None:
        """One connection's life, in its thread."""
        try:
            member = self._admit(connection)
            if member is not None:
                self._attend(member)
        except ExchangeError:
            return  # it never became a member
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _admit(self, connection: FramedConnection) -> _Member | None:
        """Read the join frame and take the member in, or tell it why not; the last one starts the job."""
        frame = connection.receive(HANDSHAKE_SECONDS)
        if frame.kind is not FrameKind.JOIN:
            message = f"{frame.peer}: expected a JOIN frame, received {frame.kind.name}"
            raise ProtocolError(message)
        member = _read_join(frame, connection)
        with self._lock:
            reason = self._reason_to_refuse(member)
            if reason is None:
                self._members[member.rank] = member
                self._emit(member.rank, member.host, "joined", {"facts": member.facts, "port": member.port})
                everybody = self._start_if_complete()
        if reason is not None:
            connection.send(FrameKind.REFUSED, {"reason": reason}, timeout_seconds=_STOP_SECONDS)
            return None
        self._send_view(everybody)
        return member

    def _reason_to_refuse(self, member: _Member) -> str | None:
        rank = member.rank
        if self._stop_reason is not None:
            return f"the job was stopped: {self._stop_reason}"
        if not 0 <= rank < self._workers:
            return f"expected a rank in 0 .. {self._workers - 1}, received {rank}"
        if rank in self._members:
            holder = self._members[rank]
            return f"rank {rank} is taken by a living worker at {holder.host}:{holder.port}"
        if self._started:
            return f"the job has started and its rank {rank} has left it"
        return None

    def _start_if_complete(self) -> list[_Member]:
        """With the lock held: mark the start when all are there and return them, else nobody."""
        if len(self._members) < self._workers:
            return []
        self._started = True
        everybody = [self._members[rank] for rank in range(self._workers)]
        self._emit(_EVERYBODY, "", "started", {"peers": [[m.rank, m.host, m.port] for m in everybody]})
        return everybody

    def _send_view(self, everybody: list[_Member]) -> None:
        view = {"peers": [[member.rank, member.host, member.port] for member in everybody]}
        for member in everybody:
            try:
                member.connection.send(FrameKind.VIEW, view, timeout_seconds=self._heartbeat_timeout_seconds)
            except PeerLost:
                member.connection.shutdown()  # its own thread reports it

    def _attend(self, member: _Member) -> None:
        """Hear a member until it says goodbye or is lost."""
        reason = ""
        try:
            while True:
                frame = member.connection.receive(self._heartbeat_timeout_seconds)
                if frame.kind is FrameKind.BYE:
                    return
                self._handle(member, frame)
        except (ExchangeError, OptionError) as error:
            reason = error.message
        except Exception as error:
            reason = f"the coordinator failed to serve it: {error!r}"
        finally:
            if member.blob is not None:
                member.blob.abort()
            with self._lock:
                del self._members[member.rank]
                if reason and not self._closed:
                    self._emit(member.rank, member.host, "lost", {"reason": reason})

    def _handle(self, member: _Member, frame: Frame) -> None:
        if frame.kind is FrameKind.HEARTBEAT:
            self._reply(member, FrameKind.HEARTBEAT, b"")
        elif frame.kind is FrameKind.REPORT:
            report = frame.json()
            kind, body = report.get("kind"), report.get("body")
            if not isinstance(kind, str) or kind in RESERVED_KINDS or not isinstance(body, dict):
                message = (
                    f"{frame.peer}: expected a report with a free kind and a body, received kind {kind!r}"
                )
                raise ProtocolError(message)
            self._emit(member.rank, member.host, kind, body)
        elif frame.kind is FrameKind.BLOB_BEGIN:
            self._begin_blob(member, frame.json())
        elif frame.kind is FrameKind.BLOB_DATA:
            if member.blob is None:
                message = f"{frame.peer}: a piece of a blob that was not announced"
                raise ProtocolError(message)
            member.blob.write(frame.body)
            self._finish_blob(member)
        elif frame.kind is FrameKind.FETCH:
            self._send_blob(member, frame.json())
        else:
            message = f"{frame.peer}: expected a member's frame, received {frame.kind.name}"
            raise ProtocolError(message)

    def _begin_blob(self, member: _Member, request: dict[str, Any]) -> None:
        """Check a blob's size before anything of it is sent."""
        name, size = checked_blob_name(request.get("name")), request.get("size")
        if member.blob is not None or type(size) is not int or size < 0:
            message = f"rank {member.rank}: expected one blob at a time and its size, received size {size!r}"
            raise ProtocolError(message)
        if size > self._max_blob_bytes:
            error = f"expected at most {self._max_blob_bytes} bytes, received a blob of {size} bytes"
            self._reply(member, FrameKind.BLOB_REPLY, {"error": error})
            return
        writer = BlobWriter(self._inbox / f"rank-{member.rank}-{name}", size)
        if writer.error is None:  # before the reply, which fails when the member is gone already
            member.blob, member.blob_name = writer, name
        self._reply(member, FrameKind.BLOB_REPLY, {"error": writer.error})
        self._finish_blob(member)

    def _finish_blob(self, member: _Member) -> None:
        writer = member.blob
        if writer is None or not writer.complete:
            return
        member.blob = None
        error = writer.finish()
        if error is None:
            body = {"name": member.blob_name, "path": str(writer.path), "bytes": writer.size}
            self._emit(member.rank, member.host, "blob", body)
        self._reply(member, FrameKind.BLOB_REPLY, {"error": error})

    def _send_blob(self, member: _Member, request: dict[str, Any]) -> None:
        """Answer a fetch: the size, then the bytes unless there are more than the member wants."""
        name, max_bytes = checked_blob_name(request.get("name")), request.get("max_bytes")
        if type(max_bytes) is not int:
            message = f"rank {member.rank}: expected max_bytes in a FETCH frame, received {max_bytes!r}"
            raise ProtocolError(message)
        path = self._outbox.get((member.rank, name))
        try:
            size = None if path is None else path.stat().st_size
        except OSError as error:
            self._reply(member, FrameKind.BLOB_REPLY, {"error": str(error)})
            return
        self._reply(member, FrameKind.BLOB_REPLY, {"error": None, "size": size})
        if path is not None and size is not None and size <= max_bytes:
            for chunk in file_chunks(path, size, MAX_BODY_BYTES):
                self._reply(member, FrameKind.BLOB_DATA, chunk)

    def _reply(self, member: _Member, kind: FrameKind, body: bytes | dict[str, Any]) -> None:
        member.connection.send(kind, body, timeout_seconds=self._heartbeat_timeout_seconds)


def _check(
    workers: int,
    host: str,
    advertise_host: str | None,
    start_seconds: float,
    heartbeat_seconds: float,
    inbox: Path,
) -> None:
    if workers < 1 or not start_seconds > 0 or not heartbeat_seconds > 0:
        message = (
            "Coordinator: expected workers >= 1 and positive timeouts, received "
            f"workers={workers}, start_timeout_seconds={start_seconds}, heartbeat_timeout_seconds={heartbeat_seconds}"
        )
        raise OptionError(message)
    if host in {"", "0.0.0.0", "::"} and not advertise_host:  # noqa: S104
        message = f"Coordinator: expected advertise_host with host={host!r}, received none"
        raise OptionError(message, hint="give the name or address at which the executors reach the driver")
    if not inbox.is_dir():
        message = f"Coordinator: expected an existing folder as inbox, received {inbox}"
        raise OptionError(message)


def _read_join(frame: Frame, connection: FramedConnection) -> _Member:
    join = frame.json()
    rank, host, port, facts = (join.get(key) for key in ("rank", "host", "port", "facts"))
    if type(rank) is int and isinstance(host, str) and type(port) is int and isinstance(facts, dict):
        return _Member(rank, host, port, facts, connection)
    message = f"{frame.peer}: expected rank, host, port and facts in a JOIN frame, received {join!r:.200}"
    raise ProtocolError(message)
