"""What every `Exchange` must do, as a list of laws. It needs hypothesis: ``pip install hypothesis``.

A new implementation joins by one line::

    @pytest.mark.parametrize("law", EXCHANGE_LAWS, ids=lambda law: law.__name__)
    @pytest.mark.parametrize("make_group", [in_process_group, local_tcp_group, my_group])
    def test_exchange_keeps_the_law(law, make_group):
        law(make_group)

`make_group(size)` returns the connected exchanges of `size` workers with the ranks 0, 1, 2, ...;
`make_group(size, ranks=...)` those of workers with these ranks. A law closes what it makes.
Its timeout for silent peers should be at least 10 seconds, since no law waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np

from fatwood.errors import ExchangeError, PeerLost, ProtocolError
from fatwood.exchange import Exchange
from fatwood.testing.groups import MakeGroup, connected, each, errors_of, in_threads
from fatwood.testing.mean import MEAN_LAWS, mean_of_all

__all__ = ["EXCHANGE_LAWS"]

_SIZES: Final = (1, 2, 3, 4, 5, 7)  # on a grid one row, square, and rows that differ


def _gather(group: Sequence[Exchange], step: int, payloads: Sequence[bytes]) -> list[list[bytes]]:
    """Every worker gives its payload."""
    return in_threads([partial(e.gather, step, payload) for e, payload in zip(group, payloads, strict=True)])


def gather_returns_the_bytes_of_all_by_rank(make_group: MakeGroup) -> None:
    """Payloads of 0 bytes, 1 byte and unequal lengths, over several steps, at every size."""
    payloads = [b"", b"\x01", b"two", bytes(range(256)) * 20]
    for size in _SIZES:
        with connected(make_group, size) as group:
            assert [(exchange.rank, exchange.size) for exchange in group] == [(r, size) for r in range(size)]
            for step in (0, 1, 2, 1 << 40):
                expected = [payloads[(rank + step) % 4] for rank in range(size)]
                received = _gather(group, step, expected)
                assert received == [expected] * size
                assert all(type(body) is bytes for bodies in received for body in bodies)


def gather_carries_megabytes_both_ways_at_once(make_group: MakeGroup) -> None:
    """Messages far beyond the sockets' buffers do not block each other."""
    for size in (2, 3):
        with connected(make_group, size) as group:
            expected = [bytes([rank + 1]) * (5_000_000 + rank) for rank in range(size)]
            assert _gather(group, 7, expected) == [expected] * size


def swap_gives_each_worker_its_own_bytes(make_group: MakeGroup) -> None:
    """What i gives to j is what j gets from i; nothing, bytes of other types and megabytes, at every size."""
    for size in _SIZES:
        with connected(make_group, size) as group:
            for step, unit in enumerate((0, 1, 500_000)):
                outgoing = [[bytes([i, j]) * (unit * (i + 2 * j)) for j in range(size)] for i in range(size)]
                views = [[memoryview(bytearray(body)) for body in bodies] for bodies in outgoing]
                received = in_threads(
                    [partial(e.swap, step, bodies) for e, bodies in zip(group, views, strict=True)]
                )
                assert received == [[outgoing[i][j] for i in range(size)] for j in range(size)]
                assert all(type(body) is bytes for bodies in received for body in bodies)


def swap_sends_each_message_once(make_group: MakeGroup) -> None:
    """The own message is not sent, and nobody gets another's."""
    with connected(make_group, 3) as group:
        in_threads([partial(e.swap, 0, [bytes(1000), bytes(20_000), bytes(300_000)]) for e in group])
        for exchange, sent, got in zip(
            group, (320_000, 301_000, 21_000), (2000, 40_000, 600_000), strict=True
        ):
            assert 0 <= exchange.bytes_sent - sent <= 64 * 2
            assert 0 <= exchange.bytes_received - got <= 64 * 2


