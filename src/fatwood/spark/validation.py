"""The columns of a validation DataFrame: found and compared with those of the DataFrame to train on, before any job."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame

from fatwood.errors import OptionError, SchemaError
from fatwood.spark.balance import Source
from fatwood.spark.columns import Columns, resolve_columns
from fatwood.spark.session import require_spark

__all__ = ["validation_source"]


def validation_source(
    validation: DataFrame | None,
    columns: Columns,
    *,
    features: str | Sequence[str],
    label: str | None,
    weight: str | None,
) -> Source | None:
    """Finds in the schema of `validation` the columns that training reads; runs no job.

    Args:
        validation: The user's second DataFrame, or None.
        columns: Those of the DataFrame to train on.
        features: As it was resolved there.
        label: As it was resolved there.
        weight: As it was resolved there.

    Returns:
        What is read of it; None without a DataFrame.

    Raises:
        OptionError: It is no DataFrame.
        SchemaError: A column is missing or of another kind than in the DataFrame to train on.
    """
    if validation is None:
        return None
    try:
        require_spark(validation)
    except OptionError as error:
        message = f"validation: {error.message}"
        raise OptionError(message, hint=error.hint) from error
    try:
        found = resolve_columns(validation, features, label, weight)
    except SchemaError as error:
        message = f"validation: {error.message}"
        raise SchemaError(message, hint=error.hint) from error
    _require_alike(columns, found)
    return Source(validation, found)


def _require_alike(columns: Columns, found: Columns) -> None:
    """What the schemas tell: the type of features and label, and which columns hold arrays."""
    pairs: list[tuple[str, str | None, str | None]]
    pairs = [("features", columns.features_dtype, found.features_dtype)]
    pairs.append((f"label {found.label_name!r}", columns.label_dtype, found.label_dtype))
    expected_names = [*columns.feature_names, columns.label_name]
    for expected_name, name in zip(expected_names, [*found.feature_names, found.label_name], strict=True):
        pairs.append((f"column {name!r}", _shape(columns, expected_name), _shape(found, name)))
    for where, expected, received in pairs:
        if expected != received:
            message = f"validation: {where}: expected {expected} as in the DataFrame to train on, received {received}"
            raise SchemaError(
                message, hint="cast the column in one of the DataFrames: both must be of one kind"
            )


def _shape(columns: Columns, name: str | None) -> str:
    return "an array or vector" if name in columns.size_exprs else "one number a row"
