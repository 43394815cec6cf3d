"""Coordinator and members: joining, refusals, events, blobs, stopping, strangers."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from fatwood.errors import (
    AuthenticationError,
    ClusterError,
    ExchangeError,
    OptionError,
    PeerLost,
    ProtocolError,
    StorageError,
)
from fatwood.exchange import Coordinator, Member, Peer, TcpExchange
from fatwood.exchange.auth import CONTROL, dial
from fatwood.exchange.frames import FramedConnection, FrameKind
from fatwood.testing.groups import in_threads

SECRET = os.urandom(32)
HOST = "127.0.0.1"


@pytest.fixture
def coordinate(tmp_path):
    """Make coordinators that are closed at the end."""
    with ExitStack() as stack:

        def make(workers, **options):
            options = {
                "heartbeat_timeout_seconds": 5.0,
                "max_blob_bytes": 1 << 23,
                "inbox": tmp_path,
                **options,
            }
            return stack.enter_context(Coordinator(workers=workers, secret=SECRET, host=HOST, **options))

        yield make


def _join(coordinator, rank, **options):
    options = {
        "secret": SECRET,
        "facts": {},
        "start_timeout_seconds": 10.0,
        "heartbeat_seconds": 0.1,
        **options,
    }
    return Member.join(coordinator.address, rank=rank, **options)


@contextmanager
def _members(coordinator, ranks, **options):
    members = in_threads([lambda rank=rank: _join(coordinator, rank, **options) for rank in ranks])
    try:
        yield members
    finally:
        for member in members:
            member.close()


def _events(coordinator, count, timeout_seconds=5.0):
    events = [coordinator.next_event(timeout_seconds) for _ in range(count)]
    assert None not in events, events
    return events


def _kinds(events):
    return [(event.rank, event.kind) for event in events]


@contextmanager
def _puppet(coordinator, rank=0, port=1):
    """A member's connection in the hands of the test."""
    connection = dial(*coordinator.address, SECRET, CONTROL, peer="x", timeout_seconds=5)
    framed = FramedConnection(connection, "puppet")
    join = {"rank": rank, "host": HOST, "port": port, "facts": {}}
    framed.send(FrameKind.JOIN, join, timeout_seconds=1)
    try:
        yield framed
    finally:
        framed.close()


# joining


def test_all_join_and_get_the_same_view(coordinate):
    coordinator = coordinate(3)
    with _members(coordinator, [2, 0, 1], facts={"cores": 4}) as members:
        expected = tuple(
            Peer(m.view.rank, *m.listener.address) for m in sorted(members, key=lambda m: m.view.rank)
        )
        assert [member.view.rank for member in members] == [2, 0, 1]
        assert all(member.view.peers == expected for member in members)
        events = _events(coordinator, 4)
        assert sorted(_kinds(events[:3])) == [(0, "joined"), (1, "joined"), (2, "joined")]
        assert all(event.host == HOST and event.body["facts"] == {"cores": 4} for event in events[:3])
        assert _kinds(events[3:]) == [(-1, "started")]
        assert events[3].body["peers"] == [[p.rank, p.host, p.port] for p in expected]
    assert coordinator.next_event(0.1) is None  # a goodbye is no loss


def test_joined_members_can_build_a_mesh(coordinate):
    coordinator = coordinate(2)

    def work(rank):
        with (
            _join(coordinator, rank) as member,
            TcpExchange.connect(
                member.view, member.listener, SECRET, timeout_seconds=5, max_message_bytes=100
            ) as exchange,
        ):
            return exchange.gather(0, b"%d" % rank)

    assert in_threads([lambda: work(0), lambda: work(1)]) == [[b"0", b"1"]] * 2


def test_a_second_claimant_of_a_living_rank_is_refused(coordinate):
    coordinator = coordinate(2)
    with _puppet(coordinator, 0) as puppet:
        _events(coordinator, 1)
        with pytest.raises(ClusterError, match=r"rank 0 is taken by a living worker at 127\.0\.0\.1:1"):
            _join(coordinator, 0)
        with _members(coordinator, [1]):  # and the first is undisturbed
            assert puppet.receive(5).kind is FrameKind.VIEW
        puppet.send(FrameKind.BYE, timeout_seconds=1)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_out_of_range_is_refused(coordinate, rank):
    with pytest.raises(ClusterError, match=rf"0 \.\. 1, received {rank}"):
        _join(coordinate(2), rank)


