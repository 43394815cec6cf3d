from __future__ import annotations

import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoint.forging import retold, rezip

from fatwood import snapshots
from fatwood.errors import OptionError, StorageError, UserError
from fatwood.snapshots import (
    Checkpoints,
    Snapshot,
    latest_checkpoint,
    list_snapshots,
    prune,
    read_snapshot,
    snapshot_uri,
    write_snapshot,
)
from fatwood.storage import join, list_folder, open_read, write_atomic

RUN = {"step": 7, "strategy": "sharing", "workers": [{"rank": 0, "rows": 12}]}
PARTS: dict[str, bytes | Path] = {
    "parameters.safetensors": bytes(range(256)) * 4,
    "worker-0.json": b"{}",
    "empty": b"",
}


def _bytes(manifest: Any = None, parts: Any = None) -> bytes:
    file = io.BytesIO()
    write_snapshot(
        file, manifest=RUN if manifest is None else manifest, parts=PARTS if parts is None else parts
    )
    return file.getvalue()


def _read(content: bytes, directory: Path) -> Snapshot:
    return read_snapshot(io.BytesIO(content), directory)


def _contents(snapshot: Snapshot) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in snapshot.parts.items()}


def _save(folder: str | Path, *steps: int) -> None:
    for step in steps:
        write_atomic(
            snapshot_uri(folder, step),
            lambda file, step=step: write_snapshot(file, manifest={"step": step}, parts=PARTS),
        )


def _steps(folder: str | Path) -> list[int]:
    return [step for step, _ in list_snapshots(folder)]


CONTENT = _bytes()


@pytest.fixture
def memory():
    yield "memory://bucket/run"
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def test_everything_comes_back_from_bytes_and_files(tmp_path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"weights" * 1000)
    content = _bytes(parts={"a.bin": source, "b": b"bytes"})
    snapshot = _read(content, tmp_path / "new" / "parts")
    assert snapshot.manifest == RUN
    assert _contents(snapshot) == {"a.bin": b"weights" * 1000, "b": b"bytes"}
    assert snapshot.parts["a.bin"] == tmp_path / "new" / "parts" / "a.bin"


part_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True).filter(
    lambda name: name.lower() != "manifest.json"
)


@given(
    manifest=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.floats(-1, 1)
    ),
    parts=st.dictionaries(part_names, st.tuples(st.binary(max_size=300), st.booleans()), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_any_contents_come_back_and_equal_contents_give_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, manifest, parts
) -> None:
    folder = tmp_path_factory.mktemp("law")
    given_parts: dict[str, bytes | Path] = {}
    for name, (content, as_file) in parts.items():
        given_parts[name] = content
        if as_file:
            given_parts[name] = folder / name
            (folder / name).write_bytes(content)
    written = _bytes(manifest, given_parts)
    snapshot = _read(written, folder / "read")
    assert snapshot.manifest == manifest
    assert _contents(snapshot) == {name: content for name, (content, _) in parts.items()}
    backwards = dict(reversed(list(snapshot.parts.items())))
    assert _bytes(snapshot.manifest, backwards) == written


