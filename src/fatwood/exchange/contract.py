"""What every exchange among workers can do: gather and swap bytes, average vectors, meet at a barrier.

An exchange belongs to one worker. All workers of a group call the same methods in the same order; each call is
one or two all-to-all rounds of an implementation's single primitive, `_swap`. The methods are final: an
implementation moves bytes and nothing else, so every implementation gives bitwise the same results.

A worker's rank is its number in the job; ranks may have gaps. Its position is its place among the group's
increasing ranks. Lists with one entry for each worker are in order of position; texts name ranks.

Letters: W workers, n elements of a vector, position i in 0 .. W-1.
"""

from __future__ import annotations

import itertools
import math
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import IntEnum
from types import TracebackType
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from fatwood.errors import ExchangeError, OptionError, ProtocolError
from fatwood.exchange.grid import LEAST_WORKERS, TWO_LEVEL_FROM, Grid, pack_bundle, unpack_bundle
from fatwood.exchange.mean import checked_vector, checked_weight, weighted_mean
from fatwood.exchange.view import are_ranks

__all__ = ["Buffer", "Exchange", "describe_tag", "is_bundle"]

Buffer = bytes | bytearray | memoryview
"""Bytes as they are handed around."""

_NUMBER_BITS: Final = 56
_MEAN_PREFIX: Final = struct.Struct("<Qd")  # n u64, weight f64
_NOTICEABLE_SECONDS: Final = 2e-3  # who waited for less in a row came last itself


class _Operation(IntEnum):
    """The upper byte of a tag: which call a message belongs to."""

    GATHER = 1
    MEAN_SCATTER = 2
    MEAN_COLLECT = 3
    BARRIER = 4
    SWAP = 5
    GATHER_ROWS = 6


_NAMES: Final = {
    _Operation.GATHER: "gather step",
    _Operation.MEAN_SCATTER: "first round of mean",
    _Operation.MEAN_COLLECT: "second round of mean",
    _Operation.BARRIER: "barrier",
    _Operation.SWAP: "swap step",
    _Operation.GATHER_ROWS: "second round of gather step",
}


