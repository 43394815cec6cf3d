"""Digests that workers tell each other: equal, or an error that names who differs."""

from __future__ import annotations

from collections.abc import Mapping

from fatwood.errors import DivergenceError

__all__ = ["require_equal_digests"]


def require_equal_digests(digests: Mapping[int, int], agreements: int) -> None:
    """Refuse replicas that differ.

    Args:
        digests: By rank.
        agreements: Until now, for the message.

    Raises:
        DivergenceError: They differ.
    """
    if len(set(digests.values())) <= 1:
        return
    counts: dict[int, list[int]] = {}
    for rank, digest in digests.items():
        counts.setdefault(digest, []).append(rank)
    groups = "; ".join(f"{digest:016x} on ranks {ranks}" for digest, ranks in counts.items())
    text = (
        f"agreement {agreements}: expected bitwise equal parameters on all workers, received digests {groups}"
    )
    raise DivergenceError(text, hint="all workers must run the same versions of torch, numpy and fatwood")
