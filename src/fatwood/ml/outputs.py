"""Spark ML's columns of a network's outputs, as expressions that Spark evaluates lazily.

The outputs of a row are ``array<float>``; a null stands for a row that could not be used and stays null.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from pyspark.ml.functions import array_to_vector
from pyspark.sql import Column
from pyspark.sql import functions as F
from torch.nn import functional

__all__ = ["Meaning", "columns_of", "meaning_of"]

Kind = Literal["class", "binary", "value", "vector"]

_KNOWN: dict[Any, tuple[Kind, str]] = {
    torch.nn.CrossEntropyLoss: ("class", "softmax"),
    functional.cross_entropy: ("class", "softmax"),
    torch.nn.NLLLoss: ("class", "exp"),
    functional.nll_loss: ("class", "exp"),
    torch.nn.MultiMarginLoss: ("class", "none"),
    functional.multi_margin_loss: ("class", "none"),
    torch.nn.BCEWithLogitsLoss: ("binary", "sigmoid"),
    functional.binary_cross_entropy_with_logits: ("binary", "sigmoid"),
    torch.nn.BCELoss: ("binary", "none"),
    functional.binary_cross_entropy: ("binary", "none"),
}
_USUAL = {"class": "softmax", "binary": "sigmoid"}


class Meaning(NamedTuple):
    """What the outputs are."""

    kind: Kind
    activation: str
    """Makes probabilities of them: ``"softmax"``, ``"sigmoid"``, ``"exp"`` or ``"none"``."""


def meaning_of(loss: Any, kind: str, activation: str) -> Meaning:
    """What outputs are, by what the user says and else by the loss.

    Args:
        loss: Or None.
        kind: As `ModelParams.predictionType`.
        activation: As `ModelParams.activation`.
    """
    function = loss.func if isinstance(loss, partial) else loss
    known = next((_KNOWN[cls] for cls in type(function).__mro__ if cls in _KNOWN), None)
    if known is None:
        known = next((found for thing, found in _KNOWN.items() if thing is function), ("value", "none"))
    meant: Any = known[0] if kind == "auto" else kind
    if activation == "auto":
        activation = known[1] if known[0] == meant else _USUAL.get(meant, "none")
    return Meaning(meant, activation)


def columns_of(outputs: Column, meaning: Meaning) -> dict[str, Column]:
    """The columns by role: ``prediction``; of a classifier also ``rawPrediction`` and ``probability``, both vectors.

    Args:
        outputs: ``array<double>``.
        meaning: What they are.
    """
    kind, activation = meaning
    if kind == "vector":
        return {"prediction": _vector(outputs)}
    if kind == "value":
        return {"prediction": F.get(_sized(outputs, kind, F.size(outputs) == 1), 0)}
    if kind == "class":
        outputs = _sized(outputs, kind, F.size(outputs) > 1)
        probability = _activated(outputs, activation)
        prediction = (F.call_function("array_position", outputs, F.array_max(outputs)) - 1).cast("double")
        return {
            "rawPrediction": _vector(outputs),
            "probability": _vector(probability),
            "prediction": prediction,
        }
    one = F.get(_sized(outputs, kind, F.size(outputs) == 1), 0)
    # A network that ends with probabilities has no logits; they are as good a measure of confidence.
    positive = _activated_number(one, activation)
    raw = F.array(-one, one) if activation == "sigmoid" else F.array(1 - one, one)
    return {
        "rawPrediction": _vector(_unless_null(one, raw)),
        "probability": _vector(_unless_null(one, F.array(1 - positive, positive))),
        "prediction": (positive > 0.5).cast("double"),
    }


def _unless_null(one: Column, column: Column) -> Column:
    return F.when(one.isNotNull(), column)


def _vector(array: Column) -> Column:
    return F.when(array.isNotNull(), array_to_vector(array))


def _sized(outputs: Column, kind: Kind, right: Column) -> Column:
    wanted = "two or more numbers, one for each class" if kind == "class" else "one number"
    message = F.concat(
        F.lit(f"transform: expected outputs of {wanted} a row for predictionType={kind!r}, received "),
        F.size(outputs).cast("string"),
        F.lit("; hint: set predictionType to 'class', 'binary', 'value' or 'vector'"),
    )
    return F.when(outputs.isNull() | right, outputs).otherwise(F.raise_error(message).cast("array<double>"))


def _activated(outputs: Column, activation: str) -> Column:
    if activation == "softmax":
        return _let(
            F.array_max(outputs),
            lambda top: _let(
                F.transform(outputs, lambda x: F.exp(x - top)),
                lambda shares: _let(
                    F.aggregate(shares, F.lit(0.0), lambda total, x: total + x),
                    lambda total: F.transform(shares, lambda x: x / total),
                ),
            ),
        )
    return (
        outputs if activation == "none" else F.transform(outputs, lambda x: _activated_number(x, activation))
    )


def _activated_number(one: Column, activation: str) -> Column:
    if activation == "sigmoid":
        return 1 / (1 + F.exp(-one))
    return F.exp(one) if activation == "exp" else one


def _let(value: Column, use: Callable[[Column], Column]) -> Column:
    """``use(value)`` with the value evaluated once a row, and not once for each element of an array within."""
    return F.get(F.transform(F.array(value), use), 0)
