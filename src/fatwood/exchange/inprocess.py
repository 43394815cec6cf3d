"""The exchange among threads of one process: no sockets, the same results and errors as over the network."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import final

from fatwood.errors import OptionError, PeerLost
from fatwood.exchange.contract import Buffer, Exchange, describe_tag
from fatwood.exchange.grid import TWO_LEVEL_FROM

__all__ = ["in_process_group"]


class _Hall:
    """Where the members of one group meet: a box for each ordered pair, and who has left."""

    def __init__(self, size: int) -> None:
        self.changed = threading.Condition()
        # boxes[sender][receiver] by position: tag, body and when it was put there (time.monotonic);
        # a sender is never more than one call ahead, so a box holds at most two
        self.boxes: list[list[deque[tuple[int, bytes, float]]]] = [
            [deque() for _ in range(size)] for _ in range(size)
        ]
        self.gone = [False] * size


@final
class _InProcessExchange(Exchange):
    """One thread's end. The counters say what a network would have carried, without framing."""

    def __init__(
        self, rank: int, ranks: Sequence[int], hall: _Hall, timeout_seconds: float, two_level_from: int
    ) -> None:
        super().__init__(rank, ranks, two_level_from=two_level_from)
        self._hall = hall
        self._timeout_seconds = timeout_seconds

    def _swap(self, tag: int, outgoing: Mapping[int, Buffer]) -> dict[int, Buffer]:
        received = {p: outgoing[p] for p in outgoing if p == self.position}
        others = [p for p in outgoing if p != self.position]
        arrivals: list[tuple[float, int]] = []
        start = time.monotonic()
        deadline = start + self._timeout_seconds
        with self._hall.changed:
            for other in others:
                if self._hall.gone[other]:
                    raise self._lost(other, tag, "has left the group")
                body = bytes(outgoing[other])  # free for bytes; other memory may be reused by the sender
                self._hall.boxes[self.position][other].append((tag, body, start))
                self.bytes_sent += len(body)
            self._hall.changed.notify_all()
            while missing := self._collect(tag, others, received, arrivals):
                if self._closed:
                    raise self._closed_error(tag)
                if not self._hall.changed.wait(max(0.0, deadline - time.monotonic())):
                    raise self._lost(missing[0], tag, f"was silent for {self._timeout_seconds:g} seconds")
        if arrivals:
            self._waited_for(max(arrivals)[1], time.monotonic() - start)
        return received

    def _collect(
        self, tag: int, others: Sequence[int], received: dict[int, Buffer], arrivals: list[tuple[float, int]]
    ) -> list[int]:
        """Take what has come, note when it was sent and by which rank; return the positions still awaited."""
        missing = []
        for other in others:
            if other in received:
                continue
            box = self._hall.boxes[other][self.position]
            if box:
                peer_tag, body, sent_at = box.popleft()
                if peer_tag != tag:
                    raise self._mismatch(self.ranks[other], tag, peer_tag)
                received[other] = body
                arrivals.append((sent_at, self.ranks[other]))
                self.bytes_received += len(body)
            elif self._hall.gone[other]:
                raise self._lost(other, tag, "has left the group")
            else:
                missing.append(other)
        return missing

    def _lost(self, position: int, tag: int, why: str) -> PeerLost:
        message = f"rank {self.rank} lost rank {self.ranks[position]} (a thread of this process): it {why}; awaited: {describe_tag(tag)}"
        return PeerLost(message, rank=self.ranks[position])

    def _close(self) -> None:
        with self._hall.changed:
            self._hall.gone[self.position] = True
            self._hall.changed.notify_all()


def in_process_group(
    size: int,
    *,
    ranks: Sequence[int] | None = None,
    timeout_seconds: float = 60.0,
    two_level_from: int = TWO_LEVEL_FROM,
) -> list[Exchange]:
    """Make the exchanges of `size` workers that are threads of this process.

    Args:
        size: How many workers, at least 1.
        ranks: Their numbers, increasing; 0, 1, 2, ... by default.
        timeout_seconds: How long a call waits for a silent peer before it raises `PeerLost`.
        two_level_from: See `Exchange`.

    Returns:
        One exchange for each worker; give each to its own thread and close all of them.

    Raises:
        OptionError: `size` is below 1, `timeout_seconds` is not positive, or `ranks` are not `size` increasing ranks.
    """
    if size < 1 or not timeout_seconds > 0:
        message = f"in_process_group: expected size >= 1 and timeout_seconds > 0, received {size} and {timeout_seconds}"
        raise OptionError(message)
    numbers = tuple(range(size)) if ranks is None else tuple(ranks)
    if len(numbers) != size:
        message = f"in_process_group: expected {size} ranks, received {list(numbers)}"
        raise OptionError(message)
    hall = _Hall(size)
    return [_InProcessExchange(rank, numbers, hall, timeout_seconds, two_level_from) for rank in numbers]
