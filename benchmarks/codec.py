"""The codec measured: time against one ``r += g``, bits against the entropy, and both against the alternatives.

    python benchmarks/codec.py [--quick] [--json] [--plot DIRECTORY] [--fuzz N]

Four parts, all by default (``--parts``): ``encode`` (table of nanoseconds per parameter), ``decode`` (several peers'
messages applied), ``bits`` (random masks, all formats), ``real`` (masks of real trainings). One thread unless a row
says otherwise, best of many repetitions in turns; see `codec_timing`, `codec_sizes` and `codec_peers` for how.
zstandard and matplotlib are optional. ``--fuzz N`` decodes N mutated messages as well.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import codec_peers as peers
import codec_sizes
import codec_timing
import torch

from fatwood.codec import kernel

SIZES = (1_000_000, 11_000_000, 25_000_000, 100_000_000)
QUICK_SIZES = SIZES[:2]
HEADLINE_SIZE = 25_000_000
DENSITIES = (1e-1, 1e-2, 1e-3, 1e-4)
MASK_SIZES = (2**14, 2**17, 1_000_003, 2**20, 2**22, 11_000_000, 2**24)
QUICK_MASK_SIZES = MASK_SIZES[:4]
PARTS = ("encode", "decode", "bits", "real")
DECODED_MESSAGES = 4


def main() -> None:
    """Measure the parts that were asked for, print tables, and JSON as the last line."""
    arguments = _arguments()
    torch.set_num_threads(1)
    threads = (1, 2) if (os.cpu_count() or 1) > 1 else (1,)
    names = list(kernel.available())
    results: dict[str, Any] = {
        "kernel": codec_timing.ours(names[0]),
        "kernels": names,
        "seed": arguments.seed,
        "seconds_per_method": arguments.seconds,
        "machine": _machine(),
    }
    print(json.dumps(results["machine"], indent=1), flush=True)
    if peers.zstd_compressor() is None:
        print("no rows of zstd: pip install zstandard")
    start = time.perf_counter()
    if "encode" in arguments.parts:
        results |= _encode(arguments, names, threads)
    if "decode" in arguments.parts:
        results |= _decode(arguments, threads)
    if "bits" in arguments.parts:
        results |= _bits(arguments)
    if "real" in arguments.parts:
        results["bits_over_entropy_real"] = codec_sizes.real_masks(arguments.epochs, arguments.seed)
        _print_real(results["bits_over_entropy_real"])
    if arguments.fuzz:
        from codec_fuzz import fuzz

        totals = fuzz(arguments.fuzz, seed=arguments.seed)
        results["fuzz"] = {**totals, "crashes": totals["failures"]}
        print(f"\nfuzz: {results['fuzz']}", flush=True)
    results["machine"]["load_average_after"] = os.getloadavg()
    results["seconds"] = time.perf_counter() - start
    if arguments.plot:
        _plot(results, arguments.plot)
    if arguments.json:
        print(json.dumps(_finite(results)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 M and 11 M parameters, smaller masks")
    parser.add_argument("--n", type=int, nargs="+", help="parameters, instead of the usual sizes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each method of a cell")
    parser.add_argument("--epochs", type=int, default=2, help="of the trainings that real masks are of")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fuzz", type=int, default=0, metavar="N", help="decode N mutated messages as well")
    parser.add_argument("--plot", type=Path, metavar="DIRECTORY", help="write two figures there")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    arguments.n = tuple(arguments.n or (QUICK_SIZES if arguments.quick else SIZES))
    return arguments


def _encode(arguments: argparse.Namespace, names: list[str], threads: Sequence[int]) -> dict[str, Any]:
    table: list[dict[str, Any]] = []
    for n in arguments.n:
        rows = codec_timing.encode_table(n, DENSITIES, arguments.seconds, arguments.seed, threads)
        _print_encode(n, rows)
        table += rows
    n = _headline(arguments.n)
    compiled = names[0] if names[0] != "numpy" else None
    cells = {(row["n"], row["p"], row["method"]): row for row in table}

    def over_add(name: str) -> dict[str, float]:
        ratios = {f"{p:g}": cells[n, p, codec_timing.ours(name)]["over_add"] for p in DENSITIES}
        return {**ratios, "n": n}

    found = {
        "encode_over_add": {"n": n} if compiled is None else over_add(compiled),
        "encode_over_add_numpy": over_add("numpy"),
        "dl4j_bytes_over_ours": {
            f"{p:g}": peers.dl4j_bytes(n, row["count"]) / row["bytes"]
            for p in DENSITIES
            for row in [cells[n, p, codec_timing.ours(names[0])]]
        },
        "table": table,
    }
    for key in ("encode_over_add", "encode_over_add_numpy", "dl4j_bytes_over_ours"):
        print(f"{key}: {_rounded(found[key])}", flush=True)
    return found


def _decode(arguments: argparse.Namespace, threads: Sequence[int]) -> dict[str, Any]:
    n = _headline(arguments.n)
    decoded = codec_timing.decode_table(n, 1e-2, DECODED_MESSAGES, arguments.seconds, arguments.seed, threads)
    print(f"\nns per non-zero, {DECODED_MESSAGES} messages of n = {n:,} and p = 0.01 decoded and applied")
    for method, nanoseconds in decoded["ns_per_nonzero"].items():
        print(f"  {method:36} {nanoseconds:8.2f}", flush=True)
    fastest = codec_timing.ours(next(iter(kernel.available())))
    return {"decode_apply_ns_per_nonzero": decoded["ns_per_nonzero"][fastest], "decode_apply": decoded}


def _bits(arguments: argparse.Namespace) -> dict[str, Any]:
    sizes = QUICK_MASK_SIZES if arguments.quick else MASK_SIZES
    masks = codec_sizes.random_masks(sizes, arguments.seed)
    worst = codec_sizes.worst(masks)
    print(f"\nbits_over_entropy, worst of {len(masks)} random masks: {_rounded(worst)}", flush=True)
    curve = codec_sizes.curve(sizes[-1], arguments.seed)
    formats = [key for key in curve[0] if key not in ("p", "count", "coder")]
    print(f"\nbits per non-zero, n = {sizes[-1]:,}")
    for name in formats:
        print(f"  {name:26}" + "".join(f"{row[name]:9.2f}" for row in curve[::10]))
    print(f"  {'p':26}" + "".join(f"{row['p']:9.2g}" for row in curve[::10]), flush=True)
    return {"bits_over_entropy": worst, "masks": masks, "curve": curve, "curve_n": sizes[-1]}


def _print_encode(n: int, rows: list[dict[str, Any]]) -> None:
    print(f"\nn = {n:,}: ns per parameter, and times the faster r += g")
    densities = list(dict.fromkeys(row["p"] for row in rows))
    print(f"  {'':24}" + "".join(f"{f'p = {p:g}':>18}" for p in densities))
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = {row["p"]: row for row in rows if row["method"] == method}
        cells = (
            f"{mine[p]['ns_per_parameter']:9.3f} {mine[p]['over_add']:7.2f}x" if p in mine else f"{'-':>18}"
            for p in densities
        )
        print(f"  {method:24}" + "".join(cells), flush=True)


def _print_real(real: Mapping[str, Any]) -> None:
    print("\nbits_over_entropy_real: message bits over the bound, all messages of short trainings")
    for network in codec_sizes.NETWORKS:
        for density, figures in real["by_density"][network].items():
            print(
                f"  {network}, density {density:13} {figures['ratio']:8.4f}   {figures['messages']} messages"
            )
    for run, figures in real["messages"].items():
        density, bits = figures["mean_density"], figures["bits_per_nonzero"]
        print(
            f"  {run:22} {figures['ratio']:8.4f}   mean density {density:.2g}, {bits:.2f} bits per non-zero"
        )


def _headline(sizes: Sequence[int]) -> int:
    """The n that the headline figures are of: 25 million where it was measured."""
    return HEADLINE_SIZE if HEADLINE_SIZE in sizes else max(sizes)


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    versions = {}
    for package in ("fatwood", "numpy", "torch", "zstandard"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "torch_threads": torch.get_num_threads(),
        "load_average_before": os.getloadavg(),
    }


def _plot(results: Mapping[str, Any], directory: Path) -> None:
    import codec_plots

    try:
        for path in codec_plots.draw(results, directory):
            print(path)
    except ImportError:
        print(
            "no figures: pip install matplotlib, then python benchmarks/codec_plots.py RESULTS.json DIRECTORY"
        )


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {key: value if isinstance(value, int) else round(value, 4) for key, value in figures.items()}


def _finite(value: Any) -> Any:
    """The same with None for NaN, which JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    main()
