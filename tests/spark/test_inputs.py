"""Every description of columns, from a DataFrame and from Parquet files that the workers read: the same minibatches."""

from __future__ import annotations

import io
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from fatwood.data import PartitionData
from fatwood.data.inputs import DecodedColumn, DenseColumn, ImageColumn, SequenceColumn
from fatwood.errors import DataError, OptionError, SchemaError
from fatwood.files import Parquet
from fatwood.spark.given import Selection, feed_of

pytestmark = pytest.mark.spark

PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20


def arrow_of(df) -> pa.Table:
    """`toArrow`, which only Spark 4 has."""
    return df.toArrow() if hasattr(df, "toArrow") else pa.Table.from_batches(df._collect_as_arrow())


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


ROWS = [
    ([[1.0, 2.0], [3.0, 4.0]], b"\x01\x02\x03\x04", png(PIXELS), "ab", [7], [[0.5, 1.5]], 3, [1.0, 0.0], 2.0),
    (
        [[5.0, 6.0], [7.0, 8.0]],
        b"\x05\x06\x07\x08",
        png(PIXELS[::-1]),
        "abcd",
        [8, 9, 10],
        [[2.5, 3.5], [4.5, 5.5], [6.5, 7.5]],
        4,
        [0.0, 1.0],
        1.0,
    ),
]
SCHEMA = (
    "nested array<array<double>>, raw binary, photo binary, text string, tokens array<int>, "
    "visits array<array<float>>, digit int, side array<double>, importance double"
)


def codes(text: str) -> list[int]:
    return [ord(letter) for letter in text]


FEATURES = {
    "grid": "nested",
    "raw": DenseColumn("raw", shape=(2, 2), divisor=255),
    "photo": ImageColumn("photo", size=(2, 2)),
    "text": DecodedColumn("text", codes, dtype="int64", steps=True),
    "length": DecodedColumn("text", len),
    "tokens": SequenceColumn("tokens"),
    "visits": SequenceColumn("visits"),
    "digit": DenseColumn("digit", shape=(), dtype="float32"),
}


@pytest.fixture(scope="module")
def df(spark):
    return spark.createDataFrame(ROWS, SCHEMA).coalesce(1)


