"""The two figures of `codec.py`: bits per non-zero, and nanoseconds per parameter.

    python benchmarks/codec_plots.py RESULTS.json DIRECTORY

draws them again from the last line of ``codec.py --json``. They need matplotlib (``pip install matplotlib``).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

INK, GREY, OURS = "#222222", "#8a8a8a", "#c2410c"
OTHERS = ("#1d4ed8", "#0f766e", "#7c3aed", "#a16207", "#be185d", "#475569", "#4d7c0f", "#0369a1")


_INT32, _BITMAP = "DL4J int32 in NumPy", "DL4J bitmap in NumPy"

_FORMATS = {
    "top-k, int32 + float32": (1e-4, (0, 4)),
    "DL4J bitmap": (4e-2, (8, 2)),
    "DL4J int32": (1e-4, (0, 4)),
    "zstd of int32": (1e-4, (0, -16)),
    "zstd of deltas": (1e-3, (2, 5)),
    "zstd of shuffled deltas": (8e-3, (20, 58)),
}
"""Where the name of a line stands: the density of the point that it names, and points to the right and up of it."""


def draw(results: Mapping[str, Any], directory: Path, suffix: str = "svg") -> list[Path]:
    """Write both figures.

    Args:
        results: As `codec.py` prints them with ``--json``; a part that was not measured is not drawn.
        directory: Made when missing.
        suffix: ``svg`` or ``png``.

    Returns:
        The files.

    Raises:
        ImportError: No matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "fatwood", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    )
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, rows, figure in (("codec_bits", "curve", _bits), ("codec_speed", "table", _speed)):
        if results.get(rows):
            path = directory / f"{name}.{suffix}"
            metadata = {"Date": None} if suffix == "svg" else None
            figure(results).savefig(path, metadata=metadata, dpi=120)
            written.append(path)
    return written


def _bits(results: Mapping[str, Any]) -> Any:
    """Bits per non-zero against density, and below it how far ours is from the entropy."""
    from matplotlib import pyplot

    rows = results["curve"]
    figure, (upper, lower) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8.4, 6.6), height_ratios=(4, 1), layout="constrained"
    )
    p = [row["p"] for row in rows]
    upper.set(xscale="log", yscale="log", ylim=(2, 80), ylabel="bits per non-zero, sign included")

    def name_line(text: str, key: str, near: float, shift: tuple[int, int], color: str) -> None:
        at = min(rows, key=lambda row: abs(math.log(row["p"] / near)))
        far = abs(shift[1]) > 20
        leader = {"arrowstyle": "-", "color": color, "linewidth": 0.7} if far else None
        _label(upper, text, (at["p"], at[key]), color, xytext=shift, arrowprops=leader)

    for color, (name, (near, shift)) in zip(OTHERS, _FORMATS.items(), strict=False):
        if name in rows[0]:
            upper.plot(p, [row[name] for row in rows], color=color, linewidth=1.3)
            name_line(name, name, near, shift, color)
    upper.plot(p, [row["fatwood"] for row in rows], color=OURS, linewidth=4, alpha=0.5)
    upper.plot(p, [row["entropy"] for row in rows], color=INK, linewidth=1.2, linestyle="--")
    name_line("Fatwood, whole message", "fatwood", 3e-4, (-50, -45), OURS)
    name_line("entropy of a random mask, $H(p)/p + 1$", "entropy", 1.2e-3, (-100, -55), INK)
    upper.set_yticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
    upper.minorticks_off()
    upper.set_title(
        f"What a non-zero costs: random masks, n = {_power_of_two(results['curve_n'])}", loc="left"
    )
    excess = [100 * (row["fatwood"] / row["entropy"] - 1) for row in rows]
    lower.plot(p, excess, color=OURS, linewidth=1.8)
    lower.axhline(0, color=INK, linewidth=1, linestyle="--")
    lower.set(ylabel="over the\nentropy, %", xlabel="density p: share of the parameters in a message")
    lower.set_ylim(min(-0.1, *excess), max(2.0, *excess) * 1.1)
    for axis in (upper, lower):
        axis.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure


