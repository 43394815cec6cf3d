"""Hosts on this machine, with slow links if need be: network namespaces around a bridge, `tc tbf` on both ends of every link.

::

    driver ──── not shaped ────┐
    worker 0 ── tbf      tbf ──┤ bridge, in a namespace of its own
    worker 1 ── tbf      tbf ──┘ ...

Needs root, `ip` and `tc`. Nothing is made in the machine's own network; the names have this process's id in them, and what a
killed one has left is removed by the next.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fatwood.errors import ClusterError

__all__ = ["Network", "host_network", "inside", "on_host", "traffic"]

_PREFIX = "fatwood-hosts-"
_NAMES = Path("/run/netns")
_BURST_BYTES, _BURST_SECONDS = 4096, 2e-3
"""What passes at full speed after a pause: as little as can be on slow links. On faster ones it must not be less than what the link carries
in the time in which the system's timers are sure to come: with 4 kB a link of 1 Gbit/s carries 420 to 560 Mbit/s."""
_SLOW_MBIT = 200.0
_NET_NAMESPACE = 0x40000000
"""``CLONE_NEWNET``."""


@dataclass(frozen=True)
class Network:
    """Hosts, each a network namespace with one link, ``eth0``."""

    driver: str
    """The namespace."""
    driver_host: str
    """The address."""
    workers: tuple[str, ...]
    """Namespaces."""
    worker_hosts: tuple[str, ...]
    """Their addresses."""


@contextmanager
def host_network(workers: int, *, mbit: float | Sequence[float | None] | None = None) -> Iterator[Network]:
    """A network that is gone afterwards.

    Args:
        workers: Hosts beside the driver's.
        mbit: Megabits a second that each of them can send, and receive; None for as much as the machine can. Or one for each.

    Raises:
        ClusterError: Not root, or `ip` or `tc` is missing or may not do this here.
    """
    prefix = f"{_PREFIX}{os.getpid()}"
    bridge, driver = f"{prefix}-bridge", f"{prefix}-driver"
    hosts = [f"{prefix}-worker{rank}" for rank in range(workers)]
    rates = [*mbit] if isinstance(mbit, Sequence) else [mbit] * workers
    _remove_left()
    try:
        for name in (bridge, driver, *hosts):
            _call("ip", "netns", "add", name)
        _call("ip", "-n", bridge, "link", "add", "bridge", "type", "bridge")
        _call("ip", "-n", bridge, "link", "set", "bridge", "up")
        for number, (host, rate) in enumerate(zip((driver, *hosts), (None, *rates), strict=True)):
            _plug(host, bridge, number)
            if rate is not None:
                _shape(host, "eth0", rate)
                _shape(bridge, f"port{number}", rate)
        addresses = tuple(_address(number) for number in range(1, workers + 1))
        yield Network(driver, _address(0), tuple(hosts), addresses)
    finally:
        for name in (bridge, driver, *hosts):
            if (_NAMES / name).exists():
                _call("ip", "netns", "del", name)


def on_host(namespace: str | None, setup: str = "") -> list[str]:
    """The words that start a command on a host, before its own.

    Args:
        namespace: Of the network; None for the machine's own.
        setup: Commands of a shell that make the host what it is, run first, such as
            ``hostname small; mount -t tmpfs -o size=64m none /dev/shm; ulimit -n 700; export TMPDIR=/full``. The host name
            and what is mounted are of the command and its children alone. Needs root.
    """
    words = [] if namespace is None else ["ip", "netns", "exec", namespace]
    if setup:
        words += ["unshare", "--mount", "--uts", "sh", "-ec", f'{setup}\nexec "$@"', "sh"]
    return words


def traffic(namespace: str) -> tuple[int, int]:
    """Bytes that a host has received and sent on its link so far, with the headers of Ethernet, IP and TCP."""
    shown = json.loads(_call("ip", "-n", namespace, "-json", "-statistics", "link", "show", "eth0"))
    counted = shown[0]["stats64"]
    return int(counted["rx"]["bytes"]), int(counted["tx"]["bytes"])


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Sockets that this thread makes meanwhile, and threads that it starts, are on that host."""
    with Path("/proc/thread-self/ns/net").open() as home, (_NAMES / namespace).open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _NET_NAMESPACE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _remove_left() -> None:
    """Remove what a killed process has left."""
    for path in _NAMES.glob(f"{_PREFIX}*") if _NAMES.exists() else ():
        found = re.match(rf"{_PREFIX}(\d+)", path.name)
        if found is not None and not Path("/proc", found[1]).exists():
            _call("ip", "netns", "del", path.name)


def _address(number: int) -> str:
    return f"10.77.0.{10 + number}"


def _plug(host: str, bridge: str, number: int) -> None:
    port = f"port{number}"
    _call("ip", "-n", bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host)
    _call("ip", "-n", bridge, "link", "set", port, "master", "bridge", "up")
    _call("ip", "-n", host, "address", "add", f"{_address(number)}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _call("ip", "-n", host, "link", "set", device, "up")


def _shape(namespace: str, device: str, mbit: float) -> None:
    burst = _BURST_BYTES if mbit <= _SLOW_MBIT else round(_BURST_SECONDS * mbit * 1e6 / 8)
    rule = ("root", "tbf", "rate", f"{mbit:g}mbit", "burst", str(burst), "latency", "100ms")
    _call("ip", "netns", "exec", namespace, "tc", "qdisc", "add", "dev", device, *rule)


def _call(*command: str) -> str:
    hint = "network namespaces need root, and iproute2 (apt-get install iproute2)"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)  # noqa: S603
    except FileNotFoundError as error:
        text = f"{command[0]}: not found"
        raise ClusterError(text, hint=hint) from error
    if done.returncode:
        text = f"{' '.join(command)}: {done.stderr.strip()}"
        raise ClusterError(text, hint=hint)
    return done.stdout
