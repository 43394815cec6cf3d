"""Coordinator and members: joining, views, suspicions, spares, events, blobs, finishing, stopping, strangers."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

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
from fatwood.exchange import (
    Coordinator,
    ElasticTeam,
    Listener,
    Member,
    Peer,
    TcpExchange,
    Trainee,
    new_identity,
)
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


def _join(coordinator, rank, *, ready=True, **options):
    options = {
        "secret": SECRET,
        "facts": {},
        "patience_seconds": 10.0,
        "heartbeat_seconds": 0.1,
        **options,
    }
    member = Member.join(coordinator.address, rank=rank, **options)
    if ready:
        member.ready()
    return member


@contextmanager
def _members(coordinator, ranks, **options):
    """Members in the coordinator's first view."""
    with ExitStack() as stack:
        members = [stack.enter_context(_join(coordinator, rank, **options)) for rank in ranks]
        for member in members:
            member.view_after(0)
        yield members


def _events(coordinator, count, timeout_seconds=5.0):
    events = [coordinator.next_event(timeout_seconds) for _ in range(count)]
    assert None not in events, events
    return events


def _kinds(events):
    return [(event.rank, event.kind) for event in events]


def _event(coordinator, kind):
    """The next event of a kind."""
    while True:
        event = coordinator.next_event(5.0)
        assert event is not None, f"no {kind}"
        if event.kind == kind:
            return event


@contextmanager
def _puppet(coordinator, rank=0, port=1, *, ready=True):
    """A member's connection in the hands of the test."""
    connection = dial(*coordinator.address, SECRET, CONTROL, peer="x", timeout_seconds=5)
    framed = FramedConnection(connection, "puppet")
    join = {"rank": rank, "host": HOST, "port": port, "facts": {}, "stateless": False}
    framed.send(FrameKind.JOIN, join, timeout_seconds=1)
    if ready:
        framed.send(FrameKind.READY, timeout_seconds=1)
    try:
        yield framed
    finally:
        framed.close()


def _next(puppet, *, skip=(FrameKind.HEARTBEAT, FrameKind.WELCOME)):
    """The next frame to a puppet that means something."""
    while True:
        frame = puppet.receive(5)
        if frame.kind not in skip:
            return frame


@contextmanager
def _fake_coordinator():
    """An address, and the connections of members who take what the test says for a coordinator's."""
    calls = queue.Queue()
    with Listener(host=HOST, secret=SECRET, purpose=CONTROL) as listener, ExitStack() as stack:

        def answer():
            connection = FramedConnection(listener.accept(5)[0], "the member")
            stack.callback(connection.close)
            assert connection.receive(5).kind is FrameKind.JOIN
            calls.put(connection)
            return connection

        yield listener, answer


def _view(number, ranks=(0,), newcomers=(), abandoned=()):
    return {
        "number": number,
        "peers": [[rank, HOST, 1000 + rank] for rank in ranks],
        "newcomers": list(newcomers),
        "abandoned": list(abandoned),
    }


@contextmanager
def _puppeteer(**options):
    """A member, and its coordinator's end of the connection in the hands of the test."""
    with _fake_coordinator() as (listener, answer), ExitStack() as stack:

        def join():
            return _join(listener, 0, ready=False, **options)

        def welcome():
            connection = answer()
            connection.send(FrameKind.WELCOME, {"late": False}, timeout_seconds=1)
            return connection

        member, connection = in_threads([join, welcome])
        stack.enter_context(member)
        stack.callback(connection.shutdown)
        yield member, connection


# joining


def test_all_join_and_get_the_same_view(coordinate):
    coordinator = coordinate(3)
    with _members(coordinator, [2, 0, 1], facts={"cores": 4}) as members:
        views = [member.view_after(0) for member in members]
        expected = tuple(
            Peer(m.rank, *m.lobby.listener.address) for m in sorted(members, key=lambda m: m.rank)
        )
        assert [view.rank for view in views] == [2, 0, 1]
        assert all((v.number, v.peers, v.abandoned) == (1, expected, ()) for v in views)
        assert not any(m.late or m.finished or m.stopped or m.is_newcomer(1) for m in members)
        events = _events(coordinator, 4)
        assert _kinds(events[:3]) == [(2, "joined"), (0, "joined"), (1, "joined")]
        assert all(event.host == HOST and event.body["facts"] == {"cores": 4} for event in events[:3])
        assert len({event.member for event in events[:3]}) == 3
        assert _kinds(events[3:]) == [(-1, "view")]
        assert events[3].member == -1
        assert events[3].body == {
            "number": 1,
            "ranks": [0, 1, 2],
            "members": [events[1].member, events[2].member, events[0].member],
            "newcomers": [],
            "abandoned": [],
        }
        coordinator.finish()
    assert coordinator.next_event(0.1) is None  # a goodbye is no loss


