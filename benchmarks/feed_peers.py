"""What `feed.py` runs in Spark's tasks: rows to measure with, our feed alone, and those that it is compared with.

A reader is a function from Arrow batches to one row of figures, for `DataFrame.mapInArrow`. All of them have the same work: hand
out every row once, in minibatches, as writable torch tensors; nothing is done with these.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

Reader = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]

FIGURES = "figures string"
"""What a reader returns to Spark."""

PIXELS = 784
COLUMNS = 200
IMAGE = (3, 224, 224)
IMAGE_NUMBERS = 3 * 224 * 224

_PIECE_BYTES = 32 << 20


def _figures(**figures: Any) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pydict({"figures": pa.array([json.dumps(figures)])})


# ---- rows


def made(kind: str) -> tuple[Reader, str]:
    """Makes rows of noise of a kind out of ids, and their schema."""
    schema = {
        "mnist": "pixels array<float>, y bigint",
        "image": "pixels binary, y bigint",
        "image_floats": "pixels array<float>, y bigint",
        "table": ", ".join(f"c{i} float" for i in range(COLUMNS)) + ", y bigint",
    }[kind]

    def make(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        step = {"mnist": 1000, "image": 100, "image_floats": 25, "table": 5000}[kind]
        for batch in batches:
            for start in range(0, batch.num_rows, step):
                yield _rows(kind, batch.column(0)[start : start + step].to_numpy())

    return make, schema


def _rows(kind: str, ids: Any) -> pa.RecordBatch:
    noise = np.random.default_rng(int(ids[0]))
    n, y = len(ids), pa.array(ids % 10)
    if kind == "table":
        columns = noise.random((COLUMNS, n), dtype=np.float32)
        arrays = [*map(pa.array, columns), y]
        return pa.RecordBatch.from_arrays(arrays, names=[*(f"c{i}" for i in range(COLUMNS)), "y"])
    if kind == "image":
        pixels = noise.bytes(n * IMAGE_NUMBERS)
        offsets = pa.array(np.arange(n + 1, dtype=np.int32) * IMAGE_NUMBERS).buffers()[1]
        column = pa.Array.from_buffers(pa.binary(), n, [None, offsets, pa.py_buffer(pixels)])
    else:
        width = PIXELS if kind == "mnist" else IMAGE_NUMBERS
        numbers = noise.random(n * width, dtype=np.float32)
        column = pa.ListArray.from_arrays(
            pa.array(np.arange(n + 1, dtype=np.int32) * width), pa.array(numbers)
        )
    return pa.RecordBatch.from_arrays([column, y], names=["pixels", "y"])


# ---- readers of one pass


def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The least that a task can do: take every Arrow batch and count its rows."""
    rows = largest = 0
    for batch in batches:
        rows += batch.num_rows
        largest = max(largest, batch.nbytes)
    yield from _figures(rows=rows, arrow_batch_bytes=largest)


def partition_data(options: Mapping[str, Any]) -> Reader:
    """Our feed without a training loop: `PartitionData`, one epoch.

    Args:
        options: Of `PartitionData`, with the layout.
    """

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from fatwood.data import PartitionData

        with (
            tempfile.TemporaryDirectory(prefix="fatwood-feed-") as folder,
            PartitionData(batches, **options, epochs=1, shuffle=True, rank=0, spill_directory=folder) as data,
        ):
            rows = sum(len(batch) for batch in data.epoch(0))
        yield from _figures(rows=rows)

    return read


def torch_loader(schema_json: dict[str, Any], rows: int, batch_size: int) -> Reader:
    """TorchDistributor's own path from a partition to minibatches, as its task and its training function take it.

    The barrier, the start of torchrun and a second import of torch are left out, which is kind to it.

    Args:
        schema_json: Of the frame.
        rows: Of each partition; it would begin again after the last.
        batch_size: Rows of a minibatch.
    """

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark.ml.torch.distributor import TorchDistributor, _get_spark_partition_data_loader

        with TorchDistributor._setup_spark_partition_data(iter(batches), schema_json):
            loader = _get_spark_partition_data_loader(rows, batch_size, num_workers=0)
            seen = sum(len(batch[-1]) for batch in loader)
        yield from _figures(rows=seen)

    return read


# ---- later epochs


