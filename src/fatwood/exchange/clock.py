"""How a worker's clock stands to the driver's, measured over the job's control connection.

::

    member  PING {number} -->      coordinator
            <-- PONG {number, time}

The driver's time belongs to some moment between the two; taken as the middle, it is wrong by at most half of the round
trip. Of several round trips the shortest says most.

Reference:
    Flaviu Cristian, "Probabilistic clock synchronization", Distributed Computing 3, 1989.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

from fatwood.errors import OptionError, PeerLost, ProtocolError
from fatwood.exchange.frames import Frame

__all__ = ["ClockOffset", "ClockProbe", "pong"]

_ROUNDS: Final = 8


@dataclass(frozen=True, kw_only=True)
class ClockOffset:
    """What to add to a worker's ``time.time()`` to get the time of the job."""

    seconds: float
    error_seconds: float | None
    """How wrong it can be at most; None where nobody knows."""
    source: str = "job"
    """What it was measured against: ``"job"`` (the driver's clock), ``"system"`` (nothing) or ``"ntp"``."""
    remark: str = ""
    """Why it is not the source that was asked for, if it is not."""


def pong(ping: Frame) -> dict[str, Any]:
    """The coordinator's answer to a PING frame that has just come.

    Raises:
        ProtocolError: The frame makes no sense.
    """
    return {"number": ping.count("number"), "time": time.time()}


@final
class ClockProbe:
    """The member's side. Any thread may measure; the one that reads the connection delivers.

    Args:
        send: Sends a PING frame with this body to the coordinator.
        peer: The coordinator, in words.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None], peer: str) -> None:
        self._send = send
        self._peer = peer
        self._measuring = threading.Lock()
        self._number = 0
        self._answers: queue.SimpleQueue[tuple[int, float, float] | None] = queue.SimpleQueue()
        self._ended = False

    def deliver(self, frame: Frame) -> None:
        """Take a PONG frame that has just come.

        Raises:
            ProtocolError: It makes no sense.
        """
        now = time.perf_counter()
        driver = frame.json().get("time")
        if type(driver) is not float:
            message = f"{frame.peer}: expected the time in a PONG frame, received {driver!r:.200}"
            raise ProtocolError(message)
        self._answers.put((frame.count("number"), driver, now))

    def end(self) -> None:
        """Say that nothing will come any more; a measurement ends with what it has."""
        self._ended = True
        self._answers.put(None)

    def measure(
        self, *, rounds: int = _ROUNDS, timeout_seconds: float = 2.0, clock: Callable[[], float] = time.time
    ) -> ClockOffset:
        """Measure the offset to the driver's clock.

        Args:
            rounds: How many round trips; the shortest counts.
            timeout_seconds: After this what has come counts.
            clock: This worker's clock.

        Raises:
            PeerLost: The coordinator is gone, or nothing came in time.
            OptionError: No round or no time.
        """
        if rounds < 1 or not timeout_seconds > 0:
            message = f"clock offset: expected at least one round and a positive time, received {rounds} and {timeout_seconds}"
            raise OptionError(message)
        deadline = time.monotonic() + timeout_seconds
        best: tuple[float, float] | None = None
        with self._measuring:
            for _ in range(rounds):
                found = self._round(deadline, clock)
                if found is None:
                    break
                best = found if best is None else min(best, found)
        if best is None:
            message = f"{self._peer} did not tell its time within {timeout_seconds:g} seconds"
            raise PeerLost(message)
        trip, offset = best
        return ClockOffset(seconds=offset, error_seconds=trip / 2)

    def _round(self, deadline: float, clock: Callable[[], float]) -> tuple[float, float] | None:
        """Seconds of a round trip and the offset that follows from it; None when the time is over."""
        if self._ended:
            return None
        self._number += 1
        local, start = clock(), time.perf_counter()
        self._send({"number": self._number})
        while True:
            try:
                answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if answer is None:
                return None
            number, driver, end = answer
            if number == self._number:  # else a late answer to an earlier question
                return end - start, driver - (local + (end - start) / 2)
