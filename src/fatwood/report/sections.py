"""The page's parts that are text and tables: they are read without JavaScript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final

from fatwood.report.html import Markup, element, raw, table
from fatwood.report.numbers import bytes_text, count_text, number_text, percent_text, seconds_text

__all__ = ["clocks", "epochs", "figures", "incidents", "phases", "validations", "waits", "warnings"]

PHASES: Final = (
    "read", "batch", "compute", "encode", "exchange", "send", "apply", "validate", "checkpoint", "missing",
)  # fmt: skip
"""In the order of a step; others follow."""
_MATRIX_WORKERS: Final = 24
_LONGEST_WAITS: Final = 40

Stats = Mapping[str, Any]


def warnings(stats: Stats) -> Markup | None:
    """What went wrong, if anything."""
    found = []
    if not stats["figures"]["digest_equal"]:
        found.append("The replicas differ: parameters were not bitwise equal on all workers at the end.")
    if stats["rows_lost"]:
        found.append(f"{stats['rows_lost']:,} rows were lost with their workers.")
    if stats["rows_trained_twice"]:
        found.append(f"{stats['rows_trained_twice']:,} rows were trained twice.")
    found += [f"Clock: {remark}" for remark in stats["figures"]["clock_remarks"]]
    found += [f"Finding: {finding}" for finding in stats["figures"]["findings"]]
    return element("ul", *(element("li", text) for text in found), klass="warnings") if found else None


def figures(stats: Stats) -> Markup:
    """The run in eight numbers."""
    derived = stats["figures"]
    steps = max((worker["agreements"] for worker in stats["workers"]), default=0)
    sent = derived["bytes_per_step"]
    less = f"dense float32: {bytes_text(derived['dense_bytes_per_step'])}"
    speed = stats["rows_trained"] / stats["seconds"] if stats["seconds"] else 0.0
    loss = stats["history"][-1]["loss"] if stats["history"] else None
    tiles = (
        ("Rows trained", count_text(stats["rows_trained"]), f"{derived['rows_skipped']:,} skipped"),
        ("Wall time", seconds_text(stats["seconds"]), f"{speed:,.0f} rows a second"),
        ("Steps", count_text(steps), "agreements of all workers"),
        ("Message", bytes_text(sent), less),
        ("Replicas", "equal" if derived["digest_equal"] else "DIFFER", "bitwise, at the end"),
        ("Workers lost", count_text(derived["workers_lost"]), f"{derived['rejoined']:,} replaced"),
        ("Loss", number_text(loss), "mean of the last epoch"),
        ("Parameters", count_text(stats["parameters"]), f"{stats['checkpoints']:,} checkpoints written"),
    )
    boxes = [
        element(
            "div", element("dt", name), element("dd", value, klass="value"), element("dd", more, klass="more")
        )
        for name, value, more in tiles
    ]
    return element("dl", *boxes, klass="tiles")


def phases(stats: Stats) -> Markup:
    """Seconds by worker and phase."""
    workers = stats["workers"]
    there = {name for worker in workers for name in worker["seconds"]}
    names = [name for name in PHASES if name in there] + sorted(there - set(PHASES))
    rows = []
    for worker in workers:
        seconds = worker["seconds"]
        total = sum(seconds.values())
        shares = [(name, seconds.get(name, 0.0) / total if total else 0.0) for name in names]
        bar = "".join(
            f'<i class="phase-{name}" style="width:{share:.4%}"></i>'
            for name, share in shares
            if name in PHASES
        )
        cells = [
            _cell(seconds.get(name, 0.0), f"{seconds.get(name, 0.0):,.1f}", percent_text(share))
            for name, share in shares
        ]
        picture = element("td", element("span", raw(bar), klass="shares", aria_hidden="true"))
        rows.append(
            [str(worker["rank"]), worker.get("host") or "", picture, *cells, f"{worker['rows_trained']:,}"]
        )
    head = ["worker", "host", "shares", *(f"{name} s" for name in names), "rows"]
    return element(
        "section",
        element("h2", "Phases"),
        table("Wall seconds by worker and phase", head, rows, text_columns=(0, 1, 2)),
        id="phases",
    )


def waits(stats: Stats) -> Markup | None:
    """Who waited for whom."""
    waited = {
        (worker["rank"], int(other)): float(seconds)
        for worker in stats["workers"]
        for other, seconds in worker["waited_seconds"].items()
    }
    if not waited:
        return None
    ranks = sorted({rank for pair in waited for rank in pair})
    note = (
        "Seconds that the worker of a row spent in exchanges whose last message came from the worker of the column. "
        "A dark column is a worker that the others wait for."
    )
    if len(ranks) > _MATRIX_WORKERS:
        longest = sorted(waited.items(), key=lambda item: -item[1])[:_LONGEST_WAITS]
        rows = [[f"{who}", f"{whom}", f"{seconds:,.1f}"] for (who, whom), seconds in longest]
        shown = table("The longest waits", ["worker", "waited for", "seconds"], rows)
    else:
        most = max(waited.values())
        rows = [[f"worker {who}", *(_heat(waited.get((who, whom)), most) for whom in ranks)] for who in ranks]
        shown = table("Who waited for whom", ["waited, s", *(f"for {rank}" for rank in ranks)], rows)
    return element(
        "section", element("h2", "Who waited for whom"), shown, element("p", note, klass="note"), id="waits"
    )


def incidents(stats: Stats) -> Markup | None:
    """What happened to workers."""
    if not stats["incidents"]:
        return None
    rows = [[seconds_text(i["seconds"]), i["kind"], i["text"]] for i in stats["incidents"]]
    shown = table("Incidents", ["after", "what", "in words"], rows, text_columns=(0, 1, 2))
    return element("section", element("h2", "Incidents"), shown, id="incidents")


def epochs(stats: Stats) -> Markup | None:
    """A line for each epoch."""
    if not stats["history"]:
        return None
    rows = [
        [
            str(record["epoch"] + 1),
            number_text(record["loss"]),
            *_validation(record["validation"]),
            f"{record['rows']:,}",
            seconds_text(record["seconds"]),
        ]
        for record in stats["history"]
    ]
    head = ["epoch", "loss", "validation loss", "accuracy", "rows", "time"]
    return element("section", element("h2", "Epochs"), table("Epochs", head, rows), id="epochs")


def validations(stats: Stats) -> Markup | None:
    """A line for each validation, where there are others than those at the ends of epochs."""
    found: Sequence[Mapping[str, Any]] = stats.get("validations") or ()
    if len(found) <= sum(record["validation"] is not None for record in stats["history"]):
        return None
    rows = [
        [
            f"{v['step']:,}",
            str(v["epoch"] + 1),
            *_validation(v),
            f"{v['rows']:,}",
            "best" if v["best"] else "",
        ]
        for v in found
    ]
    head = ["step", "epoch", "loss", "accuracy", "rows", ""]
    return element(
        "section", element("h2", "Validations"), table("Validations", head, rows), id="validations"
    )


def clocks(stats: Stats) -> Markup | None:
    """How each worker's clock stood to the job's."""
    rows = []
    for worker in stats["workers"]:
        readings = (worker.get("trace") or {}).get("clock") or ()
        for number, reading in enumerate(readings):
            when = "at the start" if number == 0 else seconds_text(reading["at"])
            error = "not known" if reading["error"] is None else f"\u00b1 {1e3 * reading['error']:.3f}"
            rows.append(
                [str(worker["rank"]), when, reading["source"], f"{1e3 * reading['offset']:+,.3f}", error]
            )
    if not rows:
        return None
    began = stats.get("started") or 0.0
    day = (
        datetime.fromtimestamp(began, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        if began
        else "not known"
    )
    note = f"The job began at {day} by the driver's clock. The offset is what was added to a worker's clock."
    head = ["worker", "measured", "source", "offset, ms", "error, ms"]
    shown = table("Clocks", head, rows, text_columns=(0, 1, 2))
    return element("section", element("h2", "Clocks"), shown, element("p", note, klass="note"), id="clocks")


def _validation(record: Mapping[str, Any] | None) -> list[str]:
    if record is None:
        return ["", ""]
    return [
        number_text(record["loss"]),
        "" if record["accuracy"] is None else percent_text(record["accuracy"]),
    ]


def _cell(value: float, text: str, share: str) -> Markup:
    small = element("small", share) if value else None
    return element("td", text if value else "", raw(" ") if value else None, small, klass="number")


def _heat(seconds: float | None, most: float) -> Markup:
    if seconds is None:
        return element("td", "", klass="number none")
    part = seconds / most if most else 0.0
    return element("td", f"{seconds:,.1f}", klass="number heat", style=f"--heat:{part:.3f}")
