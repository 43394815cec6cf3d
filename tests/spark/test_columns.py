from __future__ import annotations

import math
from decimal import Decimal

import pytest
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.mllib.linalg import Vectors as OldVectors
from pyspark.mllib.linalg import VectorUDT as OldVectorUDT
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from fatwood.errors import OptionError, SchemaError
from fatwood.spark.columns import resolve_columns

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def table(spark):
    """Two rows of every kind of column: a whole one, and one of nulls."""
    fields = (
        "b byte, s short, i int, l long, yes boolean, f float, d double, dec decimal(10,2), ints array<int>,"
    )
    fields += " doubles array<double>, flags array<boolean>, nested array<array<int>>, text string, day date,"
    fields += " point struct<x: double>, `a.b` int, `two words` float, `tick``ed` double, big double"
    whole = (
        1,
        2,
        3,
        4,
        True,
        0.5,
        0.25,
        Decimal("1.5"),
        [7, 8],
        [9.0, None],
        [True, False],
        [[1]],
        "x",
        None,
    )
    rows = [(*whole, (1.0,), 5, 6.0, 7.0, 1e300), (None,) * 19]
    return spark.createDataFrame(rows, fields).coalesce(1)


@pytest.fixture(scope="module")
def vectors(spark):
    schema = StructType([StructField("new", VectorUDT()), StructField("old", OldVectorUDT())])
    rows = [(Vectors.dense([1.0, 2.0]), OldVectors.sparse(3, {1: 5.0})), (None, None)]
    return spark.createDataFrame(rows, schema).coalesce(1)


def packed(df, features, label=None):
    """The type and the values that the features and the label get."""
    columns = resolve_columns(df, features, label)
    chosen = df.select(*(item.expr.alias(item.name) for item in columns.items))
    kinds = [field.dataType.simpleString() for field in chosen.schema.fields]
    return columns, kinds, [tuple(row) for row in chosen.collect()]


def test_integers_stay_integers(table) -> None:
    columns, kinds, rows = packed(table, ["b", "s", "ints", "i", "l"])
    assert kinds == ["array<bigint>"]
    assert columns.features.items[0].dtype == "int64"
    assert rows[0] == ([1, 2, 7, 8, 3, 4],)


def test_one_fraction_makes_all_floats(table) -> None:
    columns, kinds, rows = packed(table, ["i", "yes", "f", "d", "dec", "doubles", "ints", "flags"])
    assert kinds == ["array<float>"]
    assert columns.features.items[0].dtype == "float32"
    assert rows[0] == ([3.0, 1.0, 0.5, 0.25, 1.5, 9.0, None, 7.0, 8.0, 1.0, 0.0],)


@pytest.mark.parametrize("name", ["yes", "f", "d", "dec"])
def test_one_scalar_column_is_an_array_of_one(table, name) -> None:
    _, kinds, rows = packed(table, name)
    assert kinds == ["array<float>"]
    assert [len(row[0]) for row in rows] == [1, 1]
    assert rows[1] == ([None],)


def test_nulls_never_disappear(table, vectors) -> None:
    assert packed(table, ["i", "f"])[2][1] == ([None, None],)
    assert packed(table, ["i", "ints"])[2][1] == (None,)
    assert packed(table, "doubles")[2] == [([9.0, None],), (None,)]
    assert packed(vectors, ["new", "old"])[2] == [([1.0, 2.0, 0.0, 5.0, 0.0],), (None,)]


def test_too_large_for_float32_is_infinite(table) -> None:
    assert packed(table, "big")[2][0] == ([math.inf],)


@pytest.mark.parametrize(
    ("label", "kind", "dtype", "value"),
    [
        ("b", "bigint", "int64", 1),
        ("l", "bigint", "int64", 4),
        ("yes", "bigint", "int64", 1),
        ("d", "float", "float32", 0.25),
        ("dec", "float", "float32", 1.5),
        ("ints", "array<float>", "float32", [7.0, 8.0]),
        ("flags", "array<float>", "float32", [1.0, 0.0]),
    ],
)
def test_label_types(table, label, kind, dtype, value) -> None:
    columns, kinds, rows = packed(table, "f", label)
    target = columns.label.items[0]
    assert (kinds[1], target.dtype, target.title) == (kind, dtype, label)
    assert [row[1] for row in rows] == [value, None]


def test_vector_label(vectors) -> None:
    _, kinds, rows = packed(vectors, "new", "old")
    assert kinds == ["array<float>", "array<float>"]
    assert rows == [([1.0, 2.0], [0.0, 5.0, 0.0]), (None, None)]


@pytest.mark.parametrize("size_of_null", ["true", "false"])
def test_sizes_of_variable_columns(spark, table, vectors, size_of_null) -> None:
    columns = resolve_columns(table, ["i", "ints", "f"], "doubles")
    assert [measure.title for measure in columns.measures] == ["ints", "doubles"]
    assert len(columns.read_exprs) == 2
    spark.conf.set("spark.sql.legacy.sizeOfNull", size_of_null)
    try:
        for measured in ("least", "most"):
            sizes = [getattr(measure, measured) for measure in columns.measures]
            assert [tuple(row) for row in table.select(*sizes).collect()] == [(2, 2), (None, None)]
        sizes = [measure.most for measure in resolve_columns(vectors, ["new", "old"], None).measures]
        assert [tuple(row) for row in vectors.select(*sizes).collect()] == [(2, 3), (None, None)]
    finally:
        spark.conf.unset("spark.sql.legacy.sizeOfNull")


