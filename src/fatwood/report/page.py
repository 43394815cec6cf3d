"""One HTML page of a fit's statistics: style, script and data are all in it, and it asks no network for anything."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

from fatwood.errors import OptionError
from fatwood.report.html import Markup, element, raw
from fatwood.report.sections import clocks, epochs, figures, incidents, phases, validations, waits, warnings
from fatwood.report.stats_file import encode, require_stamp

__all__ = ["page"]

_SCRIPTS: Final = ("data.js", "timeline.js", "curves.js", "main.js")
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""Nothing is fetched, whatever the data says."""


def page(stats: Mapping[str, Any], *, title: str = "Fatwood training report") -> str:
    """The page as a text.

    Args:
        stats: What ``FitStats.to_json`` gives, or :func:`decode`.
        title: Of the page.

    Raises:
        OptionError: They are something else, or of a newer version.
    """
    require_stamp(stats)
    try:
        return _page(stats, title)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        text = f"expected the values of FitStats.to_json, received something else ({error!r:.200})"
        raise OptionError(text, hint="they are written by fit.stats.save(...)") from error


def _page(stats: Mapping[str, Any], title: str) -> str:
    body = element(
        "main",
        element("h1", title),
        element("p", _headline(stats), klass="headline"),
        warnings(stats),
        figures(stats),
        element("section", *_timeline(), id="timeline"),
        phases(stats),
        element("section", element("h2", "Curves"), element("div", klass="charts", id="charts"), id="curves"),
        waits(stats),
        incidents(stats),
        epochs(stats),
        validations(stats),
        clocks(stats),
    )
    head = element(
        "head",
        raw('<meta charset="utf-8">'),
        raw('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        raw(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", title),
        element("style", raw(_asset("page.css"))),
    )
    script = "".join(_asset(name) for name in _SCRIPTS)
    data = element("script", raw(_embedded(stats)), id="data", type="application/json")
    code = element("script", raw(f'"use strict";(() => {{\n{script}\n}})();'))
    return f'<!doctype html>\n<html lang="en">{head}{element("body", body, data, code)}</html>\n'


def _headline(stats: Mapping[str, Any]) -> str:
    workers = len(stats["workers"])
    return (
        f"{workers} worker{'s' * (workers != 1)}, {stats['seconds']:.1f} s, "
        f"{stats['rows_trained']:,} of {stats['rows_expected']:,} rows trained"
    )


def _timeline() -> list[Markup]:
    note = (
        "Every row is a worker, on the clock of the job. Where a slice of time holds several phases, they share its height; "
        "zoomed in far enough, single spans show where they were kept; what was done during an exchange in the background is drawn over its lower half. Drag to move, Ctrl and wheel or two fingers to zoom; "
        "the arrow keys, + and - do the same. The table of phases below has the totals as text."
    )
    buttons = [
        element("button", text, type="button", id=f"zoom-{name}", aria_label=label)
        for name, text, label in (
            ("in", "+", "zoom in"),
            ("out", "\u2212", "zoom out"),
            ("all", "all", "show the whole run"),
        )
    ]
    return [
        element("h2", "Timeline"),
        element(
            "div",
            element("div", id="legend", klass="legend"),
            element("div", *buttons, klass="buttons"),
            klass="bar",
        ),
        element(
            "div",
            element(
                "canvas", id="canvas", tabindex="0", role="img", aria_label="Phases of every worker over time"
            ),
            element("div", id="tip", klass="tip", role="status"),
            klass="stage",
        ),
        element("p", note, klass="note"),
        element("noscript", element("p", "Timeline and curves need JavaScript; the tables do not.")),
    ]


def _asset(name: str) -> str:
    return files("fatwood.report").joinpath(name).read_text(encoding="utf-8")


def _embedded(stats: Mapping[str, Any]) -> str:
    """What the script draws, as JSON that cannot end its element."""
    keys = ("started", "seconds", "parameters", "incidents", "validations")
    workers = [{name: worker.get(name) for name in ("rank", "host", "trace")} for worker in stats["workers"]]
    text = encode({**{key: stats.get(key) for key in keys}, "workers": workers}).decode()
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
