"""A URI with options: a pair that hides what it holds, travels, and is refused where it makes no sense."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from fatwood import Checkpoints, Files, Parquet
from fatwood.errors import OptionError, StorageError
from fatwood.storage import Location, absolute, join, located, location, open_read

SECRET = {"key": "user", "secret": "not to be seen"}


def test_options_are_never_shown() -> None:
    place = Location("nosuch://bucket/model", SECRET)
    with pytest.raises(StorageError) as caught:
        open_read(place)
    shown = [str(place), repr(place), str(caught.value), repr(join(place, "x"))]
    shown += [repr(Parquet("s3://b/x", storage_options=SECRET)), str(Checkpoints(uri=place, every_steps=1))]
    assert not any("not to be seen" in text for text in shown)
    assert str(place) == "nosuch://bucket/model"
    assert "cannot open nosuch://bucket/model" in str(caught.value)


def test_a_location_is_joined_made_absolute_compared_and_pickled_with_its_options() -> None:
    place = location("s3://bucket/run", SECRET)
    assert isinstance(place, Location)
    for same in (absolute(place), pickle.loads(pickle.dumps(place)), location(place)):
        assert same == place
        assert hash(same) == hash(place)
    assert join(place, "x") == Location("s3://bucket/run/x", SECRET)
    assert place != Location("s3://bucket/run", {**SECRET, "key": "other"})


def test_its_options_are_a_copy() -> None:
    options = dict(SECRET)
    place = Location("s3://bucket/run", options)
    options.clear()
    assert place.options == SECRET


@pytest.mark.parametrize("options", [None, {}])
@pytest.mark.parametrize("uri", ["s3://b/x", "plain/path", Path("plain/path"), Location("s3://b/x", SECRET)])
def test_without_options_a_uri_stays_what_it_is(uri, options) -> None:
    assert location(uri, options) is uri


@pytest.mark.parametrize("uri", ["/a/b", "a", "~/a", "file:///a", "local://a", Path("a"), Path("s3://b/x")])
def test_options_with_a_local_path_are_refused(uri) -> None:
    with pytest.raises(OptionError, match=r"expected none for the local path .*received key, secret\n"):
        location(uri, SECRET)
    for make in (
        lambda: Parquet(uri, storage_options=SECRET),
        lambda: Files(uri, print, storage_options=SECRET),
        lambda: Checkpoints(uri=uri, every_steps=1, storage_options=SECRET),
    ):
        with pytest.raises(OptionError, match="expected none for the local path"):
            make()


def test_two_sets_of_options_are_refused() -> None:
    with pytest.raises(OptionError, match="has some already"):
        location(Location("s3://b/x", SECRET), SECRET)


@pytest.mark.parametrize("options", ["key", [("key", "x")], {1: "x"}])
def test_options_are_a_mapping_of_names(options) -> None:
    with pytest.raises(OptionError, match="storage_options: expected a mapping of names"):
        location("s3://b/x", options)


def test_options_reach_the_stores_class() -> None:
    pytest.importorskip("requests")
    with located("look at", Location("webhdfs://127.0.0.1:1/x", {"user": "somebody"})) as (store, path):
        assert store.pars["user.name"] == "somebody"
        assert path == "/x"


@pytest.mark.parametrize(
    ("uri", "module", "hint"),
    [
        ("s3://b/x", "s3fs", "'fatwood[s3]'"),
        ("gs://b/x", "gcsfs", "'fatwood[gcs]'"),
        ("abfs://c@a/x", "adlfs", "'fatwood[azure]'"),
        ("webhdfs://h:1/x", "requests", "requests"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(uri, module, hint) -> None:
    with pytest.raises(StorageError) as caught:
        _read_without(uri, module)
    assert f"hint: pip install {hint} (on every machine" in str(caught.value)


def test_without_hdfs_native_and_libhdfs_the_hint_tells_both_ways() -> None:
    with pytest.raises(StorageError) as caught:
        _read_without("hdfs://127.0.0.1:1/x", "hdfs_native", _AS_WITHOUT_ENTRY_POINT)
    hint = str(caught.value).partition("hint: ")[2]
    assert hint.index("pip install 'fatwood[hdfs]'") < hint.index("libhdfs") < hint.index("webhdfs")


_AS_WITHOUT_ENTRY_POINT = (
    "from fsspec.registry import known_implementations as known; known['hdfs'] = known['arrow_hdfs']\n"
)


def _read_without(uri: str, module: str, before: str = "") -> None:
    """Read in a process that lacks a module."""
    code = (
        f"import sys; sys.modules[{module!r}] = None\n{before}"
        f"from fatwood.storage import read_bytes\n"
        f"try: read_bytes({uri!r})\n"
        f"except Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    raise StorageError(done.stdout)
