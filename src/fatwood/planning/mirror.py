"""An exchange with workers that are not there: each of them sends what this one would.

With it one process does all that a worker of a group does for an agreement (encode, pack, sum up, decode, apply) and holds
all that it holds, the messages of the others included. Only the network is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from fatwood.exchange import Buffer, Exchange
from fatwood.exchange.contract import describe_tag
from fatwood.exchange.link import FRAME_BYTES

__all__ = ["MirrorExchange"]


@final
class MirrorExchange(Exchange):
    """The first of a group of equal workers.

    Args:
        workers: Of the group, itself included.
    """

    def __init__(self, workers: int) -> None:
        # always in one round: two have the same bytes, and a bundle here would hold this worker's message alone
        super().__init__(0, range(workers), two_level_from=workers + 1)
        self.rounds: list[int] = []
        """Bytes sent in each round, frames included, since it was last emptied."""
        self._scattered: list[Buffer] = []

    def _swap(self, tag: int, outgoing: Mapping[int, Buffer]) -> dict[int, Buffer]:
        return dict(enumerate(self._mirrored(tag, [outgoing[position] for position in range(self.size)])))

    def _mirrored(self, tag: int, outgoing: Sequence[Buffer]) -> list[Buffer]:
        sent = sum(FRAME_BYTES + len(body) for body in outgoing[1:])
        self.rounds.append(sent)
        self.bytes_sent += sent
        self.bytes_received += sent
        call = describe_tag(tag)
        if call.startswith("second round of mean"):
            # the mean of equal vectors is the vector: segment i of it is what was sent to worker i
            prefix = len(self._scattered[0]) - len(outgoing[0])
            bodies = [outgoing[0], *(bytearray(body[prefix:]) for body in self._scattered[1:])]
            self._scattered = []
            return bodies
        if call.startswith("first round of mean"):
            self._scattered = list(outgoing)
        return [outgoing[0], *(bytearray(outgoing[0]) for _ in outgoing[1:])]

    def _close(self) -> None:
        self._scattered = []
