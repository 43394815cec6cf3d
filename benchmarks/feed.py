"""Rows per second into a training step that does nothing, beside other ways from a DataFrame to a tensor.

    python benchmarks/feed.py [--kinds mnist image table] [--parts feed spill memory] [--rows N] [--repetitions 3] [--json]

Rows of noise lie in Spark's cache (two partitions, memory only on this machine), so that making them costs nothing and the way to
Python is what is measured. Two tasks run on `local[2]`. Kinds: `mnist` (784 floats), `image` (3 x 224 x 224 bytes, divided by
255 to floats in the task), `table` (200 scalar columns); each has an integer label.

Every way is timed from its call to its return, over many rows and over few; the rate is that of the rows that are more, so that
what a job or a fit costs by itself is left out, and counting, shuffle and sorting are in.

* fit: `SparkModel.fit` with a network of one parameter that looks at nothing, averaged once an epoch; rows are dealt out and
  shuffled. fit_staying: with `shuffle=False`; the partitions being even, rows stay where they are.
* partition, partition_staying: `PartitionData` alone in a `mapInArrow`, over the frames that these fits read.
* bare: a `mapInArrow` that only counts, over the frame that the fit reads, with its shuffle; bare_staying: over the same packed
  columns where they are. `over_bare` is fit over bare, `over_bare_staying` fit_staying over bare_staying: both do the same work
  but for the training. `shuffle_over_bare_staying` shows what the shuffle costs.
* torchdistributor: its private loader, by its own functions, in a `mapInArrow`; its start of some 20 s is left out. It neither deals
  out nor shuffles, so `over_torchdistributor_loader` is fit_staying over it. It is given the columns as they are and packed into
  one array (images as floats: it takes no bytes); the better one counts.
* fit_parquet, torchdistributor_parquet: the same rows as Parquet files (Snappy, one for each task). A fit's workers read them
  themselves, shuffled by pieces (`fatwood.Parquet`); the loader is given what `spark.read.parquet` reads.
* local_iterator: `toLocalIterator` on the driver, rows collected into minibatches. (Petastorm cannot be installed beside PySpark 4.)
* spill: epochs after the first, beside a memory-mapped Arrow file of the same rows, copied into the same minibatches in the
  file's order or at random by `take`. `spill_over_mmap` is both at random; `spill_over_mmap_in_order` is ours at random over the
  file in its order, the hardest.
* memory: the largest private memory of a worker whose partition has `--memory-gb`, made in the plan: what is its own, without
  mapped files that the system can drop (`rss_mb` has these too), and without PyTorch and PySpark, which workers of
  `fatwood.spark.daemon` share. `of_two_rows_mb` is that of a fit of two rows.

All of a kind take turns, every second turn backwards; ratios are of the best repetitions, medians stand beside.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
from feed_peers import COLUMNS, FIGURES, IMAGE, count, later_epochs, made, partition_data, torch_loader
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import nn

from fatwood import ParameterAveraging, Parquet, SparkModel
from fatwood.spark import persist
from fatwood.spark.plan import plan_fit

KINDS = ("mnist", "image", "table")
PARTS = ("feed", "spill", "memory")
WORKERS = 2
BATCH_SIZE = {"mnist": 256, "image": 32, "table": 1024}
"""Some 0.8 MB of floats for rows of numbers, and 19 MB of images."""
ROWS = {"mnist": 120_000, "image": 4_000, "table": 240_000}
SHARES = {
    "mnist": {"torchdistributor": 1.0, "local_iterator": 0.05},
    "image": {"local_iterator": 0.05},
    "table": {"torchdistributor": 0.05, "torchdistributor_packed": 1.0, "local_iterator": 0.05},
}
"""Of the rows that a slow way is given, so that all take about as long."""
IMAGES_AS_FLOATS = 400
MB = 1 << 20


class Nothing(nn.Module):
    """One parameter; the features are not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Parameter(torch.zeros(()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(B, 1)`` of the parameter."""
        return self.only.expand(len(features), 1)


def nothing(network: nn.Module, batch: Any) -> torch.Tensor:
    """A loss that costs what PyTorch's smallest backward pass costs."""
    output: torch.Tensor = network(batch.features)
    return output[0, 0]


def model() -> SparkModel:
    """Workers agree once an epoch, so that no step waits for a message."""
    optimizer = torch.optim.SGD
    return SparkModel(
        Nothing(),
        loss=nothing,
        optimizer=lambda parameters: optimizer(parameters, lr=0.0),
        strategy=ParameterAveraging(every=1 << 20),
    )


def columns(kind: str) -> dict[str, Any]:
    """What a fit is told of the rows of a kind."""
    features: Any = {"mnist": "pixels", "table": [f"c{i}" for i in range(COLUMNS)]}.get(kind)
    if kind == "image":
        from fatwood.data.inputs import DenseColumn

        features = DenseColumn("pixels", shape=IMAGE, divisor=255.0)
    return {
        "features": features,
        "label": "y",
        "batch_size": BATCH_SIZE[kind],
        "workers": WORKERS,
        "progress": False,
    }


@contextmanager
def session(daemon: str = "pyspark.daemon") -> Iterator[SparkSession]:
    """Two cores, and enough memory for all rows."""
    here = Path(__file__).resolve().parent
    os.environ |= {
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",  # workers import feed_peers
    }
    options: dict[str, bool | float | int | str | None] = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "6g",
        "spark.log.level": "ERROR",
        "spark.python.daemon.module": daemon,
        "spark.sql.files.maxPartitionBytes": "1g",  # a file is a partition, as the loader needs them even
        "spark.sql.files.openCostInBytes": "1g",
        "spark.sql.shuffle.partitions": str(WORKERS),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = SparkSession.builder.master(f"local[{WORKERS}]").appName("feed").config(map=options)
    spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()


def cached(spark: SparkSession, kind: str, rows: int) -> DataFrame:
    """Rows of a kind, in Spark's cache."""
    make, schema = made(kind)
    df = persist(spark.range(0, rows, 1, WORKERS).mapInArrow(make, schema))
    assert df.count() == rows
    return df


class _PlannedError(Exception):
    pass


def packed(df: DataFrame, kind: str) -> DataFrame:
    """The columns that cross to Python, as a fit packs them."""
    features = F.array(*(f"c{i}" for i in range(COLUMNS))) if kind == "table" else F.col("pixels")
    return df.select(
        F.monotonically_increasing_id().alias("row_id"), features.alias("features"), F.col("y").alias("label")
    )


def plan_of(df: DataFrame, kind: str, *, shuffle: bool = True) -> Any:
    """The plan of a fit that is not run."""
    found: list[Any] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        found.append(plan_fit(*arguments, **options))
        raise _PlannedError

    with patch("fatwood.spark.fit.plan_fit", spy), suppress(_PlannedError):
        model().fit(df, **columns(kind), shuffle=shuffle)
    return found[0]


def figures(frame: DataFrame, reader: Any) -> list[dict[str, Any]]:
    """What a reader found, by task."""
    return [json.loads(row[0]) for row in frame.mapInArrow(reader, FIGURES).collect()]


Frame = tuple[Any, int]
"""A DataFrame, or files, and how many rows it has."""

Run = Callable[[Any, int], dict[str, Any]]
"""Feeds a frame of so many rows; returns how many it saw, with other figures."""


class Way:
    """One way of feeding, timed over many rows and over few, so that what every job costs is left out.

    Args:
        frames: Of many rows and of few.
        run: What is timed.
    """

    def __init__(self, frames: tuple[Frame, Frame], run: Run) -> None:
        self.frames = many, few = frames
        self._frames = {"many": many, "few": few}
        self._run = run
        self.rows = many[1] - few[1]
        self.seconds: dict[str, list[float]] = {"many": [], "few": []}
        self.cpu: dict[str, list[float]] = {"many": [], "few": []}
        """Seconds of all processes together, which a busy machine changes less."""
        self.found: list[dict[str, Any]] = []

    def go(self, *, counts: bool) -> None:
        """Run both once; unless it counts, to warm up."""
        for which, (frame, rows) in self._frames.items():
            start, cpu = time.perf_counter(), cpu_seconds()
            found = self._run(frame, rows)
            seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
            assert found.pop("rows") == rows, found
            if counts:
                self.seconds[which].append(seconds)
                self.cpu[which].append(cpu)
            if counts and which == "many":
                self.found.append(found)

    def result(self) -> dict[str, Any]:
        """Rows per second of the rows that were more."""
        spent = (of(self.seconds["many"]) - of(self.seconds["few"]) for of in (min, statistics.median))
        best, median = (seconds if seconds > 0 else math.nan for seconds in spent)  # too few rows to tell
        return {
            "rows": self.rows,
            "seconds": self.seconds,
            "rows_per_s": self.rows / best,
            "median_rows_per_s": self.rows / median,
            "cpu_us_per_row": 1e6 * (min(self.cpu["many"]) - min(self.cpu["few"])) / self.rows,
        }


def cpu_seconds() -> float:
    """Of this process, Spark's JVM and its Python processes until now."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def parquet(df: DataFrame, folder: Path) -> str:
    """The rows of a frame as files, one for each partition."""
    df.write.parquet(str(folder))
    return str(folder)


def in_tasks(reader: Callable[[DataFrame, int], Any]) -> Run:
    """A reader in a task for each partition."""

    def run(frame: DataFrame, rows: int) -> dict[str, Any]:
        found = figures(frame, reader(frame, rows))
        return {"rows": sum(task["rows"] for task in found), "tasks": found}

    return run


def fitting(kind: str, *, shuffle: bool) -> Run:
    """A whole fit of one epoch."""

    def run(df: DataFrame, _: int) -> dict[str, Any]:
        fit = model().fit(df, **columns(kind), shuffle=shuffle)
        return {"rows": fit.stats.rows_trained, "epoch": fit.history[0].seconds}

    return run


def local_iterator(kind: str) -> Run:
    """Rows on the driver, made into tensors."""
    size = BATCH_SIZE[kind]

    def run(df: DataFrame, _: int) -> dict[str, Any]:
        rows, seen = df.toLocalIterator(prefetchPartitions=True), 0
        while batch := list(islice(rows, size)):
            seen += len(_collated(kind, batch))
        return {"rows": seen}

    return run


def _collated(kind: str, rows: list[Any]) -> torch.Tensor:
    torch.tensor([row["y"] for row in rows])
    if kind == "image":
        pixels = np.stack([np.frombuffer(row["pixels"], np.uint8) for row in rows])
        return torch.from_numpy(pixels).to(torch.float32).div_(255)
    return torch.tensor([row["pixels"] if kind == "mnist" else row[:-1] for row in rows])


def feed(spark: SparkSession, kind: str, rows: int, repetitions: int) -> dict[str, Any]:
    """All ways to feed the rows of a kind, in turns."""
    with tempfile.TemporaryDirectory(prefix="fatwood-feed-") as folder:
        return _feed(spark, kind, rows, repetitions, Path(folder))


def _feed(spark: SparkSession, kind: str, rows: int, repetitions: int, folder: Path) -> dict[str, Any]:
    few, size = WORKERS * BATCH_SIZE[kind], BATCH_SIZE[kind]
    frames = {n: cached(spark, kind, n) for n in (few, rows)}
    plans = {n: plan_of(df, kind) for n, df in frames.items()}
    options = feed_options(plans[rows], kind)

    def pair(of: Callable[[int], DataFrame], many: int = rows) -> tuple[Frame, Frame]:
        return (of(many), many), (of(few), few)

    def loader(df: DataFrame, n: int) -> Any:
        return torch_loader(df.schema.jsonValue(), n // WORKERS, size)

    def share(name: str, form: Callable[[DataFrame], DataFrame] = lambda df: df) -> tuple[Frame, Frame]:
        n = max(2 * few, int(rows * SHARES[kind][name]) // WORKERS * WORKERS)
        frames.setdefault(n, cached(spark, kind, n))
        return pair(lambda n: form(frames[n]), n)

    staying = {n: plan_of(df, kind, shuffle=False) for n, df in frames.items() if n in plans}
    data = in_tasks(lambda *_: partition_data(options))
    counting = in_tasks(lambda *_: count)
    ways = {
        "fit": Way(pair(frames.__getitem__), fitting(kind, shuffle=True)),
        "fit_staying": Way(pair(frames.__getitem__), fitting(kind, shuffle=False)),
        "partition": Way(pair(lambda n: plans[n].frame), data),
        "partition_staying": Way(pair(lambda n: staying[n].frame), data),
        "bare": Way(pair(lambda n: plans[n].frame), counting),
        "bare_staying": Way(pair(lambda n: packed(frames[n], kind)), counting),
        "local_iterator": Way(share("local_iterator"), local_iterator(kind)),
    }
    if kind == "image":
        floats = {n: cached(spark, "image_floats", n) for n in (few, IMAGES_AS_FLOATS)}
        ways["torchdistributor"] = Way(pair(floats.__getitem__, IMAGES_AS_FLOATS), in_tasks(loader))
    else:
        ways["torchdistributor"] = Way(share("torchdistributor"), in_tasks(loader))
    if kind == "table":
        ways["torchdistributor_packed"] = Way(
            share("torchdistributor_packed", lambda df: packed(df, kind).drop("row_id")), in_tasks(loader)
        )
    files = {n: Parquet(parquet(df, folder / str(n))) for n, df in frames.items() if n in plans}
    ways["fit_parquet"] = Way(pair(files.__getitem__), fitting(kind, shuffle=True))
    theirs = {
        way: ways[f"torchdistributor{way}"] for way in ("", "_packed") if f"torchdistributor{way}" in ways
    }
    for name, way in theirs.items():
        there = [(parquet(df, folder / f"{name}-{n}"), n) for df, n in way.frames]
        many, few_there = [(spark.read.parquet(path), n) for path, n in there]
        ways[f"torchdistributor_parquet{name}"] = Way((many, few_there), in_tasks(loader))
    for turn in range(repetitions + 1):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            ways[name].go(counts=turn > 0)
    spark.catalog.clearCache()
    return _feed_result(ways, rows)


def feed_options(plan: Any, kind: str) -> dict[str, Any]:
    """Of `PartitionData`, as a fit of the plan has them."""
    return {
        "layout": plan.layout,
        "batch_size": BATCH_SIZE[kind],
        "seed": 0,
        "first_epoch": 0,
        "on_bad_row": "error",
    }


def _feed_result(ways: dict[str, Way], rows: int) -> dict[str, Any]:
    found = {name: way.result() for name, way in ways.items()}
    for name in ("fit", "fit_staying"):
        found[name]["epoch_rows_per_s"] = rows / min(of["epoch"] for of in ways[name].found)
    largest = max(task["arrow_batch_bytes"] for of in ways["bare"].found for task in of["tasks"])
    found["bare"]["arrow_batch_mb"] = largest / MB
    result: dict[str, Any] = {"ways": found}
    for figure, suffix in (("rows_per_s", ""), ("median_rows_per_s", "_median")):
        speed = {name: of[figure] for name, of in found.items()}
        loader, of_files = (
            max(
                speed[f"torchdistributor{part}{way}"]
                for way in ("", "_packed")
                if f"torchdistributor{part}{way}" in speed
            )
            for part in ("", "_parquet")
        )
        result |= {
            f"over_bare{suffix}": speed["fit"] / speed["bare"],
            f"over_bare_staying{suffix}": speed["fit_staying"] / speed["bare_staying"],
            f"shuffle_over_bare_staying{suffix}": speed["fit"] / speed["bare_staying"],
            f"partition_over_bare{suffix}": speed["partition"] / speed["bare"],
            f"over_torchdistributor_loader{suffix}": speed["fit_staying"] / loader,
            f"shuffle_over_torchdistributor_loader{suffix}": speed["fit"] / loader,
            f"parquet_over_torchdistributor_loader{suffix}": speed["fit_parquet"] / of_files,
            f"over_local_iterator{suffix}": speed["fit"] / speed["local_iterator"],
        }
    return result


def spill(spark: SparkSession, kind: str, rows: int, repetitions: int) -> dict[str, Any]:
    """Later epochs against a memory-mapped file, and those of a real fit."""
    df = cached(spark, kind, rows)
    plan = plan_of(df, kind)
    options = feed_options(plan, kind)
    found = figures(
        plan.frame, later_epochs(options, 255.0 if kind == "image" else None, max(3, repetitions))
    )
    fit = model().fit(df, **columns(kind) | {"epochs": max(3, repetitions) + 1})
    spark.catalog.clearCache()
    both = {  # tasks run side by side: the slower one's seconds of each repetition
        name: [max(turns) for turns in zip(*(task["seconds"][name] for task in found), strict=True)]
        for name in found[0]["seconds"]
    }
    best = {name: min(seconds) for name, seconds in both.items()}
    median = {name: statistics.median(seconds) for name, seconds in both.items()}
    return {
        "rows": rows,
        "rows_per_s": {name: rows / seconds for name, seconds in best.items()},
        "fit_rows_per_s": rows / min(record.seconds for record in fit.history[1:]),
        "spill_over_mmap": best["mmap_random"] / best["spill_random"],
        "spill_over_mmap_median": median["mmap_random"] / median["spill_random"],
        "spill_over_mmap_in_order": best["mmap_in_order"] / best["spill_random"],
        "both_in_order": best["mmap_in_order"] / best["spill_in_order"],
        "seconds": both,
    }


class MemoryWatch(threading.Thread):
    """The memory of Spark's Python processes, twenty times a second."""

    def __init__(self) -> None:
        super().__init__(name="memory-watch", daemon=True)
        self.over = threading.Event()
        self.peak: dict[int, dict[str, float]] = {}
        """MB by process: its own, all resident, and proportional, each at its own largest."""

    def run(self) -> None:
        """Look until it is over."""
        while not self.over.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("python"):
                        self._note(process.pid)
                except (psutil.Error, OSError):
                    continue  # it has just ended

    def _note(self, pid: int) -> None:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        peak = self.peak.setdefault(pid, {})
        for name, field in (("private_mb", "Private_Dirty"), ("rss_mb", "Rss"), ("pss_mb", "Pss")):
            peak[name] = max(peak.get(name, 0.0), kb[field] / 1024)


def made_in_the_plan(spark: SparkSession, kind: str, gb: float) -> DataFrame:
    """As many rows as make so many GB in Arrow, computed when they are read."""
    width = {"mnist": 784 * 4, "image": math.prod(IMAGE), "table": COLUMNS * 4}[kind]
    ids = spark.range(0, int(gb * (1 << 30) / width), 1, WORKERS)
    noise, y = (F.col("id") % 1009 / 1009).cast("float"), (F.col("id") % 10).alias("y")
    if kind == "mnist":
        return ids.select(F.array_repeat(noise, 784).alias("pixels"), y)
    if kind == "image":
        letter = F.char(F.col("id") % 26 + 65)
        return ids.select(F.repeat(letter, math.prod(IMAGE)).cast("binary").alias("pixels"), y)
    return ids.select(*(noise.alias(f"c{i}") for i in range(COLUMNS)), y)


def memory(kind: str, gb: float, epochs: int) -> dict[str, Any]:
    """The largest memory of the one worker of a fit over one large partition."""
    with session("fatwood.spark.daemon") as spark:
        df = made_in_the_plan(spark, kind, gb)
        few = persist(spark.range(0, 2, 1, WORKERS).mapInArrow(*made(kind)))
        watch = MemoryWatch()
        watch.start()
        model().fit(few, **columns(kind) | {"workers": 1, "epochs": epochs})
        before = max(peak["private_mb"] for peak in watch.peak.values())
        start = time.perf_counter()
        fit = model().fit(df, **columns(kind) | {"workers": 1, "epochs": epochs})
        seconds = time.perf_counter() - start
        watch.over.set()
        watch.join()
    worker = max(watch.peak.values(), key=lambda peak: peak["private_mb"])
    rows = fit.stats.rows_trained // epochs
    return {"gb": gb, "epochs": epochs, "rows": rows, "seconds": seconds, "of_two_rows_mb": before, **worker}


def alone(*arguments: str) -> dict[str, Any]:
    """A part in a process, and Spark session, of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print, or JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, help="of every kind, in place of the usual numbers")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--memory-gb", type=float, default=5.0)
    parser.add_argument("--memory-kinds", nargs="+", choices=KINDS, default=("mnist", "image"))
    parser.add_argument(
        "--epochs", type=int, default=2, help="of the memory part; the second reads the spill"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(memory(arguments.memory_of, arguments.memory_gb, arguments.epochs)))
        return
    found: dict[str, Any] = {}
    if {"feed", "spill"} & set(arguments.parts):
        with session() as spark:
            for kind in arguments.kinds:
                rows = (arguments.rows or ROWS[kind]) // WORKERS * WORKERS
                for part, measure in (("feed", feed), ("spill", spill)):
                    if part in arguments.parts:
                        found.setdefault(part, {})[kind] = measure(spark, kind, rows, arguments.repetitions)
                        _show(part, kind, found[part][kind], arguments.json)
    if "memory" in arguments.parts:
        for kind in arguments.memory_kinds:
            told = ("--memory-gb", str(arguments.memory_gb), "--epochs", str(arguments.epochs))
            found.setdefault("memory", {})[kind] = alone("--memory-of", kind, *told)
            _show("memory", kind, found["memory"][kind], arguments.json)
    if arguments.json:
        print(json.dumps({**_headlines(found), **found}))


def _headlines(found: dict[str, Any]) -> dict[str, Any]:
    """The figures that are asked for, by kind of row."""
    named = {
        "over_bare": "feed",
        "over_bare_staying": "feed",
        "over_torchdistributor_loader": "feed",
        "shuffle_over_torchdistributor_loader": "feed",
        "parquet_over_torchdistributor_loader": "feed",
        "over_local_iterator": "feed",
        "spill_over_mmap": "spill",
        "spill_over_mmap_in_order": "spill",
    }
    headlines = {
        name: {kind: of[name] for kind, of in found[part].items()}
        for name, part in named.items()
        if part in found
    }
    if "memory" in found:
        headlines["peak_worker_mb"] = {kind: of["private_mb"] for kind, of in found["memory"].items()}
    return headlines


def _show(part: str, kind: str, found: dict[str, Any], quiet: bool) -> None:  # noqa: FBT001
    to = sys.stderr if quiet else sys.stdout
    speeds = {name: way["rows_per_s"] for name, way in found.get("ways", {}).items()} or found.get(
        "rows_per_s", {}
    )
    print(
        f"{part} {kind}",
        *(f"  {name:24} {speed:12,.0f} rows/s" for name, speed in speeds.items()),
        sep="\n",
        file=to,
    )
    others = {name: value for name, value in found.items() if isinstance(value, int | float)}
    print(*(f"  {name:36} {value:10.2f}" for name, value in others.items()), sep="\n", file=to, flush=True)


if __name__ == "__main__":
    main()
