"""The coordinator's end of one member's connection."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, final

from fatwood.errors import ExchangeError, OptionError, PeerLost, ProtocolError
from fatwood.exchange.auth import HANDSHAKE_SECONDS
from fatwood.exchange.blobs import BlobDesk
from fatwood.exchange.clock import pong
from fatwood.exchange.events import read_report
from fatwood.exchange.frames import Frame, FramedConnection, FrameKind
from fatwood.exchange.membership import Applicant

__all__ = ["Guest", "Message", "read_join"]

_BEATS: Final = 5
"""Signs of life that the coordinator gives in the time that it gives a member for one."""

Message = tuple[FrameKind, dict[str, Any]]
"""A frame to a member."""


@final
class Guest:
    """A member that was admitted.

    One thread hears it and another sends what it is told: a member that takes nothing delays nobody.

    Args:
        applicant: Who it is.
        connection: To the member; owned by the thread that hears it.
        silence_seconds: How long the member may send or take nothing.
        inbox: The folder for the blobs that it sends.
        max_blob_bytes: The longest of them.
        outbox: What it may fetch, by name.
        emit: Called with the kind and the body of what the member reports.
    """

    def __init__(
        self,
        applicant: Applicant,
        connection: FramedConnection,
        *,
        silence_seconds: float,
        inbox: Path,
        max_blob_bytes: int,
        outbox: Mapping[str, Path],
        emit: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.applicant: Final = applicant
        self._connection = connection
        self._silence_seconds = silence_seconds
        self._emit = emit
        self._outgoing: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._blobs = BlobDesk(
            connection,
            path=inbox / f"rank-{applicant.rank}-{applicant.member}-",
            max_bytes=max_blob_bytes,
            outbox=outbox,
            timeout_seconds=silence_seconds,
            on_blob=lambda body: emit("blob", body),
        )

    def tell(self, kind: FrameKind, body: dict[str, Any]) -> None:
        """Send a frame after all that it was told before; returns at once."""
        self._outgoing.put((kind, body))

    def hang_up(self) -> None:
        """End the conversation after all that it was told before; returns at once."""
        self._outgoing.put(None)

    def send_all(self) -> None:
        """Send what it is told, and signs of life, until somebody hangs up; for a thread of its own."""
        try:
            while True:
                try:
                    message = self._outgoing.get(timeout=self._silence_seconds / _BEATS)
                except queue.Empty:
                    message = FrameKind.HEARTBEAT, {}
                if message is None:
                    return
                self._connection.send(*message, timeout_seconds=self._silence_seconds)
        except PeerLost:
            return  # the thread that hears it says why
        finally:
            self._connection.shutdown()

    def hear_all(self, on_word: Callable[[Frame], None]) -> dict[str, Any] | None:
        """Hear the member to its end; for a thread of its own.

        Args:
            on_word: Called with every frame about the member itself and its view.

        Returns:
            None after a goodbye, else the body of its "lost" event.
        """
        try:
            while True:
                frame = self._connection.receive(self._silence_seconds)
                match frame.kind:
                    case FrameKind.BYE:
                        return None
                    case FrameKind.HEARTBEAT:
                        pass
                    case FrameKind.PING:
                        self.tell(FrameKind.PONG, pong(frame))
                    case FrameKind.REPORT:
                        self._emit(*read_report(frame))
                    case FrameKind.BLOB_BEGIN:
                        self._blobs.begin(frame)
                    case FrameKind.BLOB_DATA:
                        self._blobs.take(frame)
                    case FrameKind.FETCH:
                        self._blobs.give(frame)
                    case _:
                        on_word(frame)
        except PeerLost as error:
            return {"reason": error.message, "silent": error.silent}
        except (ExchangeError, OptionError) as error:
            return {"reason": error.message, "silent": True}
        except Exception as error:
            return {"reason": f"the coordinator failed to serve it: {error!r}", "silent": True}
        finally:
            self._blobs.close()
            self.hang_up()


def read_join(connection: FramedConnection, member: int) -> tuple[Applicant, dict[str, Any]]:
    """Hear who is calling; return it under the given number, with its facts.

    Raises:
        ProtocolError: It says something else first.
        PeerLost: It is gone or says nothing.
    """
    frame = connection.receive(HANDSHAKE_SECONDS)
    if frame.kind is not FrameKind.JOIN:
        message = f"{frame.peer}: expected a JOIN frame, received {frame.kind.name}"
        raise ProtocolError(message)
    join = frame.json()
    rank, host, port = (join.get(key) for key in ("rank", "host", "port"))
    facts, stateless = join.get("facts"), join.get("stateless")
    if (
        type(rank) is int
        and isinstance(host, str)
        and type(port) is int
        and isinstance(facts, dict)
        and isinstance(stateless, bool)
    ):
        return Applicant(member, rank, host, port, stateless), facts
    message = f"{frame.peer}: expected rank, host, port, facts and stateless in a JOIN frame, received {join!r:.200}"
    raise ProtocolError(message)
