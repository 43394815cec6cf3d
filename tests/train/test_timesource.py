"""Time sources: the driver, the machine, or a time server that may not answer."""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fatwood.errors import OptionError
from fatwood.exchange import Coordinator, Member
from fatwood.train.timesource import checked_time_source, measure_offset

SECRET = os.urandom(32)
SINCE_1900 = 2_208_988_800


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Member]:
    with (
        Coordinator(
            workers=1, secret=SECRET, host="127.0.0.1", inbox=tmp_path, max_blob_bytes=1000
        ) as coordinator,
        Member.join(
            coordinator.address, secret=SECRET, rank=0, facts={}, patience_seconds=5.0, heartbeat_seconds=0.2
        ) as joined,
    ):
        yield joined


def _stamp(seconds: float) -> bytes:
    whole = int(seconds)
    return struct.pack(">II", whole + SINCE_1900, int((seconds - whole) * 2**32))


@contextmanager
def time_server(skew: float | None) -> Iterator[str]:
    """An NTP server on loopback whose clock is wrong by so many seconds; None never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.05)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    request, sender = server.recvfrom(512)
                except TimeoutError:
                    continue
                if skew is None:
                    continue
                now = time.time() + skew
                head = struct.pack(">BBbbII4s", 0x24, 1, 4, -20, 0, 0, b"TEST")
                server.sendto(head + _stamp(now) + request[40:48] + _stamp(now) + _stamp(now), sender)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"ntp:127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("skew", [0.0, 42.5, -3.25])
def test_a_time_server_tells_the_offset(member: Member, skew: float) -> None:
    pytest.importorskip("ntplib")
    with time_server(skew) as source:
        found = measure_offset(source, member)
    assert (found.source, found.remark) == ("ntp", "")
    assert found.seconds == pytest.approx(skew, abs=0.2)
    assert found.error_seconds is not None
    assert abs(found.seconds - skew) <= found.error_seconds + 1e-3


def test_a_silent_time_server_costs_two_seconds_and_one_warning(
    member: Member, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("ntplib")
    with time_server(None) as source, caplog.at_level(logging.WARNING):
        start = time.monotonic()
        found = measure_offset(source, member)
        took = time.monotonic() - start
        time.sleep(0.3)  # the asking thread's own timeout
    assert took < 3.5
    assert found.source == "job"
    assert found.error_seconds is not None
    assert source in found.remark
    assert [record.name for record in caplog.records] == ["fatwood.clock"]


def test_the_driver_is_the_default_and_the_machine_needs_nobody(member: Member) -> None:
    assert measure_offset("job", member).source == "job"
    assert measure_offset("job", member).remark == ""
    found = measure_offset("system", member)
    assert (found.seconds, found.error_seconds, found.source) == (0.0, None, "system")


def test_without_a_driver_the_machines_clock_is_left(member: Member) -> None:
    member.close()
    found = measure_offset("job", member)
    assert (found.seconds, found.error_seconds, found.source) == (0.0, None, "system")
    assert "coordinator" in found.remark


@pytest.mark.parametrize("source", ["job", "system"])
def test_sources_that_can_be(source: str) -> None:
    assert checked_time_source(source) == source


@pytest.mark.parametrize(
    "source", ["", "gps", "ntp:host:port", "ntp:host:0", "ntp:host:70000", None, 3, "Job"]
)
def test_sources_that_cannot_be(source: str) -> None:
    with pytest.raises(OptionError, match="time_source"):
        checked_time_source(source)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ntplib", None)
    with pytest.raises(OptionError, match=r"fatwood\[ntp\]"):
        checked_time_source("ntp")
