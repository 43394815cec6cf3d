"""The site builds without a warning, has every public name, and loads nothing from other hosts."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.docs.pages import DOCS, PAGES, ROOT

import fatwood


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_site", DOCS / "build_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_out_of_the_site_become_text(builder: ModuleType) -> None:
    text = "[a](LICENSE) [b](docs/training.md#validation) ![c](docs/images/report.png) [d](https://a.org) [e](CHANGELOG.md)"
    links = "a [b](training.md#validation) ![c](images/report.png) [d](https://a.org) [e](changelog.md)"
    assert builder.links(text, ROOT / "README.md", Path()) == links
    assert (
        builder.links("[x](../../README.md)", DOCS / "how-to" / "a.md", Path("how-to")) == "[x](../index.md)"
    )


INTERNAL = {
    "archive",
    "blueprint",
    "cli",
    "exchange",
    "model",
    "nd4j",
    "pieces",
    "program",
    "rebuilding",
    "report",
    "shards",
}
INTERNAL |= {
    "__main__",
    "checkpoint",
    "files",
    "snapshots",
}  # what is public of them is a name of fatwood or of fatwood.data
"""Rooms whose names are not in the reference."""


def test_every_room_is_in_the_reference_or_internal(builder: ModuleType) -> None:
    rooms = {module.name for module in pkgutil.iter_modules(fatwood.__path__)}
    public = {package.split(".")[1] for package in builder.PUBLIC if "." in package}
    assert public & INTERNAL == set()
    assert rooms == public | INTERNAL


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_site_builds(builder: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    done = subprocess.run(
        [sys.executable, str(DOCS / "build_site.py"), str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    site = tmp_path / "site"
    pages = {
        page.relative_to(site).as_posix(): page.read_text(encoding="utf-8") for page in site.rglob("*.html")
    }
    for page in PAGES:
        name = page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT).with_suffix(".html").as_posix()
        assert {"README.html": "index.html", "CONTRIBUTING.html": "contributing.html"}.get(
            name, name
        ) in pages
    for package in builder.PUBLIC:
        text = pages[f"reference/{package}.html"]
        assert [name for name in builder.names_of(package) if f'id="{package}.{name}"' not in text] == []
    loaded = [
        tag
        for text in pages.values()
        for tag in re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^>]*>", text
        )
    ]
    assert loaded == []
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert not any(re.search(r"@import|url\([\"']?(?:https?:)?//", style) for style in styles)
