"""What every store must do, on real ones: one suite for the local disk, memory, HDFS by three ways, S3 and Hadoop."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress

import pytest
from tests.storage.conftest import STORES, stores

from fatwood.errors import StorageError, UserError
from fatwood.storage import (
    absolute,
    delete,
    delete_leftovers,
    join,
    list_folder,
    list_sizes,
    open_read,
    read_bytes,
    write_atomic,
)

pytestmark = pytest.mark.usefixtures("scratch")
every_store = stores(*STORES)


def _write(uri, content: bytes) -> None:
    write_atomic(uri, lambda file: file.write(content) and None)


@every_store
def test_what_was_written_is_read_and_an_older_file_is_replaced(place) -> None:
    _write(place.file(), b"first")
    _write(place.file(), b"second, longer")
    assert read_bytes(place.file()) == b"second, longer"
    _write(place.file(), b"")
    assert read_bytes(place.file()) == b""
    assert list_folder(place.folder) == ["model"]


@every_store
def test_a_file_is_read_from_any_place_in_it(place) -> None:
    content = os.urandom(3_000_000)
    _write(place.file(), content)
    with open_read(place.file()) as file:
        assert file.read(10) == content[:10]
        assert file.seek(2_999_990) == 2_999_990
        assert file.read(100) == content[-10:]
        assert file.read(100) == b""
        file.seek(-5, os.SEEK_END)
        assert file.read() == content[-5:]
        file.seek(1_500_000)
        assert file.tell() == 1_500_000
        file.seek(-500_000, os.SEEK_CUR)
        assert file.read(1_200_000) == content[1_000_000:2_200_000]
        file.seek(4_000_000)
        assert file.read() == b""
        file.seek(0)
        assert file.read() == content


@every_store
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no space left"), UserError("mine"), KeyboardInterrupt()]
)
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(place, error) -> None:
    _write(place.file(), b"old")

    def write(file) -> None:
        file.write(b"half")
        raise error

    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        write_atomic(place.file(), write)
    assert read_bytes(place.file()) == b"old"
    assert list_folder(place.folder) == ["model"]
    if expected is StorageError:
        assert f"cannot write {place.file()}: OSError: " in str(caught.value)
        assert "hint:" in str(caught.value)


@every_store
def test_list_sizes_delete(place) -> None:
    assert list_sizes(place.folder) == {}
    odd = "ü" if place.store == "webhdfs" else "ü&=+%41"  # WebHDFS cannot say all names
    sizes = {"b": 1, "a.txt": 0, "with space": 1000, "_": 3, odd: 4}
    for name, size in sizes.items():
        _write(join(place.folder, name), bytes(size))
    _write(join(join(place.folder, "deeper"), "c"), b"c")
    assert list_sizes(place.folder) == sizes
    assert list_folder(place.folder) == sorted(sizes)
    assert read_bytes(place.file(odd)) == bytes(4)
    for _ in range(2):  # what is gone already is no error
        delete(place.file("b"))
        assert list_folder(place.folder) == sorted(set(sizes) - {"b"})
    assert list_folder(join(place.folder, "deeper")) == ["c"]


@every_store
def test_a_missing_file_is_named(place) -> None:
    with pytest.raises(StorageError, match="cannot open") as caught:
        read_bytes(place.file("nothing"))
    assert f"cannot open {place.file('nothing')}: FileNotFoundError" in str(caught.value)
    assert "hint: check that the path exists" in str(caught.value)


@every_store
def test_a_file_that_is_too_large_is_refused(place) -> None:
    _write(place.file(), b"12345")
    assert read_bytes(place.file(), max_bytes=5) == b"12345"
    assert read_bytes(place.file(), max_bytes=2**60) == b"12345"
    with pytest.raises(StorageError, match="at most 4 bytes, received more"):
        read_bytes(place.file(), max_bytes=4)


@every_store
def test_writers_at_the_same_time_leave_one_whole_file(place) -> None:
    contents = [bytes([number]) * (200_000 + number) for number in range(4)]
    stop, seen = threading.Event(), set()
    _write(place.file(), contents[0])

    def read() -> None:
        while not stop.is_set():
            with (
                suppress(StorageError) if place.store == "s3" else nullcontext()
            ):  # it says that the object has changed
                seen.add(read_bytes(place.file()))

    def write(content: bytes) -> None:
        for _ in range(3):
            with (
                suppress(StorageError) if place.store in ("hadoop", "viewfs") else nullcontext()
            ):  # over a local disk Hadoop cannot replace in one step
                _write(place.file(), content)

    with ThreadPoolExecutor(5) as pool:
        # The other stores tell a file's size first and its bytes later, or show it while it is written.
        reader = pool.submit(read) if place.store in ("local", "hdfs", "s3") else None
        try:
            list(pool.map(write, contents))
        finally:
            stop.set()
        if reader is not None:
            reader.result()
    assert read_bytes(place.file()) in contents
    assert seen <= set(contents)
    assert list_folder(place.folder) == ["model"]


@every_store
def test_leftovers_of_killed_writers_go_when_they_are_old(place) -> None:
    names = [f".fatwood-{number:016x}.part" for number in range(2)]
    for name in [*names, "model"]:
        _write(place.file(name), b"")
    delete_leftovers(place.folder, older_than_seconds=3600)
    assert list_folder(place.folder) == sorted([*names, "model"])
    delete_leftovers(place.folder, older_than_seconds=-3600)
    # fsspec's store in memory and WebHDFS tell times without a zone, which is taken for the local one.
    assert list_folder(place.folder) == ["model"]


@every_store
def test_a_folder_in_the_way_is_an_error_and_stays(place) -> None:
    if place.store in ("memory", "s3"):
        pytest.skip("this store has no folders: a file and what looks like a folder may have one name")
    _write(join(place.file(), "inside"), b"x")
    with pytest.raises(StorageError, match="cannot write"):
        _write(place.file(), b"y")
    assert list_folder(place.file()) == ["inside"]
    assert list_folder(place.folder) == []


@stores("local", "hdfs", "s3")
def test_a_place_is_the_same_after_pickling(place) -> None:
    _write(place.file(), b"x")
    again = pickle.loads(pickle.dumps(absolute(place.folder)))
    assert read_bytes(join(again, "model")) == b"x"


@stores("webhdfs")
def test_an_error_that_a_data_node_answers_is_not_taken_for_the_bytes_of_a_file(place) -> None:
    name = "ü&=+%41"  # which the NameNode knows, and the DataNode that it sends the reader to does not
    _write(place.file(name), b"x")
    with pytest.raises(StorageError, match=r"cannot read .*RemoteException"):
        read_bytes(place.file(name))


@stores("hdfs", "webhdfs")
def test_a_file_in_the_root(place) -> None:
    root = str(place.folder).rpartition("/new-")[0]
    uri = f"{root}/{place.store}-in-the-root"
    for content in (b"old", b"new"):
        _write(uri, content)
    assert read_bytes(uri) == b"new"
    delete(uri)
    assert not [name for name in list_folder(f"{root}/") if "root" in name or name.startswith(".fatwood")]
