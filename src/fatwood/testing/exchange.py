"""What every `Exchange` must do, as a list of laws. It needs hypothesis: ``pip install hypothesis``.

A new implementation joins by one line::

    @pytest.mark.parametrize("law", EXCHANGE_LAWS, ids=lambda law: law.__name__)
    @pytest.mark.parametrize("make_group", [in_process_group, local_tcp_group, my_group])
    def test_exchange_keeps_the_law(law, make_group):
        law(make_group)

`make_group(size)` returns the connected exchanges of `size` workers by rank. A law closes what it makes.
Its timeout for silent peers should be at least 10 seconds, since no law waits for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fatwood.errors import ExchangeError, PeerLost, ProtocolError
from fatwood.exchange import Exchange
from fatwood.testing.groups import Raised, in_threads, outcomes

__all__ = ["EXCHANGE_LAWS", "MakeGroup"]

T = TypeVar("T")

MakeGroup = Callable[[int], Sequence[Exchange]]
"""Connects a group of so many workers and returns their exchanges by rank."""

_SIZES: Final = (1, 2, 3, 4)


def _errors(calls: Sequence[Callable[[], object]]) -> list[BaseException | None]:
    return [result.error if isinstance(result, Raised) else None for result in outcomes(calls)]


@contextmanager
def _group(make_group: MakeGroup, size: int) -> Iterator[Sequence[Exchange]]:
    group = make_group(size)
    try:
        yield group
    finally:
        for exchange in group:
            exchange.close()


def _each(group: Sequence[Exchange], call: Callable[[Exchange], T]) -> list[T]:
    """Every worker makes the same call, at the same time."""
    return in_threads([partial(call, exchange) for exchange in group])


def _gather(group: Sequence[Exchange], step: int, payloads: Sequence[bytes]) -> list[list[bytes]]:
    """Every worker gives its payload."""
    return in_threads([partial(e.gather, step, payload) for e, payload in zip(group, payloads, strict=True)])


def _mean(
    group: Sequence[Exchange], vectors: Sequence[NDArray[np.float32]], weights: Sequence[float]
) -> list[NDArray[np.float32]]:
    """Every worker gives its vector and weight."""
    return in_threads([partial(e.mean, v, w) for e, v, w in zip(group, vectors, weights, strict=True)])


def gather_returns_the_bytes_of_all_by_rank(make_group: MakeGroup) -> None:
    """Payloads of 0 bytes, 1 byte and unequal lengths, over several steps, at every size."""
    payloads = [b"", b"\x01", b"two", bytes(range(256)) * 20]
    for size in _SIZES:
        with _group(make_group, size) as group:
            assert [(exchange.rank, exchange.size) for exchange in group] == [(r, size) for r in range(size)]
            for step in (0, 1, 2, 1 << 40):
                expected = [payloads[(rank + step) % 4] for rank in range(size)]
                received = _gather(group, step, expected)
                assert received == [expected] * size
                assert all(type(body) is bytes for bodies in received for body in bodies)


def gather_carries_megabytes_both_ways_at_once(make_group: MakeGroup) -> None:
    """Messages far beyond the sockets' buffers do not block each other."""
    for size in (2, 3):
        with _group(make_group, size) as group:
            expected = [bytes([rank + 1]) * (5_000_000 + rank) for rank in range(size)]
            assert _gather(group, 7, expected) == [expected] * size


def workers_may_be_slow_and_fast(make_group: MakeGroup) -> None:
    """A worker that is late, or already in the next call, disturbs nobody."""

    def train(exchange: Exchange) -> list[list[bytes]]:
        received = []
        for step in range(12):
            if (step + exchange.rank) % 3 == 0:
                time.sleep(0.002 * exchange.rank)
            received.append(exchange.gather(step, b"%d at %d" % (exchange.rank, step)))
        return received

    with _group(make_group, 3) as group:
        expected = [[b"%d at %d" % (rank, step) for rank in range(3)] for step in range(12)]
        assert _each(group, train) == [expected] * 3


def mean_is_the_weighted_mean(make_group: MakeGroup) -> None:
    """Against float64, within one rounding; bitwise equal on all workers; for any values, lengths and weights."""
    for size in _SIZES:
        with _group(make_group, size) as group:
            _check_mean(group)


def _check_mean(group: Sequence[Exchange]) -> None:
    value = st.floats(width=32, allow_nan=False, allow_infinity=False)
    weight = st.one_of(st.just(0.0), st.integers(1, 1000).map(float), st.floats(0, 1e308))

    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        n = data.draw(st.integers(0, 9))
        vectors = np.array(
            [data.draw(st.lists(value, min_size=n, max_size=n)) for _ in group], np.float32
        ).reshape(len(group), n)
        weights = [data.draw(weight) for _ in group]
        means = _mean(group, list(vectors), weights)
        assert all(mean.dtype == np.float32 and mean.shape == (n,) for mean in means)
        assert all(mean.tobytes() == means[0].tobytes() for mean in means)
        expected, slack = _reference_mean(vectors, weights)
        assert np.all(np.abs(means[0] - expected) <= slack), (means[0], expected)

    check()