def test_members_of_a_view_can_build_a_mesh(coordinate):
    coordinator = coordinate(2)
    with _members(coordinator, [0, 1]) as members:

        def work(member):
            with _mesh(member) as exchange:
                return exchange.gather(0, b"%d" % member.rank)

        assert in_threads([lambda m=m: work(m) for m in members]) == [[b"0", b"1"]] * 2


def _mesh(member, view=None):
    return TcpExchange.connect(
        view or member.view_after(0), member.lobby, SECRET, timeout_seconds=30, max_message_bytes=99
    )


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_out_of_range_is_refused(coordinate, rank):
    with pytest.raises(ClusterError, match=rf"0 \.\. 1, received {rank}"):
        _join(coordinate(2), rank)


def test_nobody_is_seated_before_it_is_ready(coordinate):
    coordinator = coordinate(2)
    with _puppet(coordinator, 0), _puppet(coordinator, 1, ready=False) as late:
        assert sorted(_kinds(_events(coordinator, 2))) == [(0, "joined"), (1, "joined")]
        assert coordinator.next_event(0.1) is None
        late.send(FrameKind.READY, timeout_seconds=1)
        assert _kinds(_events(coordinator, 1)) == [(-1, "view")]


def test_waiting_for_members_to_leave(coordinate):
    coordinator = coordinate(2)
    assert coordinator.wait_until_left(0.0)
    with _puppet(coordinator, 0):
        _events(coordinator, 1)
        assert not coordinator.wait_until_left(0.1)
    assert coordinator.wait_until_left(5.0)


def test_the_missing_are_named_after_the_start_timeout(coordinate):
    coordinator = coordinate(3, start_timeout_seconds=0.3)
    with _puppet(coordinator, 1):
        joined, missing = _events(coordinator, 2)
        assert (joined.kind, missing.kind, missing.body) == ("joined", "missing", {"ranks": [0, 2]})
        assert missing.rank == -1
        assert coordinator.next_event(0.2) is None


def test_with_min_workers_it_starts_with_fewer_and_the_late_know_it(coordinate):
    coordinator = coordinate(3, start_timeout_seconds=0.2, min_workers=1)
    with _members(coordinator, [1]) as (first,):
        assert first.view_after(0).ranks == (1,)
        with _join(coordinator, 2) as second:
            assert second.late
            view = second.view_after(0)
            assert (view.number, view.ranks) == (2, (1, 2))
            assert second.is_newcomer(2)
            assert first.view_after(1).ranks == (1, 2)
            assert not first.is_newcomer(2)


def test_patience_ends_when_the_coordinator_owes_a_view(coordinate):
    coordinator = coordinate(2)
    begin = time.monotonic()
    with _join(coordinator, 0, patience_seconds=0.3) as member:
        with pytest.raises(ClusterError, match=r"rank 0 waited 0\.3 seconds for a view after 0"):
            member.view_after(0)
        assert time.monotonic() - begin < 5


def test_an_unreachable_coordinator_is_a_cluster_error():
    with socket.create_server((HOST, 0)) as server:
        address = server.getsockname()
    with pytest.raises(
        ClusterError, match=rf"rank 0: the coordinator at {HOST}:{address[1]}[\s\S]*spark.driver.host"
    ):
        Member.join(address, secret=SECRET, rank=0, facts={}, patience_seconds=1)


def test_both_sides_need_the_secret(coordinate):
    coordinator = coordinate(1)
    with pytest.raises(AuthenticationError):
        _join(coordinator, 0, secret=bytes(32))
    assert coordinator.next_event(0.05) is None


def test_a_coordinator_that_does_not_answer_is_a_cluster_error():
    with _fake_coordinator() as (listener, answer):

        def join():
            with pytest.raises(ClusterError, match=r"not welcomed by the coordinator[\s\S]*0\.3 seconds"):
                _join(listener, 0, coordinator_timeout_seconds=0.3)

        in_threads([answer, join])


# views


