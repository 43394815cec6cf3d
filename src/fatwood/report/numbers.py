"""Numbers as texts for people."""

from __future__ import annotations

import math

__all__ = ["bytes_text", "count_text", "number_text", "percent_text", "seconds_text"]


def count_text(value: float) -> str:
    """A count: 12,345 in full, 12.3 million shortened."""
    if value >= 1e9:
        return f"{value / 1e9:,.2f} billion"
    return f"{value / 1e6:,.1f} million" if value >= 1e7 else f"{value:,.0f}"


def bytes_text(value: float) -> str:
    """Bytes with a decimal prefix, for example 1.2 MB."""
    for limit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {name}" if value < 999.5 * limit else f"{value / limit:,.0f} {name}"
    return f"{value:.0f} B"


def seconds_text(value: float) -> str:
    """A time: 0.012 s, 3.4 s, 2:05 min, 1:02:05 h."""
    if value < 60:
        return f"{value:.3f} s" if value < 1 else f"{value:.1f} s"
    whole = round(value)
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} h" if hours else f"{minutes}:{seconds:02} min"


def number_text(value: float | str | None) -> str:
    """Four digits; a dash where there is nothing."""
    if value is None:
        return "\u2013"
    number = float(value)
    return f"{number:.4g}" if math.isfinite(number) else str(number)


def percent_text(share: float) -> str:
    """A share of 1 as a percentage."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