def test_large_parts_pass_through_a_small_memory(tmp_path) -> None:
    source, whole = tmp_path / "source", tmp_path / "whole.fwc"
    source.write_bytes(os.urandom(2**20) * 32)
    tracemalloc.start()
    try:
        write_atomic(whole, lambda file: write_snapshot(file, manifest={}, parts={"big": source}))
        with open_read(whole) as file:
            snapshot = read_snapshot(file, tmp_path / "parts")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * 2**20
    assert snapshot.parts["big"].stat().st_size == 32 * 2**20
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in (source, snapshot.parts["big"])]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", ["", "manifest.json", "../up", "a/b", ".hidden", "a b", "x" * 101, "n\n"])
def test_part_names_that_are_no_plain_file_names(name, tmp_path) -> None:
    with pytest.raises(OptionError, match="expected plain file names of parts"):
        _bytes(parts={name: b""})
    hostile = retold(CONTENT, parts=[name])
    with pytest.raises(StorageError, match="hint:"):
        _read(hostile, tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_a_manifest_that_json_cannot_say() -> None:
    file = io.BytesIO()
    with pytest.raises(UserError, match="cannot save the checkpoint"):
        write_snapshot(file, manifest={"x": object()}, parts={})
    assert file.getvalue() == b""


def test_a_part_that_is_gone_is_a_storage_error_and_leaves_nothing(tmp_path) -> None:
    uri = snapshot_uri(tmp_path / "run", 1)
    with pytest.raises(StorageError, match="FileNotFoundError"):
        write_atomic(uri, lambda file: write_snapshot(file, manifest={}, parts={"a": tmp_path / "missing"}))
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, 100, len(CONTENT) // 2, len(CONTENT) - 22, len(CONTENT) - 1])
def test_truncated_file(size, tmp_path) -> None:
    with pytest.raises(StorageError, match="hint: the file is damaged, incomplete or no saved checkpoint"):
        _read(CONTENT[:size], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_any_flipped_byte_is_an_error_that_names_the_entry(tmp_path) -> None:
    names = "|".join([*PARTS, "manifest.json", "zip directory"])
    for position in range(len(CONTENT)):
        damaged = bytearray(CONTENT)
        damaged[position] ^= 0x55
        with pytest.raises(StorageError, match=names):
            _read(bytes(damaged), tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_an_altered_part_of_version_2_with_a_right_crc(tmp_path) -> None:
    content = (Path(__file__).parent / "golden" / "checkpoint-2.fwc").read_bytes()
    with pytest.raises(StorageError, match=r"worker-0: expected sha256 .*, received"):
        _read(rezip(content, **{"worker-0": b"[]"}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_newer_version_names_both(tmp_path) -> None:
    content = retold(rezip(CONTENT, more=b""), format_version=4, run="in some other way")
    with pytest.raises(StorageError, match=r"version 3 or older, received version 4.*\nhint: install"):
        _read(content, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "fatwood-model"},
        {"format_version": 0},
        {"format_version": 1},
        {"format_version": "1"},
        {"format_version": True},
        {"run": None},
        {"run": []},
        {"format_version": 2},
        {"parts": None},
        {"parts": []},
        {"parts": ["empty", "parameters.safetensors", 5]},
    ],
)
def test_manifest_that_makes_no_sense(changes, tmp_path) -> None:
    with pytest.raises(StorageError, match=r"checkpoint file: .*\nhint:"):
        _read(retold(CONTENT, **changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"manifest__json": None}, {"manifest__json": b"[]"}, {"empty": None}, {"more": b"more"}]
)
def test_archive_with_other_members(changes, tmp_path) -> None:
    with pytest.raises(StorageError, match="hint: the file is damaged"):
        _read(rezip(CONTENT, **changes), tmp_path)


@pytest.mark.parametrize("content", [b"", b"no zip at all" * 100, b"\x80\x04\x95pickle", bytes(1000)])
def test_no_checkpoint(content, tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with (
        open_read(path) as file,
        pytest.raises(StorageError, match=f"checkpoint file {path}: expected a saved checkpoint"),
    ):
        read_snapshot(file, tmp_path / "parts")


def test_a_directory_for_parts_that_cannot_be_used(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the directory"):
        _read(CONTENT, tmp_path / "file")
    (tmp_path / "parts" / "worker-0.json").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"could not write worker-0\.json to"):
        _read(CONTENT, tmp_path / "parts")
    assert os.listdir(tmp_path / "parts") == ["worker-0.json"]


@pytest.mark.parametrize("kind", ["path", "text", "slash", "file", "memory"])
def test_list_latest_and_prune(kind, tmp_path, memory) -> None:
    folder: Any = {
        "path": tmp_path / "run",
        "text": str(tmp_path / "run"),
        "slash": f"{tmp_path}/run/",
        "file": f"file://{tmp_path}/run",
        "memory": memory,
    }[kind]
    assert list_snapshots(folder) == []
    assert latest_checkpoint(folder) is None
    prune(folder, 1)
    _save(folder, 9, 10, 1_000_000_000_000, 0)
    for name in ("fatwood-checkpoint-1.fwc", "fatwood-checkpoint-0000000000001.fwc", "model", "x.fwc"):
        write_atomic(join(folder, name), lambda file: file.write(b"not ours") and None)
    _save(join(folder, "fatwood-checkpoint-000000000005.fwc"), 11)  # a folder of such a name
    before = list_folder(folder)
    assert _steps(folder) == [0, 9, 10, 1_000_000_000_000]
    latest = latest_checkpoint(folder)
    assert latest == list_snapshots(folder)[-1][1] == snapshot_uri(folder, 1_000_000_000_000)
    with open_read(latest) as file:
        assert read_snapshot(file, tmp_path / "parts").manifest == {"step": 1_000_000_000_000}
    prune(folder, 5)
    assert list_folder(folder) == before
    prune(folder, 2)
    assert _steps(folder) == [10, 1_000_000_000_000]
    assert len(list_folder(folder)) == len(before) - 2


def test_a_path_stays_local_whatever_it_looks_like(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    _save(Path("memory:/run"), 1)
    assert latest_checkpoint(Path("memory:/run")) == str(
        tmp_path / "memory:" / "run" / "fatwood-checkpoint-000000000001.fwc"
    )


def test_a_folder_that_is_a_file(tmp_path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match=r"cannot list .*run.*\nhint:"):
        latest_checkpoint(tmp_path / "run")


def test_pruning_beside_another_process_that_prunes(tmp_path, monkeypatch) -> None:
    _save(tmp_path, 1, 2, 3)
    seen = list_snapshots(tmp_path)
    prune(tmp_path, 1)
    monkeypatch.setattr(snapshots, "list_snapshots", lambda folder: seen)  # what it saw a moment ago
    prune(tmp_path, 1)
    assert os.listdir(tmp_path) == ["fatwood-checkpoint-000000000003.fwc"]


_KILLED_IN_THE_MIDDLE = """if True:
    import sys
    from fatwood.snapshots import snapshot_uri, write_snapshot
    from fatwood.storage import write_atomic
    folder = sys.argv[1]

    def half(file):
        write_snapshot(file, manifest={}, parts={"big": bytes(1 << 20)})
        file.truncate(1 << 19)
        file.flush()
        print("half", flush=True)
        sys.stdin.read()

    write_atomic(snapshot_uri(folder, 2), half)
"""
_KILLED_AT_ANY_TIME = """if True:
    import sys
    from pathlib import Path
    from fatwood.snapshots import prune, snapshot_uri, write_snapshot
    from fatwood.storage import write_atomic
    folder, source = sys.argv[1], Path(sys.argv[2])
    for step in range(int(sys.argv[3]), 10**9):
        write_atomic(snapshot_uri(folder, step), lambda file: write_snapshot(
            file, manifest={"step": step}, parts={"big": source}))
        prune(folder, 3)
        print(step, flush=True)
"""


def _child(code: str, *arguments: Any, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
    )


def _kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)


def test_a_writer_killed_in_the_middle_leaves_nothing_that_is_seen(tmp_path) -> None:
    _save(tmp_path, 1)
    child = _child(_KILLED_IN_THE_MIDDLE, tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline() == "half\n"
    assert _steps(tmp_path) == [1]
    _kill(child)
    assert _steps(tmp_path) == [1]
    (leftover,) = (path for path in tmp_path.iterdir() if path.suffix == ".part")
    assert leftover.stat().st_size == 1 << 19
    prune(tmp_path, 3)
    assert leftover.exists()  # for all that is known somebody is still writing it
    os.utime(leftover, (0, 0))
    prune(tmp_path, 3)
    assert os.listdir(tmp_path) == ["fatwood-checkpoint-000000000001.fwc"]


def test_a_writer_killed_before_its_upload_leaves_nothing_at_all(tmp_path) -> None:
    child = _child(_KILLED_IN_THE_MIDDLE, "memory://bucket/run", TMPDIR=str(tmp_path))
    assert child.stdout is not None
    assert child.stdout.readline() == "half\n"
    _kill(child)
    assert list(tmp_path.iterdir()) == []


def test_every_checkpoint_that_is_seen_is_whole_wherever_its_writer_is_killed(tmp_path) -> None:
    folder, source = tmp_path / "run", tmp_path / "source"
    source.write_bytes(os.urandom(3 << 20))
    step = 0
    for lines in (1, 2, 4):
        child = _child(_KILLED_AT_ANY_TIME, folder, source, step)
        assert child.stdout is not None
        for _ in range(lines):
            step = int(child.stdout.readline()) + 1
        _kill(child)
        seen = list_snapshots(folder)
        assert seen[-1][0] >= step - 1
        assert len(seen) <= 4
        for number, uri in seen:
            with open_read(uri) as file:
                snapshot = read_snapshot(file, tmp_path / "parts")
            assert snapshot.manifest == {"step": number}
            assert snapshot.parts["big"].read_bytes() == source.read_bytes()


def test_checkpoints_travel_to_executors(tmp_path) -> None:
    policy = Checkpoints(uri=tmp_path, every_seconds=1.5)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert (policy.keep, policy.every_steps) == (3, None)
    assert Checkpoints(uri="s3://b/run", every_steps=1, keep=1).every_seconds is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either every_steps or every_seconds, received every_steps=None and every_seconds=None"),
        ({"every_steps": 1, "every_seconds": 1.0}, "either every_steps or every_seconds"),
        ({"every_steps": 0}, "every_steps: expected a whole number of at least 1, received 0"),
        ({"every_steps": True}, "every_steps"),
        ({"every_steps": 1.5}, "every_steps"),
        ({"every_seconds": 0}, "every_seconds: expected a finite number above 0, received 0"),
        ({"every_seconds": float("nan")}, "every_seconds"),
        ({"every_seconds": float("inf")}, "every_seconds"),
        ({"every_seconds": True}, "every_seconds"),
        ({"every_seconds": "60"}, "every_seconds"),
        ({"every_steps": 1, "keep": 0}, "keep"),
        ({"every_steps": 1, "uri": ""}, "uri"),
        ({"every_steps": 1, "uri": None}, "uri"),
    ],
    ids=str,
)
def test_policies_that_cannot_work(options, words) -> None:
    with pytest.raises(OptionError, match=words):
        Checkpoints(**{"uri": "run", **options})


def test_arguments_that_cannot_work(tmp_path) -> None:
    with pytest.raises(OptionError, match="at least 0"):
        snapshot_uri(tmp_path, -1)
    with pytest.raises(OptionError, match="keep: expected a whole number of at least 1"):
        prune(tmp_path, 0)