def test_a_lost_member_makes_a_new_view_at_once_and_its_replacement_is_a_newcomer(coordinate):
    coordinator = coordinate(3)
    changes = queue.Queue()
    with ExitStack() as stack:
        zero, one = (stack.enter_context(_join(coordinator, rank)) for rank in (0, 1))
        zero.on_change(lambda number: changes.put((number, zero.lobby.is_superseded(number - 1))))
        two = stack.enter_context(_puppet(coordinator, 2))
        assert zero.view_after(0).number == one.view_after(0).number == 1
        assert changes.get(timeout=5) == (1, True)  # the lobby has let go when the change is told
        begin = time.monotonic()
        two.close()
        assert zero.view_after(1).ranks == (0, 1)
        assert time.monotonic() - begin < 0.5
        assert changes.get(timeout=5) == (2, True)
        assert not zero.is_current(1)
        assert zero.is_current(2)
        again = stack.enter_context(_join(coordinator, 2))
        assert again.view_after(0).number == 3
        assert again.late
        assert again.is_newcomer(3)
        assert zero.view_after(2).ranks == (0, 1, 2)
        assert not zero.is_newcomer(3)
        kinds = _kinds(_events(coordinator, 8))
        assert kinds[4:] == [(2, "lost"), (-1, "view"), (2, "joined"), (-1, "view")]


def test_a_second_member_of_a_rank_waits_as_a_spare_beyond_its_patience(coordinate):
    coordinator = coordinate(2)
    with ExitStack() as stack:
        zero = stack.enter_context(_join(coordinator, 0))
        one = stack.enter_context(_puppet(coordinator, 1))
        assert _next(one).kind is FrameKind.VIEW
        spare = stack.enter_context(_join(coordinator, 1, patience_seconds=0.5))
        event = _event(coordinator, "spare")
        assert event.rank == 1
        timer = threading.Timer(1.0, one.close)
        begin = time.monotonic()
        timer.start()
        view = spare.view_after(0)
        assert time.monotonic() - begin >= 0.9
        timer.join()
        assert (view.number, view.ranks, spare.is_newcomer(2)) == (2, (0, 1), True)
        assert zero.view_after(1).peers == view.peers
        assert _event(coordinator, "lost").member != event.member


def test_fewer_than_min_workers_are_held_and_go_on_when_enough_are_back(coordinate):
    coordinator = coordinate(2, min_workers=2)
    changes = queue.Queue()
    with ExitStack() as stack:
        zero = stack.enter_context(_join(coordinator, 0, on_stop=lambda _: None))
        one = stack.enter_context(_puppet(coordinator, 1))
        zero.view_after(0)
        zero.on_change(changes.put)
        one.close()
        assert changes.get(timeout=5) == 2
        assert not zero.is_current(1)
        assert _event(coordinator, "held").body == {"ranks": [0], "min_workers": 2}
        stack.enter_context(_puppet(coordinator, 1))
        assert zero.view_after(1).number == 2


def test_the_held_starve_in_time(coordinate):
    coordinator = coordinate(2, min_workers=2, rejoin_timeout_seconds=0.3)
    with _puppet(coordinator, 0), _puppet(coordinator, 1) as one:
        _event(coordinator, "view")
        one.close()
        assert _event(coordinator, "starved").body == {"ranks": [1], "seconds": 0.3}


def test_a_suspicion_brings_the_same_members_together_again(coordinate):
    coordinator = coordinate(2)
    with _members(coordinator, [0, 1]) as (zero, one):
        zero.suspect(1, 1)
        again = zero.view_after(1)
        assert (again.number, again.ranks) == (2, (0, 1))
        assert one.view_after(1).peers == again.peers
        one.synced(2, 7)
        one.suspect(2, None)
        assert zero.view_after(2).number == 3
        zero.suspect(1, 1)  # of a view that is over
        assert coordinator.next_event(0) is not None
        time.sleep(0.3)
        assert zero.is_current(3)


def test_who_cannot_be_reached_twice_is_evicted_and_counts_as_lost(coordinate):
    coordinator = coordinate(3)
    stops = queue.Queue()
    with _members(coordinator, [0, 1, 2], on_stop=stops.put) as (zero, one, two):
        for number in (1, 2):
            zero.suspect(number, 1)
            two.suspect(number, 1)
            assert zero.view_after(number).number == number + 1
        assert zero.view_after(2).ranks == (0, 2)
        assert "2 other workers cannot reach it" in stops.get(timeout=5)
        with pytest.raises(ExchangeError, match="cannot reach it"):
            one.view_after(2)
        lost = _event(coordinator, "lost")
        assert (lost.rank, "cannot reach it" in lost.body["reason"]) == (1, True)
        _wait(lambda: not one._threads[0].is_alive())  # hung up on
        assert (zero.stopped, two.stopped) == (None, None)
        coordinator.finish()
        assert zero.view_after(3) is None
    assert [kind for _, kind in _kinds(_drain(coordinator))] == ["view"]


