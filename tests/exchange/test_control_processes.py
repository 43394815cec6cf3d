"""Drivers and workers in real processes that are killed, frozen and thawed."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import fatwood
from fatwood.errors import ExchangeError
from fatwood.exchange import Coordinator, Member

SECRET = os.urandom(32)
DRIVER = """
import sys, tempfile
from pathlib import Path
from fatwood.exchange import Coordinator

secret = bytes.fromhex(sys.stdin.readline())
with tempfile.TemporaryDirectory() as inbox:
    coordinator = Coordinator(
        workers=2, min_workers=1, start_timeout_seconds=0.1, secret=secret, host="127.0.0.1", inbox=Path(inbox),
        max_blob_bytes=1, heartbeat_timeout_seconds=2.0,
    )
    print(coordinator.address[1], flush=True)
    sys.stdin.readline()
"""
WORKER = """
import sys
from fatwood.errors import ExchangeError
from fatwood.exchange import Member

secret, port = bytes.fromhex(sys.stdin.readline()), int(sys.stdin.readline())
with Member.join(
    ("127.0.0.1", port), secret=secret, rank=1, facts={}, patience_seconds=30, heartbeat_seconds=0.1,
    coordinator_timeout_seconds=20,
) as member:
    member.ready()
    number = 0
    while True:
        print(number, flush=True)
        try:
            number = member.view_after(number).number
        except ExchangeError as error:
            print(f"out: {error}".replace(chr(10), " "), flush=True)
            break
"""


@contextmanager
def _process(program, *lines):
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(fatwood.__file__).parents[1])},
    )
    try:
        for line in (SECRET.hex(), *lines):
            print(line, file=process.stdin, flush=True)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextmanager
def _member(port, rank, **options):
    options = {"patience_seconds": 30.0, "heartbeat_seconds": 0.1, **options}
    with Member.join(("127.0.0.1", port), secret=SECRET, rank=rank, facts={}, **options) as member:
        member.ready()
        yield member


@pytest.mark.parametrize(
    ("blow", "why", "limit"), [("SIGKILL", "closed the connection", 0.7), ("SIGSTOP", "silent for 0.8", 2.5)]
)
def test_members_notice_a_driver_that_is_gone(blow, why, limit):
    stops = queue.Queue()
    with (
        _process(DRIVER) as driver,
        _member(
            int(driver.stdout.readline()), 0, coordinator_timeout_seconds=0.8, on_stop=stops.put
        ) as member,
    ):
        assert member.view_after(0).number == 1
        begin = time.monotonic()
        driver.send_signal(getattr(signal, blow))
        with pytest.raises(ExchangeError, match=why):
            member.view_after(1)
        assert time.monotonic() - begin < limit
        assert why in stops.get(timeout=5)
        assert not member.is_current(1)


@pytest.fixture
def pair(tmp_path):
    """A coordinator, rank 0 in this process and rank 1 in a process of its own, in one view."""
    with (
        Coordinator(
            workers=2,
            secret=SECRET,
            host="127.0.0.1",
            inbox=tmp_path,
            max_blob_bytes=1,
            heartbeat_timeout_seconds=0.8,
        ) as coordinator,
        _member(coordinator.address[1], 0) as member,
        _process(WORKER, coordinator.address[1]) as worker,
    ):
        assert member.view_after(0).ranks == (0, 1)
        assert [worker.stdout.readline() for _ in range(2)] == ["0\n", "1\n"]
        yield coordinator, member, worker


def _lost(coordinator):
    while (event := coordinator.next_event(5)).kind != "lost":
        pass
    return event


def test_a_killed_worker_is_out_of_the_view_at_once(pair):
    coordinator, member, worker = pair
    begin = time.monotonic()
    worker.kill()
    assert member.view_after(1).ranks == (0,)
    assert time.monotonic() - begin < 0.5
    lost = _lost(coordinator)
    assert (lost.rank, "closed the connection" in lost.body["reason"]) == (1, True)


def test_a_frozen_worker_is_out_after_the_timeout_and_learns_it_when_it_thaws(pair):
    coordinator, member, worker = pair
    begin = time.monotonic()
    worker.send_signal(signal.SIGSTOP)
    assert member.view_after(1).ranks == (0,)
    assert 0.5 < time.monotonic() - begin < 3
    assert "silent for 0.8 seconds" in _lost(coordinator).body["reason"]
    worker.send_signal(signal.SIGCONT)
    assert worker.stdout.readline().startswith("out: ")
    assert worker.wait(10) == 0
    assert member.is_current(2)


def test_a_frozen_worker_can_be_replaced_while_it_sleeps(pair):
    coordinator, member, worker = pair
    worker.send_signal(signal.SIGSTOP)
    with _member(coordinator.address[1], 1) as spare:  # before anybody knows
        view = spare.view_after(0)
        assert (view.ranks, spare.is_newcomer(view.number)) == ((0, 1), True)
        assert member.view_after(view.number - 1).peers == view.peers
        worker.send_signal(signal.SIGCONT)
        assert worker.stdout.readline().startswith("out: ")
        assert spare.is_current(view.number)
