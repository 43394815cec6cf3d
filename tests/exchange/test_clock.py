"""The offset of a worker's clock to the driver's, over the job's own connection."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fatwood.errors import OptionError, PeerLost, ProtocolError
from fatwood.exchange import Coordinator, Member, new_identity
from fatwood.exchange.clock import ClockProbe, pong
from fatwood.exchange.frames import Frame, FrameKind

SECRET = os.urandom(32)


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Coordinator, Member]]:
    identity = new_identity() if request.param else None
    coordinator = Coordinator(
        workers=1, secret=SECRET, host="127.0.0.1", inbox=tmp_path, max_blob_bytes=1000, tls=identity
    )
    with coordinator:
        address = coordinator.address
        with Member.join(
            address,
            secret=SECRET,
            rank=0,
            facts={},
            patience_seconds=5.0,
            heartbeat_seconds=0.2,
            tls=identity,
        ) as member:
            yield coordinator, member


@pytest.mark.parametrize("skew", [0.0, 3600.5, -86400.0])
def test_the_offset_is_within_its_error(pair: tuple[Coordinator, Member], skew: float) -> None:
    found = pair[1].clock_offset(clock=lambda: time.time() + skew)
    assert found.source == "job"
    assert found.error_seconds is not None
    assert 0 < found.error_seconds < 1.0
    assert abs(found.seconds + skew) <= found.error_seconds + 1e-3  # two clocks read one after the other


def test_more_rounds_are_no_worse(pair: tuple[Coordinator, Member]) -> None:
    errors = [pair[1].clock_offset(rounds=rounds).error_seconds for rounds in (1, 40)]
    assert errors[1] is not None
    assert errors[1] < 0.25


def test_threads_may_measure_at_the_same_time(pair: tuple[Coordinator, Member]) -> None:
    found: list[float] = []
    threads = [
        threading.Thread(target=lambda: found.append(pair[1].clock_offset().seconds)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert max(map(abs, found)) < 0.5


def test_without_a_coordinator_it_ends_at_once(pair: tuple[Coordinator, Member]) -> None:
    coordinator, member = pair
    coordinator.close()
    start = time.monotonic()
    with pytest.raises(PeerLost):
        member.clock_offset(timeout_seconds=30.0)
    assert time.monotonic() - start < 10


def test_arguments_that_cannot_work(pair: tuple[Coordinator, Member]) -> None:
    with pytest.raises(OptionError, match="at least one round and a positive time, received 0"):
        pair[1].clock_offset(rounds=0)
    with pytest.raises(OptionError):
        pair[1].clock_offset(timeout_seconds=0.0)


def frame(kind: FrameKind, **body: object) -> Frame:
    return Frame(kind, json.dumps(body).encode(), "the peer")


def test_the_shortest_round_trip_counts_and_late_answers_do_not() -> None:
    probe: ClockProbe
    delays = iter([0.05, 0.0, 0.02])

    def send(body: dict[str, int]) -> None:
        probe.deliver(frame(FrameKind.PONG, number=body["number"] - 1, time=1e9))  # of an earlier question
        time.sleep(next(delays))
        probe.deliver(frame(FrameKind.PONG, number=body["number"], time=time.time() + 7.0))

    probe = ClockProbe(send, "the peer")
    found = probe.measure(rounds=3)
    assert found.seconds == pytest.approx(7.0, abs=0.015)
    assert found.error_seconds is not None
    assert found.error_seconds < 0.01


def test_silence_is_told_and_what_came_before_counts() -> None:
    probe = ClockProbe(lambda _: None, "the peer")
    with pytest.raises(PeerLost, match=r"the peer did not tell its time within 0.05 seconds"):
        probe.measure(timeout_seconds=0.05)

    def once(body: dict[str, int]) -> None:
        if body["number"] == 1:
            probe.deliver(frame(FrameKind.PONG, number=1, time=time.time()))

    probe = ClockProbe(once, "the peer")
    assert probe.measure(timeout_seconds=0.1).seconds == pytest.approx(0.0, abs=0.05)
    probe.end()
    with pytest.raises(PeerLost):
        probe.measure(timeout_seconds=60.0)


def test_frames_that_make_no_sense() -> None:
    probe = ClockProbe(lambda _: None, "the peer")
    with pytest.raises(ProtocolError, match="the time in a PONG frame"):
        probe.deliver(frame(FrameKind.PONG, number=1, time="noon"))
    with pytest.raises(ProtocolError, match="number"):
        probe.deliver(frame(FrameKind.PONG, number=-1, time=1.0))
    with pytest.raises(ProtocolError, match="number"):
        pong(frame(FrameKind.PING))
    assert pong(frame(FrameKind.PING, number=4))["number"] == 4