def test_waiting_for_rows_that_do_not_come_abandons_them(coordinate):
    coordinator = coordinate(2, min_workers=1, rejoin_timeout_seconds=0.3)
    with ExitStack() as stack:
        zero = stack.enter_context(_join(coordinator, 0))
        one = stack.enter_context(_puppet(coordinator, 1))
        zero.view_after(0)
        one.close()
        assert zero.view_after(1).abandoned == ()
        zero.waiting(2)
        view = zero.view_after(2)
        assert (view.number, view.ranks, view.abandoned) == (3, (0,), (1,))


def test_a_stateless_member_is_a_newcomer_from_the_start(coordinate):
    coordinator = coordinate(2)
    with _join(coordinator, 0, stateless=True) as zero, _join(coordinator, 1) as one:
        assert zero.view_after(0).number == one.view_after(0).number == 1
        assert zero.is_newcomer(1)
        assert not one.is_newcomer(1)


def test_views_reach_each_member_in_order_whatever_happens(coordinate):
    coordinator = coordinate(5)
    watcher_frames = []
    with ExitStack() as stack:
        watcher = stack.enter_context(_puppet(coordinator, 0))
        stack.enter_context(_puppet(coordinator, 1))

        def come_and_go(rank):
            for _ in range(15):
                with _puppet(coordinator, rank) as puppet:
                    if rank == 2:
                        _next(puppet)

        stack.enter_context(_puppet(coordinator, 2))
        stack.enter_context(_puppet(coordinator, 3))
        stack.enter_context(_puppet(coordinator, 4))
        assert _next(watcher).json()["number"] == 1
        in_threads([lambda r=r: come_and_go(r) for r in (2, 3, 4, 3, 4)])
        coordinator.finish()
        while (frame := _next(watcher, skip=(FrameKind.HEARTBEAT, FrameKind.SPARE))).kind is FrameKind.VIEW:
            watcher_frames.append(frame.json()["number"])
        assert frame.kind is FrameKind.FINISHED
        assert watcher_frames == sorted(set(watcher_frames))


def test_a_member_that_takes_nothing_does_not_delay_the_others(coordinate, tmp_path):
    (tmp_path / "model").write_bytes(bytes(64 << 20))
    coordinator = coordinate(3, outbox={(1, "model"): tmp_path / "model"}, heartbeat_timeout_seconds=3.0)
    with ExitStack() as stack:
        zero = stack.enter_context(_join(coordinator, 0))
        stuck = stack.enter_context(_puppet(coordinator, 1))
        two = stack.enter_context(_puppet(coordinator, 2))
        zero.view_after(0)
        fetch = {"name": "model", "max_bytes": 1 << 30}
        stuck.send(FrameKind.FETCH, fetch, timeout_seconds=1)  # and reads nothing of it
        time.sleep(0.3)
        begin = time.monotonic()
        two.close()
        assert zero.view_after(1).ranks == (0, 1)
        assert time.monotonic() - begin < 0.5
        lost = [_event(coordinator, "lost"), _event(coordinator, "lost")]
        assert [event.rank for event in lost] == [2, 1]
        assert zero.view_after(2).ranks == (0,)


# what a member makes of views


def test_a_member_returns_the_newest_view_and_skips_those_that_are_over():
    with _puppeteer() as (member, coordinator):
        changes = []
        member.on_change(changes.append)
        for number in (1, 2):
            coordinator.send(FrameKind.VIEW, _view(number, newcomers=[0] * (number == 1)), timeout_seconds=1)
        coordinator.send(FrameKind.HOLD, {"number": 3}, timeout_seconds=1)
        _wait(lambda: changes == [1, 2, 3])
        assert not member.is_current(2)
        timer = threading.Timer(
            0.2, coordinator.send, [FrameKind.VIEW, _view(3, abandoned=[4])], {"timeout_seconds": 1}
        )
        timer.start()
        view = member.view_after(0)
        timer.join()
        assert (view.number, view.abandoned) == (3, (4,))
        assert [member.is_newcomer(number) for number in (1, 2, 3)] == [True, False, False]
        assert member.view_after(2) is view