def test_a_rank_lost_before_the_start_can_be_taken_again(coordinate):
    coordinator = coordinate(2)
    with _puppet(coordinator, 0):
        _events(coordinator, 1)
    assert _kinds(_events(coordinator, 1)) == [(0, "lost")]
    with _members(coordinator, [0, 1]) as members:
        assert len(members[0].view.peers) == 2
    with pytest.raises(ClusterError, match="rank 0 has left it"):
        _join(coordinator, 0)


def test_the_missing_are_named_once_after_the_start_timeout(coordinate):
    coordinator = coordinate(3, start_timeout_seconds=0.3)
    with _puppet(coordinator, 1) as puppet:
        joined, missing = _events(coordinator, 2)
        assert (joined.kind, missing.kind, missing.body) == ("joined", "missing", {"ranks": [0, 2]})
        assert coordinator.next_event(0.2) is None
        puppet.send(FrameKind.BYE, timeout_seconds=1)


def test_a_member_gives_up_when_the_others_do_not_come(coordinate):
    begin = time.monotonic()
    with pytest.raises(ClusterError, match=r"rank 0 waited 0\.3 seconds"):
        _join(coordinate(2), 0, start_timeout_seconds=0.3)
    assert time.monotonic() - begin < 5


def test_an_unreachable_coordinator_is_a_cluster_error():
    with socket.create_server((HOST, 0)) as server:
        address = server.getsockname()
    with pytest.raises(
        ClusterError, match=rf"rank 0: the coordinator at {HOST}:{address[1]}[\s\S]*spark.driver.host"
    ):
        Member.join(address, secret=SECRET, rank=0, facts={}, start_timeout_seconds=0.2)


def test_both_sides_need_the_secret(coordinate):
    coordinator = coordinate(1)
    with pytest.raises(AuthenticationError):
        _join(coordinator, 0, secret=bytes(32))
    assert coordinator.next_event(0.05) is None


# events


def test_reports_become_events_in_order(coordinate):
    coordinator = coordinate(1)
    with _members(coordinator, [0]) as (member,):
        _events(coordinator, 2)
        for step in range(5):
            member.report("step", {"step": step, "loss": 0.5})
        events = _events(coordinator, 5)
        assert [(e.rank, e.host, e.kind, e.body["step"]) for e in events] == [
            (0, HOST, "step", s) for s in range(5)
        ]
        for kind in ("lost", "joined"):
            with pytest.raises(OptionError, match=kind):
                member.report(kind, {})
        with pytest.raises(OptionError, match="JSON"):
            member.report("step", {"tensor": object()})
        with pytest.raises(OptionError, match="send_blob"):
            member.report("step", {"text": "x" * (1 << 20)})


def test_many_threads_may_report(coordinate):
    coordinator = coordinate(1)
    with _members(coordinator, [0]) as (member,):
        _events(coordinator, 2)
        in_threads([lambda t=t: [member.report("r", {"t": t, "i": i}) for i in range(50)] for t in range(4)])
        events = _events(coordinator, 200)
        for thread in range(4):
            assert [e.body["i"] for e in events if e.body["t"] == thread] == list(range(50))


def test_a_closed_socket_is_lost_at_once_and_silence_after_the_timeout(coordinate):
    coordinator = coordinate(2, heartbeat_timeout_seconds=0.8)
    with _puppet(coordinator, 0), _puppet(coordinator, 1) as other:
        _events(coordinator, 3)
        begin = time.monotonic()
        other.close()
        lost = _events(coordinator, 1)[0]
        assert (lost.rank, lost.kind) == (1, "lost")
        assert "closed" in lost.body["reason"]
        assert time.monotonic() - begin < 0.7
        lost = _events(coordinator, 1)[0]
        assert (lost.rank, lost.kind) == (0, "lost")
        assert "0.8 seconds" in lost.body["reason"]


