"""Frames over TLS as over plain sockets: the links of the mesh, and the control channel from several threads."""

from __future__ import annotations

import os
import random
import selectors
import socket
import ssl
import struct
import threading
import time

import pytest

from fatwood.errors import PeerLost, ProtocolError
from fatwood.exchange import Listener, Peer
from fatwood.exchange.auth import MESH, dial
from fatwood.exchange.frames import MAX_BODY_BYTES, FramedConnection, FrameKind
from fatwood.exchange.link import Link
from fatwood.exchange.tls import new_identity
from fatwood.testing.groups import in_threads

SECRET = os.urandom(32)
IDENTITY = new_identity()
LIMIT = 1 << 25


@pytest.fixture(params=["plain", "tls"])
def pair(request):
    """Both ends of an authenticated connection."""
    tls = IDENTITY if request.param == "tls" else None
    with Listener(host="127.0.0.1", secret=SECRET, purpose=MESH, tls=tls) as listener:
        ours = dial(*listener.address, SECRET, MESH, peer="x", timeout_seconds=5, tls=tls)
        accepted = listener.accept(5)
        assert accepted is not None
    assert isinstance(ours, ssl.SSLSocket) == (tls is not None)
    with ours, accepted[0]:
        yield ours, accepted[0]


def _events(link):
    return (selectors.EVENT_READ if link.body is None else 0) | (0 if link.sent else selectors.EVENT_WRITE)


def _swap(link, tag, body):
    """What the mesh does with one link: begin, push once, then wait for the selector only."""
    link.begin(tag, body, LIMIT)
    sent, received, tags = link.push(), 0, []
    with selectors.DefaultSelector() as selector:
        selector.register(link.connection, _events(link))
        while events := _events(link):
            selector.modify(link.connection, events)
            ready = selector.select(20)
            assert ready, f"nothing came for 20 seconds: {link.awaited()}"
            if ready[0][1] & selectors.EVENT_WRITE:
                sent += link.push()
            if ready[0][1] & selectors.EVENT_READ:
                count, got = link.pull()
                received += count
                tags += [] if got is None else [got]
    assert sent == 20 + len(body)
    assert received == 20 + len(link.body)
    assert tags == [tag]
    return link.body


def _links(pair):
    return [Link(Peer(rank, "h", 1), connection) for rank, connection in enumerate(pair)]


def _message(rank, step, size):
    return random.Random(rank * 1000 + step).randbytes(size)


# empty, one record with its header and without, one byte more, several turns, megabytes
SIZES = [0, 1, 20, 16363, 16364, 16365, 16384, 32748, 100_000, 1 << 20, 3_000_001, 8_000_000]


def test_messages_of_all_sizes_cross_at_the_same_time(pair):
    plan = [(SIZES[i], SIZES[j]) for i in range(len(SIZES)) for j in (i, -1 - i, 0)]

    def work(rank):
        link = _links(pair)[rank]
        for step, sizes in enumerate(plan):
            body = _swap(link, step, _message(rank, step, sizes[rank]))
            assert body == _message(1 - rank, step, sizes[1 - rank])

    in_threads([lambda: work(0), lambda: work(1)])


def test_a_peer_that_is_already_in_the_next_swap_is_not_read_ahead(pair):
    """The other side sends three frames before this side begins; each swap finds its own, none is waited for."""
    ours, theirs = _links(pair)
    frames = [_message(1, step, size) for step, size in enumerate((5, 0, 30_000))]
    for step, body in enumerate(frames):
        theirs.begin(step, body, LIMIT)
        while not theirs.sent:
            theirs.push()
    for step, body in enumerate(frames):
        assert _swap(ours, step, b"x") == body


def test_a_slow_peer_moves_the_progress_of_who_sends_to_it(pair):
    """Eight megabytes, of which the peer reads a little: that little shows."""
    ours, _ = _links(pair)
    ours.begin(1, bytes(8_000_000), LIMIT)
    while ours.push():
        pass
    assert not ours.sent
    before, total = ours.progress, 0
    assert before > 0
    pair[1].setblocking(True)
    pair[1].settimeout(5)
    with selectors.DefaultSelector() as selector:
        selector.register(ours.connection, selectors.EVENT_WRITE)
        while total < 7_000_000:
            total += len(pair[1].recv(1 << 16))
            if selector.select(0) and ours.push():
                break
    assert ours.progress > before
    assert not ours.sent


