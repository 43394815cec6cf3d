"""Who trains together: the numbered membership view that the coordinator gives to every worker."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fatwood.errors import OptionError

__all__ = ["Peer", "View", "are_ranks"]

_MAX_NUMBER: Final = 1 << 64
_MAX_RANK: Final = 1 << 32


@dataclass(frozen=True)
class Peer:
    """One worker of a view and where its listener is."""

    rank: int
    host: str
    port: int


@dataclass(frozen=True)
class View:
    """The workers that train together from now on, as one of them sees it. A later view replaces all earlier ones.

    Raises:
        OptionError: A number that is out of range, ranks that do not increase, or no peer of the own rank.
    """

    number: int
    """Which view of the job this is, 0 <= number < 2**64; every view has a higher number than those before it."""

    rank: int
    """The rank of the worker that holds this view."""

    peers: tuple[Peer, ...]
    """All workers by increasing rank, the own one included; a rank may be missing."""

    abandoned: tuple[int, ...] = ()
    """The ranks, increasing, whose rows are no longer waited for."""

    def __post_init__(self) -> None:
        if not 0 <= self.number < _MAX_NUMBER:
            message = f"View: expected 0 <= number < 2**64, received {self.number}"
            raise OptionError(message)
        for name, ranks in (("peers' ranks", self.ranks), ("abandoned ranks", self.abandoned)):
            if not are_ranks(ranks):
                message = f"View: expected increasing {name} of 0 <= rank < 2**32, received {list(ranks)}"
                raise OptionError(message)
        if self.rank not in self.ranks:
            message = (
                f"View: expected rank to be one of the peers' ranks {list(self.ranks)}, received {self.rank}"
            )
            raise OptionError(message)

    @property
    def size(self) -> int:
        """How many workers the view has."""
        return len(self.peers)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of all workers, increasing."""
        return tuple(peer.rank for peer in self.peers)

    @property
    def position(self) -> int:
        """Where the own worker stands among `peers`."""
        return self.ranks.index(self.rank)

    def digest(self) -> bytes:
        """8 bytes that are the same for all holders of this view and differ between views."""
        text = json.dumps([self.number, [[peer.rank, peer.host, peer.port] for peer in self.peers]])
        return hashlib.blake2b(text.encode(), digest_size=8).digest()


def are_ranks(ranks: Sequence[int]) -> bool:
    """Whether these can be the ranks of a group: increasing, each 0 <= rank < 2**32."""
    in_range = all(0 <= rank < _MAX_RANK for rank in ranks)
    return in_range and all(first < second for first, second in itertools.pairwise(ranks))
