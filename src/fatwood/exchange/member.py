"""A worker's side of the control channel: join the job, report to the driver, hear when to stop."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final, final

from fatwood.errors import ClusterError, ExchangeError, OptionError, PeerLost, ProtocolError, StorageError
from fatwood.exchange.auth import CONTROL, MESH, checked_secret, dial
from fatwood.exchange.blobs import checked_blob_name
from fatwood.exchange.contract import Buffer
from fatwood.exchange.coordinator import RESERVED_KINDS
from fatwood.exchange.frames import MAX_BODY_BYTES, Frame, FramedConnection, FrameKind
from fatwood.exchange.listener import Listener
from fatwood.exchange.view import Peer, View

__all__ = ["Member"]

_CONNECT_SECONDS: Final = 30.0
_GOODBYE_SECONDS: Final = 2.0


@final
class Member:
    """A worker that has joined; make it with `join`. All methods are safe to call from any thread.

    Attributes:
        view: All workers and this one's rank.
        listener: This worker's listener for its peers, at the address that the view gives; closed with the member.
        stopped: Why the job has to stop, once the coordinator said so or vanished; else None.
    """

    view: View

    def __init__(
        self,
        connection: FramedConnection,
        listener: Listener,
        *,
        rank: int,
        silence_seconds: float,
        on_stop: Callable[[str], None] | None,
    ) -> None:
        self.listener = listener
        self.stopped: str | None = None
        self._connection = connection
        self._rank = rank
        self._silence_seconds = silence_seconds
        self._on_stop = on_stop
        self._replies: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._requesting = threading.Lock()
        self._has_view = False
        self._closed = threading.Event()
        self._closing = threading.Lock()
        self._threads: list[threading.Thread] = []

    @classmethod
    def join(
        cls,
        address: tuple[str, int],
        *,
        secret: bytes,
        rank: int,
        facts: dict[str, Any],
        start_timeout_seconds: float,
        heartbeat_seconds: float = 2.0,
        coordinator_timeout_seconds: float = 30.0,
        on_stop: Callable[[str], None] | None = None,
    ) -> Member:
        """Join the job at the coordinator and wait until all workers are there.

        Args:
            address: The coordinator's host and port.
            secret: The job's secret.
            rank: The rank this worker asks for.
            facts: What the driver should know of this worker, as JSON; in the "joined" event.
            start_timeout_seconds: How long to wait for the other workers.
            heartbeat_seconds: How often to show life; well below the coordinator's heartbeat timeout.
            coordinator_timeout_seconds: How long the coordinator may be silent before it has vanished.
            on_stop: Called once, from the reader thread, with the reason when the job has to stop after the start:
                `stopped` is set and `listener` closed by then. Close the exchange in it. It may run before
                `join` has returned, so look at `stopped` once the exchange is there.

        Raises:
            ClusterError: The coordinator cannot be reached, refused this worker, or stopped the job before it
                started; or the other workers did not come in time.
            AuthenticationError: The program at `address` does not know the secret.
            OptionError: An argument that cannot work.
        """
        checked_secret(secret)
        if not min(start_timeout_seconds, heartbeat_seconds, coordinator_timeout_seconds) > 0:
            message = "Member.join: expected positive timeouts"
            raise OptionError(message)
        deadline = time.monotonic() + start_timeout_seconds
        connection = _connect(address, secret, rank, min(_CONNECT_SECONDS, start_timeout_seconds))
        framed = FramedConnection(connection, f"the coordinator at {address[0]}:{address[1]}")
        try:
            # the address by which the driver is reached is the best guess at what peers can reach
            listener = Listener(host=connection.getsockname()[0], secret=secret, purpose=MESH)
        except BaseException:
            framed.close()
            raise
        member = cls(
            framed, listener, rank=rank, silence_seconds=coordinator_timeout_seconds, on_stop=on_stop
        )
        try:
            host, port = listener.address
            join = {"rank": rank, "host": host, "port": port, "facts": facts}
            framed.send(FrameKind.JOIN, join, timeout_seconds=coordinator_timeout_seconds)
            member._start_threads(heartbeat_seconds)
            member._await_view(deadline, start_timeout_seconds)
        except BaseException:
            member.close()
            raise
        return member

    def report(self, kind: str, body: dict[str, Any]) -> None:
        """Tell the driver something; it becomes an `Event` of this kind.

        Raises:
            OptionError: The kind is one of the coordinator's own, or the body is not JSON of at most 1 MiB.
            PeerLost: The coordinator is gone.
        """
        if kind in RESERVED_KINDS:
            message = f"Member.report: expected a kind other than {sorted(RESERVED_KINDS)}, received {kind!r}"
            raise OptionError(message)
        self._send(FrameKind.REPORT, {"kind": kind, "body": body})

    def send_blob(self, name: str, body: Buffer) -> None:
        """Send bytes to a file in the coordinator's inbox; returns when the file is there.

        Args:
            name: What the driver calls it; letters, digits, '.', '_' and '-'.
            body: The bytes, streamed in pieces of 1 MiB.

        Raises:
            ExchangeError: It is longer than the coordinator takes.
            StorageError: The coordinator could not write it.
            PeerLost: The coordinator is gone.
            OptionError: The name cannot be used.
        """
        view = memoryview(body)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        with self._requesting:
            self._send(FrameKind.BLOB_BEGIN, {"name": checked_blob_name(name), "size": len(view)})
            refusal = self._await_reply(FrameKind.BLOB_REPLY).json().get("error")
            if refusal is not None:
                message = f"rank {self._rank}: the coordinator did not take the blob {name!r}: {refusal}"
                raise ExchangeError(message)
            for start in range(0, len(view), MAX_BODY_BYTES):
                self._send(FrameKind.BLOB_DATA, view[start : start + MAX_BODY_BYTES])
            error = self._await_reply(FrameKind.BLOB_REPLY).json().get("error")
        if error is not None:
            message = f"rank {self._rank}: the coordinator could not write the blob {name!r}: {error}"
            raise StorageError(message, hint="free space on the driver's disk")

    def fetch_blob(self, name: str, *, max_bytes: int) -> bytes | None:
        """Return what the driver's outbox holds for this rank under `name`, None if nothing.

        Raises:
            ExchangeError: It is longer than `max_bytes`.
            StorageError: The driver could not read it.
            PeerLost: The coordinator is gone.
            OptionError: The name cannot be used.
        """
        with self._requesting:
            self._send(FrameKind.FETCH, {"name": checked_blob_name(name), "max_bytes": max_bytes})
            reply = self._await_reply(FrameKind.BLOB_REPLY).json()
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
            chunks: list[bytes] = []
            while (left := size - sum(map(len, chunks))) > 0:
                chunk = self._await_reply(FrameKind.BLOB_DATA).body
                if not 0 < len(chunk) <= left:
                    message = f"rank {self._rank}: blob {name!r}: expected at most {left} bytes, received {len(chunk)}"
                    raise ProtocolError(message)
                chunks.append(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        """Say goodbye, close the listener and end all threads; idempotent."""
        with self._closing:
            if self._closed.is_set():
                return
            self._closed.set()
        self.listener.close()
        try:
            self._connection.send(FrameKind.BYE, timeout_seconds=_GOODBYE_SECONDS)
        except PeerLost:
            self._connection.shutdown()
        # the coordinator hangs up on the goodbye; a socket closed earlier with unread bytes could destroy it
        me = threading.current_thread()
        for thread in self._threads:
            if thread is not me:
                thread.join(_GOODBYE_SECONDS)
        self._connection.shutdown()
        for thread in self._threads:
            if thread is not me:
                thread.join()
        self._connection.close()

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, kind: FrameKind, body: Buffer | dict[str, Any]) -> None:
        self._connection.send(kind, body, timeout_seconds=self._silence_seconds)

    def _start_threads(self, heartbeat_seconds: float) -> None:
        self._threads = [
            threading.Thread(target=self._read, name=f"fatwood-reader-{self._rank}", daemon=True),
            threading.Thread(
                target=self._beat,
                args=(heartbeat_seconds,),
                name=f"fatwood-heartbeat-{self._rank}",
                daemon=True,
            ),
        ]
        for thread in self._threads:
            thread.start()

    def _await_view(self, deadline: float, start_timeout_seconds: float) -> None:
        try:
            frame = self._replies.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            message = (
                f"rank {self._rank} waited {start_timeout_seconds:g} seconds for the other workers to join"
            )
            raise ClusterError(
                message, hint="the cluster must run all workers at once: are there enough slots?"
            ) from None
        if frame is None:
            message = f"rank {self._rank}: the job did not start: {self.stopped}"
            raise ClusterError(message)
        if frame.kind is FrameKind.REFUSED:
            message = f"rank {self._rank} was refused by {frame.peer}: {frame.json().get('reason')}"
            raise ClusterError(message)
        if frame.kind is not FrameKind.VIEW:
            message = f"{frame.peer}: expected a VIEW frame, received {frame.kind.name}"
            raise ProtocolError(message)
        if self.stopped is not None:
            message = f"rank {self._rank}: the job was stopped: {self.stopped}"
            raise ClusterError(message)

    def _await_reply(self, kind: FrameKind) -> Frame:
        if self.stopped is not None and not self._threads[0].is_alive():
            message = f"rank {self._rank}: {self._connection.peer} is gone: {self.stopped}"
            raise PeerLost(message)
        try:
            frame = self._replies.get(timeout=self._silence_seconds)
        except queue.Empty:
            frame = None
        if frame is None:
            self._connection.shutdown()
            why = self.stopped or f"silent for {self._silence_seconds:g} seconds"
            message = (
                f"rank {self._rank} lost {self._connection.peer} while a {kind.name} frame was awaited: {why}"
            )
            raise PeerLost(message)
        if frame.kind is not kind:
            message = f"{frame.peer}: expected a {kind.name} frame, received {frame.kind.name}"
            raise ProtocolError(message)
        return frame

    def _beat(self, heartbeat_seconds: float) -> None:
        while not self._closed.wait(heartbeat_seconds):
            try:
                self._send(FrameKind.HEARTBEAT, b"")
            except PeerLost:
                return  # the reader thread says why

    def _read(self) -> None:
        """Hear the coordinator until it hangs up."""
        try:
            while True:
                frame = self._connection.receive(self._silence_seconds)
                if frame.kind is FrameKind.STOP:
                    self._stop(str(frame.json().get("reason")))
                elif frame.kind is FrameKind.VIEW:
                    self._take_view(frame)
                elif frame.kind is not FrameKind.HEARTBEAT:
                    self._replies.put(frame)
        except (ExchangeError, OptionError) as error:
            self._stop(error.message)
        finally:
            self._replies.put(None)  # nothing more will come

    def _take_view(self, frame: Frame) -> None:
        peers = frame.json().get("peers")
        try:
            self.view = View(self._rank, tuple(Peer(int(r), str(h), int(p)) for r, h, p in peers or []))
        except (TypeError, ValueError) as error:
            message = f"{frame.peer}: expected rank, host and port of all workers, received {peers!r:.200}"
            raise ProtocolError(message) from error
        self._has_view = True
        self._replies.put(frame)

    def _stop(self, reason: str) -> None:
        """Note the first reason to stop, once, and wake whoever builds a mesh."""
        if self.stopped is not None or self._closed.is_set():
            return
        self.stopped = reason
        self.listener.close()
        if not self._has_view:
            self._replies.put(None)
        elif self._on_stop is not None:
            self._on_stop(reason)


def _connect(address: tuple[str, int], secret: bytes, rank: int, timeout_seconds: float) -> socket.socket:
    name = f"rank {rank}: the coordinator"
    try:
        return dial(*address, secret, CONTROL, peer=name, timeout_seconds=timeout_seconds)
    except PeerLost as error:
        message = f"this worker cannot reach the driver: {error.message}"
        hint = "executors must be able to connect to the driver: firewall, NAT, spark.driver.host"
        raise ClusterError(message, hint=hint) from error