def test_one_turn_reads_and_sends_a_bounded_part():
    with Listener(host="127.0.0.1", secret=SECRET, purpose=MESH, tls=IDENTITY) as listener:
        ours = dial(*listener.address, SECRET, MESH, peer="x", timeout_seconds=5, tls=IDENTITY)
        theirs = listener.accept(5)[0]
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    sender, receiver = _links((ours, theirs))
    sender.begin(1, bytes(LIMIT), LIMIT)
    receiver.begin(1, b"", LIMIT)
    assert 0 < sender.push() <= 1 << 20
    assert 0 < receiver.pull()[0] <= 1 << 20
    ours.close()
    theirs.close()


def _raw_frame(tag, body):
    return struct.pack(">4sQQ", b"FWx1", tag, len(body)) + body


def test_a_frame_in_crumbs_is_read_without_waiting_for_more(pair):
    """Records of one byte, then all the rest in one: the header ends inside a record, whatever the turn."""
    frame = _raw_frame(7, b"y" * 300)
    for crumbs in (19, 20, 63, 64, 65, 130):
        link = _links(pair)[0]
        link.begin(7, b"", LIMIT)
        while not link.sent:
            link.push()
        for byte in frame[:crumbs]:
            pair[1].send(bytes([byte]))
        pair[1].send(frame[crumbs:])
        with selectors.DefaultSelector() as selector:
            selector.register(link.connection, selectors.EVENT_READ)
            while link.body is None:
                assert selector.select(5)
                link.pull()
        assert link.body == b"y" * 300
        assert pair[1].recv(20) == _raw_frame(7, b"")


def test_a_record_with_two_frames_is_an_error_and_does_not_hide_bytes():
    with Listener(host="127.0.0.1", secret=SECRET, purpose=MESH, tls=IDENTITY) as listener:
        ours = dial(*listener.address, SECRET, MESH, peer="x", timeout_seconds=5, tls=IDENTITY)
        theirs = listener.accept(5)[0]
    with ours, theirs:
        link = _links((ours, theirs))[0]
        link.begin(1, b"", LIMIT)
        theirs.send(_raw_frame(1, b"one") + _raw_frame(2, b"two"))
        with selectors.DefaultSelector() as selector:
            selector.register(ours, selectors.EVENT_READ)
            assert selector.select(5)
        with pytest.raises(
            ProtocolError, match=r"rank 0 at h:1: expected a record .* received 23 bytes after it"
        ):
            link.pull()


@pytest.mark.parametrize("end", ["a close", "a reset", "bytes that are not TLS"])
def test_an_end_in_the_middle_of_a_frame_is_an_oserror(pair, end):
    link = _links(pair)[0]
    link.begin(1, b"", LIMIT)
    pair[1].setblocking(True)
    pair[1].sendall(_raw_frame(1, bytes(1000))[:500])
    if end == "a reset":
        pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if end == "bytes that are not TLS" and isinstance(pair[1], ssl.SSLSocket):
        socket.socket.send(pair[1], b"these bytes are none" * 10)
    else:
        pair[1].close()
    with selectors.DefaultSelector() as selector, pytest.raises(OSError):  # noqa: PT011, PT012
        selector.register(link.connection, selectors.EVENT_READ)
        for _ in range(100):
            assert selector.select(5)
            link.pull()
    assert link.body is None


def test_frames_cross_while_several_threads_send(pair):
    """Both ends receive in one thread and send from three others: small frames, and the longest there are."""
    ends = [FramedConnection(connection, f"end {i}") for i, connection in enumerate(pair)]
    count, senders = 40, 3

    def send(end, thread):
        for number in range(count):
            size = MAX_BODY_BYTES if number % 10 == thread else number * 37
            body = bytes([thread, number]) + random.Random(thread * count + number).randbytes(size)[:-2]
            ends[end].send(FrameKind.BLOB_DATA, body, timeout_seconds=20)

    def receive(end):
        expected = [0] * senders
        for _ in range(count * senders):
            body = ends[end].receive(timeout_seconds=20).body
            thread, number = body[:2]
            assert number == expected[thread]
            expected[thread] += 1
            size = MAX_BODY_BYTES if number % 10 == thread else number * 37
            assert body[2:] == random.Random(thread * count + number).randbytes(size)[:-2]

    jobs = [lambda end=end: receive(end) for end in (0, 1)]
    jobs += [lambda end=end, thread=thread: send(end, thread) for end in (0, 1) for thread in range(senders)]
    in_threads(jobs)
    for end in ends:
        end.close()


