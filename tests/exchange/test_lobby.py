"""Peers that come too early, too late, to the wrong view, or say nothing; and views that are over before they began."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from contextlib import ExitStack
from functools import partial

import pytest

from fatwood.errors import ExchangeError, PeerLost
from fatwood.exchange import Listener, Lobby, Peer, TcpExchange, View
from fatwood.exchange import lobby as lobby_module
from fatwood.exchange.auth import MESH, dial
from fatwood.exchange.lobby import hello
from fatwood.testing.groups import Raised, in_threads, outcomes

SECRET = os.urandom(32)


def _lobby():
    return Lobby(Listener(host="127.0.0.1", secret=SECRET, purpose=MESH))


def _connect(view, lobby):
    return TcpExchange.connect(view, lobby, SECRET, timeout_seconds=30, max_message_bytes=1 << 20)


def _peers(lobbies):
    """By rank."""
    return tuple(Peer(rank, *lobby.listener.address) for rank, lobby in sorted(lobbies.items()))


def _hung_up(connection, timeout_seconds=3):
    connection.settimeout(timeout_seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.fixture
def lobby():
    with _lobby() as made:
        yield made


@pytest.fixture
def call(lobby):
    """Connects to the lobby and says `data`."""
    with ExitStack() as stack:

        def connect(data):
            connection = dial(*lobby.listener.address, SECRET, MESH, peer="x", timeout_seconds=5)
            stack.enter_context(connection)
            connection.sendall(data)
            return connection

        yield connect


@pytest.fixture
def group(lobby):
    """Views of ranks 0, 2 and 5 as the lobby's worker, rank 2, sees them, and as the caller with a rank sees them."""
    peers = (Peer(0, "127.0.0.1", 1), Peer(2, *lobby.listener.address), Peer(5, "127.0.0.1", 2))

    def view(number, rank=2):
        return View(number, rank, peers)

    return view


def _claim(lobby, view, seconds=5):
    claimed = lobby.claim(view, seconds)
    if claimed is None:
        return None
    claimed[1].close()
    return claimed[0]


def _settle(lobby, view, *, waiting=0, mute=0):
    """Claim, of those there nobody being for this view, until so many wait and so many have said nothing."""
    deadline = time.monotonic() + 5
    while (len(lobby._waiting), len(lobby._mute)) != (waiting, mute):
        assert time.monotonic() < deadline, (lobby._waiting, lobby._mute)
        assert lobby.claim(view, 0.02) is None


def test_a_caller_of_the_view_is_handed_out_with_its_rank(lobby, call, group):
    connection = call(hello(group(1, 5), 2))
    rank, accepted = lobby.claim(group(1), 5)
    with accepted:
        assert rank == 5
        connection.sendall(b"and what follows the hello")
        accepted.settimeout(2)
        assert accepted.recv(99, socket.MSG_PEEK) == b"and what follows the hello"


def test_what_follows_the_hello_at_once_is_not_read(lobby, call, group):
    call(hello(group(1, 5), 2) + b"a message")
    _, accepted = lobby.claim(group(1), 5)
    with accepted:
        accepted.settimeout(2)
        assert accepted.recv(99) == b"a message"


def test_nobody_in_time_is_none(lobby, group):
    begin = time.monotonic()
    assert lobby.claim(group(1), 0.1) is None
    assert 0.05 < time.monotonic() - begin < 2
    assert lobby.claim(group(1), -1) is None


def test_callers_of_later_views_wait_for_them(lobby, call, group):
    early = [call(hello(group(number, 5), 2)) for number in (4, 3)]
    _settle(lobby, group(1), waiting=2)
    call(hello(group(1, 5), 2))
    assert _claim(lobby, group(1)) == 5
    lobby.listener.close()  # what comes now was here before
    lobby.supersede(3)
    assert _claim(lobby, group(3), 0) == 5
    lobby.supersede(4)
    assert _claim(lobby, group(4), 0) == 5
    assert all(_hung_up(connection) for connection in early)  # by the claimer


def test_callers_of_earlier_views_are_hung_up_on(lobby, call, group):
    stashed = call(hello(group(2, 5), 2))
    _settle(lobby, group(1), waiting=1)
    lobby.supersede(3)
    assert _hung_up(stashed)
    late = call(hello(group(2, 5), 2))
    result, hung_up = in_threads([lambda: lobby.claim(group(3), 0.5), lambda: _hung_up(late)])
    assert result is None
    assert hung_up


BAD_HELLOS = {
    "another magic": lambda view: b"FWm1" + hello(view(1, 5), 2)[4:],
    "no hello": lambda view: bytes(28),
    "random": lambda view: os.urandom(28),
    "another digest": lambda view: hello(View(1, 5, (*view(1).peers[:2], Peer(5, "127.0.0.1", 3))), 2),
    "to another rank": lambda view: hello(view(1, 5), 0),
    "from before the own position": lambda view: hello(view(1, 0), 2),
    "from the own rank": lambda view: hello(view(1, 2), 2),
    "from a rank that is not there": lambda view: (
        hello(view(1, 5), 2)[:12] + struct.pack(">I", 7) + hello(view(1, 5), 2)[16:]
    ),
}


