"""Who is in the group: the membership view that the coordinator gives to every worker."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from fatwood.errors import OptionError

__all__ = ["Peer", "View"]


@dataclass(frozen=True)
class Peer:
    """One worker of a view and where its listener is."""

    rank: int
    host: str
    port: int


@dataclass(frozen=True)
class View:
    """All workers of a group as one of them sees it."""

    rank: int
    """The rank of the worker that holds this view."""

    peers: tuple[Peer, ...]
    """All workers by rank, the own one included."""

    def __post_init__(self) -> None:
        if [peer.rank for peer in self.peers] != list(range(len(self.peers))):
            message = (
                f"View: expected the peers' ranks 0, 1, 2, ..., received {[peer.rank for peer in self.peers]}"
            )
            raise OptionError(message)
        if not 0 <= self.rank < len(self.peers):
            message = f"View: expected 0 <= rank < {len(self.peers)}, received {self.rank}"
            raise OptionError(message)

    @property
    def size(self) -> int:
        """How many workers the group has."""
        return len(self.peers)

    def digest(self) -> bytes:
        """8 bytes that are the same for all holders of this view and differ between views."""
        text = json.dumps([[peer.rank, peer.host, peer.port] for peer in self.peers])
        return hashlib.blake2b(text.encode(), digest_size=8).digest()
