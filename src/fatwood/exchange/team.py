"""The workers that train together, as one of them sees them: rounds in, outcomes out.

A *round* is what all workers of a view do together: one or more calls of the exchange that end with the same outcome
for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import final

from fatwood.errors import ExchangeError
from fatwood.exchange.contract import Buffer, Exchange
from fatwood.exchange.outcome import Outcome

__all__ = ["FixedTeam", "Move", "Team", "Trainee"]


Move = Callable[[Exchange], Sequence[Buffer]]
"""Plays one round with what it has prepared and returns the outcome's parts, the same on all workers; called again
with another exchange when the round was broken off."""


class Trainee(ABC):
    """Whose rounds they are. Called by the team within `start`, `play` and `wait`, in their thread."""

    @abstractmethod
    def snapshot(self) -> bytes:
        """All that a worker without a state needs to go on after the last completed round."""

    @abstractmethod
    def restore(self, snapshot: Buffer) -> None:
        """Take up another worker's snapshot."""


class Team(ABC):
    """The workers that train together, as one of them sees them."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """This worker's rank."""

    @property
    @abstractmethod
    def ranks(self) -> tuple[int, ...]:
        """Of the workers that are there, increasing."""

    @property
    @abstractmethod
    def bytes_sent(self) -> int:
        """Bytes this worker has put on the wire since the start, framing included."""

    @property
    @abstractmethod
    def waited_seconds(self) -> Mapping[int, float]:
        """How long this worker has waited in rounds, by the rank that came last."""

    @property
    @abstractmethod
    def abandoned(self) -> tuple[int, ...]:
        """Ranks whose rows are not waited for."""

    @abstractmethod
    def play(self, move: Move) -> Outcome:
        """Play a round with all workers and return its outcome.

        Raises:
            ExchangeError: It cannot be played any more: the job was stopped, or this worker is out of it.
        """

    @abstractmethod
    def wait(self, *, for_missing: bool) -> bool:
        """Wait until the view has changed, and level.

        Args:
            for_missing: The others' rows are all trained, and only missing ranks have more.

        Returns:
            False when the job is over.
        """


@final
class FixedTeam(Team):
    """A team that never changes: the first lost worker is the end.

    Args:
        exchange: Of all workers.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    @property
    def rank(self) -> int:
        """See `Team`."""
        return self._exchange.rank

    @property
    def ranks(self) -> tuple[int, ...]:
        """See `Team`."""
        return self._exchange.ranks

    @property
    def bytes_sent(self) -> int:
        """See `Team`."""
        return self._exchange.bytes_sent

    @property
    def waited_seconds(self) -> Mapping[int, float]:
        """See `Team`."""
        return self._exchange.waited_seconds

    @property
    def abandoned(self) -> tuple[int, ...]:
        """Nobody."""
        return ()

    def play(self, move: Move) -> Outcome:
        """See `Team`."""
        return Outcome(self.ranks, (), tuple(move(self._exchange)))

    def wait(self, *, for_missing: bool) -> bool:
        """Nobody comes or goes."""
        if for_missing:
            message = f"rank {self.rank}: expected all ranks in a team that cannot change, received {self._exchange.ranks}"
            raise ExchangeError(message)
        return False
