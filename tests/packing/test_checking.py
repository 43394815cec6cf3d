"""Archives: an interpreter started where nothing else is, and every damage found before anything runs."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.errors import ClusterError, DamagedError, FatwoodError, OptionError, StorageError
from fatwood.packing import check
from fatwood.packing.checking import read_manifest, unpack
from fatwood.packing.distributions import Environment, installed
from fatwood.packing.interpreter import PYTHON, interpreter_part
from fatwood.packing.pack import Packed, pack_parts
from fatwood.packing.part import Entry, Part
from fatwood.packing.target import parse_target

Install = Callable[..., Environment]


def archive(folder: Path, parts: list[Part], *, platform: str | None = None) -> Packed:
    return pack_parts(
        folder / "a.tar.gz",
        parts,
        target=parse_target(platform),
        torch_build=None,
        cache=folder / "cache",
        level=1,
        tell=lambda _: None,
    )


def simple(name: str, **contents: bytes) -> Part:
    key = hashlib.sha256(repr(contents).encode()).hexdigest()
    return Part(name, "1", key, lambda: [Entry(file, content=data) for file, data in contents.items()])


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Part]:
    """The part of this interpreter, and a folder where it is packed once."""
    folder = tmp_path_factory.mktemp("interpreter")
    (folder / "staging").mkdir()
    return folder, interpreter_part(folder / "staging")


def test_the_interpreter_starts_in_another_folder_with_nothing_of_this_machine(
    interpreter: tuple[Path, Part], install: Install
) -> None:
    folder, part = interpreter
    fake = b"import ssl, sqlite3, ctypes, lzma, bz2, zlib, hashlib, multiprocessing, os\n__version__ = '26'\n"
    fake += b"assert dict(os.environ).keys() <= {'LC_CTYPE'}, os.environ\n"
    environment = install("pyarrow", {"pyarrow/__init__.py": fake})
    archive(folder, [part, *(one.part(drop_tests=False) for one in installed(environment))])
    found = check(folder / "a.tar.gz")
    assert found.versions["pyarrow"] == "26"
    assert found.versions["python"] == found.manifest["python"]
    assert found.kernel is None
    assert found.manifest["glibc_needed"].startswith("2.")


def test_a_module_that_fails_in_the_archive_is_shown_with_its_error(
    interpreter: tuple[Path, Part], install: Install
) -> None:
    folder, part = interpreter
    environment = install("pandas", {"pandas/__init__.py": b"import libmissing\n"})
    archive(folder, [part, *(one.part(drop_tests=False) for one in installed(environment))])
    with pytest.raises(ClusterError, match="No module named 'libmissing'"):
        check(folder / "a.tar.gz")


def test_an_interpreter_that_uses_a_folder_of_this_machine_is_refused(
    interpreter: tuple[Path, Part], install: Install, tmp_path: Path
) -> None:
    folder, part = interpreter
    code = f"import sys; sys.path.append({str(tmp_path)!r})\n".encode()
    environment = install("pandas", {"pandas/__init__.py": code})
    archive(folder, [part, *(one.part(drop_tests=False) for one in installed(environment))])
    with pytest.raises(ClusterError, match=f"expected it to use its own files, received {tmp_path}"):
        check(folder / "a.tar.gz")


def test_a_platform_older_than_the_interpreter_is_refused_and_nothing_is_written(
    interpreter: tuple[Path, Part],
) -> None:
    folder, part = interpreter
    (folder / "a.tar.gz").unlink(missing_ok=True)
    with pytest.raises(OptionError, match=r"glibc 2\.5, received: python \(.*\) needs glibc 2\."):
        archive(folder, [part], platform=f"manylinux1_{os.uname().machine}")
    assert not (folder / "a.tar.gz").exists()


def test_a_system_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="received /usr\nhint: make the environment with a Python of pyenv"):
        interpreter_part(tmp_path, Path("/usr"))
    with pytest.raises(OptionError, match=f"expected bin/{PYTHON} and lib/{PYTHON} in a folder of its own"):
        interpreter_part(tmp_path, tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("small")
    archive(folder, [simple("python", a=b"one" * 400), simple("b", c=bytes(range(256)))])
    return folder, (folder / "a.tar.gz").read_bytes()


def contents(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_the_manifest_has_versions_and_digests_of_all_parts(small: tuple[Path, bytes]) -> None:
    manifest = read_manifest(small[0] / "a.tar.gz")
    assert [(part["name"], part["version"]) for part in manifest["parts"]] == [("python", "1"), ("b", "1")]
    tar = gzip.decompress(small[1])
    start = 512 + -(-len(contents(small[1])["manifest.json"]) // 512) * 512
    for part in manifest["parts"]:
        assert hashlib.sha256(tar[start : start + part["bytes"]]).hexdigest() == part["sha256"]
        start += part["bytes"]
    assert tar[start:] == bytes(1024)


@settings(max_examples=300)
@given(st.data())
def test_a_flipped_bit_is_found_or_changes_nothing(small: tuple[Path, bytes], data: st.DataObject) -> None:
    folder, good = small
    bit = data.draw(st.integers(0, len(good) * 8 - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    file, into = folder / "bad.tar.gz", folder / "into"
    file.write_bytes(bad)
    into.mkdir(exist_ok=True)
    try:
        unpack(file, into)
    except FatwoodError:
        return
    assert gzip.decompress(bytes(bad)) == gzip.decompress(good)  # A field of gzip's header that says nothing.


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -30])
def test_a_truncated_archive_is_damaged(keep: int, small: tuple[Path, bytes], tmp_path: Path) -> None:
    (tmp_path / "cut.tar.gz").write_bytes(small[1][:keep] if keep else b"")
    with pytest.raises(DamagedError, match=r"cut\.tar\.gz: expected"):
        unpack(tmp_path / "cut.tar.gz", tmp_path)


def test_what_follows_the_last_part_is_damage(small: tuple[Path, bytes], tmp_path: Path) -> None:
    (tmp_path / "long.tar.gz").write_bytes(small[1] + gzip.compress(b"more"))
    with pytest.raises(DamagedError, match="the end of an archive after its last part"):
        unpack(tmp_path / "long.tar.gz", tmp_path)


def forged(folder: Path, name: str, manifest: object) -> Path:
    with tarfile.open(folder / "forged.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo(name)
        content = json.dumps(manifest).encode()
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return folder / "forged.tar.gz"


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {"format": "fatwood-environment", "format_version": 2, "parts": []},
        {"format": "fatwood-environment", "format_version": 1},
        {"format": "fatwood-environment", "format_version": 1, "parts": [{"name": "a"}]},
        {
            "format": "fatwood-environment",
            "format_version": 1,
            "parts": [{"name": "a", "version": "1", "sha256": "", "bytes": -1}],
        },
    ],
)
def test_a_manifest_that_makes_no_sense_is_damaged(manifest: object, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="a manifest of an environment"):
        unpack(forged(tmp_path, "manifest.json", manifest), tmp_path)


def test_more_bytes_than_there_is_room_for_are_damage_or_refused(tmp_path: Path) -> None:
    parts = [{"name": "a", "version": "1", "sha256": "", "bytes": 1 << 60}]
    manifest = {"format": "fatwood-environment", "format_version": 1, "parts": parts}
    with pytest.raises(DamagedError, match=r"of the part a, received .* bytes less"):
        unpack(forged(tmp_path, "manifest.json", manifest), tmp_path)


def test_another_archive_is_told_from_ours(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"an archive of `fatwood pack`.* received 'other'"):
        unpack(forged(tmp_path, "other", {}), tmp_path)
    with pytest.raises(StorageError):
        unpack(tmp_path / "none.tar.gz", tmp_path)


def test_a_part_that_was_damaged_in_the_cache_is_not_used(tmp_path: Path) -> None:
    archive(tmp_path, [simple("p", a=b"x" * 999)])
    first = (tmp_path / "a.tar.gz").read_bytes()
    (file,) = (tmp_path / "cache").glob("*.tar.gz")
    bad = bytearray(file.read_bytes())
    bad[-1] ^= 1
    file.write_bytes(bad)
    with pytest.raises(DamagedError, match="hint: remove the folder"):
        archive(tmp_path, [simple("p", a=b"x" * 999)])
    assert (tmp_path / "a.tar.gz").read_bytes() == first
