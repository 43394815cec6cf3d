"""What pip builds: wheels of linked sources, and environments of their own; a tiny backend in the sources needs no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from fatwood.errors import OptionError
from fatwood.packing.building import build_wheel, new_environment
from fatwood.packing.distributions import installed

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(f"{folder}/tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write("tiny.py")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\\ntiny = tiny:main\\n")
        names = ["tiny.py", f"{info}/METADATA", f"{info}/WHEEL", f"{info}/entry_points.txt", f"{info}/RECORD"]
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\\n" for name in names))
    return "tiny-1.0-py3-none-any.whl"
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "tiny.py").write_text("def main(): print('one')\n")
    return folder


def test_a_wheel_is_built_again_when_its_sources_change_and_only_then(source: Path, tmp_path: Path) -> None:
    first = build_wheel(source, tmp_path / "cache")
    content = first.read_bytes()
    first.write_bytes(content + b"kept")
    (source / "__pycache__").mkdir(exist_ok=True)
    (source / "__pycache__" / "tiny.pyc").write_bytes(b"x")
    (source / ".git").mkdir()
    (source / ".git" / "index").write_bytes(b"x")
    assert build_wheel(source, tmp_path / "cache") == first
    assert first.read_bytes() == content + b"kept"
    (source / "tiny.py").write_text("def main(): print('two')\n")
    assert build_wheel(source, tmp_path / "cache") != first


def test_a_new_environment_has_what_was_asked_for_and_its_scripts_move(source: Path, tmp_path: Path) -> None:
    wheel = build_wheel(source, tmp_path / "cache")
    keys, scripts = set(), set()
    for name in ("one", "two"):
        (one,) = installed(new_environment(tmp_path / name, ["--no-index", "--no-deps", str(wheel)]))
        part = one.part(drop_tests=False)
        (script,) = (entry for entry in part.entries() if entry.name == "bin/tiny")
        keys.add(part.key)
        scripts.add(script.content)
    assert len(keys) == len(scripts) == 1
    assert b"dirname" in (scripts.pop() or b"")


def test_what_pip_says_is_in_the_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"(?s)pip could not install:\n.*no-such-thing.*hint: try the same"):
        new_environment(tmp_path / "e", ["--no-index", "no-such-thing"])
    (source / "backend.py").write_text("def build_wheel(*_, **__): raise SystemExit('no compiler here')\n")
    with pytest.raises(
        OptionError, match=r"(?s)pip could not build a wheel of .*source:\n.*no compiler here"
    ):
        build_wheel(source, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.whl"))
