from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from fatwood.data import Batch, Layout, each, tensors_of
from fatwood.data.batches import BatchSchema
from fatwood.errors import DataError, OptionError, SchemaError, UserCodeError
from fatwood.files import Files
from fatwood.spark.batches import _agreed, _pack, count_files, rows_of_rdd
from fatwood.spark.streams import unpacked

pytestmark = pytest.mark.spark


def single(rows: int, start: int) -> Batch:
    numbers = torch.arange(start, start + rows)
    return Batch(features=torch.stack([numbers, -numbers], 1).double(), label=numbers)


def several(rows: int, start: int) -> Batch:
    """By position and by name, of all types."""
    numbers = torch.arange(start, start + rows)
    image = (numbers[:, None, None] % 256).expand(rows, 2, 3).to(torch.uint8)
    label = {"class": numbers.to(torch.uint8), "value": numbers[:, None].half()}
    return Batch(features=(image, numbers.int()), label=label, weight=numbers.double())


def masked(rows: int, start: int) -> Batch:
    """Sequences as long as their last digit says, plus one."""
    lengths = torch.arange(start, start + rows) % 10 + 1
    mask = torch.arange(int(lengths.max()) if rows else 0) < lengths[:, None]
    steps = torch.arange(start, start + rows)[:, None] * mask
    return Batch(features=steps[:, :, None].float(), label=steps, feature_mask=mask, label_mask=mask)


def values(batch: Batch, row: int) -> dict[Any, Any]:
    found = {}
    for group, tensors, masks in (
        ("features", batch.features, batch.feature_mask),
        ("label", batch.label, batch.label_mask),
        ("weight", batch.weight, None),
    ):
        for key, tensor in each(tensors):
            mask = dict(each(masks)).get(key)
            found[group, key] = (tensor[row] if mask is None else tensor[row][mask[row]]).tolist()
    return found


SIZES = [[100, 0, 64, 1], [0], [40, 1, 10]]
"""Rows of the minibatches of each partition."""


@pytest.mark.parametrize("make", [single, several, masked])
def test_an_rdd_of_minibatches_is_its_rows(spark, make) -> None:
    plan = [
        [(rows, 1000 * p + sum(sizes[:i])) for i, rows in enumerate(sizes)] for p, sizes in enumerate(SIZES)
    ]
    rdd = spark.sparkContext.parallelize(range(3), 3).flatMap(lambda p: [make(*of) for of in plan[p]])
    df, schema, partition_rows = rows_of_rdd(rdd, spark)
    assert partition_rows == (165, 0, 51)
    layout = Layout(features=schema.features, label=schema.label, weight=schema.weight)

    def described(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            batch, _ = tensors_of(rows, layout)
            text = [str(values(batch, row)) for row in range(len(batch))]
            yield rows.select(["row_id", "id", "p"]).append_column("text", pa.array(text))

    placed = df.selectExpr("*", "monotonically_increasing_id() as id", "spark_partition_id() as p")
    answers = placed.mapInArrow(described, "row_id long, id long, p int, text string").collect()
    assert [row.row_id for row in answers] == [*range(165), *range(2 << 33, (2 << 33) + 51)]
    assert [row.id for row in answers] == [row.row_id for row in answers]
    assert [row.p for row in answers] == [0] * 165 + [2] * 51
    wanted = [make(1, start + row) for of in plan for rows, start in of for row in range(rows)]
    assert [row.text for row in answers] == [str(values(batch, 0)) for batch in wanted]


def test_minibatches_that_cannot_be_used_are_found_before_the_fit(spark) -> None:
    context = spark.sparkContext

    def found(partitions: list[list[Any]], error: type[Exception], message: str) -> None:
        rdd = context.parallelize(range(len(partitions)), len(partitions)).flatMap(lambda p: partitions[p])
        with pytest.raises(error, match=message):
            rows_of_rdd(rdd, spark)

    good = single(3, 0)
    found(
        [[good], [good, (1, 2)]],
        DataError,
        r"^partition 1, element 1: expected a .*Batch, received builtins.tuple",
    )
    found(
        [[good, Batch(good.features)]],
        SchemaError,
        r"^partition 0, element 1: label: expected one as .* none",
    )
    found(
        [[good], [several(2, 0)]],
        SchemaError,
        r"^partition 1: features: expected a single tensor .* 2 tensors by",
    )
    found([[single(0, 0)], []], DataError, "the RDD: expected at least one row, received none")
    fails = context.parallelize([1], 1).map(lambda number: number // 0)
    with pytest.raises(UserCodeError, match="ZeroDivisionError: "):
        rows_of_rdd(fails, spark)
    with pytest.raises(
        OptionError, match="expected an RDD of Batch of the running Spark context, received list"
    ):
        rows_of_rdd([good], spark)  # type: ignore[arg-type]


def test_tensors_that_executors_found_on_devices_are_told_on_the_driver() -> None:
    fact = {"rows": 3, "schema": BatchSchema.of(single(3, 0)).to_json(), "devices": ["cuda:0"]}
    with pytest.warns(UserWarning, match="the tensors of a Batch are on cuda:0"):
        _agreed("the RDD", [("partition 0", fact)])


def test_streams_are_of_bounded_size() -> None:
    elements = [single(rows, 0) for rows in [1] * 500 + [1000] + [2, 0, 3]]
    streams = [stream for (stream,) in _pack(0, elements, BatchSchema.of(elements[0]), 4096)]
    assert max(map(len, streams)) < 4096 + 1024
    assert len(streams) < 2 * 1505 * 24 // 4096  # a row has 24 bytes and the offset of its list
    rows = pa.Table.from_batches(unpacked([pa.record_batch({"stream": streams})]))
    assert rows["row_id"].to_pylist() == list(range(1505))
    assert rows["label"].to_pylist() == [*[0] * 500, *range(1000), 0, 1, 0, 1, 2]


def load(path: str, filesystem: Any) -> Batch:
    with filesystem.open(path, "rb") as file:
        numbers = torch.from_numpy(np.load(file))
    if len(numbers) == 7:
        raise RuntimeError("seven")
    return Batch(features=numbers[:, None], label=numbers)


def test_files_are_counted_in_one_job(spark, tmp_path) -> None:
    sizes = [5, 0, 9, 2, 1, 3]
    for number, rows in enumerate(sizes):
        np.save(tmp_path / f"{number}.npy", np.arange(float(rows)))
    files = Files(tmp_path, load)
    uris = files.expand()
    rows, schema = count_files(spark, files, uris)
    assert rows == tuple(sizes)
    assert [(field.name, field.dtype, field.shape) for field in schema.fields] == [
        ("features", "float32", (1,)),
        ("label", "float32", ()),
    ]
    np.save(tmp_path / "7.npy", np.arange(7.0))
    with pytest.raises(
        UserCodeError, match=r"^RuntimeError: seven\nraised by the loader load, given .*/7.npy\non host"
    ) as raised:
        count_files(spark, files, files.expand())
    assert 'raise RuntimeError("seven")' in str(raised.value)
    np.save(tmp_path / "7.npy", np.zeros((2, 2)))
    with pytest.raises(
        SchemaError, match=r"/7.npy: features: expected rows of float32 of shape \(1,\) .* \(1, 2\)"
    ):
        count_files(spark, files, files.expand())
    with pytest.raises(DataError, match="the files: expected at least one row, received none"):
        count_files(spark, files, [uris[1]])