def ranks_may_have_gaps(make_group: MakeGroup) -> None:
    """Results are those of a group without gaps, by position; errors name ranks."""
    ranks = (0, 2, 5)
    vectors = [np.linspace(-k, 1, 100, dtype=np.float32) for k in range(3)]
    payloads = [b"zero", b"two", b"five"]
    with connected(make_group, 3) as plain:
        means = mean_of_all(plain, vectors, [1.0, 2.0, 3.0])
    with connected(make_group, 3, ranks) as group:
        assert [(e.rank, e.ranks, e.size, e.position) for e in group] == [
            (rank, ranks, 3, position) for position, rank in enumerate(ranks)
        ]
        assert _gather(group, 0, payloads) == [payloads] * 3
        gapped = mean_of_all(group, vectors, [1.0, 2.0, 3.0])
        assert [mean.tobytes() for mean in gapped] == [mean.tobytes() for mean in means]
        swapped = in_threads([partial(e.swap, 1, [b"%d to %d" % (e.rank, r) for r in ranks]) for e in group])
        assert swapped == [[b"%d to %d" % (sender, r) for sender in ranks] for r in ranks]
        assert [set(e.waited_seconds) for e in group] == [{2, 5}, {0, 5}, {0, 2}]
        group[2].close()
        for error in errors_of([partial(e.gather, 2, b"") for e in group[:2]]):
            assert isinstance(error, PeerLost), error
            assert "rank 5" in str(error)
            assert error.rank == 5
    with connected(make_group, 2, (3, 7)) as group:
        errors = errors_of([partial(group[0].gather, 17, b"a"), partial(group[1].gather, 18, b"b")])
        assert "rank 3 is at" in str(errors[0])
        assert "rank 7 sent" in str(errors[0])
    with connected(make_group, 1, (4,)) as (alone,):
        assert (alone.rank, alone.ranks, alone.position) == (4, (4,), 0)
        assert alone.swap(0, [b"x"]) == [b"x"]


def waits_are_booked_on_who_came_last(make_group: MakeGroup) -> None:
    """Those in time wait for the late one, who waits for nobody; a worker alone has nobody to wait for."""
    late_seconds = 0.8  # a busy machine makes the others late, too
    calls: list[Callable[[Exchange], object]] = [
        lambda e: e.gather(0, b"x"),
        lambda e: e.swap(1, [b"x"] * 3),
        lambda e: e.mean(np.ones(5, np.float32), 1.0),
        lambda e: e.barrier(),
    ]

    def work(call: Callable[[Exchange], object], exchange: Exchange) -> None:
        exchange.barrier()
        if exchange.position == 1:
            time.sleep(late_seconds)
        call(exchange)

    for call in calls:
        with connected(make_group, 3, (0, 2, 5)) as group:
            each(group, partial(work, call))
            for early, other in ((group[0], 5), (group[2], 0)):
                assert 0.8 * late_seconds < early.waited_seconds[2] < 10 * late_seconds
                assert early.waited_seconds[other] < 0.5 * late_seconds
            assert sum(group[1].waited_seconds.values()) < 0.5 * late_seconds
    with connected(make_group, 1) as (alone,):
        alone.barrier()
        assert alone.waited_seconds == {}


def workers_may_be_slow_and_fast(make_group: MakeGroup) -> None:
    """A worker that is late, or already in the next call, disturbs nobody."""

    def train(exchange: Exchange) -> list[list[bytes]]:
        received = []
        for step in range(12):
            if (step + exchange.rank) % 3 == 0:
                time.sleep(0.002 * exchange.rank)
            received.append(exchange.gather(step, b"%d at %d" % (exchange.rank, step)))
        return received

    with connected(make_group, 3) as group:
        expected = [[b"%d at %d" % (rank, step) for rank in range(3)] for step in range(12)]
        assert each(group, train) == [expected] * 3


def counters_count_the_wire(make_group: MakeGroup) -> None:
    """Each payload once to each peer, by whichever way, and at most 64 bytes of framing for each."""
    for size in _SIZES:
        with connected(make_group, size) as group:
            _gather(group, 0, [bytes(1000 * (rank + 1)) for rank in range(size)])
            total, framing = 1000 * size * (size + 1) // 2, 64 * (size - 1)
            for exchange in group:
                own = 1000 * (exchange.rank + 1)
                assert 0 <= exchange.bytes_received - (total - own) <= framing
                if size <= 3:  # of more, one may hand on what others have sent
                    assert 0 <= exchange.bytes_sent - own * (size - 1) <= framing
            sent = sum(exchange.bytes_sent for exchange in group)
            assert sent == sum(exchange.bytes_received for exchange in group)


def barrier_holds_until_all_are_there(make_group: MakeGroup) -> None:
    """Nobody leaves before the last has entered."""
    entered: list[int] = []

    def meet(exchange: Exchange) -> int:
        time.sleep(0.02 * exchange.rank)
        entered.append(exchange.rank)
        exchange.barrier()
        return len(entered)

    with connected(make_group, 4) as group:
        assert each(group, meet) == [4] * 4


def another_step_is_a_protocol_error(make_group: MakeGroup) -> None:
    """Ranks and both steps are named."""
    with connected(make_group, 2) as group:
        errors = errors_of([partial(group[0].gather, 17, b"a"), partial(group[1].gather, 18, b"b")])
        assert all(isinstance(error, ProtocolError) for error in errors), errors
        for error, peer in zip(errors, (1, 0), strict=True):
            assert all(word in str(error) for word in ("17", "18", f"rank {peer}", "gather step")), error
        for exchange in group:  # and the exchange does not go on as if nothing had been
            assert "17" in str(errors_of([partial(exchange.gather, 19, b"")])[0])


