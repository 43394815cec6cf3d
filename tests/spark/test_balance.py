from __future__ import annotations

import dataclasses
from itertools import chain

import pytest
from pyspark.sql import functions as F

from fatwood.data import ROW_BITS
from fatwood.errors import DataError, OptionError, SchemaError
from fatwood.spark.balance import Source, balanced, inspect
from fatwood.spark.balance import _keys as keys_for
from fatwood.spark.columns import resolve_columns

pytestmark = pytest.mark.spark

SIZES = [(0, 1, 7, 10_000), (1,), (0, 0, 5, 0), (3, 3, 3)]


def frame(spark, sizes):
    """One partition for each of `sizes`, with so many rows of distinct `id`s."""
    step = max(sizes)
    ids = spark.range(0, step * len(sizes), 1, len(sizes))
    return ids.filter(f"id % {step} < get(array({', '.join(map(str, sizes))}), int(id DIV {step}))")


def plan(df, *, workers, seed=1, shuffle=True, features="id", label=None, validation=None):
    columns = resolve_columns(df, features, label)
    there = None if validation is None else Source(validation, resolve_columns(validation, features, label))
    found = inspect(df, columns, there)
    options = {"workers": workers, "seed": seed, "shuffle": shuffle, "validation": there}
    return balanced(df, columns, found, **options), found


def placed(rows, workers):
    """Of each worker, the row ids in their order."""
    parts = [[] for _ in range(workers)]
    # All columns are read, as in a training job: with fewer, the user's plan may be cut into other partitions.
    for partition, row_id, _ in rows.select(
        F.spark_partition_id(), "row_id", F.xxhash64("features")
    ).collect():
        parts[partition].append(row_id)
    return parts


def expected_ids(sizes):
    return [partition << ROW_BITS | row for partition, size in enumerate(sizes) for row in range(size)]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_row_once_in_equal_shares(spark, sizes, workers) -> None:
    df = frame(spark, sizes)
    rows, found = plan(df, workers=workers)
    ids = expected_ids(sizes)
    assert found.rows == sum(sizes)
    assert found.partition_rows == tuple(sizes[: max(p for p, size in enumerate(sizes) if size) + 1])
    parts = placed(rows, workers)
    assert sorted(chain(*parts)) == ids
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    worker_of = {row_id: rank for rank, part in enumerate(parts) for row_id in part}
    for start in range(0, len(ids), workers):  # rows beside each other go to different workers
        block = [worker_of[row_id] for row_id in ids[start : start + workers]]
        assert len(set(block)) == len(block)
    assert placed(plan(df, workers=workers)[0], workers) == parts
    # In the frame's own order, the share of a worker is every W-th row.
    still = placed(plan(df, workers=workers, shuffle=False)[0], workers)
    assert still == [ids[rank::workers] for rank in range(workers)]


def test_how_the_frame_is_cut_changes_nothing(spark) -> None:
    def features(partitions):
        rows, _ = plan(spark.range(0, 100, 1, partitions), workers=3)
        return [tuple(row) for row in rows.select(F.spark_partition_id(), "features").collect()]

    assert features(1) == features(4) == features(7)


def test_alternating_rows_are_mixed(spark) -> None:
    parts = placed(plan(frame(spark, (400,)), workers=2)[0], 2)
    even = [sum(row_id % 2 == 0 for row_id in part) for part in parts]
    assert all(60 < count < 140 for count in even)


def test_order_is_a_function_of_the_seed(spark) -> None:
    df = frame(spark, (100, 50))
    one, two = (placed(plan(df, workers=2, seed=seed)[0], 2) for seed in (1, 2))
    still = placed(plan(df, workers=2, seed=1, shuffle=False)[0], 2)
    assert one != two
    assert sorted(chain(*one)) == sorted(chain(*two)) == sorted(chain(*still))
    extremes = [placed(plan(df, workers=2, seed=seed)[0], 2) for seed in (-(2**63), 2**63 - 1)]
    assert extremes[0] != extremes[1]


