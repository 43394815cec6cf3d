"""Checks of options that are numbers."""

from __future__ import annotations

from typing import Any

from fatwood.errors import OptionError

__all__ = ["require_number", "require_whole"]


def require_whole(where: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        OptionError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        text = f"{where}: expected a whole number of at least {least}, received {value!r}"
        raise OptionError(text)


def require_number(where: str, value: Any, *, above: float | None = None, below: float | None = None) -> None:
    """Refuse what is no number between two bounds: ``above < value`` and ``value < below``.

    Raises:
        OptionError: It is not.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (above is None or value > above) and (below is None or value < below):
        return
    bounds = [
        f"{word} {bound:g}" for word, bound in (("above", above), ("below", below)) if bound is not None
    ]
    text = f"{where}: expected a number{' ' * bool(bounds)}{' and '.join(bounds)}, received {value!r}"
    raise OptionError(text)
