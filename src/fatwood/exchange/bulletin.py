"""What a member knows of views: the reader thread writes it, others wait for it."""

from __future__ import annotations

import threading
import time
from typing import Final, final

from fatwood.errors import ClusterError, ExchangeError, ProtocolError
from fatwood.exchange.frames import Frame
from fatwood.exchange.view import Peer, View

__all__ = ["ABOVE_ALL", "Bulletin"]

ABOVE_ALL: Final = 1 << 64
"""The number after that of every view: with it all are over."""

_GLANCE_SECONDS: Final = 60.0


@final
class Bulletin:
    """The newest view, and whether it is over.

    Args:
        rank: Of the member.
        patience_seconds: How long the coordinator may owe it a view.
    """

    def __init__(self, rank: int, patience_seconds: float) -> None:
        self._rank = rank
        self._patience_seconds = patience_seconds
        self._changed = threading.Condition()
        self._view: View | None = None
        self._newcomer_in: set[int] = set()
        self._lowest = 0  # views below are over
        self._owed_since: float | None = None
        self._closed = False
        self._error: str | None = None

    def post(self, frame: Frame) -> int:
        """Take up a VIEW frame; return the view's number.

        Raises:
            ProtocolError: It is no view of this member.
        """
        number, said = frame.count("number"), frame.json()
        try:
            peers = tuple(Peer(int(r), str(h), int(p)) for r, h, p in said["peers"])
            view = View(number, self._rank, peers, tuple(said["abandoned"]))
            is_newcomer = self._rank in said["newcomers"]
        except (KeyError, TypeError, ValueError) as error:
            message = f"{frame.peer}: expected a view with rank {self._rank}, received {said!r:.500}"
            raise ProtocolError(message) from error
        with self._changed:
            self._view = view
            self._owed_since = None
            if is_newcomer:
                self._newcomer_in.add(number)
            self._retire(number)
        return number

    def hold(self, number: int) -> None:
        """Note that the views below a number are over and the next is not there yet."""
        with self._changed:
            self._retire(number)
            self._owe()

    def owe(self, number: int) -> None:
        """Note that the coordinator is told why this member needs a view after this one."""
        with self._changed:
            if number >= self._lowest:
                self._owe()

    def owe_nothing(self) -> None:
        """Note that the coordinator will not give a view soon, which is as it should be."""
        with self._changed:
            self._owed_since = None

    def close(self, error: str | None) -> None:
        """Note that there will be no view any more, and why, or None when the job is over; the first time counts."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
                self._retire(ABOVE_ALL)

    def after(self, number: int) -> View | None:
        """Wait for a view above a number that is not over; None when the job is over.

        Raises:
            ExchangeError: There will be none.
            ClusterError: The coordinator has owed it for too long.
        """
        with self._changed:
            while not self._closed:
                view = self._view
                if view is not None and view.number > number and view.number >= self._lowest:
                    return view
                self._wait(number)
            if self._error is None:
                return None
            message = f"rank {self._rank}: there is no view after {number}: {self._error}"
            raise ExchangeError(message)

    def is_current(self, number: int) -> bool:
        """Whether a view is not over."""
        return number >= self._lowest

    def is_newcomer(self, number: int) -> bool:
        """Whether the member came into this view without a state."""
        return number in self._newcomer_in

    def _owe(self) -> None:
        if self._owed_since is None:
            self._owed_since = time.monotonic()
        self._changed.notify_all()

    def _retire(self, number: int) -> None:
        self._lowest = max(self._lowest, number)
        self._changed.notify_all()

    def _wait(self, number: int) -> None:
        left = _GLANCE_SECONDS
        if self._owed_since is not None:
            left = min(left, self._owed_since + self._patience_seconds - time.monotonic())
        if left <= 0:
            message = f"rank {self._rank} waited {self._patience_seconds:g} seconds for a view after {number}"
            hint = "the driver should have said by then what is missing; look at its log"
            raise ClusterError(message, hint=hint)
        self._changed.wait(left)
