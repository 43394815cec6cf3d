"""Facts in, findings out; and the findings as a table or JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fatwood.doctor.checks_machine import MACHINE
from fatwood.doctor.checks_network import NETWORK
from fatwood.doctor.checks_software import SOFTWARE
from fatwood.doctor.finding import Check, Facts, Finding

__all__ = ["CHECKS", "Checkup", "examine"]

CHECKS: tuple[Check, ...] = (*SOFTWARE, *MACHINE, *NETWORK)
"""All of them, in the order of the table."""
_ORDER = {"wrong": 0, "warn": 1, "ok": 2}
_WIDTH = 60


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What the examination of a cluster found; ``str`` of it is the table."""

    findings: tuple[Finding, ...]
    facts: Facts
    """All that was found out, as JSON values."""

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong; there may be warnings."""
        return all(finding.status != "wrong" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """``healthy``, ``findings`` and ``facts``."""
        found = [finding.to_json() for finding in self.findings]
        return {"healthy": self.healthy, "findings": found, "facts": dict(self.facts)}

    def __str__(self) -> str:
        rows = [("status", "check", "where", "found", "expected")]
        rows += [(one.status, one.title, one.where, one.received, one.expected) for one in self.findings]
        lines = _table([tuple(_cut(" ".join(cell.split())) for cell in row) for row in rows])
        sick = sorted(
            (one for one in self.findings if one.status != "ok"), key=lambda one: _ORDER[one.status]
        )
        for one in sick:
            lines += ["", f"{one.status}: {one.title} at {one.where}: {one.received.strip()}"]
            lines += [f"  expected: {one.expected}", f"  hint: {one.hint}"]
        counts = {status: sum(one.status == status for one in self.findings) for status in _ORDER}
        return "\n".join([*lines, "", ", ".join(f"{count} {status}" for status, count in counts.items())])


def examine(facts: Facts, checks: Iterable[Check] = CHECKS) -> tuple[Finding, ...]:
    """What the checks say of the facts: for each its problems, or one finding that all is well.

    Args:
        facts: From :func:`fatwood.doctor.examination.gather_facts`.
        checks: Which.
    """
    found: list[Finding] = []
    for check in checks:
        problems = list(check.problems(facts))
        if not problems:
            fine = Finding(
                title=check.title,
                status="ok",
                where="all",
                expected=check.expected,
                received=check.received(facts),
            )
            problems = [fine]
        found += problems
    return tuple(found)


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
