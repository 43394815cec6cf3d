"""What a lost worker costs: real kills of Python workers, executors and the driver of a real Spark cluster.

    python benchmarks/faults.py [--parts worker executor hung twenty driver schedules] [--kills 5] [--json]

A standalone cluster of four single-core executors on this machine trains the demo's network on the demo's 12,000 digits.
The moments come from the workers themselves: the loss writes down time, process and rows of every minibatch, so nothing
rests on what Fatwood says of itself; what it says (`fit.stats`) is then compared with that.

* worker: `kill -9` of a Python worker; executor: of an executor's JVM; hung: SIGSTOP of a Python worker.
  The time is from the strike until all survivors have completed a step without the victim.
* twenty: twenty kills of Python workers at random moments of one fit, against the undisturbed fit.
* driver: `kill -9` of the driver at a random moment, and the same fit resumed from its last checkpoint.
* schedules: random fault schedules of the protocol in one process.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import nn

from fatwood import Checkpoints, Classification, Fit, GradientSharing, SparkModel
from fatwood.codec import AdaptiveThreshold
from fatwood.demo.digits import digits
from fatwood.demo.run import network
from fatwood.testing.cluster import StandaloneCluster, executor_of, standalone_cluster
from fatwood.testing.faults import Faults, LossCall

WORKERS = 4
BATCH_SIZE = 32
HEARTBEAT_SECONDS = 10.0
OPTIMIZER = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
LIMIT_SECONDS = 600.0


class KeyedLoss(nn.Module):
    """Cross entropy on labels ``(B, 2)``: the digit, and the row's key, which only the record wants."""

    def forward(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """The mean over the rows."""
        return nn.functional.cross_entropy(output, label[:, 0].long())


def keys(output: torch.Tensor, label: torch.Tensor) -> list[int]:
    """The rows of a minibatch."""
    del output
    return [int(key) for key in label[:, 1]]


def session(master: str) -> SparkSession:
    """A session on all executors of the cluster."""
    options = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.executor.memory": "1g",
        "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "OFF",
        "spark.locality.wait": "0",
        "spark.sql.shuffle.partitions": str(WORKERS),
    }
    os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    return SparkSession.builder.master(master).appName("faults").config(map=options).getOrCreate()


def rows(spark: SparkSession) -> tuple[DataFrame, DataFrame]:
    """The demo's digits; the training rows with digit and key in one label."""
    train, test = digits(spark)
    keyed = F.array(F.col("digit").cast("float"), F.col("id").cast("float"))
    return train.withColumn("keyed", keyed).cache(), test


def model(faults: Faults) -> SparkModel:
    """The demo's network and strategy; the loss is recorded."""
    strategy = GradientSharing(threshold=AdaptiveThreshold(initial=1e-3))
    return SparkModel(network(), loss=faults.wrap(KeyedLoss()), optimizer=OPTIMIZER, strategy=strategy)


def train(spark_model: SparkModel, df: DataFrame, epochs: int, **options: Any) -> Fit:
    """One fit."""
    options = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS, "progress": False} | options
    return spark_model.fit(
        df, features="pixels", label="keyed", workers=WORKERS, batch_size=BATCH_SIZE, epochs=epochs, **options
    )


class Attacker(threading.Thread):
    """Strikes workers of a running fit, one after the other, each when the one before is back.

    Args:
        faults: Whose record tells who is at work.
        kind: ``worker``, ``executor`` or ``hung``.
        strikes: How many.
        pause_seconds: From the return of one to the strike at the next; drawn between half and one and a half of it.
        patient: Wait until all are back before the next strike.
    """

    def __init__(
        self, faults: Faults, kind: str, strikes: int, pause_seconds: float, *, patient: bool = True
    ) -> None:
        super().__init__(name="attacker", daemon=True)
        self.faults, self.kind, self.strikes, self.patient = faults, kind, strikes, patient
        self.pause_seconds = pause_seconds
        self.random = random.Random(0)
        self.struck: list[tuple[float, int, int]] = []
        """Time, rank and process of each."""
        self.over = threading.Event()

    def run(self) -> None:
        """Strike until there have been enough or the fit is over."""
        dead: set[int] = set()
        while len(self.struck) < self.strikes and not self.over.is_set():
            self.over.wait(self.pause_seconds * self.random.uniform(0.5, 1.5))
            alive = self._alive(dead)
            if not alive or (self.patient and len(alive) < WORKERS):
                continue
            if len(alive) < 2:
                continue  # whom nobody is left to replace
            rank = self.random.choice(sorted(alive))
            pid = alive[rank]
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                target = executor_of(pid) if self.kind == "executor" else pid
                number = signal.SIGSTOP if self.kind == "hung" else signal.SIGKILL
                os.kill(target, number)
                self.struck.append((time.time(), rank, pid))
                dead.add(pid)

    def _alive(self, dead: set[int]) -> dict[int, int]:
        """By rank, the process that computed in the last two seconds."""
        recent = [call for call in self.faults.calls() if call.seconds > time.time() - 2.0]
        latest = {call.rank: call.pid for call in sorted(recent, key=lambda call: call.seconds)}
        return {rank: pid for rank, pid in latest.items() if pid not in dead}


