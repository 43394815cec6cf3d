"""Rows per second of predictions beside other ways with the same network and minibatches; evaluation in one pass; memory of weights.

    python benchmarks/predict.py [--parts mlp resnet18 evaluate weights] [--rows 1000000] [--images 50000] [--repetitions 3]
                                 [--weights-mb 500] [--json]

Rows lie in Spark's cache, in memory; two tasks run on `local[2]`, each with one thread; results go to Spark's `noop` sink. Networks:
`mlp` (100 numbers, 64 hidden units, 10 classes; minibatches of 1024) and `resnet18` (3 x 32 x 32 numbers, 11 million parameters, the layers
of torchvision's ResNet-18, which is not needed; minibatches of 64; a row is some 2 ms of work for one core).

* fatwood: `SparkModel.predict`.
* predict_batch_udf: PySpark's own, the same network and minibatches. `over_predict_batch_udf` is fatwood over it.
* map_in_arrow: by hand; no checks, no keys but one, nothing named when it fails.
* one_process: no Spark; the rows are in memory as one array, two threads.
* evaluate: six metrics in one pass beside six passes with a metric each (`evaluate_over_passes` is how many times as fast).
* weights: four Python workers on one host, all in a forward pass at the same moment, with a network of `--weights-mb` and with a small
  one; `weights_mb` is what all four take together more with the large one: their proportional set sizes, so that a page that they
  share counts once.

Every way is timed over many rows and over a tenth of them; the rate is that of the rows that are more. All take turns, every second turn
backwards; ratios are of the best repetitions. `cpu_us_per_row` is of all processes, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import ArrayType, FloatType
from torch import nn

from fatwood import SparkModel
from fatwood.data.inputs import DenseColumn
from fatwood.spark import persist

PARTS = ("mlp", "resnet18", "evaluate", "weights")
TASKS = 2
BATCH_SIZE = {"mlp": 1024, "resnet18": 64}
SHAPES = {"mlp": (100,), "resnet18": (3, 32, 32)}
CLASSES = 10
WORKERS = 4
MB = 1 << 20


class Block(nn.Module):
    """Two convolutions and a way past them."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(inplace=True),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.past: nn.Module = nn.Identity()
        if stride > 1 or inner != outer:
            self.past = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, outer, H / stride, W / stride)``."""
        return torch.relu(self.path(x) + self.past(x))


def network(kind: str) -> nn.Module:
    """The network of a kind, with weights of noise."""
    torch.manual_seed(0)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, CLASSES)).eval()
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths, blocks = (64, 64, 128, 256, 512), []
    for i, (inner, outer) in enumerate(pairwise(widths)):
        blocks += [Block(inner, outer, 1 if i == 0 else 2), Block(outer, outer, 1)]
    return nn.Sequential(
        *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES)
    ).eval()


@contextmanager
def session(tasks: int) -> Iterator[SparkSession]:
    """So many cores, and memory for all rows."""
    os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    options: dict[str, bool | float | int | str | None] = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "6g",
        "spark.log.level": "ERROR",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = SparkSession.builder.master(f"local[{tasks}]").appName("predict").config(map=options)
    spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()


def cached(spark: SparkSession, kind: str, rows: int) -> DataFrame:
    """Rows of noise with a label, in Spark's cache."""
    width = math.prod(SHAPES[kind])

    def make(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            ids = batch.column(0).to_numpy()
            random = np.random.default_rng(int(ids[0]) if len(ids) else 0)
            values = random.standard_normal((len(ids), width), dtype=np.float32)
            offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * width)
            lists = pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))
            labels = pa.array(random.integers(0, CLASSES, len(ids)))
            yield pa.RecordBatch.from_arrays([batch.column(0), lists, labels], names=["id", "x", "y"])

    df = persist(spark.range(0, rows, 1, TASKS).mapInArrow(make, "id long, x array<float>, y long"))
    assert df.count() == rows
    return df


Run = Callable[[Any], None]


