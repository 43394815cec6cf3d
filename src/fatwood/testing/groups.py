"""Groups of workers in the threads of one process, for tests: how they are made, over loopback TCP too, and run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

from fatwood.exchange import Exchange, Listener, Lobby, Peer, TcpExchange, View, new_secret
from fatwood.exchange.auth import MESH
from fatwood.exchange.grid import TWO_LEVEL_FROM
from fatwood.exchange.tls import Identity

__all__ = [
    "MakeGroup",
    "Raised",
    "connected",
    "each",
    "errors_of",
    "in_threads",
    "local_tcp_group",
    "outcomes",
]

T = TypeVar("T")

_PATIENCE_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Raised:
    """The outcome of a call that raised."""

    error: BaseException


def in_threads(calls: Sequence[Callable[[], T]], *, timeout_seconds: float = _PATIENCE_SECONDS) -> list[T]:
    """Run each call in a thread of its own and return the results in order.

    Args:
        calls: What the workers do, by rank.
        timeout_seconds: How long all may take together.

    Raises:
        TimeoutError: A call has not ended in time.
        BaseException: What the first failing call (in order) raised; all have ended by then.
    """
    results: list[T] = []
    for outcome in outcomes(calls, timeout_seconds=timeout_seconds):
        if isinstance(outcome, Raised):
            raise outcome.error
        results.append(outcome)
    return results


def outcomes(
    calls: Sequence[Callable[[], T]], *, timeout_seconds: float = _PATIENCE_SECONDS
) -> list[T | Raised]:
    """Run each call in a thread of its own and return what each returned or `Raised`, in order.

    Raises:
        TimeoutError: A call has not ended in time.
    """
    results: dict[int, T | Raised] = {}

    def run(index: int, call: Callable[[], T]) -> None:
        try:
            results[index] = call()
        except BaseException as error:
            results[index] = Raised(error)

    threads = [
        threading.Thread(target=run, args=(index, call), name=f"worker-{index}", daemon=True)
        for index, call in enumerate(calls)
    ]
    deadline = time.monotonic() + timeout_seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = [thread.name for thread in threads if thread.is_alive()]
    if late:
        message = f"not finished after {timeout_seconds:g} seconds: {', '.join(late)}"
        raise TimeoutError(message)
    return [results[index] for index in range(len(calls))]


class MakeGroup(Protocol):
    """Connects a group of `size` workers, of these ranks if any are given, and returns their exchanges by rank."""

    def __call__(self, size: int, *, ranks: Sequence[int] | None = None) -> Sequence[Exchange]:
        """See above."""
        ...


@contextmanager
def connected(
    make_group: MakeGroup, size: int, ranks: Sequence[int] | None = None
) -> Iterator[Sequence[Exchange]]:
    """A group that is closed afterwards."""
    group = make_group(size) if ranks is None else make_group(size, ranks=ranks)
    try:
        yield group
    finally:
        for exchange in group:
            exchange.close()


def each(group: Sequence[Exchange], call: Callable[[Exchange], T]) -> list[T]:
    """Every worker makes the same call, at the same time."""
    return in_threads([partial(call, exchange) for exchange in group])


def errors_of(calls: Sequence[Callable[[], object]]) -> list[BaseException | None]:
    """Run each call in a thread of its own and return what each raised, None for one that returned."""
    return [result.error if isinstance(result, Raised) else None for result in outcomes(calls)]


def local_tcp_group(
    size: int,
    *,
    ranks: Sequence[int] | None = None,
    timeout_seconds: float = 20.0,
    max_message_bytes: int = 1 << 26,
    tls: Identity | None = None,
    two_level_from: int = TWO_LEVEL_FROM,
) -> list[Exchange]:
    """Connect `size` workers of this process over the loopback network; their lobbies are closed again.

    Args:
        size: How many workers.
        ranks: Their numbers, increasing; 0, 1, 2, ... by default.
        timeout_seconds: How long a peer may be silent.
        max_message_bytes: The longest message.
        tls: The job's identity, for connections that are encrypted.
        two_level_from: See `Exchange`.

    Returns:
        One exchange for each worker; close all of them.
    """
    secret = new_secret()
    lobbies = [Lobby(Listener(host="127.0.0.1", secret=secret, purpose=MESH, tls=tls)) for _ in range(size)]
    numbers = range(size) if ranks is None else ranks
    peers = tuple(Peer(rank, *lobby.listener.address) for rank, lobby in zip(numbers, lobbies, strict=True))

    def connect(peer: Peer, lobby: Lobby) -> Exchange:
        return TcpExchange.connect(
            View(1, peer.rank, peers),
            lobby,
            secret,
            timeout_seconds=timeout_seconds,
            max_message_bytes=max_message_bytes,
            tls=tls,
            two_level_from=two_level_from,
        )

    try:
        return in_threads([partial(connect, *pair) for pair in zip(peers, lobbies, strict=True)])
    finally:
        for lobby in lobbies:
            lobby.close()
