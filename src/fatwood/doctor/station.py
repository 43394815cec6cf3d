"""Who reaches whom, how fast, and how the clocks stand: a listener on the driver and one in each task.

Every connection begins with the proof of the examination's secret (:mod:`fatwood.exchange.auth`). Then the connector asks,
each question being one letter and a number of 8 bytes, big-endian:

======  =====================  ==========================================================
letter  number                 answer
======  =====================  ==========================================================
``t``   0                      the time of the listener's clock, as a float of 8 bytes
``u``   n                      after the n bytes that follow: ``k``
``d``   n                      n bytes
``h``   n, then n bytes JSON   at the driver, once all have come: the length and JSON of all addresses
``f``   0                      at the driver, once all have asked it or the time is over: ``k``
======  =====================  ==========================================================

All waits are bounded. Numbers are checked before memory is taken.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, final

from fatwood.errors import ExchangeError
from fatwood.exchange.auth import dial
from fatwood.exchange.listener import Listener

__all__ = ["PURPOSE", "Station", "visit"]

PURPOSE: Final = b"doctor"
_QUESTION: Final = struct.Struct(">cQ")
_TIME: Final = struct.Struct(">d")
_LENGTH: Final = struct.Struct(">Q")
_BULK_BYTES: Final = 4 << 20
_PIECE: Final = bytes(1 << 16)
_MAX_JSON_BYTES: Final = 1 << 20
_ROUNDS: Final = 8
_PEERS: Final = 8
"""How many others a task calls; with more tasks each calls its successors only."""
_DIAL_SECONDS: Final = 6.0
_ANSWER_SECONDS: Final = 20.0
_GLANCE_SECONDS: Final = 0.2


@final
class Station:
    """Listens and answers, with a thread for each connection.

    Args:
        host: The address to bind.
        secret: Of this examination.
        expected: How many tasks are awaited; 0 for a task's own station.
        gather_seconds: How long those that have come wait for the others.
    """

    def __init__(self, *, host: str, secret: bytes, expected: int = 0, gather_seconds: float = 0.0) -> None:
        self._listener = Listener(host=host, secret=secret, purpose=PURPOSE)
        self._expected = expected
        self._gather_seconds = gather_seconds
        self._come: dict[int, dict[str, Any]] = {}
        self._done: set[int] = set()
        self._deadline: float | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._accepting = self._begin(self._accept, "fatwood-doctor-accept")

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._listener.address[1]

    def close(self) -> None:
        """End all threads and connections; idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._listener.interrupt()
        self._accepting.join()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _begin(self, target: Any, name: str, *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        while not self._closed:
            found = self._listener.accept(_GLANCE_SECONDS)
            if found is not None:
                self._threads.append(self._begin(self._serve, "fatwood-doctor-answer", found[0]))

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError):
            connection.settimeout(_GLANCE_SECONDS)
            while not self._closed:
                try:
                    first = connection.recv(1)
                except TimeoutError:
                    continue
                if not first:
                    return
                connection.settimeout(_ANSWER_SECONDS)
                kind, number = _QUESTION.unpack(first + _exactly(connection, _QUESTION.size - 1))
                self._answer(connection, kind, number)
                connection.settimeout(_GLANCE_SECONDS)

    def _answer(self, connection: socket.socket, kind: bytes, number: int) -> None:
        if kind == b"t":
            connection.sendall(_TIME.pack(time.time()))
        elif kind == b"u" and number <= _BULK_BYTES:
            _discard(connection, number)
            connection.sendall(b"k")
        elif kind == b"d" and number <= _BULK_BYTES:
            _send_zeros(connection, number)
        elif kind == b"h" and number <= _MAX_JSON_BYTES:
            body = json.dumps(self._gathered(json.loads(_exactly(connection, number)))).encode()
            connection.sendall(_LENGTH.pack(len(body)) + body)
        elif kind == b"f":
            self._finished(number)
            connection.sendall(b"k")
        else:
            message = "a question that makes no sense"
            raise ValueError(message)

    def _gathered(self, newcomer: dict[str, Any]) -> list[dict[str, Any]]:
        with self._changed:
            self._come[int(newcomer["number"])] = newcomer
            if self._deadline is None:
                self._deadline = time.monotonic() + self._gather_seconds
            self._changed.notify_all()
            self._await(lambda: len(self._come) >= self._expected, self._deadline)
            return [self._come[number] for number in sorted(self._come)]

    def _finished(self, number: int) -> None:
        with self._changed:
            self._done.add(number)
            self._changed.notify_all()
            self._await(lambda: self._done >= set(self._come), time.monotonic() + self._gather_seconds)

    def _await(self, condition: Any, deadline: float) -> None:
        left = max(0.0, deadline - time.monotonic())
        self._changed.wait_for(lambda: self._closed or condition(), left)