@pytest.mark.parametrize("bad", BAD_HELLOS.values(), ids=BAD_HELLOS.keys())
def test_who_is_not_of_the_view_is_hung_up_on(lobby, call, group, bad):
    stray = call(bad(group))
    call(hello(group(1, 5), 2) + b"the right one")
    rank, accepted = lobby.claim(group(1), 5)
    with accepted:
        accepted.settimeout(2)
        assert (rank, accepted.recv(99)) == (5, b"the right one")
    assert _hung_up(stray)


def test_a_caller_that_hangs_up_before_its_hello_is_forgotten(lobby, call, group):
    call(b"FWm2").close()
    call(b"").close()
    call(hello(group(1, 5), 2))
    assert _claim(lobby, group(1)) == 5
    _settle(lobby, group(1))


def test_a_hello_may_come_in_pieces(lobby, call, group):
    data = hello(group(1, 5), 2)
    connection = call(data[:3])

    def go_on():
        for start in range(3, len(data), 5):
            time.sleep(0.01)
            connection.sendall(data[start : start + 5])

    assert in_threads([lambda: _claim(lobby, group(1)), go_on])[0] == 5


def test_a_mute_caller_delays_nobody_and_is_hung_up_on(lobby, call, group, monkeypatch):
    monkeypatch.setattr(lobby_module, "HANDSHAKE_SECONDS", 0.8)
    mute = call(b"FWm2")
    _settle(lobby, group(1), mute=1)
    begin = time.monotonic()
    call(hello(group(1, 5), 2))
    assert _claim(lobby, group(1)) == 5
    assert time.monotonic() - begin < 0.6
    assert not _hung_up(mute, 0.01)
    _settle(lobby, group(1))
    assert _hung_up(mute)
    assert 0.6 < time.monotonic() - begin < 3


def test_a_hello_between_two_claims_is_heard(lobby, call, group):
    data = hello(group(2, 5), 2)
    connection = call(data[:9])
    _settle(lobby, group(1), mute=1)
    connection.sendall(data[9:])
    assert _claim(lobby, group(2)) == 5


def test_waiting_callers_are_bounded_and_low_views_go_first(lobby, call, group, monkeypatch):
    monkeypatch.setattr(lobby_module, "_MAX_WAITING", 3)
    callers = {}
    for number, waiting in ((9, 1), (5, 2), (8, 3)):
        callers[number] = call(hello(group(number, 5), 2))
        _settle(lobby, group(1), waiting=waiting)
    for number, dropped in ((7, 5), (6, 6)):
        callers[number] = call(hello(group(number, 5), 2))
        hung_up, _ = in_threads([partial(_hung_up, callers[dropped]), lambda: lobby.claim(group(1), 0.3)])
        assert hung_up
    assert not any(_hung_up(callers[number], 0.05) for number in (7, 8, 9))
    assert len(lobby._waiting) == 3


def test_mute_callers_are_bounded_and_the_oldest_goes_first(lobby, call, group, monkeypatch):
    monkeypatch.setattr(lobby_module, "_MAX_WAITING", 3)
    callers = []
    for mute in (1, 2, 3):
        callers.append(call(b""))
        _settle(lobby, group(1), mute=mute)
    callers.append(call(b""))
    hung_up, _ = in_threads([partial(_hung_up, callers[0]), lambda: lobby.claim(group(1), 0.3)])
    assert hung_up
    assert not any(_hung_up(caller, 0.05) for caller in callers[1:])


@pytest.mark.parametrize("mute", [False, True], ids=["alone", "with a mute caller"])
@pytest.mark.parametrize("end", ["supersede", "close"])
def test_a_claim_that_waits_is_woken(lobby, call, group, mute, end):
    if mute:
        call(b"FWm2")

    def finish():
        time.sleep(0.1)
        lobby.supersede(2) if end == "supersede" else lobby.close()

    begin = time.monotonic()
    result, _ = outcomes([lambda: lobby.claim(group(1), 30), finish])
    assert time.monotonic() - begin < 1
    assert isinstance(result, Raised)
    assert isinstance(result.error, ExchangeError)
    assert ("view 1 was superseded" if end == "supersede" else "closed") in str(result.error)


def test_a_superseded_view_cannot_be_claimed_even_with_a_caller_there(lobby, call, group):
    call(hello(group(1, 5), 2))
    lobby.supersede(2)
    with pytest.raises(ExchangeError, match="view 1 was superseded"):
        lobby.claim(group(1), 30)
    lobby.supersede(1)  # no way back
    assert lobby.is_superseded(1)
    assert not lobby.is_superseded(2)
    call(hello(group(2, 5), 2))
    assert _claim(lobby, group(2)) == 5


