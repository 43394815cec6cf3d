"""Rows of Parquet files dealt out to workers: each once, in equal shares, and read as they are."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood import pieces, storage
from fatwood.errors import DamagedError, OptionError, StorageError
from fatwood.pieces import (
    ROW_BITS,
    Piece,
    divide,
    divided,
    parquet_files,
    parquet_schema,
    read_piece,
)
from fatwood.shards import ShardFile, ShardSet, write_manifest

SIZES = st.lists(st.integers(0, 40), max_size=12)


@settings(deadline=None)
@given(SIZES, st.integers(1, 9), st.booleans(), st.integers())
def test_every_row_once_in_equal_shares(sizes, workers, shuffle, seed) -> None:
    shares = divide(sizes, workers, shuffle=shuffle, seed=seed)
    rows = Counter(
        (span.file, row) for share in shares for span in share for row in range(span.start, span.stop)
    )
    assert rows == Counter((file, row) for file, size in enumerate(sizes) for row in range(size))
    counts = [sum(span.stop - span.start for span in share) for share in shares]
    assert len(counts) == workers
    assert max(counts) - min(counts) <= 1
    spans = [span for share in shares for span in share]
    assert all(span.start < span.stop for span in spans)
    # As few runs as there can be: a file is cut only where a share ends.
    assert len(spans) <= sum(size > 0 for size in sizes) + workers - 1
    if not shuffle:
        assert spans == sorted(spans)
    assert divide(sizes, workers, shuffle=shuffle, seed=seed) == shares


def test_a_share_is_a_run_of_files() -> None:
    assert divide([3, 0, 5, 2], 3, shuffle=False, seed=0) == [
        [(0, 0, 3)],
        [(2, 0, 3)],
        [(2, 3, 5), (3, 0, 2)],
    ]
    assert divide([], 2, shuffle=True, seed=0) == [[], []]
    assert divide([1], 3, shuffle=True, seed=0) == [[], [], [(0, 0, 1)]]


def test_the_order_of_the_files_is_drawn_from_the_seed() -> None:
    orders = {
        tuple(span.file for span in divide([1] * 9, 1, shuffle=True, seed=seed)[0]) for seed in range(20)
    }
    assert len(orders) == 20


def test_wrong_options_are_errors() -> None:
    with pytest.raises(OptionError, match="workers: expected at least 1, received 0"):
        divide([1], 0, shuffle=True, seed=0)
    with pytest.raises(OptionError, match="at least 0 rows in every file, received -1"):
        divide([3, -1], 2, shuffle=True, seed=0)


def table(start: int, rows: int) -> pa.Table:
    ids = np.arange(start, start + rows)
    lists = pa.array([[float(i)] * (i % 4) for i in ids], pa.list_(pa.float32()))
    return pa.table({"id": ids, "x": lists, "x.y": ids * 2, "note": [f"row {i}" for i in ids]})


def folder(place: str, sizes, *, group: int = 7) -> None:
    start = 0
    for number, rows in enumerate(sizes):
        write(storage.join(place, f"f-{number}.parquet"), table(start, rows), group)
        start += rows


def write(uri: str, content: pa.Table, group: int) -> None:
    storage.write_atomic(uri, lambda file: pq.write_table(content, file, row_group_size=group))


def rows_of(piece: Piece, columns, **options) -> list[dict]:
    return [row for batch in read_piece(piece, columns, **options) for row in batch.to_pylist()]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 9))
def test_all_pieces_together_are_the_table(tmp_path_factory, sizes, workers, group) -> None:
    place = str(tmp_path_factory.mktemp("pieces"))
    folder(place, sizes, group=group)
    files = parquet_files(place)
    assert [rows for _, rows in files] == sizes
    shares = divided(files, workers, shuffle=True, seed=3)
    found = [row for share in shares for piece in share for row in rows_of(piece, ["x", "id"], batch_rows=5)]
    found.sort(key=lambda row: row["row_id"])
    expected = [row for start, rows in starts(sizes) for row in table(start, rows).to_pylist()]
    assert [(row["x"], row["id"]) for row in found] == [(row["x"], row["id"]) for row in expected]
    ids = [file << ROW_BITS | row for file, rows in enumerate(sizes) for row in range(rows)]
    assert [row["row_id"] for row in found] == ids


def starts(sizes):
    return [(sum(sizes[:number]), rows) for number, rows in enumerate(sizes)]


def test_a_piece_reads_its_row_groups_and_columns_only(tmp_path, monkeypatch) -> None:
    folder(str(tmp_path), [40], group=10)
    asked = []

    class Spied(pq.ParquetFile):
        def iter_batches(self, *args, **options):
            asked.append((options["row_groups"], options["columns"]))
            return super().iter_batches(*args, **options)

    monkeypatch.setattr(pq, "ParquetFile", Spied)
    piece = Piece(uri=str(tmp_path / "f-0.parquet"), file=5, start=12, stop=25)
    (first, *others) = read_piece(piece, ["x.y"], batch_rows=4)
    assert asked == [([1, 2], ["x.y"])]
    batches = [first, *others]
    assert first.schema == pa.schema([("x.y", pa.int64()), ("row_id", pa.int64())])
    assert [row["x.y"] for batch in batches for row in batch.to_pylist()] == list(range(24, 50, 2))
    assert batches[0].column("row_id")[0].as_py() == 5 << ROW_BITS | 12
    assert max(batch.num_rows for batch in batches) <= 4
    # A name that is the beginning of another is that column alone.
    assert list(rows_of(piece, ["x"])[0]) == ["x", "row_id"]
    assert rows_of(Piece(uri=piece.uri, file=0, start=5, stop=5), ["x"]) == []


def test_wide_rows_make_small_batches(tmp_path) -> None:
    rng = np.random.default_rng(0)
    rows = pa.array(list(rng.standard_normal((40, 100_000), dtype=np.float32)))
    path = tmp_path / "wide.parquet"
    pq.write_table(pa.table({"x": rows}), path)
    batches = read_piece(Piece(uri=str(path), file=0, start=0, stop=40), ["x"])
    assert max(batch.num_rows for batch in batches) <= 11  # 4 MiB of rows of 400 kB


def test_files_are_found_by_folder_file_and_pattern(tmp_path) -> None:
    place = str(tmp_path)
    folder(place, [3, 0, 2])
    for name in ("_SUCCESS", ".f-0.parquet.crc"):
        Path(place, name).write_bytes(b"")
    Path(place, "deeper").mkdir()
    names = [f"{place}/f-{number}.parquet" for number in range(3)]
    everything = list(zip(names, (3, 0, 2), strict=True))
    assert parquet_files(place) == parquet_files(tmp_path) == parquet_files(place + "/") == everything
    assert parquet_files(f"{place}/f-*.parquet") == everything
    assert parquet_files(f"{place}/f-[12].parquet") == everything[1:]
    assert parquet_files(names[2]) == everything[2:]
    assert parquet_files(os.path.relpath(names[2])) == everything[2:]
    assert parquet_schema(names[0]).equals(table(0, 1).schema)


def test_memory_works_too() -> None:
    import fsspec

    place = "memory://test-pieces"
    try:
        folder(place, [3, 2])
        files = [(f"{place}/f-0.parquet", 3), (f"{place}/f-1.parquet", 2)]
        assert parquet_files(place) == parquet_files(f"{place}/*") == files
        assert parquet_files(files[1][0]) == files[1:]
        (share,) = divided(files, 1, shuffle=False, seed=0)
        assert [row["id"] for piece in share for row in rows_of(piece, ["id"])] == [0, 1, 2, 3, 4]
    finally:
        fsspec.filesystem("memory").rm("/test-pieces", recursive=True)


def test_a_manifest_is_believed(tmp_path, monkeypatch) -> None:
    place = str(tmp_path)
    folder(place, [3, 2])
    files = tuple(
        ShardFile(
            name=f"f-{number}.parquet",
            rows=rows,
            bytes=(tmp_path / f"f-{number}.parquet").stat().st_size,
            sha256="0" * 64,
        )
        for number, rows in enumerate((3, 2))
    )
    write_manifest(ShardSet(uri=place, files=files[:1], schema=table(0, 1).schema))
    monkeypatch.setattr(pieces, "open_parquet", None)  # no footer is read
    assert parquet_files(place) == [(f"{place}/f-0.parquet", 3)]
    other = replace(files[0], bytes=files[0].bytes + 1)
    write_manifest(ShardSet(uri=place, files=(other,), schema=table(0, 1).schema))
    with pytest.raises(
        DamagedError, match=r"f-0\.parquet: expected \d+ bytes, as the manifest says, received \d+ bytes"
    ):
        parquet_files(place)


def test_nothing_there_is_an_error(tmp_path) -> None:
    for place in (tmp_path, tmp_path / "none", f"{tmp_path}/*.parquet", f"{tmp_path}/none/*"):
        with pytest.raises(StorageError, match="expected Parquet files, found none") as caught:
            parquet_files(place)
        assert str(tmp_path) in str(caught.value)


def test_a_file_that_is_no_parquet_is_named(tmp_path) -> None:
    folder(str(tmp_path), [3, 2])
    bad = tmp_path / "f-1.parquet"
    bad.write_bytes(bad.read_bytes()[:-20])
    with pytest.raises(StorageError, match=f"cannot read {bad} as Parquet") as caught:
        parquet_files(tmp_path)
    assert "damaged, incomplete or no Parquet" in str(caught.value.hint)


def test_damage_is_found_while_reading(tmp_path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"x": np.arange(1000.0)}), path, use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[4000] ^= 1
    path.write_bytes(content)
    piece = Piece(uri=str(path), file=0, start=0, stop=1000)
    with pytest.raises(StorageError, match=f"cannot read {path} as Parquet.*CRC"):
        rows_of(piece, ["x"])


def test_other_columns_or_rows_than_expected_are_errors(tmp_path) -> None:
    folder(str(tmp_path), [3])
    uri = str(tmp_path / "f-0.parquet")
    piece = Piece(uri=uri, file=0, start=0, stop=3)
    with pytest.raises(StorageError, match=f"{uri}: column 'z': expected it once among the columns"):
        rows_of(piece, ["id", "z"])
    schema = pa.schema([("id", pa.int32()), ("x", pa.list_(pa.float32()))])
    with pytest.raises(StorageError, match=f"{uri}: column 'id': expected int32, found int64"):
        rows_of(piece, ["x", "id"], schema=schema)
    assert len(rows_of(piece, ["x"], schema=schema)) == 3
    with pytest.raises(StorageError, match=f"{uri}: expected at least 4 rows, found 3") as caught:
        rows_of(Piece(uri=uri, file=0, start=2, stop=4), ["x"])
    assert "replaced since its rows were counted" in str(caught.value.hint)
