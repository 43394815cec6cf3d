"""Checks of who reaches whom: the driver, the other executors, and the storage."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from fatwood.doctor.finding import Check, Facts, Finding, is_local, places, where

__all__ = ["NETWORK"]

_SLOW_SECONDS = 0.01
_SLOW_BYTES = 50e6 / 8


def _driver_address(facts: Facts) -> Iterator[Finding]:
    host = facts["session"]["driver_host"]
    if host is None or is_local(facts) or not _is_loopback(host):
        return
    driver = facts["driver"]["hostname"]
    others = [where(process) for process in facts["executors"] if process["hostname"] != driver]
    if others or not facts["executors"]:
        yield Finding(
            title="driver's address",
            status="wrong",
            where=where(facts["driver"], "driver"),
            expected="an address that executors on other hosts reach",
            received=f"spark.driver.host={host}, for {', '.join(others) or 'no executor that answered'}",
            hint="--conf spark.driver.host=ADDRESS (or SPARK_LOCAL_IP=ADDRESS) with the address of the cluster's network",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith("localhost.")


def _to_driver(facts: Facts) -> Iterator[Finding]:
    for process in facts["executors"]:
        error = next((task["driver"].get("error") for task in process.get("tasks", ())), None)
        if error:
            yield Finding(
                title="way to the driver",
                status="wrong",
                where=where(process),
                expected="a connection to a port of the driver",
                received=error,
                hint="open the driver's ports in the firewall, and let spark.driver.host name an address that executors reach",
            )


def _among(facts: Facts) -> Iterator[Finding]:
    names = {
        str(task["number"]): where(process)
        for process in facts["executors"]
        for task in process.get("tasks", ())
    }
    seen = set()
    for place, number, found in _calls(facts):
        other = names.get(number, f"task {number}")
        if found.get("error") and (place, other) not in seen:
            seen.add((place, other))
            yield Finding(
                title="way between executors",
                status="wrong",
                where=place,
                expected=f"a connection to {other}",
                received=found["error"],
                hint="open the executors' ports to each other in the firewall or network policy; workers exchange directly",
            )


def _calls(facts: Facts) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Each call of a task to another: from where, to which task, and what came of it."""
    for process in facts["executors"]:
        for task in process.get("tasks", ()):
            for number, found in task["peers"].items():
                yield where(process), number, found


def _speed(facts: Facts) -> Iterator[Finding]:
    for process in facts["executors"]:
        found = _measurements(process)
        if not found:
            continue
        trip = min(float(one["round_trip_seconds"]) for one in found)
        rate = max(float(one["bytes_per_second"]) for one in found)
        if trip > _SLOW_SECONDS or rate < _SLOW_BYTES:
            yield Finding(
                title="network speed",
                status="warn",
                where=where(process),
                expected=f"a round trip within {_SLOW_SECONDS * 1e3:.0f} ms, {_SLOW_BYTES * 8e-6:.0f} Mbit/s or more",
                received=_speed_text(trip, rate),
                hint="`fatwood plan` says whether distributing pays at this speed; fewer exchanges (every=), or GradientSharing",
            )


def _measurements(process: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    calls = [
        found for task in process.get("tasks", ()) for found in (task["driver"], *task["peers"].values())
    ]
    return [found for found in calls if found.get("bytes_per_second")]


def _speed_text(trip: float, rate: float) -> str:
    return f"{trip * 1e3:.2f} ms, {rate * 8e-6:,.0f} Mbit/s"


def _speed_summary(facts: Facts) -> str:
    found = [one for process in facts["executors"] for one in _measurements(process)]
    if not found:
        return "not measured"
    trips = max(float(one["round_trip_seconds"]) for one in found)
    rates = min(float(one["bytes_per_second"]) for one in found)
    return f"{_speed_text(trips, rates)} at worst, all at once"


def _storage(facts: Facts) -> Iterator[Finding]:
    for place, process in places(facts):
        found = process.get("storage")
        if found and found["error"]:
            yield Finding(
                title="storage",
                status="wrong",
                where=place,
                expected=f"{found['uri']}: what the driver wrote is read, a file is written, read and deleted",
                received=found["error"],
                hint="check the store's package, address and credentials on that host (spark.executorEnv.NAME=...); a local path "
                "must be on a disk that all hosts share",
            )


def _storage_summary(facts: Facts) -> str:
    found = facts["driver"].get("storage")
    return f"{found['uri']} works everywhere" if found else "not asked for"


def _errands(facts: Facts) -> Iterator[Finding]:
    for process in facts["executors"]:
        error = process.get("errand_error")
        if error and process["packages"].get("fatwood") is not None:
            yield Finding(
                title="fatwood runs",
                status="wrong",
                where=where(process),
                expected="fatwood can be imported, and calls the driver",
                received=error,
                hint="install the same fatwood as on the driver there, with all it needs",
            )


def _reached(facts: Facts) -> str:
    count = sum(1 for process in facts["executors"] for task in process.get("tasks", ()) if task["driver"])
    return f"{count} tasks reached it"


NETWORK = (
    Check(
        title="driver's address",
        expected="one that executors reach",
        problems=_driver_address,
        received=lambda facts: str(facts["session"]["driver_host"]),
    ),
    Check(
        title="fatwood runs",
        expected="on every executor",
        problems=_errands,
        received=lambda facts: f"on {len(facts['executors'])} executors",
    ),
    Check(
        title="way to the driver",
        expected="open from every executor",
        problems=_to_driver,
        received=_reached,
    ),
    Check(
        title="way between executors",
        expected="open",
        problems=_among,
        received=lambda facts: f"{sum(1 for _ in _calls(facts))} connections tried",
    ),
    Check(
        title="network speed",
        expected="fast enough to exchange",
        problems=_speed,
        received=_speed_summary,
    ),
    Check(
        title="storage",
        expected="reached by driver and executors",
        problems=_storage,
        received=_storage_summary,
    ),
)
