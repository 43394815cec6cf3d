r"""Rows in, minibatches out.

One worker's rows arrive as Arrow record batches, are checked, cut into minibatches of an exact size, and kept on
local disk for the epochs after the first::

    Arrow batches -> Layout.check (null, NaN, wrong length) -> Rows -> PartitionData.epoch -> Batch
                                                                  \-> Spill -> Permutation -/
                                                         validation rows -> Spill -> PartitionData.validation -> Batch

Nothing here knows Spark: any iterable of record batches will do.
"""

from __future__ import annotations

from fatwood.data.ahead import Lookahead
from fatwood.data.batch import Batch, Rows
from fatwood.data.layout import SKIP_HINT, Layout, OnBadRow, describe_row, tensors_of
from fatwood.data.order import Permutation, permutation_key
from fatwood.data.partition import PartitionData
from fatwood.data.spill import Spill

__all__ = [
    "SKIP_HINT",
    "Batch",
    "Layout",
    "Lookahead",
    "OnBadRow",
    "PartitionData",
    "Permutation",
    "Rows",
    "Spill",
    "describe_row",
    "permutation_key",
    "tensors_of",
]
