from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry, known_implementations

from fatwood.errors import StorageError, UserError
from fatwood.storage import (
    absolute,
    delete,
    delete_leftovers,
    join,
    list_folder,
    open_read,
    read_bytes,
    write_atomic,
)


def _writer(content: bytes):
    def write(file) -> None:
        file.write(content)

    return write


def _failing(error: Exception):
    def write(file) -> None:
        file.write(b"half")
        raise error

    return write


class _RenamingStore(LocalFileSystem):
    """A store with folders and a rename, such as HDFS; files lie under a local folder."""

    protocol = "renaming"
    cachable = False
    silent = False

    def rm_file(self, path: str) -> None:
        try:
            os.unlink(path)
        except OSError as error:  # as HDFS says it, whatever the cause
            raise OSError(errno.EIO, "delete failed") from error

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if os.path.exists(path2):
            if self.silent:
                return
            raise FileExistsError(path2)
        os.rename(path1, path2)


class _SilentStore(_RenamingStore):
    """A store whose rename does nothing, without an error, when the name is taken, such as WebHDFS."""

    protocol = "silent"
    silent = True


class _FullStore(_RenamingStore):
    """A store that is full after a few bytes."""

    protocol = "full"

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        Path(rpath).write_bytes(b"few")
        raise OSError(errno.ENOSPC, "no space left")


class _StuckStore(_RenamingStore):
    """A store that renames nothing to a final name, and does not say so."""

    protocol = "stuck"

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if path1.endswith(".old") or path2.endswith(".old"):
            os.rename(path1, path2)


class _OddStore(_RenamingStore):
    """A store whose library raises exceptions of its own."""

    protocol = "odd"

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        raise LookupError("no credentials")

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        raise LookupError("no credentials")


_STORES = (_RenamingStore, _SilentStore, _FullStore, _StuckStore, _OddStore)


@pytest.fixture(autouse=True)
def stores(monkeypatch, tmp_path):
    for store in _STORES:
        entry = {"class": f"{store.__module__}.{store.__qualname__}"}
        monkeypatch.setitem(known_implementations, store.protocol, entry)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    assert list(scratch.iterdir()) == []
    for store in _STORES:
        _registry.pop(store.protocol, None)
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def _uri(kind: str, tmp_path: Path, name: str) -> Any:
    path = tmp_path / "new" / "folder" / name
    return {
        "path": path,
        "text": str(path),
        "file": f"file://{path}",
        "hadoop": f"file:{path}",
        "memory": f"memory://bucket/folder/{name}",
        "renaming": f"renaming://{path}",
        "silent": f"silent://{path}",
    }[kind]


@pytest.mark.parametrize("kind", ["path", "text", "file", "hadoop", "memory", "renaming", "silent"])
def test_write_overwrite_read(kind, tmp_path) -> None:
    uri = _uri(kind, tmp_path, "model")
    write_atomic(uri, _writer(b"first"))
    write_atomic(uri, _writer(b"second, longer"))
    assert read_bytes(uri) == b"second, longer"
    with open_read(uri) as file:
        file.seek(8)
        assert file.read() == b"longer"
    if kind != "memory":
        assert os.listdir(tmp_path / "new" / "folder") == ["model"]