def test_the_end_of_a_job_is_above_all_views():
    changes = []
    with _puppeteer() as (member, coordinator):
        member.on_change(changes.append)
        coordinator.send(FrameKind.VIEW, _view(1), timeout_seconds=1)
        member.view_after(0)
        coordinator.send(FrameKind.FINISHED, timeout_seconds=1)
        assert member.view_after(1) is None
        _wait(lambda: len(changes) == 2)
        assert changes[1] > 1 << 62
        assert not member.is_current((1 << 64) - 1)
        assert member.lobby.is_superseded((1 << 64) - 1)
        coordinator.shutdown()
        _wait(lambda: not member._threads[0].is_alive())
        assert (member.finished, member.stopped) == (True, None)
        assert member.view_after(0) is None


def test_nothing_is_owed_after_a_suspicion_that_came_too_late():
    with _puppeteer(patience_seconds=0.3) as (member, coordinator):
        coordinator.send(FrameKind.VIEW, _view(2), timeout_seconds=1)
        member.view_after(0)
        member.suspect(1, None)
        timer = threading.Timer(0.6, coordinator.send, [FrameKind.FINISHED], {"timeout_seconds": 1})
        timer.start()
        assert member.view_after(2) is None  # a worker that is done waits as long as the coordinator lives
        timer.join()


@pytest.mark.parametrize("what", ["suspect", "waiting", "HOLD"])
def test_what_is_owed_does_not_come_in_time(what):
    with _puppeteer(patience_seconds=0.3) as (member, coordinator):
        coordinator.send(FrameKind.VIEW, _view(2), timeout_seconds=1)
        member.view_after(0)
        if what == "suspect":
            member.suspect(2, None)
        elif what == "waiting":
            member.waiting(2)
        else:
            coordinator.send(FrameKind.HOLD, {"number": 3}, timeout_seconds=1)
        with pytest.raises(ClusterError, match="a view after 2"):
            member.view_after(2)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (FrameKind.VIEW, b"{}"),
        (FrameKind.VIEW, b'{"number": 1, "peers": 5, "newcomers": [], "abandoned": []}'),
        (FrameKind.VIEW, b'{"number": 1, "peers": [[1, "h", 1]], "newcomers": [], "abandoned": []}'),
        (FrameKind.VIEW, b'{"number": -1, "peers": [[0, "h", 1]], "newcomers": [], "abandoned": []}'),
        (FrameKind.VIEW, b'{"number": 1, "peers": [[0, "h", 1]], "newcomers": [], "abandoned": [2, 1]}'),
        (FrameKind.HOLD, b'{"number": null}'),
        (FrameKind.JOIN, b"{}"),
    ],
)
def test_a_coordinator_that_talks_nonsense_is_left(kind, body):
    stops = queue.Queue()
    with _puppeteer(on_stop=stops.put) as (member, coordinator):
        coordinator.send(kind, body, timeout_seconds=1)
        assert "the coordinator at" in stops.get(timeout=5)
        with pytest.raises(ExchangeError, match="no view after 0"):
            member.view_after(0)


def test_a_listener_that_fails_stops_the_member():
    stops = queue.Queue()

    def fail(number):
        if number == 5:
            raise RuntimeError(number)

    with _puppeteer(on_stop=stops.put) as (member, coordinator):
        member.on_change(fail)
        coordinator.send(FrameKind.HOLD, {"number": 5}, timeout_seconds=1)
        assert "RuntimeError(5)" in stops.get(timeout=5)


def test_close_ends_a_wait_for_a_view(coordinate):
    coordinator = coordinate(2)
    member = _join(coordinator, 0)
    timer = threading.Timer(0.1, member.close)
    timer.start()
    with pytest.raises(ExchangeError, match="closed"):
        member.view_after(0)
    timer.join()


class _Counting(Trainee):
    """Whose state is how many rounds it has seen."""

    def __init__(self):
        self.seen = 0

    def snapshot(self):
        return b"%d" % self.seen

    def restore(self, snapshot):
        self.seen = int(bytes(snapshot))


