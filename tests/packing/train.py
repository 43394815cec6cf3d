"""What a user submits: the demo's network on its digits; and what Python the executors ran, for test_hosts.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from pyspark.sql import SparkSession
from torch import nn

import fatwood
from fatwood import Callback, SparkModel
from fatwood.demo.digits import digits
from fatwood.demo.run import network, optimizer, strategy


def facts(_: int) -> dict[str, Any]:
    """Of a Python on an executor, or of the driver's."""
    return {
        "executable": sys.executable,
        "python": sys.version,
        "base": sys.base_prefix,
        "fatwood": fatwood.__file__,
        "torch": torch.__file__,
        "path": sys.path,
        "pythonpath": os.environ.get("PYTHONPATH", ""),
        "folder": str(Path.cwd()),
        "host": os.uname().nodename,
        "sees": [name for name in os.environ.get("HIDDEN", "").split(":") if os.listdir(name)],
    }


class Tell(Callback):
    """Says on the way how far it is."""

    def on_epoch(self, record: Any) -> None:
        print("epoch", record.epoch, flush=True)


if __name__ == "__main__":
    workers, epochs = map(int, sys.argv[1:])
    session = SparkSession.builder.getOrCreate()
    found: dict[str, Any] = {
        "first": len(session.sparkContext._jsc.sc().statusTracker().getExecutorInfos()) - 1
    }
    train, test = digits(session)
    model = SparkModel(network(), loss=nn.CrossEntropyLoss(), optimizer=optimizer, strategy=strategy())
    options: dict[str, Any] = {"features": "pixels", "label": "digit"}
    fit = model.fit(
        train.limit(3000),
        **options,
        batch_size=50,
        epochs=epochs,
        workers=workers,
        callbacks=[Tell()],
        rejoin_timeout_seconds=400.0,
    )
    context = session.sparkContext
    found |= {
        "driver": facts(0),
        "executors": context.parallelize(range(4 * workers), 4 * workers).map(facts).collect(),
        "rows": [fit.stats.rows_trained, fit.stats.rows_expected],
        "equal": fit.stats.digest_equal,
        "hosts": sorted(worker.host for worker in fit.stats.workers),
        "incidents": [incident.kind for incident in fit.stats.incidents],
        "accuracy": model.evaluate(test, **options).accuracy,
    }
    print(json.dumps(found))
    session.stop()