def test_heartbeats_keep_an_idle_member_alive(coordinate):
    coordinator = coordinate(1, heartbeat_timeout_seconds=0.6)
    with _members(coordinator, [0], coordinator_timeout_seconds=0.6) as (member,):
        _events(coordinator, 2)
        assert coordinator.next_event(1.0) is None
        assert member.stopped is None


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (FrameKind.VIEW, b""),
        (FrameKind.REPORT, b"not json"),
        (FrameKind.REPORT, b"[1]"),
        (FrameKind.REPORT, b'{"kind": "lost", "body": {}}'),
        (FrameKind.REPORT, b"[" * 100_000),
        (FrameKind.BLOB_DATA, b"unannounced"),
        (FrameKind.BLOB_BEGIN, b'{"name": "../x", "size": 1}'),
        (FrameKind.BLOB_BEGIN, b'{"name": "x", "size": -1}'),
        (FrameKind.FETCH, b'{"name": "x", "max_bytes": null}'),
    ],
)
def test_a_member_that_talks_nonsense_is_lost(coordinate, kind, body):
    coordinator = coordinate(1)
    with _puppet(coordinator) as puppet:
        puppet.send(kind, body, timeout_seconds=1)
        assert _kinds(_events(coordinator, 3))[2] == (0, "lost")


# stopping


def test_cancel_reaches_all_members_once(coordinate):
    coordinator = coordinate(2)
    calls = []
    with _members(coordinator, [0, 1], on_stop=calls.append) as members:
        coordinator.cancel("the user pressed Ctrl-C")
        coordinator.cancel("another reason")
        _wait(lambda: len(calls) == 2)
        assert [member.stopped for member in members] == ["the user pressed Ctrl-C"] * 2
        members[0].report("farewell", {})  # the last words of a stopped worker are heard
        assert _events(coordinator, 4)[3].kind == "farewell"
    time.sleep(0.05)
    assert calls == ["the user pressed Ctrl-C"] * 2
    with pytest.raises(ClusterError, match="Ctrl-C"):
        _join(coordinator, 0)


def test_cancel_ends_a_join_that_waits(coordinate):
    coordinator = coordinate(2)
    timer = threading.Timer(0.15, coordinator.cancel, ["not enough slots"])
    timer.start()
    calls = []
    with pytest.raises(ClusterError, match="not enough slots"):
        _join(coordinator, 0, on_stop=calls.append)
    timer.join()
    assert calls == []


def test_on_stop_wakes_a_blocked_gather(coordinate):
    coordinator = coordinate(2)
    exchanges = []
    with _members(coordinator, [0, 1], on_stop=lambda _: [e.close() for e in exchanges]) as members:
        exchanges += in_threads(
            [
                lambda m=m: TcpExchange.connect(
                    m.view, m.listener, SECRET, timeout_seconds=30, max_message_bytes=99
                )
                for m in members
            ]
        )
        timer = threading.Timer(0.1, coordinator.cancel, ["enough"])
        timer.start()
        with pytest.raises(ExchangeError):
            exchanges[0].gather(0, b"")
        timer.join()
        _wait(lambda: all(member.stopped == "enough" for member in members))


def test_a_stop_ends_a_connect_that_waits(coordinate):
    coordinator = coordinate(2)
    with _members(coordinator, [0, 1]) as (zero, _):
        timer = threading.Timer(0.1, coordinator.cancel, ["enough"])
        timer.start()
        with pytest.raises(ExchangeError, match="closed"):  # rank 1 never comes
            TcpExchange.connect(zero.view, zero.listener, SECRET, timeout_seconds=30, max_message_bytes=99)
        timer.join()


def test_a_coordinator_that_closes_stops_its_members(coordinate):
    coordinator = coordinate(1)
    calls = []
    with _members(coordinator, [0], on_stop=calls.append) as (member,):
        coordinator.close()
        _wait(lambda: calls)
        assert "coordinator" in member.stopped
        with pytest.raises(PeerLost):
            member.fetch_blob("x", max_bytes=1)
        with pytest.raises(PeerLost):
            member.report("x", {})
    coordinator.close()


def test_a_mute_coordinator_has_vanished_after_the_timeout(coordinate, monkeypatch):
    coordinator = coordinate(1)
    monkeypatch.setattr(Coordinator, "_handle", lambda *_: None)  # it no longer echoes heartbeats
    calls = []
    with _members(coordinator, [0], on_stop=calls.append, coordinator_timeout_seconds=0.4) as (member,):
        _wait(lambda: calls)
        assert "silent for 0.4 seconds" in member.stopped


def test_close_from_on_stop_works(coordinate):
    coordinator = coordinate(1)
    holder = []
    with _members(coordinator, [0], on_stop=lambda _: holder[0].close()) as members:
        holder += members
        coordinator.cancel("stop")
        _wait(lambda: members[0]._closed.is_set())
        members[0].close()


