"""Handwritten digits as Spark DataFrames: the part of MNIST that is shipped in ``demo/data``."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from importlib import resources
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


def arrays(part: Literal["train", "t10k"]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images ``(rows, 784)`` and digits ``(rows,)``, both uint8."""
    images = _read_idx(f"{part}-images-idx3-ubyte.gz")
    return images.reshape(len(images), -1), _read_idx(f"{part}-labels-idx1-ubyte.gz")


def _frame(spark: SparkSession, part: Literal["train", "t10k"]) -> DataFrame:
    images, labels = arrays(part)
    rows = [
        (i, bytearray(image.tobytes()), int(digit))
        for i, (image, digit) in enumerate(zip(images, labels, strict=True))
    ]
    return spark.createDataFrame(rows, "id bigint, image binary, digit bigint").mapInArrow(_decode, SCHEMA)


def _decode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        images = np.frombuffer(b"".join(batch.column("image").to_pylist()), np.uint8)
        values = pa.array(images.astype(np.float32) / 255)
        offsets = pa.array(np.arange(batch.num_rows + 1, dtype=np.int32) * 784)
        pixels = pa.ListArray.from_arrays(offsets, values)
        yield pa.RecordBatch.from_arrays(
            [batch.column("id"), pixels, batch.column("digit")], names=["id", "pixels", "digit"]
        )


def _read_idx(name: str) -> NDArray[np.uint8]:
    """An array in the IDX format: two zero bytes, type 8 (uint8), dimensions, big-endian sizes, values."""
    data = gzip.decompress((resources.files("fatwood.demo") / "data" / name).read_bytes())
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, offset=4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
