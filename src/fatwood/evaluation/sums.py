"""A sum of floats without rounding, so that the order and grouping of its terms cannot be seen in it.

J. R. Shewchuk, "Adaptive Precision Floating-Point Arithmetic and Fast Robust Geometric Predicates", 1997:
the exact sum of floats is itself a short sum of floats. Here its parts are found greedily with `math.fsum`,
which rounds once, so equal sums have equal parts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fatwood.errors import UserError

__all__ = ["ExactSum", "checked_count", "read_report"]


@dataclass(frozen=True)
class ExactSum:
    """The exact sum of the floats added so far; a value, `plus` gives a new one.

    Infinities and NaN are carried as ordinary float addition carries them.

    Args:
        parts: Floats whose exact sum it is, each the rounded rest after those before it; empty for zero.
    """

    parts: tuple[float, ...] = ()

    def plus(self, terms: Iterable[float]) -> ExactSum:
        """This sum and the terms together.

        Args:
            terms: Floats to add; another sum's ``parts`` to join two sums.

        Returns:
            The exact sum.
        """
        rest = [*self.parts, *terms]
        parts = []
        try:
            while (top := math.fsum(rest)) != 0.0:
                if not math.isfinite(top):
                    return ExactSum((sum(rest),))
                parts.append(top)
                rest.append(-top)
        except (OverflowError, ValueError):  # beyond the float range, or inf - inf
            return ExactSum((sum(rest),))
        return ExactSum(tuple(parts))

    @property
    def value(self) -> float:
        """The sum, rounded once."""
        return self.parts[0] if self.parts else 0.0

    def to_json(self) -> list[float | str]:
        """The parts as a JSON list; values JSON has no number for are written as text."""
        return [part if math.isfinite(part) else repr(part) for part in self.parts]

    @classmethod
    def from_json(cls, parts: Iterable[float | str]) -> ExactSum:
        """The inverse of :meth:`to_json`.

        Args:
            parts: What :meth:`to_json` returned.

        Returns:
            The same sum.
        """
        return cls().plus(float(part) for part in parts)


def read_report(text: str, report: str | None, versions: Mapping[str, int]) -> Mapping[str, Any]:
    """Parse a report's JSON and check that it is of the expected kind and version.

    Args:
        text: What a report's ``to_json`` returned.
        report: The expected kind; None for any.
        versions: The newest version that can be read, by kind.

    Returns:
        The JSON object.

    Raises:
        UserError: Not JSON, another kind of report, or a newer version.
    """
    title = "report" if report is None else f"{report} report"
    try:
        state = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        message = f"{title}: expected JSON text, received {text!r:.60}: {error}"
        raise UserError(message, hint="pass the text that to_json() returned, unchanged") from error
    received = state.get("report") if isinstance(state, dict) else type(state).__name__
    known = [report] if report is not None else sorted(versions)
    if not isinstance(state, dict) or received not in known:
        message = f"{title}: expected JSON of a {' or '.join(map(repr, known))} report, received {received!r}"
        raise UserError(message, hint="read it with from_json of the class that wrote it")
    newest, received = versions[received], state.get("version")
    if type(received) is not int or not 1 <= received <= newest:
        message = f"{title}: expected version 1 to {newest}, received {received!r}"
        raise UserError(message, hint="read it with the version of Fatwood that wrote it, or a newer one")
    return state


def checked_count(value: object) -> int:
    """A number of rows out of JSON.

    Raises:
        ValueError: It is none.
    """
    if type(value) is not int or value < 0:
        text = f"expected a number of rows, received {value!r}"
        raise ValueError(text)
    return value
