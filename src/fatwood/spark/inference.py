"""Prediction and scoring over the data's own partitions: the driver's side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from pyspark.sql import DataFrame
from pyspark.sql.types import (
    ArrayType,
    DataType,
    DoubleType,
    FloatType,
    IntegerType,
    StructField,
    StructType,
)

from fatwood.data import Batch, OnBadRow
from fatwood.data.inputs import InputSpec
from fatwood.data.preprocessing import Transform
from fatwood.errors import OptionError
from fatwood.spark.delivery import hand_to_tasks
from fatwood.spark.given import Selection
from fatwood.spark.inference_data import InferenceData
from fatwood.spark.inference_order import NO_TRANSFORMS, order_of, require_label, rows_of
from fatwood.spark.inference_task import predict_partition, score_partition
from fatwood.train import AnyLoss, Keys
from fatwood.train.activation import activation_of
from fatwood.train.device import Asked

__all__ = ["predict", "score"]

_KINDS: Mapping[str, DataType] = {
    "output": ArrayType(FloatType(), containsNull=False),
    "class": IntegerType(),
    "probability": DoubleType(),
}
"""Of what `predict` can return of each output."""


def predict(
    data: object,
    network: torch.nn.Module,
    *,
    loss: AnyLoss | None = None,
    key: str | Sequence[str] | None,
    features: InputSpec | None,
    transforms: Mapping[str, Transform] = NO_TRANSFORMS,
    output: str,
    outputs: Sequence[str] | int | None = None,
    returns: str | Sequence[str] = "output",
    activation: Any = "auto",
    scalar: bool = False,
    function: Callable[[Any, Batch], Any] | None = None,
    batch_size: int,
    workers_per_node: int | None = None,
    device: Asked = "auto",
    on_bad_row: OnBadRow,
) -> DataFrame:
    """The network's output for every row, lazily; see :meth:`fatwood.SparkModel.predict`.

    Args:
        data: The rows, of any form; or a stream.
        network: As it is now.
        loss: Of the model; tells what makes probabilities.
        key: Column or columns; None for minibatches, whose rows are then told by ``partition`` or ``file``, and ``row``.
        features: What the network is called with; None for minibatches.
        transforms: Preprocessing by the names of fields, fitted.
        output: Name of the new column; of several outputs each is called ``{output}_{its name or position}``.
        outputs: Names of the outputs of a network that returns a dict, or how many one has that returns a tuple; or of what the
            function returns.
        returns: Of ``output``, ``class`` and ``probability``.
        activation: What makes probabilities.
        scalar: Whether outputs are one number a row.
        function: Of what the network returns and the minibatch.
        batch_size: Rows per forward pass.
        workers_per_node: Tasks of a host that compute at a time.
        device: Where the network is called.
        on_bad_row: What to do with bad rows.
    """
    keys = _output_keys(outputs)
    _require_name(output)
    wanted = _wanted(returns)
    if not isinstance(scalar, bool):
        text = f"scalar: expected True or False, received {scalar!r}"
        raise OptionError(text)
    if function is not None and not callable(function):
        text = f"function: expected function(output, batch), received {function!r}"
        raise OptionError(text)
    rows = rows_of(data, Selection(features=features), transforms, key)
    rows = replace(rows, layout=rows.layout.without_label())
    given = f"key={key!r} and output={output!r}"
    new = _columns(output, keys, wanted, scalar=scalar)
    schema = _schema("predict", rows, new, given)
    parts: dict[str, Any] = {"network": network}
    if wanted != ("output",):
        activation_of(None, activation)  # says what it does not know
        parts |= {"loss": loss, "activation": activation}
    if function is not None:
        parts["function"] = function
    order = order_of(
        rows,
        parts,
        batch_size,
        on_bad_row,
        names=schema.names,
        outputs=keys,
        returns=wanted,
        scalar=scalar,
        workers_per_node=workers_per_node,
        device=device,
    )
    handed = hand_to_tasks(rows.spark, order)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return predict_partition(batches, handed.value)

    return rows.frame.mapInArrow(task, schema)


def score(
    data: object,
    parts: Mapping[str, Any],
    *,
    key: str | Sequence[str] | None,
    features: InputSpec | None,
    label: InputSpec | None,
    weight: str | None = None,
    transforms: Mapping[str, Transform] = NO_TRANSFORMS,
    output: str = "score",
    regularization: Callable[[torch.nn.Module], Any] | None = None,
    batch_size: int,
    workers_per_node: int | None = None,
    device: Asked = "auto",
    on_bad_row: OnBadRow,
) -> DataFrame:
    """The loss of every row, lazily; see :meth:`fatwood.SparkModel.score`.

    Args:
        data: The rows, of any form.
        parts: ``network`` and ``loss``.
        key: As in :func:`predict`.
        features: What the network is called with.
        label: What the loss is given; None for minibatches, and for a loss that is called with them and needs no label.
        weight: A column that each row's loss is multiplied by.
        transforms: As in :func:`predict`.
        output: Name of the new column.
        regularization: Of the network, added to each row's score.
        batch_size: Rows per forward pass.
        workers_per_node: As in :func:`predict`.
        device: As in :func:`predict`.
        on_bad_row: What to do with bad rows.
    """
    if parts["loss"] is None:
        text = "score: expected a model with loss, received none"
        raise OptionError(text, hint="SparkModel(network, loss=...)")
    if regularization is not None:
        if not callable(regularization):
            text = f"regularization: expected function(network), received {regularization!r}"
            raise OptionError(text)
        parts = {**parts, "regularization": regularization}
    _require_name(output)
    rows = rows_of(data, Selection(features=features, label=label, weight=weight), transforms, key)
    require_label("score", rows, parts["loss"])
    given = f"key={key!r} and output={output!r}"
    schema = _schema("score", rows, [StructField(output, FloatType())], given)
    order = order_of(
        rows,
        parts,
        batch_size,
        on_bad_row,
        names=schema.names,
        workers_per_node=workers_per_node,
        device=device,
    )
    handed = hand_to_tasks(rows.spark, order)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return score_partition(batches, handed.value)

    return rows.frame.mapInArrow(task, schema)


def _output_keys(outputs: Any) -> Keys:
    if outputs is None or (isinstance(outputs, int) and not isinstance(outputs, bool) and outputs > 0):
        return outputs
    if isinstance(outputs, Sequence) and outputs and not isinstance(outputs, str):
        words = all(isinstance(name, str) and name for name in outputs)
        if words and len(set(outputs)) == len(outputs):
            return tuple(outputs)
    text = f"outputs: expected different names of the network's outputs, how many there are, or None, received {outputs!r}"
    raise OptionError(
        text, hint='outputs=["a", "b"] for a network that returns a dict, outputs=2 for a tuple'
    )


def _wanted(returns: Any) -> tuple[str, ...]:
    names = (returns,) if isinstance(returns, str) else returns
    known = isinstance(names, Sequence) and bool(names) and all(name in _KINDS for name in names)
    if known and len(set(names)) == len(names):
        return tuple(names)
    text = f"returns: expected one or more of {', '.join(map(repr, _KINDS))}, received {returns!r}"
    raise OptionError(text, hint='returns=("class", "probability")')


def _columns(output: str, keys: Keys, wanted: Sequence[str], *, scalar: bool) -> list[StructField]:
    """The new columns, those of one output beside each other."""
    titles = [output] if keys is None else [f"{output}_{part}" for part in _listed(keys)]
    kinds: dict[str, DataType] = dict(_KINDS)
    if scalar:
        kinds["output"] = FloatType()
    return [
        StructField(title if name == "output" else f"{title}_{name}", kinds[name])
        for title in titles
        for name in wanted
    ]


def _listed(keys: tuple[str, ...] | int) -> Sequence[str | int]:
    return range(keys) if isinstance(keys, int) else keys


def _require_name(output: object) -> None:
    if not isinstance(output, str) or not output:
        text = f"output: expected a name for the new column, received {output!r}"
        raise OptionError(text)


def _schema(where: str, rows: InferenceData, new: Sequence[StructField], given: str) -> StructType:
    """Of the result; the names of keys and new columns are found to differ."""
    columns = [field.name for field in (*rows.keys, *new)]
    if rows.spark.conf.get("spark.sql.caseSensitive") != "true":
        columns = [name.lower() for name in columns]
    if len(set(columns)) < len(columns):
        text = f"{where}: expected different names for key and output columns, received {given}"
        raise OptionError(
            text, hint="name every key once, and pass output=... to call the new column otherwise"
        )
    return StructType([*rows.keys, *new])
