"""Groups of workers in the threads of one process, for tests: over loopback TCP, and how to run them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from fatwood.exchange import Exchange, Listener, Peer, TcpExchange, View, new_secret
from fatwood.exchange.auth import MESH

__all__ = ["Raised", "in_threads", "local_tcp_group", "outcomes"]

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


def local_tcp_group(
    size: int, *, timeout_seconds: float = 20.0, max_message_bytes: int = 1 << 26
) -> list[Exchange]:
    """Connect `size` workers of this process over the loopback network; their listeners are closed again.

    Args:
        size: How many workers.
        timeout_seconds: How long a peer may be silent.
        max_message_bytes: The longest message.

    Returns:
        One exchange for each rank; close all of them.
    """
    secret = new_secret()
    listeners = [Listener(host="127.0.0.1", secret=secret, purpose=MESH) for _ in range(size)]
    peers = tuple(Peer(rank, *listener.address) for rank, listener in enumerate(listeners))

    def connect(rank: int) -> Exchange:
        return TcpExchange.connect(
            View(rank, peers),
            listeners[rank],
            secret,
            timeout_seconds=timeout_seconds,
            max_message_bytes=max_message_bytes,
        )

    try:
        return in_threads([partial(connect, rank) for rank in range(size)])
    finally:
        for listener in listeners:
            listener.close()