class _Watched(socket.socket):
    """Notices when two threads use it at the very same time, which TLS does not allow."""

    def __init__(self, connection):
        super().__init__(fileno=connection.detach())
        self._inside = threading.Lock()
        self.overlaps = 0

    def _alone(self, call, data):
        if not self._inside.acquire(blocking=False):
            self.overlaps += 1
            return call(data)
        try:
            time.sleep(0.001)  # room for another thread to come in
            return call(data)
        finally:
            self._inside.release()

    def send(self, data):
        return self._alone(super().send, data)

    def recv_into(self, data):
        return self._alone(super().recv_into, data)


def test_no_two_threads_use_a_connection_at_the_very_same_time():
    sockets = [_Watched(end) for end in socket.socketpair()]
    ends = [FramedConnection(connection, "x") for connection in sockets]

    def send(end):
        for _ in range(50):
            end.send(FrameKind.HEARTBEAT, b"x", timeout_seconds=20)

    def receive(end):
        for _ in range(100):
            end.receive(timeout_seconds=20)

    in_threads([lambda end=end, job=job: job(end) for end in ends for job in (send, send, receive)])
    assert [connection.overlaps for connection in sockets] == [0, 0]
    for end in ends:
        end.close()


def test_frames_that_came_together_are_received_one_by_one(pair):
    """What was decrypted with the first frame is found without waiting for the network."""
    end = FramedConnection(pair[0], "x")
    frame = struct.pack(">2sBI", b"FW", FrameKind.REPORT, 3)
    pair[1].setblocking(True)
    pair[1].sendall(b"".join(frame + b"%03d" % number for number in range(50)))
    assert [end.receive(timeout_seconds=5).body for _ in range(50)] == [b"%03d" % n for n in range(50)]
    end.close()


def test_a_shutdown_wakes_who_receives_and_who_sends(pair):
    end = FramedConnection(pair[0], "the peer")
    started = threading.Barrier(3)
    errors = {}

    def attempt(name, call):
        started.wait()
        begin = time.monotonic()
        try:
            call()
        except PeerLost as error:
            errors[name] = error
        assert time.monotonic() - begin < 5

    def fill():
        for _ in range(1000):  # until the system takes no more
            end.send(FrameKind.BLOB_DATA, bytes(MAX_BODY_BYTES), timeout_seconds=30)

    receiving = threading.Thread(target=attempt, args=("receive", lambda: end.receive(timeout_seconds=30)))
    sending = threading.Thread(target=attempt, args=("send", fill))
    receiving.start()
    sending.start()
    started.wait()
    time.sleep(0.2)  # both wait inside by now; if not, they find a connection that has ended
    assert receiving.is_alive()
    assert sending.is_alive()
    end.shutdown()
    receiving.join(5)
    sending.join(5)
    assert sorted(errors) == ["receive", "send"]
    end.close()


def test_bytes_that_lie_unread_at_a_shutdown_are_not_taken_for_text(pair):
    """After the shutdown what had come is still read, decrypted; then the end."""
    end, other = FramedConnection(pair[0], "x"), FramedConnection(pair[1], "y")
    other.send(FrameKind.REPORT, b"the last words", timeout_seconds=5)
    with selectors.DefaultSelector() as selector:
        selector.register(pair[0], selectors.EVENT_READ)
        assert selector.select(5)
    end.shutdown()
    assert end.receive(timeout_seconds=5).body == b"the last words"
    with pytest.raises(PeerLost, match="x closed the connection"):
        end.receive(timeout_seconds=5)
    end.close()
    other.close()


def test_a_silent_peer_is_given_up_in_time(pair):
    end = FramedConnection(pair[0], "the peer")
    begin = time.monotonic()
    with pytest.raises(PeerLost, match=r"the peer was silent for 0\.3 seconds"):
        end.receive(timeout_seconds=0.3)
    assert 0.2 < time.monotonic() - begin < 2
    end.close()


def test_a_peer_that_takes_nothing_is_given_up_in_time(pair):
    end = FramedConnection(pair[0], "the peer")
    begin = time.monotonic()
    with pytest.raises(PeerLost, match=r"the peer took nothing for 0\.3 seconds"):  # noqa: PT012
        for _ in range(1000):
            end.send(FrameKind.BLOB_DATA, bytes(MAX_BODY_BYTES), timeout_seconds=0.3)
    assert 0.2 < time.monotonic() - begin < 5
    with pytest.raises(PeerLost):  # half a frame is out: nothing may follow it
        end.send(FrameKind.HEARTBEAT, timeout_seconds=0.3)
    end.close()
