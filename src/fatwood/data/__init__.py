r"""Rows in, minibatches out.

One worker's rows arrive as Arrow record batches, are checked, cut into minibatches of an exact size, and kept on
local disk for the epochs after the first::

    Arrow batches -> Layout.check (null, NaN, wrong length) -> Rows -> PartitionData.epoch -> Batch
                                                                  \-> Spill -> Permutation -/
                                                         validation rows -> Spill -> PartitionData.validation -> Batch

Nothing here knows Spark: any iterable of record batches will do. `write_shards` and `validate_shards` are named here, where
one looks for them, and live in the rooms that know Spark and storage.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fatwood.data.ahead import Lookahead
from fatwood.data.batch import ROW_BITS, Batch, Masks, Ragged, Rows, Tensors, describe_row, each, mapped
from fatwood.data.decoding import Decoder, image_decoder
from fatwood.data.fields import Field, Group
from fatwood.data.layout import SKIP_HINT, Layout, OnBadRow, tensors_of
from fatwood.data.order import Permutation, permutation_key
from fatwood.data.partition import PartitionData
from fatwood.data.spill import Spill

__all__ = [
    "ROW_BITS",
    "SKIP_HINT",
    "Batch",
    "Decoder",
    "Field",
    "Group",
    "Layout",
    "Lookahead",
    "Masks",
    "OnBadRow",
    "PartitionData",
    "Permutation",
    "Ragged",
    "Rows",
    "Spill",
    "Tensors",
    "describe_row",
    "each",
    "image_decoder",
    "mapped",
    "permutation_key",
    "tensors_of",
]


_ABOVE = {"write_shards": "fatwood.spark.shards", "validate_shards": "fatwood.shards"}


def __getattr__(name: str) -> Any:
    if name in _ABOVE:
        return getattr(import_module(_ABOVE[name]), name)
    text = f"module 'fatwood.data' has no attribute {name!r}"
    raise AttributeError(text)
