"""The stores that the contract of `fatwood.storage` is checked on."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from fatwood.storage import join, location

STORES = {
    "local": (),
    "memory": (),
    "hdfs": (pytest.mark.spark, pytest.mark.timeout(600)),
    "webhdfs": (pytest.mark.spark, pytest.mark.timeout(600)),
    "s3": (),
    "hadoop": (pytest.mark.spark,),
    "viewfs": (pytest.mark.spark,),
}


def stores(*names: str) -> Any:
    """Run a test with `place` on each of these stores."""
    return pytest.mark.parametrize(
        "place", [pytest.param(name, marks=STORES[name]) for name in names], indirect=True
    )


@dataclass(frozen=True)
class Place:
    """A new folder in a store."""

    store: str
    folder: Any

    def file(self, name: str = "model") -> Any:
        return join(self.folder, name)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is left in the folder of temporary files."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A folder that does not exist yet."""
    store, name = request.param, f"new-{secrets.token_hex(4)}/folder"
    if store in ("hadoop", "viewfs"):
        with _hadoop(request.getfixturevalue("spark"), store, tmp_path) as base:
            yield Place(store, f"{base}/{name}")
        return
    if store == "webhdfs":
        web = request.getfixturevalue("hdfs").web
        if web is None:
            pytest.skip("WebHDFS: the libraries of Debian that it needs cannot be fetched here")
        yield Place(store, f"{web}/{name}")
        return
    if store in ("hdfs", "s3"):
        running = request.getfixturevalue(store)
        yield Place(store, location(f"{running.uri}/{name}", running.options))
        return
    yield Place(store, tmp_path / name if store == "local" else f"memory://{name}")
    if store == "memory":
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").pseudo_dirs[:] = [""]


class _hadoop:  # noqa: N801
    """A scheme that Hadoop knows: ``site``, which fsspec does not, and ``viewfs``, whose settings fsspec's store does not see."""

    def __init__(self, spark: Any, store: str, folder: Path) -> None:
        self._settings = spark.sparkContext._jsc.hadoopConfiguration()
        overload = "org.apache.hadoop.fs.viewfs.ViewFileSystemOverloadScheme"
        table = secrets.token_hex(4)
        self._values = {f"fs.viewfs.mounttable.{table}.link./data": f"file://{folder}"}
        if store == "hadoop":
            self._values |= {
                "fs.site.impl": overload,
                "fs.viewfs.overload.scheme.target.file.impl": "org.apache.hadoop.fs.LocalFileSystem",
            }
        self._base = f"{'site' if store == 'hadoop' else 'viewfs'}://{table}/data"

    def __enter__(self) -> str:
        for name, value in self._values.items():
            self._settings.set(name, value)
        return self._base

    def __exit__(self, *_: object) -> None:
        for name in self._values:
            self._settings.unset(name)