def _reference_mean(
    vectors: NDArray[np.float32], weights: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean in float64 with weights scaled to at most 1, and half a float32 step of it as allowance."""
    heaviest = max(weights)
    if heaviest == 0:
        zeros = np.zeros(vectors.shape[1])
        return zeros, zeros
    shares = np.array([weight / heaviest for weight in weights])
    expected = (shares[:, None] * vectors.astype(np.float64)).sum(axis=0) / shares.sum()
    rounding = np.abs(expected) * 2.0**-24 + 2.0**-150
    return expected, rounding + np.abs(vectors).max(axis=0, initial=0.0).astype(np.float64) * 1e-14


def mean_leaves_out_workers_of_weight_zero(make_group: MakeGroup) -> None:
    """Weight 0 leaves out even NaNs; all weights 0 give zeros; inf and NaN of the others pass through."""
    inputs = [([np.nan, 1.0, 3.0], 0.0), ([2.0, np.inf, 4.0], 1.0), ([6.0, 1.0, np.nan], 3.0)]
    with _group(make_group, 3) as group:
        vectors = [np.array(values, np.float32) for values, _ in inputs]
        means = _mean(group, vectors, [weight for _, weight in inputs])
        assert np.array_equal(means[0], np.array([5.0, np.inf, np.nan], np.float32), equal_nan=True)
        assert all(mean.tobytes() == means[0].tobytes() for mean in means)
        zeros = _mean(group, vectors, [0.0] * 3)
        assert all(mean.tolist() == [0.0, 0.0, 0.0] for mean in zeros)


def mean_sends_each_element_twice(make_group: MakeGroup) -> None:
    """2 n (W-1)/W x 4 bytes for each worker, give or take headers; the input is not touched."""
    n = 400_001
    for size in _SIZES:
        with _group(make_group, size) as group:
            vector = np.linspace(-1, 1, n, dtype=np.float32)
            means = _mean(group, [vector * rank for rank in range(size)], [1.0] * size)
            np.testing.assert_allclose(means[0], vector * ((size - 1) / 2), rtol=1e-6)
            expected = 8 * n * (size - 1) / size
            for exchange in group:
                allowance = 100 * (size - 1)
                assert expected - allowance <= exchange.bytes_sent <= expected + allowance
            assert sum(e.bytes_sent for e in group) == sum(e.bytes_received for e in group)


def counters_count_the_wire(make_group: MakeGroup) -> None:
    """The payload once for each peer, and at most 64 bytes of framing with each."""
    for size in _SIZES:
        with _group(make_group, size) as group:
            _gather(group, 0, [bytes(1000 * (rank + 1)) for rank in range(size)])
            total = 1000 * size * (size + 1) // 2
            for exchange in group:
                own = 1000 * (exchange.rank + 1)
                assert 0 <= exchange.bytes_sent - own * (size - 1) <= 64 * (size - 1)
                assert 0 <= exchange.bytes_received - (total - own) <= 64 * (size - 1)


def barrier_holds_until_all_are_there(make_group: MakeGroup) -> None:
    """Nobody leaves before the last has entered."""
    entered: list[int] = []

    def meet(exchange: Exchange) -> int:
        time.sleep(0.02 * exchange.rank)
        entered.append(exchange.rank)
        exchange.barrier()
        return len(entered)

    with _group(make_group, 4) as group:
        assert _each(group, meet) == [4] * 4


def another_step_is_a_protocol_error(make_group: MakeGroup) -> None:
    """Ranks and both steps are named."""
    with _group(make_group, 2) as group:
        errors = _errors([partial(group[0].gather, 17, b"a"), partial(group[1].gather, 18, b"b")])
        assert all(isinstance(error, ProtocolError) for error in errors), errors
        for error, peer in zip(errors, (1, 0), strict=True):
            assert all(word in str(error) for word in ("17", "18", f"rank {peer}", "gather step")), error
        for exchange in group:  # and the exchange does not go on as if nothing had been
            assert "17" in str(_errors([partial(exchange.gather, 19, b"")])[0])


def one_straggling_step_among_three_is_noticed_by_all(make_group: MakeGroup) -> None:
    """The worker that is apart and those that are not."""
    with _group(make_group, 3) as group:
        errors = _errors([partial(e.gather, 5 + e.rank // 2, b"x") for e in group])
        assert all(isinstance(error, ProtocolError) for error in errors), errors


def another_call_is_a_protocol_error(make_group: MakeGroup) -> None:
    """Gather against mean, mean against barrier: both calls are named."""
    vector = np.ones(3, np.float32)
    with _group(make_group, 2) as group:
        errors = _errors([partial(group[0].gather, 1, b"a"), partial(group[1].mean, vector, 1.0)])
        assert all(isinstance(error, ProtocolError) and "mean" in str(error) for error in errors), errors
    with _group(make_group, 2) as group:
        errors = _errors([partial(group[0].mean, vector, 1.0), group[1].barrier])
        assert all(isinstance(error, ProtocolError) and "barrier 1" in str(error) for error in errors), errors


def vectors_of_unequal_length_are_a_protocol_error(make_group: MakeGroup) -> None:
    """Also when one of them is empty."""
    for lengths in ((5, 6, 5), (0, 0, 1)):
        with _group(make_group, 3) as group:
            vectors = [np.ones(n, np.float32) for n in lengths]
            errors = _errors([partial(e.mean, v, 1.0) for e, v in zip(group, vectors, strict=True)])
            assert all(isinstance(error, ProtocolError) for error in errors), errors
            assert all(re.search(rf"\b{n}\b", str(errors[0])) for n in lengths), errors[0]


def bad_arguments_are_value_errors(make_group: MakeGroup) -> None:
    """They are found before anything is sent, so the group can go on."""
    vector = np.ones(3, np.float32)
    bad: list[Callable[[Exchange], object]] = [
        lambda e: e.mean(vector, -1.0),
        lambda e: e.mean(vector, float("nan")),
        lambda e: e.mean(vector, float("inf")),
        lambda e: e.mean(np.ones(3), 1.0),  # type: ignore[arg-type]
        lambda e: e.mean(np.ones((3, 1), np.float32), 1.0),
        lambda e: e.gather(-1, b""),
    ]
    with _group(make_group, 2) as group:
        for call in bad:
            for error in _errors([partial(call, exchange) for exchange in group]):
                assert isinstance(error, ValueError), error
        assert _gather(group, 1, [b"ok"] * 2) == [[b"ok", b"ok"]] * 2


def close_wakes_those_who_wait_for_it(make_group: MakeGroup) -> None:
    """Peers get `PeerLost` naming the rank, at once; later calls too."""
    with _group(make_group, 3) as group:

        def leave() -> None:
            time.sleep(0.1)
            group[2].close()

        begin = time.monotonic()
        errors = _errors([partial(group[0].gather, 3, b"a"), partial(group[1].gather, 3, b"b"), leave])
        assert time.monotonic() - begin < 5
        for error in errors[:2]:
            assert isinstance(error, PeerLost), error
            assert "rank 2" in str(error)
            assert "gather step 3" in str(error)
        assert errors[2] is None


def close_wakes_its_own_blocked_call(make_group: MakeGroup) -> None:
    """A second thread closes the exchange whose call is blocked."""
    with _group(make_group, 2) as group:

        def close_own() -> None:
            time.sleep(0.1)
            group[0].close()

        begin = time.monotonic()
        errors = _errors([partial(group[0].gather, 3, b"a"), close_own])
        assert time.monotonic() - begin < 5
        assert isinstance(errors[0], ExchangeError), errors


def a_closed_exchange_refuses_calls(make_group: MakeGroup) -> None:
    """Close is idempotent, also as a context manager, and a closed exchange says so."""
    for size in (1, 2):
        with _group(make_group, size) as group:
            with group[0] as exchange:
                pass
            exchange.close()
            for call in (exchange.barrier, partial(exchange.gather, 0, b"")):
                error = _errors([call])[0]
                assert isinstance(error, ExchangeError), error
                assert "closed" in str(error)


def what_was_delivered_before_a_close_counts(make_group: MakeGroup) -> None:
    """A worker that leaves right after its call does not spoil that call for the others."""

    def gather_and_leave(exchange: Exchange) -> list[bytes]:
        received = exchange.gather(0, bytes([exchange.rank]) * 200_000)
        exchange.close()
        return received

    with _group(make_group, 3) as group:
        expected = [bytes([rank]) * 200_000 for rank in range(3)]
        assert _each(group, gather_and_leave) == [expected] * 3


EXCHANGE_LAWS: Final[tuple[Callable[[MakeGroup], None], ...]] = (
    gather_returns_the_bytes_of_all_by_rank,
    gather_carries_megabytes_both_ways_at_once,
    workers_may_be_slow_and_fast,
    mean_is_the_weighted_mean,
    mean_leaves_out_workers_of_weight_zero,
    mean_sends_each_element_twice,
    counters_count_the_wire,
    barrier_holds_until_all_are_there,
    another_step_is_a_protocol_error,
    one_straggling_step_among_three_is_noticed_by_all,
    another_call_is_a_protocol_error,
    vectors_of_unequal_length_are_a_protocol_error,
    bad_arguments_are_value_errors,
    close_wakes_those_who_wait_for_it,
    close_wakes_its_own_blocked_call,
    a_closed_exchange_refuses_calls,
    what_was_delivered_before_a_close_counts,
)
"""Every law an exchange must keep; each takes a `MakeGroup` and raises when the law is broken."""
