"""The Spark driver of `network.py`: runs cells on a cluster and appends a line of JSON for each to a file.

ip netns exec HOST python network_driver.py SPEC.json
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from network_cells import Cell, Measured

__all__ = ["Told", "session"]

_FEW = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a driver has to do."""

    master: str
    host: str
    """Of this driver."""
    workers: int
    cells: list[dict[str, Any]]
    output: str
    """A file that all can write to."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def session(told: Told) -> Any:
    """A session whose workers find these scripts and run one thread each."""
    from pyspark.sql import SparkSession

    here = str(Path(__file__).parent)
    options: dict[str, bool | float | int | str | None] = {
        "spark.driver.host": told.host,
        "spark.driver.bindAddress": told.host,
        "spark.driver.memory": "1500m",
        "spark.driver.extraJavaOptions": _FEW,
        "spark.driver.maxResultSize": "0",
        "spark.executor.memory": "700m",
        "spark.executor.cores": "1",
        "spark.executor.extraJavaOptions": _FEW,
        "spark.executorEnv.GLOO_SOCKET_IFNAME": "eth0",
        "spark.executorEnv.OMP_NUM_THREADS": "1",
        "spark.executorEnv.PYTHONPATH": here,
        "spark.log.level": "ERROR",
        "spark.pyspark.python": sys.executable,
        "spark.python.daemon.module": "fatwood.spark.daemon",
        "spark.rpc.message.maxSize": "512",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = SparkSession.builder.master(told.master).appName("network").config(map=options)
    return builder.getOrCreate()


def launched(here: str) -> Callable[..., None]:
    """What TorchDistributor is given: a function that travels by value and finds the rest in that folder."""

    def start(cells: list[dict[str, Any]], output: str) -> None:
        import sys

        sys.path.insert(0, here)
        from network_rivals import work

        work(cells, output)

    return start


def rivals(cells: list[Cell], told: Told) -> None:
    """All in one job."""
    from pyspark.ml.torch.distributor import TorchDistributor

    here = str(Path(__file__).parent)
    job = TorchDistributor(num_processes=told.workers, local_mode=False, use_gpu=False)
    with suppress(RuntimeError):  # raised where the function returns nothing, too
        job.run(launched(here), [cell.to_json() for cell in cells], told.output)
    done = [json.loads(line)["cell"] for line in Path(told.output).read_text().splitlines()]
    missing = [cell.method for cell in cells if cell.to_json() not in done]
    if missing:
        text = f"TorchDistributor: not done: {missing}; see what it printed"
        raise RuntimeError(text)


def ours(spark: Any, cell: Cell, told: Told) -> Measured:
    """One fit; an error is a result."""
    from network_ours import run

    from fatwood.errors import FatwoodError

    with tempfile.TemporaryDirectory(prefix="fatwood-network-") as folder:
        try:
            return run(spark, cell, told.workers, Path(folder))
        except FatwoodError as error:
            traceback.print_exc()
            return Measured(cell=cell.to_json(), error=str(error)[:500])


def main() -> None:
    """Do what the file says."""
    told = Told(**json.loads(Path(sys.argv[1]).read_text()))
    Path(told.output).touch()
    cells = [Cell(**values) for values in told.cells]
    os.environ["PYTHONWARNINGS"] = "ignore"
    spark = session(told)
    try:
        # in the order given: what is compared runs close together in time
        for own, run in itertools.groupby(cells, key=lambda cell: cell.settings["kind"] == "ours"):
            if own:
                for cell in run:
                    begun = time.perf_counter()
                    found = ours(spark, cell, told)
                    print(f"{cell.method} at {cell.rate:g}: {time.perf_counter() - begun:.0f} s", flush=True)
                    with Path(told.output).open("a") as file:
                        print(json.dumps(found.to_json()), file=file)
            else:
                rivals(list(run), told)
    finally:
        spark.stop()


if __name__ == "__main__":
    main()
