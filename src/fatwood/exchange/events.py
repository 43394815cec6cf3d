"""What the coordinator tells the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from fatwood.errors import ProtocolError
from fatwood.exchange.frames import Frame

__all__ = ["RESERVED_KINDS", "Event", "read_report"]

RESERVED_KINDS: Final = frozenset(
    {"joined", "lost", "blob", "view", "held", "spare", "missing", "starved", "extinct"}
)
"""Kinds of events that only the coordinator makes."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a worker, or to all.

    Every kind but these is what a member reported with `Member.report`. Of the job, with rank and member -1:

    ========== ============================================== ===========================================
    kind       body                                           meaning
    ========== ============================================== ===========================================
    "view"     number, ranks, members, newcomers, abandoned   who trains together from now on
    "held"     ranks, min_workers                             too few are left; they wait for others
    "missing"  ranks                                          the end: they did not come in time
    "starved"  ranks, seconds                                 the end: they did not come back in time
    "extinct"  completed                                      the end: nobody knows the state any more
    ========== ============================================== ===========================================

    Of a member:

    ========== ============================================== ===========================================
    "joined"   facts, port                                    it has connected
    "spare"                                                   it is ready, and another has its rank
    "blob"     name, path, bytes                              a file of it is in the inbox
    "lost"     reason, silent                                 it is gone without a goodbye, or was evicted; silent: its
                                                              process may still be there
    ========== ============================================== ===========================================
    """

    rank: int
    host: str
    kind: str
    body: dict[str, Any]
    member: int
    """The number of its connection, never used again."""


def read_report(frame: Frame) -> tuple[str, dict[str, Any]]:
    """Return the kind and the body of what a member reports.

    Raises:
        ProtocolError: It is something else, or of a kind that only the coordinator makes.
    """
    report = frame.json()
    kind, body = report.get("kind"), report.get("body")
    if not isinstance(kind, str) or kind in RESERVED_KINDS or not isinstance(body, dict):
        message = f"{frame.peer}: expected a report with a free kind and a body, received kind {kind!r:.200}"
        raise ProtocolError(message)
    return kind, body