def test_a_team_survives_a_loss_and_takes_in_a_replacement(coordinate):
    coordinator = coordinate(3)
    rounds = 400
    seen = {}
    is_lost, has_back = threading.Event(), threading.Event()

    def train(member, die_after=None):
        trainee = _Counting()
        team = ElasticTeam(member, lambda view: _mesh(member, view))
        try:
            if not team.start(trainee):
                return
            while trainee.seen < rounds:
                if trainee.seen == die_after:
                    member._connection.shutdown()  # as if the process had been killed
                    return
                outcome = team.play(lambda exchange: exchange.gather(trainee.seen, b"%d" % trainee.seen))
                assert {bytes(part) for part in outcome.parts} == {b"%d" % trainee.seen}
                trainee.seen += 1
                if trainee.seen == rounds // 2 and member.rank != 1:
                    has_back.wait(20)
            seen[member.rank] = trainee.seen
            member.report("done", {})
            while team.wait(for_missing=False):
                pass
        finally:
            team.close()

    def come_back():
        assert is_lost.wait(20)
        work(1)

    def work(rank, die_after=None):
        with _join(coordinator, rank) as member:
            train(member, die_after)

    def drive():
        done = 0
        while done < 3:
            event = coordinator.next_event(20)
            assert event is not None
            done += event.kind == "done"
            if event.kind == "lost":
                is_lost.set()
            if event.kind == "view" and is_lost.is_set() and event.body["newcomers"] == [1]:
                has_back.set()
        coordinator.finish()

    in_threads([lambda: work(0), lambda: work(1, 100), lambda: work(2), come_back, drive])
    assert seen == {0: rounds, 1: rounds, 2: rounds}


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
        for kind in ("lost", "joined", "view", "held", "spare", "missing", "starved", "extinct"):
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
        lost = _event(coordinator, "lost")
        assert (lost.rank, lost.kind) == (1, "lost")
        assert "closed" in lost.body["reason"]
        assert time.monotonic() - begin < 0.7
        lost = _event(coordinator, "lost")
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
        (FrameKind.JOIN, b"{}"),
        (FrameKind.SUSPECT, b'{"view": -1, "rank": 0}'),
        (FrameKind.SUSPECT, b'{"view": 1, "rank": "0"}'),
        (FrameKind.SYNCED, b'{"view": 1}'),
        (FrameKind.SYNCED, b'{"view": 1, "completed": true}'),
        (FrameKind.WAITING, b"{}"),
    ],
)
def test_a_member_that_talks_nonsense_is_lost(coordinate, kind, body):
    coordinator = coordinate(1)
    with _puppet(coordinator) as puppet:
        puppet.send(kind, body, timeout_seconds=1)
        assert _event(coordinator, "lost").rank == 0


# stopping


def test_cancel_reaches_all_members_once(coordinate):
    coordinator = coordinate(2)
    calls = []
    with _members(coordinator, [0, 1], on_stop=calls.append) as members:
        coordinator.cancel("the user pressed Ctrl-C")
        coordinator.cancel("another reason")
        _wait(lambda: len(calls) == 2)
        assert [member.stopped for member in members] == ["the user pressed Ctrl-C"] * 2
        for member in members:
            with pytest.raises(ExchangeError, match="Ctrl-C"):
                member.view_after(1)
        members[0].report("farewell", {})  # the last words of a stopped worker are heard
        assert _event(coordinator, "farewell").rank == 0
    time.sleep(0.05)
    assert calls == ["the user pressed Ctrl-C"] * 2
    with pytest.raises(ClusterError, match="Ctrl-C"):
        _join(coordinator, 0)


def test_cancel_ends_a_wait_for_a_view(coordinate):
    coordinator = coordinate(2)
    calls = []
    with _join(coordinator, 0, on_stop=calls.append) as member:
        timer = threading.Timer(0.15, coordinator.cancel, ["not enough slots"])
        timer.start()
        with pytest.raises(ExchangeError, match="not enough slots"):
            member.view_after(0)
        timer.join()
        _wait(lambda: calls == ["not enough slots"])


def test_cancel_is_heard_also_when_the_coordinator_closes_at_once(coordinate):
    coordinator = coordinate(2)
    with _join(coordinator, 0) as member:
        coordinator.cancel("over")
        coordinator.close()
        with pytest.raises(ExchangeError, match="over"):
            member.view_after(0)
        assert member.stopped == "over"