def pauses(calls: list[LossCall], struck: list[tuple[float, int, int]]) -> list[float]:
    """For each strike the seconds until every survivor has agreed on a round without the victim.

    A message of the victim may still be on its way, so a survivor's first minibatch after the strike may follow a round
    with it; its second one follows a round without.
    """
    found = []
    for at, rank, _ in struck:
        seconds = []
        for survivor in {call.rank for call in calls} - {rank}:
            after = sorted(call.seconds - at for call in calls if call.rank == survivor and call.seconds > at)
            seconds += after[1:2]
        if seconds:
            found.append(max(seconds))
    return found


def returns(calls: list[LossCall], struck: list[tuple[float, int, int]]) -> list[float]:
    """For each strike the seconds until another process computed for the rank."""
    found = []
    for at, rank, pid in struck:
        back = [c.seconds - at for c in calls if c.rank == rank and c.pid != pid and c.seconds > at]
        if back:
            found.append(min(back))
    return found


def counts(calls: list[LossCall], fit: Fit, epochs: int, strikes: int) -> dict[str, Any]:
    """What was computed, as the record has it, beside what the fit says was trained."""
    computed: Counter[int] = Counter()
    for call in calls:
        computed.update(call.keys)
    stats = fit.stats
    return {
        "kills": strikes,
        "rows_expected": stats.rows_expected,
        "rows_trained": stats.rows_trained,
        "rows_lost": stats.rows_lost,
        "rows_trained_twice": stats.rows_trained_twice,
        "rows_never_computed": sum(max(0, epochs - count) for count in computed.values())
        + epochs * (12_000 - len(computed)),
        "rows_computed_again": sum(max(0, count - epochs) for count in computed.values()),
        "rows_computed_again_at_most": strikes * BATCH_SIZE,
        "digest_equal": stats.digest_equal,
        "digest": f"{stats.workers[0].digest:016x}",
        "workers_lost": stats.workers_lost,
        "rejoined": stats.rejoined,
    }


def attack(spark: SparkSession, kind: str, kills: int, epochs: int) -> dict[str, Any]:
    """Strike a long fit several times and measure each."""
    train_rows, _ = rows(spark)
    with tempfile.TemporaryDirectory(prefix="fatwood-faults-") as folder:
        faults = Faults(Path(folder)).record(keys)
        attacker = Attacker(faults, kind, kills, pause_seconds=2.0)
        attacker.start()
        fit = train(model(faults), train_rows, epochs)
        attacker.over.set()
        attacker.join()
        calls = list(faults.calls())
        measured = pauses(calls, attacker.struck)
        back = returns(calls, attacker.struck)
        name = "hung_to_next_step_s" if kind == "hung" else "kill_to_next_step_s"
        return {
            name: statistics.median(measured) if measured else None,
            f"{name}_all": [round(seconds, 3) for seconds in measured],
            "kill_to_rejoin_s": statistics.median(back) if back else None,
            "step_s": statistics.median(_step_seconds(calls)),
            **counts(calls, fit, epochs, len(attacker.struck)),
        }


def _step_seconds(calls: list[LossCall]) -> list[float]:
    times = sorted(call.seconds for call in calls if call.rank == 0)
    return [b - a for a, b in pairwise(times)]


def twenty(spark: SparkSession, kills: int) -> dict[str, Any]:
    """Kills at random moments of one fit of the demo task, slowed down so that there is time for them."""
    train_rows, test = rows(spark)
    results = {}
    for name, strikes, delay in (("undisturbed", 0, 0.0), ("disturbed", kills, 0.2)):
        with tempfile.TemporaryDirectory(prefix="fatwood-faults-") as folder:
            faults = Faults(Path(folder)).record(keys).delay(delay)
            attacker = Attacker(faults, "worker", strikes, pause_seconds=4.0, patient=False)
            attacker.start()
            spark_model = model(faults)
            fit = train(spark_model, train_rows, 5)
            attacker.over.set()
            attacker.join()
            spark_model.loss = None  # the test rows have plain labels
            report = spark_model.evaluate(test, features="pixels", label="digit")
            assert isinstance(report, Classification)
            found = counts(list(faults.calls()), fit, 5, len(attacker.struck))
            results[name] = {"accuracy": report.accuracy, **found}
    difference = results["disturbed"]["accuracy"] - results["undisturbed"]["accuracy"]
    return {**results, "accuracy_difference": difference}


