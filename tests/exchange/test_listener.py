"""Strangers at a listener: they learn nothing, delay nobody and cost little."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import ExitStack

import pytest

from fatwood.errors import ExchangeError, OptionError
from fatwood.exchange import Listener, Lobby, Peer, TcpExchange, View
from fatwood.exchange import listener as listener_module
from fatwood.exchange.auth import MESH, dial
from fatwood.testing.groups import in_threads

SECRET = os.urandom(32)


@pytest.fixture
def listener():
    with Listener(host="127.0.0.1", secret=SECRET, purpose=MESH) as made:
        yield made


def _stranger(stack, listener, data=b""):
    connection = stack.enter_context(socket.create_connection(listener.address, timeout=5))
    connection.sendall(data)
    return connection


def _honest(listener):
    """Seconds that an honest peer needs to get in."""
    begin = time.monotonic()
    connection = dial(*listener.address, SECRET, MESH, peer="honest", timeout_seconds=5)
    accepted = listener.accept(5)
    seconds = time.monotonic() - begin
    assert accepted is not None
    connection.sendall(b"after the handshake")
    accepted[0].settimeout(2)
    assert accepted[0].recv(19, socket.MSG_WAITALL) == b"after the handshake"
    accepted[0].close()
    connection.close()
    return seconds


HOSTILE = {
    "nothing": b"",
    "half a handshake": b"FATWOOD\x01" + bytes(16),
    "a whole hello": b"FATWOOD\x01" + bytes(32),
    "random bytes": os.urandom(4096),
    "a huge length": b"FW\x01\xff\xff\xff\xff" + bytes(64),
    "a web request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a wrong proof": b"FATWOOD\x01" + bytes(64),
    "another version": b"FATWOOD\x02" + bytes(64),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_two_hundred_strangers_at_once_do_not_delay_an_honest_peer(listener, data):
    with ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(socket.create_connection(listener.address, timeout=5))
            try:
                connection.sendall(data)
            except OSError:
                continue  # hung up on already
        assert _honest(listener) < 1.5
        assert listener.accept(0) is None  # no stranger came through
        assert len(listener._pending) <= 128
        assert threading.active_count() < 20


def test_what_is_wrong_is_hung_up_on_at_once(listener):
    with ExitStack() as stack:
        for name in ("random bytes", "a web request", "a wrong proof", "another version"):
            connection = _stranger(stack, listener, HOSTILE[name])
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass
        assert listener.refused == 4


def test_a_mute_stranger_is_hung_up_on_after_the_deadline(monkeypatch, listener):
    monkeypatch.setattr(listener_module, "HANDSHAKE_SECONDS", 0.3)
    with ExitStack() as stack:
        begin = time.monotonic()
        strangers = [_stranger(stack, listener, data) for data in (b"", b"FATW", b"FATWOOD\x01" + bytes(3))]
        for stranger in strangers:
            assert stranger.recv(1) == b""
        assert 0.2 < time.monotonic() - begin < 2
        assert listener.refused == 3
        assert _honest(listener) < 1


def test_a_wrong_secret_is_refused(listener):
    with ExitStack() as stack:
        stranger = _stranger(stack, listener, b"FATWOOD\x01" + bytes(32))
        stranger.recv(72, socket.MSG_WAITALL)
        stranger.sendall(bytes(32))
        assert stranger.recv(1) == b""
    assert listener.accept(0.05) is None


def test_training_goes_on_while_strangers_knock():
    listeners = [Listener(host="127.0.0.1", secret=SECRET, purpose=MESH) for _ in range(2)]
    lobbies = [Lobby(made) for made in listeners]
    peers = tuple(Peer(rank, *made.address) for rank, made in enumerate(listeners))
    stop = threading.Event()

    def train(rank):
        with TcpExchange.connect(
            View(1, rank, peers), lobbies[rank], SECRET, timeout_seconds=10, max_message_bytes=1 << 20
        ) as exchange:
            slowest = 0.0
            for step in range(300):
                begin = time.monotonic()
                assert exchange.gather(step, bytes([rank]) * 2000) == [bytes([r]) * 2000 for r in range(2)]
                slowest = max(slowest, time.monotonic() - begin)
            return slowest

    def knock():
        with ExitStack() as stack:
            while not stop.is_set():
                for made in listeners:
                    for data in HOSTILE.values():
                        try:
                            _stranger(stack, made, data)
                        except OSError:
                            continue
                time.sleep(0.02)

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        assert max(in_threads([lambda: train(0), lambda: train(1)])) < 2
    finally:
        stop.set()
        knocking.join()
        for lobby in lobbies:
            lobby.close()


def test_close_wakes_accept_and_drops_what_nobody_claimed():
    listener = Listener(host="127.0.0.1", secret=SECRET, purpose=MESH)
    connection = dial(*listener.address, SECRET, MESH, peer="x", timeout_seconds=5)
    time.sleep(0.05)
    listener.close()
    listener.close()
    connection.settimeout(2)
    assert connection.recv(1) == b""
    connection.close()
    for _ in range(2):
        with pytest.raises(ExchangeError, match=str(listener.address[1])):
            listener.accept(5)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.address, timeout=1)


def test_a_blocked_accept_is_woken_by_close():
    listener = Listener(host="127.0.0.1", secret=SECRET, purpose=MESH)
    timer = threading.Timer(0.1, listener.close)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(ExchangeError):
        listener.accept(30)
    assert time.monotonic() - begin < 5
    timer.join()


def test_a_blocked_accept_is_interrupted(listener):
    begin = time.monotonic()
    timer = threading.Timer(0.1, listener.interrupt)
    timer.start()
    assert listener.accept(30) is None
    assert time.monotonic() - begin < 5
    timer.join()
    assert _honest(listener) < 1.5  # and it listens on


def test_an_interrupt_is_kept_for_the_next_accept_only(listener):
    listener.interrupt()
    listener.interrupt()
    begin = time.monotonic()
    assert listener.accept(30) is None
    assert time.monotonic() - begin < 1
    assert listener.accept(0.2) is None
    assert time.monotonic() - begin >= 0.2


def test_an_interrupt_loses_no_connection(listener):
    connection = dial(*listener.address, SECRET, MESH, peer="honest", timeout_seconds=5)
    listener.interrupt()
    assert listener.accept(5) is None
    accepted = listener.accept(5)
    assert accepted is not None
    accepted[0].close()
    connection.close()


def test_an_address_that_cannot_be_bound_is_named(listener):
    with pytest.raises(ExchangeError, match=f"127.0.0.1:{listener.address[1]}"):
        Listener(host="127.0.0.1", port=listener.address[1], secret=SECRET, purpose=MESH)
    with pytest.raises(OptionError, match="70000"):
        Listener(host="127.0.0.1", port=70000, secret=SECRET, purpose=MESH)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6():
    try:
        listener = Listener(host="::1", secret=SECRET, purpose=MESH)
    except ExchangeError:
        pytest.skip("no IPv6 loopback")
    with listener:
        assert _honest(listener) < 1