def test_settings_of_the_session_change_nothing(spark) -> None:
    df = frame(spark, (30, 0, 20))
    before = placed(plan(df, workers=3)[0], 3)
    changed = {"spark.sql.adaptive.enabled": "false", "spark.sql.shuffle.partitions": "7"}
    changed |= {"spark.sql.codegen.wholeStage": "false", "spark.sql.ansi.enabled": "true"}
    for name, value in changed.items():
        spark.conf.set(name, value)
    try:
        assert placed(plan(df, workers=3)[0], 3) == before
    finally:
        for name in changed:
            spark.conf.unset(name)
        spark.conf.set("spark.sql.shuffle.partitions", "4")


def test_a_hundred_thousand_partitions_to_count(spark) -> None:
    """The plan holds a number for each input partition; most of them are empty here, which costs no task."""
    df = frame(spark, (5, 0, 11))
    columns = resolve_columns(df, "id", None)
    found = inspect(df, columns)
    many = dataclasses.replace(found, partition_rows=found.partition_rows + (0,) * 100_000)
    parts = placed(balanced(df, columns, many, workers=3, seed=1, shuffle=False), 3)
    assert parts == [expected_ids((5, 0, 11))[rank::3] for rank in range(3)]


@pytest.mark.parametrize("wrong", [(), (5,), (1, 1, 1), (10**6, 3, 900)], ids=str)
def test_wrong_counts_lose_no_row(spark, wrong) -> None:
    sizes = (40, 9, 30)
    df = frame(spark, sizes)
    columns = resolve_columns(df, "id", None)
    stale = dataclasses.replace(inspect(df, columns), partition_rows=wrong)
    parts = placed(balanced(df, columns, stale, workers=3, seed=1, shuffle=True), 3)
    assert sorted(chain(*parts)) == expected_ids(sizes)


def test_what_python_is_given(spark) -> None:
    """One row and three workers: three calls, Arrow types as agreed, no sort key among the columns."""
    df = spark.range(0, 1, 1, 1).select(
        F.lit(0.5).alias("a"), F.array(F.lit(1), F.lit(2)).alias("b"), F.lit(True).alias("y")
    )
    rows, _ = plan(df, workers=3, features=["a", "b"], label="y")

    def describe(batches):
        import pyarrow as pa
        from pyspark import TaskContext

        batches = list(batches)
        text = [" ".join(f"{f.name}:{f.type}" for f in batch.schema) for batch in batches]
        text += [str(batch.to_pylist()) for batch in batches]
        partition = TaskContext.get().partitionId()
        yield pa.RecordBatch.from_pydict({"partition": [partition], "text": ["\n".join(text)]})

    said = dict(map(tuple, rows.mapInArrow(describe, "partition long, text string").collect()))
    assert sorted(said) == [0, 1, 2]
    (spoken,) = filter(None, said.values())
    kinds, values = spoken.split("\n")
    assert kinds.replace("element: ", "item: ") in (
        "row_id:int64 features:list<item: float> label:int64",
        "row_id:int64 features:list<item: float not null> label:int64",
    )
    assert values == "[{'row_id': 0, 'features': [0.5, 1.0, 2.0], 'label': 1}]"
    assert sorted(map(bool, said.values())) == [False, False, True]