class Exchange(ABC):
    """One worker's end of the exchange among a group of workers.

    Used by one thread at a time; only `close` may be called from another thread at any moment. After an error
    the group's streams are no longer in step, so every further call raises `ExchangeError` until `close`.

    Args:
        rank: This worker's number in the job.
        ranks: The numbers of all workers of the group, increasing, the own one included.
        two_level_from: From how many workers on `gather` goes in two rounds of few messages (`Grid`); the same on all.

    Attributes:
        rank: As above.
        ranks: As above.
        size: How many workers exchange, W.
        position: The own place among `ranks`.
        bytes_sent: Bytes this worker has put on the wire, framing included.
        bytes_received: Bytes this worker has taken from the wire, framing included.
        waited_seconds: How long this worker has waited in exchanges, by the rank of the peer whose message came
            last: the time from the start of a round to the end of its last message. An entry for each peer.
    """

    def __init__(self, rank: int, ranks: Sequence[int], *, two_level_from: int = TWO_LEVEL_FROM) -> None:
        if not are_ranks(ranks) or rank not in ranks:
            message = (
                f"Exchange: expected increasing ranks that include the own one, received rank={rank}, "
                f"ranks={list(ranks)}"
            )
            raise OptionError(message, hint="a rank is a worker's number in the job; ranks may have gaps")
        self.rank: Final = rank
        self.ranks: Final = tuple(ranks)
        self.size: Final = len(self.ranks)
        self.position: Final = self.ranks.index(rank)
        two_level = self.size >= max(two_level_from, LEAST_WORKERS)
        self._grid: Final = Grid(self.size, self.position) if two_level else None
        self.bytes_sent = 0
        self.bytes_received = 0
        self.waited_seconds = {peer: 0.0 for peer in self.ranks if peer != rank}
        self._swapping = threading.Lock()  # held during _swap; _close may take it after waking the swap
        self._closing = threading.Lock()
        self._closed = False
        self._failure: str | None = None
        self._last_wait: tuple[int, float] | None = None
        self._means = 0
        self._barriers = 0

    @abstractmethod
    def _swap(self, tag: int, outgoing: Mapping[int, Buffer]) -> dict[int, Buffer]:
        """Give outgoing[i] to the worker at position i and return what each of them gave to this one.

        Called with `_swapping` held. Each of these workers has an entry for this one in the same call; there need not be
        one for every worker. The entry of this worker itself, if there is one, is returned as it is. A message is complete
        or absent; a message whose tag differs is answered with `_mismatch`. Must return or raise within
        the implementation's timeout, and at once when `_close` is called or a needed peer is gone. Tells
        `_waited_for` who came last, when there are peers.

        Args:
            tag: 64-bit number that must be the same on all workers; `describe_tag` says it in words.
            outgoing: Messages by position.

        Returns:
            A message from each of these positions, and from no other.

        Raises:
            PeerLost: A peer closed its end or was silent for too long.
            ProtocolError: A peer sent another tag, or bytes that make no sense.
        """

    @abstractmethod
    def _close(self) -> None:
        """Wake a blocked `_swap`, tell the peers, free everything. Called once, without `_swapping` held."""

    @final
    def gather(self, step: int, payload: Buffer) -> list[bytes]:
        """Give this worker's bytes to all and return everybody's: in one round trip, or in two among many workers.

        Args:
            step: The step these bytes belong to; must be the same on all workers, 0 <= step < 2**56.
            payload: This worker's bytes; lengths may differ between workers.

        Returns:
            The bytes of every worker by position, own included.

        Raises:
            ProtocolError: A peer is at another step; the message names its rank and both steps.
            PeerLost: A peer closed its connection or was silent for too long.
            ExchangeError: This exchange is closed or has failed before.
        """
        _check_step("Exchange.gather", step)
        if self._grid is not None:
            return self._gather_by_rows(self._grid, step, bytes(payload))
        received = self._run_with_all(_Operation.GATHER, step, [bytes(payload)] * self.size)
        return [bytes(body) for body in received]

    @final
    def swap(self, step: int, outgoing: Sequence[Buffer]) -> list[bytes]:
        """Give each worker bytes of its own and return what each gave to this one, in one round trip.

        Args:
            step: The step these bytes belong to; must be the same on all workers, 0 <= step < 2**56.
            outgoing: The bytes for each worker by position, own included (W of them); b"" where there are none.

        Returns:
            The bytes from each worker by position; the own entry comes back.

        Raises:
            OptionError: The number of messages is not W, or the step is out of range.
            ProtocolError: A peer is at another step or call; the message names its rank and both steps.
            PeerLost: A peer closed its connection or was silent for too long.
            ExchangeError: This exchange is closed or has failed before.
        """
        _check_step("Exchange.swap", step)
        if len(outgoing) != self.size:
            message = f"Exchange.swap: expected {self.size} messages, one for each of the ranks {list(self.ranks)}, received {len(outgoing)}"
            raise OptionError(message)
        received = self._run_with_all(_Operation.SWAP, step, [bytes(body) for body in outgoing])
        return [bytes(body) for body in received]

    @final
    def mean(self, vector: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
        """Return the weighted mean of all workers' vectors, bitwise the same on every worker.

        The mean is sum_i(w_i v_i) / sum_i(w_i): products and sums in float64 in order of rank, rounded once to
        float32. A worker of weight 0 contributes nothing, not even its NaNs. The worker at position i averages
        the i-th of W segments (reduce-scatter) and gives it to all (all-gather), so each worker sends
        2 n (W-1)/W x 4 bytes and 16 bytes to each peer besides.

        Args:
            vector: float32 of shape (n,), v_i; n may be 0 and must be the same on all workers.
            weight: w_i, finite and not negative, for instance the number of rows behind `vector`.

        Returns:
            float32 of shape (n,), a new array; all zero when the weights sum to 0.

        Raises:
            OptionError: `vector` is not one-dimensional float32, or `weight` is negative or not finite.
            ProtocolError: A peer's vector has another length.
            PeerLost: A peer closed its connection or was silent for too long.
        """
        vector, weight = checked_vector(vector), checked_weight(weight)
        self._means += 1
        bounds = [vector.size * i // self.size for i in range(self.size + 1)]
        slices = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
        prefix = _MEAN_PREFIX.pack(vector.size, weight)
        little = vector.astype("<f4", copy=False)
        outgoing: list[Buffer] = [b"".join((prefix, little[piece].tobytes())) for piece in slices]
        received = self._run_with_all(_Operation.MEAN_SCATTER, self._means, outgoing)
        own = slices[self.position]
        terms = [
            self._mean_term(peer, body, vector.size, own)
            for peer, body in zip(self.ranks, received, strict=True)
        ]
        segment = weighted_mean(terms, own.stop - own.start).astype("<f4", copy=False).tobytes()
        collected = self._run_with_all(_Operation.MEAN_COLLECT, self._means, [segment] * self.size)
        result = np.empty(vector.size, np.float32)
        for peer, piece, body in zip(self.ranks, slices, collected, strict=True):
            if len(body) != 4 * (piece.stop - piece.start):
                message = (
                    f"rank {self.rank}: mean {self._means}: expected a segment of "
                    f"{piece.stop - piece.start} float32 from rank {peer}, received {len(body)} bytes"
                )
                raise self._fail(ProtocolError(message))
            result[piece] = np.frombuffer(body, "<f4")
        return result

    @final
    def barrier(self) -> None:
        """Return when all workers have entered their barrier.

        Raises:
            ProtocolError: A peer called another method.
            PeerLost: A peer closed its connection or was silent for too long.
        """
        self._barriers += 1
        self._run_with_all(_Operation.BARRIER, self._barriers, [b""] * self.size)

    @final
    def close(self) -> None:
        """Leave the group; idempotent, from any thread.

        A thread blocked in a call of this exchange gets `ExchangeError`, peers that wait for this worker get `PeerLost`.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._close()

    @final
    def __enter__(self) -> Exchange:
        return self

    @final
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @final
    def _gather_by_rows(self, grid: Grid, step: int, payload: bytes) -> list[bytes]:
        """`gather` in two rounds, see `fatwood.exchange.grid`."""
        first, wait = self._run(_Operation.GATHER, step, dict.fromkeys(grid.row, payload))
        latest = self.position
        if wait is not None and wait[1] > _NOTICEABLE_SECONDS:
            latest = self.ranks.index(wait[0])
            self._book(wait)
        bodies = {position: bytes(first[position]) for position in grid.row}
        bundle = pack_bundle(list(bodies.values()), latest - grid.row[0])
        outgoing = {other: bundle if other in grid.sends_to else b"" for other in sorted(grid.partners)}
        second, wait = self._run(_Operation.GATHER_ROWS, step, outgoing)
        blamed: dict[int, int] = {}
        for giver, row in grid.receives.items():
            try:
                messages, late = unpack_bundle(bytes(second[giver]), len(row))
            except ProtocolError as error:
                message = f"rank {self.rank}: rank {self.ranks[giver]}: {error.message}"
                raise self._fail(ProtocolError(message)) from None
            bodies.update(zip(row, messages, strict=True))
            blamed[self.ranks[giver]] = self.ranks[row[late]]
        if wait is not None:
            self._book((blamed.get(wait[0], wait[0]), wait[1]))
        return [bodies[position] for position in range(self.size)]

    @final
    def _run_with_all(self, operation: _Operation, number: int, outgoing: Sequence[Buffer]) -> list[Buffer]:
        """One round with everybody; `outgoing` and what is returned are by position."""
        received, wait = self._run(operation, number, dict(enumerate(outgoing)))
        if wait is not None:
            self._book(wait)
        return [received[position] for position in range(self.size)]

    @final
    def _run(
        self, operation: _Operation, number: int, outgoing: Mapping[int, Buffer]
    ) -> tuple[dict[int, Buffer], tuple[int, float] | None]:
        """The guard around `_swap`: refuses a closed or failed exchange and remembers a failure.

        Returns:
            What came, and whose message came last, after how many seconds (None without peers).
        """
        tag = operation << _NUMBER_BITS | number
        with self._swapping:
            if self._closed:
                raise self._closed_error(tag)
            if self._failure is not None:
                message = (
                    f"rank {self.rank}: {describe_tag(tag)}: this exchange has failed before: {self._failure}"
                )
                raise ExchangeError(message, hint="close it on all workers and connect a new group")
            self._last_wait = None
            try:
                return self._swap(tag, outgoing), self._last_wait
            except BaseException as error:  # an interrupt, too, leaves half a message behind
                self._failure = getattr(error, "message", None) or repr(error)
                raise

    @final
    def _waited_for(self, peer: int, seconds: float) -> None:
        """Say whose message came last in this round, and how long after its start."""
        self._last_wait = peer, seconds

    @final
    def _book(self, wait: tuple[int, float]) -> None:
        peer, seconds = wait
        self.waited_seconds[peer] += seconds

    @final
    def _fail(self, error: ExchangeError) -> ExchangeError:
        self._failure = error.message
        return error

    @final
    def _closed_error(self, tag: int) -> ExchangeError:
        """The error of a call on an exchange whose own `close` was called."""
        return ExchangeError(f"rank {self.rank}: {describe_tag(tag)}: this worker's exchange was closed")

    @final
    def _mismatch(self, peer: int, expected: int, received: int) -> ProtocolError:
        """The error of a peer's message with another tag."""
        message = (
            f"rank {self.rank} is at {describe_tag(expected)}, but rank {peer} sent a message of "
            f"{describe_tag(received)}"
        )
        return ProtocolError(message, hint="all workers must make the same calls in the same order")

    @final
    def _mean_term(self, peer: int, body: Buffer, n: int, own: slice) -> tuple[float, NDArray[np.float32]]:
        """Check and read one worker's part of the first round: its weight and its piece of the own segment."""
        if len(body) < _MEAN_PREFIX.size:
            message = f"rank {self.rank}: mean: expected at least {_MEAN_PREFIX.size} bytes from rank {peer}, received {len(body)}"
            raise self._fail(ProtocolError(message))
        length, weight = _MEAN_PREFIX.unpack_from(body)
        if length != n:
            message = f"rank {self.rank} averages a vector of {n} elements, but rank {peer} one of {length}"
            raise self._fail(ProtocolError(message, hint="all workers must hold the same network"))
        expected = _MEAN_PREFIX.size + 4 * (own.stop - own.start)
        if len(body) != expected or not (math.isfinite(weight) and weight >= 0):
            message = (
                f"rank {self.rank}: mean: expected {expected} bytes and a finite weight >= 0 from rank {peer}, "
                f"received {len(body)} bytes and the weight {weight}"
            )
            raise self._fail(ProtocolError(message))
        return weight, np.frombuffer(body, "<f4", offset=_MEAN_PREFIX.size)


def describe_tag(tag: int) -> str:
    """Say a tag in words, for messages: "gather step 17"."""
    operation, number = tag >> _NUMBER_BITS, tag & ((1 << _NUMBER_BITS) - 1)
    try:
        return f"{_NAMES[_Operation(operation)]} {number}"
    except ValueError:
        return f"unknown operation {operation}, number {number}"


def is_bundle(tag: int) -> bool:
    """Whether messages of this tag hold those of several workers."""
    return tag >> _NUMBER_BITS == _Operation.GATHER_ROWS


def _check_step(where: str, step: int) -> None:
    if not 0 <= step < 1 << _NUMBER_BITS:
        message = f"{where}: expected 0 <= step < 2**{_NUMBER_BITS}, received {step}"
        raise OptionError(message)
