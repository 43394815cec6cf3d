"""Two rounds of few messages: everybody's message comes to everybody once, and bundles that are none are refused."""

from __future__ import annotations

import math
import os
import struct
import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fatwood.errors import PeerLost, ProtocolError
from fatwood.exchange import Lobby, Peer, TcpExchange, View, in_process_group
from fatwood.exchange.auth import MESH, dial
from fatwood.exchange.grid import LEAST_WORKERS, Grid, longest_bundle, pack_bundle, unpack_bundle
from fatwood.exchange.listener import Listener
from fatwood.exchange.lobby import hello
from fatwood.testing.groups import each, errors_of

SIZES = [*range(LEAST_WORKERS, 130), 255, 256, 257, 1023, 1024]


@pytest.mark.parametrize("size", SIZES)
def test_every_message_reaches_every_worker_once_and_in_few_frames(size):
    grids = [Grid(size, position) for position in range(size)]
    for position, grid in enumerate(grids):
        assert position in grid.row
        rows = [grid.row, *grid.receives.values()]
        assert sorted(p for row in rows for p in row) == list(range(size))
        for giver, row in grid.receives.items():
            assert grids[giver].row == row
            assert position in grids[giver].sends_to
        for other in grid.sends_to:
            assert position in grids[other].receives
        # frames of both rounds: of a row, of a column, and of those for whom it stands in
        assert len(grid.row) - 1 + len(grid.partners) <= 3 * math.isqrt(size)
        assert all(position in grids[other].partners for other in grid.partners)
    frames = sum(len(grid.row) - 1 + len(grid.partners) for grid in grids) / size
    assert frames <= 2.5 * math.sqrt(size)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=9), st.data())
def test_a_bundle_comes_back(bodies, data):
    latest = data.draw(st.integers(0, len(bodies) - 1))
    bundle = pack_bundle(bodies, latest)
    assert unpack_bundle(bundle, len(bodies)) == (bodies, latest)
    size = len(bodies) ** 2
    assert len(bundle) <= longest_bundle(size, max(map(len, bodies)))
    for other in (bundle[:-1], bundle + b"x", bundle[:3], b""):
        with pytest.raises(ProtocolError, match=f"bundle of {len(bodies)} messages"):
            unpack_bundle(other, len(bodies))


@given(st.binary(max_size=80), st.integers(1, 5))
def test_bytes_that_are_no_bundle_are_refused(noise, count):
    try:
        bodies, latest = unpack_bundle(noise, count)
    except ProtocolError:
        return
    assert pack_bundle(bodies, latest) == noise


def test_lengths_that_add_up_beyond_64_bits():
    bundle = struct.pack(">I2Q", 0, (1 << 64) - 1, 1)
    with pytest.raises(ProtocolError):
        unpack_bundle(bundle, 2)


def test_many_workers_wait_for_the_late_one_and_know_who_it_was():
    """Also those that have no message of it in the first round, and none from it in the second."""

    def work(exchange):
        exchange.gather(0, b"warm")
        exchange.waited_seconds = dict.fromkeys(exchange.waited_seconds, 0.0)
        if exchange.rank == late:
            time.sleep(late_seconds)
        exchange.gather(1, b"x")
        return exchange.waited_seconds

    late_seconds, ranks = 0.8, tuple(range(0, 18, 2))
    for late in (0, 8, 16):
        group = in_process_group(9, ranks=ranks, two_level_from=4)
        waited = each(group, work)
        for rank, seconds in zip(ranks, waited, strict=True):
            others = sum(value for peer, value in seconds.items() if peer != late)
            assert others < 0.5 * late_seconds
            if rank != late:
                assert seconds[late] > 0.8 * late_seconds
        for exchange in group:
            exchange.close()


@pytest.mark.parametrize("leaver", range(6))
def test_nobody_goes_on_when_one_of_many_has_left(leaver):
    """Not even those who exchange no frame with it."""
    group = in_process_group(6, two_level_from=4, timeout_seconds=20)

    def work(exchange):
        try:
            if exchange.position != leaver:
                exchange.gather(0, b"x")
        finally:
            exchange.close()

    errors = errors_of([partial(work, exchange) for exchange in group])
    assert all(isinstance(error, PeerLost) == (p != leaver) for p, error in enumerate(errors)), errors


def test_a_bundle_of_a_peer_that_makes_no_sense():
    """Of four workers, the one in the other row sends no bundle; it is named."""
    secret = os.urandom(32)
    with Lobby(Listener(host="127.0.0.1", secret=secret, purpose=MESH)) as lobby:
        peers = (Peer(0, *lobby.listener.address), *(Peer(rank, "127.0.0.1", 9) for rank in (3, 5, 7)))
        puppets = {}
        for peer in peers[1:]:
            puppets[peer.rank] = dial(*lobby.listener.address, secret, MESH, peer="x", timeout_seconds=5)
            puppets[peer.rank].sendall(hello(View(1, peer.rank, peers), 0))
        exchange = TcpExchange.connect(
            View(1, 0, peers),
            lobby,
            secret,
            timeout_seconds=5,
            max_message_bytes=1000,
            two_level_from=4,
        )
    puppets[3].sendall(struct.pack(">4sQQ", b"FWx1", 1 << 56 | 4, 1) + b"3")
    body = pack_bundle([b"5", b"7"], 0)[:-1]
    puppets[5].sendall(struct.pack(">4sQQ", b"FWx1", 6 << 56 | 4, len(body)) + body)
    with exchange, pytest.raises(ProtocolError, match=r"rank 0: rank 5: expected a bundle of 2 messages"):
        exchange.gather(4, b"0")
    for connection in puppets.values():
        connection.close()


def test_a_bundle_may_be_longer_than_a_message_and_no_longer_than_its_messages():
    assert longest_bundle(16, 1000) == 4 + 4 * 1008
    assert longest_bundle(17, 1000) == 4 + 5 * 1008
