"""Hadoop's own file systems through the session, where fsspec has nothing for a scheme."""

from __future__ import annotations

import os
import subprocess

import fsspec
import pytest
from fsspec.registry import _registry, known_implementations

from fatwood.errors import StorageError
from fatwood.spark.hadoop import HadoopFileSystem, open_store
from fatwood.storage import Location, list_sizes, located, open_read, read_bytes, write_atomic

pytestmark = [pytest.mark.spark, pytest.mark.timeout(600)]


@pytest.fixture
def no_native_client(monkeypatch):
    """Neither hdfs-native, nor libhdfs, which is nowhere here."""
    monkeypatch.setitem(known_implementations, "hdfs", {"class": "fatwood_absent.Store"})
    found = _registry.pop("hdfs", None)
    yield
    _registry.pop("hdfs", None)
    if found is not None:
        fsspec.register_implementation("hdfs", found, clobber=True)


def test_hdfs_without_a_client_of_its_own_goes_through_the_session(spark, hdfs, no_native_client) -> None:
    uri = f"{hdfs.uri}/by-session/model"
    content = os.urandom(2_500_000)
    for written in (b"old", content):
        write_atomic(uri, lambda file, written=written: file.write(written) and None)
    with located("look at", uri) as (store, path):
        assert isinstance(store, HadoopFileSystem)
        assert path == "/by-session/model"
    assert read_bytes(uri) == content
    with open_read(uri) as file:
        file.seek(2_000_000)
        assert file.read(100) == content[2_000_000:2_000_100]
    assert list_sizes(f"{hdfs.uri}/by-session") == {"model": 2_500_000}


def test_hdfs_replaces_a_file_in_one_step(spark, hdfs) -> None:
    store, _ = open_store(f"{hdfs.uri}/one-step")
    for name in ("new", "old"):
        with store.open(f"/one-step/{name}", "wb") as file:
            file.write(name.encode())
    store.mv("/one-step/new", "/one-step/old", overwrite=True)
    assert store.ls("/one-step", detail=False) == ["/one-step/old"]
    assert store.cat_file("/one-step/old") == b"new"


def test_a_scheme_that_hadoop_does_not_know_either_is_told_as_before(spark) -> None:
    with pytest.raises(StorageError, match=r"nosuch.*\nhint: use a scheme that fsspec knows"):
        read_bytes("nosuch://host/x")


def test_options_are_for_fsspec_alone(spark, hdfs, no_native_client) -> None:
    with pytest.raises(StorageError, match="fatwood_absent"):
        read_bytes(Location(f"{hdfs.uri}/x", {"replication": 1}))


def test_on_executors_the_error_says_where_it_works(spark) -> None:
    def task(batches):
        yield from batches
        read_bytes("nosuch://host/x")

    frame = spark.range(1, numPartitions=1)
    with pytest.raises(Exception, match="which is on the driver and not on executors"):
        frame.mapInArrow(task, "id long").collect()


def test_starting_a_process_after_hdfs_was_used_does_not_hang(hdfs) -> None:
    write_atomic(f"{hdfs.uri}/forked", lambda file: file.write(b"x") and None)
    # With a function to call, Python forks, as PySpark does to start Java.
    subprocess.run(["true"], preexec_fn=os.getpid, timeout=30, check=True)
    assert read_bytes(f"{hdfs.uri}/forked") == b"x"
