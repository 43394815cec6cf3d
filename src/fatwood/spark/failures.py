"""Errors on their way from a worker to the driver: as JSON, with the user's own error first."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from pyspark.errors import PySparkException

from fatwood import errors
from fatwood.spark.causes import explained, original_of
from fatwood.spark.connect import is_service_failure
from fatwood.spark.shipping import installed_folders, is_within

__all__ = [
    "describe_failure",
    "failure_of_spark",
    "is_of_the_machine",
    "made_again",
    "rebuild_failure",
    "severity",
    "spark_errors",
]

_PACKAGE = (os.path.join(os.path.dirname(errors.__file__), ""),)
_MAX_CHARACTERS = 40_000
"""Of a message or traceback; a report of the control channel takes 1 MiB of escaped JSON."""
_DETAILS = ("position", "n", "value", "parameter")
"""What a `NotFiniteError` knows beside its message."""
_ROLLBACK = "cannot rollback a running result stage"
"""What Spark 4 says when it ends all jobs over a shuffle whose lost part came out different the second time."""
_OTHER_PYTHON = "[PYTHON_VERSION_MISMATCH]"
_HEADER = "Traceback (most recent call last):\n"


def describe_failure(error: BaseException) -> dict[str, Any]:
    """What the driver must know of an error on a worker, as JSON values."""
    if not isinstance(error, errors.FatwoodError):
        frames = _first_users_frame(error.__traceback__)
        kind = errors.ClusterError if frames is None else errors.UserCodeError
        trace = _formatted(error, frames or error.__traceback__)
        return {"type": kind.__name__, "message": _headline(error), "hint": None, "traceback": trace}
    trace = ""
    if isinstance(error, errors.UserCodeError) and error.__cause__ is not None:
        frames = error.__cause__.__traceback__
        trace = _formatted(error.__cause__, _first_users_frame(frames) or _first_foreign_frame(frames))
    elif not isinstance(error, errors.UserError):
        trace = _formatted(error, error.__traceback__)
    message, hint = original_of(error)  # whoever shows it explains it
    return {
        "type": type(error).__name__,
        "message": _shortened(message),
        "hint": hint,
        "traceback": trace,
        "details": {name: getattr(error, name) for name in _DETAILS if hasattr(error, name)},
    }


def is_of_the_machine(failure: Mapping[str, Any]) -> bool:
    """Whether another attempt, on another machine perhaps, can do better.

    Args:
        failure: From :func:`describe_failure`.
    """
    return failure.get("type") in (errors.ClusterError.__name__, errors.StorageError.__name__)


def rebuild_failure(failure: Mapping[str, Any], where: str) -> errors.FatwoodError:
    """The error to raise on the driver.

    Args:
        failure: From :func:`describe_failure`, possibly incomplete: it came over the network.
        where: For example ``"worker 1 on host 10.0.0.3"``.
    """
    text = f"{failure.get('message')}\non {where}"
    if failure.get("traceback"):
        text += f"\n\n{str(failure['traceback']).rstrip()}"
    hint = failure.get("hint")
    error = made_again(failure.get("type"), text, str(hint) if hint else None)
    details = failure.get("details")
    if isinstance(details, dict):
        vars(error).update({name: value for name, value in details.items() if name in _DETAILS})
    return error


def severity(error: errors.FatwoodError) -> int:
    """Which of several errors of one job is the cause: the lowest.

    Losing a peer is a consequence of whatever happened to the peer, and what Spark says of a job is a consequence
    of what happened to its tasks.
    """
    order = (errors.PeerLost, errors.ExchangeError, errors.ClusterError, errors.WorldError)
    return next((len(order) - i for i, kind in enumerate(order) if isinstance(error, kind)), 0)


@contextmanager
def spark_errors() -> Iterator[None]:
    """Raise what :func:`failure_of_spark` makes of the errors of the Spark actions within."""
    try:
        yield
    except errors.FatwoodError:
        raise
    except Exception as error:
        failure = failure_of_spark(error)
        # below a user's own traceback, Spark's account of it would only be read first
        raise failure from None if isinstance(failure, errors.UserError) else error


def failure_of_spark(error: BaseException) -> errors.FatwoodError:
    """The error to raise when a Spark job itself failed, with its cause or a Python error of the user's plan first."""
    text = str(error)
    return explained(_failure_of_spark(error, text), [text])