def one_straggling_step_among_three_is_noticed_by_all(make_group: MakeGroup) -> None:
    """The worker that is apart and those that are not."""
    with connected(make_group, 3) as group:
        errors = errors_of([partial(e.gather, 5 + e.rank // 2, b"x") for e in group])
        assert all(isinstance(error, ProtocolError) for error in errors), errors


def another_call_is_a_protocol_error(make_group: MakeGroup) -> None:
    """Gather against mean, mean against barrier, swap against gather: both calls are named."""
    vector = np.ones(3, np.float32)
    with connected(make_group, 2) as group:
        errors = errors_of([partial(group[0].gather, 1, b"a"), partial(group[1].mean, vector, 1.0)])
        assert all(isinstance(error, ProtocolError) and "mean" in str(error) for error in errors), errors
    with connected(make_group, 2) as group:
        errors = errors_of([partial(group[0].mean, vector, 1.0), group[1].barrier])
        assert all(isinstance(error, ProtocolError) and "barrier 1" in str(error) for error in errors), errors
    with connected(make_group, 2) as group:
        errors = errors_of([partial(group[0].swap, 6, [b"a"] * 2), partial(group[1].gather, 6, b"a")])
        for error in errors:
            assert isinstance(error, ProtocolError), error
            assert "swap step 6" in str(error)
            assert "gather step 6" in str(error)


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
        lambda e: e.swap(-1, [b""] * 2),
        lambda e: e.swap(0, [b""] * 3),
    ]
    with connected(make_group, 2) as group:
        for call in bad:
            for error in errors_of([partial(call, exchange) for exchange in group]):
                assert isinstance(error, ValueError), error
        assert _gather(group, 1, [b"ok"] * 2) == [[b"ok", b"ok"]] * 2


def close_wakes_those_who_wait_for_it(make_group: MakeGroup) -> None:
    """Peers get `PeerLost` naming the rank, at once; later calls too."""
    with connected(make_group, 3) as group:

        def leave() -> None:
            time.sleep(0.1)
            group[2].close()

        begin = time.monotonic()
        errors = errors_of([partial(group[0].gather, 3, b"a"), partial(group[1].gather, 3, b"b"), leave])
        assert time.monotonic() - begin < 5
        for error in errors[:2]:
            assert isinstance(error, PeerLost), error
            assert "rank 2" in str(error)
            assert "gather step 3" in str(error)
        assert errors[2] is None


def close_wakes_its_own_blocked_call(make_group: MakeGroup) -> None:
    """A second thread closes the exchange whose call is blocked."""
    with connected(make_group, 2) as group:

        def close_own() -> None:
            time.sleep(0.1)
            group[0].close()

        begin = time.monotonic()
        errors = errors_of([partial(group[0].gather, 3, b"a"), close_own])
        assert time.monotonic() - begin < 5
        assert isinstance(errors[0], ExchangeError), errors


def a_closed_exchange_refuses_calls(make_group: MakeGroup) -> None:
    """Close is idempotent, also as a context manager, and a closed exchange says so."""
    for size in (1, 2):
        with connected(make_group, size) as group:
            with group[0] as exchange:
                pass
            exchange.close()
            for call in (exchange.barrier, partial(exchange.gather, 0, b"")):
                error = errors_of([call])[0]
                assert isinstance(error, ExchangeError), error
                assert "closed" in str(error)


def what_was_delivered_before_a_close_counts(make_group: MakeGroup) -> None:
    """A worker that leaves right after its call does not spoil that call for the others."""

    def gather_and_leave(exchange: Exchange) -> list[bytes]:
        received = exchange.gather(0, bytes([exchange.rank]) * 200_000)
        exchange.close()
        return received

    with connected(make_group, 3) as group:
        expected = [bytes([rank]) * 200_000 for rank in range(3)]
        assert each(group, gather_and_leave) == [expected] * 3


EXCHANGE_LAWS: Final[tuple[Callable[[MakeGroup], None], ...]] = (
    gather_returns_the_bytes_of_all_by_rank,
    gather_carries_megabytes_both_ways_at_once,
    *MEAN_LAWS,
    swap_gives_each_worker_its_own_bytes,
    swap_sends_each_message_once,
    ranks_may_have_gaps,
    waits_are_booked_on_who_came_last,
    workers_may_be_slow_and_fast,
    counters_count_the_wire,
    barrier_holds_until_all_are_there,
    another_step_is_a_protocol_error,
    one_straggling_step_among_three_is_noticed_by_all,
    another_call_is_a_protocol_error,
    bad_arguments_are_value_errors,
    close_wakes_those_who_wait_for_it,
    close_wakes_its_own_blocked_call,
    a_closed_exchange_refuses_calls,
    what_was_delivered_before_a_close_counts,
)
"""Every law an exchange must keep; each takes a `MakeGroup` and raises when the law is broken."""
