"""What a plan is told of a cluster, and how long its links take for the messages of an agreement.

Workers are a full mesh (:mod:`fatwood.exchange.mesh`). In a round each sends one message to every other and gets one of
each, in both directions at the same time::

    seconds of a round = (W - 1) x (message + frame) x 8 / (mbit x 10^6 x 0.94) + round trip / 2

W workers; 0.94 is what the headers of Ethernet, IP and TCP leave of a link. An agreement is one round where messages are
sparse. Where they are dense it is three: headers, the segments of every worker (reduce-scatter), their means (all-gather).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fatwood.errors import OptionError

__all__ = ["Cluster", "parse_mbit"]

_PAYLOAD = 0.94
_UNITS = {"kbit": 1e-3, "mbit": 1.0, "gbit": 1e3}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Workers and the links between them."""

    workers: int = 2
    """That train together, at least 2."""
    mbit: float = 1000.0
    """Megabits a second that each worker can send, and receive. Of a link that several share, each has its part."""
    round_trip_seconds: float = 0.0005
    """Between two workers."""
    cores_per_worker: int = 1
    """PyTorch's threads in each, ``spark.task.cpus``."""
    workers_per_executor: int = 1
    """In one container, beside one JVM."""
    sharing: float = 1.0
    """Workers that compute on the same core; more than 1 where a machine has fewer cores than its workers use."""

    def __post_init__(self) -> None:
        whole = (("workers", 2), ("cores_per_worker", 1), ("workers_per_executor", 1))
        for name, least in whole:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                text = f"{name}: expected a whole number of at least {least}, received {value!r}"
                raise OptionError(text)
        if not self.mbit > 0 or not self.round_trip_seconds >= 0 or not self.sharing >= 1:
            text = (
                "plan: expected mbit > 0, round_trip_seconds >= 0 and sharing >= 1, received "
                f"{self.mbit}, {self.round_trip_seconds} and {self.sharing}"
            )
            raise OptionError(text)

    def seconds(self, rounds: Sequence[float]) -> float:
        """How long the rounds of an agreement take on the links.

        Args:
            rounds: Bytes that a worker sends in each, to all others together, frames included.
        """
        sent = 8 * sum(rounds) / (self.mbit * 1e6 * _PAYLOAD)
        return sent + len(rounds) * self.round_trip_seconds / 2


def parse_mbit(text: str) -> float:
    """Megabits a second of a link's speed: ``100Mbit``, ``1Gbit``, ``2.5gbit/s``.

    Raises:
        OptionError: It is none.
    """
    plain = text.strip().lower().removesuffix("/s").removesuffix("ps")
    for unit, factor in _UNITS.items():
        number = plain.removesuffix(unit)
        if number != plain:
            try:
                value = float(number) * factor
            except ValueError:
                break
            if 0 < value < float("inf"):
                return value
            break
    message = f"--link: expected a speed such as 100Mbit or 1Gbit, received {text!r}"
    raise OptionError(message)
