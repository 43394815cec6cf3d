"""The driver's side of the control channel: who is there, who trains together, what they report, and who is lost.

::

    acceptor ── newcomers ──> a thread per member, hears it ──┐ join, ready, suspect, synced, waiting, leave
    timer ──────── deadlines ─────────────────────────────────┴─> Membership (one lock) ──┐
    driver <── Event ─────────────────────────────────────────────────────────────────────┤ Notice
    member <── a thread per member, sends what is queued for it <─────────────────────────┘ Seated, Held, Evicted

A member's socket that closes without a goodbye is a lost worker at once, a silent one after the heartbeat timeout.
What is decided is queued while the lock is held, so each member hears of views in their order, and is sent by the
member's own thread, so a member that takes nothing delays nobody.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, final

from fatwood.errors import ExchangeError, OptionError, ProtocolError
from fatwood.exchange.auth import CONTROL
from fatwood.exchange.events import Event
from fatwood.exchange.frames import Frame, FramedConnection, FrameKind
from fatwood.exchange.guest import Guest, Message, read_join
from fatwood.exchange.listener import Listener
from fatwood.exchange.membership import Applicant, Evicted, Held, Membership, Notice, Seated
from fatwood.exchange.tls import Identity

__all__ = ["Coordinator"]

_NOBODY: Final = -1
_IDLE_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 1.0
_JOIN_THREAD_SECONDS: Final = 10.0


@final
class Coordinator:
    """Gives members the views of who trains together, and turns what happens into events.

    Args:
        workers: How many ranks the job has, 0 .. workers - 1.
        min_workers: How many must be there; see `Membership`.
        secret: The job's secret, 32 bytes; see `auth.new_secret`.
        host: The address to bind.
        advertise_host: What the members are told instead of `host`; needed when `host` means all interfaces.
        port: The port to bind; 0 lets the system choose.
        start_timeout_seconds: How long the first member waits for the others.
        rejoin_timeout_seconds: How long members wait for missing ones when they cannot go on without.
        heartbeat_timeout_seconds: How long a member may be silent before it is lost.
        inbox: A folder that exists, for the blobs that members send, as ``rank-<rank>-<member>-<name>``.
        max_blob_bytes: The longest blob that a member may send.
        outbox: Files that a member may fetch, by (rank, name).
        tls: The job's identity, to encrypt all connections.

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
        min_workers: int | None = None,
        secret: bytes,
        host: str,
        advertise_host: str | None = None,
        port: int = 0,
        start_timeout_seconds: float = 120.0,
        rejoin_timeout_seconds: float = 120.0,
        heartbeat_timeout_seconds: float = 10.0,
        inbox: Path,
        max_blob_bytes: int,
        outbox: Mapping[tuple[int, str], Path] | None = None,
        tls: Identity | None = None,
    ) -> None:
        _check_times(start_timeout_seconds, rejoin_timeout_seconds, heartbeat_timeout_seconds)
        _check_places(host, advertise_host, inbox)
        self._membership = Membership(
            workers,
            min_workers=min_workers,
            start_seconds=start_timeout_seconds,
            rejoin_seconds=rejoin_timeout_seconds,
        )
        self._heartbeat_timeout_seconds = heartbeat_timeout_seconds
        self._inbox = inbox
        self._max_blob_bytes = max_blob_bytes
        self._outbox = dict(outbox or {})
        self._events: queue.Queue[Event] = queue.Queue()
        self._changed = threading.Condition(threading.Lock())  # guards all that follows and the membership
        self._guests: dict[int, Guest] = {}  # by member
        self._numbers = itertools.count()
        self._connections: set[FramedConnection] = set()
        self._threads: list[threading.Thread] = []
        self._stop_reason: str | None = None
        self._finished = False
        self._closed = False
        self._listener = Listener(host=host, port=port, secret=secret, purpose=CONTROL, tls=tls)
        self.address: tuple[str, int] = (advertise_host or host, self._listener.address[1])
        self._own_threads = [
            threading.Thread(target=self._accept, name="fatwood-coordinator", daemon=True),
            threading.Thread(target=self._time, name="fatwood-coordinator-timer", daemon=True),
        ]
        for thread in self._own_threads:
            thread.start()

    def next_event(self, timeout_seconds: float) -> Event | None:
        """Return the next event, or None when none comes within `timeout_seconds`."""
        try:
            return self._events.get(timeout=max(0.0, timeout_seconds))
        except queue.Empty:
            return None

    def finish(self) -> None:
        """Tell all members, and those still to come, that the job is over; whoever leaves from now on is not lost."""
        with self._changed:
            if self._finished or self._stop_reason is not None:
                return
            self._finished = True
            self._membership.finish()
            self._tell(self._guests, FrameKind.FINISHED, {})

    def cancel(self, reason: str) -> None:
        """Tell all members, and those still to come, to stop; the first reason counts, and none after `finish`."""
        with self._changed:
            if self._finished or self._stop_reason is not None:
                return
            self._stop_reason = reason
            self._membership.finish()
            self._tell(self._guests, FrameKind.STOP, {"reason": reason})

    def wait_until_left(self, timeout_seconds: float) -> bool:
        """Wait until no member is there any more; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._guests, timeout_seconds)

    def close(self) -> None:
        """Hang up on everybody and end all threads; idempotent. Members that are still there stop."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._membership.finish()
            self._changed.notify_all()
        self._listener.close()
        for thread in self._own_threads:
            thread.join(_JOIN_THREAD_SECONDS)
        with self._changed:
            for guest in self._guests.values():
                guest.hang_up()
            connections, threads = list(self._connections), list(self._threads)
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for connection in connections:
            connection.shutdown()
        for thread in threads:
            thread.join(_JOIN_THREAD_SECONDS)

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        """Give each authenticated newcomer a thread."""
        while True:
            try:
                newcomer = self._listener.accept(_IDLE_SECONDS)
            except ExchangeError:
                return
            if newcomer is not None:
                connection, (host, port) = newcomer
                framed = FramedConnection(connection, f"the member at {host}:{port}")
                with self._changed:
                    self._connections.add(framed)
                    self._threads = [known for known in self._threads if known.is_alive()]
                    self._start_thread(f"fatwood-member-{port}", partial(self._serve, framed))

    def _start_thread(self, name: str, target: Callable[[], None]) -> None:
        """With the lock held: start a thread that `close` waits for."""
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _time(self) -> None:
        """Wake the membership at its deadlines."""
        with self._changed:
            while not self._closed:
                at = self._membership.next_deadline()
                left = _IDLE_SECONDS if at is None else at - time.monotonic()
                if left > 0:
                    self._changed.wait(min(left, _IDLE_SECONDS))
                else:
                    self._decide()

    def _decide(self) -> None:
        """With the lock held: carry out what follows from all that has happened."""
        for action in self._membership.take(time.monotonic()):
            match action:
                case Seated(number, seated, newcomers, abandoned):
                    view = {
                        "number": number,
                        "peers": [[a.rank, a.host, a.port] for a in seated],
                        "newcomers": list(newcomers),
                        "abandoned": list(abandoned),
                    }
                    self._tell([a.member for a in seated], FrameKind.VIEW, view)
                case Held(number, seated):
                    self._tell([a.member for a in seated], FrameKind.HOLD, {"number": number})
                case Evicted(applicant, reason):
                    guest = self._guests.pop(applicant.member)
                    guest.tell(FrameKind.STOP, {"reason": f"this worker is out of the job: {reason}"})
                    guest.hang_up()
                    self._emit(applicant, "lost", {"reason": reason, "silent": True})
                case Notice(kind, body, applicant):
                    self._emit(applicant, kind, body)
                    if kind == "spare" and applicant is not None:
                        self._tell([applicant.member], FrameKind.SPARE, {})
        self._changed.notify_all()

    def _tell(self, members: Iterable[int], kind: FrameKind, body: dict[str, Any]) -> None:
        """With the lock held: queue a frame for these members."""
        for member in members:
            self._guests[member].tell(kind, body)

    def _emit(self, applicant: Applicant | None, kind: str, body: dict[str, Any]) -> None:
        if applicant is None:
            self._events.put(Event(_NOBODY, "", kind, body, _NOBODY))
        else:
            self._events.put(Event(applicant.rank, applicant.host, kind, body, applicant.member))

    def _serve(self, connection: FramedConnection) -> None:
        """One connection's life, in its thread."""
        try:
            guest = self._admit(connection)
            if guest is not None:
                self._part_with(guest, guest.hear_all(partial(self._inform, guest.applicant.member)))
        except ExchangeError:
            return  # it never became a member
        finally:
            with self._changed:
                self._connections.discard(connection)
            connection.close()

    def _admit(self, connection: FramedConnection) -> Guest | None:
        """Hear who is calling and take it in, or tell it why not."""
        applicant, facts = read_join(connection, next(self._numbers))
        guest = Guest(
            applicant,
            connection,
            silence_seconds=self._heartbeat_timeout_seconds,
            inbox=self._inbox,
            max_blob_bytes=self._max_blob_bytes,
            outbox={name: path for (rank, name), path in self._outbox.items() if rank == applicant.rank},
            emit=partial(self._emit, applicant),
        )
        with self._changed:
            answer = self._enter(applicant)
            if answer is None:
                self._guests[applicant.member] = guest
                guest.tell(FrameKind.WELCOME, {"late": self._membership.started})
                self._start_thread(f"fatwood-to-member-{applicant.port}", guest.send_all)
                self._emit(applicant, "joined", {"facts": facts, "port": applicant.port})
                self._decide()
                return guest
        connection.send(*answer, timeout_seconds=_STOP_SECONDS)
        return None

    def _enter(self, applicant: Applicant) -> Message | None:
        """With the lock held: enter the applicant in the membership, or say what to answer it."""
        if self._finished:
            return FrameKind.FINISHED, {}
        if self._stop_reason is not None:
            return FrameKind.REFUSED, {"reason": f"the job was stopped: {self._stop_reason}"}
        if self._closed:
            return FrameKind.REFUSED, {"reason": "the coordinator is closing"}
        reason = self._membership.join(applicant, time.monotonic())
        return None if reason is None else (FrameKind.REFUSED, {"reason": reason})

    def _part_with(self, guest: Guest, loss: dict[str, Any] | None) -> None:
        with self._changed:
            if self._guests.pop(guest.applicant.member, None) is None:
                return  # it was evicted
            if loss is not None and not self._finished and not self._closed:
                self._emit(guest.applicant, "lost", loss)
            self._membership.leave(guest.applicant.member)
            self._decide()

    def _inform(self, member: int, frame: Frame) -> None:
        """Tell the membership what a member says of itself and of its view."""
        word = self._understand(member, frame)
        with self._changed:
            if member in self._guests:  # it may have been evicted
                word(time.monotonic())
                self._decide()

    def _understand(self, member: int, frame: Frame) -> Callable[[float], None]:
        """Return what to do, given the time, about a frame."""
        membership = self._membership
        if frame.kind is FrameKind.READY:
            return lambda _: membership.ready(member)
        if frame.kind is FrameKind.SUSPECT:
            view = frame.count("view")
            accused = None if frame.json().get("rank") is None else frame.count("rank")
            return lambda now: membership.suspect(member, view, accused, now)
        if frame.kind is FrameKind.SYNCED:
            view, completed = frame.count("view"), frame.count("completed")
            return lambda _: membership.synced(member, view, completed)
        if frame.kind is FrameKind.WAITING:
            view = frame.count("view")
            return lambda now: membership.waiting(member, view, now)
        message = f"{frame.peer}: expected a member's frame, received {frame.kind.name}"
        raise ProtocolError(message)


def _check_times(*seconds: float) -> None:
    if not min(seconds) > 0:
        message = (
            "Coordinator: expected positive start_timeout_seconds, rejoin_timeout_seconds and "
            f"heartbeat_timeout_seconds, received {', '.join(map(str, seconds))}"
        )
        raise OptionError(message)


def _check_places(host: str, advertise_host: str | None, inbox: Path) -> None:
    if host in {"", "0.0.0.0", "::"} and not advertise_host:  # noqa: S104
        message = f"Coordinator: expected advertise_host with host={host!r}, received none"
        raise OptionError(message, hint="give the name or address at which the executors reach the driver")
    if not inbox.is_dir():
        message = f"Coordinator: expected an existing folder as inbox, received {inbox}"
        raise OptionError(message)