def test_counts_fit_where_adaptive_execution_cuts_partitions(spark) -> None:
    """A shuffle in the user's plan, whose number of partitions depends on the bytes that it carries."""
    changed = {
        "spark.sql.adaptive.advisoryPartitionSizeInBytes": "64k",
        "spark.sql.adaptive.coalescePartitions.minPartitionSize": "1k",
        "spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
        "spark.sql.shuffle.partitions": "16",
    }
    for name, value in changed.items():
        spark.conf.set(name, value)
    try:
        wide = spark.range(0, 3000, 1, 2).select("id", *(F.rand(i).alias(f"c{i}") for i in range(12)))
        df = wide.repartition(F.col("id"))
        rows, found = plan(df, workers=2, features=[f"c{i}" for i in range(12)])
        assert 1 < len(found.partition_rows) < 16
        parts = placed(rows, 2)
    finally:
        for name in changed:
            spark.conf.unset(name)
        spark.conf.set("spark.sql.shuffle.partitions", "4")
    assert sorted(chain(*parts)) == expected_ids(found.partition_rows)
    assert list(map(len, parts)) == [1500, 1500]


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 64])
def test_a_key_for_every_partition_without_a_job(spark, workers) -> None:
    tracker = spark.sparkContext.statusTracker()
    before = sorted(tracker.getJobIdsForGroup(None))
    keys = keys_for(spark, workers)
    assert sorted(tracker.getJobIdsForGroup(None)) == before
    sent = spark.createDataFrame([(key,) for key in keys], "key long").repartition(workers, "key")
    assert dict(map(tuple, sent.select("key", F.spark_partition_id()).collect())) == dict(
        zip(keys, range(workers), strict=True)
    )


def test_widths(spark) -> None:
    df = spark.sql(
        "SELECT 1 AS a, 2.5D AS b, array(1, 2, 3) AS v, array(0.0D, 1.0D) AS y UNION ALL SELECT 1, 2, null, null"
    )
    found = inspect(df, resolve_columns(df, ["a", "v", "b"], "y"))
    assert (found.rows, found.sizes) == (2, (3, 2))
    found = inspect(df, resolve_columns(df, ["v"], "a"))
    assert found.sizes == (3,)
    found = inspect(df, resolve_columns(df, "b", None))
    assert found.sizes == ()


@pytest.mark.parametrize(
    ("query", "error", "expected"),
    [
        ("SELECT array(1,2,3) AS v UNION ALL SELECT array(1,2,3,4,5)", SchemaError, "'v'.*from 3 to 5"),
        ("SELECT array(1) AS v UNION ALL SELECT slice(array(1), 1, 0)", SchemaError, "'v'.*from 0 to 1"),
        ("SELECT cast(array() AS array<int>) AS v", SchemaError, "'v'.*at least one number"),
        ("SELECT cast(null AS array<int>) AS v", DataError, "'v'.*null in every row"),
        ("SELECT array(1) AS v WHERE rand() > 2", DataError, "at least one row, received none"),
    ],
)
def test_frames_that_cannot_be_trained_on(spark, query, error, expected) -> None:
    df = spark.sql(query)
    with pytest.raises(error, match=expected):
        inspect(df, resolve_columns(df, "v", None))


def test_ragged_labels(spark) -> None:
    df = spark.sql("SELECT 1 AS a, array(1) AS y UNION ALL SELECT 2, array(1, 2)")
    with pytest.raises(SchemaError, match=r"'y'.*from 1 to 2"):
        inspect(df, resolve_columns(df, "a", "y"))


@pytest.mark.parametrize(("option", "value"), [("workers", 0), ("seed", 2**63)])
def test_wrong_options(spark, option, value) -> None:
    with pytest.raises(OptionError, match=rf"{option}: .*received {value}"):
        plan(spark.range(3), **{"workers": 2, option: value})


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("sizes", "there"),
    [((0, 1, 7, 1000), (5, 0, 40)), ((3, 3, 3), (1,)), ((1,), (0, 0, 9, 1, 1)), ((0, 20), (0, 20))],
    ids=str,
)
def test_validation_rows_come_first_in_equal_shares_and_move_no_other(spark, sizes, there, shuffle) -> None:
    df = frame(spark, sizes)
    validation = df if there == sizes else frame(spark, there)  # the same frame twice is one's own affair
    alone = placed(plan(df, workers=3, shuffle=shuffle)[0], 3)
    rows, found = plan(df, workers=3, shuffle=shuffle, validation=validation)
    assert (found.rows, found.validation_rows) == (sum(sizes), sum(there))
    assert found.validation_partition_rows == tuple(there[: max(p for p, n in enumerate(there) if n) + 1])
    parts = placed(rows, 3)
    held_out = [[row_id for row_id in part if row_id < 0] for part in parts]
    assert [part[len(first) :] for part, first in zip(parts, held_out, strict=True)] == alone
    ids = [~row_id for row_id in chain(*held_out)]
    assert sorted(ids) == expected_ids(there)
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 1
    assert placed(plan(df, workers=3, shuffle=shuffle, validation=validation)[0], 3) == parts
    if not shuffle:
        assert [[~i for i in part] for part in held_out] == [
            expected_ids(there)[rank::3] for rank in range(3)
        ]


