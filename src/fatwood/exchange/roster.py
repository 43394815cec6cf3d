"""What a team needs of whoever decides on its views."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from fatwood.exchange.view import View

__all__ = ["Roster"]


class Roster(ABC):
    """What a team needs of the coordinator; `Member` is one."""

    rank: int

    @abstractmethod
    def view_after(self, number: int) -> View | None:
        """Wait for a view with a higher number; None when the job is over.

        Raises:
            ExchangeError: The job was stopped, this worker was evicted, or the coordinator is gone.
        """

    @abstractmethod
    def is_current(self, number: int) -> bool:
        """Whether no later view has been announced."""

    @abstractmethod
    def is_newcomer(self, number: int) -> bool:
        """Whether this worker was without a state when view `number` was made."""

    @abstractmethod
    def suspect(self, number: int, accused: int | None) -> None:
        """Tell that this worker cannot go on in a view; the accused is the rank that it lost, if it knows."""

    @abstractmethod
    def synced(self, number: int, completed: int) -> None:
        """Tell that this worker has the training's state after so many rounds."""

    @abstractmethod
    def waiting(self, number: int) -> None:
        """Tell that the workers of a view cannot go on without those that are missing."""

    @abstractmethod
    def on_change(self, call: Callable[[int], None]) -> None:
        """Have `call` called, in any thread, with every new number: views below it are over."""