class Way:
    """One way of predicting.

    Args:
        many: Rows, and how many.
        few: A tenth.
        run: What is timed.
    """

    def __init__(self, many: tuple[Any, int], few: tuple[Any, int], run: Run) -> None:
        self._frames = {"many": many[0], "few": few[0]}
        self._run, self.rows = run, many[1] - few[1]
        self.seconds: dict[str, list[float]] = {"many": [], "few": []}
        self.cpu: dict[str, list[float]] = {"many": [], "few": []}

    def go(self, *, counts: bool) -> None:
        """Run both once; unless it counts, the few alone, to warm up."""
        for which, frame in self._frames.items() if counts else [("few", self._frames["few"])]:
            start, cpu = time.perf_counter(), cpu_seconds()
            self._run(frame)
            if counts:
                self.seconds[which].append(time.perf_counter() - start)
                self.cpu[which].append(cpu_seconds() - cpu)

    def result(self) -> dict[str, Any]:
        """Rows per second of the rows that were more."""
        spent = [of(self.seconds["many"]) - of(self.seconds["few"]) for of in (min, statistics.median)]
        best, median = (self.rows / seconds if seconds > 0 else math.nan for seconds in spent)
        cpu = min(self.cpu["many"]) - min(self.cpu["few"])
        return {
            "rows": self.rows,
            "rows_per_s": best,
            "median_rows_per_s": median,
            "cpu_us_per_row": 1e6 * cpu / self.rows,
            "seconds": self.seconds,
        }


def cpu_seconds() -> float:
    """Of this process, Spark's JVM and its Python processes until now."""
    me, total = psutil.Process(), 0.0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def in_turns(ways: dict[str, Way], repetitions: int) -> dict[str, Any]:
    """All of them, every second time backwards."""
    for way in ways.values():
        way.go(counts=False)
    for turn in range(repetitions):
        for way in list(ways.values())[:: -1 if turn % 2 else 1]:
            way.go(counts=True)
    return {name: way.result() for name, way in ways.items()}


def drained(df: DataFrame) -> None:
    """Compute all rows and throw them away."""
    df.write.format("noop").mode("overwrite").save()


