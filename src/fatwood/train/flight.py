"""A round that is on its way while this worker computes: the thread behind ``staleness=1``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from fatwood.exchange import Outcome

__all__ = ["Flight"]


class Flight:
    """Plays rounds in a thread of its own, one at a time.

    A context manager; its end waits for the last round, which is bounded by the exchange's own timeout.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fatwood-flight")

    def during(self, play: Callable[[], Outcome], compute: Callable[[], None]) -> Outcome:
        """Play a round and compute at the same time.

        Raises:
            Exception: What computing raised, as soon as the round is over; else what the round raised.
        """
        outcome = self._thread.submit(play)
        try:
            compute()
        except BaseException:
            outcome.exception()  # the peers still need this worker's end of the round
            raise
        return outcome.result()

    def __enter__(self) -> Flight:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
