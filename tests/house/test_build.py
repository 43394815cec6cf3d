"""What the build makes of ``src/kernel``: a library that fits, wherever there is a compiler."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fatwood.codec import native

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "kernel").glob("*.c"))
HEADER = (ROOT / "src" / "kernel" / "fatwood_kernel.h").read_text()
COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


@needs_compiler
def test_where_there_is_a_compiler_there_is_a_kernel() -> None:
    assert native.native_kernels() != []


@needs_compiler
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_sources_compile_without_a_warning(source: Path) -> None:
    options = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-fsyntax-only"]
    done = subprocess.run(
        [str(COMPILER), *options, str(source)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_header_cmake_and_python_agree() -> None:
    declared = set(re.findall(r"\b(fw_\w+)\(", HEADER))
    assert declared == {*native._PROTOTYPES, "fw_abi"}
    assert re.findall(r"#define FW_ABI (\d+)", HEADER) == [str(native._ABI)]
    built = set(re.findall(r"src/kernel/\w+\.c", (ROOT / "CMakeLists.txt").read_text()))
    assert built == {f"src/kernel/{source.name}" for source in SOURCES}


@pytest.mark.skipif(native._library_path() is None, reason="no compiled kernel")
def test_the_library_links_to_neither_python_nor_torch() -> None:
    path = native._library_path()
    assert path is not None
    content = path.read_bytes()
    for name in (b"fw_extract", b"fw_rice_unpack"):
        assert name in content
    for name in (b"libpython", b"libtorch", b"libc10", b"PyInit", b"Py_"):
        assert name not in content