@pytest.fixture(scope="module")
def files(df, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "parquet"
    df.write.parquet(str(folder))
    return Parquet(folder)


def minibatch(data, selection, directory, *, on_bad_row="error"):
    feed = feed_of(data, selection)
    opened = feed.opened(None)
    shares = opened.shares(workers=1, seed=1, shuffle=False)
    rows = arrow_of(shares.frame).to_batches() if shares.reader is None else shares.reader.batches(0)
    with PartitionData(
        rows,
        opened.layout,
        batch_size=5,
        seed=0,
        rank=0,
        first_epoch=0,
        epochs=2,
        shuffle=False,
        on_bad_row=on_bad_row,
        spill_directory=directory,
    ) as found:
        (first,) = found.epoch(0)
        (again,) = found.epoch(1)
        for name in first.features:
            assert torch.equal(first.features[name], again.features[name])
        return first, found.rows_skipped


@pytest.mark.parametrize("form", ["frame", "files", "arrow"])
def test_every_description_becomes_its_tensor(df, files, tmp_path, form) -> None:
    label = {"side": "side"}
    selection = Selection(features=FEATURES, label=label, weight="importance")
    data = {"frame": df, "files": files, "arrow": None}[form]
    if form == "arrow":
        data = arrow_of(df)
    batch, _ = minibatch(data, selection, tmp_path)
    found = batch.features
    assert list(found) == list(FEATURES)
    assert found["grid"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert torch.equal(found["raw"], torch.arange(1, 9).reshape(2, 2, 2) / 255)
    pixels = torch.from_numpy(np.stack([PIXELS, PIXELS[::-1]]).transpose(0, 3, 1, 2).copy())
    assert torch.equal(found["photo"], pixels.float() / 255)
    assert found["text"].tolist() == [[97, 98, 0, 0], [97, 98, 99, 100]]
    assert found["length"].tolist() == [2.0, 4.0]
    assert found["tokens"].tolist() == [[7, 0, 0], [8, 9, 10]]
    assert found["visits"].tolist() == [[[0.5, 1.5], [0, 0], [0, 0]], [[2.5, 3.5], [4.5, 5.5], [6.5, 7.5]]]
    assert found["digit"].tolist() == [3.0, 4.0]
    assert {name: str(tensor.dtype) for name, tensor in found.items()} == {
        **dict.fromkeys(FEATURES, "torch.float32"),
        "text": "torch.int64",
        "tokens": "torch.int64",
    }
    assert {name: mask.sum(1).tolist() for name, mask in batch.feature_mask.items()} == {
        "text": [2, 4],
        "tokens": [1, 3],
        "visits": [1, 3],
    }
    assert batch.label["side"].tolist() == [[1, 0], [0, 1]]
    assert batch.label_mask is None
    assert batch.weight.tolist() == [2.0, 1.0]


def test_labels_of_steps_and_inputs_by_position(df, files, tmp_path) -> None:
    selection = Selection(features=[["digit"], SequenceColumn("visits")], label=SequenceColumn("tokens"))
    for data in (df, files):
        feed = feed_of(data, selection)
        opened = feed.opened(None)
        shares = opened.shares(workers=1, seed=1, shuffle=False)
        rows = arrow_of(shares.frame).to_batches() if shares.reader is None else shares.reader.batches(0)
        checked, _ = opened.layout.check(
            pa.Table.from_batches(rows).combine_chunks().to_batches()[0], on_bad_row="error"
        )
        batch = opened.layout.batch(checked.copy())
        digit, visits = batch.features
        assert digit.tolist() == [[3], [4]]
        assert visits.shape == (2, 3, 2)
        assert batch.feature_mask[0] is None
        assert (
            batch.feature_mask[1].tolist() == batch.label_mask.tolist() == [[True, False, False], [True] * 3]
        )
        assert batch.label.tolist() == [[7, 0, 0], [8, 9, 10]]


@pytest.mark.parametrize("form", ["frame", "files"])
def test_bad_values_are_named_and_can_be_left_out(spark, tmp_path, form) -> None:
    rows = [ROWS[0], (*ROWS[1][:2], b"no image", *ROWS[1][3:])]
    bad = spark.createDataFrame(rows, SCHEMA).coalesce(1)
    where = "partition 0, row 1"
    if form == "files":
        bad.write.parquet(str(tmp_path / "bad"))
        bad, where = Parquet(tmp_path / "bad"), r"part-.*\.parquet, row 1"
    selection = Selection(features={"photo": ImageColumn("photo", size=(2, 2))}, label="digit")
    text = rf"{where}: column 'photo': cannot be decoded: UnidentifiedImageError: cannot identify"
    with pytest.raises(DataError, match=text):
        minibatch(bad, selection, tmp_path)
    batch, skipped = minibatch(bad, selection, tmp_path, on_bad_row="skip")
    assert (len(batch), skipped) == (1, 1)


def refused(value: str) -> float:
    if value == "ab":
        return math.pi
    text = "too long"
    raise ValueError(text)


@pytest.mark.parametrize(
    ("features", "error", "expected"),
    [
        (
            DecodedColumn("text", refused),
            DataError,
            "partition 0, row 1: column 'text': cannot be decoded: ValueError: too long",
        ),
        (
            DecodedColumn("text", codes, shape=(2,)),
            DataError,
            r"row 1: .*expected an array of shape \(2,\).*returned \(4,\)",
        ),
        (
            DecodedColumn("text", str.upper),
            DataError,
            r"row 0: .*expected numbers, the function returned str",
        ),
        (
            DenseColumn("nested", shape=(5,)),
            SchemaError,
            r"'nested': expected 5 numbers a row for the shape \(5,\), received 4",
        ),
        (DenseColumn("raw", shape=(3, 2)), SchemaError, r"'raw': expected 6 numbers a row.*received 4"),
        ("tokens", SchemaError, r"'tokens': expected arrays of one length[\s\S]*SequenceColumn\('tokens'\)"),
        ("text", SchemaError, r"'text': expected a number[\s\S]*Vocabulary"),
        (
            ImageColumn("text", size=(2, 2)),
            SchemaError,
            "'text': expected bytes of encoded images, received string",
        ),
        (SequenceColumn("digit"), SchemaError, "'digit': expected an array of numbers.*received int"),
        ({"a b": "digit"}, OptionError, "features: expected names of parameters as keys, received 'a b'"),
        (
            ["digit", SequenceColumn("tokens")],
            OptionError,
            r"features\[0\]: expected a list or a description",
        ),
        ({}, OptionError, "features: expected at least one column"),
        (None, OptionError, "features: expected the columns"),
    ],
)
def test_what_cannot_be_used_is_refused(df, tmp_path, features, error, expected) -> None:
    with pytest.raises(error, match=expected):
        minibatch(
            df,
            Selection(features={"x": features} if isinstance(features, DecodedColumn) else features),
            tmp_path,
        )


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: ImageColumn("photo", size=(2,)), "height and width"),
        (lambda: ImageColumn("photo", size=(2, 2), channels=2), "channels: expected 1, 3 or 4"),
        (lambda: DenseColumn("x", dtype="float64"), "dtype: expected one of 'float32', 'int64'"),
        (lambda: DenseColumn("x", shape=(0,)), "whole numbers of at least 1"),
        (lambda: DenseColumn("x", divisor=0), "divisor: expected a number above 0"),
        (lambda: DecodedColumn("x", 3), "expected a function"),
        (lambda: SequenceColumn(["x"]), "expected the name of a column"),
    ],
)
def test_descriptions_that_say_nothing_are_refused(make, expected) -> None:
    with pytest.raises(OptionError, match=expected):
        make()


def test_data_of_no_form_is_refused(df, spark) -> None:
    with pytest.raises(OptionError, match=r"^data: expected a DataFrame.*received builtins.list"):
        feed_of([1, 2], Selection(features="x"))