# blobs


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1, 5_000_000])
def test_blobs_arrive_in_the_inbox(coordinate, tmp_path, size):
    coordinator = coordinate(1)
    body = os.urandom(size)
    with _members(coordinator, [0]) as (member,):
        _events(coordinator, 2)
        member.send_blob("weights-1.bin", body)
        event = _events(coordinator, 1)[0]
        assert (event.rank, event.kind) == (0, "blob")
        assert event.body == {
            "name": "weights-1.bin",
            "path": str(tmp_path / "rank-0-weights-1.bin"),
            "bytes": size,
        }
        assert (tmp_path / "rank-0-weights-1.bin").read_bytes() == body
    assert [path.name for path in tmp_path.iterdir()] == ["rank-0-weights-1.bin"]


def test_a_blob_may_be_any_memory_and_others_report_meanwhile(coordinate, tmp_path):
    coordinator = coordinate(1)
    vector = np.arange(600_000, dtype=np.float64)
    with _members(coordinator, [0]) as (member,):
        _events(coordinator, 2)
        in_threads(
            [
                lambda: member.send_blob("v", memoryview(vector)),
                lambda: [member.report("r", {"i": i}) for i in range(100)],
            ]
        )
        assert (tmp_path / "rank-0-v").read_bytes() == vector.tobytes()
        assert sorted({event.kind for event in _events(coordinator, 101)}) == ["blob", "r"]


def test_a_blob_beyond_the_limit_is_refused_before_it_is_sent(coordinate, tmp_path):
    coordinator = coordinate(1, max_blob_bytes=1000)
    with _members(coordinator, [0]) as (member,):
        with pytest.raises(ExchangeError, match="at most 1000 bytes, received a blob of 1001 bytes"):
            member.send_blob("x", bytes(1001))
        member.send_blob("x", bytes(1000))  # the channel is as good as before
    assert (tmp_path / "rank-0-x").stat().st_size == 1000


def test_more_bytes_than_announced_are_no_blob(coordinate, tmp_path):
    coordinator = coordinate(1)
    with _puppet(coordinator) as puppet:
        puppet.send(FrameKind.BLOB_BEGIN, {"name": "x", "size": 3}, timeout_seconds=1)
        puppet.send(FrameKind.BLOB_DATA, b"1234", timeout_seconds=1)
        assert _kinds(_events(coordinator, 3))[2] == (0, "lost")
    assert list(tmp_path.iterdir()) == []


def test_half_a_blob_of_a_lost_member_is_removed(coordinate, tmp_path):
    coordinator = coordinate(1)
    with _puppet(coordinator) as puppet:
        puppet.send(FrameKind.BLOB_BEGIN, {"name": "x", "size": 300}, timeout_seconds=1)
        puppet.send(FrameKind.BLOB_DATA, b"1234", timeout_seconds=1)
        _wait(lambda: list(tmp_path.iterdir()))
    assert _kinds(_events(coordinator, 3))[2] == (0, "lost")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_is_a_storage_error(coordinate, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    coordinator = coordinate(1, inbox=inbox)
    with _members(coordinator, [0]) as (member,):
        (inbox / "rank-0-x").mkdir()  # a folder is in the way of the file
        with pytest.raises(StorageError, match=r"rank-0-x"):
            member.send_blob("x", b"abc")
        member.send_blob("y", b"abc")
    assert sorted(path.name for path in inbox.iterdir()) == ["rank-0-x", "rank-0-y"]


def test_fetch_gives_what_is_in_the_outbox_for_this_rank(coordinate, tmp_path):
    (tmp_path / "a").write_bytes(body := os.urandom(2_500_000))
    (tmp_path / "empty").write_bytes(b"")
    outbox = {
        (0, "model"): tmp_path / "a",
        (1, "empty"): tmp_path / "empty",
        (0, "gone"): tmp_path / "no such file",
    }
    coordinator = coordinate(2, outbox=outbox)
    with _members(coordinator, [0, 1]) as (zero, one):
        assert zero.fetch_blob("model", max_bytes=2_500_000) == body
        assert one.fetch_blob("model", max_bytes=2_500_000) is None
        assert one.fetch_blob("empty", max_bytes=0) == b""
        with pytest.raises(ExchangeError, match="at most 2499999 bytes, received 2500000"):
            zero.fetch_blob("model", max_bytes=2_499_999)
        with pytest.raises(StorageError, match="no such file"):
            zero.fetch_blob("gone", max_bytes=10)
        assert zero.fetch_blob("model", max_bytes=1 << 30) == body


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 101, "a\0b"])
def test_names_of_blobs_cannot_leave_the_inbox(coordinate, name):
    coordinator = coordinate(1)
    with _members(coordinator, [0]) as (member,):
        with pytest.raises(OptionError, match="name of a blob"):
            member.send_blob(name, b"")
        with pytest.raises(OptionError, match="name of a blob"):
            member.fetch_blob(name, max_bytes=1)
        assert member.fetch_blob("fine", max_bytes=1) is None


