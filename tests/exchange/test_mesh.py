"""The TCP mesh under faults: mute peers, peers that talk nonsense, peers of other groups."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time

import pytest

from fatwood.errors import AuthenticationError, ExchangeError, OptionError, PeerLost, ProtocolError
from fatwood.exchange import Listener, Lobby, Peer, TcpExchange, View, in_process_group
from fatwood.exchange.auth import MESH, dial
from fatwood.exchange.lobby import hello
from fatwood.testing.groups import Raised, in_threads, local_tcp_group, outcomes

SECRET = os.urandom(32)


def _lobby(secret=SECRET):
    return Lobby(Listener(host="127.0.0.1", secret=secret, purpose=MESH))


def _connect(view, lobby, secret=SECRET, timeout_seconds=5.0, max_message_bytes=1 << 20):
    return TcpExchange.connect(
        view, lobby, secret, timeout_seconds=timeout_seconds, max_message_bytes=max_message_bytes
    )


@pytest.fixture
def puppet():
    """Rank 0 as an exchange, rank 1 as a bare socket that knows the secret."""
    with _lobby() as lobby:
        peers = (Peer(0, *lobby.listener.address), Peer(1, "127.0.0.1", 9))
        connection = dial(*lobby.listener.address, SECRET, MESH, peer="x", timeout_seconds=5)
        connection.sendall(hello(View(1, 1, peers), 0))
        exchange = _connect(View(1, 0, peers), lobby, timeout_seconds=0.4)
    yield exchange, connection
    exchange.close()
    connection.close()


def test_a_mute_peer_is_lost_after_the_timeout(puppet):
    exchange, _ = puppet
    begin = time.monotonic()
    with pytest.raises(
        PeerLost, match=r"rank 1 at 127\.0\.0\.1:9: it was silent for 0\.4 seconds .*gather step 5"
    ):
        exchange.gather(5, b"x")
    assert 0.3 < time.monotonic() - begin < 2


def test_a_peer_that_takes_nothing_is_lost_after_the_timeout(puppet):
    exchange, connection = puppet
    connection.sendall(struct.pack(">4sQQ", b"FWx1", 1 << 56 | 5, 0))
    exchange._max_message_bytes = 1 << 26
    with pytest.raises(PeerLost, match="took nothing of our message"):
        exchange.gather(5, bytes(20_000_000))


def test_a_slow_peer_that_goes_on_is_not_lost(puppet):
    exchange, connection = puppet

    def trickle():
        for piece in (struct.pack(">4sQQ", b"FWx1", 1 << 56 | 5, 6), b"ab", b"cd", b"ef"):
            connection.sendall(piece)
            time.sleep(0.15)

    thread = threading.Thread(target=trickle)
    thread.start()
    assert exchange.gather(5, b"x") == [b"x", b"abcdef"]
    thread.join()


def test_a_length_beyond_the_limit_is_refused_before_memory_is_taken(puppet):
    exchange, connection = puppet
    connection.sendall(struct.pack(">4sQQ", b"FWx1", 1 << 56 | 5, 1 << 62))
    with pytest.raises(ProtocolError, match=rf"rank 1 .* at most {1 << 20} bytes, .* {1 << 62}"):
        exchange.gather(5, b"x")


def test_wrong_magic_is_refused(puppet):
    exchange, connection = puppet
    connection.sendall(bytes(64))
    with pytest.raises(ProtocolError, match="FWx1"):
        exchange.gather(5, b"x")


def test_half_a_message_and_then_the_end(puppet):
    exchange, connection = puppet
    connection.sendall(struct.pack(">4sQQ", b"FWx1", 1 << 56 | 5, 10) + b"1234")
    connection.close()
    with pytest.raises(PeerLost, match=r"rank 1 at 127\.0\.0\.1:9: it closed the connection") as caught:
        exchange.gather(5, b"x")
    assert caught.value.rank == 1
    with pytest.raises(ExchangeError, match="has failed before"):
        exchange.gather(6, b"x")


@pytest.mark.parametrize(
    "body", [b"", bytes(15), struct.pack("<Qd", 4, 1.0), struct.pack("<Qd4f", 4, -1.0, 1, 2, 3, 4)]
)
def test_a_mean_that_makes_no_sense(puppet, body):
    import numpy as np

    exchange, connection = puppet
    connection.sendall(struct.pack(">4sQQ", b"FWx1", 2 << 56 | 1, len(body)) + body)
    with pytest.raises(ProtocolError, match="rank 1"):
        exchange.mean(np.ones(4, np.float32), 1.0)


def test_our_own_message_beyond_the_limit_is_an_option_error():
    first, second = local_tcp_group(2, max_message_bytes=1000)
    with (
        first,
        second,
        pytest.raises(OptionError, match=r"max_message_bytes=1000, received one of 1001 bytes"),
    ):
        first.gather(0, bytes(1001))


def test_a_mute_thread_is_lost_after_the_timeout():
    first, second = in_process_group(2, timeout_seconds=0.2)
    with (
        first,
        second,
        pytest.raises(PeerLost, match=r"rank 0 lost rank 1 .* silent for 0\.2 seconds; .* barrier 1"),
    ):
        first.barrier()


@pytest.mark.parametrize(
    ("size", "timeout", "ranks"),
    [(0, 1.0, None), (1, 0.0, None), (2, 1.0, (0,)), (2, 1.0, (1, 1)), (2, 1.0, (3, 1)), (1, 1.0, (-1,))],
)
def test_in_process_group_checks_its_arguments(size, timeout, ranks):
    with pytest.raises(OptionError):
        in_process_group(size, ranks=ranks, timeout_seconds=timeout)


def test_a_peer_that_does_not_come_is_named():
    with _lobby() as lobby:
        peers = (Peer(0, *lobby.listener.address), Peer(3, "10.9.8.7", 4321))
        with pytest.raises(PeerLost, match=r"rank 3 at 10\.9\.8\.7:4321") as caught:
            _connect(View(1, 0, peers), lobby, timeout_seconds=0.2)
        assert caught.value.rank == 3


def test_a_peer_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with _lobby() as lobby:
        peers = (Peer(2, "127.0.0.1", port), Peer(4, *lobby.listener.address))
        with pytest.raises(
            PeerLost, match=rf"rank 4: rank 2 at 127\.0\.0\.1:{port}: cannot connect"
        ) as caught:
            _connect(View(1, 4, peers), lobby, timeout_seconds=0.3)
        assert caught.value.rank == 2


def test_closing_the_lobby_ends_a_connect_that_waits():
    with _lobby() as lobby:
        peers = (Peer(0, *lobby.listener.address), Peer(1, "127.0.0.1", 4321))
        timer = threading.Timer(0.1, lobby.close)
        timer.start()
        with pytest.raises(ExchangeError, match="closed"):
            _connect(View(1, 0, peers), lobby, timeout_seconds=30)
        timer.join()
        with pytest.raises(ExchangeError, match="closed"):
            _connect(View(1, 0, peers), lobby, timeout_seconds=30)


def test_a_peer_with_another_secret_is_refused_by_the_one_who_connects():
    with _lobby(bytes(32)) as theirs, _lobby() as ours:
        peers = (Peer(0, *theirs.listener.address), Peer(1, *ours.listener.address))
        with pytest.raises(
            AuthenticationError, match=rf"rank 0 at 127\.0\.0\.1:{theirs.listener.address[1]}"
        ):
            _connect(View(1, 1, peers), ours)


def test_a_peer_that_hangs_up_in_the_middle_of_a_swap_is_lost_at_once():
    """Two wait for the third, which has sent half of its message."""
    lobbies = [_lobby() for _ in range(3)]
    addresses = [lobby.listener.address for lobby in lobbies]
    peers = tuple(Peer(rank, *address) for rank, address in zip((0, 2, 5), addresses, strict=True))
    dialled = []
    for position in (0, 1):  # a puppet as rank 5
        dialled.append(dial(*addresses[position], SECRET, MESH, peer="x", timeout_seconds=5))
        dialled[-1].sendall(hello(View(7, 5, peers), peers[position].rank))
    group = in_threads(
        [
            lambda: _connect(View(7, 0, peers), lobbies[0], timeout_seconds=30),
            lambda: _connect(View(7, 2, peers), lobbies[1], timeout_seconds=30),
        ]
    )
    for lobby in lobbies:
        lobby.close()

    def hang_up():
        for connection in dialled:
            connection.sendall(struct.pack(">4sQQ", b"FWx1", 5 << 56 | 3, 100) + bytes(50))
        for connection in dialled:
            connection.recv(1)  # the others are in their swap
        for connection in dialled:
            connection.close()

    begin = time.monotonic()
    results = outcomes([*(lambda e=e: e.swap(3, [b"x"] * 3) for e in group), hang_up])
    assert time.monotonic() - begin < 1.5
    for exchange, result in zip(group, results, strict=False):
        exchange.close()
        assert isinstance(result, Raised)
        assert isinstance(result.error, PeerLost)
        assert result.error.rank == 5
        host, port = addresses[2]
        assert f"rank {exchange.rank} lost rank 5 at {host}:{port}" in str(result.error)
        assert "swap step 3" in str(result.error)


@pytest.mark.parametrize(
    ("timeout", "limit", "secret"),
    [(0.0, 1, SECRET), (1.0, 0, SECRET), (1.0, 1, b"short")],
    ids=["timeout", "limit", "secret"],
)
def test_connect_checks_its_arguments(timeout, limit, secret):
    with _lobby() as lobby, pytest.raises(OptionError):
        _connect(View(1, 0, (Peer(0, *lobby.listener.address),)), lobby, secret, timeout, limit)


def test_a_view_has_increasing_ranks_and_holds_the_own_one():
    two, five = Peer(2, "h", 1), Peer(5, "h", 2)
    view = View(3, 5, (two, five), abandoned=(0, 1))
    assert (view.size, view.ranks, view.position) == (2, (2, 5), 1)
    for peers in ((five, two), (two, two), (Peer(-1, "h", 1), two), ()):
        with pytest.raises(OptionError, match="peers"):
            View(1, 2, peers)
    with pytest.raises(OptionError, match=r"\[2, 5\], received 3"):
        View(1, 3, (two, five))
    with pytest.raises(OptionError, match="abandoned"):
        View(1, 2, (two, five), abandoned=(1, 0))
    for number in (-1, 1 << 64):
        with pytest.raises(OptionError, match="number"):
            View(number, 2, (two, five))


def test_the_digest_of_a_view_covers_its_number_and_peers_and_not_the_holder():
    peers = (Peer(2, "h", 1), Peer(5, "h", 2))
    digest = View(3, 5, peers).digest()
    assert len(digest) == 8
    assert digest == View(3, 2, peers, abandoned=(0,)).digest()
    others = [
        View(4, 5, peers),
        View(3, 5, peers[1:]),
        View(3, 5, (Peer(2, "h", 3), peers[1])),
        View(3, 5, (Peer(2, "i", 1), peers[1])),
        View(3, 5, (Peer(1, "h", 1), peers[1])),
    ]
    assert len({digest, *(view.digest() for view in others)}) == 6


def test_the_wire_is_without_delay():
    first, second = local_tcp_group(2)
    with first, second:
        for link in (*first._links.values(), *second._links.values()):
            assert link.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