def visit(order: Mapping[str, Any]) -> dict[str, Any]:
    """A task's part: call the driver, listen, call the others, and leave when all have been called.

    Args:
        order: ``host`` and ``port`` of the driver's station, the ``secret`` in hexadecimal digits, the task's ``number``,
            and ``gather_seconds``.

    Returns:
        ``driver`` and, by the number of the task, ``peers``: each what :func:`_measured` found, or an ``error``.
    """
    secret = bytes.fromhex(order["secret"])
    found: dict[str, Any] = {"driver": {}, "peers": {}}
    try:
        control = dial(
            order["host"],
            order["port"],
            secret,
            PURPOSE,
            peer="the driver",
            timeout_seconds=_DIAL_SECONDS,
        )
    except ExchangeError as error:
        found["driver"] = {"error": error.message}
        return found
    with control:
        own = str(control.getsockname()[0])
        station = Station(host=own, secret=secret)
        try:
            control.settimeout(_ANSWER_SECONDS)
            found["driver"] = _measured(control)
            me = {"number": order["number"], "host": own, "port": station.port}
            control.settimeout(order["gather_seconds"] + _ANSWER_SECONDS)
            for peer in _neighbours(_ask_roster(control, me), order["number"]):
                found["peers"][str(peer["number"])] = _call(peer, secret)
            _ask(control, b"f", order["number"])
            _exactly(control, 1)
        except (OSError, ValueError) as error:
            found["driver"].setdefault("error", f"the connection broke: {type(error).__name__}: {error}")
        finally:
            station.close()
    return found


def _neighbours(roster: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """The next tasks after this one, in a ring."""
    at = next((i for i, peer in enumerate(roster) if peer["number"] == number), 0)
    return (roster[at + 1 :] + roster[:at])[:_PEERS]


def _call(peer: Mapping[str, Any], secret: bytes) -> dict[str, Any]:
    host, port = str(peer["host"]), int(peer["port"])
    try:
        with dial(
            host,
            port,
            secret,
            PURPOSE,
            peer=f"task {peer['number']}",
            timeout_seconds=_DIAL_SECONDS,
        ) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            return _measured(connection)
    except ExchangeError as error:
        return {"error": error.message}
    except OSError as error:
        return {"error": f"task {peer['number']} at {host}:{port}: {type(error).__name__}: {error}"}


def _measured(connection: socket.socket) -> dict[str, Any]:
    """Round trip and clock of the other side (the shortest trip counts), and the rate in both directions together."""
    trips = []
    for _ in range(_ROUNDS):
        local, start = time.time(), time.perf_counter()
        _ask(connection, b"t", 0)
        (other,) = _TIME.unpack(_exactly(connection, _TIME.size))
        seconds = time.perf_counter() - start
        trips.append((seconds, local + seconds / 2 - other))
    trip, offset = min(trips)
    start = time.perf_counter()
    _ask(connection, b"u", _BULK_BYTES)
    _send_zeros(connection, _BULK_BYTES)
    _exactly(connection, 1)
    _ask(connection, b"d", _BULK_BYTES)
    _discard(connection, _BULK_BYTES)
    rate = 2 * _BULK_BYTES / (time.perf_counter() - start)
    return {
        "round_trip_seconds": trip,
        "clock_ahead_seconds": offset,
        "clock_error_seconds": trip / 2,
        "bytes_per_second": rate,
        "error": None,
    }


def _ask_roster(connection: socket.socket, me: Mapping[str, Any]) -> list[dict[str, Any]]:
    body = json.dumps(me).encode()
    _ask(connection, b"h", len(body))
    connection.sendall(body)
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > _MAX_JSON_BYTES:
        message = f"the addresses of the others: expected at most {_MAX_JSON_BYTES} bytes, received {length}"
        raise ValueError(message)
    return list(json.loads(_exactly(connection, length)))


def _ask(connection: socket.socket, kind: bytes, number: int) -> None:
    connection.sendall(_QUESTION.pack(kind, number))


def _send_zeros(connection: socket.socket, count: int) -> None:
    for start in range(0, count, len(_PIECE)):
        connection.sendall(_PIECE[: count - start])


def _discard(connection: socket.socket, count: int) -> None:
    while count:
        got = len(connection.recv(min(count, len(_PIECE))))
        if not got:
            message = "it closed the connection"
            raise ConnectionResetError(message)
        count -= got


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            message = "it closed the connection"
            raise ConnectionResetError(message)
        data += piece
    return data