@pytest.mark.parametrize("kind", ["path", "file", "memory", "renaming"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no space left"), UserError("mine"), KeyboardInterrupt()]
)
def test_failure_of_the_writer_leaves_the_old_file_and_nothing_else(kind, error, tmp_path) -> None:
    uri = _uri(kind, tmp_path, "model")
    write_atomic(uri, _writer(b"old"))
    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        write_atomic(uri, _failing(error))
    assert read_bytes(uri) == b"old"
    if kind != "memory":
        assert os.listdir(tmp_path / "new" / "folder") == ["model"]
    if expected is StorageError:
        assert str(uri) in str(caught.value)
        assert "cannot write" in str(caught.value)
        assert "hint:" in str(caught.value)


@pytest.mark.parametrize(("scheme", "reason"), [("full", "no space left"), ("stuck", "did not rename")])
def test_failure_of_the_upload_leaves_the_old_file_and_nothing_else(scheme, reason, tmp_path) -> None:
    path = tmp_path / "folder" / "model"
    write_atomic(path, _writer(b"old"))
    with pytest.raises(StorageError, match=f"cannot write {scheme}://{path}.*{reason}"):
        write_atomic(f"{scheme}://{path}", _writer(b"new"))
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["model"]


def test_exceptions_of_a_stores_library_become_ours(tmp_path) -> None:
    with pytest.raises(StorageError, match=r"cannot write odd://.*LookupError.*no credentials"):
        write_atomic(f"odd://{tmp_path}/model", _writer(b""))
    with pytest.raises(StorageError, match=r"cannot open odd://.*LookupError"):
        open_read(f"odd://{tmp_path}/model")


def test_half_a_local_file_is_never_seen(tmp_path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")

    def write(file) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    write_atomic(path, write)
    assert path.read_bytes() == b"new"


def test_local_files_get_the_permissions_of_ordinary_files(tmp_path) -> None:
    mask = os.umask(0o027)
    try:
        write_atomic(tmp_path / "model", _writer(b""))
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o640


def test_symbolic_link_stays_a_link(tmp_path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomic(link, _writer(b"new"))
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_home_is_expanded_in_text(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_atomic("~/model", _writer(b"home"))
    assert (tmp_path / "model").read_bytes() == b"home"


@pytest.mark.parametrize("kind", ["path", "memory", "renaming"])
def test_size_is_limited(kind, tmp_path) -> None:
    uri = _uri(kind, tmp_path, "model")
    write_atomic(uri, _writer(b"12345"))
    assert read_bytes(uri, max_bytes=5) == b"12345"
    with pytest.raises(StorageError, match="at most 4 bytes"):
        read_bytes(uri, max_bytes=4)


def test_a_size_limit_allocates_for_the_file_and_not_for_the_limit(tmp_path) -> None:
    write_atomic(tmp_path / "model", _writer(b"12345"))
    assert read_bytes(tmp_path / "model", max_bytes=2**60) == b"12345"


@pytest.mark.parametrize("kind", ["path", "file", "memory"])
def test_missing_file_names_uri_and_operation(kind, tmp_path) -> None:
    uri = _uri(kind, tmp_path, "nothing")
    with pytest.raises(StorageError) as caught:
        read_bytes(uri)
    assert f"cannot open {uri}" in str(caught.value)
    assert "hint: check that the path exists" in str(caught.value)


def test_folder_in_the_way(tmp_path) -> None:
    (tmp_path / "model" / "inside").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot write"):
        write_atomic(tmp_path / "model", _writer(b""))
    assert sorted(os.listdir(tmp_path)) == ["model", "scratch"]


def test_missing_package_names_the_command(monkeypatch) -> None:
    monkeypatch.setitem(
        known_implementations, "absent", {"class": "fatwood_absent_store.Store", "err": "Install it"}
    )
    with pytest.raises(StorageError, match="hint: pip install fatwood_absent_store"):
        read_bytes("absent://bucket/model")


def test_unknown_scheme_is_an_error_and_not_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=r"nosuch.*\nhint: use a scheme that fsspec knows"):
        write_atomic("nosuch://bucket/model", _writer(b""))
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


@pytest.mark.parametrize(
    "uri", ["hdfs:/models/x", "dbfs:/models/x", "simplecache::s3://bucket/x", "file::memory://x"]
)
def test_address_that_would_silently_be_a_local_name_is_refused(uri, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=r"hint: write .*://"):
        write_atomic(uri, _writer(b""))
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


def test_path_objects_are_always_local(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_atomic(Path("hdfs:/models/x"), _writer(b"local"))
    assert (tmp_path / "hdfs:" / "models" / "x").read_bytes() == b"local"


KINDS = ["path", "text", "file", "hadoop", "memory", "renaming"]


def test_a_system_that_gives_open_files_no_path(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("fatwood.storage.writing._OPEN_FILES", str(tmp_path / "missing"))
    uri = _uri("renaming", tmp_path, "model")
    write_atomic(uri, _writer(b"first"))
    write_atomic(uri, _writer(b"second"))
    with pytest.raises(StorageError):
        write_atomic(uri, _failing(OSError("full")))
    assert read_bytes(uri) == b"second"


@pytest.mark.parametrize("kind", KINDS)
def test_list_and_delete(kind, tmp_path) -> None:
    folder = _uri(kind, tmp_path, "run")
    assert list_folder(folder) == []
    for name in ("b", "a.txt", "with space", "_"):
        write_atomic(join(folder, name), _writer(name.encode()))
    write_atomic(join(join(folder, "deeper"), "c"), _writer(b"c"))
    assert list_folder(folder) == ["_", "a.txt", "b", "with space"]
    assert read_bytes(join(folder, "with space")) == b"with space"
    for _ in range(2):  # what is gone already is no error
        delete(join(folder, "b"))
        assert list_folder(folder) == ["_", "a.txt", "with space"]
    assert list_folder(join(folder, "deeper")) == ["c"]


def test_join() -> None:
    assert join("hdfs://host/run", "x") == join("hdfs://host/run/", "x") == "hdfs://host/run/x"
    assert join("memory://", "x") == "memory://x"
    assert join("/", "x") == "/x"
    assert join(Path("/a/../b"), "x") == "/b/x"
    assert join(Path("run"), "x") == f"{Path.cwd()}/run/x"


def test_a_folder_of_another_process_is_listed_anew(tmp_path) -> None:
    folder = f"renaming://{tmp_path}/run"
    write_atomic(join(folder, "a"), _writer(b""))
    assert list_folder(folder) == ["a"]
    (tmp_path / "run" / "b").write_bytes(b"")
    assert list_folder(folder) == ["a", "b"]


@pytest.mark.parametrize("operation", ["list", "delete"])
def test_failures_name_uri_and_operation(operation, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    act, path = {"list": (list_folder, tmp_path / "file"), "delete": (delete, tmp_path / "folder")}[operation]
    with pytest.raises(StorageError, match=f"cannot {operation} {path}.*\nhint: "):
        act(path)
    with pytest.raises(StorageError, match=f"cannot {operation} renaming://{path}"):
        act(f"renaming://{path}/below" if operation == "list" else f"renaming://{path}")
    with pytest.raises(StorageError, match=r"nosuch.*\nhint: use a scheme that fsspec knows"):
        act("nosuch://bucket/model")
    assert (tmp_path / "folder").is_dir()


@pytest.mark.parametrize("kind", ["path", "renaming"])
def test_leftovers_are_known_by_name_and_age(kind, tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    ours = [f".fatwood-{i:016x}.part" for i in range(3)]
    others = [".fatwood-0.part", ".fatwood-0123456789abcdef.part.old", "x.part", "model"]
    for name in [*ours, *others]:
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (0, 0))
    os.utime(folder / ours[0])
    uri = folder if kind == "path" else f"renaming://{folder}"
    delete_leftovers(uri, older_than_seconds=60)
    assert set(os.listdir(folder)) == {ours[0], *others}


def test_leftovers_that_cannot_be_judged_stay(tmp_path, monkeypatch) -> None:
    (tmp_path / ".fatwood-0123456789abcdef.part").write_bytes(b"")

    def modified(_self: Any, path: str) -> Any:
        raise NotImplementedError(path)

    monkeypatch.setattr(_RenamingStore, "modified", modified, raising=False)
    delete_leftovers(f"renaming://{tmp_path}", older_than_seconds=-1)
    assert list_folder(tmp_path) == [".fatwood-0123456789abcdef.part"]
    delete_leftovers(tmp_path, older_than_seconds=-1)
    assert list_folder(tmp_path) == []


def test_leftovers_of_a_folder_that_does_not_exist(tmp_path) -> None:
    delete_leftovers(tmp_path / "missing", older_than_seconds=0)


def test_a_place_as_text_for_processes_elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("a/b") == absolute(Path("a/b")) == f"{tmp_path}/a/b"
    assert absolute("~/b") == os.path.expanduser("~/b")
    for uri in ("hdfs:///a", "memory://a/b", "file:///a", "s3://bucket/../x"):
        assert absolute(uri) == uri
    assert absolute(Path("s3://bucket/x")) == f"{tmp_path}/s3:/bucket/x"
