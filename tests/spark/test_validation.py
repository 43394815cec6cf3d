"""A second DataFrame to validate on: what its schema must be, found before any job."""

from __future__ import annotations

import pytest
from pyspark.sql import functions as F

from fatwood.errors import OptionError, SchemaError
from fatwood.spark.columns import resolve_columns
from fatwood.spark.given import Selection, feed_of
from fatwood.spark.validation import validation_feed

pytestmark = pytest.mark.spark

QUERY = "SELECT 1 a, array(1.0D, 2.0D) v, 1 y, 0.5D w"


def source_of(df, validation, *, features=("a", "v"), label="y", weight="w"):
    selection = Selection(features=list(features), label=label, weight=weight)
    return validation_feed(validation, feed_of(df, selection), selection)


def test_no_validation_is_no_source(spark) -> None:
    assert source_of(spark.sql(QUERY), None) is None


def test_the_same_columns_are_found_in_any_order_and_no_job_is_run(spark) -> None:
    df = spark.sql(QUERY)
    other = spark.sql("SELECT 9 other, 0.25F w, 2L y, array(3.0F, 4.0F) V, 5S a")
    tracker = spark.sparkContext.statusTracker()
    before = sorted(tracker.getJobIdsForGroup(None))
    found = source_of(df, other)
    assert sorted(tracker.getJobIdsForGroup(None)) == before
    packed = found.df.select(*found.columns.packed_to_validate)
    assert packed.schema == df.select(*resolve_columns(df, ["a", "v"], "y", "w").packed).schema
    assert [tuple(row) for row in packed.collect()] == [(~0, [5.0, 3.0, 4.0], 2, 0.25)]


@pytest.mark.parametrize(
    ("name", "expression", "expected"),
    [
        (
            "v",
            "1.0D",
            "validation: column 'v': expected an array or vector as in the DataFrame to train on, received one number a row",
        ),
        (
            "a",
            "array(1)",
            "validation: column 'a': expected one number a row as in .*, received an array or vector",
        ),
        ("y", "1.0D", "validation: label 'y': expected int64 as in .*, received float32"),
        ("w", "array(1.0)", "^validation: column 'w': expected a number as weight"),
        ("a", "'x'", "^validation: column 'a'.*received string"),
        ("y", None, "^validation: column 'y': expected a column of the DataFrame"),
    ],
)
def test_other_columns_are_named(spark, name, expression, expected) -> None:
    df = spark.sql(QUERY)
    other = df.drop(name) if expression is None else df.withColumn(name, F.expr(expression))
    with pytest.raises(SchemaError, match=expected):
        source_of(df, other)


def test_other_kinds_of_features_are_named(spark) -> None:
    df = spark.sql("SELECT 1 a, 2 b")
    with pytest.raises(SchemaError, match=r"validation: features: expected int64 .*, received float32"):
        source_of(df, spark.sql("SELECT 1.5D a, 2 b"), features=("a", "b"), label=None, weight=None)


def test_something_else_than_a_dataframe_is_refused(spark) -> None:
    with pytest.raises(OptionError, match=r"^validation: .*received builtins.float"):
        source_of(spark.sql(QUERY), 0.2)
