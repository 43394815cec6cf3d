"""The exchange among threads of one process: no sockets, the same results and errors as over the network."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import final

from fatwood.errors import OptionError, PeerLost
from fatwood.exchange.contract import Buffer, Exchange, describe_tag

__all__ = ["in_process_group"]


class _Hall:
    """Where the members of one group meet: a box for each ordered pair, and who has left."""

    def __init__(self, size: int) -> None:
        self.changed = threading.Condition()
        # boxes[sender][receiver]; a sender is never more than one call ahead, so a box holds at most two
        self.boxes: list[list[deque[tuple[int, bytes]]]] = [
            [deque() for _ in range(size)] for _ in range(size)
        ]
        self.gone = [False] * size


@final
class _InProcessExchange(Exchange):
    """One thread's end. The counters say what a network would have carried, without framing."""

    def __init__(self, rank: int, hall: _Hall, timeout_seconds: float) -> None:
        super().__init__(rank, len(hall.gone))
        self._hall = hall
        self._timeout_seconds = timeout_seconds

    def _swap(self, tag: int, outgoing: Sequence[Buffer]) -> list[Buffer]:
        received: list[Buffer | None] = [None] * self.size
        received[self.rank] = outgoing[self.rank]
        deadline = time.monotonic() + self._timeout_seconds
        with self._hall.changed:
            for peer in self._peers():
                if self._hall.gone[peer]:
                    raise self._lost(peer, tag, "has left the group")
                body = bytes(outgoing[peer])  # free for bytes; other memory may be reused by the sender
                self._hall.boxes[self.rank][peer].append((tag, body))
                self.bytes_sent += len(body)
            self._hall.changed.notify_all()
            while True:
                missing = self._collect(tag, received)
                if not missing:
                    return [body for body in received if body is not None]
                if self._closed:
                    raise self._closed_error(tag)
                if not self._hall.changed.wait(max(0.0, deadline - time.monotonic())):
                    raise self._lost(missing[0], tag, f"was silent for {self._timeout_seconds:g} seconds")

    def _collect(self, tag: int, received: list[Buffer | None]) -> list[int]:
        """Take what has come into `received`; return the ranks that are still awaited."""
        missing = []
        for peer in self._peers():
            if received[peer] is not None:
                continue
            box = self._hall.boxes[peer][self.rank]
            if box:
                peer_tag, body = box.popleft()
                if peer_tag != tag:
                    raise self._mismatch(peer, tag, peer_tag)
                received[peer] = body
                self.bytes_received += len(body)
            elif self._hall.gone[peer]:
                raise self._lost(peer, tag, "has left the group")
            else:
                missing.append(peer)
        return missing

    def _peers(self) -> list[int]:
        return [peer for peer in range(self.size) if peer != self.rank]

    def _lost(self, peer: int, tag: int, why: str) -> PeerLost:
        message = f"rank {self.rank} lost rank {peer} (a thread of this process): it {why}; awaited: {describe_tag(tag)}"
        return PeerLost(message)

    def _close(self) -> None:
        with self._hall.changed:
            self._hall.gone[self.rank] = True
            self._hall.changed.notify_all()


def in_process_group(size: int, *, timeout_seconds: float = 60.0) -> list[Exchange]:
    """Make the exchanges of `size` workers that are threads of this process.

    Args:
        size: How many workers, at least 1.
        timeout_seconds: How long a call waits for a silent peer before it raises `PeerLost`.

    Returns:
        One exchange for each rank; give each to its own thread and close all of them.

    Raises:
        OptionError: `size` is below 1 or `timeout_seconds` is not positive.
    """
    if size < 1 or not timeout_seconds > 0:
        message = f"in_process_group: expected size >= 1 and timeout_seconds > 0, received {size} and {timeout_seconds}"
        raise OptionError(message)
    hall = _Hall(size)
    return [_InProcessExchange(rank, hall, timeout_seconds) for rank in range(size)]
