"""What Spark's driver knows of executors that are gone."""

from __future__ import annotations

import re
import time
from typing import Any

from pyspark import SparkContext

__all__ = ["executor_count", "lost_executors"]

_MOST = 8
_POLL_SECONDS = 0.1


def executor_count(context: SparkContext) -> int:
    """How many executors are registered, without the driver; runs no job.

    Args:
        context: Of a classic session.
    """
    java: Any = context._jsc
    return int(java.sc().getExecutorMemoryStatus().size()) - 1


def lost_executors(context: SparkContext, since: float, *, wait_seconds: float = 2.0) -> list[str]:
    """Why executors were removed, in Spark's words; runs no job.

    Args:
        context: Of a classic session.
        since: Only those after this time, in seconds since 1970.
        wait_seconds: How long to wait for the first: the cluster manager tells the driver some tenths of a second after the
            executor's connections are closed. A local session has no executor to lose.

    Returns:
        A line for each, the last ones first; empty where Spark does not tell.
    """
    deadline = time.monotonic() + (0.0 if re.match(r"local(\[|$)", str(context.master)) else wait_seconds)
    while not (found := _lost(context, since)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    found.sort(reverse=True)
    return [
        f"Spark on executor {number} at {host}: {' '.join(reason.split())}"
        for _, number, host, reason in found[:_MOST]
    ]


def _lost(context: SparkContext, since: float) -> list[tuple[int, str, str, str]]:
    found = []
    try:
        java: Any = context._jsc
        executors = java.sc().statusStore().executorList(False)
        for i in range(executors.size()):
            one = executors.apply(i)
            if one.removeTime().isDefined() and one.removeTime().get().getTime() >= since * 1000:
                reason = one.removeReason().get() if one.removeReason().isDefined() else "no reason given"
                found.append((one.removeTime().get().getTime(), one.id(), one.hostPort(), reason))
    except Exception:  # what is looked for here explains an error, and must not replace it
        return []
    return found
