"""Handwritten digits as Spark DataFrames: the part of MNIST that is shipped in ``demo/data``."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["SCHEMA", "arrays", "digits"]

SCHEMA = "id bigint, pixels array<float>, digit bigint"
"""Of both DataFrames: a key, 784 grey values from 0 to 1 in row order, and the digit."""


def digits(spark: SparkSession) -> tuple[DataFrame, DataFrame]:
    """12 000 training rows and 5 000 test rows.

    Returns:
        Two DataFrames with the columns ``id``, ``pixels`` and ``digit`` (:data:`SCHEMA`).
    """
    return _frame(spark, "train"), _frame(spark, "t10k")


def arrays(
    part: Literal["train", "t10k"], folder: Path | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images ``(rows, 784)`` and digits ``(rows,)``, both uint8.

    Args:
        part: Of MNIST.
        folder: With MNIST's own four files; None for the part that is shipped.
    """
    images, labels = (
        _read_idx(f"{part}-{name}.gz", folder) for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    return images.reshape(len(images), -1), labels


def _frame(spark: SparkSession, part: Literal["train", "t10k"]) -> DataFrame:
    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        images, labels = arrays(
            part
        )  # the executor's own copy of the package: no image travels from the driver
        for batch in batches:
            ids = batch.column("id").to_numpy()
            values = pa.array(images[ids].astype(np.float32).ravel() / 255)
            offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * images.shape[1])
            columns = [
                batch.column("id"),
                pa.ListArray.from_arrays(offsets, values),
                pa.array(labels[ids].astype(np.int64)),
            ]
            yield pa.RecordBatch.from_arrays(columns, names=["id", "pixels", "digit"])

    return spark.range(len(arrays(part)[1])).mapInArrow(read, SCHEMA)


def _read_idx(name: str, folder: Path | None) -> NDArray[np.uint8]:
    """An array in the IDX format: two zero bytes, type 8 (uint8), dimensions, big-endian sizes, values."""
    shipped = resources.files("fatwood.demo") / "data"
    data = gzip.decompress(((shipped if folder is None else folder) / name).read_bytes())
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, offset=4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
