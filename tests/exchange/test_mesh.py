"""The TCP mesh under faults: mute peers, peers that talk nonsense, peers of other groups."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time

import pytest

from fatwood.errors import AuthenticationError, ExchangeError, OptionError, PeerLost, ProtocolError
from fatwood.exchange import Listener, Peer, TcpExchange, View, in_process_group
from fatwood.exchange.auth import MESH, dial
from fatwood.testing.groups import in_threads, local_tcp_group

SECRET = os.urandom(32)


def _connect(view, listener, secret=SECRET, timeout_seconds=5.0, max_message_bytes=1 << 20):
    return TcpExchange.connect(
        view, listener, secret, timeout_seconds=timeout_seconds, max_message_bytes=max_message_bytes
    )


@pytest.fixture
def puppet():
    """Rank 0 as an exchange, rank 1 as a bare socket that knows the secret."""
    listener = Listener(host="127.0.0.1", secret=SECRET, purpose=MESH)
    peers = (Peer(0, *listener.address), Peer(1, "127.0.0.1", 9))
    connection = dial(*listener.address, SECRET, MESH, peer="x", timeout_seconds=5)
    connection.sendall(struct.pack(">4sII8s", b"FWm1", 1, 0, View(1, peers).digest()))
    exchange = _connect(View(0, peers), listener, timeout_seconds=0.4)
    listener.close()
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
    with pytest.raises(PeerLost, match=r"rank 1 at 127\.0\.0\.1:9: it closed the connection"):
        exchange.gather(5, b"x")
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


@pytest.mark.parametrize(("size", "timeout"), [(0, 1.0), (1, 0.0)])
def test_in_process_group_checks_its_arguments(size, timeout):
    with pytest.raises(OptionError):
        in_process_group(size, timeout_seconds=timeout)


def test_a_peer_that_does_not_come_is_named():
    listener = Listener(host="127.0.0.1", secret=SECRET, purpose=MESH)
    peers = (Peer(0, *listener.address), Peer(1, "10.9.8.7", 4321))
    with listener, pytest.raises(PeerLost, match=r"rank 1 at 10\.9\.8\.7:4321"):
        _connect(View(0, peers), listener, timeout_seconds=0.2)


def test_closing_the_listener_ends_a_connect_that_waits():
    listener = Listener(host="127.0.0.1", secret=SECRET, purpose=MESH)
    peers = (Peer(0, *listener.address), Peer(1, "127.0.0.1", 4321))
    timer = threading.Timer(0.1, listener.close)
    timer.start()
    with pytest.raises(ExchangeError, match="closed"):
        _connect(View(0, peers), listener, timeout_seconds=30)
    timer.join()


def test_a_peer_with_another_secret_is_refused_by_the_one_who_connects():
    with (
        Listener(host="127.0.0.1", secret=bytes(32), purpose=MESH) as theirs,
        Listener(host="127.0.0.1", secret=SECRET, purpose=MESH) as ours,
    ):
        peers = (Peer(0, *theirs.address), Peer(1, *ours.address))
        with pytest.raises(AuthenticationError, match=rf"rank 0 at 127\.0\.0\.1:{theirs.address[1]}"):
            _connect(View(1, peers), ours)


def test_connections_of_another_group_are_dropped_and_the_mesh_is_built():
    with (
        Listener(host="127.0.0.1", secret=SECRET, purpose=MESH) as zero,
        Listener(host="127.0.0.1", secret=SECRET, purpose=MESH) as one,
    ):
        peers = (Peer(0, *zero.address), Peer(1, *one.address))
        old = (Peer(0, *zero.address), Peer(1, "127.0.0.1", 1))
        strays = []
        for hello in (
            struct.pack(">4sII8s", b"FWm1", 1, 0, View(1, old).digest()),  # an earlier view
            struct.pack(">4sII8s", b"FWm1", 0, 0, View(1, peers).digest()),  # a rank that must not call
            bytes(20),
        ):
            strays.append(dial(*zero.address, SECRET, MESH, peer="x", timeout_seconds=5))
            strays[-1].sendall(hello)
        group = in_threads([lambda: _connect(View(0, peers), zero), lambda: _connect(View(1, peers), one)])
        assert (
            in_threads([lambda: group[0].gather(0, b"a"), lambda: group[1].gather(0, b"b")])
            == [[b"a", b"b"]] * 2
        )
        for stray in strays:
            stray.settimeout(2)
            with contextlib.suppress(ConnectionResetError):
                assert stray.recv(1) == b""
            stray.close()
        for exchange in group:
            exchange.close()


@pytest.mark.parametrize(
    ("timeout", "limit", "secret"),
    [(0.0, 1, SECRET), (1.0, 0, SECRET), (1.0, 1, b"short")],
    ids=["timeout", "limit", "secret"],
)
def test_connect_checks_its_arguments(timeout, limit, secret):
    with Listener(host="127.0.0.1", secret=SECRET, purpose=MESH) as listener, pytest.raises(OptionError):
        _connect(View(0, (Peer(0, *listener.address),)), listener, secret, timeout, limit)


def test_a_view_counts_its_ranks_from_zero():
    with pytest.raises(OptionError, match=r"\[1\]"):
        View(0, (Peer(1, "h", 1),))
    with pytest.raises(OptionError, match="received 1"):
        View(1, (Peer(0, "h", 1),))


def test_the_wire_is_without_delay():
    first, second = local_tcp_group(2)
    with first, second:
        for link in first._links + second._links:
            assert link.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