def test_finish_lets_all_leave_in_peace_and_turns_late_ones_away(coordinate):
    coordinator = coordinate(2)
    calls = []
    with _members(coordinator, [0, 1], on_stop=calls.append) as (zero, one):
        _events(coordinator, 3)
        coordinator.finish()
        coordinator.cancel("too late")
        assert zero.view_after(1) is None
        assert one.view_after(1) is None
        zero._connection.shutdown()  # no loss
        with _join(coordinator, 1, ready=False) as late:
            assert (late.finished, late.stopped) == (True, None)
            assert late.view_after(0) is None
        begin = time.monotonic()
        coordinator.close()
        assert time.monotonic() - begin < 0.8
        _wait(lambda: not one._threads[0].is_alive())
        assert (zero.stopped, one.stopped, calls) == (None, None, [])
    assert coordinator.next_event(0) is None


def test_on_stop_wakes_a_blocked_gather(coordinate):
    coordinator = coordinate(2)
    exchanges = []
    with _members(coordinator, [0, 1], on_stop=lambda _: [e.close() for e in exchanges]) as members:
        exchanges += in_threads([lambda m=m: _mesh(m) for m in members])
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
        begin = time.monotonic()
        with pytest.raises(ExchangeError, match="superseded"):  # rank 1 never comes
            _mesh(zero)
        assert time.monotonic() - begin < 5
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


def test_a_mute_coordinator_has_vanished_after_the_timeout():
    stops = queue.Queue()
    with _puppeteer(on_stop=stops.put, coordinator_timeout_seconds=0.4) as (member, _):
        begin = time.monotonic()
        assert "silent for 0.4 seconds" in stops.get(timeout=5)
        assert time.monotonic() - begin < 2
        assert "silent" in member.stopped
        with pytest.raises(PeerLost):
            member.fetch_blob("x", max_bytes=1)


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
        path = tmp_path / f"rank-0-{event.member}-weights-1.bin"
        assert event.body == {"name": "weights-1.bin", "path": str(path), "bytes": size}
        assert path.read_bytes() == body
    assert list(tmp_path.iterdir()) == [path]


def test_blobs_of_two_members_of_a_rank_do_not_meet(coordinate, tmp_path):
    coordinator = coordinate(1)
    with _members(coordinator, [0]) as (first,), _join(coordinator, 0) as second:
        first.send_blob("state", b"first")
        second.send_blob("state", b"second")
        one, two = _event(coordinator, "blob"), _event(coordinator, "blob")
        assert one.member != two.member
        assert [Path(event.body["path"]).read_bytes() for event in (one, two)] == [b"first", b"second"]


def test_a_blob_that_takes_long_starves_no_sign_of_life(coordinate):
    coordinator = coordinate(1, heartbeat_timeout_seconds=0.6)
    with (
        _slow_road(coordinator.address, bytes_per_second=1 << 20) as address,
        Member.join(
            address,
            secret=SECRET,
            rank=0,
            facts={},
            patience_seconds=5,
            heartbeat_seconds=0.1,
            coordinator_timeout_seconds=0.6,
        ) as member,
    ):
        member._connection._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        begin = time.monotonic()
        member.send_blob("state", bytes(3 << 20))
        assert time.monotonic() - begin > 1.8  # three times the patience of both
        assert member.stopped is None
        assert _kinds(_events(coordinator, 2)) == [(0, "joined"), (0, "blob")]


@contextmanager
def _slow_road(to, bytes_per_second):
    """An address from which bytes go to another at a limited rate, and back at any."""
    with socket.create_server((HOST, 0)) as server, ExitStack() as stack:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)

        def drive():
            near = stack.enter_context(server.accept()[0])
            far = stack.enter_context(socket.create_connection(to))
            back = threading.Thread(target=pump, args=(far, near, 0.0))
            back.start()
            pump(near, far, 1 / bytes_per_second)
            back.join()

        def pump(source, sink, seconds_per_byte):
            try:
                while data := source.recv(1 << 14):
                    time.sleep(len(data) * seconds_per_byte)
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)
            except OSError:
                sink.close()

        driving = threading.Thread(target=drive)
        driving.start()
        yield server.getsockname()
        driving.join()


def test_other_frames_find_a_gap_between_the_pieces_of_a_blob(coordinate):
    coordinator = coordinate(1, max_blob_bytes=1 << 30)
    with _members(coordinator, [0]) as (member,):
        _events(coordinator, 2)
        blob = threading.Thread(target=member.send_blob, args=("big", bytes(300 << 20)))
        blob.start()
        for _ in range(10):
            member.report("short", {})
        blob.join()
        assert [event.kind for event in _events(coordinator, 11)] == ["short"] * 10 + ["blob"]


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
        assert (tmp_path / "rank-0-0-v").read_bytes() == vector.tobytes()
        assert sorted({event.kind for event in _events(coordinator, 101)}) == ["blob", "r"]


