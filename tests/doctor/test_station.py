"""Who reaches whom: stations and visitors with real sockets on loopback."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fatwood.doctor.station import PURPOSE, Station, visit
from fatwood.exchange import new_secret
from fatwood.exchange.auth import dial

SECRET = new_secret()


@pytest.fixture
def driver() -> Iterator[Station]:
    station = Station(host="127.0.0.1", secret=SECRET, expected=3, gather_seconds=5.0)
    yield station
    station.close()
    assert [t.name for t in threading.enumerate() if t.name.startswith("fatwood")] == []


def order(port: int, number: int, secret: bytes = SECRET) -> dict[str, Any]:
    where = {"host": "127.0.0.1", "port": port, "secret": secret.hex()}
    return {**where, "number": number, "gather_seconds": 5.0}


def visits(*orders: dict[str, Any]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    threads = [
        threading.Thread(target=lambda one=one: found.update({one["number"]: visit(one)})) for one in orders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_everybody_calls_the_driver_and_all_others(driver) -> None:
    found = visits(*(order(driver.port, number) for number in (7, 8, 9)))
    assert {number: set(one["peers"]) for number, one in found.items()} == {
        7: {"8", "9"},
        8: {"7", "9"},
        9: {"7", "8"},
    }
    for one in found.values():
        for call in (one["driver"], *one["peers"].values()):
            assert call["error"] is None
            assert abs(call["clock_ahead_seconds"]) <= call["clock_error_seconds"] + 0.001
            assert 0 < call["round_trip_seconds"] < 1
            assert call["bytes_per_second"] > 1e6


def test_who_comes_alone_does_not_wait_for_ever() -> None:
    station = Station(host="127.0.0.1", secret=SECRET, expected=2, gather_seconds=0.5)
    try:
        start = time.monotonic()
        found = visits({**order(station.port, 0), "gather_seconds": 0.5})
    finally:
        station.close()
    assert found[0]["peers"] == {}
    assert found[0]["driver"]["error"] is None
    assert time.monotonic() - start < 20


def test_a_refused_port_is_told_with_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = visit(order(port, 0))["driver"]["error"]
    assert f"127.0.0.1:{port}" in error
    assert "refused" in error


def test_a_stranger_learns_nothing(driver) -> None:
    found = visit(order(driver.port, 0, secret=new_secret()))
    assert "does not know this job's secret" in found["driver"]["error"]
    assert found["peers"] == {}


@pytest.mark.parametrize("question", [b"x" + bytes(8), struct.pack(">cQ", b"d", 1 << 40), b"h" + b"\xff" * 8])
def test_questions_that_make_no_sense_end_the_connection(driver, question) -> None:
    with dial("127.0.0.1", driver.port, SECRET, PURPOSE, peer="the driver", timeout_seconds=5) as connection:
        connection.sendall(question)
        connection.settimeout(5)
        assert connection.recv(1) == b""