def _speed(results: Mapping[str, Any]) -> Any:
    """Nanoseconds per parameter against density, all methods, at the largest n that ratios are given for."""
    from matplotlib import pyplot

    n = results["encode_over_add"]["n"]
    cells = {(row["method"], row["p"]): row["ns_per_parameter"] for row in results["table"] if row["n"] == n}
    densities = sorted({p for _, p in cells})
    figure, axis = pyplot.subplots(figsize=(8.4, 6.2), layout="constrained")
    floor = [min(cells[name, p] for name, _ in cells if name.startswith("r += g")) for p in densities]
    ends = {"r += g, the floor": (floor[-1], INK)}
    for p in densities:
        sent = cells.get((_INT32, p), cells[_BITMAP, p])  # as Deeplearning4j chooses
        cells["DL4J, our NumPy", p] = sent
    colors = iter(OTHERS)
    for method in dict.fromkeys(name for name, _ in cells):
        if method.startswith("r += g") or method in (_INT32, _BITMAP) or method.endswith("threads"):
            continue
        values = [cells[method, p] for p in densities]
        own, flat = method.startswith("fatwood"), method in ("memcpy", "float16 cast")
        color = OURS if own else GREY if flat else next(colors)
        best = method == results["kernel"]
        axis.plot(
            densities,
            values,
            ":" if own and not best else "-",
            color=color,
            marker=None if flat else "o",
            markersize=3.5,
            linewidth=2.8 if best else 1.3,
        )
        ends[method] = (values[-1], color)
    axis.plot(densities, floor, color=INK, linestyle="--", linewidth=1.4)
    axis.set(xscale="log", yscale="log", ylabel="ns per parameter, whole encode, one thread")
    axis.set_xticks(densities, [f"{p:g}" for p in densities])
    axis.minorticks_off()
    low, high = axis.get_ylim()
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low <= t <= high]
    axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    _label_ends(axis, densities[-1], ends, gap=(high / low) ** (1 / 24))
    axis.set_xlabel("density p: share of the parameters in a message")
    axis.set_title(f"Time to encode {n / 1e6:g} million parameters ({results['machine']['cpu']})", loc="left")
    axis.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axis.set_axisbelow(True)
    return figure


def _label(axis: Any, text: str, at: tuple[float, float], color: str, **options: Any) -> None:
    axis.annotate(text, at, textcoords="offset points", color=color, annotation_clip=False, **options)


def _label_ends(axis: Any, x: float, ends: Mapping[str, tuple[float, str]], *, gap: float) -> None:
    """Names to the right of the ends of lines, moved apart until neighbours differ by a factor of ``gap``."""
    names = sorted(ends, key=lambda name: ends[name][0])
    places = _spread([math.log(ends[name][0]) for name in names], math.log(gap))
    for name, y in zip(names, places, strict=True):
        _label(axis, name, (x, math.exp(y)), ends[name][1], xytext=(8, 0), va="center")


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places in ascending order, at least about ``gap`` apart and otherwise near to the wanted ones."""
    places = list(wanted)
    for _ in range(500):
        for i in range(len(places) - 1):
            overlap = gap - (places[i + 1] - places[i])
            if overlap > 0:
                places[i] -= overlap / 2
                places[i + 1] += overlap / 2
    return places


def _power_of_two(n: int) -> str:
    return f"$2^{{{n.bit_length() - 1}}}$" if n & (n - 1) == 0 else f"{n:,}"


def main() -> None:
    """Draw from a file of results."""
    results = json.loads(Path(sys.argv[1]).read_text().splitlines()[-1])
    for path in draw(results, Path(sys.argv[2])):
        print(path)


if __name__ == "__main__":
    main()
