"""What a check says, and the vocabulary in which facts are asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

__all__ = [
    "Check",
    "Facts",
    "Finding",
    "Status",
    "is_local",
    "places",
    "size",
    "spark_bytes",
    "version",
    "where",
]

Facts: TypeAlias = Mapping[str, Any]
"""``session``, ``driver``, ``executors``, ``failures``, ``slots``, ``job_error``: JSON values, from
:mod:`fatwood.doctor.examination`."""
Status: TypeAlias = Literal["ok", "warn", "wrong"]

_UNITS = {"": 1 << 20, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of the table."""

    title: str
    """Of the check."""
    status: Status
    where: str
    """The host, with what runs there; ``all`` where nothing was found."""
    expected: str
    received: str
    hint: str = ""
    """What to do; empty where nothing is to be done."""

    def to_json(self) -> dict[str, str]:
        """The fields by their names."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check: a pure function of the facts that yields what is not as it should be."""

    title: str
    expected: str
    """What is said of it where all is well."""
    problems: Callable[[Facts], Iterator[Finding]]
    received: Callable[[Facts], str]
    """What is there, where all is well."""
    quick: bool = False
    """Whether the facts of session and driver alone are worth it."""


def where(process: Mapping[str, Any], role: str | None = None) -> str:
    """A process in words: its host and what it is."""
    number = process.get("executor")
    role = role or ("executor" if number is None else f"executor {number}")
    return f"{process.get('hostname')} ({role})"


def places(facts: Facts) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The driver and every executor: in words, and its facts."""
    yield where(facts["driver"], "driver"), facts["driver"]
    for process in facts["executors"]:
        yield where(process), process


def is_local(facts: Facts) -> bool:
    """Whether driver and tasks share one process of Java, or the session's kind is not known."""
    master = facts["session"].get("master") or "local"
    return bool(master == "local" or master.startswith("local["))


def version(text: str | None) -> tuple[int, ...]:
    """The numbers a version begins with; empty where there is none."""
    found = re.match(r"\d+(?:\.\d+)*", text or "")
    return tuple(map(int, found.group(0).split("."))) if found else ()


def size(count: float) -> str:
    """Bytes in words: ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def spark_bytes(text: str | None, default: str) -> int:
    """A size as Spark writes it (``2g``, ``512m``; without a unit in MiB) as bytes; the default where it makes no sense."""
    found = re.fullmatch(r"\s*(\d+)\s*([bkmgt]?)b?\s*", (text or default).lower())
    if found is None:
        return spark_bytes(None, default)
    return int(found.group(1)) * _UNITS[found.group(2)]
