"""A worker's side of the control channel: join the job, hear who trains together, report to the driver, stop in time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, final

from fatwood.errors import ClusterError, ExchangeError, OptionError, PeerLost, ProtocolError
from fatwood.exchange.auth import CONTROL, MESH, checked_secret, dial
from fatwood.exchange.blobs import BlobClient
from fatwood.exchange.bulletin import ABOVE_ALL, Bulletin
from fatwood.exchange.clock import ClockOffset, ClockProbe
from fatwood.exchange.contract import Buffer
from fatwood.exchange.events import RESERVED_KINDS
from fatwood.exchange.frames import Frame, FramedConnection, FrameKind
from fatwood.exchange.listener import Listener
from fatwood.exchange.lobby import Lobby
from fatwood.exchange.roster import Roster
from fatwood.exchange.tls import Identity
from fatwood.exchange.view import View

__all__ = ["Member"]

_CONNECT_SECONDS: Final = 30.0
_GOODBYE_SECONDS: Final = 2.0


@final
class Member(Roster):
    """A worker that has joined; make it with `join`. All methods are safe to call from any thread.

    Attributes:
        rank: The rank that this worker asked for.
        late: Whether the job had begun when it joined.
        lobby: Where its peers connect; closed with the member.
        stopped: Why the job has to stop, once the coordinator said so or vanished; else None.
        finished: Whether the coordinator has said that the job is over. What happens to it later is no stop.
    """

    def __init__(
        self,
        connection: FramedConnection,
        lobby: Lobby,
        *,
        rank: int,
        silence_seconds: float,
        bulletin: Bulletin,
        on_stop: Callable[[str], None] | None,
    ) -> None:
        self.rank = rank
        self.late = False
        self.lobby: Final = lobby
        self.stopped: str | None = None
        self.finished = False
        self._connection = connection
        self._silence_seconds = silence_seconds
        self._bulletin = bulletin
        self._on_stop = on_stop
        self._on_change: Callable[[int], None] | None = None
        self._blobs = BlobClient(connection, rank=rank, timeout_seconds=silence_seconds)
        self._clock = ClockProbe(partial(self._send, FrameKind.PING), connection.peer)
        self._answered = threading.Event()
        self._welcomed = False
        self._refusal: str | None = None
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
        stateless: bool = False,
        patience_seconds: float,
        heartbeat_seconds: float = 2.0,
        coordinator_timeout_seconds: float = 12.0,
        tls: Identity | None = None,
        on_stop: Callable[[str], None] | None = None,
    ) -> Member:
        """Join the job at the coordinator. Say `ready` when this worker can train, and then wait with `view_after`.

        Args:
            address: The coordinator's host and port.
            secret: The job's secret.
            rank: The rank this worker asks for.
            facts: What the driver should know of this worker, as JSON; in the "joined" event.
            stateless: This worker cannot begin the training from what it was given, and needs another's state.
            patience_seconds: How long `view_after` waits. More than the coordinator's own timeouts for starting and
                rejoining: it knows what is missing, and ends the wait earlier.
            heartbeat_seconds: How often to show life; well below the coordinator's heartbeat timeout.
            coordinator_timeout_seconds: How long the coordinator may be silent before it has vanished; well above a
                fifth of its heartbeat timeout.
            tls: The job's identity, if its connections are encrypted.
            on_stop: Called once, from the reader thread, with the reason when the job has to stop after this worker
                was welcomed: `stopped` is set and all views are over by then. It may run before `join` has returned.

        Returns:
            A member; look at its `finished`: there may be nothing to do any more.

        Raises:
            ClusterError: The coordinator cannot be reached, refused this worker or vanished.
            AuthenticationError: The program at `address` does not know the secret, or only one side encrypts.
            OptionError: An argument that cannot work.
        """
        checked_secret(secret)
        if not min(patience_seconds, heartbeat_seconds, coordinator_timeout_seconds) > 0:
            message = "Member.join: expected positive times"
            raise OptionError(message)
        connection = _connect(address, secret, rank, tls)
        framed = FramedConnection(connection, f"the coordinator at {address[0]}:{address[1]}")
        try:
            # the address by which the driver is reached is the best guess at what peers can reach
            listener = Listener(host=connection.getsockname()[0], secret=secret, purpose=MESH, tls=tls)
        except BaseException:
            framed.close()
            raise
        member = cls(
            framed,
            Lobby(listener),
            rank=rank,
            silence_seconds=coordinator_timeout_seconds,
            bulletin=Bulletin(rank, patience_seconds),
            on_stop=on_stop,
        )
        try:
            host, port = listener.address
            join = {"rank": rank, "host": host, "port": port, "facts": facts, "stateless": stateless}
            framed.send(FrameKind.JOIN, join, timeout_seconds=coordinator_timeout_seconds)
            member._start_threads(heartbeat_seconds)
            member._await_welcome()
        except BaseException:
            member.close()
            raise
        return member

    def ready(self) -> None:
        """Tell that this worker has all that it needs to train.

        Raises:
            PeerLost: The coordinator is gone; so for all that tells it something.
        """
        self._bulletin.owe(0)
        self._send(FrameKind.READY, {})

    def view_after(self, number: int) -> View | None:
        """See `Roster`; the newest view there is.

        A spare waits, and a worker that has no more to do, as long as the coordinator lives.

        Raises:
            ExchangeError: The job was stopped, this worker was evicted, or the coordinator is gone.
            ClusterError: The coordinator owed a view, and did not give it in time.
        """
        return self._bulletin.after(number)

    def is_current(self, number: int) -> bool:
        """See `Roster`."""
        return self._bulletin.is_current(number)

    def is_newcomer(self, number: int) -> bool:
        """See `Roster`."""
        return self._bulletin.is_newcomer(number)

    def suspect(self, number: int, accused: int | None) -> None:
        """See `Roster`."""
        self._bulletin.owe(number)
        self._send(FrameKind.SUSPECT, {"view": number, "rank": accused})

    def synced(self, number: int, completed: int) -> None:
        """See `Roster`."""
        self._send(FrameKind.SYNCED, {"view": number, "completed": completed})

    def waiting(self, number: int) -> None:
        """See `Roster`."""
        self._bulletin.owe(number)
        self._send(FrameKind.WAITING, {"view": number})

    def on_change(self, call: Callable[[int], None]) -> None:
        """See `Roster`; called from the reader thread, when the lobby has let go of the views that are over.

        The end of the job and a stop are announced as a number above all.
        """
        self._on_change = call

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
            body: The bytes, streamed in pieces.

        Raises:
            ExchangeError: It is longer than the coordinator takes.
            StorageError: The coordinator could not write it.
            PeerLost: The coordinator is gone.
            OptionError: The name cannot be used.
        """
        self._blobs.send(name, body)

    def fetch_blob(self, name: str, *, max_bytes: int) -> bytes | None:
        """Return what the driver's outbox holds for this rank under `name`, None if nothing.

        Raises:
            ExchangeError: It is longer than `max_bytes`.
            StorageError: The driver could not read it.
            PeerLost: The coordinator is gone.
            OptionError: The name cannot be used.
        """
        return self._blobs.fetch(name, max_bytes)

    def clock_offset(
        self, *, rounds: int = 8, timeout_seconds: float = 2.0, clock: Callable[[], float] = time.time
    ) -> ClockOffset:
        """Measure how this worker's clock stands to the driver's; see `ClockProbe.measure`.

        Raises:
            PeerLost: The coordinator is gone, or did not answer.
            OptionError: An argument that cannot work.
        """
        return self._clock.measure(rounds=rounds, timeout_seconds=timeout_seconds, clock=clock)

    def close(self) -> None:
        """Say goodbye, close the lobby and end all threads; idempotent. A wait for a view ends with an error."""
        with self._closing:
            if self._closed.is_set():
                return
            self._closed.set()
        self._bulletin.close("this member was closed")
        self.lobby.close()
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

    def _send(self, kind: FrameKind, body: dict[str, Any]) -> None:
        self._connection.send(kind, body, timeout_seconds=self._silence_seconds)

    def _start_threads(self, heartbeat_seconds: float) -> None:
        self._threads = [
            threading.Thread(target=self._read, name=f"fatwood-reader-{self.rank}", daemon=True),
            threading.Thread(
                target=self._beat,
                args=(heartbeat_seconds,),
                name=f"fatwood-heartbeat-{self.rank}",
                daemon=True,
            ),
        ]
        for thread in self._threads:
            thread.start()

    def _await_welcome(self) -> None:
        self._answered.wait(self._silence_seconds)
        if self._welcomed or self.finished:
            return
        peer = self._connection.peer
        if self._refusal is not None:
            message = f"rank {self.rank} was refused by {peer}: {self._refusal}"
        else:
            why = self.stopped or f"no answer for {self._silence_seconds:g} seconds"
            message = f"rank {self.rank} was not welcomed by {peer}: {why}"
        raise ClusterError(message)

    def _beat(self, heartbeat_seconds: float) -> None:
        while not self._closed.wait(heartbeat_seconds):
            with suppress(
                PeerLost
            ):  # a blob is in the way, which shows life too; or the reader thread says why
                self._send(FrameKind.HEARTBEAT, {})

    def _read(self) -> None:
        """Hear the coordinator until it hangs up."""
        reason = ""
        try:
            while True:
                self._take(self._connection.receive(self._silence_seconds))
        except (ExchangeError, OptionError) as error:
            reason = error.message
        except Exception as error:  # of whoever wanted to hear of a change
            reason = f"rank {self.rank} failed to follow {self._connection.peer}: {error!r}"
        finally:
            self._blobs.end(self.stopped or reason)
            self._clock.end()
            self._stop(reason)

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case FrameKind.HEARTBEAT:
                pass
            case FrameKind.WELCOME:
                self._welcomed, self.late = True, bool(frame.json().get("late"))
                self._answered.set()
            case FrameKind.REFUSED:
                self._refusal = str(frame.json().get("reason"))
                self._answered.set()
            case FrameKind.VIEW:
                self._announce(self._bulletin.post(frame))
            case FrameKind.HOLD:
                number = frame.count("number")
                self._bulletin.hold(number)
                self._announce(number)
            case FrameKind.SPARE:
                self._bulletin.owe_nothing()
            case FrameKind.STOP:
                self._stop(str(frame.json().get("reason")))
            case FrameKind.FINISHED:
                self.finished = True
                self._answered.set()
                self._bulletin.close(None)
                self._announce(ABOVE_ALL)
            case FrameKind.PONG:
                self._clock.deliver(frame)
            case FrameKind.BLOB_REPLY | FrameKind.BLOB_DATA:
                self._blobs.deliver(frame)
            case _:
                message = f"{frame.peer}: expected a coordinator's frame, received {frame.kind.name}"
                raise ProtocolError(message)

    def _announce(self, number: int) -> None:
        """Let those know who work in views below a number that these are over."""
        self.lobby.supersede(number)
        if self._on_change is not None:
            self._on_change(number)

    def _stop(self, reason: str) -> None:
        """Note the first reason to stop, once, and wake whoever trains."""
        if self.stopped is not None or self.finished or self._closed.is_set():
            return
        self.stopped = reason
        self._answered.set()
        self._bulletin.close(reason)
        self._announce(ABOVE_ALL)
        if self._welcomed and self._on_stop is not None:
            self._on_stop(reason)


def _connect(address: tuple[str, int], secret: bytes, rank: int, tls: Identity | None) -> socket.socket:
    name = f"rank {rank}: the coordinator"
    try:
        return dial(*address, secret, CONTROL, peer=name, timeout_seconds=_CONNECT_SECONDS, tls=tls)
    except PeerLost as error:
        message = f"this worker cannot reach the driver: {error.message}"
        hint = "executors must be able to connect to the driver: firewall, NAT, spark.driver.host"
        raise ClusterError(message, hint=hint) from error
