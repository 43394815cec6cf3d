from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry

from fatwood.data import Batch
from fatwood.data.batches import BatchSchema
from fatwood.errors import DataError, OptionError, SchemaError, StorageError, UserCodeError
from fatwood.files import Files

LAID_OUT = [
    "a.npy",
    "b.npy",
    "b.txt",
    "_SUCCESS",
    ".a.npy.crc",
    "x/c.npy",
    "x/y/d.npy",
    "_temporary/e.npy",
    "z[1]/f.npy",
]


def load(path: str, filesystem: Any) -> Batch:
    with filesystem.open(path, "rb") as file:
        table = np.load(file)
    return Batch(features=table[:, 1:], label=table[:, 0].astype(np.int64))


class _LockedStore(LocalFileSystem):
    """A store that lets nobody look into folders called `locked`."""

    protocol = "locked"
    cachable = False

    def ls(self, path: str, detail: bool = False, **_: Any) -> Any:
        if path.endswith("/locked"):
            raise PermissionError(13, "Permission denied", path)
        return super().ls(path, detail=detail)


@pytest.fixture(params=["local", "file", "memory", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder of files on some storage: its URI."""
    if request.param == "memory":
        store, root, uri = fsspec.filesystem("memory"), "/files", "memory://files"
    else:
        monkeypatch.setitem(_registry, "locked", _LockedStore)
        scheme = {"local": "", "file": "file://", "store": "locked://"}[request.param]
        store, root, uri = LocalFileSystem(), str(tmp_path), f"{scheme}{tmp_path}"
    for name in LAID_OUT:
        store.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        store.pipe_file(f"{root}/{name}", b"")
    yield uri
    if request.param == "memory":
        store.rm(root, recursive=True)


@pytest.mark.parametrize(
    ("paths", "recursive", "expected"),
    [
        ([""], False, ["a.npy", "b.npy", "b.txt"]),
        (["/"], True, ["a.npy", "b.npy", "b.txt", "x/c.npy", "x/y/d.npy", "z[1]/f.npy"]),
        (["/*.npy", "/b*"], False, ["a.npy", "b.npy", "b.txt"]),
        (["/_SUCCESS", "/.a*", "/_t*/*"], False, [".a.npy.crc", "_SUCCESS", "_temporary/e.npy"]),
        (["/**/*.npy"], False, ["a.npy", "b.npy", "x/c.npy", "x/y/d.npy", "z[1]/f.npy"]),
        (["/**"], False, ["a.npy", "b.npy", "b.txt", "x/c.npy", "x/y/d.npy", "z[1]/f.npy"]),
        (["/*/*.npy"], False, ["x/c.npy", "z[1]/f.npy"]),
        (["/x/**/d.npy"], False, ["x/y/d.npy"]),
        (["/[xz]*"], True, ["x/c.npy", "x/y/d.npy", "z[1]/f.npy"]),
        (["/?.npy", "/z[1]"], False, ["a.npy", "b.npy", "z[1]/f.npy"]),
        (["/[!a].npy"], False, ["b.npy"]),
    ],
)
def test_paths_become_files_sorted_and_each_once(
    folder: str, paths: list[str], recursive: bool, expected: list[str]
) -> None:
    found = Files([folder + path for path in paths], load, recursive=recursive).expand()
    assert found == sorted(f"{folder}/{name}" for name in expected)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "/nothing",
            r"paths: expected a file or a folder at .*/nothing, found none\nhint: check the spelling",
        ),
        ("/nothing/*.npy", r"paths: expected files that match the pattern at .*/nothing/\*.npy, found none"),
        ("/a.npy/*", r"paths: expected files that match the pattern at .*/a.npy/\*, found none"),
        ("/[xz]*", r"(?s)files that match the pattern at .*hint: folders match it: add /\* to it"),
    ],
)
def test_a_path_that_names_nothing_says_what_was_looked_for(folder: str, path: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Files([folder, folder + path], load).expand()


def test_a_folder_without_files_of_its_own_is_told_of_recursive(tmp_path: Path) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer" / "inner" / "a").touch()
    with pytest.raises(
        StorageError, match=r"(?s)a folder with files at .*/outer, found none.*recursive=True"
    ):
        Files(tmp_path / "outer", load).expand()
    assert Files(tmp_path / "outer", load, recursive=True).expand() == [
        str(tmp_path / "outer" / "inner" / "a")
    ]


@pytest.mark.parametrize("path", ["locked", "**/*.npy", "*/a*"])
def test_a_folder_that_may_not_be_read_is_never_left_out_in_silence(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_registry, "locked", _LockedStore)
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.npy").touch()
    with pytest.raises(StorageError, match=r"cannot list locked://.*PermissionError.*Permission denied"):
        Files(f"locked://{tmp_path}/{path}", load).expand()
    with pytest.raises(StorageError, match=r"Permission denied"):
        Files(f"locked://{tmp_path}", load, recursive=True).expand()


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "real").touch()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "data" / "circle").symlink_to(tmp_path)
    (tmp_path / "data" / "broken").symlink_to(tmp_path / "nothing")
    data = tmp_path / "data"
    assert Files(data, load).expand() == [f"{data}/link"]
    assert Files(data, load, recursive=True).expand() == [f"{data}/circle/real", f"{data}/link"]


def test_relative_paths_become_absolute_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    monkeypatch.chdir(tmp_path)
    assert Files("a", load).expand() == Files(Path("a"), load).expand() == Files("*", load).expand()
    assert Files(".", load).expand() == [os.path.join(os.path.realpath(tmp_path), "a")]


@pytest.mark.parametrize("paths", [[], [""], [3], b"x", None])
def test_paths_that_are_none(paths: Any) -> None:
    with pytest.raises(OptionError, match="paths: expected a path or a list of paths, received"):
        Files(paths, load)


def test_a_loader_that_is_none() -> None:
    with pytest.raises(
        OptionError, match=r"loader: expected a function of path and file system, received 'x'"
    ):
        Files("a", "x")  # type: ignore[arg-type]


TABLE = np.arange(30.0).reshape(10, 3)
SCHEMA = BatchSchema.of(Batch(TABLE[:, 1:], TABLE[:, 0].astype(np.int64)))


def test_rows_of_a_file_are_read_with_their_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TABLE)
    files = pickle.loads(pickle.dumps(Files(tmp_path / "a.npy", load)))
    for uri in (*files.expand(), f"file://{tmp_path}/a.npy"):
        assert files.inspect(uri) == (10, SCHEMA, frozenset())
        (rows,) = files.read(uri, 2, 9, 4, SCHEMA, rows=10)
        assert rows.column("row_id").to_pylist() == [4 << 33 | row for row in range(2, 9)]
        assert rows.column("features").to_pylist() == TABLE[2:9, 1:].tolist()
        assert rows.column("label").to_pylist() == TABLE[2:9, 0].tolist()
        assert list(files.read(uri, 3, 3, 4, SCHEMA)) == []


@pytest.mark.parametrize(("stop", "rows"), [(11, None), (10, 12), (2, 9)])
def test_a_file_that_changed_since_it_was_counted_is_an_error(
    tmp_path: Path, stop: int, rows: int | None
) -> None:
    np.save(tmp_path / "a.npy", TABLE)
    with pytest.raises(
        DataError, match=rf"/a.npy: expected {rows or stop} rows as when it was counted, received 10"
    ):
        list(Files(tmp_path, load).read(f"{tmp_path}/a.npy", 0, stop, 0, SCHEMA, rows=rows))


def test_what_the_loader_does_wrong_names_the_file(tmp_path: Path) -> None:
    uri = f"{tmp_path}/a.npy"
    np.save(uri, TABLE)
    raised_by_loader = r"^ZeroDivisionError: .*\nraised by the loader .*<lambda>, given the file .*/a.npy"
    with pytest.raises(UserCodeError, match=raised_by_loader) as raised:
        Files(uri, lambda *_: 1 // 0).load(uri)  # type: ignore[arg-type,return-value]
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    with pytest.raises(
        DataError, match=r"/a.npy: expected a Batch of the loader .*<lambda>, received builtins.tuple"
    ):
        Files(uri, lambda *_: (1, 2)).inspect(uri)  # type: ignore[arg-type,return-value]
    with pytest.raises(DataError, match=r"/a.npy: label: expected 10 rows as in features, received 1"):
        Files(uri, lambda *_: Batch(TABLE, TABLE[:1])).inspect(uri)
    with pytest.raises(SchemaError, match=r"/a.npy: features: expected rows of float32 of shape \(2,\)"):
        list(Files(uri, lambda *_: Batch(TABLE, TABLE[:, 0])).read(uri, 0, 10, 0, SCHEMA))
    for message in ("3 columns", f"{uri}: 3 columns"):
        with pytest.raises(DataError, match=rf"^{uri}: 3 columns\nhint: take 2$"):
            Files(uri, lambda *_, text=message: (_ for _ in ()).throw(DataError(text, hint="take 2"))).load(
                uri
            )
    with pytest.raises(StorageError, match="cannot open nowhere://a"):
        Files("nowhere://a", load).load("nowhere://a")


def test_a_large_file_comes_in_pieces(tmp_path: Path) -> None:
    big = torch.zeros(5, 1 << 21)  # 8 MiB a row
    files = Files("a", lambda *_: Batch(big))
    found = list(files.read(f"{tmp_path}/a", 0, 5, 0, BatchSchema.of(Batch(big))))
    assert [piece.num_rows for piece in found] == [1, 1, 1, 1, 1]
    assert found[0].column("features").values.buffers()[1].address == big.data_ptr()
