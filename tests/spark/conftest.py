"""What the tests of real fits share: a frame whose rows have numbers, what the driver saw, and that nothing is left."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fatwood.exchange import Event
from fatwood.spark.watch import Watch


def open_sockets(spark) -> set[tuple[object, ...]]:
    """All of this process but those between Spark's own Python and its JVM, and to servers such as that of Spark Connect."""
    everywhere = psutil.net_connections(kind="inet")
    found = [c for c in everywhere if c.pid == os.getpid()]
    listening = {c.laddr.port for c in found if c.status == "LISTEN"}
    servers = {c.laddr.port for c in everywhere if c.status == "LISTEN" and c.pid != os.getpid()}
    known = {*listening, *servers, spark.sparkContext._gateway.gateway_parameters.port}
    ours = [c for c in found if c.status == "LISTEN" or not {c.laddr.port, c.raddr.port} & known]
    return {(c.laddr, c.raddr, c.status) for c in ours}


@pytest.fixture
def nothing_left(spark, monkeypatch, tmp_path):
    """Whatever the test's fits did, they leave no thread, file, socket, broadcast or job."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    context = spark.sparkContext
    sockets, broadcasts = open_sockets(spark), set(os.listdir(context._temp_dir))
    yield
    gc.collect()
    deadline = time.monotonic() + 10
    while open_sockets(spark) - sockets and time.monotonic() < deadline:
        gc.collect()  # Spark's own sockets of results, that its threads close a moment later on a busy machine
        time.sleep(0.05)
    assert [t.name for t in threading.enumerate() if t.name.startswith("fatwood")] == []
    assert list(tmp_path.glob("fatwood-*")) == []
    assert list(Path(context.getConf().get("spark.local.dir")).rglob("fatwood*")) == []
    assert open_sockets(spark) - sockets == set()
    assert set(os.listdir(context._temp_dir)) == broadcasts
    assert list(context.statusTracker().getActiveJobsIds()) == []


class Seen:
    """The events of all fits of a test, as the driver took them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.call: Callable[[Event], None] | None = None
        """Called with every event, in the driver's thread."""
        self._changed = threading.Condition()

    def add(self, event: Event) -> None:
        if self.call is not None:
            self.call(event)
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def of(self, kind: str, rank: int | None = None) -> list[Event]:
        """Those of one kind, and one rank."""
        return [e for e in self.events if e.kind == kind and rank in (None, e.rank)]

    def pids(self, rank: int) -> list[int]:
        """The processes that joined as a rank, in their order."""
        return [int(event.body["facts"]["pid"]) for event in self.of("joined", rank)]

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
        """Return when a condition on the events holds."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, f"not within {seconds} s: {what}"
                self._changed.wait(left)


@pytest.fixture
def seen(monkeypatch) -> Seen:
    """What workers tell the driver."""
    found, take = Seen(), Watch._take

    def spied(self: Watch, event: Event) -> None:
        take(self, event)
        found.add(event)

    monkeypatch.setattr(Watch, "_take", spied)
    return found


@pytest.fixture
def meanwhile():
    """Runs a function beside the test; what it raises is the test's failure."""
    threads: list[threading.Thread] = []
    errors: list[BaseException] = []

    def start(function: Callable[[], object]) -> None:
        def run() -> None:
            try:
                function()
            except BaseException as error:
                errors.append(error)

        threads.append(threading.Thread(target=run, name="meanwhile", daemon=True))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
