"""Committed texts point only at what is there, and name no machine and no package registry."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")])
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
NAMED_FILE = re.compile(r"`((?:tests|src|docs)/[\w./-]+)`")
MODULE = re.compile(r"(?<![\w/])((?:codec|data|demo|evaluation|exchange|spark|testing|train)/\w+\.py)\b")

# A home of nobody in particular (/home/me) may be made up in an example.
FORBIDDEN = {
    "a path of one machine": re.compile(
        r"(?<![\w.:/-])/(?:(?:work|root|mnt)/|(?:home|Users)/(?!(?:me|user|you)\b))\w"
    ),
    "a package registry": re.compile(
        r"pypi\.(?:org|python)|pythonhosted|download\.pytorch|repo1?\.maven|anaconda\.(?:org|com)|npmjs\.|index-url"
    ),
}


def broken_links(page: Path, text: str) -> list[str]:
    targets = [t for t in LINK.findall(text) if not t.startswith(("http://", "https://", "#", "mailto:"))]
    missing = [t for t in targets if not (page.parent / t.partition("#")[0]).exists()]
    return missing + [name for name in NAMED_FILE.findall(text) if not (ROOT / name).exists()]


def violations(text: str) -> list[str]:
    return [
        f"line {number}: {kind}: {found.group(0)}"
        for number, line in enumerate(text.splitlines(), 1)
        for kind, pattern in FORBIDDEN.items()
        if (found := pattern.search(line))
    ]


def committed_texts() -> list[Path]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs a clone")
    listed = subprocess.run(
        [git, "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=True,
    ).stdout
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    own = Path(__file__).resolve()  # it has to spell what it forbids
    paths = [path for path in paths if path.is_file() and path.resolve() != own]
    return [path for path in paths if b"\0" not in path.read_bytes()[:8192]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_seen() -> None:
    text = "[a](README.md) [b](nowhere.md#top) [c](https://example.org/x) `tests/nothing.py`"
    assert broken_links(ROOT / "README.md", text) == ["nowhere.md#top", "tests/nothing.py"]


def test_modules_named_in_the_architecture_exist() -> None:
    names = set(MODULE.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")))
    assert len(names) > 10
    package = ROOT / "src" / "fatwood"
    assert [name for name in sorted(names) if not (package / name).exists()] == []


def test_the_architecture_shows_every_room_on_its_floor() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = {
        name: int(floor) for name, floor in re.findall(r"^  (\w+)(?:\.py|/) +(\d)  ", text, re.MULTILINE)
    }
    source = (ROOT / "tests" / "house" / "test_floors.py").read_text(encoding="utf-8")
    enforced = {name: int(floor) for name, floor in re.findall(r'^    "(\w+)": (\d),$', source, re.MULTILINE)}
    assert shown == enforced


def test_no_text_names_a_machine_or_a_registry() -> None:
    found = {}
    for path in committed_texts():
        wrong = violations(path.read_text(encoding="utf-8", errors="replace"))
        if wrong:
            found[str(path.relative_to(ROOT))] = wrong
    assert found == {}


@pytest.mark.parametrize(
    "line", ["see /work/main", "open('/home/ada/x')", "https://pypi.org/simple", "--index-url x"]
)
def test_a_forbidden_word_is_seen(line: str) -> None:
    assert len(violations(line)) == 1
