"""Shards written from DataFrames: all rows, equal shares, equal bytes, and nothing left of a run that failed."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F

from fatwood import storage
from fatwood.errors import DataError, OptionError, SchemaError, StorageError
from fatwood.shards import MANIFEST, ShardSet, read_manifest, shard_name, validate_shards
from fatwood.spark import shards
from fatwood.spark.shards import write_shards
from fatwood.spark.shards_task import ShardOrder, write_shard

pytestmark = pytest.mark.spark


def ids(uri) -> list[list[int]]:
    """Of each shard, the ids in their order."""
    return [
        pq.read_table(Path(uri, file.name)).column("id").to_pylist() for file in read_manifest(str(uri)).files
    ]


def content(uri) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(uri).iterdir()}


def test_all_rows_in_equal_shares_however_the_frame_is_cut(spark, tmp_path) -> None:
    written = write_shards(spark.range(0, 100, 1, 3), tmp_path / "a", rows_per_shard=30)
    assert read_manifest(tmp_path / "a") == written
    assert [file.name for file in written.files] == [shard_name(number, 4) for number in range(4)]
    assert [file.rows for file in written.files] == [25] * 4
    for file in written.files:
        found = Path(tmp_path, "a", file.name).read_bytes()
        assert (file.bytes, file.sha256) == (len(found), hashlib.sha256(found).hexdigest())
    parts = ids(tmp_path / "a")
    assert sorted(chain(*parts)) == list(range(100))
    assert all(part != sorted(part) for part in parts)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "7")
    try:
        write_shards(spark.range(0, 100, 1, 7), tmp_path / "b", rows_per_shard=30)
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert set(content(tmp_path / "a")) == {MANIFEST, *(file.name for file in written.files)}
    write_shards(spark.range(100), tmp_path / "c", rows_per_shard=30, seed=1)
    assert ids(tmp_path / "c") != parts
    assert validate_shards(tmp_path / "a").ok


@pytest.mark.parametrize(
    ("rows", "per_shard", "expected"),
    [(10, 5, [5, 5]), (11, 5, [4, 4, 3]), (4, 1, [1] * 4), (3, 100, [3]), (1, 1, [1])],
    ids=["none over", "one over", "one a shard", "fewer than a shard", "one row"],
)
def test_in_the_order_of_the_frame(spark, tmp_path, rows, per_shard, expected) -> None:
    """Numbers of rows around those of a shard: whatever is left over is in one."""
    written = write_shards(spark.range(0, rows, 1, 2), tmp_path, rows_per_shard=per_shard, shuffle=False)
    assert [file.rows for file in written.files] == expected
    assert list(chain(*ids(tmp_path))) == list(range(rows))


def test_columns_of_all_kinds_come_back(spark, tmp_path) -> None:
    rows = [
        (1, Vectors.dense([1.0, 2.5]), "ä", bytearray(b"\x00\xff"), [[1.0], []], {"k": 1}, (1, "s"), None),
        (2, Vectors.sparse(2, {1: 3.0}), None, None, None, None, None, 2.5),
        (3, None, "", bytearray(), [], {}, (None, None), 0.0),
    ]
    schema = "a long, s string, b binary, n array<array<double>>, m map<string,int>, t struct<i:int,u:string>, d double"
    plain = spark.createDataFrame([(row[0], *row[2:]) for row in rows], schema)
    vectors = spark.createDataFrame([(row[0], row[1]) for row in rows if row[1] is not None], ["a", "v"])
    # A dot in a name, and the name that the row's number would have.
    df = plain.join(vectors, "a", "left").withColumn("x.y", F.col("a") * 2).withColumn("row_id", F.lit(7))
    df = df.orderBy("a").coalesce(1)
    written = write_shards(df, tmp_path, shuffle=False)
    assert written.schema.names == ["a", "s", "b", "n", "m", "t", "d", "v", "x.y", "row_id"]
    assert written.schema.field("v").type.value_type == pa.float32()
    found = pq.read_table(tmp_path).to_pydict()
    assert found["v"] == [[1.0, 2.5], [0.0, 3.0], None]
    assert found["s"] == ["ä", None, ""]
    assert found["b"] == [b"\x00\xff", None, b""]
    assert found["n"] == [[[1.0], []], None, []]
    assert found["m"] == [[("k", 1)], None, []]
    assert found["t"] == [{"i": 1, "u": "s"}, None, {"i": None, "u": None}]
    assert (found["d"], found["x.y"], found["row_id"]) == ([None, 2.5, 0.0], [2, 4, 6], [7] * 3)
    # Spark reads the directory, too, manifest or not.
    again = spark.read.parquet(str(tmp_path))
    assert [tuple(row) for row in again.select("a", "`x.y`").orderBy("a").collect()] == [
        (1, 2),
        (2, 4),
        (3, 6),
    ]
    chosen = write_shards(df, tmp_path / "chosen", columns=["d", "A"])
    assert chosen.schema.names == ["d", "a"]


def test_what_is_there_is_kept_or_replaced(spark, tmp_path) -> None:
    write_shards(spark.range(20), tmp_path, rows_per_shard=5)
    (tmp_path / "_notes").touch()
    (tmp_path / "_writing-1").touch()  # of a driver that was killed
    before = content(tmp_path)
    with pytest.raises(OptionError, match=r"expected an empty or a new directory, found 7 files") as caught:
        write_shards(spark.range(3), tmp_path)
    assert "overwrite=True" in str(caught.value.hint)
    assert content(tmp_path) == before
    written = write_shards(spark.range(3), tmp_path, overwrite=True)
    assert set(content(tmp_path)) == {MANIFEST, "_notes", "part-00000-of-00001.parquet"}
    assert (written.rows, sorted(chain(*ids(tmp_path)))) == (3, [0, 1, 2])
    (tmp_path / "mine.csv").write_text("a,b")
    with pytest.raises(OptionError, match=r"expected no files but shards, found 1 files \(mine.csv\)"):
        write_shards(spark.range(3), tmp_path, overwrite=True)
    assert "part-00000-of-00001.parquet" in content(tmp_path)


WRONG = {
    "rows_per_shard": (
        {"rows_per_shard": 0},
        OptionError,
        "rows_per_shard: expected a whole number of at least 1",
    ),
    "seed": ({"seed": 2**63}, OptionError, "seed: expected a 64-bit signed integer"),
    "one name": ({"columns": "id"}, OptionError, "columns: expected a list of names, received 'id'"),
    "no such column": ({"columns": ["idd"]}, SchemaError, "column 'idd'"),
    "twice": ({"columns": ["id", "id"]}, SchemaError, r"expected every name once, received \['id'\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_errors(spark, tmp_path, case) -> None:
    options, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        write_shards(spark.range(3), tmp_path / "shards", **options)
    assert not (tmp_path / "shards").exists()


def test_frames_that_cannot_be_written(spark, tmp_path) -> None:
    place = tmp_path / "shards"
    with pytest.raises(DataError, match="the DataFrame: expected at least one row, received none"):
        write_shards(spark.range(3).filter("id > 5"), place)
    with pytest.raises(SchemaError, match="column 'n': expected a type that Arrow knows, received void"):
        write_shards(spark.range(3).withColumn("n", F.lit(None)), place)
    nested = spark.createDataFrame([(Vectors.dense([1.0]),)], ["v"]).select(F.array("v").alias("vs"))
    with pytest.raises(SchemaError, match="column 'vs': expected a type that Arrow knows"):
        write_shards(nested, place)
    # Executors that see another directory than the driver: its memory is its own.
    with pytest.raises(StorageError, match="expected the driver's directory, the executor on") as caught:
        write_shards(spark.range(3), f"memory://{tmp_path.name}")
    assert "give a place that all machines see" in str(caught.value.hint)
    assert not place.exists()
    import fsspec

    assert fsspec.filesystem("memory").find(f"/{tmp_path.name}") == []


def test_a_failure_leaves_nothing(spark, tmp_path, monkeypatch) -> None:
    place = tmp_path / "shards"
    place.mkdir()
    in_the_way = place / shard_name(2, 4)
    in_the_way.mkdir()
    with pytest.raises(StorageError, match=f"cannot write {in_the_way}"):
        write_shards(spark.range(80), place, rows_per_shard=20)
    assert list(place.iterdir()) == [in_the_way]
    in_the_way.rmdir()

    def interrupted(shards: ShardSet) -> None:
        assert len(list(place.glob("part-*"))) == 4
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards(spark.range(80), place, rows_per_shard=20)
    assert content(place) == {}


def test_ctrl_c_while_tasks_run_leaves_nothing(spark, tmp_path, meanwhile) -> None:
    place = tmp_path / "shards"
    started = tmp_path / "started"

    @F.udf("long")
    def slow(number):
        if list(place.glob("_writing-*")):  # not when rows are counted
            started.touch()
            time.sleep(30)
        return number

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not started.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    meanwhile(interrupt)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        write_shards(spark.range(0, 8, 1, 2).select(slow("id").alias("id")), place)
    assert time.monotonic() - begin < 25
    assert content(place) == {}
    assert list(spark.sparkContext.statusTracker().getActiveJobsIds()) == []


def test_other_rows_the_second_time_are_an_error(spark, tmp_path) -> None:
    counter = tmp_path / "readings"
    counter.mkdir()

    @F.udf("boolean")
    def fewer(number):
        (counter / f"{number}-{time.monotonic_ns()}").touch()
        return number < 8 or len(list(counter.glob(f"{number}-*"))) == 1

    df = spark.range(0, 10, 1, 1).filter(fewer.asNondeterministic()("id"))
    with pytest.raises(DataError, match="expected the 10 rows that were counted, 8 rows") as caught:
        write_shards(df, tmp_path / "shards", rows_per_shard=5)
    assert "df.persist()" in str(caught.value.hint)
    assert content(tmp_path / "shards") == {}


def batches(rows: int, *cuts: int) -> list[pa.RecordBatch]:
    """Rows of 784 floats and a text that may be null, cut at these places."""
    rng = np.random.default_rng(0)
    pixels = pa.FixedSizeListArray.from_arrays(rng.random(rows * 784, dtype=np.float32), 784)
    texts = pa.array([None if i % 5 == 0 else "x" * (i % 9) for i in range(rows)])
    whole = pa.record_batch({"pixels": pixels.cast(pa.list_(pa.float32())), "text": texts})
    places = [0, *cuts, rows]
    return [whole.slice(a, b - a) for a, b in pairwise(places)]


@pytest.fixture
def order(tmp_path) -> ShardOrder:
    """As the driver gives it, with the mark that it writes."""
    (tmp_path / "_writing-1").touch()
    return ShardOrder(folder=str(tmp_path), mark="_writing-1", shards=1, names=("pixels", "text"))


def test_a_task_that_is_started_twice_writes_the_same_bytes(order, tmp_path) -> None:
    place = tmp_path / shard_name(0, 1)
    written = []
    for cuts in [(), (1, 700, 5001), tuple(range(10, 6000, 10))]:
        (report,) = write_shard(iter(batches(6000, *cuts)), order)
        found = place.read_bytes()
        written.append(found)
        digest = hashlib.sha256(found).hexdigest()
        expected = {"shard": 0, "rows": 6000, "bytes": len(found), "sha256": digest, "error": None}
        assert report.to_pylist() == [expected]
    assert written[0] == written[1] == written[2]
    assert pq.read_table(place).equals(pa.Table.from_batches(batches(6000)))
    groups = pq.read_metadata(place)
    sizes = [groups.row_group(group).num_rows for group in range(groups.num_row_groups)]
    assert sizes == [2624, 2624, 752]  # of 3,136 bytes each: 8 MiB and less
    small = pa.record_batch({"x": np.arange(25_000)})
    list(write_shard(iter([small]), replace(order, names=("y",))))
    assert pq.read_schema(place).names == ["y"]
    groups = pq.read_metadata(place)
    assert [groups.row_group(group).num_rows for group in range(3)] == [9984, 9984, 5032]


def test_a_task_publishes_nothing_when_the_run_is_over(order, tmp_path, monkeypatch) -> None:
    mark = tmp_path / order.mark

    def rows_and_then(end):
        yield from batches(100, 50)
        end()

    with pytest.raises(StorageError, match="the run that this task writes for is over"):
        list(write_shard(rows_and_then(mark.unlink), order))
    assert list(tmp_path.iterdir()) == []
    (report,) = write_shard(iter(batches(10)), order)
    assert "expected the driver's directory" in report.to_pylist()[0]["error"]
    assert list(tmp_path.iterdir()) == []

    publish = storage.write_atomic

    def and_then_over(uri, write) -> None:
        publish(uri, write)
        mark.unlink()

    monkeypatch.setattr(storage, "write_atomic", and_then_over)
    mark.touch()
    with pytest.raises(StorageError, match="is over"):
        list(write_shard(iter(batches(10)), order))
    assert list(tmp_path.iterdir()) == []
    mark.touch()
    (tmp_path / MANIFEST).touch()  # the run was finished, by another attempt of this task
    assert len(list(write_shard(iter(batches(10)), order))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, shard_name(0, 1)}
