"""Errors on their way from a worker to the driver: as JSON, with the user's own error first."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fatwood import errors

__all__ = ["describe_failure", "failure_of_spark", "rebuild_failure", "severity"]

_PACKAGE = str(Path(errors.__file__).parent)


def describe_failure(error: BaseException) -> dict[str, Any]:
    """What the driver must know of an error on a worker, as JSON values."""
    if isinstance(error, errors.UserCodeError):
        trace = _users_traceback(error.__cause__)
    elif isinstance(error, errors.UserError):
        trace = ""
    else:
        trace = "".join(traceback.format_exception(error))
    return {
        "type": type(error).__name__,
        "message": error.message
        if isinstance(error, errors.FatwoodError)
        else f"{type(error).__name__}: {error}",
        "hint": error.hint if isinstance(error, errors.FatwoodError) else None,
        "traceback": trace,
    }


def rebuild_failure(failure: Mapping[str, Any], where: str) -> errors.FatwoodError:
    """The error to raise on the driver.

    Args:
        failure: From :func:`describe_failure`, possibly incomplete: it came over the network.
        where: For example ``"worker 1 on host 10.0.0.3"``.
    """
    kind: type[errors.FatwoodError] = errors.UserCodeError
    found = getattr(errors, str(failure.get("type")), None)
    if isinstance(found, type) and issubclass(found, errors.FatwoodError):
        kind = found
    text = f"{failure.get('message')}\non {where}"
    if failure.get("traceback"):
        text += f"\n\n{str(failure['traceback']).rstrip()}"
    hint = failure.get("hint")
    return kind(text, hint=str(hint) if hint else None)


def severity(error: errors.FatwoodError) -> int:
    """Which of several workers' errors is the cause: the lowest. Losing a peer is mostly a consequence."""
    if isinstance(error, errors.UserError):
        return 0
    if isinstance(error, errors.PeerLost):
        return 3
    if isinstance(error, errors.ExchangeError):
        return 2
    return 1


def failure_of_spark(error: BaseException) -> errors.FatwoodError:
    """The error to raise when the Spark job itself failed, with a Python error of the user's plan first."""
    text = str(error)
    where = re.search(r"Lost task [\d.]+ in stage [\d.]+ \(TID \d+\)(?: \([^)]*\))?", text)
    place = where.group(0) if where else "a task of the Spark job"
    lines = re.findall(
        r"^(?:\w+\.)*(\w*(?:Error|Exception|Interrupt|Exit)\b.*)$", _python_traceback(text), re.MULTILINE
    )
    if lines:
        message = f"{lines[-1]}\nraised by the DataFrame's own plan ({place})\n\n{_python_traceback(text)}"
        return errors.UserCodeError(message)
    message = f"the Spark job failed: {text.strip().splitlines()[0] if text.strip() else type(error).__name__}\n{place}"
    return errors.ClusterError(message, hint="the whole error of Spark is chained below this one")


def _python_traceback(text: str) -> str:
    found = re.search(
        r"Traceback \(most recent call last\):.*?(?=\n\s+at |\n\nDriver stacktrace|\nJVM stacktrace|\Z)",
        text,
        re.DOTALL,
    )
    return found.group(0).rstrip() if found else ""


def _users_traceback(cause: BaseException | None) -> str:
    """The traceback of a user's error without the frames of this package above the user's own."""
    if cause is None:
        return ""
    frames = cause.__traceback__
    while frames is not None and frames.tb_next is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(cause), cause, frames))


def _is_ours(filename: str) -> bool:
    return filename.startswith(_PACKAGE)
