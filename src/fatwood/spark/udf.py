"""The network as a vectorised function of columns, for `select`, SQL and streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pyspark.sql import functions
from pyspark.sql.types import ArrayType, DataType, DoubleType, FloatType, IntegerType

from fatwood.data import ROW_BITS, Field, Group, Layout, OnBadRow
from fatwood.data.assembly import Assembled, assemble
from fatwood.data.fields import Dtype
from fatwood.data.preprocessing import Transform
from fatwood.errors import OptionError, SchemaError
from fatwood.spark.delivery import hand_to_tasks
from fatwood.spark.given import session
from fatwood.spark.inference_data import InferenceData
from fatwood.spark.inference_order import order_of
from fatwood.spark.inference_rows import InferenceOrder, partition_id
from fatwood.spark.inference_task import Predictor, named_failures
from fatwood.train import AnyLoss
from fatwood.train.activation import activation_of
from fatwood.train.device import Asked

__all__ = ["Returns", "udf"]

Returns = Literal["array<float>", "float", "class", "probability"]

_KINDS: Mapping[str, tuple[str, DataType]] = {
    "array<float>": ("output", ArrayType(FloatType())),
    "float": ("output", FloatType()),
    "class": ("class", IntegerType()),
    "probability": ("probability", DoubleType()),
}


def udf(
    network: torch.nn.Module,
    *,
    loss: AnyLoss | None,
    transforms: Mapping[str, Transform],
    returns: Returns,
    shape: tuple[int, ...] | None,
    activation: Any,
    batch_size: int,
    workers_per_node: int | None,
    device: Asked = "auto",
    on_bad_row: OnBadRow,
) -> Any:
    """A function of one or several columns; see :meth:`fatwood.SparkModel.udf`.

    Args:
        network: As it is now.
        loss: Of the model; tells what makes probabilities.
        transforms: Preprocessing by the names of fields, fitted; only that of the one field there is.
        returns: What is returned.
        shape: Of one row; by default as many numbers as the columns have.
        activation: What makes probabilities.
        batch_size: Rows per forward pass.
        workers_per_node: Tasks of a host that compute at a time.
        device: Where the network is called.
        on_bad_row: What to do with bad rows.

    Raises:
        OptionError: An option cannot work, or there is no Spark session.
    """
    if returns not in _KINDS:
        text = f"returns: expected one of {', '.join(map(repr, _KINDS))}, received {returns!r}"
        raise OptionError(text)
    others = sorted(set(transforms) - {"features"})
    if others or any(transform.encodes for transform in transforms.values()):
        text = f"udf: expected a model whose preprocessing is of one tensor of numbers, received preprocessing of {sorted(transforms)}"
        raise OptionError(text, hint="use model.predict, which takes several tensors, text and sequences")
    activation_of(None, activation)  # says what it does not know
    spark = session()
    what, kind = _KINDS[returns]
    rows = InferenceData(
        frame=spark.range(0),
        layout=replace(_layout("float32", shape), transforms=dict(transforms)),
        measured={} if shape is not None else {"features": 0},
        decoders={},
    )
    parts: dict[str, Any] = {"network": network}
    if what != "output":
        parts |= {"loss": loss, "activation": activation}
    order = order_of(
        rows,
        parts,
        batch_size,
        on_bad_row,
        returns=(what,),
        scalar=returns == "float",
        workers_per_node=workers_per_node,
        device=device,
    )
    handed = hand_to_tasks(spark, order)

    def predicted(batches: Iterator[Any]) -> Iterator[pa.Array]:
        return _predicted(batches, handed.value)

    return _vectorised(predicted, kind)


def _vectorised(function: Any, kind: DataType) -> Any:
    """A function of iterators of Arrow arrays as one of Spark's; of pandas before Spark 4.1, which takes no others."""
    spark_functions: Any = functions
    if hasattr(spark_functions, "arrow_udf"):
        # Spark tells by annotations what it calls a function with
        function.__annotations__ = {
            "batches": Iterator[tuple[pa.Array, ...]],
            "return": Iterator[pa.Array],
        }
        return spark_functions.arrow_udf(function, kind)
    import pandas as pd

    def predicted(batches: Iterator[Any]) -> Iterator[Any]:
        for found in function(tuple(map(pa.array, _listed(batch))) for batch in batches):
            yield found.to_pandas()

    predicted.__annotations__ = {
        "batches": Iterator[tuple[pd.Series, ...]],
        "return": Iterator[pd.Series],
    }
    return spark_functions.pandas_udf(predicted, kind)


def _listed(batch: Any) -> Any:
    """The columns of a batch, which Spark sends as itself where it is only one."""
    return batch if isinstance(batch, tuple) else (batch,)


def _predicted(batches: Iterator[Any], order: InferenceOrder) -> Iterator[pa.Array]:
    """The predictions for each batch of columns. Runs on an executor."""
    predict: Predictor | None = None
    first = partition_id() << ROW_BITS
    with named_failures():
        for batch in batches:
            columns = list(_listed(batch))
            dtype = _dtype(columns)
            if predict is None:
                predict = Predictor(replace(order, layout=_with_dtype(order.layout, dtype)))
            names = [str(i) for i in range(len(columns))]
            ids = pa.array(np.arange(first, first + len(columns[0])))
            table = pa.RecordBatch.from_arrays([ids, *columns], names=["row_id", *names])
            first += len(table)
            of = Assembled(
                name="features",
                columns=tuple(names),
                dtype=dtype,
                as_it_is=dtype == "uint8",
                alone=order.layout.features.fields[0].shape == () and len(columns) == 1,
            )
            yield predict(assemble(table, [of], []))[0]


def _layout(dtype: Dtype, shape: tuple[int, ...] | None) -> Layout:
    """Of one tensor; where no shape is given, the task finds it."""
    field = Field(name="features", title="features", dtype=dtype, shape=(1,) if shape is None else shape)
    return Layout(features=Group(fields=(field,)))


def _with_dtype(layout: Layout, dtype: Dtype) -> Layout:
    (field,) = layout.features.fields
    return replace(layout, features=Group(fields=(replace(field, dtype=dtype),)))


def _dtype(columns: list[Any]) -> Dtype:
    """As in `predict`: int64 where all numbers are whole ones, and bytes as they are."""
    kinds = []
    for column in columns:
        kind = column.type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        kinds.append(kind)
    if len(kinds) == 1 and (pa.types.is_binary(kinds[0]) or pa.types.is_large_binary(kinds[0])):
        return "uint8"
    for number, kind in enumerate(kinds, 1):
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)):  # fmt: skip
            text = f"udf: expected numbers, booleans or arrays of them, or one column of bytes, received {kind} as column {number}"
            hint = "vectors become arrays with pyspark.ml.functions.vector_to_array"
            raise SchemaError(text, hint=hint)
    return "int64" if all(pa.types.is_integer(kind) for kind in kinds) else "float32"