def driver_fit(master: str, folder: Path, *, resume: bool) -> None:
    """A fit in a process of its own, with a checkpoint every second; prints accuracy and digest."""
    spark = session(master)
    train_rows, test = rows(spark)
    faults = Faults(folder).record(keys).delay(0.02)
    spark_model = model(faults)
    checkpoints = folder / "checkpoints"
    options = {"resume_from": checkpoints} if resume else {}
    fit = train(
        spark_model, train_rows, 5, checkpoints=Checkpoints(uri=checkpoints, every_seconds=1.0), **options
    )
    spark_model.loss = None
    report = spark_model.evaluate(test, features="pixels", label="digit")
    assert isinstance(report, Classification)
    result = {
        "accuracy": report.accuracy,
        "digest": f"{fit.stats.workers[0].digest:016x}",
        "rows_trained": fit.stats.rows_trained,
        "rows_lost": fit.stats.rows_lost,
    }
    print(json.dumps(result), flush=True)
    spark.stop()


def driver(cluster: StandaloneCluster) -> dict[str, Any]:
    """Kill a driver at a random moment, see its workers go, and resume."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fatwood-faults-") as name:
        for run in ("undisturbed", "killed"):
            folder = Path(name) / run
            folder.mkdir()
            process = _driver_process(cluster.master, folder)
            if run == "undisturbed":
                found[run] = _last_line(process)
                continue
            faults = Faults(folder)
            moment = random.Random(time.time_ns()).uniform(4.0, 12.0)
            began = _first_call(faults) + moment
            time.sleep(max(0.0, began - time.time()))
            pids = {call.pid for call in faults.calls()}
            process.kill()
            process.wait()
            found["workers_gone_s"] = _seconds_until_gone(pids)
            found["killed_after_s"] = moment
            found["resumed"] = _last_line(_driver_process(cluster.master, folder, "--resume"))
    found["accuracy_difference"] = found["resumed"]["accuracy"] - found["undisturbed"]["accuracy"]
    found["same_bits"] = found["resumed"]["digest"] == found["undisturbed"]["digest"]
    return found


def _driver_process(master: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--driver", master, str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _last_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=LIMIT_SECONDS)
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def _first_call(faults: Faults) -> float:
    deadline = time.time() + LIMIT_SECONDS
    while time.time() < deadline:
        if times := [call.seconds for call in faults.calls()]:
            return min(times)
        time.sleep(0.1)
    text = "no worker computed anything"
    raise TimeoutError(text)


def _seconds_until_gone(pids: set[int]) -> float:
    start = time.time()
    while any(psutil.pid_exists(pid) for pid in pids) and time.time() < start + 60:
        time.sleep(0.05)
    return time.time() - start


def schedules(count: int) -> dict[str, Any]:
    """Random fault schedules of the protocol; see `fatwood.testing.simulation`."""
    command = [sys.executable, "-m", "fatwood.testing.simulation", "--schedules", str(count), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3600)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


PARTS = ("worker", "executor", "hung", "twenty", "driver", "schedules")


def main() -> None:
    """Run the parts and print what was measured, or JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--driver", nargs=2, metavar=("MASTER", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.driver:
        driver_fit(arguments.driver[0], Path(arguments.driver[1]), resume=arguments.resume)
        return
    logging.getLogger("fatwood.job").setLevel(logging.ERROR)
    found: dict[str, Any] = {}

    def keep(part: str, result: dict[str, Any]) -> None:
        found[part] = result
        print(f"{part}: {json.dumps(result)}", flush=True)

    if "schedules" in arguments.parts:
        keep("schedules", schedules(arguments.schedules))
    with standalone_cluster(WORKERS) as cluster:
        if "driver" in arguments.parts:
            keep("driver", driver(cluster))
        if set(arguments.parts) - {"schedules", "driver"}:
            spark = session(cluster.master)
            for part, epochs in (("worker", 12), ("executor", 25), ("hung", 25)):
                if part in arguments.parts:
                    keep(part, attack(spark, part, arguments.kills, epochs))
            if "twenty" in arguments.parts:
                keep("twenty", twenty(spark, 20))
            spark.stop()
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