# strangers


def test_strangers_at_the_coordinator_neither_delay_a_join_nor_make_events(coordinate):
    coordinator = coordinate(2)
    hostile = [
        b"",
        b"FATWOOD\x01" + bytes(20),
        os.urandom(500),
        b"FW\x01\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
    ]
    with ExitStack() as stack:
        for number in range(200):
            connection = stack.enter_context(socket.create_connection(coordinator.address, timeout=5))
            connection.sendall(hostile[number % len(hostile)])
        begin = time.monotonic()
        with _members(coordinator, [0, 1]):
            assert time.monotonic() - begin < 2
            assert [kind for _, kind in _kinds(_events(coordinator, 3))] == ["joined", "joined", "started"]
            assert coordinator.next_event(0.05) is None


@pytest.mark.parametrize(
    "frame",
    [
        b"FW\x01\x00\x00\x00\x02{}",
        b"FW\x01\xff\xff\xff\xff",
        b"FW\x63\x00\x00\x00\x00",
        b"XX\x01\x00\x00\x00\x00",
        b"FW\x04\x00\x00\x00\x00",
    ],
)
def test_an_insider_with_a_wrong_join_is_hung_up_on(coordinate, frame):
    coordinator = coordinate(1)
    connection = dial(*coordinator.address, SECRET, CONTROL, peer="x", timeout_seconds=5)
    connection.settimeout(3)
    connection.sendall(frame)
    assert connection.recv(1) == b""
    connection.close()
    assert coordinator.next_event(0.02) is None
    with _members(coordinator, [0]):
        pass


# arguments and frames


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"host": "0.0.0.0"}, {"heartbeat_timeout_seconds": 0}, {"start_timeout_seconds": -1}],
)
def test_the_coordinator_checks_its_arguments(tmp_path, options):
    with pytest.raises(OptionError):
        Coordinator(
            **{
                "workers": 1,
                "secret": SECRET,
                "host": HOST,
                "inbox": tmp_path,
                "max_blob_bytes": 1,
                **options,
            }
        )


def test_the_inbox_must_exist(tmp_path):
    with pytest.raises(OptionError, match="inbox"):
        Coordinator(workers=1, secret=SECRET, host=HOST, inbox=tmp_path / "none", max_blob_bytes=1)


def test_the_advertised_host_is_what_members_are_told(coordinate):
    assert coordinate(1, advertise_host="driver.example").address[0] == "driver.example"


def test_a_frame_that_nobody_takes_ends_in_time():
    ours, theirs = socket.socketpair()
    connection = FramedConnection(ours, "the peer at h:1")

    def fill():
        for _ in range(50):
            connection.send(FrameKind.BLOB_DATA, bytes(1 << 20), timeout_seconds=0.2)

    with pytest.raises(PeerLost, match=r"the peer at h:1 took nothing for 0\.2 seconds"):
        fill()
    connection.close()
    theirs.close()


def test_close_wakes_a_receive_of_another_thread():
    ours, theirs = socket.socketpair()
    connection = FramedConnection(ours, "the peer at h:1")
    timer = threading.Timer(0.1, connection.shutdown)
    timer.start()
    with pytest.raises(PeerLost, match="closed"):
        connection.receive(20)
    timer.join()
    connection.close()
    with pytest.raises(PeerLost):
        connection.send(FrameKind.BYE, timeout_seconds=1)
    with pytest.raises(PeerLost):
        connection.receive(1)
    theirs.close()


def test_an_unknown_kind_of_frame_is_a_protocol_error():
    ours, theirs = socket.socketpair()
    connection = FramedConnection(ours, "p")
    theirs.sendall(b"FW\x63\x00\x00\x00\x00")
    with pytest.raises(ProtocolError, match="received 99"):
        connection.receive(1)
    connection.close()
    theirs.close()


def _wait(condition, timeout_seconds=5.0):
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