def test_a_closed_lobby_has_hung_up_on_all(call, lobby, group):
    callers = [call(hello(group(3, 5), 2)), call(b"FW")]
    _settle(lobby, group(1), waiting=1, mute=1)
    callers.append(call(hello(group(1, 5), 2)))
    lobby.close()
    lobby.close()
    assert all(_hung_up(caller) for caller in callers)
    assert lobby.is_superseded(1 << 60)
    lobby.supersede(9)
    with pytest.raises(ExchangeError, match="closed"):
        lobby.claim(group(9), 30)


@pytest.mark.parametrize("end", ["supersede", "close"])
def test_dialling_a_peer_that_never_answers_is_given_up(lobby, end):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peers = (Peer(0, *silent.getsockname()), Peer(1, *lobby.listener.address))

        def finish():
            time.sleep(0.1)
            lobby.supersede(2) if end == "supersede" else lobby.close()

        begin = time.monotonic()
        result, _ = outcomes([lambda: _connect(View(1, 1, peers), lobby), finish])
        assert time.monotonic() - begin < 2
        assert isinstance(result, Raised)
        assert type(result.error) is ExchangeError
        assert ("view 1 was superseded" if end == "supersede" else "closed") in str(result.error)


def test_a_connect_that_waits_for_others_is_given_up_and_hangs_up():
    with _lobby() as zero, _lobby() as one, _lobby() as two:
        peers = _peers({0: zero, 1: one, 2: two})

        def finish():
            rank, connection = zero.claim(View(1, 0, peers), 10)
            with connection:
                assert rank == 1
                one.supersede(2)
                return _hung_up(connection)

        result, hung_up = outcomes([lambda: _connect(View(1, 1, peers), one), finish])
        assert isinstance(result, Raised)
        assert "view 1 was superseded" in str(result.error)
        assert hung_up is True


def test_connecting_a_superseded_view_is_refused_though_nobody_is_awaited(lobby):
    lobby.supersede(2)
    peers = (Peer(0, *lobby.listener.address),)
    with pytest.raises(ExchangeError, match="view 1 was superseded"):
        _connect(View(1, 0, peers), lobby)
    with _connect(View(2, 0, peers), lobby) as exchange:
        assert exchange.gather(0, b"x") == [b"x"]


def test_the_first_connection_of_a_rank_counts(lobby, call):
    peers = (Peer(0, *lobby.listener.address), Peer(1, "127.0.0.1", 1), Peer(2, "127.0.0.1", 2))
    first = call(hello(View(1, 1, peers), 0))
    second = call(hello(View(1, 1, peers), 0))
    call(hello(View(1, 2, peers), 0))
    with _connect(View(1, 0, peers), lobby):
        assert _hung_up(second)
        assert not _hung_up(first, 0.05)


def test_a_worker_may_be_in_the_next_view_while_another_is_still_in_this_one():
    """Ranks 0, 2 and 5; 2 is lost; 5 connects view 2 while 0 has not heard of it."""
    with ExitStack() as stack:
        lobbies = {rank: stack.enter_context(_lobby()) for rank in (0, 2, 5)}
        one = _peers(lobbies)
        two = (one[0], one[2])
        dialled = threading.Event()

        def zero():
            with _connect(View(1, 0, one), lobbies[0]) as exchange:
                assert exchange.gather(0, b"0") == [b"0", b"2", b"5"]
                with pytest.raises(PeerLost):  # of 2, or of 5, which noticed first and left
                    exchange.gather(1, b"0")
                assert dialled.wait(10)
            lobbies[0].supersede(2)
            with _connect(View(2, 0, two), lobbies[0]) as exchange:
                return exchange.gather(1, b"zero")

        def lost():
            with _connect(View(1, 2, one), lobbies[2]) as exchange:
                exchange.gather(0, b"2")

        def five():
            with _connect(View(1, 5, one), lobbies[5]) as exchange:
                exchange.gather(0, b"5")
                with pytest.raises(PeerLost):
                    exchange.gather(1, b"5")
            lobbies[5].supersede(2)
            with _connect(View(2, 5, two), lobbies[5]) as exchange:  # nobody has to be claimed: it returns
                dialled.set()
                return exchange.gather(1, b"five")

        assert in_threads([zero, lost, five]) == [[b"zero", b"five"], None, [b"zero", b"five"]]


def test_views_that_follow_each_other_fast_end_in_the_last_one():
    """Every worker hears of every view at its own time; all meet in the last view."""
    last = 12
    with ExitStack() as stack:
        lobbies = {rank: stack.enter_context(_lobby()) for rank in (0, 2, 5)}
        peers = _peers(lobbies)

        def hear(rank):
            for number in range(1, last + 1):
                time.sleep(0.003 * (rank + 1))
                lobbies[rank].supersede(number)

        def train(rank):
            for number in range(1, last + 1):
                try:
                    with _connect(View(number, rank, peers), lobbies[rank]) as exchange:
                        if number == last:
                            return exchange.gather(0, b"%d" % rank)
                        exchange.gather(0, b"")
                except ExchangeError:
                    if number == last:
                        raise
            return None

        calls = [partial(call, rank) for call in (hear, train) for rank in (0, 2, 5)]
        assert in_threads(calls)[3:] == [[b"0", b"2", b"5"]] * 3