def by_udf(kind: str) -> Run:
    """PySpark's own function of batches."""
    net, shape = network(kind), list(SHAPES[kind])

    def make() -> Callable[[np.ndarray], np.ndarray]:
        torch.set_num_threads(1)

        def predict(inputs: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return net(torch.from_numpy(inputs)).numpy()

        return predict

    function = predict_batch_udf(
        make,
        return_type=ArrayType(FloatType()),
        batch_size=BATCH_SIZE[kind],
        input_tensor_shapes=[shape],
    )
    return lambda df: drained(df.select("id", function("x").alias("prediction")))


def by_hand(kind: str) -> Run:
    """What one would write without a library."""
    net, shape, size = network(kind), SHAPES[kind], BATCH_SIZE[kind]

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        torch.set_num_threads(1)
        for batch in batches:
            x = torch.from_numpy(batch.column(1).flatten().to_numpy().copy()).reshape(-1, *shape)
            with torch.no_grad():
                outputs = torch.cat([net(x[i : i + size]) for i in range(0, len(x), size)])
            offsets = pa.array(np.arange(len(x) + 1, dtype=np.int32) * outputs.shape[1])
            lists = pa.ListArray.from_arrays(offsets, pa.array(outputs.reshape(-1).numpy()))
            yield pa.RecordBatch.from_arrays([batch.column(0), lists], names=["id", "prediction"])

    return lambda df: drained(df.select("id", "x").mapInArrow(task, "id long, prediction array<float>"))


def by_fatwood(kind: str) -> Run:
    """Ours."""
    features = DenseColumn("x", shape=SHAPES[kind])
    model = SparkModel(network(kind))
    return lambda df: drained(model.predict(df, key="id", features=features, batch_size=BATCH_SIZE[kind]))


def by_one_process(kind: str) -> Run:
    """No Spark; rows that are there already."""
    net, size = network(kind), BATCH_SIZE[kind]

    def run(rows: torch.Tensor) -> None:
        torch.set_num_threads(TASKS)
        with torch.no_grad():
            for i in range(0, len(rows), size):
                net(rows[i : i + size])

    return run


def predicting(spark: SparkSession, kind: str, rows: int, repetitions: int) -> dict[str, Any]:
    """All ways to predict the rows of a kind."""
    counts = (rows, max(TASKS, rows // 10))
    many, few = ((cached(spark, kind, n), n) for n in counts)
    plain = torch.randn(rows, *SHAPES[kind])
    ways = {
        "fatwood": Way(many, few, by_fatwood(kind)),
        "predict_batch_udf": Way(many, few, by_udf(kind)),
        "map_in_arrow": Way(many, few, by_hand(kind)),
        "one_process": Way((plain, counts[0]), (plain[: counts[1]], counts[1]), by_one_process(kind)),
    }
    found = in_turns(ways, repetitions)
    for df, _ in (many, few):
        df.unpersist(blocking=True)
    return found


def metrics() -> dict[str, Any]:
    """Six."""
    from fatwood.evaluation import Calibration, Classification, Loss, ROCMultiClass

    return {
        "loss": Loss(),
        "accuracy": Classification(),
        "top_3": Classification(top_n=3),
        "roc": ROCMultiClass(bins=200),
        "calibration": Calibration(),
        "calibration_20": Calibration(bins=20),
    }


def evaluating(spark: SparkSession, rows: int, repetitions: int) -> dict[str, Any]:
    """One pass with all metrics, and a pass for each."""
    model = SparkModel(network("mlp"), loss=nn.CrossEntropyLoss())
    options: dict[str, Any] = {"features": "x", "label": "y", "batch_size": BATCH_SIZE["mlp"]}

    def one_pass(df: DataFrame) -> None:
        model.evaluate(df, metrics=metrics(), **options)

    def passes(df: DataFrame) -> None:
        for name, metric in metrics().items():
            model.evaluate(df, metrics={name: metric}, **options)

    counts = (rows, max(TASKS, rows // 10))
    many, few = ((cached(spark, "mlp", n), n) for n in counts)
    found = in_turns({"one_pass": Way(many, few, one_pass), "passes": Way(many, few, passes)}, repetitions)
    for df, _ in (many, few):
        df.unpersist(blocking=True)
    return found


class Together(nn.Module):
    """Says what its process takes of memory when all workers have been through it.

    Args:
        megabytes: Of its weights.
        folder: Where the workers see each other.
    """

    def __init__(self, megabytes: int, folder: str) -> None:
        super().__init__()
        width = 2048 if megabytes > 64 else 64
        count = max(1, round(megabytes * MB / (4 * width * width)))
        self.layers = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(count)))
        self.width, self.folder = width, folder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, 2)``: proportional and private memory in megabytes."""
        self.layers(x[:, :1].expand(-1, self.width))
        self._meet("through")
        facts = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        found = [int(facts[name].split()[0]) / 1024 for name in ("Pss", "Private_Dirty")]
        self._meet("measured")
        return torch.tensor(found).expand(len(x), 2)

    def _meet(self, name: str) -> None:
        (Path(self.folder) / f"{name}-{os.getpid()}").touch()
        deadline = time.monotonic() + 300
        while len(list(Path(self.folder).glob(f"{name}-*"))) < WORKERS:
            assert time.monotonic() < deadline, "the other workers did not come"
            time.sleep(0.05)


def weights(spark: SparkSession, megabytes: int) -> dict[str, Any]:
    """What the workers take together with a large network more than with a small one."""
    df = spark.range(0, WORKERS, 1, WORKERS).selectExpr("id", "array(float(id), 1f) x")
    found = {}
    for name, size in (("small", 1), ("large", megabytes)):
        with tempfile.TemporaryDirectory(prefix="fatwood-predict-") as folder:
            model = SparkModel(Together(size, folder))
            start = time.perf_counter()
            rows = model.predict(df, key="id", features="x").collect()
            seconds = time.perf_counter() - start
        pss, dirty = (sum(row.prediction[i] for row in rows) for i in range(2))
        found[name] = {"pss_mb": pss, "private_dirty_mb": dirty, "seconds": seconds}
    return found


def main() -> None:
    """Run the parts and print what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--weights-mb", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    headline: dict[str, Any] = {}
    with session(TASKS) as spark:
        for kind, rows in (("mlp", given.rows), ("resnet18", given.images)):
            if kind in given.parts:
                of = found[kind] = predicting(spark, kind, rows, given.repetitions)
                ours = of["fatwood"]["rows_per_s"]
                for name in ("predict_batch_udf", "map_in_arrow", "one_process"):
                    headline.setdefault(f"over_{name}", {})[kind] = ours / of[name]["rows_per_s"]
        if "evaluate" in given.parts:
            of = found["evaluate"] = evaluating(spark, given.rows, given.repetitions)
            headline["evaluate_over_passes"] = of["one_pass"]["rows_per_s"] / of["passes"]["rows_per_s"]
    if "weights" in given.parts:
        with session(WORKERS) as spark:
            of = found["weights"] = weights(spark, given.weights_mb)
            headline["weights_mb"] = of["large"]["pss_mb"] - of["small"]["pss_mb"]
    if given.json:
        print(json.dumps({**headline, "found": found}))
        return
    for kind, ways in found.items():
        for name, values in ways.items():
            figures = ", ".join(f"{key} {value:,.1f}" for key, value in values.items() if key != "seconds")
            print(f"{kind:10} {name:18} {figures}")
    print(json.dumps(headline, indent=1))


if __name__ == "__main__":
    main()
