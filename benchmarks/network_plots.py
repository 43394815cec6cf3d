"""The figure and the tables of `network.py`: how long each way of training takes to the same quality, link by link.

    python benchmarks/network_plots.py RESULTS.json DIRECTORY

prints the tables as Markdown and draws the figure from the last line of ``network.py --json``. On a dark page an SVG takes other colours by itself. It needs matplotlib
(``pip install matplotlib``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from network_cells import OURS, RIVALS

INK, GREY, BRIGHT = "#222222", "#b8bcc2", "#c2410c"
DARK = {INK: "#e6e6e6", GREY: "#5b6470", BRIGHT: "#fb923c"}
"""What a colour becomes on a dark page."""
NAMES = {
    "alone": "one process",
    "ddp_fp32": "DDP, float32",
    "ddp_fp16": "DDP, float16",
    "powersgd": "DDP, PowerSGD",
    "topk": "top-k, error feedback",
    "dl4j": "Deeplearning4j's scheme",
    "ours": "Fatwood",
}


def fastest(table: Sequence[Mapping[str, Any]], mbit: float | None, ours: Sequence[str]) -> dict[str, float]:
    """Seconds to the quality by rival, of its fastest variant, and ours; who did not get there is left out."""
    variants = {"ours": ours, **RIVALS, "alone": ("alone",)}
    found = {}
    for name, methods in variants.items():
        seconds = [
            row["seconds"]
            for row in table
            if row["mbit"] == mbit and row["method"] in methods and row["seconds"] is not None
        ]
        if seconds:
            found[name] = min(seconds)
    return found


def tables(results: Mapping[str, Any]) -> str:
    """A row for each method, as Markdown, a table for each link."""
    rows = results["table"]
    parts = []
    for mbit in sorted({row["mbit"] for row in rows}, key=lambda mbit: mbit or float("inf")):
        lines = [
            f"| {_link(mbit)} | learning rate | steps | step, ms | seconds | sent a step | of a step, ms |",
            "|---|---|---|---|---|---|---|",
        ]
        here = [row for row in rows if row["mbit"] == mbit]
        here.sort(key=lambda row: (row["seconds"] is None, row["seconds"] or row["step_s"] or 0.0))
        lines += [_row(row) for row in here]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _row(row: Mapping[str, Any]) -> str:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    phases = row["phases"]
    named = ", ".join(f"{name} {1000 * phases[name]:.0f}" for name in sorted(phases) if phases[name] > 0.5e-3)
    sent = row["sent_bytes"]
    size = f"{sent / 1e6:.1f} MB" if sent >= 1e6 else f"{sent / 1e3:.0f} kB" if sent else ""
    cells = (
        f"`{row['method']}`",
        shown(row["rate"], "g"),
        shown(row["steps"], ".0f"),
        shown(1000 * row["step_s"] if row["step_s"] else None, ".0f"),
        shown(row["seconds"], ".1f"),
        size,
        named,
    )
    return f"| {' | '.join(cells)} |"


def draw(results: Mapping[str, Any], directory: Path, suffix: str = "svg") -> Path:
    """Write the figure.

    Args:
        results: As `network.py` prints them with ``--json``.
        directory: Made when missing.
        suffix: ``svg`` or ``png``.

    Returns:
        The file.

    Raises:
        ImportError: No matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "fatwood", "font.size": 10})
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"network_{results['task']}.{suffix}"
    if suffix == "svg":
        _figure(results).savefig(path, metadata={"Date": None}, transparent=True)
        path.write_text(_themed(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        _figure(results).savefig(path, dpi=120)
    return path


def _themed(svg: str) -> str:
    rules = " ".join(
        f'[style*="fill: {light}"] {{ fill: {dark} !important }}' for light, dark in DARK.items()
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{ {rules} }}</style>"
    return svg.replace("<defs>", f"{style}<defs>", 1)


def _figure(results: Mapping[str, Any]) -> Any:
    from matplotlib import pyplot

    links = sorted({row["mbit"] for row in results["table"]}, key=lambda mbit: mbit or float("inf"))
    bars = [fastest(results["table"], mbit, OURS[results["task"]]) for mbit in links]
    figure, axes = pyplot.subplots(
        1, len(links), figsize=(4.6 * len(links), 3.2), layout="constrained", squeeze=False
    )
    for axis, mbit, seconds in zip(axes[0], links, bars, strict=True):
        order = sorted(seconds, key=lambda name: -seconds[name])
        values = [seconds[name] for name in order]
        shades = [BRIGHT if name == "ours" else GREY for name in order]
        axis.barh([NAMES[name] for name in order], values, color=shades, height=0.66)
        for place, (name, value) in enumerate(zip(order, values, strict=True)):
            times = "" if name == "ours" else f"  ({value / seconds['ours']:.1f} x)"
            axis.text(value, place, f" {value:,.0f} s{times}", va="center", color=INK, fontsize=9)
        axis.set_xlim(0, 1.32 * max(values))
        axis.set_title(_link(mbit), loc="left", color=INK, fontsize=11)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.set_xticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure


def _link(mbit: float | None) -> str:
    if mbit is None:
        return "links not shaped"
    return f"links of {mbit / 1000:g} Gbit/s" if mbit >= 1000 else f"links of {mbit:g} Mbit/s"


def main() -> None:
    """Draw from a file."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    results = json.loads(lines[-1])
    print(tables(results))
    print(draw(results, Path(sys.argv[2])))


if __name__ == "__main__":
    main()
