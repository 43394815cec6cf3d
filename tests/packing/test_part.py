"""Parts: equal contents give equal bytes, links stay inside, unchanged ones are not packed again."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fatwood.errors import OptionError
from fatwood.packing.part import Entry, Part, check_link, forget_old, pack_part, write_entries

NAMES = st.text("abc/", min_size=1, max_size=150).filter(
    lambda name: not name.startswith("/") and not name.endswith("/") and "//" not in name
)


@given(st.lists(st.dictionaries(NAMES, st.binary(max_size=2000), max_size=4), max_size=4))
def test_pieces_one_after_another_are_one_tar(pieces: list[dict[str, bytes]]) -> None:
    file = io.BytesIO()
    for piece in pieces:
        write_entries([Entry(name, content=content) for name, content in piece.items()], file, level=1)
    write_entries([], file, level=1, end=bytes(1024))
    with tarfile.open(fileobj=io.BytesIO(file.getvalue()), mode="r:gz") as tar:
        found = [(member.name, tar.extractfile(member).read()) for member in tar]
    assert found == [item for piece in pieces for item in piece.items()]
    assert len(gzip.decompress(file.getvalue())) % 512 == 0


def packed(folder: Path, content: bytes, *, key: str = "k") -> tuple[bytes, bool]:
    source = folder / "source"
    source.write_bytes(content)
    part = Part("p", "1", key, lambda: [Entry("lib/b", path=source), Entry("a", link="lib/b")])
    done = pack_part(part, folder / "cache", level=1)
    return (folder / "cache" / done.file).read_bytes(), done.reused


def test_a_part_with_the_same_key_is_used_again_and_another_is_not(tmp_path: Path) -> None:
    first, reused = packed(tmp_path, b"one")
    assert not reused
    assert packed(tmp_path, b"two") == (first, True)
    other, reused = packed(tmp_path, b"two", key="other")
    assert (other != first, reused) == (True, False)


def test_the_same_contents_give_the_same_bytes_whatever_the_dates_and_modes(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "source").touch(mode=0o600)
    assert packed(tmp_path / "x", b"one") == packed(tmp_path / "y", b"one")


def test_a_half_written_part_is_packed_again(tmp_path: Path) -> None:
    whole, _ = packed(tmp_path, b"one" * 1000)
    (file,) = (tmp_path / "cache").glob("*.tar.gz")
    file.write_bytes(whole[:-1])
    assert packed(tmp_path, b"one" * 1000) == (whole, False)
    (facts,) = (tmp_path / "cache").glob("*.json")
    facts.write_bytes(facts.read_bytes()[:-9])
    assert packed(tmp_path, b"one" * 1000) == (whole, False)
    assert packed(tmp_path, b"one" * 1000) == (whole, True)


def test_what_nothing_used_for_a_month_is_removed(tmp_path: Path) -> None:
    packed(tmp_path, b"old")
    packed(tmp_path, b"new", key="other")
    cache = tmp_path / "cache"
    old = time.time() - 31 * 86400
    for file in cache.iterdir():
        os.utime(file, (old, old))
    assert packed(tmp_path, b"new", key="other")[1]
    forget_old(cache)
    assert sorted(file.suffix for file in cache.iterdir()) == [".gz", ".json"]
    assert packed(tmp_path, b"new", key="other")[1]
    assert not packed(tmp_path, b"old")[1]


@pytest.mark.parametrize("target", ["/usr/bin/python3", "../../outside", "../x/../../y"])
def test_a_link_out_of_the_archive_is_refused(target: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected a link to a file in the archive"):
        check_link("bin/python", target)
    part = Part("p", "1", "k", lambda: [Entry("bin/python", link=target)])
    with pytest.raises(OptionError, match=r"bin/python: .* received one to"):
        pack_part(part, tmp_path, level=1)
    assert list(tmp_path.iterdir()) == []


def test_a_link_inside_of_the_archive_is_fine() -> None:
    check_link("bin/python", "python3.11")
    check_link("lib/a/b.so", "../../bin/b")
