"""The checks at the start of every fit: no job, some hundredths of a second.

What surely fails is raised before anything is done; everything else that is not well is a line of the log, once for each session.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from fatwood.doctor.checkup import CHECKS, examine
from fatwood.doctor.examination import quick_facts
from fatwood.doctor.finding import Facts, Finding, is_local, version, where
from fatwood.errors import ClusterError

__all__ = ["LOG", "certain", "likely", "require_fit"]

LOG = logging.getLogger("fatwood.doctor")
"""Gets a line for each finding that is no error."""

_OTHERWISE_TOLD = ("caches", "dynamic allocation")
"""Checks whose matter a fit speaks of itself."""
_PYTHON_SECONDS = 10.0
_told: set[tuple[str, Finding]] = set()


def require_fit(spark: Any) -> None:
    """Look at a session that a fit is about to use.

    Args:
        spark: Of either kind; one of Connect is not looked at.

    Raises:
        ClusterError: Every fit in this session fails: another Python than PySpark allows, or none; another PySpark.
    """
    from fatwood.spark.connect import is_connect

    if is_connect(spark):
        return
    try:
        facts = _facts(spark)
        wrong = list(certain(facts))
        rest = list(likely(facts))
    except Exception as error:  # whatever is the matter, the fit itself says it better
        LOG.debug("the session was not examined: %r", error)
        return
    for finding in wrong:
        message = (
            f"{finding.title} at {finding.where}: expected {finding.expected}, received {finding.received}"
        )
        raise ClusterError(message, hint=finding.hint)
    for finding in rest:
        key = str(spark.sparkContext.applicationId), finding
        if key not in _told:
            _told.add(key)
            text = "%s at %s: expected %s, received %s; hint: %s"
            LOG.warning(text, finding.title, finding.where, finding.expected, finding.received, finding.hint)


def certain(facts: Facts) -> Iterator[Finding]:
    """What makes every fit fail.

    Args:
        facts: Of session and driver, as :func:`require_fit` gathers them.
    """
    session = facts["session"]
    if is_local(facts) and os.path.isabs(session["python_exec"]):
        yield from _python(facts)
    if version(session["spark"])[:1] != version(session["pyspark"])[:1]:
        yield Finding(
            title="Spark",
            status="wrong",
            where=where(facts["driver"], "driver"),
            expected=f"Spark {version(session['pyspark'])[0]}, the version of the driver's PySpark {session['pyspark']}",
            received=f"Spark {session['spark']}",
            hint=f"pip install pyspark=={session['spark']} where the driver runs; see SPARK_HOME there",
        )


def likely(facts: Facts) -> Iterator[Finding]:
    """What may make fits fail, or is not well.

    Args:
        facts: As for :func:`certain`.
    """
    if not is_local(facts):
        yield from _address(facts)
    if not is_local(facts) or not os.path.isabs(facts["session"]["python_exec"]):
        yield from _python(facts)  # of that name there may be another on the executors
    checks = (check for check in CHECKS if check.quick and check.title not in _OTHERWISE_TOLD)
    yield from (finding for finding in examine(facts, checks) if finding.status != "ok")


def _python(facts: Facts) -> Iterator[Finding]:
    """The Python of the executors, as far as it can be seen from here."""
    session, driver = facts["session"], facts["driver"]
    path, found = session["python_exec"], session["python_exec_version"]
    own = ".".join(map(str, version(driver["python"])[:2]))
    missing = is_local(facts) and os.path.isabs(path) and found is None and not os.access(path, os.X_OK)
    if missing or found not in (None, own):
        yield Finding(
            title="Python of the executors",
            status="wrong",
            where=where(driver, "driver"),
            expected=f"Python {own}, the driver's",
            received=f"{path}, which {'cannot be run' if missing else f'is Python {found} here'}",
            hint=f"set PYSPARK_PYTHON={driver['executable']} (or spark.pyspark.python) before the session starts, or the same version "
            "of Python on the executors",
        )


def _address(facts: Facts) -> Iterator[Finding]:
    session = facts["session"]
    host = re.sub(r"^spark://|:\d+(,.*)?$", "", session["master"] or "")
    if _is_loopback(session["driver_host"]) and not _is_loopback(host) and not session["executors"]:
        yield Finding(
            title="driver's address",
            status="wrong",
            where=where(facts["driver"], "driver"),
            expected="an address that executors on other hosts reach",
            received=f"spark.driver.host={session['driver_host']}",
            hint="--conf spark.driver.host=ADDRESS (or SPARK_LOCAL_IP=ADDRESS) with the address of the cluster's network",
        )


def _is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _facts(spark: Any) -> dict[str, Any]:
    from fatwood.spark.doctoring import python_of_executors
    from fatwood.spark.executors import executor_count

    facts = quick_facts(spark)
    python, _ = python_of_executors(spark)
    facts["session"]["python_exec"] = python
    facts["session"]["python_exec_version"] = _version_of(python)
    facts["session"]["executors"] = executor_count(spark.sparkContext)
    return facts


@cache
def _version_of(python: str) -> str | None:
    """Major and minor version of a Python of this machine; None where it is not here."""
    if os.path.realpath(python) == os.path.realpath(sys.executable):
        return "{}.{}".format(*sys.version_info[:2])
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=_PYTHON_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