@pytest.mark.parametrize("name", ["a.b", "two words", "tick`ed"])
def test_names_that_sql_would_misread(table, name) -> None:
    columns, _, rows = packed(table, [name, "i"], "b")
    assert [source.name for source in columns.features.items[0].sources] == [name, "i"]
    assert rows[0][0][0] in (5, 6.0, 7.0)


def test_upper_and_lower_case_as_in_spark(spark, table) -> None:
    assert resolve_columns(table, "DOUBLES", None).feature_name == "doubles"
    spark.conf.set("spark.sql.caseSensitive", "true")
    try:
        with pytest.raises(SchemaError, match=r"'DOUBLES'[\s\S]*hint: did you mean 'doubles'"):
            resolve_columns(table, "DOUBLES", None)
    finally:
        spark.conf.unset("spark.sql.caseSensitive")


def test_feature_name_is_short(spark) -> None:
    wide = spark.range(1).select(*(F.lit(i).alias(f"c{i}") for i in range(50)))
    assert resolve_columns(wide, wide.columns, None).feature_name == "c0, c1, c2, 47 more"
    assert resolve_columns(wide, "c7", None).feature_name == "c7"


@pytest.mark.parametrize(
    ("features", "label", "expected"),
    [
        ("doublse", None, r"'doublse'[\s\S]*ints[\s\S]*hint: did you mean 'doubles'"),
        ("qqqq", None, r"'qqqq'[\s\S]*\(b, s, i[\s\S]*df.columns"),
        ("point.x", None, r"'point.x'[\s\S]*struct"),
        ("text", None, r"'text': expected a number[\s\S]*received string[\s\S]*Vocabulary"),
        ("day", None, r"'day'[\s\S]*received date[\s\S]*unix_timestamp"),
        (["nested", "i"], None, r"'nested'[\s\S]*received array<array<int>>[\s\S]*flatten"),
        ("point", None, r"'point'[\s\S]*received struct<x:double>"),
        ("i", "text", r"'text'[\s\S]*received string"),
        ("i", "labl", r"'labl'"),
    ],
)
def test_wrong_columns(table, features, label, expected) -> None:
    with pytest.raises(SchemaError, match=expected):
        resolve_columns(table, features, label)


@pytest.mark.parametrize(
    ("features", "label", "expected"),
    [
        ([], None, "at least one column"),
        (["i", "f", "i"], None, "'i' more than once"),
        (["i", "I"], None, "'i' more than once"),
        (["i", "f"], "f", "received 'f'"),
        (None, None, "received None"),
        (["i", 3], None, "list of names"),
        (b"i", None, "list of names"),
    ],
)
def test_wrong_arguments(table, features, label, expected) -> None:
    with pytest.raises(OptionError, match=expected):
        resolve_columns(table, features, label)


@pytest.mark.parametrize(
    ("weight", "value"), [("f", 0.5), ("d", 0.25), ("i", 3.0), ("yes", 1.0), ("dec", 1.5), ("big", math.inf)]
)
def test_weights_are_floats(table, weight, value) -> None:
    columns = resolve_columns(table, ["s", "ints"], "b", weight)
    assert columns.weight.title == columns.layout([2]).weight.title == weight
    assert [column._jc.toString() for column in columns.read_exprs] == ["s", "b", weight]
    chosen = table.select(*columns.packed)
    assert chosen.columns == ["row_id", "features", "label", "weight"]
    assert chosen.schema["weight"].dataType.simpleString() == "float"
    assert [row.weight for row in chosen.collect()] == [value, None]
    assert table.select(*resolve_columns(table, "i", None, weight).packed).columns == [
        "row_id",
        "features",
        "weight",
    ]


@pytest.mark.parametrize(
    ("label", "weight", "error", "expected"),
    [
        ("b", "doubles", SchemaError, r"'doubles': expected a number as weight, received array<double>\n"),
        ("b", "text", SchemaError, r"'text': expected a number.*received string"),
        ("b", "wieght", SchemaError, r"'wieght'"),
        ("b", "B", OptionError, r"weight: expected another column than the label, received 'B'"),
        ("b", 3, OptionError, r"weight: expected the name of a column, received 3"),
        (3, None, OptionError, r"label: expected the name of a column or a list of names, received 3"),
    ],
)
def test_wrong_weights(table, label, weight, error, expected) -> None:
    with pytest.raises(error, match=expected):
        resolve_columns(table, ["i"], label, weight)


def test_two_columns_of_one_name(spark) -> None:
    twice = spark.range(1).select(F.col("id"), (F.col("id") + 1).alias("id"))
    with pytest.raises(SchemaError, match="received 2"):
        resolve_columns(twice, "id", None)


def test_no_job_is_run(spark, table) -> None:
    tracker = spark.sparkContext.statusTracker()
    before = tracker.getJobIdsForGroup(None)
    resolve_columns(table, ["i", "doubles"], "yes")
    assert sorted(tracker.getJobIdsForGroup(None)) == sorted(before)