def later_epochs(options: Mapping[str, Any], divisor: float | None, repetitions: int) -> Reader:
    """Epochs from our `Spill` and reads of a memory-mapped Arrow file of the same rows, in turns in each task.

    Figures: seconds of each repetition, by the name of the reader.

    Args:
        options: Of `PartitionData`, with the layout.
        divisor: Of the features, which all readers apply.
        repetitions: How many of each.
    """

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from fatwood.data import PartitionData

        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory(prefix="fatwood-feed-", dir=_local()) as folder:
            path = Path(folder, "rows.arrow")
            kept = _written(batches, path)
            common = {**options, "epochs": repetitions + 1, "rank": 0, "spill_directory": folder}
            with (
                PartitionData(_reread(path), **common, shuffle=True) as shuffled,
                PartitionData(_reread(path), **common, shuffle=False) as in_order,
            ):
                shuffled.keep_all()
                in_order.keep_all()
                size = int(options["batch_size"])
                readers: dict[str, Callable[[int], Iterable[Any]]] = {
                    "spill_random": shuffled.epoch,
                    "spill_in_order": in_order.epoch,
                    "mmap_in_order": lambda _: _mapped(path, size, divisor),
                    "mmap_random": lambda epoch: _mapped_at_random(path, size, divisor, epoch),
                }
                seconds: dict[str, list[float]] = {name: [] for name in readers}
                for epoch in range(1, repetitions + 1):
                    for name in list(readers)[:: -1 if epoch % 2 else 1]:
                        start = time.perf_counter()
                        rows = sum(len(batch) for batch in readers[name](epoch))
                        seconds[name].append(time.perf_counter() - start)
                        assert rows == kept
        yield from _figures(rows=kept, seconds=seconds)

    return read


def _local() -> str | None:
    """Spark's own directory for files."""
    return os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0] or None


def _written(batches: Iterable[pa.RecordBatch], path: Path) -> int:
    """All rows as an Arrow file of one record batch, which suits `take` best; how many."""
    table = pa.Table.from_batches(list(batches)).combine_chunks()
    (whole,) = table.to_batches()
    with pa.ipc.new_file(str(path), whole.schema) as writer:
        writer.write_batch(whole)
    return int(whole.num_rows)


def _reread(path: Path) -> Iterator[pa.RecordBatch]:
    """The same rows, in pieces as Spark sends them."""
    with pa.memory_map(str(path)) as source:
        whole = pa.ipc.open_file(source).get_batch(0)
        step = max(1, _PIECE_BYTES * whole.num_rows // max(1, whole.nbytes))
        for start in range(0, whole.num_rows, step):
            yield whole.slice(start, step)


def _mapped(path: Path, size: int, divisor: float | None) -> Iterator[torch.Tensor]:
    """Minibatches in the order of the file."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        for start in range(0, table.num_rows, size):
            yield _tensors(table.slice(start, size), divisor)


def _mapped_at_random(path: Path, size: int, divisor: float | None, seed: int) -> Iterator[torch.Tensor]:
    """Minibatches of rows drawn from the whole file, by Arrow's own `take`."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        order = np.random.default_rng(seed).permutation(table.num_rows)
        for start in range(0, table.num_rows, size):
            yield _tensors(table.take(pa.array(order[start : start + size])), divisor)


def _tensors(table: pa.Table, divisor: float | None) -> torch.Tensor:
    """The features as a tensor of their own; the label too is copied, and forgotten."""
    torch.from_numpy(table.column("label").to_numpy().copy())
    pieces = [_numbers(chunk) for chunk in table.column("features").chunks]
    array = pieces[0].copy() if len(pieces) == 1 else np.concatenate(pieces)
    features = torch.from_numpy(array).view(table.num_rows, -1)
    return features if divisor is None else features.to(torch.float32).div_(divisor)


def _numbers(chunk: Any) -> Any:
    """All numbers of a piece of a column, as a view."""
    if pa.types.is_binary(chunk.type):
        first, last = chunk.offset, chunk.offset + len(chunk)
        offsets = np.frombuffer(chunk.buffers()[1], np.int32, count=last + 1)
        return np.frombuffer(chunk.buffers()[2], np.uint8)[offsets[first] : offsets[last]]
    return chunk.flatten().to_numpy(zero_copy_only=True)
