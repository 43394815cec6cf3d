"""Shard directories without Spark: the manifest, what other readers see, and what validation finds and repairs."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fatwood import storage
from fatwood.errors import OptionError, SchemaError, StorageError
from fatwood.shards import (
    MANIFEST,
    ShardFile,
    ShardSet,
    read_manifest,
    shard_name,
    validate_shards,
    write_manifest,
)

ROWS = (5, 4, 4)


def tables():
    """Three tables of a number, a list and a label."""
    start = 0
    for rows in ROWS:
        ids = np.arange(start, start + rows)
        lists = [[float(i), float(i) / 2] for i in ids]
        yield pa.table(
            {"id": ids, "x": pa.array(lists, pa.list_(pa.float32())), "y": (ids % 3).astype(np.int32)}
        )
        start += rows


def write(uri: str, given) -> ShardSet:
    """What `write_shards` writes, of these tables."""
    files, schema = [], None
    given = list(given)
    for number, table in enumerate(given):
        schema = schema or table.schema
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=2, write_page_checksum=True)
        content = sink.getvalue()
        name = shard_name(number, len(given))
        storage.write_atomic(storage.join(uri, name), lambda file, content=content: file.write(content))
        digest = hashlib.sha256(content).hexdigest()
        files.append(ShardFile(name=name, rows=table.num_rows, bytes=len(content), sha256=digest))
    shards = ShardSet(uri=uri, files=tuple(files), schema=schema)
    write_manifest(shards)
    return shards


@pytest.fixture
def uri(tmp_path) -> str:
    place = str(tmp_path / "shards")
    write(place, tables())
    return place


@pytest.fixture(params=["local", "memory"])
def any_uri(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "shards")
        return
    import fsspec

    place = f"memory://{tmp_path.name}/shards"
    yield place
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def shard(uri: str, number: int) -> Path:
    return Path(uri, shard_name(number, len(ROWS)))


def test_a_manifest_says_what_was_written(any_uri) -> None:
    written = write(any_uri, tables())
    found = read_manifest(any_uri)
    assert found == written
    assert (found.rows, found.bytes) == (13, sum(file.bytes for file in written.files))
    assert found.schema == next(tables()).schema
    assert str(found).splitlines()[0] == f"13 rows in 3 files (0.0 MB) at {any_uri}"
    assert "  x: list<" in str(found)
    text = json.loads(storage.read_bytes(storage.join(any_uri, MANIFEST)))
    assert [column["name"] for column in text["columns"]] == ["id", "x", "y"]
    assert text["columns"][2]["type"] == "int32"
    first = storage.read_bytes(storage.join(any_uri, MANIFEST))
    write_manifest(found)
    assert storage.read_bytes(storage.join(any_uri, MANIFEST)) == first
    assert validate_shards(any_uri, label="y", classes=3).ok


def test_names_sort_as_numbers_do() -> None:
    assert shard_name(0, 12) == "part-00000-of-00012.parquet"
    names = [shard_name(number, 200_000) for number in (0, 9, 10, 99_999, 100_000, 199_999)]
    assert names == sorted(names)


def test_others_read_it(uri) -> None:
    """Also with what was set aside: readers leave out names that begin with an underscore."""
    shard(uri, 1).write_bytes(b"no Parquet")
    validate_shards(uri, repair="set_aside")
    expected = pa.concat_tables([table for i, table in enumerate(tables()) if i != 1])
    assert pq.read_table(uri).equals(expected)
    pd.testing.assert_frame_equal(pd.read_parquet(uri), expected.to_pandas())


BROKEN = {
    "no JSON": (lambda m: b"{", "expected JSON"),
    "another format": (lambda m: m | {"format": "x"}, 'expected "format": "fatwood-shards"'),
    "a list": (lambda m: [m], 'expected "format"'),
    "newer": (lambda m: m | {"format_version": 2}, "received 2\nhint: a newer fatwood wrote it"),
    "version as text": (lambda m: m | {"format_version": "1"}, "format_version: expected a whole number"),
    "other sum": (lambda m: m | {"rows": 12}, "rows: expected 13, the sum over the files, received 12"),
    "no files": (lambda m: m | {"files": None}, "files: expected a list"),
    "a file of text": (lambda m: m | {"files": ["a"]}, r"files\[0\]: expected an object"),
    "a path": (lambda m: changed(m, name="../../etc/passwd"), r"files\[1\].name: expected a plain file name"),
    "a name twice": (lambda m: changed(m, name=m["files"][0]["name"]), "expected every name once"),
    "negative rows": (
        lambda m: changed(m, rows=-4),
        r"files\[1\].rows: expected a whole number of at least 0",
    ),
    "bytes as a fraction": (lambda m: changed(m, bytes=1.5), r"files\[1\].bytes: expected"),
    "half a digest": (lambda m: changed(m, sha256="ab" * 16), r"files\[1\].sha256: expected 64"),
    "no schema": (lambda m: m | {"arrow_schema": None}, "arrow_schema: expected an Arrow schema in base64"),
    "half a schema": (lambda m: m | {"arrow_schema": m["arrow_schema"][:40]}, "arrow_schema: expected"),
    "other columns": (lambda m: m | {"columns": m["columns"][:2]}, "columns: expected those of arrow_schema"),
}


def changed(manifest, **fields):
    files = [dict(file) for file in manifest["files"]]
    files[1].update(fields)
    return manifest | {"files": files}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_manifest_is_an_error(uri, case) -> None:
    change, message = BROKEN[case]
    place = Path(uri, MANIFEST)
    broken = change(json.loads(place.read_bytes()))
    place.write_bytes(broken if isinstance(broken, bytes) else json.dumps(broken).encode())
    with pytest.raises(StorageError, match=message) as caught:
        read_manifest(uri)
    assert str(place) in str(caught.value)


def test_no_manifest_is_an_error_that_says_why(tmp_path) -> None:
    with pytest.raises(StorageError, match=r"expected a shard directory with _manifest.json") as caught:
        read_manifest(tmp_path)
    assert "broken off leaves no manifest" in str(caught.value.hint)


def test_each_kind_of_bad_file_is_found(uri, caplog) -> None:
    kinds = {}
    before = {path.name: path.read_bytes() for path in Path(uri).iterdir()}

    def found() -> tuple[str, str, str]:
        report = validate_shards(uri)
        (problem,) = report.file_problems
        assert not report.ok
        assert f"  {problem.name}: {problem.text}" in str(report)
        for path in Path(uri).iterdir():
            path.unlink()
        for name, content in before.items():
            Path(uri, name).write_bytes(content)
        kinds[problem.kind] = problem.rows_lost
        return problem.kind, problem.name, problem.text

    middle = shard(uri, 1)
    content = middle.read_bytes()
    middle.unlink()
    assert found() == ("missing", middle.name, "expected the file, found none")
    middle.write_bytes(content[:-7])
    size = len(content)
    assert found() == ("truncated", middle.name, f"expected {size} bytes, found {size - 7}")
    middle.write_bytes(content + b"!")
    assert found() == ("altered", middle.name, f"expected {size} bytes, found {size + 1}")
    middle.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    assert found()[0] == "altered"
    shutil.copy(middle, Path(uri, "part-00003-of-00003.parquet"))
    assert found()[:2] == ("unknown", "part-00003-of-00003.parquet")
    lie(uri, rows=5)
    assert found() == ("rows", middle.name, "expected 5 rows, found 4")
    table = pq.read_table(middle).rename_columns(["id", "x", "z"])
    pq.write_table(table, middle)
    lie(uri, content=middle.read_bytes())
    assert (
        found()[2]
        == "other columns than in the manifest: expected pyarrow.Field<y: int32>, found pyarrow.Field<z: int32>"
    )
    middle.write_bytes(b"PAR1")
    lie(uri, content=b"PAR1")
    assert found()[0] == "unreadable"
    assert kinds.keys() == {"missing", "truncated", "altered", "unknown", "rows", "schema", "unreadable"}
    assert validate_shards(uri).ok
    assert not caplog.records


def lie(uri: str, *, content: bytes | None = None, **fields) -> None:
    """A manifest that says of the second file what is given."""
    if content is not None:
        fields |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    place = Path(uri, MANIFEST)
    manifest = changed(json.loads(place.read_bytes()), **fields)
    manifest["rows"] = sum(file["rows"] for file in manifest["files"])
    place.write_text(json.dumps(manifest))


def test_bad_files_are_set_aside(any_uri, caplog) -> None:
    write(any_uri, tables())
    bad = storage.join(any_uri, shard_name(1, 3))
    storage.write_atomic(bad, lambda file: file.write(b"short"))
    storage.delete(storage.join(any_uri, shard_name(2, 3)))
    storage.write_atomic(storage.join(any_uri, "part-x.parquet"), lambda file: file.write(b"x"))
    with caplog.at_level(logging.WARNING, "fatwood.shards"):
        report = validate_shards(any_uri, repair="set_aside")
    assert [problem.kind for problem in report.file_problems] == ["truncated", "missing", "unknown"]
    assert report.set_aside == (shard_name(1, 3), "part-x.parquet")
    assert (report.rows, report.rows_set_aside, report.ok) == (13, 8, False)
    assert "set aside: 2 files; 8 rows fewer to train on" in str(report)
    assert caplog.messages == [f"{any_uri}: 3 bad files set aside, 8 rows of 13 fewer to train on"]
    left = read_manifest(any_uri)
    assert (left.rows, [file.name for file in left.files]) == (5, [shard_name(0, 3)])
    aside = storage.join(any_uri, "_set-aside")
    assert storage.list_folder(aside) == [shard_name(1, 3), "part-x.parquet"]
    assert storage.read_bytes(storage.join(aside, shard_name(1, 3))) == b"short"
    assert storage.list_folder(any_uri) == [MANIFEST, shard_name(0, 3)]
    again = validate_shards(any_uri, repair="set_aside")
    assert again.ok
    assert (again.set_aside, again.rows_set_aside) == ((), 0)


def test_bad_values_are_found_by_file_and_row(tmp_path) -> None:
    nan, inf = math.nan, math.inf
    good = {"x": [[1.0, 2.0]] * 4, "n": [[[1.0], []]] * 4, "s": [{"a": 1.0, "b": 1}] * 4, "y": [0, 1, 2, 2]}
    bad = {
        "x": [[1.0, None], None, [nan, nan], [inf, nan]],
        "n": [[[1.0]], [None, [2.0]], [[1.0], [-inf]], [[]]],
        "s": [{"a": nan, "b": 1}, None, {"a": 1.0, "b": None}, {"a": 1.0, "b": 2}],
        "y": [3, None, -1, 0],
    }
    kinds = {
        "x": pa.list_(pa.float32()),
        "n": pa.list_(pa.list_(pa.float64())),
        "s": pa.struct({"a": pa.float64(), "b": pa.int64()}),
        "y": pa.int64(),
    }
    schema = pa.schema(list(kinds.items()))
    uri = str(tmp_path / "shards")
    write(uri, [pa.table(good, schema), pa.table(bad, schema)])
    name = shard_name(1, 2)
    report = validate_shards(uri, label="y", classes=3, repair="set_aside")
    found = {
        (problem.column, problem.kind): (problem.rows, [row for _, row in problem.first])
        for problem in report.value_problems
    }
    assert found == {
        ("x", "null"): (2, [0, 1]),
        ("x", "NaN"): (2, [2, 3]),
        ("x", "infinite"): (1, [3]),
        ("n", "null"): (1, [1]),
        ("n", "infinite"): (1, [2]),
        ("s", "NaN"): (1, [0]),
        ("s", "null"): (2, [1, 2]),
        ("y", "null"): (1, [1]),
        ("y", "no class"): (2, [0, 2]),
    }
    assert {place for problem in report.value_problems for place, _ in problem.first} == {name}
    assert f"  column 'y': no class in 2 rows ({name} row 0, {name} row 2)" in str(report)
    assert (report.set_aside, report.ok) == ((), False)  # bad values move no file
    assert read_manifest(uri).rows == 8
    only = validate_shards(uri, columns=["s"], label="y", classes=4)
    assert {problem.column for problem in only.value_problems} == {"s", "y"}
    assert ("y", "no class", 1) in {(p.column, p.kind, p.rows) for p in only.value_problems}


def test_many_bad_values_are_counted_and_the_first_told(tmp_path) -> None:
    uri = str(tmp_path / "shards")
    table = pa.table({"x": pa.array([math.nan] * 3000), "y": pa.array([1.5, 9.0, 0.0] * 1000)})
    write(uri, [table, table])
    x, y = validate_shards(uri, label="y", classes=9).value_problems
    name = shard_name(0, 2)
    assert (x.rows, x.first) == (6000, tuple((name, row) for row in range(5)))
    assert (y.rows, y.first) == (4000, tuple((name, row) for row in (0, 1, 3, 4, 6)))


WRONG = {
    "repair": ({"repair": "delete"}, OptionError, "repair: expected 'report' or 'set_aside'"),
    "label alone": ({"label": "y"}, OptionError, "expected label and classes together"),
    "classes alone": ({"classes": 3}, OptionError, "expected label and classes together"),
    "no classes": ({"label": "y", "classes": 0}, OptionError, "classes: expected a whole number"),
    "no such column": ({"columns": ["z"]}, SchemaError, "column 'z': expected a column of the shards"),
    "no such label": ({"label": "z", "classes": 3}, SchemaError, "column 'z'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_errors(uri, case) -> None:
    options, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        validate_shards(uri, **options)


def test_a_label_of_text_is_an_error(tmp_path) -> None:
    uri = str(tmp_path / "shards")
    write(uri, [pa.table({"y": ["a"]})])
    with pytest.raises(SchemaError, match="label 'y': expected numbers, received string"):
        validate_shards(uri, label="y", classes=3)
