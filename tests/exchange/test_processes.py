"""Real processes that are killed and frozen while they exchange."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fatwood
from fatwood.errors import PeerLost
from fatwood.exchange import Listener, Lobby, Peer, TcpExchange, View
from fatwood.exchange.auth import MESH

SECRET = os.urandom(32)
SILENCE_SECONDS = 1.2
WORKER = """
import json, queue, sys, threading
from fatwood.errors import ExchangeError
from fatwood.exchange import Listener, Lobby, Peer, TcpExchange, View
from fatwood.exchange.auth import MESH

secret = bytes.fromhex(sys.stdin.readline())
lobby = Lobby(Listener(host="127.0.0.1", secret=secret, purpose=MESH))
print(lobby.listener.address[1], flush=True)
views = queue.Queue()
exchanges = []

def hear():
    for line in sys.stdin:
        number, rank, peers = json.loads(line)
        lobby.supersede(number)
        for exchange in list(exchanges):
            exchange.close()
        views.put(View(number, rank, tuple(Peer(*peer) for peer in peers)))

threading.Thread(target=hear, daemon=True).start()
while True:
    view = views.get()
    try:
        exchanges.append(TcpExchange.connect(view, lobby, secret, timeout_seconds=30, max_message_bytes=1000))
        for step in range(1_000_000):
            exchanges[-1].gather(step, b"rank %d" % view.rank)
    except ExchangeError:
        pass
"""


class _Worker:
    """A process that trains in the views that it is told of."""

    def __init__(self, rank):
        self.rank = rank
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(fatwood.__file__).parents[1])},
        )
        self._say(SECRET.hex())

    def peer(self):
        return Peer(self.rank, "127.0.0.1", int(self.process.stdout.readline()))

    def tell(self, number, peers):
        self._say(json.dumps([number, self.rank, [[peer.rank, peer.host, peer.port] for peer in peers]]))

    def _say(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def trio():
    """Rank 0 in this process, ranks 2 and 5 in processes of their own."""
    workers = []
    try:
        workers += [_Worker(2), _Worker(5)]
        with Lobby(Listener(host="127.0.0.1", secret=SECRET, purpose=MESH)) as lobby:
            peers = (Peer(0, *lobby.listener.address), *(worker.peer() for worker in workers))
            for worker in workers:
                worker.tell(1, peers)
            yield lobby, peers, workers
    finally:
        for worker in workers:
            worker.end()


def _connect(view, lobby):
    return TcpExchange.connect(view, lobby, SECRET, timeout_seconds=SILENCE_SECONDS, max_message_bytes=1000)


def _gather_until_lost(exchange):
    def train():
        for step in range(20, 1_000_000):
            exchange.gather(step, b"rank 0")

    begin = time.monotonic()
    with pytest.raises(PeerLost) as caught:
        train()
    return caught.value, time.monotonic() - begin


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_lost_worker_is_named_and_the_others_go_on_in_the_next_view(trio, number):
    lobby, peers, (two, five) = trio
    with _connect(View(1, 0, peers), lobby) as exchange:
        for step in range(20):
            assert exchange.gather(step, b"rank 0") == [b"rank 0", b"rank 2", b"rank 5"]
        five.process.send_signal(number)
        error, seconds = _gather_until_lost(exchange)
    assert error.rank == 5
    assert f"rank 5 at {peers[2].host}:{peers[2].port}" in str(error)
    assert "gather step" in str(error)
    if number == signal.SIGKILL:
        assert seconds < 1
    else:
        assert f"silent for {SILENCE_SECONDS} seconds" in str(error)
        assert 0.8 < seconds < 4
    rest = peers[:2]
    two.tell(2, rest)
    lobby.supersede(2)
    with _connect(View(2, 0, rest), lobby) as exchange:
        for step in range(20):
            assert exchange.gather(step, b"rank 0") == [b"rank 0", b"rank 2"]
