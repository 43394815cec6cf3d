"""Real processes that are killed and frozen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fatwood
from fatwood.errors import PeerLost
from fatwood.exchange import Coordinator, Member, TcpExchange

SECRET = os.urandom(32)
WORKER = """
import sys
from fatwood.exchange import Member, TcpExchange

host, port, secret = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.stdin.readline())
member = Member.join((host, port), secret=secret, rank=1, facts={}, start_timeout_seconds=30, heartbeat_seconds=0.2)
exchange = TcpExchange.connect(member.view, member.listener, secret, timeout_seconds=30, max_message_bytes=1000)
for step in range(1_000_000):
    exchange.gather(step, b"worker")
"""


@pytest.fixture
def trio(tmp_path):
    """A coordinator, rank 0 in this process, rank 1 in a process of its own."""
    with Coordinator(
        workers=2,
        secret=SECRET,
        host="127.0.0.1",
        inbox=tmp_path,
        max_blob_bytes=1,
        heartbeat_timeout_seconds=0.8,
    ) as coordinator:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *map(str, coordinator.address)],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(fatwood.__file__).parents[1])},
        )
        try:
            process.stdin.write(SECRET.hex().encode() + b"\n")
            process.stdin.flush()
            with (
                Member.join(
                    coordinator.address,
                    secret=SECRET,
                    rank=0,
                    facts={},
                    start_timeout_seconds=30,
                    heartbeat_seconds=0.2,
                ) as member,
                TcpExchange.connect(
                    member.view, member.listener, SECRET, timeout_seconds=1.2, max_message_bytes=1000
                ) as exchange,
            ):
                kinds = {coordinator.next_event(5).kind for _ in range(3)}
                assert kinds == {"joined", "started"}
                yield coordinator, member, exchange, process
        finally:
            process.kill()
            process.stdin.close()
            process.wait()


def _gather_until_lost(exchange):
    def train():
        for step in range(20, 1_000_000):
            exchange.gather(step, b"test")

    begin = time.monotonic()
    with pytest.raises(PeerLost) as caught:
        train()
    return str(caught.value), time.monotonic() - begin


def test_a_killed_worker_is_lost_at_once(trio):
    coordinator, member, exchange, process = trio
    for step in range(20):
        assert exchange.gather(step, b"test") == [b"test", b"worker"]
    process.send_signal(signal.SIGKILL)
    text, seconds = _gather_until_lost(exchange)
    peer = member.view.peers[1]
    assert f"rank 1 at {peer.host}:{peer.port}" in text
    assert "gather step" in text
    assert seconds < 1.0
    lost = coordinator.next_event(0.7)
    assert (lost.rank, lost.kind) == (1, "lost")
    assert "closed" in lost.body["reason"]


def test_a_frozen_worker_is_lost_after_the_timeouts(trio):
    coordinator, member, exchange, process = trio
    for step in range(20):
        exchange.gather(step, b"test")
    process.send_signal(signal.SIGSTOP)
    text, seconds = _gather_until_lost(exchange)
    assert "silent for 1.2 seconds" in text
    assert 0.8 < seconds < 4
    lost = coordinator.next_event(0.1)  # its timeout was the shorter one
    assert (lost.rank, lost.kind) == (1, "lost")
    assert "silent for 0.8 seconds" in lost.body["reason"]
    assert member.stopped is None
