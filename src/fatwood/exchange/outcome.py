"""What a round of the workers ended with, as bytes that can be relayed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from fatwood.errors import ProtocolError
from fatwood.exchange.contract import Buffer

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What a round ended with, the same on all workers.

    On the wire, little-endian: u32 R, R times u32 rank, u32 A, A times u32 rank, u32 P, P times u64 length, the parts.
    """

    ranks: tuple[int, ...]
    """The ranks that took part, in order."""
    abandoned: tuple[int, ...]
    """The ranks whose rows were not waited for."""
    parts: tuple[Buffer, ...]
    """Whatever the round makes of it."""

    def pack(self) -> bytes:
        """To bytes, for a worker that missed the round."""
        head = [
            _packed("I", self.ranks),
            _packed("I", self.abandoned),
            _packed("Q", [len(part) for part in self.parts]),
        ]
        return b"".join([*head, *self.parts])

    @classmethod
    def unpack(cls, data: Buffer) -> Outcome:
        """From the bytes of `pack`; the parts lie in them.

        Raises:
            ProtocolError: They are something else.
        """
        try:
            ranks, at = _unpacked("I", data, 0)
            abandoned, at = _unpacked("I", data, at)
            lengths, at = _unpacked("Q", data, at)
        except struct.error as error:
            message = f"a relayed outcome: expected ranks and lengths, received {len(data)} bytes: {error}"
            raise ProtocolError(message) from error
        if at + sum(lengths) != len(data):
            message = f"a relayed outcome: expected {at + sum(lengths)} bytes, received {len(data)}"
            raise ProtocolError(message)
        parts = []
        for length in lengths:
            parts.append(memoryview(data)[at : at + length])
            at += length
        return cls(ranks, abandoned, tuple(parts))


def _packed(kind: str, numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<I{len(numbers)}{kind}", len(numbers), *numbers)


def _unpacked(kind: str, data: Buffer, at: int) -> tuple[tuple[int, ...], int]:
    """Numbers with their count in front, and where what follows them begins."""
    (count,) = struct.unpack_from("<I", data, at)
    layout = f"<{count}{kind}"
    return struct.unpack_from(layout, data, at + 4), at + 4 + struct.calcsize(layout)