def test_counts_fit_where_adaptive_execution_cuts_two_frames_otherwise_than_one(spark) -> None:
    """With both in one plan the wished-for number of partitions is shared out between them."""
    wide = spark.range(0, 3000, 1, 2).select("id", *(F.rand(i).alias(f"c{i}") for i in range(12)))
    df, validation = wide.filter("id % 3 > 0").repartition("id"), wide.filter("id % 3 = 0").repartition("id")
    features = [f"c{i}" for i in range(12)]
    changed = {
        "spark.sql.adaptive.coalescePartitions.minPartitionSize": "1k",
        "spark.sql.adaptive.coalescePartitions.parallelismFirst": "true",
        "spark.sql.shuffle.partitions": "16",
    }
    for name, value in changed.items():
        spark.conf.set(name, value)
    try:
        counts_alone = inspect(df, resolve_columns(df, features, None)).partition_rows
        rows, found = plan(df, workers=3, features=features, validation=validation)
        parts = placed(rows, 3)
    finally:
        for name in changed:
            spark.conf.unset(name)
        spark.conf.set("spark.sql.shuffle.partitions", "4")
    assert counts_alone != found.partition_rows  # or this test would show nothing
    assert (found.rows, found.validation_rows) == (2000, 1000)
    assert sorted(row_id for row_id in chain(*parts) if row_id >= 0) == expected_ids(found.partition_rows)
    ids = sorted(~row_id for row_id in chain(*parts) if row_id < 0)
    assert ids == expected_ids(found.validation_partition_rows)
    assert sorted(sum(row_id >= 0 for row_id in part) for part in parts) == [666, 667, 667]
    assert sorted(sum(row_id < 0 for row_id in part) for part in parts) == [333, 333, 334]


def test_wrong_counts_of_validation_rows_lose_no_row(spark) -> None:
    df, there = frame(spark, (40, 9)), frame(spark, (7, 30))
    columns, source = resolve_columns(df, "id", None), Source(there, resolve_columns(there, "id", None))
    found = dataclasses.replace(inspect(df, columns, source), validation_partition_rows=(3,))
    rows = balanced(df, columns, found, workers=3, seed=1, shuffle=True, validation=source)
    parts = placed(rows, 3)
    assert sorted(~i for i in chain(*parts) if i < 0) == expected_ids((7, 30))
    assert [[i for i in part if i >= 0] for part in parts] == placed(plan(df, workers=3)[0], 3)


@pytest.mark.parametrize(
    ("query", "error", "expected"),
    [
        (
            "SELECT array(1, 2, 3) AS v",
            SchemaError,
            "'v': expected arrays of 2 numbers in the validation DataFrame as in the DataFrame, received 3",
        ),
        (
            "SELECT array(1) AS v UNION ALL SELECT array(1, 2)",
            SchemaError,
            "^the validation DataFrame, column 'v'.*from 1 to 2",
        ),
        (
            "SELECT cast(null AS array<int>) AS v",
            DataError,
            "^the validation DataFrame, column 'v'.*null in every row",
        ),
        (
            "SELECT array(1, 2) AS v WHERE rand() > 2",
            DataError,
            "^the validation DataFrame: expected at least one row, received none",
        ),
    ],
)
def test_frames_that_cannot_be_validated_on(spark, query, error, expected) -> None:
    with pytest.raises(error, match=expected):
        plan(spark.sql("SELECT array(1, 2) AS v"), workers=2, features="v", validation=spark.sql(query))
