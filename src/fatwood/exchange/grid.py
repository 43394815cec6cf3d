"""Everybody's message to everybody in two rounds of few messages: among the workers of a row, then among rows.

A full mesh needs W - 1 frames a worker, and each costs a processor some time, however short it is. Workers on a grid of about
sqrt(W) rows need about 2 sqrt(W): in the first round a worker gives its message to those of its row, in the second it
gives the bundle of its row's messages to one worker of every other row. Every message still crosses a worker's
link once, so the bytes are the same but for the bundles' headers (the all-gather of a two-dimensional mesh; Chan et al.,
"Collective communication: theory, practice, and experience", 2007).

A bundle, big-endian::

    0   u32       which of the row came last, as its place in the row
    4   k x u64   the length of each message of the row
    ..  bodies
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Final, final

from fatwood.errors import ProtocolError

__all__ = ["LEAST_WORKERS", "TWO_LEVEL_FROM", "Grid"]

LEAST_WORKERS: Final = 4
"""With fewer there is one row only."""
TWO_LEVEL_FROM: Final = 64
"""Workers from which on two rounds of few frames cost less than one of many, by constants measured among up to 16 (`benchmarks/scale.py`)."""

_LATEST: Final = struct.Struct(">I")


@final
class Grid:
    """Where one worker stands, by positions.

    Rows are as long as each other or one worker shorter. A shorter row lacks the last column; one of its members, another
    for each row, stands in there.

    Args:
        size: How many workers, at least `LEAST_WORKERS`.
        position: The own one.

    Attributes:
        row: All positions of the own row, the own one included.
        sends_to: Who gets the bundle of the own row from this worker.
        receives: Who gives this worker the bundle of which row (positions).
    """

    def __init__(self, size: int, position: int) -> None:
        rows = _rows(size)
        own = next(i for i, row in enumerate(rows) if position in row)
        self.size: Final = size
        self.row: Final[Sequence[int]] = rows[own]
        column = position - self.row[0]
        self.receives: Final[Mapping[int, Sequence[int]]] = {
            _giver(rows, i, column): row for i, row in enumerate(rows) if i != own
        }
        self.sends_to: Final = frozenset(
            other
            for i, row in enumerate(rows)
            if i != own
            for other in row
            if _giver(rows, own, other - row[0]) == position
        )

    @property
    def partners(self) -> frozenset[int]:
        """With whom this worker exchanges frames in the second round; some have nothing to give."""
        return self.sends_to | self.receives.keys()


def pack_bundle(bodies: Sequence[bytes], latest: int) -> bytes:
    """The messages of a row, in order of position; `latest` is the place in the row of who came last."""
    lengths = struct.pack(f">{len(bodies)}Q", *map(len, bodies))
    return b"".join((_LATEST.pack(latest), lengths, *bodies))


def unpack_bundle(bundle: bytes, count: int) -> tuple[list[bytes], int]:
    """What `pack_bundle` was given for a row of `count` workers.

    Raises:
        ProtocolError: The bytes are not such a bundle.
    """
    header = _LATEST.size + 8 * count
    if len(bundle) >= header:
        (latest,) = _LATEST.unpack_from(bundle)
        lengths = struct.unpack_from(f">{count}Q", bundle, _LATEST.size)
        if latest < count and header + sum(lengths) == len(bundle):
            ends = itertools.accumulate(lengths, initial=header)
            return [bundle[start:end] for start, end in itertools.pairwise(ends)], latest
    message = f"expected a bundle of {count} messages, received {len(bundle)} bytes that are none"
    raise ProtocolError(message)


def longest_bundle(size: int, max_message_bytes: int) -> int:
    """How long a bundle can be among `size` workers."""
    longest = max(len(row) for row in _rows(size))
    return _LATEST.size + longest * (8 + max_message_bytes)


def _rows(size: int) -> list[range]:
    """Positions row by row: rows as many as the square root, balanced, longer ones first."""
    count = math.isqrt(size)
    short, longer = divmod(size, count)
    starts = itertools.accumulate((short + (i < longer) for i in range(count)), initial=0)
    return [range(start, stop) for start, stop in itertools.pairwise(starts)]


def _giver(rows: Sequence[range], giving: int, column: int) -> int:
    """Who of a row gives its bundle to the members of a column of other rows."""
    row = rows[giving]
    return row[column] if column < len(row) else row[giving % len(row)]