def _failure_of_spark(error: BaseException, text: str) -> errors.FatwoodError:
    if _ROLLBACK in text:
        message = (
            "the DataFrame gave other rows when a part of it was computed again after a machine was lost"
        )
        hint = "write it to storage and read it from there before the fit; sample() and rand() over a shuffle do this"
        return errors.UserError(message, hint=hint)
    found = re.search(r"Lost task [\d.]+ in stage [\d.]+ \(TID \d+\)(?: \([^)]*\))?", text)
    place = f" ({found.group(0)})" if found else ""
    trace = _python_traceback(text)
    if trace:
        return _failure_of_python(trace, place)
    headline = next(
        (line.lstrip(": ") for line in text.splitlines() if line and "while calling" not in line), ""
    )
    headline = f"{type(error).__name__}: {headline}" if headline else type(error).__name__
    if isinstance(error, PySparkException) and not is_service_failure(error):
        # it has a name in Spark's catalogue of errors, such as DIVIDE_BY_ZERO
        return errors.UserCodeError(
            f"{headline}\nraised by the DataFrame's own plan{place}\n\n{text.strip()}"
        )
    return errors.ClusterError(
        f"the Spark job failed: {headline}{place}", hint="the whole error of Spark stands above this one"
    )


def _failure_of_python(trace: str, place: str) -> errors.FatwoodError:
    kind, _, message = _last_error(trace).partition(": ")
    if kind.startswith("fatwood.errors."):
        message, _, hint = message.partition("\nhint: ")
        return made_again(kind.rpartition(".")[2], f"{message}\nin the Spark job{place}", hint or None)
    kind = kind.rpartition(".")[2]
    headline = f"{kind}: {message}" if message else kind
    if "No module named 'fatwood" in message:
        text = f"fatwood cannot be imported by the executors: {headline}{place}"
        return errors.ClusterError(text, hint="install the same fatwood in the Python of the executors")
    if _OTHER_PYTHON in message:
        return errors.ClusterError(f"the Spark job failed: {headline}{place}")
    return errors.UserCodeError(f"{headline}\nraised by the DataFrame's own plan{place}\n\n{trace}")


def made_again(name: object, message: str, hint: str | None) -> errors.FatwoodError:
    """An error with a message that is ready, whatever its class makes its message of.

    Args:
        name: Of the class; another name than those of :mod:`fatwood.errors` makes a `UserCodeError`.
        message: Its message.
        hint: Its hint.
    """
    found = getattr(errors, str(name), None)
    kind: type[errors.FatwoodError] = errors.UserCodeError
    if isinstance(found, type) and issubclass(found, errors.FatwoodError):
        kind = found
    error = kind.__new__(kind)
    errors.FatwoodError.__init__(error, message, hint=hint)
    return error


def _python_traceback(text: str) -> str:
    """The first Python traceback in what the JVM says, without the JVM's own."""
    found = re.search(
        re.escape(_HEADER) + r".*?(?=\n\s*\n?\tat |\n\nDriver stacktrace|\nJVM stacktrace|\n SQLSTATE: |\Z)",
        text,
        re.DOTALL,
    )
    return found.group(0).rstrip() if found else ""


def _last_error(trace: str) -> str:
    """``Type: message`` of a formatted traceback, the message possibly of several lines."""
    lines = trace.rpartition(_HEADER)[2].splitlines()
    start = next((i for i, line in enumerate(lines) if line and not line.startswith(" ")), 0)
    return "\n".join(lines[start:])


def _headline(error: BaseException) -> str:
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be shown)"
    return _shortened(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def _formatted(error: BaseException, frames: TracebackType | None) -> str:
    return _shortened("".join(traceback.format_exception(type(error), error, frames)))


def _shortened(text: str) -> str:
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


def _first_users_frame(frames: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame in the user's own code, or None."""
    others = _PACKAGE + installed_folders()
    while frames is not None and _is_frame_in(frames, others):
        frames = frames.tb_next
    return frames


def _first_foreign_frame(frames: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this package on top."""
    while frames is not None and frames.tb_next is not None and _is_frame_in(frames, _PACKAGE):
        frames = frames.tb_next
    return frames


def _is_frame_in(frames: TracebackType, folders: tuple[str, ...]) -> bool:
    filename = frames.tb_frame.f_code.co_filename
    return filename.startswith("<frozen ") or is_within(filename, folders)
