"""The arithmetic of links, and how speeds are read."""

from __future__ import annotations

import numpy as np
import pytest

from fatwood.errors import OptionError
from fatwood.exchange.link import FRAME_BYTES
from fatwood.planning import Cluster, parse_mbit
from fatwood.planning.mirror import MirrorExchange


@pytest.mark.parametrize(
    ("text", "mbit"),
    [("100Mbit", 100.0), ("1Gbit", 1000.0), ("2.5gbit/s", 2500.0), ("500kbit", 0.5), (" 10Gbps", None)],
)
def test_speeds_are_read_with_their_unit(text: str, mbit: float | None) -> None:
    if mbit is None:
        with pytest.raises(OptionError, match="--link: expected a speed such as 100Mbit"):
            parse_mbit(text)
    else:
        assert parse_mbit(text) == mbit


@pytest.mark.parametrize("text", ["", "100", "fast", "0Mbit", "-1Gbit", "infMbit", "nanGbit", "1 TB"])
def test_other_speeds_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="--link"):
        parse_mbit(text)


@pytest.mark.parametrize(
    "given",
    [
        {"workers": 1},
        {"workers": 2.0},
        {"mbit": 0},
        {"round_trip_seconds": -1},
        {"sharing": 0.5},
        {"cores_per_worker": 0},
    ],
    ids=str,
)
def test_a_cluster_that_cannot_be_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        Cluster(**given)  # type: ignore[arg-type]


def test_a_round_takes_its_bytes_at_the_speed_of_the_link_and_half_a_round_trip() -> None:
    cluster = Cluster(workers=2, mbit=100, round_trip_seconds=0.01)
    assert cluster.seconds([0.94 * 100e6 / 8]) == pytest.approx(1 + 0.005)
    assert cluster.seconds([0, 0, 0]) == pytest.approx(0.015)


@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_a_mirror_gives_what_equal_workers_would_and_counts_what_would_be_sent(
    workers: int, size: int
) -> None:
    exchange = MirrorExchange(workers)
    vector = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    assert exchange.gather(3, b"abc") == [b"abc"] * workers
    np.testing.assert_array_equal(exchange.mean(vector, 5.0), vector)
    exchange.barrier()
    gathered, scattered, collected, met = exchange.rounds
    peers = workers - 1
    own = size // workers
    assert gathered == peers * (FRAME_BYTES + 3)
    assert scattered == peers * (FRAME_BYTES + 16) + 4 * (size - own)
    assert collected == peers * (FRAME_BYTES + 4 * own)
    assert met == peers * FRAME_BYTES
    assert exchange.bytes_sent == exchange.bytes_received == sum(exchange.rounds)
