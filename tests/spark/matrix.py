"""Every form of data x every kind of network x fit, evaluate, predict, score: the same rows give the same results.

    python -m tests.spark.matrix MASTER FOLDER        prints one JSON object for each kind, the largest differences

Run in this process by test_matrix.py, and on a standalone cluster by test_cluster_matrix.py.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fatwood import AllReduce, Batch, Files, Losses, Parquet, SequenceColumn, SparkModel

ROWS, FILES = 40, 3
FORMS = ("frame", "rdd", "files", "shards")


class Case(NamedTuple):
    """A kind of network."""

    features: Any
    label: Any
    network: Any
    loss: Any
    outputs: Any


class TwoByName(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(1, 4)
        self.kind, self.size = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, point, age):
        hidden = torch.tanh(self.a(point) + self.b(age))
        return {"kind": self.kind(hidden), "size": self.size(hidden).squeeze(1)}


class Tagger(nn.Module):
    """A class for every step, from what was before."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.out = (
            nn.Embedding(5, 4),
            nn.LSTM(4, 6, batch_first=True),
            nn.Linear(6, 3),
        )

    def forward(self, tokens, mask):
        assert mask.shape == tokens.shape
        return self.out(self.lstm(self.embedding(tokens))[0])


CASES = {
    "single": Case("point", "kind", partial(nn.Linear, 3, 3), nn.CrossEntropyLoss, None),
    "multi": Case(
        {"point": "point", "age": "age"},
        {"kind": "kind", "size": "size"},
        TwoByName,
        lambda: Losses(
            {"kind": nn.CrossEntropyLoss(), "size": nn.MSELoss()}, weights={"kind": 1.0, "size": 0.5}
        ),
        ["kind", "size"],
    ),
    "masked": Case(SequenceColumn("tokens"), SequenceColumn("tags"), Tagger, nn.CrossEntropyLoss, None),
}


def rows() -> list[tuple[Any, ...]]:
    """``id, point, age, kind, size, tokens, tags``."""
    rng = np.random.default_rng(3)
    made = []
    for i in range(ROWS):
        point, steps = rng.normal(size=3).astype(np.float32), int(rng.integers(1, 7))
        tokens = rng.integers(0, 5, steps)
        tags = (tokens + 1) % 3
        made.append(
            (
                i,
                point.tolist(),
                float(rng.uniform()),
                int(point.argmax()),
                float(point.sum()),
                tokens.tolist(),
                tags.tolist(),
            )
        )
    return made


SCHEMA = "id long, point array<float>, age float, kind int, size float, tokens array<long>, tags array<long>"


def batch(case: Case, chosen: list[tuple[Any, ...]]) -> Batch:
    """The same rows as a minibatch, padded by hand."""
    names = ["id", "point", "age", "kind", "size", "tokens", "tags"]
    columns = {name: [row[i] for row in chosen] for i, name in enumerate(names)}
    if isinstance(case.features, SequenceColumn):
        longest = max(map(len, columns["tokens"]))
        mask = torch.tensor([[i < len(row) for i in range(longest)] for row in columns["tokens"]])
        padded = {
            name: torch.tensor([[*row, *[0] * (longest - len(row))] for row in columns[name]])
            for name in ("tokens", "tags")
        }
        return Batch(padded["tokens"], padded["tags"], feature_mask=mask, label_mask=mask)
    tensors = {
        "point": torch.tensor(columns["point"]),
        "age": torch.tensor(columns["age"])[:, None],
        "kind": torch.tensor(columns["kind"]),
        "size": torch.tensor(columns["size"]),
    }
    if isinstance(case.features, dict):
        return Batch({n: tensors[n] for n in case.features}, {n: tensors[n] for n in case.label})
    return Batch(tensors[case.features], tensors[case.label])


def load(case: Case, path: str, filesystem: Any) -> Batch:
    """A loader: JSON lines."""
    with filesystem.open(path, "r") as file:
        return batch(case, [json.loads(line) for line in file])


