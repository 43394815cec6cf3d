"""For which machines: tags, and binaries that would not run there."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fatwood.errors import ClusterError, OptionError
from fatwood.packing.elf import read_binary
from fatwood.packing.target import Target, check_binaries, parse_target

HERE = platform.machine()
EM = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}[HERE]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="archives are packed on Linux")


@given(st.integers(0, 99), st.integers(0, 99))
def test_a_target_is_written_as_it_is_read(major: int, minor: int) -> None:
    tag = f"manylinux_{major}_{minor}_{HERE}"
    assert str(parse_target(tag)) == tag
    assert parse_target(tag).glibc == (major, minor)


def test_without_a_tag_it_is_this_machine() -> None:
    found = os.confstr("CS_GNU_LIBC_VERSION").split()[1]
    assert str(parse_target(None)) == f"manylinux_{found.replace('.', '_')}_{HERE}"
    assert parse_target(f"manylinux2014_{HERE}").glibc == (2, 17)


@pytest.mark.parametrize("tag", ["win_amd64", "macosx_11_0_arm64", "linux_x86_64", "manylinux_2_x86_64", ""])
def test_another_system_is_refused_with_what_to_do(tag: str) -> None:
    with pytest.raises(OptionError, match="hint: run `fatwood pack` on a machine, or in a container image"):
        parse_target(tag)


def test_another_cpu_is_refused() -> None:
    with pytest.raises(OptionError, match=f"expected {HERE}, the CPU of this machine, received sparc"):
        parse_target("manylinux_2_28_sparc")


def test_binaries_that_need_a_newer_glibc_are_named_worst_first() -> None:
    parts = [
        ("a", {"GLIBC": ("2.9", "a.so")}, {EM}),
        ("b", {"GLIBC": ("2.34", "b.so"), "GLIBCXX": ("3.4.30", "b.so")}, {EM}),
        ("c", {"GLIBC": ("2.36", "c.so")}, {EM}),
        ("d", {}, set()),
    ]
    assert check_binaries(Target((2, 36), HERE), parts) == "2.36"
    with pytest.raises(
        OptionError, match=r"glibc 2\.28, received: c \(c\.so\) needs .*2\.36; b \(b\.so\) needs"
    ):
        check_binaries(Target((2, 28), HERE), parts)


def test_binaries_for_another_cpu_are_refused() -> None:
    with pytest.raises(OptionError, match=f"a: expected binaries for {EM}, received EM_386"):
        check_binaries(Target((2, 36), HERE), [("a", {}, {EM, "EM_386"})])


def test_the_headers_of_this_interpreter_say_what_it_needs() -> None:
    binary = read_binary(Path(sys.executable))
    assert binary is not None
    assert binary.machine == EM
    assert (2, 0) < binary.versions["GLIBC"] <= parse_target(None).glibc
    assert any(name.startswith("libc.so") for name in binary.needed)


def test_other_files_are_no_binaries_and_broken_headers_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "x.so"
    file.write_bytes(b"")
    assert read_binary(file) is None
    file.write_bytes(b"\x7fELF" + bytes(3))
    with pytest.raises(ClusterError, match=r"x\.so: expected a shared library or a program"):
        read_binary(file)