def test_a_blob_beyond_the_limit_is_refused_before_it_is_sent(coordinate, tmp_path):
    coordinator = coordinate(1, max_blob_bytes=1000)
    with _members(coordinator, [0]) as (member,):
        with pytest.raises(ExchangeError, match="at most 1000 bytes, received a blob of 1001 bytes"):
            member.send_blob("x", bytes(1001))
        member.send_blob("x", bytes(1000))  # the channel is as good as before
    assert (tmp_path / "rank-0-0-x").stat().st_size == 1000


def test_more_bytes_than_announced_are_no_blob(coordinate, tmp_path):
    coordinator = coordinate(1)
    with _puppet(coordinator) as puppet:
        puppet.send(FrameKind.BLOB_BEGIN, {"name": "x", "size": 3}, timeout_seconds=1)
        puppet.send(FrameKind.BLOB_DATA, b"1234", timeout_seconds=1)
        _event(coordinator, "lost")
    assert list(tmp_path.iterdir()) == []


def test_half_a_blob_of_a_lost_member_is_removed(coordinate, tmp_path):
    coordinator = coordinate(1)
    with _puppet(coordinator) as puppet:
        puppet.send(FrameKind.BLOB_BEGIN, {"name": "x", "size": 300}, timeout_seconds=1)
        puppet.send(FrameKind.BLOB_DATA, b"1234", timeout_seconds=1)
        _wait(lambda: list(tmp_path.iterdir()))
    _event(coordinator, "lost")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_is_a_storage_error(coordinate, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    coordinator = coordinate(1, inbox=inbox)
    with _members(coordinator, [0]) as (member,):
        (inbox / "rank-0-0-x").mkdir()  # a folder is in the way of the file
        with pytest.raises(StorageError, match=r"rank-0-0-x"):
            member.send_blob("x", b"abc")
        member.send_blob("y", b"abc")
    assert sorted(path.name for path in inbox.iterdir()) == ["rank-0-0-x", "rank-0-0-y"]


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
            assert [kind for _, kind in _kinds(_events(coordinator, 3))] == ["joined", "joined", "view"]
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


# encryption


def test_everything_works_encrypted(coordinate, tmp_path):
    (tmp_path / "model").write_bytes(body := os.urandom(3_000_000))
    tls = new_identity()
    coordinator = coordinate(2, tls=tls, outbox={(0, "model"): tmp_path / "model"})
    with _members(coordinator, [0, 1], tls=tls) as (zero, one):

        def reports():
            for number in range(100):
                zero.report("r", {"number": number})

        def views():
            for number in range(1, 5):
                one.suspect(number, None)
                one.view_after(number)
                one.synced(number + 1, number)

        def blobs():
            zero.send_blob("weights", body)
            assert zero.fetch_blob("model", max_bytes=len(body)) == body

        in_threads([reports, views, blobs])
        assert Path(_event(coordinator, "blob").body["path"]).read_bytes() == body
        newest = zero.view_after(4)

        def work(member):
            with TcpExchange.connect(
                newest if member is zero else one.view_after(4),
                member.lobby,
                SECRET,
                timeout_seconds=10,
                max_message_bytes=99,
                tls=tls,
            ) as exchange:
                return exchange.gather(0, b"x")

        assert in_threads([lambda: work(zero), lambda: work(one)]) == [[b"x", b"x"]] * 2
        coordinator.finish()
        assert zero.view_after(5) is None


def test_a_member_that_does_not_encrypt_is_turned_away(coordinate):
    coordinator = coordinate(1, tls=new_identity())
    with pytest.raises(AuthenticationError, match="encrypt"):
        _join(coordinator, 0)
    with pytest.raises(AuthenticationError):
        _join(coordinator, 0, tls=new_identity())
    assert coordinator.next_event(0.05) is None


# arguments and frames


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"host": "0.0.0.0"},
        {"heartbeat_timeout_seconds": 0},
        {"start_timeout_seconds": -1},
        {"rejoin_timeout_seconds": 0},
        {"min_workers": 2},
    ],
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


def _drain(coordinator):
    events = []
    while (event := coordinator.next_event(0)) is not None:
        events.append(event)
    return events


def _wait(condition, timeout_seconds=5.0):
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
