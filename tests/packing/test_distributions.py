"""Distributions: which files, under which names, and what is refused before anything is packed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fatwood.errors import OptionError, StorageError
from fatwood.packing.distributions import Environment, Installed, installed, torch_build
from fatwood.packing.interpreter import PYTHON
from fatwood.packing.part import Entry

SITE = f"lib/{PYTHON}/site-packages"
BIN = "../../../bin"
Install = Callable[..., Environment]


def only(environment: Environment) -> Installed:
    (one,) = installed(environment)
    return one


def entries(environment: Environment, *, drop_tests: bool = False) -> dict[str, Entry]:
    found = only(environment).part(drop_tests=drop_tests).entries()
    return {entry.name: entry for entry in found}


def test_what_record_lists_is_packed_but_bytecode_and_where_it_came_from(install: Install) -> None:
    files = {
        "my_lib/__init__.py": b"x = 1\n",
        "my_lib/__pycache__/__init__.pyc": b"",
        "My_Lib-1.0.dist-info/direct_url.json": b"{}",
        "My_Lib-1.0.dist-info/INSTALLER": b"pip",
        "not_mine.py": b"",
        "../../../share/doc.txt": b"",
    }
    environment = install("My_Lib", files, unlisted=("not_mine.py",))
    info = f"{SITE}/My_Lib-1.0.dist-info"
    assert only(environment).name == "my-lib"
    assert sorted(entries(environment)) == [
        f"{info}/METADATA",
        f"{info}/RECORD",
        f"{SITE}/my_lib/__init__.py",
        "share/doc.txt",
    ]
    record = (entries(environment)[f"{info}/RECORD"].content or b"").decode().splitlines()
    assert record[0].startswith("../../../share/doc.txt,") or "../../../share/doc.txt,," in record
    assert any(line.startswith("my_lib/__init__.py,sha256=") and line.endswith(",6") for line in record)


def test_folders_of_tests_go_when_asked_and_a_package_of_that_name_stays(install: Install) -> None:
    files = {"a/tests/t.py": b"", "a/testing.py": b"", "test.py": b""}
    environment = install("a", files)
    dropped = set(entries(environment)) - set(entries(environment, drop_tests=True))
    assert dropped == {f"{SITE}/a/tests/t.py"}


def test_the_key_is_that_of_the_contents_and_not_of_the_place(install: Install, tmp_path: Path) -> None:
    def key(content: bytes, head: bytes) -> str:
        environment = install(
            "a", {"a.py": content, f"{BIN}/a": b"#!" + str(tmp_path / "made" / "bin").encode() + head + b"\n"}
        )
        return only(environment).part(drop_tests=False).key

    assert key(b"1", b"/python") == key(b"1", b"/python3")
    assert key(b"1", b"/python") != key(b"2", b"/python")


def test_a_script_starts_the_interpreter_beside_it_also_by_a_link_from_elsewhere(
    install: Install, tmp_path: Path
) -> None:
    head = f"#!{tmp_path}/made/bin/python3\n".encode()
    long = f"#!/bin/sh\n'''exec' \"{tmp_path}/made/bin/python3\" \"$0\" \"$@\"\n' '''\n".encode()
    body = b"import sys; print(sys.argv[1:])\n"
    environment = install(
        "a", {f"{BIN}/short": head + body, f"{BIN}/long": long + body, f"{BIN}/data": b"\x7fELF"}
    )
    found = entries(environment)
    assert found["bin/short"].content == found["bin/long"].content
    assert found["bin/data"].path is not None
    new = tmp_path / "moved to"
    new.mkdir()
    (new / PYTHON).symlink_to(sys.executable)
    script = new / "short"
    script.write_bytes(found["bin/short"].content or b"")
    script.chmod(0o755)
    (tmp_path / "link").symlink_to(script)
    done = subprocess.run(
        [tmp_path / "link", "a b"], capture_output=True, text=True, cwd="/", timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("['a b']\n", "")


@pytest.mark.parametrize("head", ["#!/bin/bash", "#!/usr/bin/env python", "#! /bin/sh -e"])
def test_a_script_of_every_machine_stays_as_it_is(head: str, install: Install) -> None:
    environment = install("a", {f"{BIN}/a": head.encode() + b"\ntrue\n"})
    assert entries(environment)["bin/a"].path is not None


def test_a_script_for_another_program_of_this_machine_is_refused(install: Install) -> None:
    environment = install("a", {f"{BIN}/a": b"#!/opt/other/bin/perl -w\n"})
    with pytest.raises(OptionError, match=r"received /opt/other/bin/perl\n"):
        entries(environment)


@pytest.mark.parametrize("path", ["pyspark/sql/__init__.py", "py4j/java.py", "pyspark.py"])
def test_a_distribution_that_hides_pyspark_is_refused(path: str, install: Install) -> None:
    with pytest.raises(OptionError, match=r"(?s)sneaky: expected no package py.* of Spark's own.*--exclude"):
        only(install("sneaky", {path: b""})).part(drop_tests=False)


@pytest.mark.parametrize("backport", [False, True])
def test_files_that_are_gone_or_outside_are_refused(install: Install, tmp_path: Path, backport: bool) -> None:
    if backport:
        pytest.importorskip("importlib_metadata")  # takes the place of the standard library's finder
    environment = install("a", {"a.py": b""})
    (environment.site[0] / "a.py").unlink()
    with pytest.raises(StorageError, match=r"a: expected the file .*a\.py"):
        only(environment).part(drop_tests=False)
    environment = install("a", {"../../../../outside.txt": b""})
    with pytest.raises(OptionError, match=r"received .*outside\.txt in its RECORD"):
        only(environment).part(drop_tests=False)


def test_a_distribution_without_a_record_is_refused(install: Install) -> None:
    environment = install("a", {"a.py": b""})
    (environment.site[0] / "a-1.0.dist-info" / "RECORD").unlink()
    with pytest.raises(OptionError, match="a: expected a list of its files, received none"):
        only(environment).part(drop_tests=False)


def test_a_path_of_this_machine_in_a_pth_file_is_refused(install: Install) -> None:
    assert entries(install("a", {"a.pth": b"import a\nrelative\n", "a/weights.pth": b"/not\xff a path"}))
    with pytest.raises(OptionError, match="received /home/me/src in "):
        entries(install("a", {"a.pth": b"/home/me/src\n"}))


def test_links_of_a_distribution_stay_links(install: Install) -> None:
    environment = install("a", {"a/lib.so.1": b"", "a/lib.so": b""})
    link = environment.site[0] / "a" / "lib.so"
    link.unlink()
    link.symlink_to("lib.so.1")
    assert entries(environment)[f"{SITE}/a/lib.so"].link == "lib.so.1"


def test_a_link_to_a_file_of_this_machine_is_refused_before_anything_is_packed(install: Install) -> None:
    environment = install("a", {"a/lib.so": b""})
    link = environment.site[0] / "a" / "lib.so"
    link.unlink()
    link.symlink_to("/usr/lib/libx.so")
    with pytest.raises(OptionError, match=r"a/lib\.so: .* received one to /usr/lib/libx\.so"):
        only(environment).part(drop_tests=False)


def test_a_linked_distribution_tells_its_sources(install: Install) -> None:
    origin = b'{"dir_info": {"editable": true}, "url": "file:///some%20where/src"}'
    environment = install("a", {"a-1.0.dist-info/direct_url.json": origin})
    assert only(environment).editable == Path("/some where/src")
    assert (
        only(install("a", {"a-1.0.dist-info/direct_url.json": b'{"url": "file:///x.whl"}'})).editable is None
    )


@pytest.mark.parametrize(
    ("source", "build"),
    [
        ("cuda: Optional[str] = None", "cpu"),
        ("cuda = '12.8'", "12.8"),
        ("cuda: Optional[str] = '13.0'\nhip = None", "13.0"),
    ],
)
def test_the_build_of_torch_is_read_and_not_imported(source: str, build: str, install: Install) -> None:
    text = f"raise SystemError\n{source}\n".encode()
    assert torch_build([only(install("torch", {"torch/version.py": text}))]) == build
    assert torch_build([]) is None