def forms(spark: Any, case: Case, folder: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Of each form the data, and how its columns and keys are told."""
    every = rows()
    cuts = [every[i * ROWS // FILES : (i + 1) * ROWS // FILES] for i in range(FILES)]
    shards = folder / "shards"
    if not shards.exists():
        from fatwood.data import write_shards

        frame = spark.createDataFrame(every, SCHEMA)
        write_shards(frame, shards, rows_per_shard=15, shuffle=False)
        for i, cut in enumerate(cuts):
            (folder / f"rows-{i}.jsonl").write_text("\n".join(map(json.dumps, cut)))
    told = {"features": case.features, "label": case.label}
    minibatches = [batch(case, cut[i : i + 7]) for cut in cuts for i in range(0, len(cut), 7)]
    return {
        "frame": (spark.createDataFrame(every, SCHEMA).repartition(3, "id"), told),
        "rdd": (spark.sparkContext.parallelize(minibatches, 2), {}),
        "files": (Files(str(folder / "rows-*.jsonl"), partial(load, case)), {}),
        "shards": (Parquet(shards), told),
    }


def results(data: Any, told: dict[str, Any], case: Case, workers: int) -> dict[str, Any]:
    """What came of one form."""
    torch.manual_seed(1)
    model = SparkModel(
        case.network(),
        loss=case.loss(),
        optimizer=partial(torch.optim.SGD, lr=0.3),
        strategy=AllReduce(),
    )
    fit = model.fit(data, **told, workers=workers, batch_size=ROWS, epochs=3, progress=False)
    features = {"features": told["features"]} if told else {}
    key = {"key": "id"} if told else {}
    names = ["prediction"] if case.outputs is None else [f"prediction_{name}" for name in case.outputs]
    reports = model.evaluate(data, **told)
    predicted = model.predict(data, **key, **features, outputs=case.outputs).collect()
    scored = model.score(data, **key, **told).collect()
    return {
        "rows": [record.rows for record in fit.history],
        "history": [record.loss for record in fit.history],
        "parameters": [p.flatten().tolist() for p in model.network.parameters()],
        "evaluated": [
            (r.rows, r.loss) for r in (reports.values() if isinstance(reports, dict) else [reports])
        ],
        "predicted": [sorted(row[name] for row in predicted) for name in names],
        "scored": sorted(row["score"] for row in scored),
    }


def flat(found: Any) -> list[float]:
    """All numbers in their order."""
    return [n for part in found for n in flat(part)] if isinstance(found, list | tuple) else [float(found)]


def differences(spark: Any, name: str, folder: Path, workers: int = 2) -> dict[str, Any]:
    """By result the largest difference of any form from the DataFrame; and what was counted."""
    case = CASES[name]
    folder.mkdir(exist_ok=True)
    found = {form: results(*given, case, workers) for form, given in forms(spark, case, folder).items()}
    base = found["frame"]
    worst = {}
    for what in base:
        lengths = {form: len(flat(result[what])) for form, result in found.items()}
        assert len(set(lengths.values())) == 1, (what, lengths)
        worst[what] = max(
            float(np.abs(np.array(flat(result[what])) - np.array(flat(base[what]))).max())
            for result in found.values()
        )
    first, last = base["history"][0], base["history"][-1]
    return {"worst": worst, "rows": base["rows"], "evaluated": base["evaluated"], "losses": [first, last]}


def main() -> None:
    """All kinds on one cluster."""
    from pyspark.sql import SparkSession

    master, folder = sys.argv[1], Path(sys.argv[2])
    quick = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    options = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.log.level": "ERROR",
        "spark.executor.memory": "600m",
        "spark.sql.shuffle.partitions": "4",
        "spark.pyspark.python": sys.executable,
        "spark.driver.extraJavaOptions": quick,
        "spark.executor.extraJavaOptions": quick,
    }
    spark = SparkSession.builder.master(master).config(map=options).getOrCreate()
    for name in CASES:
        print(json.dumps(differences(spark, name, folder / name)), flush=True)
    spark.stop()


if __name__ == "__main__":
    main()
